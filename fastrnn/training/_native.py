"""The hot parts of training in C++ (csrc/cpu/training.h), and the same in NumPy where another backend is in use.

Adam and the maximum give the same bits either way; sums of one token's rows differ in the order of their terms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _backends
from .._backends.options import Array
from .._threads import get_num_threads


def native() -> Any:
    """The native module where backend="auto" means cpp, else None."""
    return getattr(_backends.get("auto"), "native", None)


def adam(
    p: Array,
    mean: Array,
    square: Array,
    grad: Array,
    *,
    betas: tuple[float, float],
    rate: float,
    correction: float,
    eps: float,
    decay: float,
    keep: float,
) -> bool:
    """One step of Adam in place; False where that is left to NumPy."""
    arrays, module = (p, mean, square, grad), native()
    if module is None or not all(a.flags.c_contiguous and a.flags.aligned for a in arrays):
        return False
    module.adam(*arrays, *betas, rate, correction, eps, decay, keep, get_num_threads())
    return True


def sum_segments(rows: Array, order: Array, first: Array) -> Array:
    """(S, E): for each segment first[s] .. first[s + 1] of order the sum of those rows (N, E), in this order."""
    module = native()
    if module is None:
        return np.add.reduceat(rows[order], first[:-1], axis=0)
    sums = np.empty((len(first) - 1, rows.shape[1]), rows.dtype)
    module.sum_segments(sums, np.ascontiguousarray(rows), order, first, get_num_threads())
    return sums


def max_over_time(x: Array, lengths: Array) -> tuple[Array, Array]:
    """(B, P): the maximum of x (T, B, P) over each row's own steps, 0 without any; and the first step that holds it."""
    module, (T, B, P) = native(), x.shape
    if module is not None:
        top, at = np.empty((B, P), x.dtype), np.empty((B, P), np.int64)
        module.max_over_time(top, at, np.ascontiguousarray(x), lengths, get_num_threads())
        return top, at
    if T == 0:
        return np.zeros((B, P), x.dtype), np.zeros((B, P), np.int64)
    valid = np.arange(T)[:, None] < lengths
    inside = np.where(valid[..., None], x, x.dtype.type(-np.inf))
    at = inside.argmax(axis=0)
    top = x[at, np.arange(B)[:, None], np.arange(P)]
    top[lengths == 0] = 0
    return top, at
