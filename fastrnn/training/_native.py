"""The hot parts of training in C++ (csrc/cpu/training.h), and the same in NumPy where another backend is in use, or in
CuPy for its arrays.

C++ and NumPy give the same bits, but that Adam in C++ counts subnormal numbers as 0.
"""

from __future__ import annotations

import numpy as np

from .._backends.options import Array
from .._device import module_of
from .._gathered import native
from .._threads import get_num_threads
from .._validate import gpu


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
    """One step of Adam in place; False where that is left to NumPy or CuPy."""
    arrays, module = (p, mean, square, grad), native() if gpu(p) is None else None
    if module is None or not all(a.flags.c_contiguous and a.flags.aligned for a in arrays):
        return False
    module.adam(*arrays, *betas, rate, correction, eps, decay, keep, get_num_threads())
    return True


def max_over_time(x: Array, lengths: Array) -> tuple[Array, Array]:
    """(B, P): the maximum of x (T, B, P) over each row's own steps, 0 without any; and the first step that holds it."""
    module, (T, B, P) = native() if gpu(x) is None else None, x.shape
    if module is not None:
        top, at = np.empty((B, P), x.dtype), np.empty((B, P), np.int64)
        module.max_over_time(top, at, np.ascontiguousarray(x), np.ascontiguousarray(lengths), get_num_threads())
        return top, at
    xp = module_of(x)
    if T == 0:
        return xp.zeros((B, P), x.dtype), xp.zeros((B, P), np.int64)
    valid = xp.arange(T)[:, None] < lengths
    inside = xp.where(valid[..., None], x, x.dtype.type(-np.inf))
    at = inside.argmax(axis=0)
    top = x[at, xp.arange(B)[:, None], xp.arange(P)]
    return xp.where((lengths > 0)[:, None], top, x.dtype.type(0)), at
