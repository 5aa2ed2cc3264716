"""The token path: w_ih x once for each token that occurs. It gives what the product at every step gives, to rounding,
and is taken where it is less work. Its gradients against complex steps: test_training_gradients.py.
"""

from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import _gathered
from fastrnn.training import Embedding, Linear, SequenceModel

Array = Any


def model(
    by_token: bool | None,
    V: int = 23,
    E: int = 7,
    H: int = 9,
    *,
    dtype: str = "float64",
    trainable: bool = True,
    token_dropout: float = 0.3,
    pool: str | None = "mean+max",
    **rnn: Any,
) -> SequenceModel:
    one = fastrnn.RNN(E, H, dtype=dtype, seed=1, **rnn)
    width = H * (1 + one.bidirectional) * (2 if pool == "mean+max" else 1)
    embedding = Embedding(V, E, scale=1.0, dtype=dtype, trainable=trainable, seed=2)
    readout = Linear(width, 3, dtype=dtype, seed=3)
    return SequenceModel(
        one, readout, embedding=embedding, pool=pool, dropout=0.2, token_dropout=token_dropout, seed=4,
        by_token=by_token,
    )  # fmt: skip


def tokens(T: int, B: int, V: int = 23, seed: int = 0) -> Array:
    return np.random.default_rng(seed).zipf(1.4, (T, B)) % V


def train(one: SequenceModel, x: Array, lengths: Array | None, seed: int = 5) -> dict[str, Array]:
    """Everything that comes out of one step with random gradients, and of inference."""
    r = np.random.default_rng(seed)
    rows = one.rnn.num_layers * (1 + one.rnn.bidirectional)
    h_0 = r.standard_normal((rows, x.shape[1], one.rnn.hidden_size)).astype(one.rnn.dtype)
    y, h_n, backward = one.forward_train(x, lengths, h_0)
    d_x, d_h_0 = backward(r.standard_normal(y.shape).astype(y.dtype))
    assert d_x is None
    return {"y": y, "h_n": h_n, "d_h_0": d_h_0, "inference": one(x, lengths), **one.grads}


def assert_like(got: dict[str, Array], want: dict[str, Array], bound: float) -> None:
    for name, w in want.items():
        scale = max(float(np.abs(w).max(initial=0)), 1e-300)
        error = float(np.abs(got[name] - w).max(initial=0)) / scale
        assert got[name].shape == w.shape, name
        assert error <= bound, f"{name}: {error:.1e}"


KINDS: list[dict[str, Any]] = [
    {},
    {"nonlinearity": "relu", "bias": False},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.3},
    {"bidirectional": True, "zoneout": 0.2, "recurrent_dropout": 0.3},
    {"alpha": 0.4, "pool": None},
    {"token_dropout": 0.0, "pool": "last"},
    {"trainable": False},
    {"E": 1, "H": 1, "V": 1},
    {"E": 33, "H": 65, "V": 130, "dtype": "float32"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("ragged", [False, True])
def test_it_gives_what_the_product_at_every_step_gives(backend: str, kind: dict[str, Any], ragged: bool) -> None:
    """Output, states and every gradient, with random h_0 and all masks; 1e-13 of each array's largest element in
    float64, 4e-5 in float32, whose gradients are sums over 91 steps."""
    T, B = 13, 7
    x = tokens(T, B, kind.get("V", 23))
    lengths = np.array([13, 0, 1, 5, 13, 2, 9]) if ragged else None
    bound = 4e-5 if kind.get("dtype") == "float32" else 1e-13
    got, want = (train(model(by_token, backend=backend, **kind), x, lengths) for by_token in (True, False))
    assert_like(got, want, bound)
    if kind.get("trainable", True):
        assert got["embedding.weight"].any()
    with_frozen = model(True, backend=backend, **kind)
    with with_frozen.rnn.frozen():
        np.testing.assert_array_equal(with_frozen(x, lengths), got["inference"])


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (1, 1), (3, 300)])
@pytest.mark.parametrize("token_dropout", [0.0, 1.0])
def test_sizes_at_the_edge(shape: tuple[int, int], token_dropout: float) -> None:
    """No steps, no rows, and no token left: the gradient of the embedding is 0."""
    x = tokens(*shape)
    got, want = (train(model(by_token, token_dropout=token_dropout), x, None) for by_token in (True, False))
    assert_like(got, want, 1e-13)
    assert got["embedding.weight"].any() == (x.size > 0 and token_dropout == 0)


def test_same_bits_whatever_the_threads_and_the_run() -> None:
    x, results = tokens(60, 40, 500), []
    for threads in (1, 2, 3, 1):
        with fastrnn.threads(threads):
            results.append(train(model(True, 500, 33, 65, dtype="float32", bidirectional=True), x, None))
    for other in results[1:]:
        for name, w in results[0].items():
            np.testing.assert_array_equal(other[name], w, err_msg=name)


def test_tokens_are_summed_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the native module, and with more than 2^16 tokens that occur, within rounding of the same sums; dropped
    steps in none of them."""
    r = np.random.default_rng(3)
    for V in (70_000, 11):
        place = np.concatenate([np.arange(V + 1), r.integers(0, V + 1, 300 + (V + 1) % 2)]).reshape(2, -1)
        table, d = r.standard_normal((V, 2)), r.standard_normal((*place.shape, 3))
        want = np.zeros((V + 1, 3))
        np.add.at(want, place.reshape(-1), d.reshape(-1, 3))
        gathered = _gathered.Gathered(table, place)
        x = np.concatenate([table, np.zeros((1, 2))])[place]
        assert (gathered.ndim, gathered.shape, gathered.dtype) == (x.ndim, x.shape, x.dtype)
        w_ih = r.standard_normal((5, 2))
        np.testing.assert_allclose(gathered.product(w_ih), x @ w_ih.T, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(gathered.sums(d), want[:V], rtol=1e-13, atol=1e-13)
        with monkeypatch.context() as patch:
            patch.setattr(_gathered, "native", lambda: None)
            np.testing.assert_allclose(gathered.sums(d), want[:V], rtol=1e-13, atol=1e-13)


# ---- The choice


def taken(one: SequenceModel, x: Array, lengths: Array | None, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the RNN was given rows of a table: in a step of training, in inference."""
    found: list[bool] = []
    checked = fastrnn.RNN._checked

    def spy(self: fastrnn.RNN, x: Any, *other: Any) -> Any:
        found.append(isinstance(x, _gathered.Gathered))
        return checked(self, x, *other)

    with monkeypatch.context() as patch:
        patch.setattr(fastrnn.RNN, "_checked", spy)
        one.forward_train(x, lengths)
        one(x, lengths)
    return found


def test_it_is_taken_where_it_is_less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """(N - U) I D H > N (1024 or 4096 + 64 max(D H - I, 0)) + 32 V; N counts the steps within the lengths."""
    plain: dict[str, Any] = {"token_dropout": 0.0, "dtype": "float32"}
    x = np.arange(400).reshape(40, 10) % 30  # N 400, U 30
    choices = set()
    for V, E, H, D in ((30, 64, 64, 1), (30, 80, 80, 1), (30, 32, 34, 1), (30, 36, 36, 1), (30, 33, 33, 1),
                       (30, 65, 33, 2), (30, 20, 64, 1), (30, 64, 64, 2), (30, 128, 128, 2), (30, 200, 9, 1),
                       (10_000, 40, 40, 1), (1000, 40, 40, 1), (20_000, 64, 64, 1)):  # fmt: skip
        more = 64 * max(D * H - E, 0)
        want = [(400 - 30) * E * D * H > 400 * (price + more) + 32 * V for price in (1024, 4096)]
        assert taken(model(None, V, E, H, bidirectional=D == 2, **plain), x, None, monkeypatch) == want, (V, E, H, D)
        assert taken(model(False, V, E, H, **plain), x, None, monkeypatch) == [False, False]
        assert taken(model(True, V, E, H, **plain), x, None, monkeypatch) == [True, True]
        choices.add(tuple(want))
    assert len(choices) == 3
    wide = model(None, 400, 80, 80, **plain)
    assert taken(wide, x, None, monkeypatch) == [True, True]
    assert taken(wide, np.arange(400).reshape(40, 10), None, monkeypatch) == [False, False]  # every token once
    assert taken(wide, x, np.full(10, 3, np.int32), monkeypatch) == [False, False]  # N 30
    assert taken(model(None, 400, 80, 80, input_dropout=0.1, **plain), x, None, monkeypatch) == [False, False]


def test_what_it_is_not_for_is_refused() -> None:
    rnn = fastrnn.RNN(7, 9)
    for given in ({}, {"embedding": Embedding(5, 7)}):
        one = fastrnn.RNN(7, 9, input_dropout=0.5) if given else rnn
        with pytest.raises(ValueError, match=r"^by_token: expected an embedding and an RNN on the CPU without"):
            SequenceModel(one, Linear(9, 2), by_token=True, **given)
        SequenceModel(one, Linear(9, 2), by_token=False, **given)
    with pytest.raises(TypeError, match=r"^by_token: expected bool, got int"):
        SequenceModel(rnn, Linear(9, 2), by_token=1)  # type: ignore[arg-type]
    for by_token in (True, None, False):
        one = model(by_token, V=5, E=40, H=40)
        with pytest.raises(ValueError, match=r"^tokens: expected values in 0..4, got 0..5"):
            one(np.arange(6)[:, None])
        with pytest.raises(TypeError, match=r"^tokens: expected an int32 or int64 array, got float64"):
            one.forward_train(np.ones((100, 2)))
        with pytest.raises(ValueError, match=r"^lengths: expected values in 0..T = 0..2, got 3"):
            one(np.zeros((2, 1), int), np.array([3]))
        with pytest.raises(ValueError, match=r"^lengths: expected None for one sequence"):
            one(np.zeros(2, int), np.array([2]))
        with pytest.raises(ValueError, match=r"^h_0: expected shape"):
            one.forward_train(np.zeros((2, 1), int), None, np.zeros((1, 2, 40)))
