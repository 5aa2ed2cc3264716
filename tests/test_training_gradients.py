"""fastrnn.training: every gradient equals its complex-step derivative, every optimizer PyTorch's, step for step."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import oracle

import fastrnn
from fastrnn import training
from fastrnn.training import Embedding, Linear, SequenceModel, _native, optimizers
from fastrnn.training.layers import POOLINGS, pool, sum_by_token

STEP = oracle.COMPLEX_STEP
Array = Any


def derivative(function: Callable[[Array], Any], at: Array) -> Array:
    """The gradient of a scalar function by complex steps, one an element."""
    result = np.zeros(at.shape)
    for where in np.ndindex(at.shape):
        shifted = at.astype(complex)
        shifted[where] += 1j * STEP
        result[where] = function(shifted).imag / STEP
    return result


def assert_close(got: Array, want: Array, bound: float, what: str = "") -> None:
    scale = max(float(np.abs(want).max(initial=0)), 1e-300)
    error = float(np.abs(got - want).max(initial=0)) / scale
    assert error <= bound, f"{what}: {error:.1e}"


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- Losses, written once more for complex logits


def softmax_nll(logits: Array, targets: Array, weights: Array) -> Any:
    w = weights[targets]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -(w * np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0])).sum() / w.sum()


def bernoulli_nll(logits: Array, targets: Array, weights: Array) -> Any:
    s = 1 / (1 + np.exp(-logits))
    return -(weights * targets * np.log(s) + (1 - targets) * (np.log(s) - logits)).sum() / logits.size


@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 2), (1, 1), (17, 9)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_losses_equal_formula_and_complex_step(shape: tuple[int, ...], weighted: bool, masked: bool) -> None:
    """Loss and gradient within 1e-14, relative to the largest element; masked positions take no part."""
    r, K = rng(len(shape) + weighted), shape[-1]
    logits, weights = 2 * r.standard_normal(shape), r.uniform(0.2, 3, K) if weighted else np.ones(K)
    mask = r.random(shape[:-1]) < 0.6
    mask.flat[0] = True
    kept = mask if masked else np.ones(shape[:-1], bool)
    classes, values, chances = r.integers(0, K, shape[:-1]), r.standard_normal(shape), r.random(shape)
    given = {"mask": mask} if masked else {}
    weigh = {"class_weights": weights} if weighted else {}
    classes_given = np.where(kept, classes, -7)  # what the mask drops may be anything
    for got, formula in (
        (
            training.softmax_cross_entropy(logits, classes_given, **given, **weigh),
            lambda z: softmax_nll(z, classes[kept], weights),
        ),
        (
            training.binary_cross_entropy(logits, chances, **given, **weigh),
            lambda z: bernoulli_nll(z, chances[kept], weights),
        ),
        (training.mean_squared_error(logits, values, **given), lambda z: ((z - values[kept]) ** 2).sum() / z.size),
    ):
        assert got[0] == pytest.approx(float(formula(logits[kept].astype(complex)).real), rel=1e-14)
        d = np.zeros(shape)
        d[kept] = derivative(formula, logits[kept])
        assert_close(got[1], d, 1e-14)


def test_losses_of_extreme_logits_are_finite() -> None:
    """No overflow: -log softmax of 1e30 apart is 1e30, of the larger 0; sigmoid alike."""
    logits = np.array([[1e30, -1e30], [0, 800.0]], np.float32)
    loss, d = training.softmax_cross_entropy(logits, np.array([1, 1]))
    assert loss == pytest.approx(1e30, rel=1e-6)
    assert np.isfinite(d).all()
    loss, d = training.binary_cross_entropy(logits, np.array([[1, 0], [0, 1.0]], np.float32))
    assert loss == pytest.approx(np.log(2) / 4, rel=1e-6)
    assert np.isfinite(d).all()


def test_losses_of_nothing_are_zero() -> None:
    nothing = np.zeros(3, bool)
    for loss, targets in (
        (training.softmax_cross_entropy, np.zeros(3, int)),
        (training.binary_cross_entropy, np.zeros((3, 2))),
        (training.mean_squared_error, np.zeros((3, 2))),
    ):
        value, d = loss(np.ones((3, 2)), targets, nothing)
        assert (value, np.abs(d).max()) == (0, 0)


Y = np.ones((3, 2))
softmax, bernoulli, squared = training.softmax_cross_entropy, training.binary_cross_entropy, training.mean_squared_error


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: softmax(Y, np.array([0, 1, 2])), ValueError, "targets: expected values in 0..K-1 = 0..1, got 0..2"),
        (lambda: softmax(Y, np.ones(3)), TypeError, "targets: expected integers, got float64"),
        (lambda: softmax(Y, np.ones(2, int)), ValueError, "targets: expected shape"),
        (lambda: softmax(Y, np.ones(3, int), class_weights=[1.0]), ValueError, "class_weights: expected 2 values"),
        (lambda: squared(Y.astype(int), Y), TypeError, "y: expected a float32 or float64 array, got int64"),
        (lambda: squared(Y, np.ones(3)), ValueError, "targets: expected shape"),
        (lambda: squared(Y, Y, np.ones(3)), TypeError, "mask: expected dtype bool"),
        (lambda: bernoulli(Y, Y + 1), ValueError, "targets: expected values in 0..1, got 2.0"),
        (lambda: Embedding(5, 2)(np.array([5])), ValueError, "tokens: expected values in 0..4, got 5..5"),
        (lambda: Embedding(5, 2)(np.array([-1])), ValueError, "tokens: expected values in 0..4, got -1"),
        (lambda: Embedding(5, 2)(np.array([1.0])), TypeError, "tokens: expected an int32 or int64 array, got float64"),
        (lambda: Linear(3, 2)(np.ones((4, 3))), TypeError, "x: expected dtype float32"),
        (lambda: Linear(3, 2)(np.ones((4, 2), np.float32)), ValueError, "x: expected shape"),
        (lambda: pool("sum", Y[None], Y[None], None), ValueError, "pool: expected one of"),
        (lambda: training.initialize(fastrnn.RNN(2, 2), "xavier"), ValueError, "scheme: expected one of"),
        (lambda: training.Adam(-1.0), ValueError, "rate: expected a number above 0"),
        (lambda: training.SGD(0.1, nesterov=True), ValueError, "nesterov: expected a momentum above 0"),
        (lambda: SequenceModel(fastrnn.RNN(2, 3), Linear(2, 2)), ValueError, "readout: expected input_size 3"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith(words)


# ---- Pooling


@pytest.mark.parametrize("kind", POOLINGS)
def test_pools_take_lengths_of_any_strides(kind: str) -> None:
    H = 10 if kind == "mean+max" else 5
    model = SequenceModel(fastrnn.RNN(3, 5, seed=0), Linear(H, 2, seed=0), pool=kind)
    x, lengths = rng(0).standard_normal((6, 4, 3)).astype(np.float32), np.array([3, 0, 6, 1])
    misaligned = np.empty(4 * 8 + 1, np.uint8)[1:].view(np.int64)
    misaligned[...] = lengths
    for given in (np.repeat(lengths, 2)[::2], lengths[::-1].copy()[::-1], misaligned, lengths.astype(np.int32)):
        np.testing.assert_array_equal(model(x, given), model(x, lengths))
        np.testing.assert_array_equal(model.forward_train(x, given)[0], model(x, lengths))
    np.testing.assert_array_equal(model(x, np.broadcast_to(np.int64(4), 4)), model(x, np.full(4, 4)))


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("directions", [1, 2])
def test_a_row_without_steps_pools_to_what_it_began_with_or_0(kind: str, directions: int) -> None:
    """ "last" gives the state of the top layer, and its gradient to h_0; the others, and it without h_0, 0."""
    rnn = fastrnn.RNN(3, 5, 2, bidirectional=directions == 2, seed=0)
    x, lengths = rng(0).standard_normal((4, 2, 3)).astype(np.float32), np.array([4, 0])
    h_0 = rng(1).standard_normal((2 * directions, 2, 5)).astype(np.float32)
    for start in (None, h_0):
        output, h_n, backward_rnn = rnn.forward_train(x, start, lengths)
        pooled, backward = pool(kind, output, h_n, lengths, directions)
        kept = kind == "last" and start is not None
        want = h_0[-directions:, 1].reshape(-1) if kept else np.zeros(pooled.shape[1])
        np.testing.assert_array_equal(pooled[1], want)
        d_x, d_h_0 = backward_rnn(*backward(np.ones_like(pooled)))
        assert not d_x[:, 1].any()
        assert (d_h_0[-directions:, 1] == (kind == "last")).all()


# ---- The whole model


def formula(model: SequenceModel, changed: dict[str, Array], x: Array, lengths: Array | None, c: Array) -> Any:
    """<c, y> of the model, plainly and in complex numbers; x are vectors, or tokens."""
    p = {**{name: array.astype(complex) for name, array in model.state_dict().items()}, **changed}
    T, B = x.shape[:2]
    steps = np.full(B, T) if lengths is None else lengths
    values, states = (p["embedding.weight"][x] if model.embedding is not None else x), []
    for layer in range(model.rnn.num_layers):
        halves = []
        for suffix in ("", "_reverse")[: 1 + model.rnn.bidirectional]:
            get = lambda name: p[f"rnn.{name}_l{layer}{suffix}"]  # noqa: B023, E731
            problem = SimpleNamespace(
                x=values, h_0=None, w_ih=get("weight_ih"), w_hh=get("weight_hh"), b_ih=get("bias_ih"),
                b_hh=get("bias_hh"), recurrent_mask=None, lengths=steps, reverse=bool(suffix), reset=None,
                keep_mask=None, alpha=None, nonlinearity=model.rnn.nonlinearity,
            )  # fmt: skip
            output, h_n = oracle.forward(problem, np.complex128)
            halves.append(output)
            states.append(h_n)
        values = np.concatenate(halves, axis=-1)
    if model.pool == "last":
        values = np.concatenate(states[-1 - model.rnn.bidirectional :], axis=-1)
    elif model.pool:
        mean = np.array([values[:n, b].sum(0) / max(n, 1) for b, n in enumerate(steps)])
        top = np.array([
            [values[values[:n, b, j].real.argmax(), b, j] if n else 0 for j in range(values.shape[-1])]
            for b, n in enumerate(steps)
        ])  # fmt: skip
        values = {"mean": mean, "max": top, "mean+max": np.concatenate([mean, top], axis=-1)}[model.pool]
    return (c * (values @ p["readout.weight"].T + p["readout.bias"])).sum()


@pytest.mark.parametrize("kind", [None, *POOLINGS])
@pytest.mark.parametrize(("tokens", "by_token"), [(False, None), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "ragged"), [(1, False, False), (1, True, True), (2, True, False), (2, False, True)]
)
def test_model_gradients_equal_complex_step(
    kind: str | None, tokens: bool, by_token: bool | None, layers: int, bidirectional: bool, ragged: bool
) -> None:
    """Every parameter's gradient, of every pooling, within 1e-13 of its largest element."""
    r, T, B, I, H, K = rng(layers), 5, 4, 3, 4, 2
    rnn = fastrnn.RNN(I, H, layers, bidirectional=bidirectional, dtype="float64", seed=1)
    width = H * (1 + bidirectional) * (2 if kind == "mean+max" else 1)
    embedding = Embedding(7, I, dtype="float64", scale=1.0, seed=2) if tokens else None
    readout = Linear(width, K, dtype="float64", seed=3)
    model = SequenceModel(rnn, readout, embedding=embedding, pool=kind, by_token=by_token)
    x = r.integers(0, 7, (T, B)) if tokens else r.standard_normal((T, B, I))
    lengths = np.array([5, 0, 3, 1]) if ragged else None
    y, _, backward = model.forward_train(x, lengths)
    np.testing.assert_array_equal(y, model(x, lengths))
    c = r.standard_normal(y.shape)
    assert (c * y).sum() == pytest.approx(formula(model, {}, x, lengths, c).real, rel=1e-12)
    backward(c)
    for name, got in model.grads.items():
        at = model.parameters[name]
        want = derivative(lambda value: formula(model, {name: value}, x, lengths, c), at)  # noqa: B023
        assert_close(got, want, 1e-13, name)
    model.zero_grad()
    assert not any(gradient.any() for gradient in model.grads.values())


@pytest.mark.parametrize("by_token", [False, True])
def test_dropout_gradients_are_those_of_the_masks_drawn(by_token: bool) -> None:
    """With the generator where it was, the same masks: central differences in the direction of the gradient."""
    rnn = fastrnn.RNN(3, 5, 2, dropout=0.4, dtype="float64", seed=1)
    model = SequenceModel(
        rnn, Linear(5, 2, dtype="float64", seed=2), embedding=Embedding(9, 3, dtype="float64", scale=1.0, seed=3),
        pool="max", dropout=0.5, token_dropout=0.3, by_token=by_token,
    )  # fmt: skip
    x, c = rng(1).integers(0, 9, (6, 4)), rng(2).standard_normal((4, 2))

    def loss() -> float:
        model.reseed(5)
        return float((c * model.forward_train(x)[0]).sum())

    model.reseed(5)
    model.forward_train(x)[2](c)
    grads = {name: gradient.copy() for name, gradient in model.grads.items()}
    start, h = model.state_dict(), 1e-6
    ends = []
    for sign in (1, -1):
        model.load_state_dict({name: array + sign * h * grads[name] for name, array in start.items()})
        ends.append(loss())
    squared = sum(float((gradient**2).sum()) for gradient in grads.values())
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(squared, rel=1e-6)


def test_dropout_drops_as_many_as_asked_and_keeps_the_mean() -> None:
    mask = training.layers.draw_mask((200, 500), 0.3, np.float32, rng(0))
    assert mask.dtype == np.float32
    assert abs((mask == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / mask.size)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.7)}
    assert not training.layers.draw_mask((3,), 1.0, np.float32, rng(0)).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_embedding_gradient_equals_the_plain_sum(dtype: str) -> None:
    """In C++ the same bits as adding row by row, in order, on any number of threads; in NumPy within rounding."""
    N, V = 40_000, 157  # more tokens than one task has
    tokens, d_x = rng(0).zipf(1.3, N) % V, rng(1).standard_normal((N, 5)).astype(dtype)
    want, magnitude = np.zeros((V, 5), dtype), np.zeros((V, 5), dtype)
    np.add.at(want, tokens, d_x)
    np.add.at(magnitude, tokens, np.abs(d_x))
    for threads in (1, 2, 3):
        with fastrnn.threads(threads):
            rows, sums = sum_by_token(tokens, d_x, V)
        assert rows.tolist() == sorted(set(tokens.tolist()))
        bound = 0 if _native.native() else N * np.finfo(dtype).eps * magnitude[rows]
        assert (np.abs(sums - want[rows]) <= bound).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_native_sums_start_from_zero(dtype: str) -> None:
    """Whatever was there; a segment without rows is 0."""
    if (module := _native.native()) is None:
        pytest.skip("no native module")
    sums, rows = np.full((3, 2), np.nan, dtype), np.arange(8, dtype=dtype).reshape(4, 2)
    module.sum_segments(sums, rows, np.array([3, 0]), np.array([0, 1, 1, 2]), 1)
    np.testing.assert_array_equal(sums, np.array([[6, 7], [0, 0], [0, 1]], dtype))


def without_native(monkeypatch: Any) -> None:
    monkeypatch.setattr(_native, "native", lambda: None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "options"), [("Adam", {}), ("Adam", {"weight_decay": 0.1}), ("AdamW", {})])
def test_native_adam_gives_the_bits_of_python(dtype: str, kind: str, options: Any, monkeypatch: Any) -> None:
    """Also on several threads; non-contiguous parameters take the NumPy path and agree."""
    grads = [{"a": rng(i).standard_normal(150_001).astype(dtype)} for i in range(6)]

    def run(threads: int, stride: int = 1) -> Array:
        p = np.linspace(-1, 1, 150_001 * stride).astype(dtype)[::stride]
        optimizer = getattr(training, kind)(0.01, **options)
        with fastrnn.threads(threads):
            for grad in grads:
                optimizer.step({"a": p}, grad)
        return p

    found, strided = [run(threads) for threads in (1, 2, 3)], run(1, stride=2)
    without_native(monkeypatch)
    for one in found:
        np.testing.assert_array_equal(one, run(1))
    np.testing.assert_array_equal(strided, run(1, stride=2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("T", [0, 1, 2, 33, 400])
def test_native_maximum_gives_the_bits_of_python(dtype: str, T: int, monkeypatch: Any) -> None:
    """The first of equals, NaN above all, 0 for a row without steps."""
    x, lengths = rng(T).integers(-3, 3, (T, 17, 31)).astype(dtype), rng(1).integers(0, T + 1, 17)
    if T > 2:
        x[2, 3, 4] = x[30 % T, 3, 5] = np.nan
    top, at = _native.max_over_time(x, lengths)
    without_native(monkeypatch)
    for got, want in zip((top, at), _native.max_over_time(x, lengths), strict=True):
        np.testing.assert_array_equal(got, want)


def test_native_functions_refuse_wrong_arrays() -> None:
    """What could reach memory outside an array raises."""
    module = _native.native()
    if module is None:
        pytest.skip("no native module")
    a, i = np.zeros(4), np.arange(2)
    for call in (
        lambda: module.adam(a, a, a, a[:3].copy(), 0.9, 0.9, 1, 1, 1, 0, 1, 1),
        lambda: module.adam(a, a.astype("f"), a, a, 0.9, 0.9, 1, 1, 1, 0, 1, 1),
        lambda: module.adam(a[::2], a[::2], a[::2], a[::2], 0.9, 0.9, 1, 1, 1, 0, 1, 1),
        lambda: module.sum_segments(np.zeros((1, 2)), np.zeros((2, 2)), np.array([0, 2]), np.array([0, 2]), 1),
        lambda: module.sum_segments(np.zeros((1, 2)), np.zeros((2, 2)), i, np.array([0, 3]), 1),
        lambda: module.sum_segments(np.zeros((2, 2)), np.zeros((2, 2)), i, np.array([0, 3, 2]), 1),
        lambda: module.sum_segments(np.zeros((1, 2)), np.zeros((2, 3)), i, np.array([0, 2]), 1),
        lambda: module.max_over_time(np.zeros((2, 3)), np.zeros((2, 3), int), np.zeros((4, 2, 3)), np.array([5, 1]), 1),
        lambda: module.max_over_time(np.zeros((2, 2)), np.zeros((2, 3), int), np.zeros((4, 2, 3)), np.array([4, 1]), 1),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()


@pytest.mark.parametrize("by_token", [False, True])
def test_frozen_embedding_is_no_parameter(by_token: bool) -> None:
    embedding = Embedding(5, 3, trainable=False, seed=0)
    model = SequenceModel(fastrnn.RNN(3, 4), Linear(4, 2), embedding=embedding, pool="last", by_token=by_token)
    assert not any(name.startswith("embedding") for name in model.parameters)
    assert "embedding.weight" in model.state_dict()
    model.forward_train(np.zeros((2, 3), int))[2](np.ones((3, 2), np.float32))
    assert not embedding.grads["weight"].any()


# ---- Optimizers


def torch_of(kind: str, tensors: list[Any], options: dict[str, Any]) -> Any:
    import torch

    return getattr(torch.optim, kind)(tensors, **options)


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.7, "weight_decay": 0.05}),
    ("Adam", {}),
    ("Adam", {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.3}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_optimizers_equal_torch_step_for_step(kind: str, options: dict[str, Any]) -> None:
    """Float64, 30 steps, rates that change: each parameter within 1e-13 of torch.optim's at every step."""
    torch = pytest.importorskip("torch")
    r = rng(3)
    shapes = {"a": (7, 3), "b": (5,), "large": (40_001,)}
    parameters = {name: r.standard_normal(shape) for name, shape in shapes.items()}
    tensors = {name: torch.tensor(p, requires_grad=True) for name, p in parameters.items()}
    ours = getattr(training, kind)(rate=0.01, **options)
    theirs = torch_of(kind, list(tensors.values()), {"lr": 0.01, **options})
    for step in range(30):
        factor = 1 + step % 3
        grads = {name: r.standard_normal(shape) * 10.0 ** r.integers(-3, 3) for name, shape in shapes.items()}
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name])
        theirs.param_groups[0]["lr"] = 0.01 * factor
        theirs.step()
        ours.step(parameters, grads, factor)
        for name, tensor in tensors.items():
            assert_close(parameters[name], tensor.detach().numpy(), 1e-13, f"{name}, step {step}")


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_optimizers_saved_go_on_with_the_same_bits(kind: str, options: dict[str, Any]) -> None:
    r = rng(4)
    grads = [{"a": r.standard_normal((9, 2)).astype(np.float32)} for _ in range(8)]

    def run(save_at: int | None) -> Array:
        p, optimizer = {"a": np.ones((9, 2), np.float32)}, getattr(training, kind)(0.1, **options)
        for step, found in enumerate(grads):
            if step == save_at:
                state = optimizer.state_dict()
                optimizer = getattr(training, kind)(0.1, **options)
                optimizer.load_state_dict(state)
            optimizer.step(p, found)
        return p["a"]

    np.testing.assert_array_equal(run(None), run(5))


def test_optimizers_refuse_another_ones_state() -> None:
    optimizer = training.Adam()
    optimizer.step({"a": np.ones(2)}, {"a": np.ones(2)})
    with pytest.raises(ValueError, match=r"state_dict: expected \['square'\] for a, got \['mean', 'square'\]"):
        training.RMSprop().load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"grads\['a'\]: expected float64 \(2,\), got float32 \(2,\)"):
        optimizer.step({"a": np.ones(2)}, {"a": np.ones(2, np.float32)})


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    """The steps are counted, the slots are this optimizer's, the arrays of their parameters' shapes and dtypes."""
    optimizer, p, g = (
        training.Adam(0.1),
        {"a": np.ones((3, 3)), "b": np.ones(2)},
        {"a": np.ones((3, 3)), "b": np.ones(2)},
    )
    optimizer.step(p, g)
    good, gradient_descent = optimizer.state_dict(), training.SGD(0.1)
    gradient_descent.step(p, g)
    gradient_descent.step(p, g)
    for bad, words in (
        (gradient_descent.state_dict(), "state_dict: expected ['mean', 'square'] for each parameter, got none after 2"),
        ({name: array for name, array in good.items() if name != "steps"}, "state_dict: expected 'steps', a number"),
        ({**good, "steps": np.array(-1)}, "state_dict: expected 'steps', a number of steps, got array(-1)"),
        ({**good, "steps": np.array([1, 2])}, "state_dict: expected 'steps', a number of steps, got array([1, 2])"),
        ({**good, "a/mean": np.ones(9), "steps": 1.5}, "state_dict: expected 'steps', a number of steps, got 1.5"),
        ({**good, "c/velocity": np.ones(9)}, "state_dict: expected ['mean', 'square'] for c, got ['velocity']"),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            optimizer.load_state_dict(bad)
        assert str(error.value).startswith(words)
        for name, array in optimizer.state_dict().items():
            np.testing.assert_array_equal(array, good[name])
    before = {name: array.copy() for name, array in p.items()}
    for slot, wrong, got in (("mean", np.ones(9), "float64 (9,)"), ("square", np.ones((3, 3), "f"), "float32 (3, 3)")):
        optimizer.load_state_dict({**good, f"a/{slot}": wrong})
        with pytest.raises(ValueError) as error:  # noqa: PT011
            optimizer.step({"b": p["b"], "a": p["a"]}, g)
        assert str(error.value) == f"state['a']['{slot}']: expected float64 (3, 3), got {got}"
        assert optimizer.steps == 1
        for name, array in p.items():
            np.testing.assert_array_equal(array, before[name])
    training.Adam().load_state_dict(training.Adam().state_dict())
    training.SGD(0.1).load_state_dict(gradient_descent.state_dict())


def test_the_norm_of_huge_gradients_is_finite() -> None:
    """Where the sum of squares overflows the norm is still right, and clips; of what is not finite it is not."""
    for dtype, size in (("float32", 1e20), ("float64", 1e200)):
        grads = {"a": np.full(4, size, dtype), "b": np.zeros((0, 3), dtype), "c": np.array([-1.0], dtype)}
        assert training.clip_by_global_norm(grads, 1.0) == pytest.approx(2 * size, rel=1e-6)
        np.testing.assert_allclose(grads["a"], 0.5, rtol=1e-6)
        for bad in (np.nan, np.inf):
            grads = {"a": np.array([bad], dtype), "b": np.array([size], dtype)}
            assert not np.isfinite(training.clip_by_global_norm(grads, 1.0))
            assert grads["b"][0] == grads["b"].dtype.type(size)


def test_clipping_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    for limit in (0.5, 1e6):
        grads = {"a": rng(0).standard_normal((30, 7)), "b": rng(1).standard_normal(9)}
        tensors = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads.values()]
        for tensor, g in zip(tensors, grads.values(), strict=True):
            tensor.grad = torch.tensor(g)
        want = float(torch.nn.utils.clip_grad_norm_(tensors, limit))
        assert training.clip_by_global_norm(grads, limit) == pytest.approx(want, rel=1e-14)
        for tensor, g in zip(tensors, grads.values(), strict=True):
            assert_close(g, tensor.grad.numpy(), 1e-5)  # torch divides by the norm + 1e-6
    training.clip_by_value(grads, 0.3)
    assert max(np.abs(g).max() for g in grads.values()) == 0.3
    broken = {"a": np.array([np.nan, 1.0])}
    assert np.isnan(training.clip_by_global_norm(broken, 1.0))
    assert broken["a"][1] == 1


def test_schedules() -> None:
    o = optimizers
    for schedule, values in (
        (o.constant, (1, 1, 1)),
        (o.linear, (1, 0.5, 0)),
        (o.cosine, (1, 0.5, 0)),
        (o.exponential(0.01), (1, 0.1, 0.01)),
        (o.steps({0.5: 0.1, 0.9: 0.01}), (1, 0.1, 0.01)),
        (o.warm_up(0.5, o.linear), (0, 1, 0)),
        (o.warm_up(0.0), (1, 1, 1)),
    ):
        assert [schedule(at) for at in (0.0, 0.5, 1.0)] == pytest.approx(values, abs=1e-15)


# ---- Initial values


@pytest.mark.parametrize("H", [1, 2, 17, 64])
def test_initial_values(H: int) -> None:
    rnn = fastrnn.RNN(9, H, 2, bidirectional=True, dtype="float64", seed=0)
    for scheme in ("uniform", "glorot", "orthogonal", "identity"):
        training.initialize(rnn, scheme, gain=0.5, seed=1)
        first = rnn.state_dict()
        training.initialize(rnn, scheme, gain=0.5, seed=1)
        for name, array in rnn.parameters.items():
            np.testing.assert_array_equal(array, first[name])
            if name.startswith("weight_hh"):
                product = array @ array.T * 4
                if scheme in ("orthogonal", "identity"):
                    np.testing.assert_allclose(product, np.eye(H), atol=1e-14)
                if scheme == "glorot":
                    assert np.abs(array).max() <= 0.5 * np.sqrt(3 / H)
            elif name.startswith("bias") and scheme != "uniform":
                assert not array.any()
            elif scheme == "uniform":
                assert 0 < np.abs(array).max() <= H**-0.5


@pytest.mark.parametrize("scheme", ["uniform", "glorot", "orthogonal", "identity"])
@pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.RNNCell])
def test_initial_values_leave_alpha(scheme: str, kind: Any) -> None:
    """The others are those of a layer whose units do not leak."""
    alpha = np.linspace(0.1, 1, 6).astype(np.float32)
    leaky, plain = kind(4, 6, alpha=alpha, train_alpha=True), kind(4, 6)
    for one in (leaky, plain):
        training.initialize(one, scheme, seed=1)
    np.testing.assert_array_equal(leaky.parameters["alpha"], alpha)
    for name, array in plain.parameters.items():
        np.testing.assert_array_equal(leaky.parameters[name], array)


def test_initial_values_that_cannot_be_written_change_nothing() -> None:
    rnn = fastrnn.RNN(4, 6, seed=0)
    before = rnn.state_dict()
    rnn.parameters["bias_hh_l0"].flags.writeable = False
    with pytest.raises(ValueError, match="bias_hh_l0: expected a writable parameter, got a read-only one"):
        training.initialize(rnn, "orthogonal", seed=1)
    for name, array in rnn.parameters.items():
        np.testing.assert_array_equal(array, before[name])
