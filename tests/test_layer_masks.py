"""Recurrent dropout, input dropout, zoneout, reset and return_all_layers of fastrnn.RNN, against a loop over the steps
that draws the documented masks itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from helpers.compare import normalised_error

import fastrnn

Array = Any
RATES: tuple[dict[str, float], ...] = (
    {"recurrent_dropout": 0.4},
    {"input_dropout": 0.3},
    {"zoneout": 0.3},
    {"recurrent_dropout": 0.25, "input_dropout": 0.5, "zoneout": 0.2, "dropout": 0.4},
)
T, B, I, H = 6, 5, 3, 7


def name_of(options: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items()) or "plain"


def made(backend: str = "auto", **kwargs: Any) -> fastrnn.RNN:
    return fastrnn.RNN(I, H, 2, dtype="float64", seed=1, backend=backend, **kwargs)


def masks(layer: fastrnn.RNN) -> list[dict[str, Array]]:
    """What forward_train will draw, of each layer."""
    rng, found, D = copy.deepcopy(layer._rng), [], 1 + layer.bidirectional

    def noise(rate: float, *shape: int) -> Array:
        return (rng.random(shape) >= rate) / (1 - rate) if rate else np.ones(1)

    for k in range(layer.num_layers):
        width = D * H if k else layer.input_size
        between = noise(layer.dropout, T, B, width) if k else np.ones(1)
        variational, recurrent = noise(layer.input_dropout, B, width), noise(layer.recurrent_dropout, D, B, H)
        kept = rng.random((D, T, B, H), np.float32) < layer.zoneout if layer.zoneout else np.zeros((D, T, B, H), bool)
        recurrent = np.broadcast_to(recurrent, (D, B, H))
        found.append({"input": between * variational, "recurrent": recurrent, "kept": kept})
    return found


def loop(
    layer: fastrnn.RNN, p: dict[str, Array], x: Array, h_0: Array, lengths: Array, reset: Array, drawn: Any
) -> tuple[Array, Array, list[Array]]:
    """output, h_n and each layer's states, by the formulas; of complex arrays, too."""
    D, states, outputs = 1 + layer.bidirectional, [], []
    leak = 0.0 if drawn else layer.zoneout
    for k in range(layer.num_layers):
        own = drawn[k] if drawn else {}
        x = x * own.get("input", 1)
        both = []
        for d in range(D):
            end = f"_l{k}" + "_reverse" * d
            out, h = np.zeros((T, B, H), x.dtype), h_0[k * D + d].astype(x.dtype)
            for t in reversed(range(T)) if d else range(T):
                before = np.where(reset[t][:, None], 0, h)
                mask = own["recurrent"][d] if drawn else 1
                z = x[t] @ p["weight_ih" + end].T + (before * mask) @ p["weight_hh" + end].T
                new = np.tanh(z + p["bias_ih" + end] + p["bias_hh" + end])
                new = leak * before + (1 - leak) * new
                new = np.where(own["kept"][d, t], before, new) if drawn else new
                there = (t < lengths)[:, None]
                out[t], h = np.where(there, new, 0), np.where(there, new, h)
            both.append(out)
            states.append(h)
        x = np.concatenate(both, -1)
        outputs.append(x)
    return x, np.stack(states), outputs


def problem(layer: fastrnn.RNN) -> tuple[Array, Array, dict[str, Array]]:
    rng = np.random.default_rng(2)
    states = layer.num_layers * (1 + layer.bidirectional)
    how = {"lengths": np.array([6, 0, 3, 1, 5]), "reset": rng.random((T, B)) < 0.3}
    return rng.standard_normal((T, B, I)), rng.standard_normal((states, B, H)), how


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("rates", RATES, ids=name_of)
def test_equals_a_loop_over_the_steps(backend: str, rates: dict[str, float], bidirectional: bool) -> None:
    """Values <= 1e-13; every gradient by complex steps along random directions, <= 1e-12; in inference the mean."""
    layer = made(backend, bidirectional=bidirectional, **rates)
    x, h_0, how = problem(layer)
    parameters = dict(layer.parameters)
    want = loop(layer, parameters, x, h_0, **how, drawn=None)
    got = layer(x, h_0, **how, return_all_layers=True)
    for g, w in zip([*got[:2], *got[2]], [*want[:2], *want[2]], strict=True):
        assert normalised_error(g, w) <= 1e-13

    drawn = masks(layer)
    output, h_n, backward = layer.forward_train(x, h_0, **how)
    want = loop(layer, parameters, x, h_0, **how, drawn=drawn)
    assert normalised_error(output, want[0]) <= 1e-13
    assert normalised_error(h_n, want[1]) <= 1e-13
    rng = np.random.default_rng(3)
    upstream = rng.standard_normal(output.shape), rng.standard_normal(h_n.shape)
    gradients = dict(zip(("x", "h_0"), backward(*upstream), strict=True)) | layer.grads
    values = {"x": x, "h_0": h_0, **parameters}
    for name, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)
        moved = {key: value + 0j for key, value in values.items()}
        moved[name] += 1e-30j * direction
        results = loop(layer, moved, moved["x"], moved["h_0"], **how, drawn=drawn)
        slope = sum((u * r).sum() for u, r in zip(upstream, results[:2], strict=True)).imag / 1e-30
        assert abs(slope - (gradient * direction).sum()) <= 1e-12 * (1 + abs(gradient * direction).sum()), name


def test_layouts_of_reset_and_layers() -> None:
    """batch_first and one sequence; reset is read when the call is made."""
    layer, first = made(), made(batch_first=True)
    x, h_0, how = problem(layer)
    output, h_n, layers = layer(x, h_0, **how, return_all_layers=True)
    turned = {"lengths": how["lengths"], "reset": how["reset"].T}
    got = first(x.swapaxes(0, 1), h_0, **turned, return_all_layers=True)
    assert np.array_equal(got[0].swapaxes(0, 1), output)
    assert all(np.array_equal(a.swapaxes(0, 1), b) for a, b in zip(got[2], layers, strict=True))
    assert got[2][-1] is got[0]
    single = layer(x[:, 0], h_0[:, 0], reset=how["reset"][:, 0], return_all_layers=True)
    assert normalised_error(single[0], output[:, 0]) <= 1e-14
    assert single[2][0].shape == (T, H)
    reset = how["reset"].copy()
    _, _, backward = layer.forward_train(x, reset=reset)
    reset[...] = True
    d_x, _ = backward(np.ones((T, B, H)))
    layer.forward_train(x, reset=how["reset"])[2](np.ones((T, B, H)))
    assert np.array_equal(d_x, layer.forward_train(x, reset=how["reset"])[2](np.ones((T, B, H)))[0])


def test_rates_are_kept_and_repeat_with_the_seed() -> None:
    layer = made(recurrent_dropout=0.5, input_dropout=0.25, zoneout=0.125)
    assert repr(layer) == "RNN(3, 7, num_layers=2, recurrent_dropout=0.5, input_dropout=0.25, zoneout=0.125)"
    x, h_0, _ = problem(layer)
    twin = pickle.loads(pickle.dumps(layer))
    assert np.array_equal(layer.forward_train(x)[0], twin.forward_train(x)[0])
    assert not np.array_equal(layer.forward_train(x)[0], layer.forward_train(x)[0])
    old = made()
    for name in ("recurrent_dropout", "input_dropout", "zoneout"):
        del vars(old)[name]  # as pickled before there were any
    assert np.array_equal(pickle.loads(pickle.dumps(old)).forward_train(x, h_0)[0], made()(x, h_0)[0])


def test_bad_values() -> None:
    for name in ("recurrent_dropout", "input_dropout", "zoneout"):
        for value, error, got in ((1.5, ValueError, "1.5"), (True, TypeError, "bool"), ("a", TypeError, "str")):
            with pytest.raises(error, match=rf"^{name}: expected a number in \[0, 1\], got {got}$"):
                made(**{name: value})
    layer = made()
    x, _, how = problem(layer)
    for reset, error, words in (
        (how["reset"].T, ValueError, r"expected shape \(T, B\) = \(6, 5\), got \(5, 6\)"),
        (how["reset"].astype(int), TypeError, "expected dtype bool, got int64"),
    ):
        with pytest.raises(error, match=f"^reset: {words}$"):
            layer(x, reset=reset)
    with pytest.raises(TypeError, match=r"^return_all_layers: expected bool, got int$"):
        layer(x, return_all_layers=1)
