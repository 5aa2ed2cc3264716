"""fastrnn.training on CuPy arrays, through the stand-in for CuPy (tests/helpers/fake_cupy), held against the CPU: the
same bits where the operations are the same, else within 1e-12 of the largest element in float64.

What this cannot see: CuPy's own functions, cuBLAS, speed.
"""

from __future__ import annotations

import pytest
from helpers.cuda_on_host import COMPILER
from helpers.cupy_process import run

pytest.importorskip("safetensors")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

COMMON = """
import functools, itertools
from fastrnn import training
from fastrnn.training import (Adam, AdamW, Embedding, Linear, RMSprop, SequenceModel, Sequences, SGD, accuracy, fit,
                              predict, softmax_cross_entropy)
from fastrnn.training.layers import POOLINGS, pool
rng = np.random.default_rng
SIZES = (1, 3, 7, 17, 33)
def host(value):
    assert type(value) is cupy.ndarray, type(value)
    return value.get()
def same(got, want, *what):
    got = host(got)
    assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, want.dtype, got.shape, want.shape, *what)
    assert np.array_equal(got, want, equal_nan=True), (np.abs(got - want).max(), *what)
def close(got, want, *what):
    got = host(got)
    assert got.dtype == want.dtype and got.shape == want.shape, what
    assert np.abs(got - want).max(initial=0) <= 1e-12 * np.abs(want).max(initial=0), (np.abs(got - want).max(), *what)
"""

MODELS = """
def model(device, pool="mean+max", tokens=True, directions=2, dtype="float64", seed=1, dropout=0.4):
    where = {"dtype": dtype, "device": device}
    backend = "numpy" if device == "cpu" else "auto"
    rnn = fastrnn.RNN(3, 7, 2, bidirectional=directions == 2, dropout=dropout / 2, backend=backend, seed=seed, **where)
    width = 7 * directions * (2 if pool == "mean+max" else 1)
    embedding = Embedding(11, 3, scale=1.0, seed=seed + 1, **where) if tokens else None
    by_token = False if device == "cpu" else None
    return SequenceModel(rnn, Linear(width, 2, seed=seed + 2, **where), embedding=embedding, pool=pool,
                         dropout=dropout, token_dropout=dropout / 2, by_token=by_token, seed=5)
def task(N=33, seed=0):
    r = rng(seed)
    rows = [r.integers(0, 11, r.integers(1, 8)) for _ in range(N)]
    return Sequences(rows, np.array([int((row > 5).sum() > 1) for row in rows]))
def stepwise(N=7, seed=0):
    r = rng(seed)
    rows = [r.standard_normal((n, 3)) for n in r.integers(1, 18, N)]
    return Sequences(rows, [(row.sum(1) > 0).astype(int) for row in rows], every_step=True)
def state(one):
    return {name: array if type(array) is np.ndarray else host(array) for name, array in one.state_dict().items()}
def assert_state(got, want, bound=1e-12):
    got, want = state(got), state(want)
    for name in want:
        assert np.abs(got[name] - want[name]).max() <= bound * np.abs(want[name]).max(), name
def columns(history):
    for record in history.records:
        assert all(type(value) in (int, float) for value in record.values()), record
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]
def assert_history(got, want):
    assert got.best == want.best and len(got) == len(want) > 0
    for a, b in zip(columns(got), columns(want)):
        assert a.keys() == b.keys()
        assert all(abs(a[k] - b[k]) <= 1e-12 * abs(b[k]) for k in b), (a, b)
class StopError(Exception):
    pass
def failing_at(call, count=itertools.count):
    calls = count(1)
    @functools.wraps(softmax_cross_entropy)  # a checkpoint knows a loss by its name
    def loss(*arguments):
        if next(calls) == call:
            raise StopError
        return softmax_cross_entropy(*arguments)
    return loss
"""


def fine(code: str, **environment: str) -> None:
    assert run(COMMON + code + "\nprint('fine')\n", **environment).splitlines()[-1] == "fine"


# ---- Losses


def test_losses_give_the_bits_of_the_cpu() -> None:
    """Value, a float, and gradient, on the device, of random shapes and layouts, with and without a mask, with class
    weights of the host or the device. Each waits for the device once, binary_cross_entropy with a mask twice."""
    fine("""
r = rng(0)
for trial in range(200):
    shape, K, dtype = tuple(r.choice(SIZES, r.integers(1, 3))), int(r.choice(SIZES)), ["float32", "float64"][trial % 2]
    y, mask = 3 * r.standard_normal((*shape, K)).astype(dtype), r.random(shape) < 0.6
    classes, chances, values = r.integers(0, K, shape), r.random(y.shape), r.standard_normal(y.shape)
    if trial % 3 == 0:
        mask[...] = False
    if trial % 5 == 0:
        classes, values = np.asfortranarray(classes), np.asfortranarray(values)
    for masked, weighted in itertools.product((False, True), (None, "list", "numpy", "cupy")):
        given = np.where(mask, classes, -7) if masked else classes  # what the mask drops may be anything
        for name, targets in (("softmax", given), ("binary", chances), ("squared", values)):
            loss = {"softmax": softmax_cross_entropy, "binary": training.binary_cross_entropy,
                    "squared": training.mean_squared_error}[name]
            arguments, there = {}, {}
            if masked:
                arguments["mask"], there["mask"] = mask, on_gpu(mask)
            if weighted and name != "squared":
                weights = rng(trial).uniform(0.2, 3, K)
                arguments["class_weights"] = weights
                there["class_weights"] = {"list": weights.tolist(), "numpy": weights, "cupy": on_gpu(weights)}[weighted]
            want = loss(y, targets, **arguments)
            before = cupy.cuda.waits
            got = loss(on_gpu(y), on_gpu(targets), **there)
            waits = cupy.cuda.waits - before
            assert type(got[0]) is float and got[0] == want[0], (name, shape, K, masked, weighted)
            same(got[1], want[1], name)
            expected = 1 + (name == "binary" and masked) + (weighted == "cupy" and name != "squared")
            assert waits == expected, (name, waits, expected)
logits = np.array([[1e30, -1e30], [0, 800.0]], np.float32)
for loss, targets in ((softmax_cross_entropy, np.array([1, 1])),
                      (training.binary_cross_entropy, np.array([[1, 0], [0, 1]], np.float32))):
    got, want = loss(on_gpu(logits), on_gpu(targets)), loss(logits, targets)
    assert got[0] == want[0]
    same(got[1], want[1])
""")


def test_losses_name_what_is_wrong() -> None:
    """The kinds of arrays, one by one; values of targets are looked at on the device, where CuPy itself would not."""
    code = """
y, t = np.ones((3, 2)), np.array([0, 1, 1])
softmax, bernoulli, squared = softmax_cross_entropy, training.binary_cross_entropy, training.mean_squared_error
for kind, loss, arguments in (
    (TypeError, softmax, (on_gpu(y), t)), (TypeError, softmax, (y, on_gpu(t))), (TypeError, squared, (on_gpu(y), y)),
    (TypeError, squared, (y, on_gpu(y))), (TypeError, bernoulli, (on_gpu(y), y)),
    (TypeError, softmax, (on_gpu(y), [0, 1, 1])), (TypeError, softmax, (on_gpu(y), on_gpu(t), t > 0)),
    (TypeError, softmax, (y, t, on_gpu(t > 0))),
    (TypeError, softmax, (y, t, None, on_gpu(y[0]))), (TypeError, softmax, (on_gpu(y), cupy.ndarray(t, 1))),
    (TypeError, softmax, (on_gpu(y), on_gpu(y[:, 0]))), (TypeError, squared, (on_gpu(t), on_gpu(t))),
    (ValueError, softmax, (on_gpu(y), on_gpu(t + 1))), (ValueError, softmax, (on_gpu(y), on_gpu(t - 1))),
    (ValueError, softmax, (on_gpu(y), on_gpu(t + 1), on_gpu(t > 0))),
    (ValueError, softmax, (on_gpu(y), on_gpu(t), None, [1.0])), (ValueError, bernoulli, (on_gpu(y), on_gpu(y + 1))),
    (ValueError, squared, (on_gpu(y), on_gpu(t))),
):
    print(message(kind, loss, *arguments))
softmax(on_gpu(y), on_gpu(t + 1), on_gpu(t == 0))
print(message(ValueError, bernoulli, on_gpu(y), on_gpu(y + 1), on_gpu(t > 0)))
bernoulli(on_gpu(y), on_gpu(y + [[0], [1], [1]]), on_gpu(t == 0))
"""
    here, numpy = "expected cupy.ndarray on cuda:0, got", "expected numpy.ndarray"
    assert run(COMMON + code).splitlines() == [
        f"targets: {here} numpy.ndarray",
        f"targets: {numpy}, got cupy.ndarray",
        f"targets: {here} numpy.ndarray",
        f"targets: {numpy}, got cupy.ndarray",
        f"targets: {here} numpy.ndarray",
        f"targets: {here} list",
        f"mask: {here} numpy.ndarray",
        f"mask: {numpy} or a torch.Tensor on the CPU, got cupy.ndarray",
        f"class_weights: {numpy}, got cupy.ndarray",
        "targets: expected an array on cuda:0, got one on cuda:1",
        "targets: expected integers, got float64",
        "y: expected a float32 or float64 array, got int64",
        "targets: expected values in 0..K-1 = 0..1, got 1..2",
        "targets: expected values in 0..K-1 = 0..1, got -1..0",
        "targets: expected values in 0..K-1 = 0..1, got 0..2",
        "class_weights: expected 2 values of at least 0, got [1.0]",
        "targets: expected values in 0..1, got 2.0",
        "targets: expected shape (3, 2), got (3,)",
        "targets: expected values in 0..1, got 2.0",
    ]


# ---- Pooling, clipping, optimizers


def test_poolings_give_the_bits_of_the_cpu() -> None:
    """Values and both gradients, of every pooling, with rows of every length, 0 too, ties and NaN; lengths of the host
    or the device."""
    fine("""
r = rng(1)
for trial in range(120):
    (T, B, H), D = (int(n) for n in r.choice(SIZES, 3)), 1 + trial % 2
    T = 0 if trial % 20 == 0 else T
    output = r.integers(-3, 3, (T, B, D * H)).astype(["float32", "float64"][trial // 2 % 2])
    lengths = None if trial % 3 == 0 else r.integers(0, T + 1, B)
    for b in range(B if lengths is not None and trial % 2 else 0):  # else nobody may look there
        output[lengths[b]:, b] = 0
    h_n = r.standard_normal((2 * D, B, H)).astype(output.dtype)
    if trial % 7 == 0 and T > 1:
        output[T // 2, 0, 0] = np.nan
    for kind in POOLINGS:
        want, backward = pool(kind, output, h_n, lengths, D)
        d = r.standard_normal(want.shape).astype(want.dtype)
        for steps in (lengths, on_gpu(lengths)):
            got, backward_there = pool(kind, on_gpu(output), on_gpu(h_n), steps, D)
            same(got, want, kind)
            for a, b in zip(backward_there(on_gpu(d)), backward(d)):
                assert (a is None) == (b is None)
                if b is not None:
                    same(a, b, kind)
                    assert kind != "max" or lengths is None or not (b[:, lengths == 0] != 0).any()
    assert "expected cupy.ndarray on cuda:0, got numpy" in message(TypeError, backward_there, d)
for arguments in ((on_gpu(output), h_n, None), (output, on_gpu(h_n), None), (output, h_n, on_gpu(np.zeros(B, int)))):
    name = "lengths" if arguments[2] is not None else "h_n"
    assert message(TypeError, pool, "mean", *arguments).startswith(f"{name}: expected ")
""")


def test_optimizers_give_the_bits_of_the_cpu() -> None:
    """Each with each option, 9 steps of changing rates, in both dtypes, of small and large parameters; state of one
    device goes on, on the other, with the same bits; a gradient of the other kind is named."""
    fine("""
kinds = [(SGD, {}), (SGD, {"momentum": 0.9}), (SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
         (RMSprop, {}), (RMSprop, {"alpha": 0.9, "momentum": 0.7, "weight_decay": 0.05}), (Adam, {}),
         (Adam, {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}), (AdamW, {}), (AdamW, {"weight_decay": 0.3})]
for (kind, options), dtype in itertools.product(kinds, ("float32", "float64")):
    r = rng(3)
    plain = {"a": r.standard_normal((7, 3)).astype(dtype), "large": r.standard_normal(17_001).astype(dtype)}
    there = {name: on_gpu(p) for name, p in plain.items()}
    ours, theirs = kind(0.01, **options), kind(0.01, **options)
    for step in range(9):
        grads = {name: r.standard_normal(p.shape).astype(dtype) for name, p in plain.items()}
        if step in (3, 6):  # the states cross over; copies, so that neither sees the other's steps
            states = ours.state_dict(), theirs.state_dict()
            assert all(type(a) is cupy.ndarray for name, a in states[0].items() if name != "steps")
            ours, theirs = kind(0.01, **options), kind(0.01, **options)
            ours.load_state_dict(states[1])
            theirs.load_state_dict(states[0])
        ours.step(there, {name: on_gpu(g) for name, g in grads.items()}, 1 + step % 3)
        theirs.step(plain, grads, 1 + step % 3)
        for name in plain:
            same(there[name], plain[name], kind, options, step)
    assert message(TypeError, ours.step, there, grads) == (
        "grads['a']: expected cupy.ndarray on cuda:0, got numpy.ndarray")
    assert message(TypeError, theirs.step, plain, there) == "grads['a']: expected numpy.ndarray, got cupy.ndarray"
""")


def test_clipping_gives_the_bits_of_the_cpu() -> None:
    """The norm, waited for once whatever the number of gradients; what is not finite scales nothing."""
    fine("""
for dtype, limit in itertools.product(("float32", "float64"), (0.5, 1e6)):
    plain = {name: rng(len(name)).standard_normal(n).astype(dtype) for name, n in (("a", (17, 7)), ("bb", 33))}
    there = {name: on_gpu(g) for name, g in plain.items()}
    before = cupy.cuda.waits
    assert training.clip_by_global_norm(there, limit) == training.clip_by_global_norm(plain, limit)
    assert cupy.cuda.waits == before + 1
    assert training.optimizers.global_norm(plain) <= limit * (1 + 1e-6)
    for name in plain:
        same(there[name], plain[name])
    training.clip_by_value(there, 0.03)
    training.clip_by_value(plain, 0.03)
    for name in plain:
        same(there[name], plain[name])
        assert np.abs(plain[name]).max() == plain[name].dtype.type(0.03)
broken = {"a": on_gpu(np.array([np.nan, 1.0]))}
assert np.isnan(training.clip_by_global_norm(broken, 1.0)) and broken["a"].get()[1] == 1
plain = {"a": np.array([3e20, 0, -4e20], np.float32), "b": np.zeros((0, 2), np.float32)}
there = {name: on_gpu(g) for name, g in plain.items()}
assert training.clip_by_global_norm(there, 1.0) == training.clip_by_global_norm(plain, 1.0) < np.inf
same(there["a"], plain["a"])
""")


# ---- Linear, Embedding


def test_linear_gives_the_bits_of_the_cpu() -> None:
    """Values drawn, outputs, gradients, a second backward added, of 1, 2 and 3 axes, without rows too; state_dicts move
    both ways; copies go on alone."""
    fine("""
import copy, pickle
r = rng(0)
for trial in range(40):
    (I, K), bias, dtype = (int(n) for n in r.choice(SIZES, 2)), trial % 3 > 0, ["float32", "float64"][trial % 2]
    options = {"bias": bias, "dtype": dtype, "seed": trial}
    plain, there = Linear(I, K, **options), Linear(I, K, device="cuda", **options)
    assert (plain.device, there.device) == ("cpu", "cuda")
    if trial == 0:
        there = pickle.loads(pickle.dumps(copy.deepcopy(there)))
    shape = tuple(r.choice((0, *SIZES) if trial % 4 == 0 else SIZES, trial % 3))
    x = r.standard_normal((*shape, I)).astype(dtype)
    same(there(on_gpu(x)), plain(x))
    for _ in range(2):
        (y, backward), (want, backward_plain) = there.forward_train(on_gpu(x)), plain.forward_train(x)
        same(y, want)
        d_y = r.standard_normal(y.shape).astype(dtype)
        same(backward(on_gpu(d_y)), backward_plain(d_y))
    for name in plain.parameters:
        same(there.parameters[name], plain.parameters[name])
        same(there.grads[name], plain.grads[name])
    there.zero_grad()
    assert not any(host(g).any() for g in there.grads.values())
    other = Linear(I, K, bias, dtype=dtype, device="cuda", seed=99)
    other.load_state_dict(plain.state_dict())
    same(other(on_gpu(x)), plain(x))
    plain.load_state_dict(Linear(I, K, **{**options, "seed": 98}, device="cuda").state_dict())
""")


@needs_compiler
def test_embedding_gives_the_bits_of_adding_row_by_row() -> None:
    """Values drawn, vectors, and gradients of few, many and repeated tokens of both dtypes, each token's rows added in
    order; only rows that were written are cleared; tokens that are not trained."""
    fine("""
r = rng(0)
for trial in range(40):
    V, E, dtype = int(r.choice((*SIZES, 70_000))), int(r.choice(SIZES)), ["float32", "float64"][trial % 2]
    options = {"dtype": dtype, "scale": 0.5, "seed": trial}
    plain, there = Embedding(V, E, **options), Embedding(V, E, device="cuda", **options)
    same(there.parameters["weight"], plain.parameters["weight"])
    want = np.zeros((V, E), dtype)
    for _ in range(2):
        shape = tuple(r.choice(SIZES, 1 + trial % 3 % 2)) if trial else (33, 700)
        tokens = np.asarray(r.zipf(1.3, shape) % V, ["int32", "int64"][trial // 2 % 2])
        (x, backward), d_x = there.forward_train(on_gpu(tokens)), r.standard_normal((*shape, E)).astype(dtype)
        same(x, plain(tokens))
        same(there(on_gpu(tokens)), plain(tokens))
        backward(cupy.ndarray(d_x.swapaxes(0, -1).copy().swapaxes(0, -1)))
        sums = np.zeros_like(want)
        np.add.at(sums, tokens, d_x)
        want += sums
        same(there.grads["weight"], want)
    there.zero_grad()
    assert not host(there.grads["weight"]).any()
fixed = Embedding(5, 3, trainable=False, device="cuda")
fixed.forward_train(on_gpu(np.array([1, 2])))[1](cupy.zeros((2, 3), "float32"))
fixed.forward_train(on_gpu(np.zeros((0, 2), int)))[1](cupy.zeros((0, 2, 3), "float32"))
assert not host(fixed.grads["weight"]).any()
""")


def test_wrong_arrays_devices_and_tokens_are_named() -> None:
    """CuPy itself would take a token beyond the table modulo its size."""
    code = """
embedding, plain, t = Embedding(5, 2, device="cuda"), Embedding(5, 2), np.array([0, 4])
linear, x = Linear(3, 2, device="cuda"), np.ones((4, 3), np.float32)
d = linear.forward_train(on_gpu(x))[1]
rnn, on_cpu = fastrnn.RNN(2, 3, device="cuda"), fastrnn.RNN(2, 3)
for kind, call, arguments in (
    (TypeError, embedding, (t,)), (TypeError, plain, (on_gpu(t),)), (TypeError, embedding, (on_gpu(t * 1.0),)),
    (ValueError, embedding, (on_gpu(t + 1),)), (ValueError, embedding.forward_train, (on_gpu(t - 1),)),
    (TypeError, linear, (x,)), (TypeError, Linear(3, 2), (on_gpu(x),)), (TypeError, d, (x[:, :2],)),
    (TypeError, linear, (cupy.ndarray(x, 1),)), (ValueError, linear, (on_gpu(x[:, :2]),)),
    (TypeError, embedding.forward_train(on_gpu(t))[1], (x,)),
    (TypeError, SequenceModel(on_cpu, Linear(3, 2), embedding=plain), (on_gpu(t[:, None]),)),
    (TypeError, SequenceModel(rnn, Linear(3, 2, device="cuda"), token_dropout=0.5).forward_train, (x[:, None, :2],)),
    (ValueError, SequenceModel, (rnn, Linear(3, 2))),
    (ValueError, SequenceModel, (on_cpu, Linear(3, 2, device="cuda"))), (TypeError, Sequences, (on_gpu(x), x[0])),
    (TypeError, Sequences, (x[:, :2], on_gpu(t))),
):
    print(message(kind, call, *arguments))
print(message(ValueError, SequenceModel, rnn, Linear(3, 2, device="cuda"), embedding=plain))
print(message(ValueError, Linear, 3, 2, device="cuda:0"))
print(message(ValueError, Embedding, 3, 2, device="gpu"))
print(message(ValueError, SequenceModel, rnn, Linear(3, 2, device="cuda"), embedding=embedding, by_token=True))
with cupy.cuda.Device(1):
    print(message(ValueError, SequenceModel, rnn, Linear(3, 2, device="cuda")))
"""
    here, numpy = "expected cupy.ndarray on cuda:0, got", "expected numpy.ndarray"
    assert run(COMMON + code).splitlines() == [
        f"tokens: {here} numpy.ndarray",
        f"tokens: {numpy}, got cupy.ndarray",
        "tokens: expected an int32 or int64 array, got float64",
        "tokens: expected values in 0..4, got 1..5",
        "tokens: expected values in 0..4, got -1..3",
        f"x: {here} numpy.ndarray",
        f"x: {numpy} or a torch.Tensor on the CPU, got cupy.ndarray",
        f"d_y: {here} numpy.ndarray",
        "x: expected an array on cuda:0, got one on cuda:1",
        "x: expected shape (..., I) = (4, 3), got (4, 2)",
        f"d_x: {here} numpy.ndarray",
        f"tokens: {numpy}, got cupy.ndarray",
        f"x: {here} numpy.ndarray",
        "rnn, readout: expected one device, got cuda:0, cpu",
        "rnn, readout: expected one device, got cpu, cuda:0",
        f"x: {numpy}, got cupy.ndarray",
        f"targets: {numpy}, got cupy.ndarray",
        "rnn, readout, embedding: expected one device, got cuda:0, cuda:0, cpu",
        "device: expected 'cpu' or 'cuda', got 'cuda:0'",
        "device: expected 'cpu' or 'cuda', got 'gpu'",
        "by_token: expected an embedding and an RNN on the CPU without input_dropout, got True",
        "rnn, readout: expected one device, got cuda:0, cuda:1",
    ]


def test_no_gpu_is_a_reason() -> None:
    code = "print(message(RuntimeError, fastrnn.training.Linear, 3, 2, device='cuda'))"
    out = run("import fastrnn.training\n" + code, FAKE_CUDA_DEVICES="0")
    assert out.startswith("device: expected one that can be used, got 'cuda': 'cuda' is not available: ")
    assert "'cupy' is not available: no CUDA device: no CUDA device is visible" in out


# ---- The model, fit, predict


@needs_compiler
def test_model_gradients_are_those_of_the_cpu() -> None:
    """Outputs, states, d_x, d_h_0 and every gradient, of every pooling, with an embedding and without, in one direction
    and two, with the masks of dropout that the CPU draws; ragged rows, one of them empty."""
    fine(
        MODELS
        + """
lengths = np.array([6, 0, 3, 1, 6])
for kind, tokens, directions in itertools.product((None, *POOLINGS), (False, True), (1, 2)):
    plain, there = (model(device, kind, tokens, directions) for device in ("cpu", "cuda"))
    r = rng(directions)
    x = r.integers(0, 11, (6, 5)) if tokens else r.standard_normal((6, 5, 3))
    h_0 = r.standard_normal((2 * directions, 5, 7))
    close(there(on_gpu(x), lengths), plain(x, lengths))
    (y, h_n, backward), (want, states, backward_plain) = (
        there.forward_train(on_gpu(x), on_gpu(lengths), on_gpu(h_0)), plain.forward_train(x, lengths, h_0))
    close(y, want)
    close(h_n, states)
    d_y = r.standard_normal(want.shape)
    for got, right in zip(backward(on_gpu(d_y)), backward_plain(d_y)):
        assert got is right is None or tokens is False or right is not None
        if right is not None:
            close(got, right)
    assert plain.grads.keys() == there.grads.keys()
    for name, right in plain.grads.items():
        close(there.grads[name], right, name, kind)
        assert right.any(), name
    there.zero_grad()
    assert not any(host(g).any() for g in there.grads.values())
"""
    )


FITS = {
    "everything": "dict(clip_norm=0.5, clip_value=0.1, l1=1e-3, l2=1e-2, validation=task(17, 1), score=accuracy)",
    "no buckets": "dict(bucket=False, schedule=training.optimizers.cosine, validation=task(7, 1))",
    "patience": "dict(validation=task(17, 1), patience=1, epochs=4)",
}


@needs_compiler
@pytest.mark.parametrize("name", FITS)
def test_training_is_that_of_the_cpu(name: str) -> None:
    """Three epochs of tokens, with both kinds of dropout: parameters and history, which holds Python's numbers;
    predictions are NumPy's; a second run has the same bits."""
    fine(
        MODELS
        + f"""
options = {{"epochs": 3, "batch_size": 7, "seed": 3, **{FITS[name]}}}
plain, there, again = model("cpu"), model("cuda"), model("cuda")
histories = [fit(one, task(), softmax_cross_entropy, Adam(0.02), **options) for one in (plain, there, again)]
assert_history(histories[1], histories[0])
assert_state(there, plain)
assert columns(histories[2]) == columns(histories[1])
assert_state(again, there, 0)
got, want = predict(there, task(17, 2), 5), predict(plain, task(17, 2), 5)
assert type(got) is np.ndarray and np.abs(got - want).max() <= 1e-12 * np.abs(want).max()
"""
    )


@needs_compiler
def test_training_at_every_step_in_windows_is_that_of_the_cpu() -> None:
    """Ragged rows with targets at every step, whole and in windows through which the state goes on; every loss, AdamW,
    RMSprop and SGD; validation and score get NumPy arrays; predictions are a list of them."""
    fine(
        MODELS
        + """
def scored(y, targets):
    assert type(y) is np.ndarray and type(targets) is np.ndarray
    return accuracy(y, targets)
def one_hot(data):
    return Sequences(data.x, [np.eye(2)[row] for row in data.targets], every_step=True)
padded = rng(8).standard_normal((9, 7, 3))
whole = Sequences(padded, (padded.sum(2) > 0).astype(int), np.array([9, 1, 3, 9, 2, 7, 9]), every_step=True)
for data, loss, optimizer, more in (
    (stepwise(), softmax_cross_entropy, AdamW, dict(validation=stepwise(3, 1), score=scored)),
    (stepwise(), softmax_cross_entropy, SGD, dict(window=7, clip_norm=1.0)),
    (one_hot(stepwise()), training.binary_cross_entropy, RMSprop, dict(window=3, validation=one_hot(stepwise(3, 1)))),
    (one_hot(stepwise()), training.mean_squared_error, Adam, dict(l2=0.1)),
    (whole, softmax_cross_entropy, Adam, dict(window=4)),
):
    plain, there = (model(device, None, False, 1) for device in ("cpu", "cuda"))
    options = dict(epochs=2, batch_size=3, seed=3, **more)
    histories = [fit(one, data, loss, optimizer(0.02), **options) for one in (plain, there)]
    assert_history(histories[1], histories[0])
    assert_state(there, plain)
    for got, want in zip(predict(there, data, 3), predict(plain, data, 3), strict=True):
        assert type(got) is np.ndarray and np.abs(got - want).max() <= 1e-12 * np.abs(want).max()
"""
    )


@needs_compiler
def test_checkpoints_go_on_on_any_device() -> None:
    """Broken off in epoch 3 and resumed: on the same device with the bits of a run that was not broken off, from the
    CPU to the device and back within rounding. The files hold the same names and shapes, and NumPy arrays."""
    fine(
        MODELS
        + """
options = dict(epochs=4, batch_size=7, seed=3, clip_norm=1.0, validation=task(17, 1), score=accuracy)
def train(device, loss=softmax_cross_entropy, seed=1, **more):
    one = model(device, seed=seed)
    return one, fit(one, task(), loss, RMSprop(0.002, momentum=0.5), **options, **more)
whole = {device: train(device) for device in ("cpu", "cuda")}
shapes = []
for first, second in itertools.product(("cpu", "cuda"), repeat=2):
    path = f"{first}-{second}.safetensors"
    message(StopError, train, first, failing_at(13), checkpoint=path)
    arrays, description = training.load_arrays(path, "checkpoint")
    assert all(type(array) is np.ndarray for array in arrays.values()) and len(description["history"]) == 2
    shapes.append({name: (array.shape, array.dtype) for name, array in arrays.items()})
    resumed, history = train(second, seed=9, checkpoint=path)
    assert_history(history, whole[second][1])
    assert_state(resumed, whole[second][0], 0 if first == second else 1e-12)
    if first == second:
        assert columns(history) == columns(whole[first][1])
assert shapes[0] == shapes[1] == shapes[2] == shapes[3]
"""
    )


@needs_compiler
def test_everything_stays_on_its_own_device() -> None:
    """Device 1, while device 0 is the current one: the same bits as on device 0, and nothing on another device, which
    the stand-in refuses as CuPy does."""
    fine(
        MODELS
        + """
from fastrnn._device import moved
options = dict(epochs=2, batch_size=7, seed=3, l1=1e-3, clip_norm=0.5, clip_value=0.1, validation=task(17, 1),
               checkpoint="state.safetensors")
want = model("cuda")
history = fit(want, task(), softmax_cross_entropy, Adam(0.02), **{**options, "checkpoint": None})
with cupy.cuda.Device(1):
    one = model("cuda")
    training.initialize(one.rnn, "orthogonal", seed=1)
    one.load_state_dict(model("cuda").state_dict())
training.initialize(one.rnn, "uniform", seed=2)
one.load_state_dict(model("cuda").state_dict())
assert columns(fit(one, task(), softmax_cross_entropy, Adam(0.02), **options)) == columns(history)
assert_state(one, want, 0)
assert fit(one, task(), softmax_cross_entropy, Adam(0.02), **{**options, "epochs": 3}).records[:2] != []
arrays = [*one.parameters.values(), *one.grads.values(), *one.state_dict().values(), moved(np.ones(3), one._home)]
y, h_n, backward = one.forward_train(cupy.ndarray(rng(0).integers(0, 11, (5, 7)), 1), np.full(7, 3))
d_y = softmax_cross_entropy(logits=y, targets=cupy.ndarray(np.ones(7, int), 1))[1]
arrays += [y, h_n, d_y, backward(d_y)[1], one(cupy.ndarray(rng(0).integers(0, 11, (5, 7)), 1))]
assert training.clip_by_global_norm(one.grads, 1e-9) > 1e-9
training.clip_by_value(one.grads, 1e-12)
optimizer, again = SGD(0.1, 0.9), SGD(0.1, 0.9)
optimizer.step(one.parameters, one.grads)
again.load_state_dict({name: moved(array, None) for name, array in optimizer.state_dict().items()})
again.step(one.parameters, one.grads)
arrays += [state["velocity"] for state in (*optimizer.state.values(), *again.state.values())]
for kind in POOLINGS:
    pooled, unpool = pool(kind, h_n, h_n, None)
    arrays += [pooled, *(d for d in unpool(pooled) if d is not None)]
one.zero_grad()
assert {array.device.id for array in arrays} == {1} and cupy.cuda.Device().id == 0
"""
    )


def test_initial_values_are_those_of_the_cpu() -> None:
    fine("""
for scheme in ("uniform", "glorot", "orthogonal", "identity"):
    plain, there = (fastrnn.RNN(7, 17, 2, device=device, seed=1) for device in ("cpu", "cuda"))
    for rnn in (plain, there):
        training.initialize(rnn, scheme, gain=0.5, seed=2)
    for name in plain.parameters:
        same(there.parameters[name], plain.parameters[name], scheme)
""")


@needs_compiler
def test_the_cpu_never_imports_cupy() -> None:
    """Where CuPy could be imported: fastrnn, fastrnn.sentiment, a training with all options, a resumed one."""
    fine(
        MODELS.replace("import itertools", "")
        + """
del sys.modules["cupy"], cupy
for name in [name for name in sys.modules if name.startswith(("fastrnn", "cupy"))]:
    del sys.modules[name]
import fastrnn, fastrnn.sentiment
from fastrnn.training import *
for epochs in (1, 2):
    rnn = fastrnn.RNN(3, 7, 2, dropout=0.5, bidirectional=True)
    one = SequenceModel(rnn, Linear(28, 2), embedding=Embedding(11, 3), pool="mean+max", dropout=0.5, token_dropout=0.2)
    rows = rng(0).integers(0, 11, (7, 33))
    data = Sequences(rows, rows[0] % 2)
    fit(one, data, softmax_cross_entropy, Adam(), epochs=epochs, clip_norm=1.0, clip_value=1.0, l1=0.1, validation=data,
        score=accuracy, checkpoint="state.safetensors")
assert not any(name.startswith("cupy") for name in sys.modules)
"""
    )
