"""The `numpy` backend: the recurrence as its formulas say, in any dtype; every other backend is held against it.

Elman, "Finding structure in time" (1990); back-propagation through time: Werbos, "Backpropagation through time: what
it does and how to do it" (1990). Complex arrays pass without a conjugation, so complex-step derivatives are exact.
Only rows that exist are read: a NaN beyond a row's length, or in another row, touches nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

import numpy as np

from .options import NEEDS, Array, RnnGradients, RnnOptions, WeightSums, empty

Index: TypeAlias = Any
Step: TypeAlias = tuple[Index, Index]


def _steps(T: int, options: RnnOptions) -> list[Step]:
    """(rows, at) of each step in the order of processing: states[rows] are the rows that step, x[at] their data."""
    steps: list[Step]
    if options.batch_sizes is not None:
        sizes = [int(size) for size in options.batch_sizes]
        ends = np.cumsum(sizes, dtype=np.int64)
        steps = [(slice(0, size), slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    elif options.lengths is not None:
        rows = [np.flatnonzero(options.lengths > t) for t in range(T)]
        steps = [(rows[t], (t, rows[t])) for t in range(T)]
    else:
        steps = [(slice(None), t) for t in range(T)]
    return steps[::-1] if options.reverse else steps


def _initial_states(x: Array, h_0: Array | None, H: int, dtype: np.dtype[Any], options: RnnOptions) -> Array:
    if h_0 is not None:
        return h_0.astype(dtype)
    if options.batch_sizes is None:
        return np.zeros((x.shape[1], H), dtype)
    return np.zeros((int(options.batch_sizes[0]) if len(options.batch_sizes) else 0, H), dtype)


def _activate(z: Array, nonlinearity: str) -> Array:
    if nonlinearity == "tanh":
        return np.asarray(np.tanh(z))
    return np.where(z.real <= 0, z.dtype.type(0), z)  # a NaN stays one


def _bias(b_ih: Array | None, b_hh: Array | None, H: int, dtype: np.dtype[Any]) -> Array:
    return np.asarray(sum((b for b in (b_ih, b_hh) if b is not None), np.zeros(H, dtype)))


def _project(x: Array, w_ih: Array | None) -> Array:
    return x if w_ih is None else x @ w_ih.T


def pack_weights(w_ih: Array, w_hh: Array) -> None:
    """NumPy reads the weights as they are."""


def rnn_forward(
    x: Array,
    h_0: Array | None,
    w_ih: Array | None,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    options: RnnOptions,
    out: Array | None = None,
    packed: None = None,
) -> tuple[Array, Array]:
    """output (T, B, H), zero beyond a row's length, and h_n (B, H), each row's state after its own last step."""
    H = len(w_hh)
    given = [a for a in (x, h_0, w_ih, w_hh, b_ih, b_hh, options.alpha) if a is not None]
    dtype = np.result_type(*given)
    output = empty((*x.shape[:-1], H), dtype) if out is None else out
    if options.lengths is not None:
        output[...] = 0
    states = _initial_states(x, h_0, H, dtype, options)
    b = _bias(b_ih, b_hh, H, dtype)
    with np.errstate(all="ignore"):
        for rows, at in _steps(len(x), options):
            p = states[rows]
            if options.reset is not None:
                p = np.where(options.reset[at][:, None], dtype.type(0), p)
            entering = p if options.recurrent_mask is None else p * options.recurrent_mask[rows]
            h = _activate(_project(x[at], w_ih) + b + entering @ w_hh.T, options.nonlinearity)
            if options.alpha is not None:
                h = (1 - options.alpha) * p + options.alpha * h
            if options.keep_mask is not None:
                h = np.where(options.keep_mask[at], p, h)
            states[rows] = output[at] = h
    return output, states


def rnn_backward(
    d_output: Array | None,
    d_h_n: Array | None,
    output: Array,
    x: Array,
    h_0: Array | None,
    w_ih: Array | None,
    w_hh: Array,
    options: RnnOptions,
    needs: Collection[str] = NEEDS,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    sums: WeightSums | None = None,
) -> RnnGradients:
    """Gradients by BPTT. Those of the weights are summed over time in float64 or wider, and rounded once.

    With alpha the activations are computed again: (h_t - (1 - alpha) p_t) / alpha would lose digits.
    """
    H = len(w_hh)
    alpha = options.alpha
    given = [a for a in (d_output, d_h_n, output, x, h_0, w_ih, w_hh, alpha) if a is not None]
    dtype = np.result_type(*given)
    wide = np.result_type(dtype, np.float64)
    d_x = empty(x.shape, dtype) if "x" in needs else None
    if d_x is not None and options.lengths is not None:
        d_x[...] = 0
    d_w_ih = np.zeros(w_ih.shape, wide) if w_ih is not None and "w_ih" in needs else None
    d_w_hh = np.zeros((H, H), wide) if "w_hh" in needs else None
    d_b = np.zeros(H, wide) if "b" in needs else None
    d_alpha = np.zeros(H, wide) if alpha is not None and "alpha" in needs else None
    b = _bias(b_ih, b_hh, H, dtype)
    first = _initial_states(x, h_0, H, dtype, options)
    d_states = np.zeros_like(first) if d_h_n is None else d_h_n.astype(dtype)
    steps = _steps(len(x), options)
    with np.errstate(all="ignore"):
        for i, (rows, at) in reversed(list(enumerate(steps))):
            before = first.copy()  # the states that step i started from
            if i > 0:
                before[steps[i - 1][0]] = output[steps[i - 1][1]]
            p = before[rows]
            if options.reset is not None:
                restart = options.reset[at][:, None]
                p = np.where(restart, dtype.type(0), p)
            entering = p if options.recurrent_mask is None else p * options.recurrent_mask[rows]

            d_h = d_states[rows] if d_output is None else d_states[rows] + d_output[at]
            a, d_a, d_alphas = output[at], d_h, None
            if alpha is not None:
                a = _activate(_project(x[at], w_ih) + b + entering @ w_hh.T, options.nonlinearity)
                d_a, d_alphas = alpha * d_h, d_h * (a - p)
            d_z = d_a * (1 - a * a) if options.nonlinearity == "tanh" else np.where(a.real <= 0, dtype.type(0), d_a)
            if options.keep_mask is not None:
                d_z = np.where(options.keep_mask[at], dtype.type(0), d_z)

            if d_x is not None:
                d_x[at] = d_z if w_ih is None else d_z @ w_ih
            if d_w_ih is not None:
                d_w_ih += d_z.T @ x[at]
            if d_w_hh is not None:
                d_w_hh += d_z.T @ entering
            if d_b is not None:
                d_b += d_z.sum(axis=0, dtype=wide)
            if d_alpha is not None and d_alphas is not None:
                if options.keep_mask is not None:
                    d_alphas = np.where(options.keep_mask[at], dtype.type(0), d_alphas)
                d_alpha += d_alphas.sum(axis=0, dtype=wide)

            d_p = d_z @ w_hh
            if options.recurrent_mask is not None:
                d_p = d_p * options.recurrent_mask[rows]
            leaked = d_p if alpha is None else d_p + (1 - alpha) * d_h
            if options.keep_mask is not None:
                leaked = np.where(options.keep_mask[at], d_p + d_h, leaked)
            d_p = leaked
            if options.reset is not None:
                d_p = np.where(restart, dtype.type(0), d_p)
            d_states[rows] = d_p
    *d_weights, d_alpha = [None if d is None else d.astype(dtype, copy=False) for d in (d_w_ih, d_w_hh, d_b, d_alpha)]
    gradients = RnnGradients(d_x, d_states if "h_0" in needs else None, *d_weights).with_alpha(d_alpha)
    return gradients if sums is None else sums.take(gradients)
