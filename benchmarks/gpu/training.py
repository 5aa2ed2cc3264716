"""fastrnn.training on the GPU, held against the CPU in float64: what is shared differs in the last digits of exp, log
and of products alone; the gradient of an embedding, whose rows are added in order, not in a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastrnn
from fastrnn import training
from fastrnn.training.layers import POOLINGS, pool

FEW, MANY = 1e-12, 1e-9  # relative to the largest element: one call, a training


def model(device: str, kind: str | None, directions: int) -> Any:
    """An embedding, two layers, every dropout."""
    where: Any = {"device": device, "dtype": "float64"}
    rnn = fastrnn.RNN(9, 33, 2, dropout=0.2, bidirectional=directions == 2, seed=1, **where)
    width = 33 * directions * (2 if kind == "mean+max" else 1)
    return training.SequenceModel(
        rnn, training.Linear(width, 3, seed=2, **where), embedding=training.Embedding(101, 9, seed=3, **where),
        pool=kind, dropout=0.4, token_dropout=0.2,
    )  # fmt: skip


def task() -> training.Sequences:
    """Which third of the tokens comes most often."""
    r = np.random.default_rng(0)
    rows = [r.integers(0, 101, r.integers(1, 18)) for _ in range(67)]
    return training.Sequences(rows, np.array([np.bincount(row // 34, minlength=3).argmax() for row in rows]))


def checks(cupy: Any) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Keys and checks, each of which returns its largest error or raises AssertionError."""
    for dtype in ("float32", "float64"):
        for V, E, N in ((7, 1, 33), (1000, 64, 50_000), (70_000, 17, 9_999)):
            yield f"embedding {dtype} {V} {E} {N}", lambda s=(V, E, N), d=dtype: embedding(cupy, *s, d)
    for masked in (False, True):
        yield f"losses masked={masked}", lambda m=masked: losses(cupy, m)
    for kind in POOLINGS:
        yield f"pooling {kind}", lambda k=kind: pooling(cupy, k)
        for directions in (1, 2):
            yield f"fit {kind} {directions}", lambda k=kind, n=directions: fit(k, n)


def error(got: Any, want: Any, bound: float) -> float:
    """The largest, relative to the largest element; checked."""
    found = float(np.abs(got.get() - want).max(initial=0) / max(float(np.abs(want).max(initial=0)), 1e-300))
    assert found <= bound, f"error {found:.1e}"
    return found


def embedding(cupy: Any, V: int, E: int, N: int, dtype: str) -> dict[str, Any]:
    """The gradient, to the bits of adding row by row, twice."""
    r = np.random.default_rng(V)
    tokens, d_x = r.zipf(1.3, N) % V, r.standard_normal((N, E)).astype(dtype)
    want = np.zeros((V, E), dtype)
    np.add.at(want, tokens, d_x)
    layer = training.Embedding(V, E, dtype=dtype, device="cuda")
    for _ in range(2):
        layer.zero_grad()
        layer.forward_train(cupy.asarray(tokens))[1](cupy.asarray(d_x))
        assert np.array_equal(layer.grads["weight"].get(), want), "other bits than in order"
    return {}


def losses(cupy: Any, masked: bool) -> dict[str, Any]:
    """Every loss, with class weights where it has them."""
    r, shape, K, found = np.random.default_rng(1), (33, 17), 7, 0.0
    y, mask, weights = 3 * r.standard_normal((*shape, K)), r.random(shape) < 0.6, r.uniform(0.2, 3, K)
    for loss, targets, more in (
        (training.softmax_cross_entropy, r.integers(0, K, shape), {"class_weights": weights}),
        (training.binary_cross_entropy, r.random(y.shape), {"class_weights": weights}),
        (training.mean_squared_error, r.standard_normal(y.shape), {}),
    ):
        given = {"mask": mask} if masked else {}
        there = {name: cupy.asarray(value) for name, value in given.items()}
        value, d = loss(y, targets, **given, **more)
        value_there, d_there = loss(cupy.asarray(y), cupy.asarray(targets), **there, **more)
        assert abs(value_there - value) <= FEW * abs(value), (value_there, value)
        found = max(found, error(d_there, d, FEW))
    return {"error": found}


def pooling(cupy: Any, kind: str) -> dict[str, Any]:
    """Values and gradients, with rows that end early, at once, and ties."""
    r = np.random.default_rng(2)
    lengths, h_n = r.integers(0, 18, 33), r.standard_normal((2, 33, 40))
    output = r.integers(-3, 3, (17, 33, 40)) * (np.arange(17)[:, None] < lengths)[..., None] * 1.0
    want, backward = pool(kind, output, h_n, lengths)
    got, backward_there = pool(kind, cupy.asarray(output), cupy.asarray(h_n), lengths)
    d = r.standard_normal(want.shape)
    found = error(got, want, FEW)
    for a, b in zip(backward_there(cupy.asarray(d)), backward(d), strict=True):
        found = found if b is None else max(found, error(a, b, FEW))
    return {"error": found}


def fit(kind: str, directions: int) -> dict[str, Any]:
    """Two epochs, on the CPU once and on the GPU twice, the second time to the same bits."""
    options: Any = {"epochs": 2, "batch_size": 17, "clip_norm": 0.5, "validation": task(), "seed": 3}
    models = [model(device, kind, directions) for device in ("cpu", "cuda", "cuda")]
    for one in models:
        training.fit(one, task(), training.softmax_cross_entropy, training.Adam(3e-3), **options)
    plain, there, again = (one.state_dict() for one in models)
    assert all(np.array_equal(there[name].get(), again[name].get()) for name in there), "other bits in the second run"
    return {"error": max(error(there[name], plain[name], MANY) for name in plain)}
