"""How far a backend's result may lie from the reference: what rounding explains, and no more.

Every step is judged from the backend's own neighbouring step (teacher forcing): forward from its own h_{t-1}, backward
from its own d_z_{t+1}. So errors do not pile up, and a bound holds element by element for any weights and any T, chaos
included, where end-to-end bounds are of no use: they grow like ||abs(w_hh)|| ** T.

A sum of n products a_k, in any order, errs with a standard deviation of at most sqrt(n) u (||a||_2 + |sum a|), where
u = eps / 2, if roundings are independent and the a_k are noise around their mean; a bound is LIMIT of them. Higham and
Mary, "Sharper probabilistic backward error analysis for basic linear algebra kernels with random data" (2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ._backends.options import NEEDS, Array, RnnGradients, RnnOptions

LIMIT = 4.0  # standard deviations
TANH_ULP = 2.0  # promise 1


@dataclass(frozen=True)
class Problem:
    """What rnn_forward and rnn_backward take, all arrays of one dtype. No packed rows."""

    x: Array  # (T, B, I)
    h_0: Array | None
    w_ih: Array
    w_hh: Array
    b_ih: Array | None = None
    b_hh: Array | None = None
    d_output: Array | None = None
    d_h_n: Array | None = None
    options: RnnOptions = field(default_factory=RnnOptions)

    @property
    def shape(self) -> tuple[int, int, int]:
        """T, B, H."""
        return (*self.x.shape[:2], len(self.w_hh))


@dataclass(frozen=True)
class Deviation:
    """Of one tensor: |computed - reference| and the bound on it, element by element."""

    error: Array
    bound: Array
    scale: float  # max |reference|
    eps: float  # of the dtype that was tested

    @property
    def max_error(self) -> float:
        """Largest |computed - reference|; NaN where the computed value is not finite."""
        return float(np.max(self.error, initial=0.0))

    @property
    def normalised(self) -> float:
        """max_error in units of eps * max |reference|."""
        return self.max_error / (self.eps * (self.scale or 1.0))

    @property
    def worst(self) -> float:
        """Largest error / bound, NaN where the computed value is not finite."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.max(np.where(self.error == 0, 0, self.error / self.bound), initial=0.0))

    @property
    def ok(self) -> bool:
        return self.worst <= 1.0


def wide_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype in which the reference of a float32 or float64 result is computed."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float32 else np.longdouble)


def deviation(computed: Array, expected: Array, bound: Any = np.inf) -> Deviation:
    """How far computed lies from expected, and may."""
    error = np.abs(computed.astype(expected.dtype) - expected).astype(np.float64)
    error[~np.isfinite(computed)] = np.nan
    scale = float(np.max(np.abs(expected), initial=0.0))
    bound = np.broadcast_to(np.asarray(bound, np.float64), error.shape)
    return Deviation(error, bound, scale, float(np.finfo(computed.dtype).eps))


def forward_deviation(problem: Problem, output: Array, h_n: Array, tanh_ulp: float = TANH_ULP) -> dict[str, Deviation]:
    """Of `output` (T, B, H), one step at a time, and of `h_n` (B, H), which must be exact."""
    dtype, wide, options = output.dtype, wide_dtype(output.dtype), problem.options
    on = active_rows(problem)[..., None]
    previous, mask = previous_states(problem, output).astype(wide), _mask(problem, wide)
    x, w_ih, w_hh = _x(problem, wide), problem.w_ih.astype(wide), problem.w_hh.astype(wide)
    biases = [b.astype(wide) for b in (problem.b_ih, problem.b_hh) if b is not None]

    z = x @ w_ih.T + (previous * mask) @ w_hh.T + sum(biases, np.zeros(1, wide))
    squares = x**2 @ w_ih.T**2 + (previous * mask) ** 2 @ w_hh.T**2 + sum((b**2 for b in biases), np.zeros(1, wide))
    bound = _sum_bound(squares, z, x.shape[2] + len(w_hh) + 2, dtype)
    if options.nonlinearity == "tanh":
        expected = np.tanh(z)
        steepest = 1 - np.tanh(np.maximum(np.abs(z) - bound, 0)) ** 2
        bound = bound * steepest + tanh_ulp * np.finfo(dtype).eps * np.abs(expected)
    else:
        expected = np.maximum(z, 0)
    bound = bound + np.finfo(dtype).tiny
    if options.keep_mask is not None:
        expected, bound = np.where(options.keep_mask, previous, expected), np.where(options.keep_mask, 0, bound)
    return {
        "output": deviation(output, np.where(on, expected, 0), np.where(on, bound, 0)),
        "h_n": deviation(h_n, last_states(problem, output), 0),
    }


def own_d_z(problem: Problem, output: Array, rnn_backward: Callable[..., Any]) -> Array:
    """(T, B, H): a backend's gradient at the argument of the nonlinearity, which is its d_x where w_ih is the identity.

    rnn_backward takes a problem and the tape, as in rnn_backward(problem, output).d_x.
    """
    identity = np.eye(len(problem.w_hh), dtype=problem.w_hh.dtype)
    d_z: Array = rnn_backward(replace(problem, x=np.zeros_like(output), w_ih=identity), output).d_x
    return d_z


def backward_deviation(problem: Problem, output: Array, d_z: Array, gradients: RnnGradients) -> dict[str, Deviation]:
    """Of `d_z` (from own_d_z), one step at a time, and of every gradient that is not None, given that d_z."""
    T, B, H = output.shape
    dtype, wide, options = output.dtype, wide_dtype(output.dtype), problem.options
    u, tiny = _unit(dtype), np.finfo(dtype).tiny
    active, mask = active_rows(problem), _mask(problem, wide)
    kept = np.zeros((T, B, H), bool) if options.keep_mask is None else options.keep_mask
    h, own = output.astype(wide), d_z.astype(wide)
    x, w_ih, w_hh = _x(problem, wide), problem.w_ih.astype(wide), problem.w_hh.astype(wide)
    d_output = np.zeros(1, wide) if problem.d_output is None else problem.d_output
    d_output = np.where(active[..., None], d_output, 0).astype(wide)
    slope = 1 - h * h if options.nonlinearity == "tanh" else (~(h <= 0)).astype(wide)

    # carry: the gradient at the state between two steps, from the d_z of the later one; only kept units pass it on.
    carry = np.zeros((B, H), wide) if problem.d_h_n is None else problem.d_h_n.astype(wide)
    carry_bound = np.zeros((B, H), wide)
    expected, bound = np.zeros_like(h), np.zeros_like(h)
    for t in range(T) if options.reverse else range(T - 1, -1, -1):
        on = active[t][:, None]
        d_h = carry + d_output[t]
        d_h_bound = carry_bound + u * np.abs(d_h)
        computed = on & ~kept[t]
        expected[t] = np.where(computed, d_h * slope[t], 0)
        # 1 - h * h is off by up to u (by nothing where h is 1 or 0), the product by a relative u.
        noise = LIMIT * u * (np.abs(d_h) * (slope[t] != 0) + np.abs(expected[t]))
        bound[t] = np.where(computed, d_h_bound * slope[t] + noise + tiny, 0)
        back = own[t] @ w_hh
        entered = mask * back + np.where(kept[t], d_h, 0)
        entered_bound = np.abs(mask) * _sum_bound(own[t] ** 2 @ w_hh**2, back, H, dtype)
        entered_bound += np.where(kept[t], d_h_bound, 0) + u * (np.abs(mask * back) + np.abs(entered)) + tiny
        if options.reset is not None:
            passes = ~options.reset[t][:, None]
            entered, entered_bound = entered * passes, entered_bound * passes
        carry, carry_bound = np.where(on, entered, carry), np.where(on, entered_bound, carry_bound)

    columns, rows = own.reshape(T * B, H).T, int(active.sum())
    x = x.reshape(T * B, x.shape[2])
    entering = (previous_states(problem, output).astype(wide) * mask).reshape(T * B, H)
    right = {
        "x": (own @ w_ih, own**2 @ w_ih**2, H),
        "w_ih": (columns @ x, columns**2 @ x**2, rows),
        "w_hh": (columns @ entering, columns**2 @ entering**2, rows),
        "b": (columns.sum(axis=1), (columns**2).sum(axis=1), rows),
    }
    deviations = {"d_z": deviation(d_z, expected, bound)}
    for name, gradient in zip(NEEDS, gradients, strict=True):
        if gradient is not None and name == "h_0":
            deviations["d_h_0"] = deviation(gradient, carry, carry_bound)
        elif gradient is not None:
            total, squares, n = right[name]
            deviations[f"d_{name}"] = deviation(gradient, total, _sum_bound(squares, total, n, dtype) + tiny)
    return deviations


def active_rows(problem: Problem) -> Array:
    """(T, B) bool: which steps exist."""
    T, B, _ = problem.shape
    lengths = problem.options.lengths
    return np.ones((T, B), bool) if lengths is None else np.arange(T)[:, None] < lengths[None, :]


def previous_states(problem: Problem, output: Array) -> Array:
    """(T, B, H): the state that enters each step, before the recurrent mask; arbitrary where no step exists."""
    T, B, H = output.shape
    zero = output.dtype.type(0)
    first = np.zeros((1, B, H), output.dtype) if problem.h_0 is None else problem.h_0[None]
    if problem.options.reverse:
        last = np.ones((T, B), bool)
        last[:-1] = ~active_rows(problem)[1:]
        previous = np.where(last[..., None], first, np.concatenate([output, first])[1:])
    else:
        previous = np.concatenate([first, output])[:-1]
    reset = problem.options.reset
    return previous if reset is None else np.where(reset[..., None], zero, previous)


def last_states(problem: Problem, output: Array) -> Array:
    """(B, H): what h_n must be, bit for bit."""
    T, B, H = output.shape
    first = np.zeros((B, H), output.dtype) if problem.h_0 is None else problem.h_0
    steps = active_rows(problem).sum(axis=0)
    if T == 0:
        return first
    last = np.zeros(B, np.int64) if problem.options.reverse else np.maximum(steps - 1, 0)
    return np.where((steps > 0)[:, None], output[last, np.arange(B)], first)


def _sum_bound(squares: Array, total: Array, n: int, dtype: np.dtype[Any]) -> Array:
    """On the error of a sum of n products, in any order; `squares` is the sum of the squared products."""
    bound: Array = LIMIT * np.sqrt(n) * _unit(dtype) * (np.sqrt(squares) + np.abs(total))
    return bound


def _unit(dtype: np.dtype[Any]) -> float:
    """u of the tested dtype, plus that of the wide dtype."""
    return float(np.finfo(dtype).eps + np.finfo(wide_dtype(dtype)).eps) / 2


def _mask(problem: Problem, wide: np.dtype[Any]) -> Array:
    mask = problem.options.recurrent_mask
    return np.ones((1, 1), wide) if mask is None else mask.astype(wide)


def _x(problem: Problem, wide: np.dtype[Any]) -> Array:
    """x with zeros beyond each row's length, where it may be NaN."""
    return np.where(active_rows(problem)[..., None], problem.x, 0).astype(wide)
