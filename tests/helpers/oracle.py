"""The recurrence written as plainly as it can be: one row, one step at a time, in any dtype.

It shares no code with fastrnn, so it can judge the NumPy reference too. Complex numbers pass through without a
conjugation, which makes complex-step derivatives exact; longdouble judges float64 kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def activation(z: Array, nonlinearity: str) -> Array:
    if nonlinearity == "tanh":
        return np.tanh(z)
    keep = np.logical_not(np.real(z) <= 0)  # NaN stays NaN
    return np.where(keep, z, z.dtype.type(0))


def row_times(T: int, length: int, reverse: bool) -> range:
    return range(length - 1, -1, -1) if reverse else range(length)


def forward(problem: Any, dtype: Any = np.float64, **changed: Array) -> tuple[Array, Array]:
    """output, h_n of a padded Problem in `dtype`; `changed` replaces arrays of it (x=..., w_hh=...)."""
    p = problem

    def take(name: str) -> Array | None:
        value = changed.get(name, getattr(p, name))
        return None if value is None else np.asarray(value, dtype)

    x, h_0, w_ih, w_hh = take("x"), take("h_0"), take("w_ih"), take("w_hh")
    b_ih, b_hh, mask, alpha = take("b_ih"), take("b_hh"), take("recurrent_mask"), take("alpha")
    T, B, H = x.shape[0], x.shape[1], w_hh.shape[0]
    output, h_n = np.zeros((T, B, H), dtype), np.zeros((B, H), dtype)
    with np.errstate(all="ignore"):
        for b in range(B):
            h = np.zeros(H, dtype) if h_0 is None else h_0[b].copy()
            length = T if p.lengths is None else int(p.lengths[b])
            for t in row_times(T, length, p.reverse):
                if p.reset is not None and p.reset[t, b]:
                    h = np.zeros(H, dtype)
                entering = h if mask is None else mask[b] * h
                z = w_ih @ x[t, b] + w_hh @ entering
                if b_ih is not None:
                    z = z + b_ih
                if b_hh is not None:
                    z = z + b_hh
                new = activation(z, p.nonlinearity)
                if alpha is not None:
                    new = (1 - alpha) * h + alpha * new
                h = new if p.keep_mask is None else np.where(p.keep_mask[t, b], h, new)
                output[t, b] = h
            h_n[b] = h
    return output, h_n


def loss(problem: Any, output: Array, h_n: Array) -> Any:
    """<d_output, output> + <d_h_n, h_n>: the scalar whose gradient BPTT returns."""
    total = output.dtype.type(0)
    if problem.d_output is not None:
        valid = valid_rows(problem)
        total = total + (np.where(valid[..., None], problem.d_output, 0).astype(output.real.dtype) * output).sum()
    if problem.d_h_n is not None:
        total = total + (problem.d_h_n.astype(output.real.dtype) * h_n).sum()
    return total


def valid_rows(problem: Any) -> Array:
    """(T, B) bool: the steps that exist."""
    T, B = problem.x.shape[:2]
    if problem.lengths is None:
        return np.ones((T, B), bool)
    return np.arange(T)[:, None] < np.asarray(problem.lengths)[None, :]


def entering_states(problem: Any, output: Array) -> Array:
    """(T, B, H): the state that enters each step, read off a kernel's own output (p_t of the contract)."""
    T, B, H = output.shape
    p = np.zeros((T, B, H), output.dtype)
    for b in range(B):
        before = np.zeros(H, output.dtype) if problem.h_0 is None else problem.h_0[b]
        length = T if problem.lengths is None else int(problem.lengths[b])
        for t in row_times(T, length, problem.reverse):
            p[t, b] = 0 if problem.reset is not None and problem.reset[t, b] else before
            before = output[t, b]
    return p


COMPLEX_STEP = 1e-150  # the error of a complex step is its square: nothing


def directional_derivative(problem: Any, direction: dict[str, Array]) -> tuple[Array, Array]:
    """d output, d h_n along `direction` (name -> array) by a complex step, in float64."""
    changed = {}
    for name, v in direction.items():
        changed[name] = np.asarray(getattr(problem, name), np.float64) + 1j * COMPLEX_STEP * v.astype(np.float64)
    output, h_n = forward(problem, np.complex128, **changed)
    return output.imag / COMPLEX_STEP, h_n.imag / COMPLEX_STEP


def gradient(problem: Any, name: str) -> Array:
    """d loss / d name, one complex step an element."""
    value = np.asarray(getattr(problem, name), np.float64)
    result = np.zeros(value.shape)
    for at in np.ndindex(value.shape):
        direction = np.zeros(value.shape)
        direction[at] = 1.0
        d_output, d_h_n = directional_derivative(problem, {name: direction})
        result[at] = loss(problem, d_output, d_h_n)
    return result
