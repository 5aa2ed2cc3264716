"""Gathered: x as rows of a table, for which the input product is a gather; and the sums of gathered rows."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple, cast

import numpy as np

from . import _backends
from ._backends.options import Array, empty
from ._device import module_of
from ._threads import get_num_threads
from ._validate import gpu


class Gathered(NamedTuple):
    """x (T, B, I) whose steps are rows of a table, which layer 0 of an RNN takes in place of x.

    Of w_ih x only the U products w_ih table^T are computed, and then gathered; of the gradient at the T * B places the
    sums for each row of the table, and of these d_w_ih and d_table: 2 U I H operations three times instead of 2 N I H.
    """

    table: Array  # (U, I); each of its rows occurs
    place: Array  # (T, B) integers in 0..U; U: x is 0

    @property
    def ndim(self) -> int:
        """That of x, as are shape and dtype."""
        return 3

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.place.shape, self.table.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.table.dtype

    def product(self, w_ih: Array) -> Array:
        """w_ih x (T, B, H)."""
        U, H = len(self.table), len(w_ih)
        rows = empty((U + 1, H), self.dtype)
        np.matmul(self.table, w_ih.T, out=rows[:U])
        rows[U] = 0
        return np.take(rows, self.place, axis=0)

    def sums(self, d: Array) -> Array:
        """(U, H): for each row of the table the sum of d (T, B, H) where it occurs, in the order of time."""
        U, place = len(self.table), self.place.reshape(-1)
        first = np.zeros(U + 1, np.int64)
        np.cumsum(np.bincount(place, minlength=U)[:U], out=first[1:])
        return sum_segments(d.reshape(-1, d.shape[-1]), stable_order(place, U + 1)[: first[-1]], first)


def native() -> Any:
    """The native module where backend="auto" means cpp, else None."""
    return getattr(_backends.get("auto"), "native", None)


def stable_order(numbers: Array, size: int) -> Array:
    """What sorts numbers (N) in 0..size-1; NumPy sorts those of 16 bits by radix, several times as fast."""
    narrow = numbers.astype(np.uint16) if size <= 1 << 16 else numbers
    return cast(Array, module_of(numbers).argsort(narrow, kind="stable"))


def sum_segments(rows: Array, order: Array, first: Array) -> Array:
    """(S, E): for each segment first[s] .. first[s + 1] of order the sum of those rows (N, E), in this order."""
    if gpu(rows) is not None:
        return cast(Array, import_module("fastrnn._backends.cupy_gpu").sum_segments(rows, order, first))
    module = native()
    if module is None:
        return np.add.reduceat(rows[order], first[:-1], axis=0)
    sums = np.empty((len(first) - 1, rows.shape[1]), rows.dtype)
    module.sum_segments(sums, np.ascontiguousarray(rows), order, first, get_num_threads())
    return sums
