"""checkpoint_every of fastrnn.RNN.forward_train: the bits of plain BPTT, in less memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.compare import normalised_error
from helpers.processes import output_of
from helpers.torch_layers import name_of

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 3, "nonlinearity": "relu", "bias": False, "input_dropout": 0.3},
    {"bidirectional": True, "batch_first": True, "alpha": 0.4, "train_alpha": True},
    {"num_layers": 2, "bidirectional": True, "recurrent_dropout": 0.3, "input_dropout": 0.3},
    {"num_layers": 2, "batch_first": True, "alpha": 0.7, "recurrent_dropout": 0.3},
    {"num_layers": 3, "alpha": 0.6, "train_alpha": True},
)
HOW = ("plain", "lengths", "reset", "both")
T, B, I, H = 261, 5, 3, 9  # of blocks of 52 steps: the first chunk of one step


def results(backend: str, how: str, every: Any, dtype: Any = "float32", **options: Any) -> list[Any]:
    """output, h_n and all gradients, for random ones of both, of one seed."""
    import fastrnn

    layer = fastrnn.RNN(I, H, dtype=dtype, backend=backend, seed=1, **options)
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    turn = (lambda a: a.swapaxes(0, 1)) if layer.batch_first else lambda a: a
    x, h_0 = turn(normal(T, B, I)), normal(layer.num_layers * (1 + layer.bidirectional), B, H)
    keywords: dict[str, Any] = {}
    if how in ("lengths", "both"):
        keywords["lengths"] = np.array([0, 240, 99, 1, 240])  # the longest row is shorter than T
    if how in ("reset", "both"):
        keywords["reset"] = turn(rng.random((T, B)) < 0.02)
    output, h_n, backward = layer.forward_train(x, h_0, **keywords, checkpoint_every=every)
    d_x, d_h_0 = backward(normal(*output.shape), normal(*h_n.shape))
    return [output, h_n, d_x, d_h_0, *layer.grads.values()]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_recomputation_changes_no_bit(backend: str, options: dict[str, Any], how: str) -> None:
    """With cpp; to rounding (1e-12 in float64) with the others, whose sums have another order then."""
    dtype = "float32" if backend == "cpp" else "float64"
    want = results(backend, how, None, dtype, **options)
    for every in ("auto", 60, T + 9) if backend == "cpp" else (60,):
        got = results(backend, how, every, dtype, **options)
        assert len(got) == len(want)
        for at, (g, w) in enumerate(zip(got, want, strict=True)):
            assert g.shape == w.shape
            assert backend != "cpp" or np.array_equal(g, w), (every, at)
            assert normalised_error(g, w) <= (1e-12 if dtype == "float64" else 0), (every, at)


@pytest.mark.parametrize(
    "options", [{"dropout": 0.4, "num_layers": 2}, {"zoneout": 0.3, "bidirectional": True},
                {"dropout": 0.4, "num_layers": 2, "bidirectional": True, "zoneout": 0.2}],
    ids=name_of,
)  # fmt: skip
def test_masks_of_chunks_are_drawn_again(options: dict[str, Any]) -> None:
    """Against finite differences of the same seed, in float64: backward sees the masks of forward, and they act."""
    import fastrnn

    rng = np.random.default_rng(0)
    x, direction = rng.standard_normal((2, T, B, I))
    lengths, d = np.array([0, 240, 99, 1, T]), rng.standard_normal(H * (1 + options.get("bidirectional", False)))

    def run(x: Any) -> Any:
        layer = fastrnn.RNN(I, H, dtype="float64", seed=1, **options)
        return layer, *layer.forward_train(x, None, lengths, checkpoint_every=60)

    layer, output, _, backward = run(x)
    assert not np.array_equal(output, layer(x, None, lengths)[0])
    d_x, _ = backward(np.broadcast_to(d, output.shape))
    ends = [float((run(x + s * 1e-6 * direction)[1] * d).sum()) for s in (1, -1)]
    slope = float((d_x * direction).sum())
    assert abs((ends[0] - ends[1]) / 2e-6 - slope) <= 1e-6 * abs(slope) + 1e-6


def test_one_sequence_and_h_n_alone() -> None:
    import fastrnn

    x = np.random.default_rng(0).standard_normal((600, I)).astype(np.float32)
    found = []
    for every in (None, "auto"):
        layer = fastrnn.RNN(I, H, 2, seed=1)
        output, h_n, backward = layer.forward_train(x, checkpoint_every=every)
        d_x, d_h_0 = backward(None, np.ones_like(h_n))
        found.append([output, h_n, d_x, d_h_0, *layer.grads.values()])
        with pytest.raises(
            RuntimeError, match=r"^backward: expected one call for each forward_train, got a second one$"
        ):
            backward(None, np.ones_like(h_n))
    assert all(map(np.array_equal, *found))


def test_bad_checkpoint_every() -> None:
    import fastrnn

    layer, x = fastrnn.RNN(I, H, seed=0), np.zeros((4, 2, I), np.float32)
    for every, error, words in (
        (0, ValueError, "at least 1, got 0"), ("sqrt", ValueError, "None, 'auto' or an int, got 'sqrt'"),
        (1.5, TypeError, "int, got float"), (True, TypeError, "int, got bool"),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^checkpoint_every: expected {words}$"):
            layer.forward_train(x, checkpoint_every=every)


MEMORY = """
import sys, tracemalloc, numpy as np, fastrnn
T, H = 40_000, 128
layer, x = fastrnn.RNN(1, H, 3, seed=0), np.zeros((T, 1, 1), np.float32)
output, _, backward = layer.forward_train(x[:300], checkpoint_every="auto")
backward(output)  # a backend that is compiled first keeps tens of megabytes for it
tracemalloc.start()
output, h_n, backward = layer.forward_train(x, checkpoint_every="auto")
d_output = np.zeros_like(output)
del output
before = tracemalloc.get_traced_memory()[0]
tracemalloc.reset_peak()
backward(d_output)
print(before // 1024, tracemalloc.get_traced_memory()[1] // 1024 - before // 1024)
"""


def test_three_layers_over_40000_steps_take_the_memory_of_few_states() -> None:
    """The states of each layer would be 20,000 KiB. Beside the gradient of the output: at most 1,000 are held between
    forward and backward (sqrt(T) = 200 rounds up to chunks of 256 steps), at most 3,000 more in backward."""
    held, more = map(int, output_of(MEMORY).split())
    assert held - 20_000 <= 1_000
    assert more <= 3_000
