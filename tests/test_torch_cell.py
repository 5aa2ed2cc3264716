"""fastrnn.torch.RNNCell is torch.nn.RNNCell: constructor, errors, results, gradients, plumbing."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from typing import Any

import pytest
from helpers.cases import SEED
from helpers.compare import assert_same_bits, normalised_error
from helpers.processes import output_of
from helpers.torch_layers import cell_results as results
from helpers.torch_layers import cell_twins as twins
from helpers.torch_layers import outcome

OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"bias": False}, {"nonlinearity": "relu"}, {"bias": False, "nonlinearity": "relu"},
)  # fmt: skip
SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129)


def assert_close(got: dict[str, Any], want: dict[str, Any], bound: float) -> None:
    assert list(got) == list(want)
    for name in want:
        assert normalised_error(got[name], want[name]) <= bound, name


# ---- results


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("B", [None, 0, 1, 4], ids=str)
@pytest.mark.parametrize("hx", [True, False])
def test_equals_torch(torch: Any, options: dict[str, Any], B: int | None, hx: bool) -> None:
    """The state and every gradient in float64 <= 1e-13 normalised, one row or a batch, with and without hx; the same
    bits without gradients; shape and strides as torch's."""
    ours, stock = twins(torch, 5, 7, dtype=torch.float64, **options)
    got, want = (results(torch, cell, B, hx=hx) for cell in (ours, stock))
    assert_close(got, want, 1e-13)
    with torch.no_grad():
        again = results(torch, ours, B, hx=hx, grad=False)
    assert_same_bits(again["state"], got["state"], "without gradients")
    x = torch.randn(5, dtype=torch.float64) if B is None else torch.randn(B, 5, dtype=torch.float64)
    with torch.set_grad_enabled(hx):
        states = ours(x), stock(x)
    assert B == 0 or states[0].stride() == states[1].stride()
    assert states[0]._is_view() == states[1]._is_view()


@pytest.mark.parametrize("n", SIZES)
def test_equals_torch_at_odd_sizes(torch: Any, n: int) -> None:
    i = SIZES.index(n)
    I, B = SIZES[-1 - i], SIZES[(7 * i + 3) % len(SIZES)]
    ours, stock = twins(torch, I, n, dtype=torch.float64, nonlinearity=("tanh", "relu")[i % 2])
    assert_close(results(torch, ours, B), results(torch, stock, B), 1e-12)


def test_is_one_step_of_the_layer_to_the_bit(torch: Any) -> None:
    import fastrnn

    torch.manual_seed(SEED)
    layer, cell = fastrnn.torch.RNN(33, 65), fastrnn.torch.RNNCell(33, 65)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    x = torch.randn(9, 4, 33)
    states, h = [], None
    for step in x:
        h = cell(step, h)
        states.append(h)
    output, h_n = layer(x)
    assert torch.equal(torch.stack(states), output)
    assert torch.equal(h, h_n[0])
    got, want = (torch.autograd.grad(o[-1].sum(), m.weight_hh if m is cell else m.weight_hh_l0)[0]
                 for o, m in ((states, cell), (output, layer)))  # fmt: skip
    assert normalised_error(got.numpy(), want.numpy()) <= 1e-5


def test_runs_on_the_kernels(torch: Any) -> None:
    """With gradients and without: by what the graph says, and by what is called; dense tensors and others."""
    import fastrnn
    from fastrnn.torch import autograd, node
    from fastrnn.torch import cell as cell_module

    cell, calls = fastrnn.torch.RNNCell(5, 7), []
    assert type(cell(torch.randn(3, 5)).grad_fn).__name__ == "StepBackward"
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(node._chosen, "node", None)
        for module, name in ((autograd, "rnn_layer"), (cell_module, "_state")):
            real = getattr(module, name)
            patch.setattr(module, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
        cell(torch.randn(3, 5))
        cell(torch.randn(5, 3).t())
    dense = ["_state"] if hasattr(autograd.dispatch.backend(), "forward_tensors") else ["_state", "rnn_layer"]
    assert calls == [*dense, "_state", "rnn_layer"]


def test_gradcheck(torch: Any) -> None:
    for options in OPTIONS[:2]:
        ours, _ = twins(torch, 3, 2, dtype=torch.float64, **options)
        x, h = (torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (3, 2))
        assert torch.autograd.gradcheck(lambda a, b, *_, f=ours: f(a, b), (x, h, *ours.parameters()), fast_mode=False)
        assert torch.autograd.gradcheck(lambda a, f=ours: f(a), (x[0].detach().requires_grad_(),), fast_mode=False)


def test_a_loop_of_truncated_bptt(torch: Any) -> None:
    """States detached in place, a frozen weight."""
    made = []
    for cell in twins(torch, 5, 7, dtype=torch.float64):
        cell.weight_ih.requires_grad_(False)
        generator = torch.Generator().manual_seed(SEED)
        h, loss = None, 0.0
        for step in range(6):
            x = torch.randn(3, 5, dtype=torch.float64, generator=generator)
            h = cell(x, h)
            if step == 3:
                h.detach_()
            loss = loss + (step + 1) * h.pow(2).sum()
        loss.backward()
        assert cell.weight_ih.grad is None
        made.append([p.grad.numpy() for p in cell.parameters() if p.requires_grad])
    for got, want in zip(*made, strict=True):
        assert normalised_error(got, want) <= 1e-12


def test_the_state_may_be_edited_in_place(torch: Any) -> None:
    """... before backward, where torch.nn.RNNCell's raises: the bits of the same without an edit."""
    ours, _ = twins(torch, 5, 7)
    x, h = torch.randn(3, 5), torch.randn(3, 7)
    edited = ours(x, h).mul_(3)
    for got, want in zip(
        *(torch.autograd.grad(s.sum(), ours.parameters()) for s in (edited, 3 * ours(x, h))), strict=True
    ):
        assert torch.equal(got, want)


def test_inputs_of_any_strides(torch: Any) -> None:
    """The bits of a contiguous copy; nothing is modified; backward through an expanded upstream gradient."""
    ours, _ = twins(torch, 5, 7)
    base = torch.randn(10, 8)
    for x, h in (
        (base.T[:4, :5], base.T[:4, 3:]),
        (base[:4, :5], base[0, :7].expand(4, 7)),
        (base[::2, 0], base[3:, 2]),
    ):
        before = x.clone(), h.clone()
        assert torch.equal(ours(x, h), ours(x.clone(memory_format=torch.contiguous_format), h.contiguous()))
        assert torch.equal(x, before[0])
        assert torch.equal(h, before[1])


# ---- errors


def test_the_constructor_checks_what_torchs_does(torch: Any) -> None:
    import fastrnn

    assert str(inspect.signature(fastrnn.torch.RNNCell)).split(")")[0] == (
        "(input_size: 'int', hidden_size: 'int', bias: 'bool' = True, nonlinearity: 'str' = 'tanh', "
        "device: 'Any' = None, dtype: 'Any' = None, *, alpha: 'float | Tensor | None' = None"
    )
    warnings.simplefilter("ignore")  # zero-element parameters
    cases: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((4, 6), {}), ((4, 6, False), {}), ((4, 6, True, "relu"), {}), ((4, 6, 0), {}), ((4, 6, 1, "gelu"), {}),
        ((0, 6), {}), ((4, 0), {}), ((4,), {}), ((), {}), ((4, 6), {"foo": 1}), ((4, -1), {}), ((4.5, 6), {}),
        ((4, 6), {"dtype": torch.int32}), ((4, 6), {"device": "meta"}),
        ((4, 6, True, "tanh", "cpu", torch.float64), {}),
        ((4, 6, True, "tanh", "cpu", torch.float64, 7), {}), (("a", 6), {}),
    ]  # fmt: skip
    for args, kwargs in cases:
        kinds = fastrnn.torch.RNNCell, torch.nn.RNNCell
        got, want = (outcome(lambda kind=kind, args=args, kwargs=kwargs: kind(*args, **kwargs)) for kind in kinds)
        assert got == want, (args, kwargs)


def test_forwards_errors_are_torchs(torch: Any) -> None:
    def normal(*shape: int, dtype: Any = torch.float32) -> Any:
        return torch.randn(shape, dtype=dtype)

    cases = {
        "0-D": (normal(),), "3-D": (normal(5, 3, 4),), "hx 3-D": (normal(3, 4), normal(1, 3, 6)),
        "hx 0-D": (normal(3, 4), normal()),
        "features": (normal(3, 9),), "features of one": (normal(9),), "hx features": (normal(3, 4), normal(3, 9)),
        "hx batch": (normal(3, 4), normal(5, 6)), "hx broadcast": (normal(3, 4), normal(1, 6)),
        "one row, hx of a batch": (normal(4), normal(1, 6)), "a batch, hx of one row": (normal(3, 4), normal(6)),
        "hx of one row": (normal(4), normal(7)), "dtype": (normal(3, 4, dtype=torch.float64),),
        "hx dtype": (normal(3, 4), normal(3, 6, dtype=torch.float64)), "int": (torch.ones(3, 4, dtype=torch.int64),),
        "list": ([[1.0] * 4],), "None": (None,), "tuple hx": (normal(3, 4), (normal(3, 6),)),
        "half": (normal(3, 4).half(),),
    }  # fmt: skip
    for grad in (True, False):
        for name, args in cases.items():
            with torch.set_grad_enabled(grad):
                got, want = (outcome(lambda cell=cell, args=args: cell(*args)) for cell in twins(torch, 4, 6))
            assert want[0], name
            assert got == want, name


def test_weights_and_nonlinearity_of_a_wrong_kind(torch: Any) -> None:
    """The attribute nonlinearity may change, to what torch.nn.RNNCell takes."""

    def unknown(cell: Any) -> None:
        cell.nonlinearity = "gelu"

    def cut(cell: Any) -> None:
        cell.weight_hh.data = torch.randn(6, 5)

    def cut_bias(cell: Any) -> None:
        cell.bias_hh.data = torch.randn(3)

    def mix(cell: Any) -> None:
        cell.weight_hh.data = cell.weight_hh.data.double()

    for spoil in (unknown, cut, cut_bias, mix):
        found = []
        for cell in twins(torch, 4, 6):
            spoil(cell)
            found.append(outcome(lambda cell=cell: cell(torch.ones(3, 4), torch.ones(3, 6))))
        assert found[0] == found[1], spoil.__name__
        assert found[0][0], spoil.__name__
    states = []
    for cell in twins(torch, 4, 6, dtype=torch.float64):
        cell.nonlinearity = "relu"
        states.append(results(torch, cell, 3))
    assert_close(*states, 1e-13)


# ---- plumbing


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attributes_repr_and_state_dict_are_torchs(torch: Any, options: dict[str, Any]) -> None:
    ours, stock = twins(torch, 5, 7, **options)
    assert repr(ours) == repr(stock)
    assert {k: v for k, v in vars(ours).items() if not k.startswith("_")} == {
        k: v for k, v in vars(stock).items() if not k.startswith("_")
    }
    assert ours.__constants__ == stock.__constants__
    assert isinstance(ours, torch.nn.modules.rnn.RNNCellBase)
    assert list(ours.state_dict()) == list(stock.state_dict())
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        assert torch.equal(p, q)  # drawn from one seed
    stock.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(stock.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(torch: Any, how: str) -> None:
    ours, _ = twins(torch, 5, 7)
    x = torch.randn(3, 5)
    want = ours(x).detach().clone()
    other = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
    assert torch.equal(other(x), want)
    assert not ours(x).any()


@pytest.mark.parametrize("how", ["weight_norm", "orthogonal", "spectral_norm", "legacy_weight_norm", "prune"])
def test_weights_that_others_make(torch: Any, how: str) -> None:
    from torch.nn.utils import parametrizations, prune

    made = []
    for cell in twins(torch, 5, 7, dtype=torch.float64):
        torch.manual_seed(11)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            if how == "prune":
                prune.l1_unstructured(cell, "weight_ih", 0.5)
            elif how == "legacy_weight_norm":
                torch.nn.utils.weight_norm(cell, "weight_hh")
            else:
                getattr(parametrizations, how)(cell, "weight_hh")
        got = {}
        for step in range(2):
            for name, value in results(torch, cell, 3, seed=step).items():
                got[f"{name} {step}"] = value
            with torch.no_grad():
                for p in cell.parameters():
                    p.mul_(0.9)
        made.append(got)
    assert_close(*made, 1e-11)


def test_functional_call_hooks_double_and_meta(torch: Any) -> None:
    ours, stock = twins(torch, 5, 7, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64)
    other = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    got, want = (torch.func.functional_call(cell, other, (x,)).numpy() for cell in (ours, stock))
    assert normalised_error(got, want) <= 1e-13
    calls: list[str] = []
    ours.register_forward_pre_hook(lambda *_: calls.append("pre"))
    ours.register_forward_hook(lambda *_: calls.append("forward"))
    ours.register_full_backward_hook(lambda *_: calls.append("backward"))
    ours(x.requires_grad_()).sum().backward()
    assert sorted(calls) == ["backward", "forward", "pre"]
    assert ours.float()(x.detach().float()).dtype == torch.float32
    empty = copy.deepcopy(ours).to("meta").to_empty(device="cpu")
    empty.load_state_dict(ours.state_dict())
    assert torch.equal(empty(x.float()), ours(x.float()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("autocast", [False, True])
def test_halves_are_computed_in_float32(torch: Any, dtype: str, autocast: bool) -> None:
    """Dtypes are torch's; the error against float64 is at most torch's (1.0), for state and gradients, over a loop."""
    half = getattr(torch, dtype)
    ours, stock = twins(torch, 33, 65)
    exact = copy.deepcopy(stock).double()
    if not autocast:
        ours, stock = ours.to(half), stock.to(half)
        exact.load_state_dict({name: p.double() for name, p in ours.state_dict().items()})
    xs = torch.randn(12, 9, 33).to(half)
    made = []
    for cell in (ours, stock, exact):
        h, dtypes = None, []
        with torch.autocast("cpu", dtype=half, enabled=autocast and cell is not exact):
            for x in xs.double() if cell is exact else xs if not autocast else xs.float():
                h = cell(x, h)
                dtypes.append(h.dtype)
        h.backward(torch.linspace(-1, 1, h.numel()).reshape(h.shape).to(h.dtype))
        dtypes += [p.grad.dtype for p in cell.parameters()]
        made.append((dtypes, [h.detach().double(), *[p.grad.double() for p in cell.parameters()]]))
    assert made[0][0] == made[1][0]
    for got, theirs, want in zip(made[0][1], made[1][1], made[2][1], strict=True):
        assert (got - want).norm() <= (theirs - want).norm()


def test_complex_runs_on_torch_and_says_so_once(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastrnn.torch.dispatch as dispatch

    monkeypatch.setattr(dispatch, "_warned", set())
    ours, stock = twins(torch, 5, 7, dtype=torch.complex64)
    x = torch.randn(3, 5, dtype=torch.complex64)
    match = (
        r"^fastrnn.torch.RNNCell runs at the speed of torch.nn.RNNCell, which computes for tensors of torch.complex64\."
    )
    with pytest.warns(RuntimeWarning, match=match):
        assert torch.equal(ours(x), stock(x))
    ours(x)  # an error if it warned again


def test_disable_runs_on_torch_without_a_word(torch: Any) -> None:
    code = """
import warnings, torch, fastrnn
warnings.simplefilter("error")
print(type(fastrnn.torch.RNNCell(5, 7)(torch.randn(3, 5)).grad_fn).__name__)
"""
    assert output_of(code, FASTRNN_DISABLE="1") == "TanhBackward0"
    assert output_of(code, FASTRNN_DISABLE="0") != "TanhBackward0"


@pytest.mark.slow
def test_compiles_without_a_graph_break(torch: Any) -> None:
    code = """
import torch, fastrnn
ours, stock = fastrnn.torch.RNNCell(5, 7), torch.nn.RNNCell(5, 7)
stock.load_state_dict(ours.state_dict())
x, h = torch.randn(3, 5), torch.randn(3, 7)
compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
print(torch.allclose(compiled(x, h), stock(x, h), atol=1e-6))
"""
    assert output_of(code, timeout=300) == "True"
