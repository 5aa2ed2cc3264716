"""alpha of fastrnn.torch.RNN and RNNCell, leaky units, against a loop over the steps in torch: a number, a tensor and a
Parameter, eager and compiled, with every other option, all derivatives; and what is refused.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
from helpers.bad_inputs import refuse
from helpers.compare import normalised_error
from helpers.torch_layers import cell_twins, inputs, name_of

pytestmark = pytest.mark.usefixtures("own_route")

KINDS = ("number", "tensor", "parameter", "scalar parameter")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"nonlinearity": "relu", "bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
)
T, B, I, H = 6, 5, 3, 7


def alpha_of(torch: Any, kind: str, dtype: Any = None, H: int = H) -> Any:
    dtype = dtype or torch.float64
    if kind == "number":
        return 0.3
    values = torch.linspace(0.05, 1, H, dtype=dtype)
    if kind == "scalar parameter":
        values = torch.tensor(0.3, dtype=dtype)
    return values if kind == "tensor" else torch.nn.Parameter(values)


def made(torch: Any, kind: str, **options: Any) -> Any:
    import fastrnn

    torch.manual_seed(0)
    return fastrnn.torch.RNN(I, H, dtype=torch.float64, alpha=alpha_of(torch, kind), **options)


def loop(torch: Any, layer: Any, x: Any, hx: Any, lengths: Any, reset: Any = None) -> tuple[Any, Any]:
    """output and h_n, time-major; alpha is layer.alpha, times 1 - zoneout in eval mode."""
    act = torch.tanh if layer.nonlinearity == "tanh" else torch.relu
    alpha = layer.alpha * (1 - layer.zoneout)
    D, states = 1 + layer.bidirectional, []
    for k in range(layer.num_layers):
        both = []
        for d in range(D):
            end = f"_l{k}" + "_reverse" * d
            w, u = getattr(layer, "weight_ih" + end), getattr(layer, "weight_hh" + end)
            b = getattr(layer, "bias_ih" + end) + getattr(layer, "bias_hh" + end) if layer.bias else 0
            rows = []
            for r, length in enumerate(lengths):
                h, out = hx[k * D + d, r], [torch.zeros(H, dtype=x.dtype)] * len(x)
                for t in reversed(range(length)) if d else range(length):
                    p = torch.zeros_like(h) if reset is not None and bool(reset[t, r]) else h
                    h = out[t] = (1 - alpha) * p + alpha * act(w @ x[t, r] + b + u @ p)
                rows.append((torch.stack(out), h))
            both.append(torch.stack([row[0] for row in rows], 1))
            states.append(torch.stack([row[1] for row in rows]))
        x = torch.cat(both, -1)
    return x, torch.stack(states)


def compare(torch: Any, layer: Any, run: Any, kind: str) -> None:
    """Values and the gradients of all, for random ones of output and h_n, to 1e-12. kind: as of inputs, or options."""
    from torch.nn.utils.rnn import pad_packed_sequence

    packed = kind.startswith("packed")
    x, hx, leaves = inputs(torch, layer, kind if packed else "batched", T, B)
    lengths, reset, how = [T] * B, None, {}
    data = leaves[0].transpose(0, 1) if layer.batch_first else leaves[0]
    if packed:
        _, counts = pad_packed_sequence(x)
        lengths = counts.tolist()
    elif kind == "lengths and reset":
        lengths, reset = [3, 0, 6, 1, 2], torch.arange(T * B).reshape(T, B) % 4 == 1
        how = {"lengths": torch.tensor(lengths), "reset": reset.T if layer.batch_first else reset}
    want = loop(torch, layer, data, hx, lengths, reset)
    output, h_n = run(x, hx, **how)
    if packed:
        output = pad_packed_sequence(output, batch_first=layer.batch_first, total_length=T)[0]
    got = (output.transpose(0, 1) if layer.batch_first else output, h_n)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in want]
    names = ["output", "h_n", "x", "hx", *(name for name, _ in layer.named_parameters())]
    results = [[*each, *torch.autograd.grad(each, [*leaves, *layer.parameters()], upstream)] for each in (want, got)]
    for name, w, g in zip(names, *results, strict=True):
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= 1e-12, name


@pytest.mark.parametrize("how", ["batched", "packed_sorted", "packed", "lengths and reset"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_equals_a_loop_over_the_steps(torch: Any, options: dict[str, Any], kind: str, how: str) -> None:
    layer = made(torch, kind, **options)
    compare(torch, layer, layer, how)
    assert ("alpha" in dict(layer.named_parameters())) == kind.endswith("parameter")


def test_each_backend_equals_the_loop(torch: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastrnn.torch.dispatch as dispatch
    from fastrnn import _backends

    monkeypatch.setattr(dispatch, "backend", lambda *_: _backends.get(backend))
    layer = made(torch, "parameter", **OPTIONS[2])
    compare(torch, layer, layer, "lengths and reset")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["batched", "lengths and reset"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_whole_it_equals_the_loop(torch: Any, kind: str, how: str) -> None:
    torch._dynamo.reset()
    layer = made(torch, kind, **OPTIONS[2])
    compare(torch, layer, torch.compile(layer, fullgraph=True, backend="aot_eager"), how)


def test_with_zoneout_in_eval_mode(torch: Any) -> None:
    """The expected state leaks twice: alpha (1 - zoneout)."""
    layer = made(torch, "parameter", zoneout=0.4, num_layers=2).eval()
    compare(torch, layer, layer, "batched")


def test_masks_and_dropout_act_beside_alpha(torch: Any) -> None:
    """recurrent_dropout=1 - no state enters w_hh, but it leaks; zoneout=1 keeps the first state."""
    layer = made(torch, "number", recurrent_dropout=1.0)
    x, hx = torch.randn(T, B, I, dtype=torch.float64), torch.randn(1, B, H, dtype=torch.float64)
    with torch.no_grad():
        want, z = hx[0], x @ layer.weight_ih_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0
        output, _ = layer(x, hx)
        for t in range(T):
            want = 0.7 * want + 0.3 * torch.tanh(z[t])
            assert normalised_error(output[t].numpy(), want.numpy()) <= 1e-12
        output, h_n = made(torch, "number", zoneout=1.0)(x, hx)
        assert torch.equal(h_n, hx)
        assert torch.equal(output, hx.expand(T, B, H))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_are_computed_in_float32(torch: Any, dtype: str) -> None:
    import fastrnn

    half = getattr(torch, dtype)
    layer = fastrnn.torch.RNN(I, H, dtype=half, alpha=alpha_of(torch, "parameter", half))
    wide = fastrnn.torch.RNN(I, H, alpha=torch.nn.Parameter(layer.alpha.detach().float()))
    wide.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I).to(half)
    output, _ = layer(x)
    want, _ = wide(x.float())
    assert torch.equal(output, want.to(half))
    output.float().sum().backward()
    want.sum().backward()
    assert layer.alpha.grad.dtype is half
    assert normalised_error(layer.alpha.grad.float().numpy(), wide.alpha.grad.numpy()) <= torch.finfo(half).eps


def test_every_derivative(torch: Any) -> None:
    """Second derivatives by finite differences, to alpha too; forward mode and vmap against the loop."""
    layer = made(torch, "parameter")
    x, hx, _ = inputs(torch, layer, "batched", 3, 2)

    def run(x: Any, hx: Any, alpha: Any) -> Any:
        return torch.func.functional_call(layer, {"alpha": alpha}, (x, hx))

    def first(x: Any, hx: Any, alpha: Any) -> Any:
        output, h_n = layer_with(alpha)(x, hx)
        return output.sum(0), h_n

    def layer_with(alpha: Any) -> Any:
        return lambda x, hx: torch.func.functional_call(layer, {"alpha": alpha}, (x, hx))

    alpha = layer.alpha.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(first, (x, hx, alpha))
    assert torch.autograd.gradgradcheck(first, (x, hx, alpha))
    x, hx, alpha = x.detach(), hx.detach(), alpha.detach()
    tangents = tuple(torch.randn_like(each) for each in (x, hx, alpha))
    step = 1e-6
    _, got = torch.func.jvp(run, (x, hx, alpha), tangents)
    moved = [run(*(v + s * step * d for v, d in zip((x, hx, alpha), tangents, strict=True)))[0] for s in (1, -1)]
    want = (moved[0] - moved[1]).detach() / (2 * step)
    assert normalised_error(got[0].detach().numpy(), want.numpy()) <= 1e-8
    alphas = torch.rand(4, H, dtype=torch.float64)
    mapped = torch.func.vmap(lambda alpha: run(x, hx, alpha)[0])(alphas)
    for each, alpha in zip(mapped, alphas, strict=True):
        assert normalised_error(each.detach().numpy(), run(x, hx, alpha)[0].detach().numpy()) <= 1e-12


def test_output_may_be_edited_in_place_before_backward(torch: Any) -> None:
    layer = made(torch, "parameter")
    x, hx, _ = inputs(torch, layer, "batched", T, B)
    grads = []
    for edit in (False, True):
        output, h_n = layer(x, hx)
        loss = (output.sin().sum() if not edit else output.clone().sin().sum()) + h_n.sum()
        if edit:
            output.detach().mul_(0)
        grads.append(torch.autograd.grad(loss, [x, layer.alpha, layer.weight_hh_l0]))
    assert all(map(torch.equal, *grads))


def test_state_dict_holds_tensors_and_parameters_and_no_number(torch: Any) -> None:
    import fastrnn

    keys = {kind: "alpha" in made(torch, kind).state_dict() for kind in KINDS}
    assert keys == {"number": False, "tensor": True, "parameter": True, "scalar parameter": True}
    layer, stock = fastrnn.torch.RNN(I, H, alpha=0.3), torch.nn.RNN(I, H)
    layer.load_state_dict(stock.state_dict())
    assert fastrnn.torch.RNN(I, H).alpha is None
    for kind in KINDS:
        layer = made(torch, kind)
        x = torch.randn(T, B, I, dtype=torch.float64)
        want, _ = layer(x)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
            assert torch.equal(other(x)[0], want)
            assert type(other.alpha) is type(layer.alpha)
        narrow = layer.float()
        assert narrow.alpha.dtype is torch.float32
        assert narrow(x.float())[0].dtype is torch.float32


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "RNNCell"])
def test_a_number_comes_through_the_meta_device(torch: Any, kind: str, reset: bool) -> None:
    """Deferred initialisation: made on meta, to_empty, then reset_parameters or a state_dict, or both."""
    import fastrnn

    make = getattr(fastrnn.torch, kind)
    for dtype in (torch.float32, torch.bfloat16):
        want = make(I, H, alpha=0.3, dtype=dtype)
        state, x = want.state_dict(), torch.randn(T, I, dtype=dtype)
        for copied in (False, True):
            model = torch.nn.Sequential(make(I, H, alpha=0.3, dtype=dtype, device="meta"))
            model = (copy.deepcopy(model) if copied else model).to_empty(device="cpu")
            if reset:
                model[0].alpha.fill_(9)
                model[0].reset_parameters()
            assert torch.equal(model[0].alpha, want.alpha)
            model[0].load_state_dict(state)
            assert torch.equal(model[0](x)[0], want(x)[0])
            assert model[0].state_dict().keys() == make(I, H).state_dict().keys()


def test_what_replaced_a_number_stays(torch: Any) -> None:
    import fastrnn

    layer = fastrnn.torch.RNN(I, H, alpha=0.3)
    layer.alpha = None
    layer.reset_parameters()
    assert layer.alpha is None
    layer.alpha = torch.nn.Parameter(torch.full((H,), 0.5))
    assert torch.equal(layer.double().alpha, torch.full((H,), 0.5, dtype=torch.float64))
    layer = fastrnn.torch.RNN(I, H, alpha=0.3)
    before = layer.alpha.double()
    assert torch.equal(layer.double().alpha, before)


def test_numbers_are_checked_on_the_meta_device_too(torch: Any) -> None:
    import fastrnn

    for kind in (fastrnn.torch.RNN, fastrnn.torch.RNNCell):
        refuse(kind, ValueError, "alpha", "(0, 1]", input_size=I, hidden_size=H, alpha=1.5, device="meta")


def test_repr(torch: Any) -> None:
    import fastrnn

    assert repr(fastrnn.torch.RNN(I, H, alpha=0.25)) == "RNN(3, 7, alpha=0.25)"
    assert repr(fastrnn.torch.RNN(I, H)) == "RNN(3, 7)"
    assert repr(fastrnn.torch.RNNCell(I, H, alpha=alpha_of(torch, "parameter", torch.float32))) == (
        "RNNCell(3, 7, alpha=Parameter(7,))"
    )


def test_a_parametrization_keeps_alpha_in_range(torch: Any) -> None:
    from torch.nn.utils import parametrize

    class Range(torch.nn.Module):
        def forward(self, value: Any) -> Any:
            return torch.sigmoid(value)

        def right_inverse(self, value: Any) -> Any:
            return torch.logit(value, eps=1e-3)

    layer = made(torch, "parameter")
    parametrize.register_parametrization(layer, "alpha", Range())
    compare(torch, layer, layer, "batched")


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_values_outside_the_range_are_refused(torch: Any, value: float) -> None:
    import fastrnn

    for kind in (fastrnn.torch.RNN, fastrnn.torch.RNNCell):
        for alpha in (value, torch.tensor(value), torch.nn.Parameter(torch.tensor([0.5] * 6 + [value]))):
            refuse(kind, ValueError, "alpha", "(0, 1]", input_size=I, hidden_size=H, alpha=alpha)


def test_bad_alpha_is_refused(torch: Any) -> None:
    import numpy as np

    import fastrnn

    bad: list[tuple[Any, type[Exception], str]] = [
        ("0.5", TypeError, "str"),
        (True, TypeError, "bool"),
        (np.full(H, 0.5, np.float32), TypeError, "ndarray"),
        ([0.5] * H, TypeError, "list"),
        (torch.full((H,), 0.5, dtype=torch.float64), TypeError, "torch.float64"),
        (torch.ones(H, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.full((H + 1,), 0.5), ValueError, "(8,)"),
        (torch.full((1, H), 0.5), ValueError, "(1, 7)"),
    ]
    for kind in (fastrnn.torch.RNN, fastrnn.torch.RNNCell):
        for alpha, error, word in bad:
            refuse(kind, error, "alpha", word, input_size=I, hidden_size=H, alpha=alpha)


def test_where_torch_computes_alpha_is_refused_by_name(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastrnn.torch.dispatch as dispatch

    layer = made(torch, "number")
    monkeypatch.setattr(dispatch, "backend", lambda *_: "")
    with pytest.raises(NotImplementedError, match=r"^alpha: expected None where torch.nn.RNN computes .*, got Tensor"):
        layer(torch.randn(T, B, I, dtype=torch.float64))


def test_an_accelerated_layer_that_got_alpha_is_not_restored(torch: Any) -> None:
    import fastrnn

    model = torch.nn.Sequential(torch.nn.RNN(I, H))
    fastrnn.torch.accelerate(model)
    x = torch.randn(T, B, I)
    plain, _ = model(x)
    model[0].alpha = torch.nn.Parameter(torch.full((H,), 0.5))
    assert not torch.equal(model(x)[0], plain)
    assert "alpha" in str(fastrnn.torch.restore(model))
    assert isinstance(model[0], fastrnn.torch.RNN)
    model[0].alpha = None
    fastrnn.torch.restore(model)
    assert type(model[0]) is torch.nn.RNN


def test_trained_alpha_finds_the_leak(torch: Any) -> None:
    import fastrnn

    torch.manual_seed(0)
    teacher = fastrnn.torch.RNN(I, H, alpha=0.2)
    pupil = fastrnn.torch.RNN(I, H, alpha=torch.nn.Parameter(torch.full((H,), 0.8)))
    pupil.load_state_dict(teacher.state_dict(), strict=False)
    x = torch.randn(20, 8, I)
    optimizer = torch.optim.Adam([pupil.alpha], 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(pupil(x)[0], teacher(x)[0].detach()).backward()
        optimizer.step()
    assert (pupil.alpha - 0.2).abs().max() < 0.01


# ---- the cell


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"bias": False, "nonlinearity": "relu"}], ids=name_of)
def test_a_cell_equals_its_formula(torch: Any, options: dict[str, Any], kind: str) -> None:
    """Batched and single, with and without hx, eager and compiled; values, first and second derivatives."""
    cell, stock = cell_twins(torch, I, H, dtype=torch.float64, **options)
    leaky = type(cell)(I, H, dtype=torch.float64, alpha=alpha_of(torch, kind), **options)
    leaky.load_state_dict(stock.state_dict(), strict=False)
    torch._dynamo.reset()
    compiled = torch.compile(leaky, fullgraph=True, backend="aot_eager")
    trained = [
        leaky.weight_ih,
        leaky.weight_hh,
        *([leaky.alpha] if isinstance(leaky.alpha, torch.nn.Parameter) else []),
    ]
    theirs = [stock.weight_ih, stock.weight_hh, *trained[2:]]
    for rows in ((), (B,)):
        x = torch.randn(*rows, I, dtype=torch.float64, requires_grad=True)
        for hx in (None, torch.randn(*rows, H, dtype=torch.float64, requires_grad=True)):
            leaves = [x] if hx is None else [x, hx]
            before = 0 if hx is None else hx
            want = (1 - leaky.alpha) * before + leaky.alpha * stock(x, hx)
            up = torch.randn_like(want)
            gradients = torch.autograd.grad(want, [*leaves, *theirs], up)
            with torch.no_grad():
                assert normalised_error(leaky(x, hx).numpy(), want.detach().numpy()) <= 1e-12
            for run in (leaky, compiled):
                got = run(x, hx)
                assert got.shape == want.shape
                found = (got, *torch.autograd.grad(got, [*leaves, *trained], up))
                for g, w in zip(found, (want, *gradients), strict=True):
                    assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= 1e-12
            assert torch.autograd.gradgradcheck(leaky, tuple(leaves))


def test_cells_in_a_loop_are_the_layer(torch: Any) -> None:
    import fastrnn

    layer = made(torch, "parameter")
    cell = fastrnn.torch.RNNCell(I, H, dtype=torch.float64, alpha=layer.alpha)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    x, h = torch.randn(T, B, I, dtype=torch.float64), torch.zeros(B, H, dtype=torch.float64)
    output, _ = layer(x)
    for t in range(T):
        h = cell(x[t], h)
        assert torch.equal(h, output[t])


@pytest.mark.slow
@pytest.mark.usefixtures("onnx")
def test_onnx_export_unrolls_it(torch: Any, onnxruntime: Any, tmp_path: Any) -> None:
    """ONNX's RNN does not leak: each step becomes nodes of its own."""
    layer = made(torch, "number").float().eval()
    x = torch.randn(T, B, I)
    torch.onnx.export(layer, (x,), tmp_path / "leaky.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "leaky.onnx"))
    output, _ = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert normalised_error(output, layer(x)[0].detach().numpy()) <= 1e-6
