"""fit: the training loop; predict: the outputs for a whole data set."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from .. import _validate
from .._backends.options import Array
from .._device import moved, placed
from .checkpoint import load_arrays, save_arrays
from .data import Batch, Sequences, batches
from .losses import Loss
from .model import SequenceModel
from .optimizers import Adam, Optimizer, Schedule, clip_by_global_norm, clip_by_value, constant
from .progress import progress_bar

_KIND = "checkpoint"


@dataclass
class History:
    """One record for each epoch: epoch, loss (the mean over its steps), rate, seconds, and with validation
    validation_loss and score. history["loss"] lists a column. best is the epoch whose parameters were kept."""

    records: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None

    def __getitem__(self, column: str) -> list[float]:
        return [record[column] for record in self.records]

    def __len__(self) -> int:
        return len(self.records)


@placed
def fit(
    model: SequenceModel,
    data: Sequences,
    loss: Loss,
    optimizer: Optimizer | None = None,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    threshold: float | None = None,
    validation: Sequences | None = None,
    score: Callable[[Array, Array], float] | None = None,
    patience: int | None = None,
    schedule: Schedule = constant,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
    window: int | None = None,
    bucket: bool = True,
    seed: int = 0,
    checkpoint: Any = None,
    progress: bool = False,
) -> History:
    """Trains model on data until `epochs` are over, the loss of an epoch is at most `threshold`, or patience ends.

    With a model on a GPU data stays on the host, and its batches are moved. History and checkpoints hold numbers and
    arrays of the host: training goes on on any device, and with the same masks and batches, on the same one to the bit.

    Arguments:
        loss: softmax_cross_entropy, binary_cross_entropy, mean_squared_error, or any loss(y, targets, mask=None) that
            returns the loss and d_y.
        optimizer: Adam() by default.
        validation: after every epoch its loss is computed; at the end the model gets the parameters of the best epoch.
        score: score(y, targets) on validation, e.g. accuracy: the best epoch is the one of the highest score then,
            and among equals, or without it, that of the lowest validation loss; NaN is below all other scores. It, and
            loss there, get NumPy arrays.
        patience: epochs without a better one after which training stops.
        schedule: what multiplies the rate, by the share that is done, and by nothing else: cosine, warm_up(0.1, linear)
        clip_norm, clip_value: limits on the gradients (the norm first, then each element).
        l1, l2: l1 |w| + l2 w^2 / 2 is added to the loss for every weight, not for biases (and not to the loss shown).
        window: truncated BPTT: a batch is walked in pieces of this many steps, with one optimizer step for each; the
            state goes on, gradients do not. Needs targets at every step and one direction.
        bucket: rows of like length share a batch.
        seed: of the order of the batches and of dropout: the same seed gives the same bits on the same machine.
        checkpoint: a path. After every epoch the state of the training is written there, whole or not at all, and a
            call that finds it goes on from there: the same bits as without the interruption. Needs safetensors. epochs,
            threshold and patience may be others then, and nothing else: the file knows data and validation by a hash,
            the optimizer by its repr, the schedule by its values, loss and score by their names, of the model also
            pool, nonlinearity and rates of dropout. One without these, of an earlier version, is refused.
        progress: shows a bar on standard error. Needs rich.

    Gradients that the model has are dropped, and are 0 at the end, whatever ends it. NumPy's BLAS works on one thread
    meanwhile, where threadpoolctl (of the extra "cli") is installed.

    Raises FloatingPointError when a loss, that of validation too, is not finite, ValueError for a checkpoint of other
    settings or data; Ctrl-C leaves the last checkpoint whole.
    """
    optimizer = Adam() if optimizer is None else optimizer
    epochs = _validate.integer("epochs", epochs, at_least=1)
    batch_size = _validate.integer("batch_size", batch_size, at_least=1)
    seed = _validate.integer("seed", seed, at_least=0)
    clip_norm, clip_value = (None if limit is None else float(limit) for limit in (clip_norm, clip_value))
    l1, l2 = float(l1), float(l2)
    if patience is not None and validation is None:
        raise ValueError("patience: expected None without validation, got a number")
    if window is not None:
        window = _validate.integer("window", window, at_least=1)
        if not data.every_step or model.rnn.bidirectional:
            raise ValueError("window: expected None without targets at every step, and for two directions")
    if data.every_step != (model.pool is None):
        raise ValueError(
            f"data: expected every_step={model.pool is None} for pool={model.pool!r}, got {data.every_step}"
        )
    history, best, settings = History(), None, {}
    if checkpoint is not None:
        settings = {
            "optimizer": repr(optimizer), "batch_size": batch_size, "clip_norm": clip_norm, "bucket": bool(bucket),
            "clip_value": clip_value, "l1": l1, "l2": l2, "window": window, "seed": seed, "sequences": len(data),
            "data": data.digest(), "validation": None if validation is None else validation.digest(),
            "loss": _name(loss), "score": None if score is None else _name(score), "schedule": _values_of(schedule),
            **_ways_of(model),
        }  # fmt: skip
        if Path(checkpoint).exists():
            history, best = _resume(checkpoint, model, optimizer, settings)
    with one_blas_thread(), progress_bar(progress, epochs) as bar, _without_gradients(model):
        for epoch in range(len(history) + 1, epochs + 1):
            if _finished(history, threshold, patience):
                break
            model.reseed([seed, epoch])
            plan = batches(data.lengths, batch_size, np.random.default_rng([seed, epoch, 1]), bucket=bucket)
            bar.start(epoch, len(plan))
            start, losses, steps = time.perf_counter(), 0.0, 0
            for number, rows in enumerate(plan):
                factor = schedule((epoch - 1 + number / len(plan)) / epochs)
                state = None
                for piece in _moved(data.batch(rows), model._home).windows(window, data.every_step):
                    found, state = _step(model, piece, loss, state)
                    found = _finite(found, f"epoch {epoch}, step {number + 1}")
                    _regularize(model, l1, l2)
                    if clip_norm is not None:
                        clip_by_global_norm(model.grads, clip_norm)
                    if clip_value is not None:
                        clip_by_value(model.grads, clip_value)
                    optimizer.step(model.parameters, model.grads, factor)
                    _zero(model, bool(l1 or l2))
                    losses, steps = losses + found, steps + 1
                bar.advance(losses / steps)
            record = {"epoch": epoch, "loss": losses / steps, "rate": float(optimizer.rate * factor)}
            record["seconds"] = time.perf_counter() - start
            if validation is not None:
                y, targets = _outputs(model, validation, batch_size)
                record["validation_loss"] = _finite(loss(y, targets)[0], f"epoch {epoch}, validation")
                if score is not None:
                    record["score"] = float(score(y, targets))
            history.records.append(record)
            if validation is not None and _best(history) == epoch:
                history.best, best = epoch, model.state_dict()
            if checkpoint is not None:
                _write(checkpoint, model, optimizer, settings, history, best)
            bar.done(record)
    if best is not None:
        model.load_state_dict(best)
    return history


@placed
def predict(model: SequenceModel, data: Sequences, batch_size: int = 256) -> Array | list[Array]:
    """y (N, K) of a model that pools, or a list of N arrays (T_n, K), in the order of data; no dropout.

    NumPy arrays, as data's are, also of a model on a GPU.
    """
    found: dict[int, Array] = {}
    with one_blas_thread(), model.rnn.frozen():
        for rows in batches(data.lengths, batch_size):
            batch = data.batch(rows)
            y = moved(model(moved(batch.x, model._home), batch.lengths), None)
            for i, row in enumerate(rows.tolist()):
                found[row] = y[: data.lengths[row], i] if model.pool is None else y[i]
    ordered = [found[row] for row in range(len(data))]
    return ordered if model.pool is None else np.stack(ordered)


def one_blas_thread() -> Any:
    """A context in which NumPy's BLAS uses one thread, where threadpoolctl is installed.

    The products around the RNN are small, and a second pool of threads on the same cores gets in the kernels' way.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(1, "blas")


def accuracy(logits: Array, targets: Array) -> float:
    """The share of positions whose largest logit is the target's."""
    return float(np.mean(logits.argmax(axis=-1) == targets))


def _outputs(model: SequenceModel, data: Sequences, batch_size: int) -> tuple[Array, Array]:
    """All outputs and targets; those of every step one sequence after the other."""
    y = predict(model, data, max(batch_size, 64))
    if isinstance(y, np.ndarray):
        return y, cast(Array, data.targets)
    targets = [
        data.targets[row] if isinstance(data.targets, list) else data.targets[: len(part), row]
        for row, part in enumerate(y)
    ]
    return np.concatenate(y), np.concatenate(targets)


def _moved(batch: Batch, home: Any) -> Batch:
    """The batch where home is, but for the lengths: the RNN reads them on the host."""
    if home is None:
        return batch
    mask = None if batch.mask is None else moved(batch.mask, home)
    return Batch(moved(batch.x, home), batch.lengths, moved(batch.targets, home), mask)


def _step(model: SequenceModel, batch: Batch, loss: Loss, h_0: Array | None) -> tuple[float, Array]:
    """Adds the gradients of one batch; the loss and the last states."""
    y, h_n, backward = model.forward_train(batch.x, batch.lengths, h_0)
    found, d_y = loss(y, batch.targets) if batch.mask is None else loss(y, batch.targets, batch.mask)
    backward(d_y)
    return found, h_n


def _finite(found: Any, where: str) -> float:
    """The loss as Python's number."""
    number = float(found)
    if not np.isfinite(number):
        raise FloatingPointError(
            f"loss: expected a finite number, got {number} in {where}; a lower rate or clip_norm may help"
        )
    return number


def _regularize(model: SequenceModel, l1: float, l2: float) -> None:
    if not (l1 or l2):
        return
    grads = model.grads
    for name, p in model.parameters.items():
        if p.ndim > 1:
            grads[name] += (l1 * np.sign(p) + l2 * p).astype(p.dtype)


def _zero(model: SequenceModel, all_rows: bool) -> None:
    model.zero_grad()
    if all_rows:  # l1 and l2 wrote to rows of the embedding that no token named
        for gradient in model.grads.values():
            gradient[...] = 0


@contextmanager
def _without_gradients(model: SequenceModel) -> Iterator[None]:
    """Before and after it all gradients are 0, those too that an interrupted backward wrote and did not report."""
    _zero(model, True)
    try:
        yield
    finally:
        _zero(model, True)


def _best(history: History) -> int:
    """The epoch of the highest score, and among equals, or without scores, of the lowest validation loss."""

    def rank(record: dict[str, Any]) -> tuple[float, float]:
        score = record.get("score", 0.0)
        return np.inf if np.isnan(score) else -score, record["validation_loss"]

    return int(min(history.records, key=rank)["epoch"])


def _finished(history: History, threshold: float | None, patience: int | None) -> bool:
    if not history.records:
        return False
    if threshold is not None and history.records[-1]["loss"] <= threshold:
        return True
    return patience is not None and history.best is not None and len(history) - history.best >= patience


def _ways_of(model: SequenceModel) -> dict[str, Any]:
    """What it does besides its arrays."""
    rnn = model.rnn
    ways: dict[str, Any] = {"pool": model.pool, "dropout": model.dropout, "token_dropout": model.token_dropout}
    for name in ("nonlinearity", "dropout", "recurrent_dropout", "input_dropout", "zoneout"):
        ways[f"rnn.{name}"] = getattr(rnn, name)
    return ways


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _values_of(schedule: Schedule) -> str:
    """A hash of the schedule's values at 1000 points, of 6 digits: other machines may round the last bits otherwise."""
    values = ",".join(f"{float(schedule(k / 1000)):.6g}" for k in range(1000))
    return hashlib.blake2b(values.encode(), digest_size=16).hexdigest()


def _write(
    path: Any,
    model: SequenceModel,
    optimizer: Optimizer,
    settings: dict[str, Any],
    history: History,
    best: dict[str, Array] | None,
) -> None:
    arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
    arrays |= {f"optimizer/{name}": array for name, array in optimizer.state_dict().items()}
    arrays |= {f"best/{name}": array for name, array in (best or {}).items()}
    description = {"kind": _KIND, "settings": settings, "history": history.records, "best": history.best}
    save_arrays(path, arrays, description)


def _resume(
    path: Any, model: SequenceModel, optimizer: Optimizer, settings: dict[str, Any]
) -> tuple[History, dict[str, Array] | None]:
    """Puts model and optimizer where the checkpoint left them; the history and the best parameters so far."""
    arrays, description = load_arrays(path, _KIND)
    found = description.get("settings")
    if found != settings:
        found = found if isinstance(found, dict) else {}
        both = [(key, settings.get(key, "nothing"), found.get(key, "nothing")) for key in {**settings, **found}]
        words = ", ".join(f"{key} {want!r} (got {got!r})" for key, want, got in both if want != got)
        raise ValueError(f"checkpoint: {path} was made with other settings: expected {words}")
    parts: dict[str, dict[str, Array]] = {"model": {}, "optimizer": {}, "best": {}}
    for name, array in arrays.items():
        part, _, key = name.partition("/")
        parts[part][key] = array
    try:
        model.load_state_dict(parts["model"])
        optimizer.load_state_dict(parts["optimizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} does not fit this model and optimizer: {error}") from None
    return History(description["history"], description["best"]), parts["best"] or None
