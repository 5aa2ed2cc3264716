"""Element-wise bounds that follow from the arithmetic, by a teacher-forced check: every step of the judge starts from
the kernel's own previous state, so errors never accumulate over time and the bounds hold for any weights and any T.

A sum of n terms in any order errs by at most n u sum|terms| (u = eps / 2); its roundings behave like a martingale, so
6 sqrt(n) u holds but with probability 2 n exp(-18) (Connolly, Higham, Mary 2021). The smaller of the two is used.

product_error: of the products with w_hh, relative, where they are not exact but for the sum's roundings (tensor cores).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import oracle
from .cases import Problem, unpack
from .compare import ulp_size

Array = np.ndarray[Any, Any]


def wider(dtype: Any) -> Any:
    """The judge's dtype: float64 for float32, longdouble for float64 (64 mantissa bits on x86)."""
    return np.float64 if np.dtype(dtype) == np.float32 else np.longdouble


def rounding(dtype: Any) -> float:
    return float(np.finfo(dtype).eps) / 2


def smallest(dtype: Any) -> float:
    """The error of one operation near 0: a subnormal number may count as 0."""
    return float(np.finfo(dtype).smallest_normal)


def sum_factor(terms: int, dtype: Any) -> float:
    n = terms + 2
    return min(float(n), 6.0 * float(np.sqrt(n))) * rounding(dtype)


@dataclass
class Judged:
    reference: Array
    bound: Array


def _weights(p: Problem, wide: Any) -> tuple[Array, Array, Array, Array]:
    """w_ih, w_hh, b and |b| in the wide dtype."""
    biases = [b.astype(wide) for b in (p.b_ih, p.b_hh) if b is not None]
    b = sum(biases, np.zeros(p.H, wide))
    abs_b = sum((np.abs(v) for v in biases), np.zeros(p.H, wide))
    return p.w_ih.astype(wide), p.w_hh.astype(wide), b, abs_b


def judge_activation(p: Problem, output: Array, tanh_ulps: float, product_error: float = 0.0) -> tuple[Judged, Array]:
    """act(z) of every step, from the kernel's own states, and where relu's slope may be 0 or 1; p is padded."""
    dtype, wide = output.dtype, wider(output.dtype)
    entering = oracle.entering_states(p, output).astype(wide)
    masked = entering if p.recurrent_mask is None else entering * p.recurrent_mask.astype(wide)
    w_ih, w_hh, b, abs_b = _weights(p, wide)
    valid = oracle.valid_rows(p)[..., None]
    x = np.where(valid, p.x, 0).astype(wide)  # beyond a row's length there may be anything
    z = x @ w_ih.T + masked @ w_hh.T + b
    size = np.abs(x) @ np.abs(w_ih).T + np.abs(masked) @ np.abs(w_hh).T + abs_b
    terms = w_ih.shape[1] + w_hh.shape[1] + 3
    z_error = sum_factor(terms, dtype) * size + terms * smallest(dtype)
    z_error = z_error + product_error * (np.abs(masked) @ np.abs(w_hh).T)
    if p.nonlinearity == "tanh":
        reference = np.tanh(z)
        slope = 1 - np.square(np.tanh(np.maximum(np.abs(z) - z_error, 0)))
        bound = z_error * slope
        bound = bound + tanh_ulps * ulp_size(np.abs(reference) + bound, dtype)
    else:
        reference, bound = np.maximum(z, 0), z_error
    return Judged(reference, bound), np.abs(z) <= z_error


def judge_forward(p: Problem, output: Array, tanh_ulps: float = 2.0, product_error: float = 0.0) -> Judged:
    """One step of the exact recurrence from the kernel's own states; p is padded."""
    dtype, wide = output.dtype, wider(output.dtype)
    u = rounding(dtype)
    entering = oracle.entering_states(p, output).astype(wide)
    valid = oracle.valid_rows(p)[..., None]
    activation, _ = judge_activation(p, output, tanh_ulps, product_error)
    reference, bound = activation.reference, activation.bound
    if p.alpha is not None:  # 1 - alpha, two products and a sum are rounded
        alpha = p.alpha.astype(wide)
        stays, comes = (1 - alpha) * entering, alpha * reference
        reference = stays + comes
        bound = np.abs(alpha) * bound + u * (3 * np.abs(stays) + 2 * np.abs(comes) + np.abs(reference))
        bound = bound + 3 * smallest(dtype)
    if p.keep_mask is not None:
        reference = np.where(p.keep_mask, entering, reference)
        bound = np.where(p.keep_mask, 0, bound)
    return Judged(np.where(valid, reference, 0), np.where(valid, bound, 0))


def last_states(p: Problem, output: Array) -> Array:
    """h_n read off the output: exactly what a kernel must return."""
    T, B, H = output.shape
    h_n = np.zeros((B, H), output.dtype) if p.h_0 is None else p.h_0.copy()
    for b in range(B):
        length = T if p.lengths is None else int(p.lengths[b])
        if length:
            h_n[b] = output[0 if p.reverse else length - 1, b]
    return h_n


def judge_backward(
    p: Problem,
    output: Array,
    d_z: Array,
    tape_error: float = 1.0,
    tanh_ulps: float = 2.0,
    product_error: float = 0.0,
) -> dict[str, Judged]:
    """What each gradient must be, given the kernel's own d_z (T, B, H), the gradient at the activation's argument.

    d_z itself is judged step by step: D_t = (d_z_{t+1} U) m + kept D_{t+1} + d_output_t, d_z_t = D_t act'(h_t), each
    from the kernel's d_z_{t+1}. tape_error: absolute error of 1 - h^2 in roundings (1 without an FMA). p is padded.
    With alpha: D_t gets (1 - alpha) D_{t+1} too, d_z_t = alpha D_t act'(a_t), d_alpha = sum D_t (a_t - p_t), with the
    exact a_t and the error that judge_forward grants to the kernel's.
    """
    dtype, wide = output.dtype, wider(output.dtype)
    u = rounding(dtype)
    T, B, H = output.shape
    w_ih, w_hh, _, _ = _weights(p, wide)
    dz, h = d_z.astype(wide), output.astype(wide)
    mask = np.ones((B, H), wide) if p.recurrent_mask is None else p.recurrent_mask.astype(wide)
    valid = oracle.valid_rows(p)
    d_output = (
        np.zeros((T, B, H), wide) if p.d_output is None else np.where(valid[..., None], p.d_output, 0).astype(wide)
    )
    D = np.zeros((B, H), wide) if p.d_h_n is None else p.d_h_n.astype(wide)
    E = np.zeros((B, H), wide)  # bound of D's error
    dz_reference, dz_bound = np.zeros_like(dz), np.zeros_like(dz)
    alpha = np.ones(H, wide) if p.alpha is None else p.alpha.astype(wide)
    slopes = 1 - np.square(h) if p.nonlinearity == "tanh" else (~(h <= 0)).astype(wide)
    slope_errors = np.full_like(slopes, tape_error * u if p.nonlinearity == "tanh" else 0.0)
    spread = 0  # of d_z between the call that it is from and the one that is judged; d_z of leaky units, see d_z_of
    changes, change_errors = np.zeros_like(dz), np.zeros_like(dz)
    d_alphas, d_alpha_errors = np.zeros_like(dz), np.zeros_like(dz)
    if p.alpha is not None:
        spread = 2
        activation, doubtful = judge_activation(p, output, tanh_ulps)
        a, a_error = activation.reference, activation.bound
        slopes = 1 - np.square(a) if p.nonlinearity == "tanh" else (a > 0).astype(wide)
        slope_errors = (2 * np.abs(a) + a_error) * a_error + u if p.nonlinearity == "tanh" else doubtful.astype(wide)
        changes = a - oracle.entering_states(p, output).astype(wide)
        change_errors = a_error + u * np.abs(changes)
    for t in range(T) if p.reverse else range(T - 1, -1, -1):
        on = valid[t][:, None]
        D_t = D + d_output[t]
        E_t = E + 2 * u * (np.abs(D) + np.abs(d_output[t]))
        slope, slope_error = np.abs(alpha) * slopes[t], np.abs(alpha) * slope_errors[t]
        kept = np.zeros((B, H), bool) if p.keep_mask is None else p.keep_mask[t]
        dz_t = np.where(kept, 0, D_t * alpha * slopes[t])
        dz_reference[t] = np.where(on, dz_t, 0)
        bound = E_t * (slope + slope_error) + slope_error * np.abs(D_t) + (2 + (p.alpha is not None)) * u * np.abs(dz_t)
        d_alphas[t] = np.where(on & ~kept, D_t * changes[t], 0)
        d_alpha_error = E_t * (np.abs(changes[t]) + change_errors[t]) + np.abs(D_t) * change_errors[t]
        d_alpha_errors[t] = np.where(on & ~kept, d_alpha_error + u * np.abs(d_alphas[t]), 0)
        dz_bound[t] = np.where(on & ~kept, bound, 0)
        flow = (dz[t] @ w_hh) * mask
        flow_error = (np.abs(dz[t]) @ np.abs(w_hh)) * mask * (sum_factor(H, dtype) + 2 * u + product_error)
        flow_error = flow_error + (spread * dz_bound[t] @ np.abs(w_hh)) * mask
        leak = np.where(kept, 1, 1 - alpha)
        leak_error = 0.0 if p.alpha is None else 2 * u * np.abs(np.where(kept, 0, leak * D_t))
        through, through_error = leak * D_t, np.abs(leak) * E_t + leak_error
        before = flow + through
        before_error = flow_error + through_error + u * (np.abs(flow) + np.abs(through))
        if p.reset is not None:
            before = np.where(p.reset[t][:, None], 0, before)
            before_error = np.where(p.reset[t][:, None], 0, before_error)
        D, E = np.where(on, before, D), np.where(on, before_error, E)
    tiny = 2 * (H + 4) * smallest(dtype)
    judged = {"d_z": Judged(dz_reference, dz_bound + np.where(dz_bound > 0, tiny, 0)), "d_h_0": Judged(D, E + tiny)}

    rows = int(valid.sum())
    flat = np.where(valid[..., None], dz, 0).reshape(T * B, H)
    x = np.where(valid[..., None], p.x, 0).astype(wide).reshape(T * B, -1)
    state = (oracle.entering_states(p, output).astype(wide) * mask).reshape(T * B, H)
    product = {"d_w_ih": x, "d_w_hh": state, "d_b": np.ones((T * B, 1), wide)}
    for name, operand in product.items():
        bound = (np.abs(flat).T @ np.abs(operand)) * (sum_factor(rows, dtype) + 2 * u) + rows * tiny
        bound = bound + spread * dz_bound.reshape(T * B, H).T @ np.abs(operand)
        reference = flat.T @ operand
        shape = reference.shape if name != "d_b" else (H,)
        judged[name] = Judged(reference.reshape(shape), bound.reshape(shape))
    if p.alpha is not None:
        size, error = np.abs(d_alphas).sum((0, 1)), d_alpha_errors.sum((0, 1))
        error = error + (size + error) * (sum_factor(rows, dtype) + 2 * u) + rows * tiny
        judged["d_alpha"] = Judged(d_alphas.sum((0, 1)), error)
    d_x = dz @ w_ih
    d_x_bound = (np.abs(dz) @ np.abs(w_ih)) * sum_factor(H, dtype) + np.where(valid[..., None], tiny, 0)
    d_x_bound = d_x_bound + spread * dz_bound @ np.abs(w_ih)
    judged["d_x"] = Judged(np.where(valid[..., None], d_x, 0), d_x_bound)
    return judged


UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def stored(judged: Judged, storage: str) -> Judged:
    """The same, rounded once to 16 bits; 2^-25: half of float16's smallest subnormal number."""
    room = UNIT_ROUNDOFF[storage] * (np.abs(judged.reference) + judged.bound) + 2.0**-25
    return Judged(judged.reference, judged.bound + np.where(judged.bound > 0, room, 0))  # 0: copied, not computed


def as_padded(array: Array | None, p: Problem, fill: Any = 0) -> Array | None:
    """A kernel's packed result beside p.padded()."""
    return array if array is None or p.batch_sizes is None else unpack(array, p.batch_sizes, fill)
