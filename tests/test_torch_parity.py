"""fastrnn.torch against torch.nn over all constructors and inputs, in halves, under autocast, by device."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from helpers.cases import SEED
from helpers.compare import normalised_error, rms
from helpers.torch_layers import assert_close, cell_twins, inputs, outcome, twins
from hypothesis import given
from hypothesis import strategies as st

# ---- halves and autocast


HALVES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


def run(torch: Any, layer: Any, kind: str, dtype: Any, half: Any, autocast: bool) -> tuple[dict[str, Any], list[Any]]:
    """Values in float64, and dtypes and strides, of output, h_n and all gradients; values are exact in the half."""
    x, hx, leaves = inputs(torch, layer, kind, 9, 5)
    made = [leaf.detach().to(half).to(dtype).requires_grad_() for leaf in leaves]
    if kind == "packed":
        rows = torch.nn.utils.rnn.pack_padded_sequence(made[0], torch.tensor([3, 9, 1, 9, 5]), enforce_sorted=False)
    torch.manual_seed(SEED)
    with torch.autocast("cpu", dtype=half, enabled=autocast):
        output, h_n = layer(rows if kind == "packed" else made[0], made[1])
    data = output.data if kind == "packed" else output
    generator = torch.Generator().manual_seed(SEED)
    upstream = [torch.randn(t.shape, generator=generator).to(half).to(t.dtype) for t in (data, h_n)]
    parameters = dict(layer.named_parameters())
    gradients = torch.autograd.grad((data, h_n), [*made, *parameters.values()], upstream)
    names = ["output", "h_n", "d_x", "d_hx", *parameters]
    tensors = dict(zip(names, (data, h_n, *gradients), strict=True))
    return {n: t.detach().double().numpy() for n, t in tensors.items()}, [
        (n, t.dtype, t.shape, t.stride()) for n, t in tensors.items() if n in ("output", "h_n")
    ] + [(n, t.dtype, t.shape) for n, t in tensors.items()]


@HALVES
@pytest.mark.parametrize("autocast", [False, True], ids=["half", "autocast"])
@pytest.mark.parametrize("kind", ["batched", "single", "packed"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}, {"bias": False, "nonlinearity": "relu"}],
    ids=str,
)
def test_halves_are_computed_in_float32(
    torch: Any, dtype: str, autocast: bool, kind: str, options: dict[str, Any]
) -> None:
    """Dtypes, shapes and strides are torch's (autocast: halves out, float32 gradients of float32 weights), the dropout
    is the same, no word is said; output and h_n are float64's, rounded once (0.51 ulp + 2^-20); the error of each
    gradient against float64 is at most torch.nn.RNN's."""
    half = getattr(torch, dtype)
    ours, stock = twins(torch, 9, 17, **options)
    with torch.no_grad():
        for layer in (ours, stock):
            for p in layer.parameters():
                p.copy_(p.to(half))
    exact = copy.deepcopy(stock).double()
    if not autocast:
        ours, stock = ours.to(half), stock.to(half)
    given_dtype = torch.float32 if autocast else half
    got, facts = run(torch, ours, kind, given_dtype, half, autocast)
    theirs, wanted_facts = run(torch, stock, kind, given_dtype, half, autocast)
    want, _ = run(torch, exact, kind, torch.float64, half, False)
    assert facts == wanted_facts
    for name in want:
        if name in ("output", "h_n"):
            ulp = np.exp2(np.floor(np.log2(np.abs(want[name]) + 1e-30))) * torch.finfo(half).eps
            ulp = np.maximum(ulp, torch.finfo(half).smallest_normal * torch.finfo(half).eps)
            assert (np.abs(got[name] - want[name]) <= 0.51 * ulp + 2.0**-20).all(), name
        assert rms(got[name] - want[name]) <= rms(theirs[name] - want[name]) + 1e-12, name


def test_autocast_takes_the_mixtures_that_torchs_takes(torch: Any) -> None:
    """Every combination of the dtypes of weights, input and hx, layer and cell: the dtype that comes out, or the
    error."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)
    warnings.simplefilter("ignore", RuntimeWarning)
    for half in (torch.bfloat16, torch.float16):
        for of_weights in dtypes[:4]:
            for of_input in dtypes:
                for of_hx in (None, *dtypes):
                    x = torch.ones(3, 2, 4, dtype=of_input)
                    hx = None if of_hx is None else torch.ones(1, 2, 6, dtype=of_hx)
                    found = []
                    for layer in twins(torch, 4, 6, dtype=of_weights):
                        with torch.autocast("cpu", dtype=half):
                            found.append(outcome(lambda: [t.dtype for t in layer(x, hx)]))  # noqa: B023
                    for cell in cell_twins(torch, 4, 6, dtype=of_weights):
                        with torch.autocast("cpu", dtype=half):
                            found.append(outcome(lambda: cell(x[0], None if hx is None else hx[0]).dtype))  # noqa: B023
                    assert found[0] == found[1], (half, of_weights, of_input, of_hx)
                    assert found[2] == found[3], (half, of_weights, of_input, of_hx)


def test_lengths_and_reset_in_halves(torch: Any) -> None:
    """... and under autocast: those of the layer in float32, rounded."""
    ours, _ = twins(torch, 5, 7, 2, bidirectional=True)
    x = torch.randn(6, 4, 5)
    how = {"lengths": torch.tensor([3, 6, 1, 0]), "reset": torch.rand(6, 4) < 0.3}
    want = [t.bfloat16() for t in ours(x, **how)]
    with torch.autocast("cpu"):
        got = ours(x, **how)
    assert all(map(torch.equal, got, want))
    half = copy.deepcopy(ours).bfloat16()
    want = [t.bfloat16() for t in half.float()(x.bfloat16().float(), **how)]
    assert all(map(torch.equal, half.bfloat16()(x.bfloat16(), **how), want))


# ---- memory


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "batch_first": True}], ids=str)
def test_arguments_stay_resizable(torch: Any, options: dict[str, Any]) -> None:
    """As after torch.nn.RNN, and as FSDP needs it, which frees weights by resizing their storage."""
    ours, _ = twins(torch, 5, 7, **options)
    x, hx, leaves = inputs(torch, ours, "batched", 6, 4)
    ours(x, hx)[0].sum().backward()
    torch.autograd.grad(ours(x, hx)[0].sum(), ours.weight_hh_l0, create_graph=True)
    with torch.no_grad():
        ours(x, hx, reset=torch.zeros(x.shape[:2], dtype=torch.bool))
    for tensor in (*leaves, *ours.parameters()):
        assert tensor.untyped_storage().resizable()


# ---- by device


def test_the_backend_is_chosen_by_the_device(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's order for that device; FASTRNN_BACKEND by its law; the words of a warning where none can run."""
    import fastrnn.torch.dispatch as dispatch
    from fastrnn import _backends

    monkeypatch.setattr(_backends, "_chosen", {})
    monkeypatch.setattr(dispatch, "_chosen", {})

    def ask(device: str) -> Any:
        _backends._chosen.clear()
        dispatch._chosen.clear()
        return dispatch.backend(device)

    monkeypatch.delenv("FASTRNN_BACKEND", raising=False)
    assert ask("xpu") == "for tensors on device xpu"
    monkeypatch.setenv("FASTRNN_BACKEND", "numpy")
    assert ask("xpu") == "for tensors on device xpu"
    monkeypatch.delenv("FASTRNN_BACKEND")

    functions = {name: object() for name in ("cuda", "cupy")}
    able: set[str] = set()

    def load(device: str, name: str) -> Any:
        if device == "cpu":
            return _backends.Backend(name, device, available=True, functions=functions["cuda"])  # type: ignore[arg-type]
        reason = None if name in able else f"no {name}"
        return _backends.Backend(name, device, name in able, reason, functions[name] if name in able else None)  # type: ignore[arg-type]

    monkeypatch.setattr(_backends, "_load", load)
    assert (
        ask("cuda")
        == "where no fast backend is available ('cuda' is not available: no cuda; 'cupy' is not available: no cupy)"
    )
    able.add("cupy")
    with pytest.warns(RuntimeWarning, match="slower backend 'cupy' \\('cuda' is not available: no cuda"):
        assert ask("cuda") is functions["cupy"]
    able.add("cuda")
    assert ask("cuda") is functions["cuda"]
    monkeypatch.setenv("FASTRNN_BACKEND", "cupy")
    assert ask("cuda") is functions["cupy"]
    monkeypatch.setenv("FASTRNN_BACKEND", "cpp")
    with pytest.raises(
        ValueError, match="FASTRNN_BACKEND: expected 'auto' or one of 'cuda', 'cupy' for device 'cuda', got 'cpp'"
    ):
        ask("cuda")


def test_a_model_on_another_device_runs_on_torch(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """... with one warning for each of the two layers, and accelerate says that it leaves them."""
    import fastrnn.torch as t
    from fastrnn.torch import dispatch

    monkeypatch.setattr(dispatch, "_warned", set())
    layer, cell = t.RNN(5, 7, device="meta"), t.RNNCell(5, 7, device="meta")
    for module, x in ((layer, torch.ones(6, 4, 5, device="meta")), (cell, torch.ones(4, 5, device="meta"))):
        with pytest.warns(
            RuntimeWarning, match=f"torch.nn.{type(module).__name__}, which computes for tensors on device"
        ):
            module(x)
        module(x)  # an error if it warned again
    with pytest.raises(Exception, match=r"(?i)meta|device"):
        layer(torch.ones(6, 4, 5))
    with pytest.raises(Exception, match=r"(?i)meta|device"):
        t.RNN(5, 7)(torch.ones(6, 4, 5, device="meta"))


# ---- the whole space


SMALL = st.sampled_from([1, 2, 3, 7, 8, 9, 17])


@st.composite
def layers(draw: Any) -> dict[str, Any]:
    bidirectional, L = draw(st.booleans()), draw(st.integers(1, 3))
    return {
        "input_size": draw(SMALL), "hidden_size": draw(SMALL), "num_layers": L,
        "nonlinearity": draw(st.sampled_from(["tanh", "relu"])), "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()), "bidirectional": bidirectional,
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])) if L > 1 else 0.0,
    }  # fmt: skip


@st.composite
def situations(draw: Any) -> dict[str, Any]:
    return {
        "kind": draw(st.sampled_from(["batched", "single", "packed_sorted", "packed"])),
        "T": draw(st.integers(1, 9)), "B": draw(st.sampled_from([0, 1, 2, 3, 5, 9])), "hx": draw(st.booleans()),
        "training": draw(st.booleans()), "views": draw(st.booleans()), "seed": draw(st.integers(0, 2**16)),
        "frozen": draw(st.sets(st.integers(0, 23), max_size=6)),
        "through": draw(st.sampled_from(["both", "output", "h_n"])),
        "leaves": draw(st.booleans()), "through_pickle": draw(st.booleans()), "tie": draw(st.booleans()),
    }  # fmt: skip


def observe(torch: Any, layer: Any, case: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What one pass shows: values, and facts about them; then the random stream."""
    layer.train(case["training"])
    parameters = list(layer.named_parameters())
    for i, (_, p) in enumerate(parameters):
        p.requires_grad_(i not in case["frozen"])
    if case["tie"] and layer.bidirectional:
        layer.weight_hh_l0_reverse = layer.weight_hh_l0
    if case["through_pickle"]:
        layer = pickle.loads(pickle.dumps(layer))
    B = max(case["B"], 1) if case["kind"].startswith("packed") else case["B"]
    with torch.set_grad_enabled(case["leaves"]):
        x, hx, leaves = inputs(torch, layer, case["kind"], case["T"], B, case["seed"])
    for leaf in leaves:
        leaf.requires_grad_(case["leaves"])
    if case["views"] and case["kind"] in ("batched", "single"):
        x = torch.stack([x, x], -1)[..., 0]
        hx = hx.flip(-1).transpose(0, -1).contiguous().transpose(0, -1)
    torch.manual_seed(case["seed"])
    output, h_n = layer(x, hx) if case["hx"] else layer(x)
    data = output.data if case["kind"].startswith("packed") else output
    values, facts = {"output": data, "h_n": h_n}, [torch.rand(2).tolist(), repr(layer), list(layer.state_dict())]
    facts += [(t.shape, t.dtype, t.requires_grad, t.is_contiguous()) for t in (data, h_n)]
    chosen = [t for name, t in values.items() if case["through"] in ("both", name) and t.requires_grad]
    named = [(n, p) for n, p in (("x", leaves[0]), ("hx", leaves[1]), *layer.named_parameters()) if p.requires_grad]
    if chosen:
        generator = torch.Generator().manual_seed(case["seed"])
        upstream = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in chosen]
        gradients = torch.autograd.grad(chosen, [p for _, p in named], upstream, allow_unused=True)
        facts += [(name, d is None) for (name, _), d in zip(named, gradients, strict=True)]
        values |= {f"d_{name}": d for (name, _), d in zip(named, gradients, strict=True) if d is not None}
    return {name: value.detach().numpy() for name, value in values.items()}, facts


@given(layers(), situations())
def test_the_layer_is_torchs_everywhere(options: dict[str, Any], case: dict[str, Any]) -> None:
    """Constructor x input, in float64: values within 1e-12, and the same shapes, dtypes, requires_grad, missing
    gradients, random stream, repr and state_dict keys."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ours, stock = twins(torch, seed=case["seed"], dtype=torch.float64, **options)
    got, want = (observe(torch, layer, case) for layer in (ours, stock))
    assert got[1] == want[1]
    assert_close(got[0], want[0], 1e-12)


@given(
    st.builds(dict, bias=st.booleans(), nonlinearity=st.sampled_from(["tanh", "relu"])),
    st.tuples(SMALL, SMALL, st.sampled_from([None, 0, 1, 2, 5, 9])), st.booleans(), st.sets(st.integers(0, 3)),
    st.integers(0, 2**16), st.booleans(),
)  # fmt: skip
def test_the_cell_is_torchs_everywhere(
    options: dict[str, Any], sizes: Any, hx: bool, frozen: set[int], seed: int, inputs_too: bool
) -> None:
    """Two steps of the cell, in float64: values within 1e-12, and the same shapes and missing gradients."""
    torch = pytest.importorskip("torch")
    I, H, B = sizes
    found = []
    for cell in cell_twins(torch, I, H, dtype=torch.float64, **options):
        for i, p in enumerate(cell.parameters()):
            p.requires_grad_(i not in frozen)
        generator = torch.Generator().manual_seed(seed)
        rows = () if B is None else (B,)
        xs = torch.randn(2, *rows, I, generator=generator, dtype=torch.float64, requires_grad=inputs_too)
        h = torch.randn(*rows, H, generator=generator, dtype=torch.float64, requires_grad=inputs_too)
        state = cell(xs[1], cell(xs[0], h) if hx else cell(xs[0]))
        assert state.requires_grad == any(t.requires_grad for t in (xs, *cell.parameters()))
        leaves = [t for t in (xs, h, *cell.parameters()) if t.requires_grad]
        upstream = torch.randn(state.shape, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad(state, leaves, upstream, allow_unused=True) if leaves else ()
        found.append([state, *gradients])
    for got, want in zip(*found, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert got.shape == want.shape
            assert normalised_error(got.detach().numpy(), want.detach().numpy()) <= 1e-12
