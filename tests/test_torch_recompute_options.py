"""checkpoint_every and RNN.reduce of fastrnn.torch beside each other option, against a loop over the steps in torch,
in float64: alpha, lengths, reset, every kind of mask, two directions and layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.compare import normalised_error
from helpers.torch_layers import name_of

T, B, I, H, EVERY = 21, 64, 5, 7, 3  # blocks of 4 steps: a first chunk of one step and five of 4
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 2, "nonlinearity": "relu", "bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
)
RATES: tuple[dict[str, float], ...] = (
    {},
    {"recurrent_dropout": 0.4, "input_dropout": 0.3},
    {"zoneout": 0.3},
    {"dropout": 0.4, "recurrent_dropout": 0.2, "zoneout": 0.3},
)
HOW = ("plain", "lengths", "reset", "both")
CASES = ((None, "both"), ("number", "both"), ("scalar parameter", "both"), *(("parameter", how) for how in HOW))


def made(torch: Any, alpha: str | None, **options: Any) -> Any:
    import fastrnn

    values = torch.linspace(0.05, 1, H, dtype=torch.float64)
    kinds = {
        None: None,
        "number": 0.3,
        "parameter": torch.nn.Parameter(values),
        "scalar parameter": torch.nn.Parameter(values[2].clone()),
    }
    torch.manual_seed(0)
    if options.get("num_layers", 1) == 1:
        options.pop("dropout", None)
    return fastrnn.torch.RNN(I, H, dtype=torch.float64, alpha=kinds[alpha], **options)


def given(torch: Any, layer: Any, how: str) -> tuple[Any, Any, dict[str, Any]]:
    """x, hx, and lengths and reset as the layer takes them."""
    generator = torch.Generator().manual_seed(2)
    shape = (B, T, I) if layer.batch_first else (T, B, I)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    states = layer.num_layers * (1 + layer.bidirectional)
    hx = torch.randn(states, B, H, generator=generator, dtype=torch.float64).requires_grad_()
    arguments = {}
    if how in ("lengths", "both"):
        arguments["lengths"] = torch.randint(0, T - 1, (B,), generator=generator)  # the longest row is shorter than T
        arguments["lengths"][:2] = torch.tensor([0, T - 2])
    if how in ("reset", "both"):
        reset = torch.rand(T, B, generator=generator) < 0.2
        arguments["reset"] = reset.T if layer.batch_first else reset
    return x, hx, arguments


class Drawn:
    """The masks of one call with chunks, by their definition: those of input and state from torch's generator; of
    dropout and zoneout, NumPy's generator of (seed, direction, kind, layer, chunk) gives each chunk's, in the rows and
    steps as the chunk has them."""

    def __init__(self, torch: Any, layer: Any, lengths: Any, together: int) -> None:
        D, rate = 1 + layer.bidirectional, layer if layer.training else None
        self.torch, self.layer, self.together = torch, layer, together
        ends = torch.full((B,), T) if lengths is None else lengths
        self.order = np.arange(B) if lengths is None else np.argsort(-ends.numpy(), kind="stable")
        self.lengths = None if lengths is None else ends.numpy()[self.order]
        self.end = int(ends.max())
        self.D, self.rate = D, rate
        self.inputs: list[Any] = []
        self.recurrent: list[Any] = []
        self.seed: Any = None

    def start(self, layer: int) -> None:
        """Draws for the layers that are computed together, from this one on."""
        torch, rate = self.torch, self.rate
        self.first, self.inputs, self.recurrent, self.seed = layer, [], [], None
        if rate is None:
            return
        for k in range(layer, layer + self.together):
            if rate.input_dropout:
                ones = torch.ones(B, self.D * H if k else I, dtype=torch.float64)
                self.inputs.append(torch.dropout(ones, rate.input_dropout, True))
            if rate.recurrent_dropout:
                ones = torch.ones(self.D, B, H, dtype=torch.float64)
                self.recurrent.append(torch.dropout(ones, rate.recurrent_dropout, True))
        if rate.zoneout or (rate.dropout and self.together > 1):
            self.seed = int(torch.randint(2**62, (1,)))

    def uniform(self, way: int, kind: int, layer: int, width: int) -> Any:
        """(T, B, width), as the caller has steps and rows."""
        found = np.ones((T, B, width), np.float32)
        steps = 4
        ends = list(range(self.end, 0, -steps))
        chunks = [(max(end - steps, 0), end) for end in reversed(ends)]
        turned = way == 1 and self.lengths is not None
        if way == 1 and not turned:  # counted from the step that comes last
            chunks = [(self.end - end, self.end - begin) for begin, end in chunks]
        for at, (begin, end) in enumerate(chunks):
            rng = np.random.default_rng([self.seed, way, kind, layer, at])
            s = np.arange(begin, end)[:, None]
            t = np.where(s < self.lengths, self.lengths - 1 - s, s) if turned else s
            found[t, self.order] = rng.random((end - begin, B, width), np.float32)
        return self.torch.from_numpy(found)


def loop(torch: Any, layer: Any, x: Any, hx: Any, lengths: Any, reset: Any) -> tuple[Any, Any]:
    """output and h_n, time-major, by the formulas."""
    L, D = layer.num_layers, 1 + layer.bidirectional
    act = torch.tanh if layer.nonlinearity == "tanh" else torch.relu
    train, states = layer.training, []
    drawn = Drawn(torch, layer, lengths, L if D == 1 else 1)
    alpha = torch.ones((), dtype=torch.float64) if layer.alpha is None else layer.alpha
    alpha = alpha if train else alpha * (1 - layer.zoneout)
    steps = torch.full((B,), T) if lengths is None else lengths
    reset = torch.zeros(T, B, dtype=torch.bool) if reset is None else reset
    for k in range(L):
        if train and k and layer.dropout and D == 2:
            x = torch.dropout(x, layer.dropout, True)
        if k % drawn.together == 0:
            drawn.start(k)
        at = k - drawn.first
        if drawn.inputs:
            x = x * drawn.inputs[at]
        if train and k and layer.dropout and D == 1:
            x = x * ((drawn.uniform(0, 0, at, H) >= layer.dropout).double() / (1 - layer.dropout))
        both = []
        for d in range(D):
            end = f"_l{k}" + "_reverse" * d
            w, u = getattr(layer, "weight_ih" + end), getattr(layer, "weight_hh" + end)
            b = getattr(layer, "bias_ih" + end) + getattr(layer, "bias_hh" + end) if layer.bias else 0
            mask = drawn.recurrent[at][d] if drawn.recurrent else 1
            keep = torch.zeros(T, B, H, dtype=torch.bool)
            if train and layer.zoneout:
                keep = drawn.uniform(d, 1, at, H) < layer.zoneout
            h, out = hx[k * D + d], [torch.zeros(())] * T
            for t in reversed(range(T)) if d else range(T):
                p = torch.where(reset[t, :, None], 0, h)
                new = (1 - alpha) * p + alpha * act(x[t] @ w.T + b + (p * mask) @ u.T)
                new = torch.where(keep[t], p, new)
                here = (t < steps)[:, None]
                out[t] = torch.where(here, new, 0)
                h = torch.where(here, new, h)
            both.append(torch.stack(out))
            states.append(h)
        x = torch.cat(both, -1)
    return x, torch.stack(states)


def expected(torch: Any, layer: Any, x: Any, hx: Any, how: dict[str, Any]) -> tuple[Any, Any]:
    """loop's, in the layer's layout."""
    turn = (lambda v: v.transpose(0, 1)) if layer.batch_first else lambda v: v
    reset = how.get("reset")
    torch.manual_seed(4)
    output, h_n = loop(torch, layer, turn(x), hx, how.get("lengths"), reset if reset is None else turn(reset))
    return turn(output), h_n


def compare(torch: Any, layer: Any, how: str, run: Any = None) -> None:
    """Values and the gradients of everything, for random ones of output and h_n: <= 1e-12."""
    x, hx, arguments = given(torch, layer, how)
    leaves = [x, hx, *layer.parameters()]
    want = expected(torch, layer, x, hx, arguments)
    torch.manual_seed(4)
    got = (layer if run is None else run)(x, hx, checkpoint_every=EVERY, **arguments)
    generator = torch.Generator().manual_seed(3)
    upstream = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in want]
    results = [[*each, *torch.autograd.grad(each, leaves, upstream)] for each in (want, got)]
    names = ["output", "h_n", "x", "hx", *(name for name, _ in layer.named_parameters())]
    for name, w, g in zip(names, *results, strict=True):
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= 1e-12, name


@pytest.mark.parametrize(("alpha", "how"), CASES)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("rates", RATES, ids=name_of)
def test_recomputation_equals_a_loop_over_the_steps(
    torch: Any, rates: dict[str, float], options: dict[str, Any], alpha: str | None, how: str
) -> None:
    layer = made(torch, alpha, **options, **rates)
    compare(torch, layer, how)
    compare(torch, layer.eval(), how)


@pytest.mark.parametrize("how", HOW)
def test_recomputation_equals_the_loop_on_each_backend(
    torch: Any, backend: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastrnn.torch.dispatch as dispatch
    from fastrnn import _backends

    monkeypatch.setattr(dispatch, "backend", lambda *_: _backends.get(backend))
    compare(torch, made(torch, "parameter", **OPTIONS[2], **RATES[3]), how)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_compiled_whole_recomputation_equals_the_loop(torch: Any, options: dict[str, Any], how: str) -> None:
    torch._dynamo.reset()
    layer = made(torch, "parameter", **options, recurrent_dropout=0.4, input_dropout=0.3)
    compare(torch, layer, how, torch.compile(layer, fullgraph=True, backend="aot_eager"))


@pytest.mark.parametrize(("alpha", "how"), CASES)
@pytest.mark.parametrize("options", OPTIONS[:2], ids=name_of)
@pytest.mark.parametrize("rates", RATES, ids=name_of)
def test_reduce_equals_a_loss_of_the_loop(
    torch: Any, rates: dict[str, float], options: dict[str, Any], alpha: str | None, how: str
) -> None:
    """The total, h_n, and the gradients of all that it is made of, a factor that the function reads too: <= 1e-12."""
    layer = made(torch, alpha, **options, **rates)
    x, hx, arguments = given(torch, layer, how)
    generator = torch.Generator().manual_seed(3)
    factor = torch.randn(H, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn((*x.shape[:2], H), generator=generator, dtype=torch.float64)
    last = T - 2 if "lengths" in arguments else T

    def loss(output: Any, begin: int, end: int) -> Any:
        steps = (slice(None), slice(begin, end)) if layer.batch_first else slice(begin, end)
        return (factor * output - target[steps]).pow(2).sum()

    output, h_n = expected(torch, layer, x, hx, arguments)
    want = [loss(output[:, :last] if layer.batch_first else output[:last], 0, last), h_n]
    torch.manual_seed(4)
    got = list(layer.reduce(loss, x, hx, checkpoint_every=EVERY, **arguments))
    upstream = [torch.tensor(0.7, dtype=torch.float64), torch.randn(h_n.shape, generator=generator).double()]
    for results in (want, got):
        results += torch.autograd.grad(results, [x, hx, factor, *layer.parameters()], upstream)
    names = ["total", "h_n", "x", "hx", "factor", *(name for name, _ in layer.named_parameters())]
    for name, w, g in zip(names, want, got, strict=True):
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= 1e-12, name


# ---- The operators, called by hand or from exported programs


def arguments(torch: Any, L: int, bidirectional: bool) -> dict[str, Any]:
    """What fastrnn::recomputed takes: every option."""
    D, steps, batch = 1 + bidirectional, 6, 3
    shapes = [((H, D * H if at else I), (H, H), (H,), (H,)) for at in range(L) for _ in range(D)]
    return {
        "x": torch.randn(steps, batch, I),
        "h_0": torch.randn(L * D, batch, H),
        "weights": [torch.randn(shape) for one in shapes for shape in one],
        "num_layers": L,
        "steps": 2,
        "nonlinearity": "tanh",
        "bidirectional": bidirectional,
        "lengths": torch.tensor([6, 0, 3]),
        "reset": torch.rand(steps, batch) < 0.2,
        "input_masks": [torch.ones(batch, D * H if at else I) for at in range(L)],
        "recurrent_masks": torch.ones(L, D, batch, H),
        "dropout": 0.1,
        "zoneout": 0.1,
        "seed": torch.tensor([5]),
    }


@pytest.mark.parametrize(("L", "bidirectional"), [(1, False), (2, False), (1, True)])
def test_the_operators_refuse_what_does_not_fit(torch: Any, L: int, bidirectional: bool) -> None:
    """By name, as fastrnn::rnn_forward does: before, they wrote beyond their results."""
    given = arguments(torch, L, bidirectional)
    weights, seven = given["weights"], torch.ones(7)
    wrong: list[tuple[str, Any, Any, str]] = [
        ("x", given["x"].half(), TypeError, "x: expected torch.float32 or torch.float64, got torch.float16"),
        ("x", given["x"].double(), TypeError, r"weights\[0\]: expected torch.float64"),
        ("x", given["x"][0], ValueError, "x: expected"),
        ("x", given["x"][..., 1:], ValueError, r"weights\[0\]: expected shape"),
        ("x", given["x"][:0], ValueError, "x: expected at least one time step"),
        ("h_0", given["h_0"].double(), TypeError, "h_0: expected torch.float32"),
        ("h_0", given["h_0"][:, 1:], ValueError, "h_0: expected shape"),
        ("weights", weights[1:], ValueError, "weights"),
        ("weights", [], ValueError, "weights"),
        (
            "weights",
            [*weights[:-1], seven.double()],
            TypeError,
            rf"weights\[{len(weights) - 1}\]: expected torch.float",
        ),
        ("weights", [*weights[:-1], seven[1:]], ValueError, rf"weights\[{len(weights) - 1}\]: expected shape \(7,\)"),
        ("weights", [*weights[:-4], torch.ones(7, 3), *weights[-3:]], ValueError, rf"weights\[{len(weights) - 4}\]"),
        ("num_layers", 0, ValueError, "num_layers: expected at least 1"),
        ("num_layers", L + 1, ValueError, "weights|x|input_masks"),
        ("steps", 0, ValueError, "steps: expected at least 1, got 0"),
        ("nonlinearity", "sine", ValueError, "nonlinearity: expected"),
        ("lengths", torch.tensor([7, 0, 3]), ValueError, "lengths: expected values"),
        ("reset", given["reset"][1:], ValueError, "reset: expected shape"),
        ("input_masks", given["input_masks"] * 2, ValueError, "input_masks: expected none or"),
        ("input_masks", [m.double() for m in given["input_masks"]], TypeError, r"input_masks\[0\]: expected"),
        ("recurrent_masks", given["recurrent_masks"][..., 1:], ValueError, "recurrent_masks: expected shape"),
        ("dropout", 1.5, ValueError, "dropout: expected"),
        ("zoneout", float("nan"), ValueError, "zoneout: expected"),
        ("seed", torch.tensor([5, 6]), ValueError, "seed: expected"),
        ("seed", None, ValueError, "seed: expected"),
    ]
    forward, backward = torch.ops.fastrnn.recomputed, torch.ops.fastrnn.recomputed_backward
    needed = [True] * (2 + len(weights))
    with torch.no_grad():
        output, h_n, states = forward(*given.values())
        above = {"d_output": output, "d_h_n": h_n, "states": states}
        how = list(given)[3:]

        def back(above: dict[str, Any], given: dict[str, Any], needed: list[bool]) -> Any:
            options = [given[name] for name in how]
            return backward(*above.values(), given["x"], given["h_0"], given["weights"], needed, *options)

        assert len(back(above, given, needed)) == len(needed)
        for name, value, kind, message in wrong:
            with pytest.raises(kind, match=f"^{message}"):
                forward(*(given | {name: value}).values())
            with pytest.raises(kind, match=f"^{message}"):
                back(above, given | {name: value}, needed)
        for name, value in above.items():
            with pytest.raises(ValueError, match=f"^{name}: expected shape"):
                back(above | {name: value[..., 1:]}, given, needed)
            with pytest.raises(TypeError, match=f"^{name}: expected torch.float32"):
                back(above | {name: value.half()}, given, needed)
        with pytest.raises(ValueError, match=r"^needed: expected a bool"):
            back(above, given, needed[1:])


def test_an_exported_program_refuses_another_dtype(torch: Any) -> None:
    import fastrnn

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = fastrnn.torch.RNN(I, H)

        def forward(self, x: Any) -> Any:
            return self.rnn(x, checkpoint_every=10)[0]

    x = torch.randn(40, 2, I)
    program = torch.export.export(Model(), (x,)).module()
    assert program(x).shape == (40, 2, H)
    with pytest.raises(TypeError, match=r"^x: expected torch.float32 or torch.float64, got torch.float16"):
        program(x.half())
