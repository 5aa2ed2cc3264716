"""Recurrent dropout, input dropout, zoneout and return_all_layers of fastrnn.torch.RNN, against a loop over the steps
that draws the documented masks itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from helpers.compare import normalised_error
from helpers.torch_layers import inputs, name_of, twins

pytestmark = pytest.mark.usefixtures("own_route")

RATES: tuple[dict[str, float], ...] = (
    {"recurrent_dropout": 0.4},
    {"input_dropout": 0.3},
    {"zoneout": 0.3},
    {"recurrent_dropout": 0.25, "input_dropout": 0.5, "zoneout": 0.2},
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"nonlinearity": "relu", "bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.4, "batch_first": True},
)
KINDS = ("batched", "single", "packed_sorted", "packed", "lengths and reset")
LENGTHS = (3, 0, 6, 1, 2)


def made(torch: Any, *args: Any, seed: int = 0, **kwargs: Any) -> Any:
    import fastrnn

    torch.manual_seed(seed)
    return fastrnn.torch.RNN(*args, **kwargs)


def loop(torch: Any, layer: Any, x: Any, hx: Any, lengths: Any, reset: Any, packed: bool) -> tuple[Any, Any, list[Any]]:
    """output, h_n and each layer's states, time-major, by the formulas; the masks in the order that is documented."""
    T, B, _ = x.shape
    L, D, H = layer.num_layers, 1 + layer.bidirectional, layer.hidden_size
    act = torch.tanh if layer.nonlinearity == "tanh" else torch.relu
    train, outputs, states = layer.training, [], []
    ones = torch.ones(1, dtype=x.dtype)
    there = (torch.arange(T)[:, None] < lengths if packed else torch.ones(T, B, dtype=torch.bool)).nonzero(
        as_tuple=True
    )
    for k in range(L):
        if train and layer.dropout and k:
            x = torch.zeros_like(x).index_put(there, torch.dropout(x[there], layer.dropout, True))
        if train and layer.input_dropout:
            x = x * torch.dropout(ones.expand(B, x.shape[-1]).clone(), layer.input_dropout, True)
        masks, keeps = ones.expand(D, B, H), torch.zeros(D, T, B, H, dtype=torch.bool)
        if train and layer.recurrent_dropout:
            masks = torch.dropout(masks.clone(), layer.recurrent_dropout, True)
        if train and layer.zoneout:
            keeps[:, there[0], there[1]] = torch.rand(D, len(there[0]), H) < layer.zoneout
        leak = 0.0 if train else layer.zoneout
        both = []
        for d in range(D):
            end = f"_l{k}" + "_reverse" * d
            w, u = getattr(layer, "weight_ih" + end), getattr(layer, "weight_hh" + end)
            b = getattr(layer, "bias_ih" + end) + getattr(layer, "bias_hh" + end) if layer.bias else 0
            rows = []
            for r in range(B):
                h, out = hx[k * D + d, r], [torch.zeros(H, dtype=x.dtype)] * T
                steps = range(int(lengths[r]))
                for t in reversed(steps) if d else steps:
                    p = torch.zeros_like(h) if reset is not None and bool(reset[t, r]) else h
                    new = act(w @ x[t, r] + b + u @ (p * masks[d, r]))
                    h = torch.where(keeps[d, t, r], p, leak * p + (1 - leak) * new)
                    out[t] = h
                rows.append((torch.stack(out), h))
            both.append(torch.stack([row[0] for row in rows], 1))
            states.append(torch.stack([row[1] for row in rows]))
        x = torch.cat(both, -1)
        outputs.append(x)
    return x, torch.stack(states), outputs


def case(torch: Any, layer: Any, kind: str, seed: int = 0) -> tuple[Any, Any, dict[str, Any], list[Any], Any]:
    """input, hx, keywords, leaves; and what loop takes of them: x, hx, lengths, reset, whether masks are packed."""
    T, B = 6, 5
    plain = "batched" if kind == "lengths and reset" else kind
    x, hx, leaves = inputs(torch, layer, plain, T, B, seed)
    if kind == "lengths and reset":
        reset = torch.rand(T, B, generator=torch.Generator().manual_seed(seed)) < 0.3
        how = {"lengths": torch.tensor(LENGTHS), "reset": reset.T if layer.batch_first else reset}
        data = leaves[0].transpose(0, 1) if layer.batch_first else leaves[0]
        return x, hx, how, leaves, (data, hx, how["lengths"], reset, False)
    if kind == "single":
        return x, hx, {}, leaves, (leaves[0][:, None], hx[:, None], torch.tensor([T]), None, False)
    data = leaves[0].transpose(0, 1) if layer.batch_first else leaves[0]
    if kind == "batched":
        return x, hx, {}, leaves, (data, hx, torch.tensor([T] * B), None, False)
    order = torch.arange(B) if x.sorted_indices is None else x.sorted_indices  # masks belong to the rows as packed
    lengths = (x.batch_sizes[:, None] > torch.arange(B)).sum(0)
    return x, hx, {}, leaves, (data[:, order], hx[:, order], lengths, None, True)


def from_layer(torch: Any, run: Any, layer: Any, x: Any, hx: Any, how: Any) -> list[Any]:
    """output, h_n and all layers, time-major, rows as packed."""
    from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

    torch.manual_seed(11)
    output, h_n, layers = run(x, hx, **how, return_all_layers=True)
    assert len(layers) == layer.num_layers
    if isinstance(output, PackedSequence):
        assert all(one.batch_sizes is output.batch_sizes for one in layers)
        sizes = output.batch_sizes
        padded = [
            pad_packed_sequence(PackedSequence(each.data, sizes), total_length=6)[0] for each in (output, *layers)
        ]
        order = slice(None) if output.sorted_indices is None else output.sorted_indices
        return [padded[0], h_n[:, order], *padded[1:]]
    if x.dim() == 2:
        return [output[:, None], h_n[:, None], *(each[:, None] for each in layers)]
    turn = (lambda each: each.transpose(0, 1)) if layer.batch_first else lambda each: each
    return [turn(output), h_n, *map(turn, layers)]


def compare(torch: Any, layer: Any, kind: str, run: Any = None) -> None:
    """Values and the gradients of everything for random ones of output, h_n and each layer's states: <= 1e-12."""
    x, hx, how, leaves, plain = case(torch, layer, kind)
    torch.manual_seed(11)
    output, h_n, layers = loop(torch, layer, *plain)
    want = [output, h_n, *layers]
    got = from_layer(torch, layer if run is None else run, layer, x, hx, how)
    generator = torch.Generator().manual_seed(3)
    upstream = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in want]
    wanted = [*leaves, *layer.parameters()]
    for results in (want, got):
        results += torch.autograd.grad(results, wanted, upstream)
    names = ["output", "h_n", *(f"layer {k}" for k in range(layer.num_layers)), "d_x", "d_hx"]
    names += [f"d_{name}" for name, _ in layer.named_parameters()]
    for name, g, w in zip(names, got, want, strict=True):
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= 1e-12, name


@pytest.fixture
def on_backend(backend: str, torch: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    import fastrnn.torch.dispatch as dispatch
    from fastrnn import _backends

    monkeypatch.setattr(dispatch, "backend", lambda *_: _backends.get(backend))
    return backend


# ---- values and gradients


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("rates", RATES, ids=name_of)
def test_equals_a_loop_over_the_steps(
    torch: Any, rates: dict[str, float], options: dict[str, Any], kind: str, training: bool
) -> None:
    compare(torch, made(torch, 5, 7, dtype=torch.float64, **options, **rates).train(training), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loop_on_each_backend(on_backend: str, torch: Any, kind: str) -> None:
    compare(torch, made(torch, 5, 7, dtype=torch.float64, **OPTIONS[2], **RATES[3]), kind)


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("name", ["recurrent_dropout", "input_dropout", "zoneout"])
@pytest.mark.parametrize("training", [True, False])
def test_rates_of_0_and_1(torch: Any, name: str, rate: float, training: bool) -> None:
    """1 drops or keeps everything, without a NaN; 0 is the plain layer, to the bit."""
    layer = made(torch, 5, 7, dtype=torch.float64, num_layers=2, **{name: rate}).train(training)
    compare(torch, layer, "batched")
    if rate == 0:
        plain = made(torch, 5, 7, dtype=torch.float64, num_layers=2)
        x = torch.randn(6, 4, 5, dtype=torch.float64)
        assert all(map(torch.equal, layer(x), plain(x)))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_whole_it_equals_the_loop(torch: Any, kind: str, training: bool) -> None:
    torch._dynamo.reset()
    layer = made(torch, 5, 7, dtype=torch.float64, **OPTIONS[2], **RATES[3]).train(training)
    compare(torch, layer, kind, torch.compile(layer, fullgraph=True, backend="aot_eager"))


@pytest.mark.slow
def test_packed_rows_without_hx_compile(torch: Any) -> None:
    """Masks need B, which compiled code does not know of packed rows."""
    torch._dynamo.reset()
    layer = made(torch, 5, 7, **OPTIONS[2], **RATES[3])
    packed, _, _ = inputs(torch, layer, "packed_sorted", 6, 5)
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        output, h_n = run(packed)
        results.append((output.data, h_n))
    assert all(map(torch.equal, *results))


# ---- the masks


def test_masks_are_those_of_their_definition(torch: Any) -> None:
    """Seen through units that pass on what they get (relu, identity weights), over 2000 rows: one mask for all steps
    with recurrent and input dropout, a new one each step with zoneout; each rate within 5 standard deviations."""
    T, B, H, rate = 4, 2000, 3, 0.4
    sigma = (rate * (1 - rate) / (B * H)) ** 0.5
    for name in ("recurrent_dropout", "input_dropout", "zoneout"):
        layer = made(torch, H, H, nonlinearity="relu", bias=False, **{name: rate})
        eye, none = torch.eye(H), torch.zeros(H, H)
        with torch.no_grad():
            layer.weight_ih_l0.copy_(none if name == "recurrent_dropout" else eye)
            layer.weight_hh_l0.copy_(eye if name == "recurrent_dropout" else none)
        x, hx = torch.ones(T, B, H), torch.ones(1, B, H)
        if name == "zoneout":
            x, hx = torch.arange(1.0, T + 1)[:, None, None].expand(T, B, H).contiguous(), 0 * hx
        output = layer(x, hx)[0].detach()
        if name == "recurrent_dropout":  # powers of 1 / 0.6, or 0 from the first step on
            dropped = output == 0
            kept = (1 / (1 - rate)) ** torch.arange(1.0, T + 1)
            assert torch.allclose(output[~dropped], kept[:, None, None].expand_as(output)[~dropped])
        elif name == "input_dropout":
            dropped = output == 0
            assert torch.allclose(output[~dropped], torch.tensor(1 / (1 - rate)))
        else:  # the value of the last step that was not kept
            before = torch.cat([torch.zeros(1, B, H), output[:-1]])
            dropped = output != x
            assert torch.equal(output, torch.where(dropped, before, x))
        fractions = dropped.float().mean((1, 2))
        assert (fractions - rate).abs().max() <= 5 * sigma, name
        assert all(torch.equal(dropped[0], each) for each in dropped[1:]) == (name != "zoneout")


@pytest.mark.parametrize("rates", RATES, ids=name_of)
def test_a_seed_repeats_the_masks_and_backward_sees_those_of_forward(torch: Any, rates: dict[str, float]) -> None:
    """Also where torch.utils.checkpoint runs the layer twice; without a seed each call draws its own."""
    from torch.utils.checkpoint import checkpoint

    layer = made(torch, 5, 7, num_layers=2, **rates)
    x = torch.randn(6, 4, 5, requires_grad=True)
    results = []
    for run in (layer, layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(5)
        output, h_n = run(x)
        torch.rand(3)
        results.append([output, h_n, *torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])])
    assert all(map(torch.equal, *results[:2]))
    assert all(map(torch.equal, results[0], results[2]))
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("half", ["bfloat16", "float16", "autocast"])
def test_halves_are_float32_rounded(torch: Any, half: str, training: bool) -> None:
    dtype = torch.bfloat16 if half == "autocast" else getattr(torch, half)
    layer = made(torch, 5, 7, **OPTIONS[2], **RATES[3]).train(training)
    layer = layer if half == "autocast" else layer.to(dtype)
    wide = copy.deepcopy(layer).float()
    x = torch.randn(6, 4, 5, dtype=torch.float32 if half == "autocast" else dtype)
    results = []
    for run, given in ((layer, x), (wide, x.float())):
        torch.manual_seed(1)
        with torch.autocast("cpu", enabled=run is layer and half == "autocast"):
            results.append([each.to(dtype) for each in run(given)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("rates", RATES, ids=name_of)
@pytest.mark.parametrize("training", [True, False])
def test_further_derivatives(torch: Any, rates: dict[str, float], training: bool) -> None:
    """gradgradcheck, forward mode and per-sample gradients: against finite differences and one row at a time."""
    layer = made(torch, 2, 3, dtype=torch.float64, **rates).train(training)
    hx = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    how = {"lengths": torch.tensor([3, 1])}

    def run(x: Any, hx: Any, w: Any) -> Any:
        torch.manual_seed(4)
        return torch.func.functional_call(layer, {"weight_hh_l0": w}, (x, hx), how)

    w = layer.weight_hh_l0.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, hx, w), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, (x, hx, w))


# ---- plumbing


def test_rates_are_attributes_that_are_kept(torch: Any) -> None:
    """They may be changed, go with copies and pickles, and are shown; a layer pickled without them has none."""
    layer = made(torch, 3, 5, 2, zoneout=0.25, recurrent_dropout=np.float32(0.5))
    assert repr(layer) == "RNN(3, 5, num_layers=2, recurrent_dropout=0.5, zoneout=0.25)"
    layer.input_dropout, layer.recurrent_dropout = 1, 0
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (twin.recurrent_dropout, twin.input_dropout, twin.zoneout) == (0.0, 1.0, 0.25)
        assert repr(twin) == "RNN(3, 5, num_layers=2, input_dropout=1.0, zoneout=0.25)"
    layer.input_dropout = layer.zoneout = 0.0
    assert "_rates" not in vars(made(torch, 3, 5))
    assert repr(layer) == "RNN(3, 5, num_layers=2)"


@pytest.mark.parametrize("name", ["recurrent_dropout", "input_dropout", "zoneout"])
def test_bad_rates(torch: Any, name: str) -> None:
    layer = made(torch, 3, 5)
    for value, error, got in (
        (1.5, ValueError, "1.5"), (-0.1, ValueError, "-0.1"), (float("nan"), ValueError, "nan"),
        (True, TypeError, "bool"), ("0.5", TypeError, "str"), (None, TypeError, "None"),
    ):  # fmt: skip
        message = rf"^{name}: expected a number in \[0, 1\], got {got}$"
        with pytest.raises(error, match=message):
            made(torch, 3, 5, **{name: value})
        with pytest.raises(error, match=message):
            setattr(layer, name, value)


@pytest.mark.parametrize(
    "how", [{"recurrent_dropout": 0.5}, {"zoneout": 0.5}, {"return_all_layers": True}, {"input_dropout": 0.5}]
)
def test_where_torch_computes_they_raise(torch: Any, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]) -> None:
    import fastrnn.torch.dispatch as dispatch

    every = how.pop("return_all_layers", None)
    layer = made(torch, 3, 5, **how)
    monkeypatch.setattr(dispatch, "backend", lambda *_: "where nothing is fast")
    ((name, got),) = how.items() if how else [("return_all_layers", "bool")]
    expected = "None" if every else "0"
    match = rf"^{name}: expected {expected} where torch.nn.RNN computes \(where nothing is fast\), got {got}$"
    with pytest.raises(NotImplementedError, match=match):
        layer(torch.randn(2, 3, 3), **({"return_all_layers": True} if every else {}))


def test_restore_leaves_what_torch_has_not(torch: Any) -> None:
    """An accelerated layer that got a rate meanwhile stays fastrnn's, and the report says why."""
    import fastrnn

    model = torch.nn.Sequential(torch.nn.RNN(3, 5), torch.nn.RNN(5, 5))
    fastrnn.torch.accelerate(model)
    model[0].zoneout = 0.25
    report = fastrnn.torch.restore(model)
    assert type(model[0]) is fastrnn.torch.RNN
    assert type(model[1]) is torch.nn.RNN
    assert report.left == {"0": "torch.nn.RNN has no zoneout"}
    model[0].zoneout = 0.0
    assert list(fastrnn.torch.restore(model).swapped) == ["0"]
    assert type(model[0]) is torch.nn.RNN


def test_all_layers_cost_no_copy(torch: Any) -> None:
    """The last of layers is output itself; each is in torch's layout, and two calls share nothing."""
    layer, _ = twins(torch, 3, 5, 3, batch_first=True)
    output, h_n, layers = layer(torch.randn(4, 6, 3), return_all_layers=True)
    assert layers[-1] is output
    assert [tuple(each.shape) for each in layers] == [(4, 6, 5)] * 3
    assert all(torch.equal(each[:, -1], h_n[k]) for k, each in enumerate(layers))
