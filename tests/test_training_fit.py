"""fit: reproducible, resumable bit for bit, interruptible; batches lose nothing; files are whole and harmless."""

import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import training
from fastrnn.training import Adam, Embedding, Linear, SequenceModel, Sequences, fit, softmax_cross_entropy
from fastrnn.training import checkpoint as checkpoint_file

safetensors = pytest.importorskip("safetensors")


def task(N: int = 90, seed: int = 0) -> Sequences:
    """Which of two tokens comes more often: rows of 1 to 9 tokens."""
    r = np.random.default_rng(seed)
    rows = [r.integers(0, 6, r.integers(1, 10)) for _ in range(N)]
    return Sequences(rows, np.array([int((row == 1).sum() > (row == 2).sum()) for row in rows]))


def model(seed: int = 0) -> SequenceModel:
    rnn = fastrnn.RNN(4, 8, 2, dropout=0.2, bidirectional=True, seed=seed)
    embedding = Embedding(6, 4, seed=seed)
    return SequenceModel(rnn, Linear(32, 2, seed=seed), embedding=embedding, pool="mean+max", dropout=0.3)


def settings(**more: Any) -> dict[str, Any]:
    valid = task(40, 1)
    usual = {
        "epochs": 6,
        "batch_size": 16,
        "validation": valid,
        "score": training.accuracy,
        "seed": 3,
        "clip_norm": 1.0,
    }
    return {**usual, "schedule": training.optimizers.cosine, **more}


def assert_same(a: SequenceModel, b: SequenceModel) -> None:
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


def columns(history: training.History) -> list[dict[str, float]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history.records]


class StopError(Exception):
    pass


def failing_at(call: int) -> Any:
    """The loss, but call number `call` raises."""
    count = 0

    @functools.wraps(softmax_cross_entropy)  # a checkpoint knows a loss by its name
    def loss(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise StopError
        return softmax_cross_entropy(*arguments)

    return loss


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    a, b, c = model(), model(), model()
    first = fit(a, task(), softmax_cross_entropy, Adam(0.01), **settings())
    second = fit(b, task(), softmax_cross_entropy, Adam(0.01), **settings())
    fit(c, task(), softmax_cross_entropy, Adam(0.01), **settings(seed=4))
    assert_same(a, b)
    assert columns(first) == columns(second)
    assert any((x != y).any() for x, y in zip(a.state_dict().values(), c.state_dict().values(), strict=True))


@pytest.mark.parametrize("call", [8, 20, 27])
def test_an_interrupted_training_goes_on_with_the_same_bits(tmp_path: Path, call: int) -> None:
    """Broken off within epoch 2, 3 or 4 and called again with fresh objects, it ends as one that ran through."""
    whole, path = model(), tmp_path / "state.safetensors"
    wanted = fit(whole, task(), softmax_cross_entropy, Adam(0.01), **settings())
    with pytest.raises(StopError):
        fit(model(), task(), failing_at(call), Adam(0.01), **settings(checkpoint=path))
    assert path.exists()
    resumed = model(seed=9)
    found = fit(resumed, task(), softmax_cross_entropy, Adam(0.01), **settings(checkpoint=path))
    assert_same(whole, resumed)
    assert columns(found) == columns(wanted)
    assert found.best == wanted.best
    again = fit(model(seed=8), task(), failing_at(1), Adam(0.01), **settings(checkpoint=path))
    assert len(again) == 6  # nothing was left to do
    assert sorted(os.listdir(tmp_path)) == ["state.safetensors"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    fit(model(), task(), softmax_cross_entropy, Adam(0.01), **settings(checkpoint=path, epochs=1))
    with pytest.raises(ValueError, match=r"made with other settings: expected batch_size 8 \(got 16\)"):
        fit(model(), task(), softmax_cross_entropy, Adam(0.01), **settings(checkpoint=path, batch_size=8))
    rnn = fastrnn.RNN(4, 7, 2, dropout=0.2, bidirectional=True)
    other = SequenceModel(rnn, Linear(28, 2), embedding=Embedding(6, 4), pool="mean+max", dropout=0.3)
    with pytest.raises(ValueError, match="does not fit this model and optimizer"):
        fit(other, task(), softmax_cross_entropy, Adam(0.01), **settings(checkpoint=path))


Y = np.arange(90) % 2
ROWS = np.random.default_rng(7).integers(0, 6, (5, 90))
FEW = {"epochs": 1, "batch_size": 30}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": Sequences(ROWS, 1 - Y)}, "data '"),
        ({"data": Sequences(ROWS + (ROWS == 3), Y)}, "data '"),
        ({"data": Sequences(ROWS, Y, np.r_[4, np.full(89, 5)])}, "data '"),
        ({"data": Sequences(list(ROWS.T), Y)}, "data '"),
        ({"optimizer": training.SGD(0.1)}, "optimizer 'SGD(rate=0.1, "),
        ({"optimizer": Adam(0.1, weight_decay=0.1)}, "optimizer 'Adam(rate=0.1, weight_decay=0.1, "),
        ({"optimizer": Adam(0.01, (0.5, 0.5))}, "optimizer 'Adam(rate=0.01, weight_decay=0.0, betas=(0.5, 0.5), "),
        ({"loss": lambda y, t: softmax_cross_entropy(y, t)}, "loss '<lambda>' (got 'softmax_cross_entropy')"),
        ({"schedule": training.optimizers.warm_up(0.5)}, "schedule '"),
        ({"validation": task()}, "validation '"),
        ({"score": training.accuracy}, "score 'accuracy' (got None)"),
    ],
)
def test_a_checkpoint_of_other_data_or_functions_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    """In both directions, named, before anything changes."""
    usual = {
        "data": Sequences(ROWS, Y),
        "loss": softmax_cross_entropy,
        "optimizer": Adam(0.01),
        "schedule": training.optimizers.warm_up(0.1),
        **FEW,
    }
    for number, (first, second) in enumerate([({}, change), (change, {})]):
        path = tmp_path / str(number)
        fit(model(), **{**usual, **first}, checkpoint=path)
        one = model(seed=5)
        with pytest.raises(ValueError, match="was made with other settings: expected ") as error:
            fit(one, **{**usual, **second}, checkpoint=path)
        assert str(error.value).partition("expected ")[2].startswith(words if second else words.split()[0])
        assert_same(one, model(seed=5))


@pytest.mark.parametrize(
    ("change", "words"), [({"pool": "mean"}, "pool 'mean'"), ({"zoneout": 0.5}, "rnn.zoneout 0.5")]
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    """Also where it has the same parameters."""

    def made(pool: Any = "max", **options: Any) -> SequenceModel:
        return SequenceModel(fastrnn.RNN(4, 8, **options), Linear(8, 2), embedding=Embedding(6, 4), pool=pool)

    path = tmp_path / "state"
    fit(made(), Sequences(ROWS, Y), softmax_cross_entropy, **FEW, checkpoint=path)
    with pytest.raises(ValueError, match=f"made with other settings: expected {words} "):
        fit(made(**change), Sequences(ROWS, Y), softmax_cross_entropy, **FEW, checkpoint=path)


def test_a_checkpoint_from_before_data_were_known_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    fit(model(), task(), softmax_cross_entropy, **FEW, checkpoint=path)
    arrays, description = training.load_arrays(path, "checkpoint")
    del description["settings"]["data"]
    training.save_arrays(path, arrays, description)
    with pytest.raises(ValueError, match=r"made with other settings: expected data '\w+' \(got 'nothing'\)$"):
        fit(model(), task(), softmax_cross_entropy, **FEW, checkpoint=path)


def test_the_digest_of_data_is_that_of_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the strides, and of a large array in pieces."""
    x = np.random.default_rng(0).standard_normal((7, 90, 3))
    want = Sequences(x, Y).digest()
    assert Sequences(x.swapaxes(0, 2).copy().swapaxes(0, 2), Y).digest() == want
    monkeypatch.setattr(training.data, "_PIECE", 100)
    assert Sequences(x, Y).digest() == want
    x[-1, -1, -1] += 1
    assert Sequences(x, Y).digest() != want
    assert Sequences(ROWS, Y.astype(object)).digest() == Sequences(ROWS, (Y + 1).astype(object)).digest()
    days = [Sequences(ROWS, Y.astype("M8[s]") + k).digest() for k in (0, 1)]
    assert days[0] != days[1]


def test_numpy_scalars_are_settings_too(tmp_path: Path) -> None:
    """A checkpoint of theirs goes on with Python's numbers; history holds those."""
    path, small = tmp_path / "state", np.float32(0.5)

    def loss(y: Any, targets: Any) -> Any:
        found, d_y = softmax_cross_entropy(y, targets)
        return np.float32(found), d_y

    numpy = {"batch_size": np.int64(20), "seed": np.int64(1), "bucket": np.bool_(True)}
    numpy |= dict.fromkeys(("clip_norm", "clip_value", "l1", "l2"), small)
    schedule = lambda progress: np.float32(1) - np.float32(progress)  # noqa: E731
    python = {name: value.item() for name, value in numpy.items()}
    more = {"validation": task(), "schedule": schedule, "checkpoint": path}
    fit(model(), task(), loss, Adam(eps=small), epochs=np.int64(1), **numpy, **more)
    history = fit(model(), task(), loss, Adam(eps=0.5), epochs=2, **python, **more)
    assert len(history) == 2
    assert {type(value) for record in history.records for value in record.values()} == {int, float}
    steps = {"epochs": 1, "window": np.int64(3), "checkpoint": tmp_path / "steps"}
    fit(every_step_model(), stepwise(), softmax_cross_entropy, **steps)


# ---- Gradients from before


def test_gradients_from_before_take_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward by hand, one broken off before it said which rows it wrote, and a training that ended in NaN: what
    follows has the bits of a fresh model, and fit leaves no gradients, whatever ends it."""
    fresh, one, data = model(), model(), task()
    start = one.state_dict()
    fit(fresh, data, softmax_cross_entropy, **FEW)

    def assert_fits() -> None:
        one.load_state_dict(start)
        fit(one, data, softmax_cross_entropy, **FEW)
        assert_same(one, fresh)

    one.forward_train(data.batch(np.arange(3)).x[:2])[2](np.ones((3, 2), np.float32))
    assert_fits()
    one.grads["embedding.weight"][2] = 1
    assert_fits()
    for error, value in ((FloatingPointError, np.nan), (StopError, 0.0)):
        one.load_state_dict(start)
        monkeypatch.setattr(Adam, "step", failing_at(1))
        with pytest.raises(error):
            fit(one, data, lambda y, t: (value, y * np.nan), **FEW)  # noqa: B023
        monkeypatch.undo()
        assert not any(gradient.any() for gradient in one.grads.values())
        assert_fits()


@pytest.mark.parametrize("call", [8, 20])
def test_a_training_goes_on_in_the_same_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Ctrl-C between backward and the end of a step, then the same call with the same objects."""
    whole, one, optimizer, path = model(), model(), Adam(0.01), tmp_path / "state"
    fit(whole, task(), softmax_cross_entropy, Adam(0.01), **settings())
    original, steps = Adam.step, 0

    def step(*arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == call:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(Adam, "step", step)
    with pytest.raises(KeyboardInterrupt):
        fit(one, task(), softmax_cross_entropy, optimizer, **settings(checkpoint=path))
    fit(one, task(), softmax_cross_entropy, optimizer, **settings(checkpoint=path))
    assert_same(whole, one)


ENDLESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with SIGINT ignored
sys.path.insert(0, {tests!r})
from test_training_fit import *
print("ready", flush=True)
fit(model(), task(), softmax_cross_entropy, Adam(0.01), **settings(checkpoint={path!r}, epochs=10**6))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """Five processes interrupted at odd moments: the file is always whole, and nothing lies beside it."""
    path = tmp_path / "state.safetensors"
    code = ENDLESS.format(tests=str(Path(__file__).parent), path=str(path))
    seen = 0
    for delay in (0.05, 0.083, 0.11, 0.157, 0.2):
        before = path.stat().st_mtime_ns if seen else 0
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(12_000):  # a backend that is compiled first takes its time, and loses signals meanwhile
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert "KeyboardInterrupt" in error, error
        _, description = training.load_arrays(path, "checkpoint")
        assert len(description["history"]) >= max(seen, 1)
        seen = len(description["history"])
        assert os.listdir(tmp_path) == ["state.safetensors"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_write_broken_off_leaves_the_file_before(tmp_path: Path, monkeypatch: Any, call: str) -> None:
    """The old file is still whole under its name when the new one has been opened and when it has been written, and an
    interruption then leaves it so, and nothing beside it."""
    path = tmp_path / "state.safetensors"
    training.save_arrays(path, {"a": np.ones(3)}, {"kind": "checkpoint"})
    before, seen = path.read_bytes(), []

    def interrupted(*arguments: Any) -> None:
        if call == "open":
            open(*arguments).close()
        seen.append(path.read_bytes())
        raise KeyboardInterrupt

    where = checkpoint_file if call == "open" else os
    monkeypatch.setattr(where, call, interrupted, raising=where is os)
    with pytest.raises(KeyboardInterrupt):
        training.save_arrays(path, {"a": np.zeros(9)}, {"kind": "checkpoint"})
    assert seen == [before]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.safetensors"]


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def test_hostile_and_damaged_files_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    """ValueError that names the file; nothing is executed, nothing changes."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.safetensors"
    training.save_arrays(path, {"a": np.ones(3)}, {"kind": "checkpoint"})
    good = path.read_bytes()
    header = int.from_bytes(good[:8], "little")
    cases = {
        "empty": b"",
        "pickle": pickle.dumps(Harmful()),
        "cut": good[:-5],
        "header cut": good[: 8 + header // 2],
        "huge header": (2**62).to_bytes(8, "little") + good[8:],
        "text": b"hello, this is no model at all",
        "flipped": good[:10] + bytes([good[10] ^ 255]) + good[11:],
        "offsets": good.replace(b'"data_offsets":[0,24]', b'"data_offsets":[0,99]'),
    }
    for name, content in cases.items():
        assert content != good
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.safetensors: expected a checkpoint of fastrnn") as error:
            training.load_arrays(path, "checkpoint")
        assert "got" in str(error.value), name
    from safetensors.numpy import save

    for metadata in (
        None,
        {"fastrnn": "[1, 2"},
        {"fastrnn": "[" * 100_000},
        {"fastrnn": json.dumps({"kind": "model"})},
    ):
        path.write_bytes(save({"a": np.ones(3)}, metadata))
        with pytest.raises(ValueError, match="expected a checkpoint of fastrnn"):
            training.load_arrays(path, "checkpoint")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        training.load_arrays(tmp_path / "none", "checkpoint")
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_threshold_and_patience_end_the_training() -> None:
    history = fit(model(), task(), softmax_cross_entropy, Adam(0.02), epochs=300, threshold=0.4, batch_size=16)
    assert history["loss"][-1] <= 0.4 < min(history["loss"][:-1])
    trained = model()
    history = fit(trained, task(), softmax_cross_entropy, Adam(0.05), **settings(epochs=300, patience=4))
    assert history.best is not None
    assert len(history) == history.best + 4
    valid = task(40, 1)
    assert training.accuracy(np.asarray(training.predict(trained, valid)), np.asarray(valid.targets)) == max(
        history["score"]
    )


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match=r"loss: expected a finite number, got nan in epoch 1, step 1"):
        fit(model(), task(), lambda y, t: (float("nan"), y), Adam(0.01), epochs=2)


def test_a_validation_loss_that_is_not_finite_is_an_error() -> None:
    x = np.random.default_rng(0).standard_normal((5, 8, 3)).astype(np.float32)
    one = SequenceModel(fastrnn.RNN(3, 5, seed=0), Linear(5, 2, seed=0), pool="last")
    broken = Sequences(np.where(np.arange(8)[:, None] == 2, np.float32(np.nan), x), np.arange(8) % 2)
    with pytest.raises(FloatingPointError, match="loss: expected a finite number, got nan in epoch 1, validation"):
        fit(one, Sequences(x, np.arange(8) % 2), softmax_cross_entropy, epochs=2, validation=broken)


@pytest.mark.parametrize(("scores", "best"), [([np.nan, 0.1, 0.9], 3), ([0.1, np.nan, -0.2], 1), ([-0.5, np.nan], 1)])
def test_a_score_of_nan_is_the_lowest(scores: list[float], best: int) -> None:
    found = iter(scores)
    more = {**FEW, "epochs": len(scores), "validation": task(), "score": lambda y, t: next(found)}
    assert fit(model(), task(), softmax_cross_entropy, **more).best == best


def test_l1_and_l2_are_added_to_the_gradient_of_weights() -> None:
    """One SGD step from a loss of 0: p -= rate (l1 sign p + l2 p), not for biases; also for words that do not occur."""
    one = model()
    start = one.state_dict()
    fit(one, task(8), lambda y, t: (0.0, np.zeros_like(y)), training.SGD(0.1), epochs=1, batch_size=8, l1=0.3, l2=0.5)
    for name, p in one.parameters.items():
        before = start[name]
        want = before - 0.1 * (0.3 * np.sign(before) + 0.5 * before) if p.ndim > 1 else before
        np.testing.assert_allclose(p, want, rtol=1e-6, atol=1e-8)
    assert not any(gradient.any() for gradient in one.grads.values())


# ---- Truncated BPTT


def stepwise(N: int = 6, T: int = 20, ragged: bool = True) -> Sequences:
    r = np.random.default_rng(5)
    rows = [r.standard_normal((int(n), 3)).astype(np.float32) for n in (r.integers(1, T + 1, N) if ragged else [T] * N)]
    return Sequences(rows, [(row.sum(1) > 0).astype(int) for row in rows], every_step=True)


def every_step_model() -> SequenceModel:
    return SequenceModel(fastrnn.RNN(3, 7, 2, seed=0), Linear(7, 2, seed=0))


@pytest.mark.parametrize("ragged", [False, True])
def test_windows_carry_the_state_and_cut_the_gradient(ragged: bool) -> None:
    """The outputs of the pieces are those of the whole; the gradients are not: they stay within a piece."""
    one, data = every_step_model(), stepwise(ragged=ragged)
    batch = data.batch(np.arange(6))
    whole = one(batch.x, batch.lengths)
    state, outputs = None, []
    for piece in batch.windows(7, True):
        y, state, backward = one.forward_train(piece.x, piece.lengths, state)
        backward(np.ones_like(y))
        outputs.append(y)
    cut = {name: gradient.copy() for name, gradient in one.grads.items()}
    valid = np.arange(len(whole))[:, None] < data.lengths
    np.testing.assert_array_equal(np.concatenate(outputs)[valid], whole[valid])
    one.zero_grad()
    one.forward_train(batch.x, batch.lengths)[2](np.ones_like(whole))
    assert not np.allclose(cut["rnn.weight_hh_l0"], one.grads["rnn.weight_hh_l0"])
    np.testing.assert_allclose(cut["readout.weight"], one.grads["readout.weight"], rtol=1e-5)


def test_a_window_as_long_as_the_sequences_changes_nothing() -> None:
    a, b, data = every_step_model(), every_step_model(), stepwise()
    for one, window in ((a, None), (b, 20)):
        fit(one, data, softmax_cross_entropy, Adam(0.01), epochs=3, batch_size=2, window=window)
    assert_same(a, b)


def test_a_stream_is_learned_in_windows() -> None:
    """y_t = x_{t-1}: from one stream of 4,000 steps, cut into 8 parts and windows of 10."""
    bits = np.random.default_rng(0).integers(0, 2, 4003)
    data = training.stream(bits[1:, None].astype(np.float32), bits[:-1], 8)
    assert data.x.shape == (500, 8, 1)  # type: ignore[union-attr]
    one = SequenceModel(fastrnn.RNN(1, 8, seed=0), Linear(8, 2, seed=0))
    history = fit(one, data, softmax_cross_entropy, Adam(0.02), epochs=40, batch_size=8, window=10, threshold=0.02)
    assert history["loss"][-1] <= 0.02


# ---- Data


@pytest.mark.parametrize("bucket", [False, True])
def test_batches_lose_no_row(bucket: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 900, 1003)
    for size in (1, 7, 32, 2000):
        for rng in (None, np.random.default_rng(1)):
            plan = training.batches(lengths, size, rng, bucket=bucket)
            assert sorted(np.concatenate(plan).tolist()) == list(range(1003))
            assert all(0 < len(rows) <= size for rows in plan)
    plan = training.batches(lengths, 8, np.random.default_rng(1), bucket=True)
    padding = sum(int(lengths[rows].max()) * len(rows) for rows in plan) / lengths.sum()
    assert padding < 1.1  # without buckets about 1.8


@pytest.mark.parametrize("tokens", [False, True])
def test_what_lies_beyond_a_length_does_not_matter(tokens: bool) -> None:
    """x as an array padded with -1 or NaN gives the batches, and the training, of the list of its rows."""
    r = np.random.default_rng(2)
    lengths = np.r_[r.integers(1, 9, 39), 9]
    inside = np.arange(9)[:, None] < lengths
    if tokens:
        x, one, two = np.where(inside, r.integers(0, 6, (9, 40)), -1), model(), model()
    else:
        x = np.where(inside[..., None], r.standard_normal((9, 40, 3)), np.nan).astype(np.float32)
        one, two = (SequenceModel(fastrnn.RNN(3, 5, seed=0), Linear(5, 2, seed=0), pool="max") for _ in range(2))
    before, targets = x.copy(), np.arange(40) % 2
    padded = Sequences(x, targets, lengths)
    rows = Sequences([x[:n, i] for i, n in enumerate(lengths)], targets)
    batch = padded.batch(np.arange(10, 40))
    assert batch.x.dtype == x.dtype
    np.testing.assert_array_equal(batch.x, rows.batch(np.arange(10, 40)).x)
    np.testing.assert_array_equal(x, before)
    for trained, data in ((one, padded), (two, rows)):
        fit(trained, data, softmax_cross_entropy, epochs=2, batch_size=8)
    assert_same(one, two)
    np.testing.assert_array_equal(training.predict(one, padded), training.predict(one, rows))


def test_predictions_come_in_the_order_of_the_data() -> None:
    one, data = model(), task(50)
    together = np.asarray(training.predict(one, data, 16))
    for row in range(50):
        alone = one(np.asarray(data.x[row])[:, None])
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-5, atol=1e-6)
    two, steps = every_step_model(), stepwise()
    for row, y in enumerate(training.predict(two, steps, 4)):
        np.testing.assert_allclose(y, two(steps.x[row][:, None])[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Sequences([], []), "x: expected at least one sequence"),
        (lambda: Sequences(np.zeros(3), np.zeros(3)), "x: expected (T, N, I)"),
        (lambda: Sequences(np.zeros((4, 3, 2)), np.zeros(4)), "targets: expected one for each of 3 sequences"),
        (lambda: Sequences(np.zeros((4, 3, 2)), np.zeros((3, 4)), every_step=True), "targets: expected (T, N, ...)"),
        (lambda: Sequences([np.zeros((2, 3)), np.zeros((2, 4))], [0, 1]), "x: expected arrays (T_n, I)"),
        (lambda: Sequences([np.zeros((2, 3))], [np.zeros(3)], every_step=True), "targets: expected as many steps"),
        (lambda: Sequences([np.zeros((2, 3))], [0], [2]), "lengths: expected None for a list"),
        (lambda: training.stream(np.zeros((3, 1)), np.zeros(3), 4), "x: expected at least 4 steps"),
        (lambda: fit(model(), stepwise(), softmax_cross_entropy), "data: expected every_step=False"),
        (lambda: fit(model(), task(), softmax_cross_entropy, window=3), "window: expected None"),
        (lambda: fit(model(), task(), softmax_cross_entropy, patience=3), "patience: expected None without validation"),
        (lambda: fit(model(), task(), softmax_cross_entropy, epochs=0), "epochs: expected at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(words)


def test_progress_shows_every_epoch(capfd: Any) -> None:
    pytest.importorskip("rich")
    fit(model(), task(), softmax_cross_entropy, Adam(0.01), **settings(epochs=3, progress=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("validation loss") == 3
    assert "epoch 3/3" in err


def test_import_of_training_is_light() -> None:
    heavy = ("rich", "safetensors", "torch", "sklearn")
    code = f"import sys, fastrnn.training; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
