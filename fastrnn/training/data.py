"""Sequences of any lengths, and the mini-batches made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from .. import _validate
from .._backends.options import Array
from .._device import check_kind

_POOL = 50  # batches whose rows are sorted by length together
_PIECE = 1 << 24  # bytes hashed at a time, about: what is strided, or mapped from a file, is copied in pieces


class Batch(NamedTuple):
    """One mini-batch, time-major."""

    x: Array  # (T, B, I) floats or (T, B) tokens, 0 beyond a row's length
    lengths: Array | None  # (B); None where all are T
    targets: Array  # (B, ...), or (T, B, ...) for a target at every step
    mask: Array | None  # (T, B) bool for a target at every step of ragged rows

    def windows(self, steps: int | None, every_step: bool) -> Iterator[Batch]:
        """Pieces of at most `steps` time steps, in order; only with targets at every step."""
        T = len(self.x)
        if steps is None or steps >= T:
            yield self
            return
        for start in range(0, T, steps):
            part = slice(start, start + steps)
            lengths = None if self.lengths is None else np.clip(self.lengths - start, 0, min(steps, T - start))
            targets = self.targets[part] if every_step else self.targets
            yield Batch(self.x[part], lengths, targets, None if self.mask is None else self.mask[part])


class Sequences:
    """N sequences and their targets.

    Arguments:
        x: (T, N, I) floats or (T, N) int tokens; or a list of N arrays (T_n, I) or (T_n) of differing lengths.
        targets: (N, ...), one for each sequence; with every_step (T, N, ...) or a list of N arrays (T_n, ...).
        lengths: (N), for an array x whose rows end early. What x holds beyond does not matter: batches have 0 there.
        every_step: there is a target at every step.

    A list is kept as it is; batches are padded to their own longest row. Data stays on the host: fit moves each batch
    where the model is. Raises TypeError and ValueError.
    """

    def __init__(self, x: Any, targets: Any, lengths: Any = None, *, every_step: bool = False) -> None:
        self.every_step = _validate.boolean("every_step", every_step)
        self.x: Array | list[Array]
        check_kind("x", x, None)
        if isinstance(x, np.ndarray):
            if x.ndim not in (2, 3):
                raise ValueError(f"x: expected (T, N, I), (T, N) tokens or a list of arrays, got shape {x.shape}")
            self.x, count = x, x.shape[1]
            lengths = np.full(count, len(x)) if lengths is None else _validate.sequence_lengths(lengths, len(x), count)
        else:
            if lengths is not None:
                raise ValueError("lengths: expected None for a list of sequences, got lengths")
            self.x = [np.asarray(row) for row in x]
            kinds = {(row.dtype, row.shape[1:]) for row in self.x}
            if len(kinds) > 1 or any(row.ndim not in (1, 2) for row in self.x):
                raise ValueError(
                    f"x: expected arrays (T_n, I) or (T_n) of one dtype and I, got {sorted(map(str, kinds))}"
                )
            lengths, count = np.asarray([len(row) for row in self.x], np.int64), len(self.x)
        if count == 0:
            raise ValueError("x: expected at least one sequence, got none")
        self.lengths: Array = lengths
        self.targets = self._checked(targets)

    def _checked(self, targets: Any) -> Array | list[Array]:
        check_kind("targets", targets, None)
        count = len(self)
        if not self.every_step:
            targets = np.asarray(targets)
            if targets.ndim < 1 or len(targets) != count:
                raise ValueError(f"targets: expected one for each of {count} sequences, got shape {targets.shape}")
            return cast(Array, targets)
        if isinstance(self.x, np.ndarray):
            targets = np.asarray(targets)
            if targets.shape[:2] != self.x.shape[:2]:
                raise ValueError(f"targets: expected (T, N, ...) = {self.x.shape[:2]}, got shape {targets.shape}")
            return cast(Array, targets)
        rows = [np.asarray(row) for row in targets]
        if [len(row) for row in rows] != self.lengths.tolist():
            raise ValueError("targets: expected as many steps in each sequence as x has")
        return rows

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Array) -> Batch:
        """These sequences, as far as the longest of them goes."""
        lengths = self.lengths[rows]
        T = int(lengths.max(initial=0))
        ragged = bool((lengths < T).any())
        x = _gather(self.x, rows, T, ragged)
        mask = np.arange(T)[:, None] < lengths if ragged else None
        if mask is not None and isinstance(self.x, np.ndarray):
            x[~mask] = 0
        if self.every_step:
            return Batch(x, lengths if ragged else None, _gather(self.targets, rows, T, ragged), mask)
        return Batch(x, lengths if ragged else None, cast(Array, self.targets)[rows], None)

    def digest(self) -> str:
        """A hash of x, targets and lengths: the same for the same data in every process. Of arrays of objects it knows
        the shape alone."""
        found = hashlib.blake2b(str(self.every_step).encode(), digest_size=16)
        for values in (self.x, self.targets, self.lengths):
            for array in [values] if isinstance(values, np.ndarray) else values:
                found.update(f"{array.dtype.str} {array.shape}".encode())
                if array.dtype.hasobject:
                    continue
                for part in [array] if array.nbytes <= _PIECE else np.array_split(array, array.nbytes // _PIECE + 1):
                    found.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return found.hexdigest()


def _gather(values: Array | list[Array], rows: Array, T: int, ragged: bool) -> Array:
    """(T, B, ...) of these rows; beyond the length of each what an array holds there, of a list 0."""
    if isinstance(values, np.ndarray):
        return values[:T, rows]
    first = values[int(rows[0])]
    if not ragged:
        return np.stack([values[r] for r in rows.tolist()], axis=1)
    padded = np.zeros((len(rows), T, *first.shape[1:]), first.dtype)
    for i, r in enumerate(rows.tolist()):
        padded[i, : len(values[r])] = values[r]
    return np.ascontiguousarray(padded.swapaxes(0, 1))


def stream(x: Array, targets: Array, rows: int) -> Sequences:
    """One long sequence x (T, I) or (T) with targets (T, ...) as `rows` equal parts side by side, for fit(window=).

    What is left over at the end is dropped. Raises ValueError for fewer steps than rows.
    """
    T = len(x) // _validate.integer("rows", rows, at_least=1)
    if T == 0 or len(x) != len(targets):
        raise ValueError(f"x: expected at least {rows} steps, as many as targets, got {len(x)} and {len(targets)}")

    def fold(values: Array) -> Array:
        return values[: T * rows].reshape(rows, T, *values.shape[1:]).swapaxes(0, 1)

    return Sequences(fold(x), fold(targets), every_step=True)


def batches(
    lengths: Sequence[int] | Array, size: int, rng: np.random.Generator | None = None, *, bucket: bool = True
) -> list[Array]:
    """The row numbers of each mini-batch; every row is in one of them.

    With rng the rows are shuffled; with bucket, rows of like length share a batch: within 50 batches' worth of shuffled
    rows they are sorted by length, and the batches are shuffled again. Without rng: sorted by length, all of them.
    """
    lengths = np.asarray(lengths)
    if rng is None:
        order = np.argsort(lengths, kind="stable")
        return [order[i : i + size] for i in range(0, len(order), size)]
    order = rng.permutation(len(lengths))
    if not bucket:
        return [order[i : i + size] for i in range(0, len(order), size)]
    found = []
    for start in range(0, len(order), size * _POOL):
        pool = order[start : start + size * _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        found += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [found[i] for i in rng.permutation(len(found))]
