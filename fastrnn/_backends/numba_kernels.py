"""The kernels of the `numba` backend; numba_compile.py compiles them.

Every array that a kernel sees is C-contiguous, so that one signature serves all calls. nogil, no fastmath, no
parallel=True (its threading layer aborts on concurrent use).
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from .numba_pack import _pack as _pack
from .numba_products import _block, _multiply, _multiply_rows
from .numba_tanh import _tanh
from .options import Array

# ---- Kernels: batch rows b0..b1, steps i0..i1 in the order of processing. Row b of step t is row first[t] + b of the
# data (t * B + b where first is empty: padded rows), and exists where t < lengths[b] (everywhere where lengths is
# empty); base is the first row that the chunk's arrays hold. What is not given or not needed is an empty array. With u
# of size 0 the caller multiplies: then a call ends in front of the next product.

Options = tuple[Array, Array, Array, Array, Array, Array, bool, bool, int]
# first, lengths, reset, recurrent mask, keep mask, alpha, relu, reverse, T


@register_jitable
def _row(first: Array, B: int, t: int, b: int) -> int:
    return (first[t] if first.size else t * B) + b


@register_jitable
def _exists(lengths: Array, t: int, b: int) -> bool:
    return bool(lengths.size == 0 or t < lengths[b])


@register_jitable
def _add_rows(rows: Array, n: int, total: Array, result: Array) -> None:
    """total += the sum of n rows, in short chains of additions, for accuracy; result is total, rounded."""
    H = rows.shape[1]
    chain, part = np.empty(H, rows.dtype), np.empty(H, rows.dtype)
    for start in range(0, n, 256):
        stop = min(start + 256, n)
        block = _block(1, (stop - start) * H * rows.itemsize)
        part[:] = 0
        for first in range(start, stop, block):
            chain[:] = 0
            for r in range(first, min(first + block, stop)):
                for h in range(H):
                    chain[h] += rows[r, h]
            for h in range(H):
                part[h] += chain[h]
        for h in range(H):
            total[h] += part[h]
    for h in range(H):
        result[h] = total[h]


@register_jitable
def _act(z: Array, relu: bool) -> None:
    """z = act(z), of one dimension; for tanh what is no whole vector is copied into one."""
    zero = z.dtype.type(0)
    if relu:
        for i in range(z.size):
            s = z[i]
            z[i] = zero if s <= 0 else s  # a NaN stays one
        return
    rest = z.size % 8
    _act_by_tanh(z[: z.size - rest])
    if rest:
        last, vector = z[z.size - rest :], np.zeros(8, z.dtype)
        for i in range(rest):
            vector[i] = last[i]
        _act_by_tanh(vector)
        for i in range(rest):
            last[i] = vector[i]


@register_jitable
def _act_by_tanh(z: Array) -> None:
    for i in range(z.size):
        z[i] = _tanh(z[i])


@register_jitable
def _enter(
    states: Array, entering: Array, first: Array, lengths: Array, reset: Array, mask: Array, t: int, b0: int, b1: int
) -> None:
    """What w_hh multiplies in step t; without reset and mask entering is states itself."""
    if not (reset.size or mask.size):
        return
    for b in range(b0, b1):
        if _exists(lengths, t, b):
            restart = reset.size and reset[_row(first, len(states), t, b)]
            for h in range(states.shape[1]):
                p = states.dtype.type(0) if restart else states[b, h]
                entering[b, h] = p * mask[b, h] if mask.size else p


def _forward(
    x: Array,  # (rows of the chunk, I); of no rows: z is the input product already
    z: Array,  # (rows of the chunk, H): becomes the output
    w: Array,  # w_ih and w_hh, transposed; by_dots: as they are
    u: Array,
    b_ih: Array,
    b_hh: Array,
    states: Array,
    work: Array,  # (B + 1, H), with reset or mask (2 B + 1, H): the product, the bias, what w_hh multiplies
    options: Options,
    base: int,
    rows: tuple[int, int],
    steps: tuple[int, int],  # i0 = -1: the first call, which adds the biases
    by_dots: bool,
) -> None:
    first, lengths, reset, mask, keep, alpha, relu, reverse, T = options
    (b0, b1), (i0, i1) = rows, steps
    B, H = states.shape
    product, bias, flat = work[:B], work[B], work.reshape(-1)
    entering = work[B + 1 :] if reset.size or mask.size else states
    zero, one = states.dtype.type(0), states.dtype.type(1)
    if i0 < 0:
        bias[:] = 0
        for part in (b_ih, b_hh):
            for h in range(part.size):
                bias[h] += part[h]
        if not u.size and T > 0:
            _enter(states, entering, first, lengths, reset, mask, T - 1 if reverse else 0, b0, b1)
    if len(x):
        _multiply_rows(x, w, z, 0, len(x), by_dots)
    for i in range(max(i0, 0), i1):
        t = T - 1 - i if reverse else i
        if u.size:
            _enter(states, entering, first, lengths, reset, mask, t, b0, b1)
            _multiply_rows(entering, u, product, b0, b1, by_dots)
        for b in range(b0, b1):
            if _exists(lengths, t, b):
                h_t, added = z[_row(first, B, t, b) - base], product[b]
                for h in range(H):
                    added[h] = (h_t[h] + bias[h]) + added[h]
        _act(flat[b0 * H : b1 * H], relu)
        for b in range(b0, b1):
            r = _row(first, B, t, b)
            if not _exists(lengths, t, b):
                if not first.size:
                    z[r - base, :] = 0
                continue
            h_t, a_t, state = z[r - base], product[b], states[b]
            restart = reset.size and reset[r]
            if alpha.size:
                for h in range(H):
                    a_t[h] = (one - alpha[h]) * (zero if restart else state[h]) + alpha[h] * a_t[h]
            if keep.size:
                for h in range(H):
                    if keep[r, h]:
                        a_t[h] = zero if restart else state[h]
            for h in range(H):
                h_t[h] = a_t[h]
                state[h] = a_t[h]
        if not u.size and i + 1 < T:
            t = T - 2 - i if reverse else i + 1
            _enter(states, entering, first, lengths, reset, mask, t, b0, b1)


@register_jitable
def _leave(
    carry: Array, product: Array, first: Array, lengths: Array, reset: Array, mask: Array, keep: Array, alpha: Array,
    t: int, b0: int, b1: int,
) -> None:  # fmt: skip
    """The gradient that leaves step t for the step before: through w_hh, and past it where the state stayed."""
    zero, one = carry.dtype.type(0), carry.dtype.type(1)
    for b in range(b0, b1):
        if _exists(lengths, t, b):
            r = _row(first, len(carry), t, b)
            restart = reset.size and reset[r]
            for h in range(carry.shape[1]):
                d = product[b, h] * mask[b, h] if mask.size else product[b, h]
                if keep.size and keep[r, h]:
                    d += carry[b, h]
                elif alpha.size:
                    d += (one - alpha[h]) * carry[b, h]
                carry[b, h] = zero if restart else d


@register_jitable
def _before(
    tape: Array, tape_base: int, h_0: Array, first: Array, lengths: Array, reverse: bool, i: int, t: int, b: int
) -> Array:
    """The state of row b in front of step i, which is time t."""
    before: Array = h_0[b]
    if i > 0 and not (reverse and not _exists(lengths, t + 1, b)):
        before = tape[_row(first, len(h_0), t + 1 if reverse else t - 1, b) - tape_base]
    return before


def _enter_again(
    entering: Array,  # (rows of the chunk, H): what w_hh multiplies, all steps at once
    tape: Array,
    tape_base: int,
    h_0: Array,
    options: Options,
    base: int,
    rows: tuple[int, int],
    steps: tuple[int, int],
) -> None:
    first, lengths, reset, mask, _, _, _, reverse, T = options
    (b0, b1), (i0, i1) = rows, steps
    zero = entering.dtype.type(0)
    for i in range(i0, i1):
        t = T - 1 - i if reverse else i
        for b in range(b0, b1):
            r = _row(first, len(h_0), t, b)
            if _exists(lengths, t, b):
                before = _before(tape, tape_base, h_0, first, lengths, reverse, i, t, b)
                restart = reset.size and reset[r]
                for h in range(h_0.shape[1]):
                    p = zero if restart else before[h]
                    entering[r - base, h] = p * mask[b, h] if mask.size else p
            elif not first.size:
                entering[r - base, :] = 0


def _activate(z: Array, bias: Array, added: Array, relu: bool, r0: int, r1: int) -> None:
    """z = act(z + bias + added), as _forward has it."""
    H = z.shape[1]
    for r in range(r0, r1):
        for h in range(H):
            z[r, h] = (z[r, h] + bias[h]) + added[r, h]
    _act(z.reshape(-1)[r0 * H : r1 * H], relu)


def _backward(
    chunk: Array,  # (1, 2 or with alpha 4, rows of the chunk, H): d_z; what w_hh multiplied; the activation; what each
    # row adds to d_alpha
    product: Array,  # (B, H)
    d_output: Array,
    tape: Array,
    tape_base: int,
    x: Array,  # of no rows: the caller computes the gradients from d_z
    w: Array,  # w_ih and w_hh
    u: Array,
    h_0: Array,
    carry: Array,
    d_x: Array,
    d_w_ih: Array,
    d_w_hh: Array,
    d_b: Array,
    b_sum: Array,
    options: Options,
    base: int,
    rows: tuple[int, int],
    steps: tuple[int, int],
) -> None:
    first, lengths, reset, mask, keep, alpha, relu, reverse, T = options
    (b0, b1), (i0, i1) = rows, steps
    B, H = carry.shape
    zero, one = carry.dtype.type(0), carry.dtype.type(1)
    leaky, enters, last_part = alpha.size > 0, len(chunk) > 1, len(chunk) - 1
    d_z, entering = chunk[0], chunk[min(1, last_part)]
    activation, d_alpha = chunk[min(2, last_part)], chunk[last_part]
    for i in range(i1 - 1, i0 - 1, -1):
        t = T - 1 - i if reverse else i
        if not u.size and i + 1 < T:
            later = T - 2 - i if reverse else i + 1
            _leave(carry, product, first, lengths, reset, mask, keep, alpha, later, b0, b1)
        last = b0
        for b in range(b0, b1 if i >= 0 else b0):
            r = _row(first, B, t, b)
            if not _exists(lengths, t, b):
                if not first.size:
                    d_z[r - base, :] = 0
                    if enters:
                        entering[r - base, :] = 0
                    if leaky:
                        d_alpha[r - base, :] = 0
                continue
            last = b + 1
            d_h, out = carry[b], d_z[r - base]
            a_t = activation[r - base] if leaky else tape[r - tape_base]
            if d_output.size:
                given = d_output[r - base]
                for h in range(H):
                    d_h[h] += given[h]
            if relu:
                for h in range(H):
                    out[h] = zero if a_t[h] <= 0 else d_h[h]
            else:
                for h in range(H):
                    out[h] = d_h[h] * (one - a_t[h] * a_t[h])
            if leaky:
                for h in range(H):
                    out[h] *= alpha[h]
            if keep.size:
                for h in range(H):
                    if keep[r, h]:
                        out[h] = zero
            if enters:
                before = _before(tape, tape_base, h_0, first, lengths, reverse, i, t, b)
                restart = reset.size and reset[r]
                entered = entering[r - base]
                for h in range(H):
                    entered[h] = zero if restart else before[h]
                if mask.size:
                    for h in range(H):
                        entered[h] *= mask[b, h]
            if leaky:
                for h in range(H):
                    change = d_h[h] * (a_t[h] - (zero if restart else before[h]))
                    d_alpha[r - base, h] = zero if keep.size and keep[r, h] else change
        if u.size:
            if not first.size:  # whole fours, as all rows are taken: the same bits beside rows of any length
                last = min(b0 + (last - b0 + 3) // 4 * 4, b1)
            _multiply(d_z, u, product, b0, last, base - _row(first, B, t, 0), False)
            _leave(carry, product, first, lengths, reset, mask, keep, alpha, t, b0, b1)
    if len(x):
        if d_x.size:
            _multiply(d_z, w, d_x, 0, len(x), 0, False)
        if d_w_ih.size:
            _multiply(d_z, x, d_w_ih, 0, H, 0, True)
        if d_w_hh.size:
            _multiply(d_z, entering[: len(x)], d_w_hh, 0, H, 0, True)
        if d_b.size:
            _add_rows(d_z, len(x), b_sum, d_b)
