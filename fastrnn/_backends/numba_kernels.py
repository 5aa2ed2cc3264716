"""The kernels of the `numba` backend, compiled on first use, once per dtype.

Every array that a kernel sees is C-contiguous, so that one signature serves all calls. nogil, no fastmath, no
parallel=True (its threading layer aborts on concurrent use). The machine code is kept on disk, beside this file or
where NUMBA_CACHE_DIR says, if a place is writable. When compiling takes more than 2 s, the logger "fastrnn" says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from threading import RLock, Timer
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload, register_jitable

from .options import Array

# ---- tanh: the two formulas of csrc/cpu/tanh.inl, lane by lane, without FMA
#   |x| <= 0.625    x + x^3 Q(x^2)
#   above           1 - 2 / (exp(2 |x|) + 1), the sign put back


@intrinsic
def _reinterpret(context: Any, x: Any) -> Any:
    """The bits of a float as an integer of its width, and back."""
    pairs = {types.float32: types.int32, types.float64: types.int64}
    other = {**pairs, **{b: a for a, b in pairs.items()}}[x]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return other(x), generate


def _tanh(x: Any) -> Any:
    raise NotImplementedError("for compiled code")


@overload(_tanh, jit_options={"error_model": "numpy"})
def _tanh_of(x: Any) -> Callable[[Any], Any]:
    def tanh_float32(x: Any) -> Any:
        f, bits = np.float32, np.int32
        q = x * x
        near = f(0.00229274481618)
        near = near * q + f(-0.00834394551584)
        near = near * q + f(0.021768918651)
        near = near * q + f(-0.0539592595772)
        near = near * q + f(0.133333035569)
        near = near * q + f(-0.333333331721)
        near = x * (q * near) + x
        size = abs(x)
        y = min(size + size, f(18.2))  # 2 |x|; tanh rounds to 1 from 18.03
        shifted = y * f(1.4426950408889634) + f(12582912)  # 1.5 * 2^23: the integer is in the low bits
        r = y - (shifted - f(12582912)) * f(0.6931471805599453)
        e = f(0.00139337307158)
        e = e * r + f(0.0083692202918)
        e = e * r + f(0.0416664641974)
        e = e * r + f(0.16666504613)
        e = e * r + f(0.500000001354)
        e = e * r + f(1.0)
        e = (r * e + f(1.0)) * _reinterpret(bits((_reinterpret(shifted) + 127) << 23))
        far = f(1.0) - f(2.0) / (e + f(1.0))
        value = far if size > f(0.625) else near  # a NaN takes near
        return _reinterpret(bits((_reinterpret(value) & 0x7FFFFFFF) | (_reinterpret(x) & 0x80000000)))  # -0 stays

    def tanh_float64(x: Any) -> Any:
        q = x * x
        near = 6.48516348279311315e-6
        near = near * q - 0.000031201101425797400033
        near = near * q + 0.000092571161295567682707
        near = near * q - 0.00023759064960555619551
        near = near * q + 0.0005896606577757043347
        near = near * q - 0.0014557754120478055104
        near = near * q + 0.0035921217511549622695
        near = near * q - 0.008863235103240877925
        near = near * q + 0.021869488519008305756
        near = near * q - 0.05396825396789699169
        near = near * q + 0.13333333333333041602
        near = near * q - 0.33333333333333332938
        near = x * (q * near) + x
        size = abs(x)
        y = min(size + size, 38.2)  # 2 |x|; tanh rounds to 1 from 38.12
        shifted = y * 1.4426950408889634074 + 6755399441055744.0  # 1.5 * 2^52: the integer is in the low bits
        r = y - (shifted - 6755399441055744.0) * 0.69314718055994530942
        e = 2.5105312729622101787e-8
        e = e * r + 2.7626495546432196255e-7
        e = e * r + 2.7557255170000887438e-6
        e = e * r + 0.000024801504014426905068
        e = e * r + 0.00019841269875002278793
        e = e * r + 0.001388888893275100025
        e = e * r + 0.0083333333333260831202
        e = e * r + 0.041666666666572391458
        e = e * r + 0.1666666666666667103
        e = e * r + 0.50000000000000056734
        e = e * r + 1.0
        e = (r * e + 1.0) * _reinterpret((_reinterpret(shifted) + 1023) << 52)
        far = 1.0 - 2.0 / (e + 1.0)
        value = far if size > 0.625 else near
        return _reinterpret((_reinterpret(value) & 0x7FFFFFFFFFFFFFFF) | (_reinterpret(x) & -0x8000000000000000))

    return tanh_float32 if x == types.float32 else tanh_float64


# ---- Kernels: batch rows b0..b1, steps i0..i1 in the order of processing. Row b of step t is row first[t] + b of the
# data (t * B + b where first is empty: padded rows), and exists where t < lengths[b]; base is the first row that the
# chunk's arrays hold. Options that are not given are empty arrays. With w of size 0 the caller multiplies: then a call
# ends in front of the next product, and i0 = -1 only prepares the first one.


@register_jitable
def _row(first: Array, lengths: Array, t: int, b: int) -> int:
    return (first[t] if first.size else t * lengths.size) + b


@register_jitable
def _multiply(a: Array, w: Array, out: Array, b0: int, b1: int, a0: int) -> None:
    """out[b] = a[b - a0] @ w. The innermost loops run over the outputs; four rows share what they load of w."""
    K, H = w.shape
    fours = b0 + (b1 - b0) // 4 * 4
    for b in range(b0, fours, 4):
        a_0, a_1, a_2, a_3 = a[b - a0], a[b + 1 - a0], a[b + 2 - a0], a[b + 3 - a0]
        out_0, out_1, out_2, out_3 = out[b], out[b + 1], out[b + 2], out[b + 3]
        out[b : b + 4, :] = 0
        for k in range(0, K - 3, 4):
            p0, p1, p2, p3 = a_0[k], a_0[k + 1], a_0[k + 2], a_0[k + 3]
            q0, q1, q2, q3 = a_1[k], a_1[k + 1], a_1[k + 2], a_1[k + 3]
            r0, r1, r2, r3 = a_2[k], a_2[k + 1], a_2[k + 2], a_2[k + 3]
            s0, s1, s2, s3 = a_3[k], a_3[k + 1], a_3[k + 2], a_3[k + 3]
            for h in range(H):
                w0, w1, w2, w3 = w[k, h], w[k + 1, h], w[k + 2, h], w[k + 3, h]
                out_0[h] += (p0 * w0 + p1 * w1) + (p2 * w2 + p3 * w3)
                out_1[h] += (q0 * w0 + q1 * w1) + (q2 * w2 + q3 * w3)
                out_2[h] += (r0 * w0 + r1 * w1) + (r2 * w2 + r3 * w3)
                out_3[h] += (s0 * w0 + s1 * w1) + (s2 * w2 + s3 * w3)
        for k in range(K - K % 4, K):
            p0, q0, r0, s0 = a_0[k], a_1[k], a_2[k], a_3[k]
            for h in range(H):
                out_0[h] += p0 * w[k, h]
                out_1[h] += q0 * w[k, h]
                out_2[h] += r0 * w[k, h]
                out_3[h] += s0 * w[k, h]
    for b in range(fours, b1):
        a_0, out_0 = a[b - a0], out[b]
        out_0[:] = 0
        for k in range(0, K - 7, 8):
            p0, p1, p2, p3 = a_0[k], a_0[k + 1], a_0[k + 2], a_0[k + 3]
            q0, q1, q2, q3 = a_0[k + 4], a_0[k + 5], a_0[k + 6], a_0[k + 7]
            for h in range(H):
                s = (p0 * w[k, h] + p1 * w[k + 1, h]) + (p2 * w[k + 2, h] + p3 * w[k + 3, h])
                s += (q0 * w[k + 4, h] + q1 * w[k + 5, h]) + (q2 * w[k + 6, h] + q3 * w[k + 7, h])
                out_0[h] += s
        for k in range(K - K % 8, K):
            p0 = a_0[k]
            for h in range(H):
                out_0[h] += p0 * w[k, h]


@register_jitable
def _enter(
    states: Array, entering: Array, first: Array, lengths: Array, reset: Array, mask: Array, t: int, b0: int, b1: int
) -> None:
    """What w_hh multiplies in step t; without reset and mask entering is states itself."""
    if not (reset.size or mask.size):
        return
    for b in range(b0, b1):
        if t < lengths[b]:
            restart = reset.size and reset[_row(first, lengths, t, b)]
            for h in range(states.shape[1]):
                p = states.dtype.type(0) if restart else states[b, h]
                entering[b, h] = p * mask[b, h] if mask.size else p


def _forward(
    z: Array,  # (rows of the chunk, H): the input product; becomes the output
    bias: Array,
    w: Array,  # w_hh transposed
    states: Array,
    entering: Array,
    product: Array,
    first: Array,
    lengths: Array,
    reset: Array,
    mask: Array,
    keep: Array,
    relu: bool,
    reverse: bool,
    T: int,
    base: int,
    b0: int,
    b1: int,
    i0: int,
    i1: int,
) -> None:
    H = states.shape[1]
    zero = states.dtype.type(0)
    for i in range(i0, i1):
        t = T - 1 - i if reverse else i
        if w.size:
            _enter(states, entering, first, lengths, reset, mask, t, b0, b1)
            _multiply(entering, w, product, b0, b1, 0)
        for b in range(b0, b1 if i >= 0 else b0):
            r = _row(first, lengths, t, b)
            if t >= lengths[b]:
                if not first.size:
                    z[r - base, :] = 0
                continue
            h_t, added, state = z[r - base], product[b], states[b]
            if relu:
                for h in range(H):
                    s = (h_t[h] + bias[h]) + added[h]
                    h_t[h] = zero if s <= 0 else s  # a NaN stays one
            else:
                for h in range(H):
                    h_t[h] = _tanh((h_t[h] + bias[h]) + added[h])
            if keep.size:
                restart = reset.size and reset[r]
                for h in range(H):
                    if keep[r, h]:
                        h_t[h] = zero if restart else state[h]
            state[:] = h_t
        if not w.size and i + 1 < T:
            t = T - 2 - i if reverse else i + 1
            _enter(states, entering, first, lengths, reset, mask, t, b0, b1)


@register_jitable
def _leave(
    carry: Array, product: Array, first: Array, lengths: Array, reset: Array, mask: Array, keep: Array,
    t: int, b0: int, b1: int,
) -> None:  # fmt: skip
    """The gradient that leaves step t for the step before: through w_hh, and past it where the state was kept."""
    zero = carry.dtype.type(0)
    for b in range(b0, b1):
        if t < lengths[b]:
            r = _row(first, lengths, t, b)
            restart = reset.size and reset[r]
            for h in range(carry.shape[1]):
                d = product[b, h] * mask[b, h] if mask.size else product[b, h]
                if keep.size and keep[r, h]:
                    d += carry[b, h]
                carry[b, h] = zero if restart else d


def _backward(
    d_z: Array,  # (rows of the chunk, H), as d_output and entering
    d_output: Array,
    tape: Array,
    tape_base: int,
    entering: Array,  # what w_hh multiplied; empty: not needed
    w: Array,  # w_hh
    h_0: Array,
    carry: Array,
    product: Array,
    first: Array,
    lengths: Array,
    reset: Array,
    mask: Array,
    keep: Array,
    relu: bool,
    reverse: bool,
    T: int,
    base: int,
    b0: int,
    b1: int,
    i0: int,
    i1: int,
) -> None:
    H = carry.shape[1]
    zero, one = carry.dtype.type(0), carry.dtype.type(1)
    for i in range(i1 - 1, i0 - 1, -1):
        t = T - 1 - i if reverse else i
        if not w.size and i + 1 < T:
            later = T - 2 - i if reverse else i + 1
            _leave(carry, product, first, lengths, reset, mask, keep, later, b0, b1)
        last = b0
        for b in range(b0, b1 if i >= 0 else b0):
            r = _row(first, lengths, t, b)
            if t >= lengths[b]:
                if not first.size:
                    d_z[r - base, :] = 0
                    if entering.size:
                        entering[r - base, :] = 0
                continue
            last = b + 1
            d_h, h_t, out = carry[b], tape[r - tape_base], d_z[r - base]
            if d_output.size:
                given = d_output[r - base]
                for h in range(H):
                    d_h[h] += given[h]
            if relu:
                for h in range(H):
                    out[h] = zero if h_t[h] <= 0 else d_h[h]
            else:
                for h in range(H):
                    out[h] = d_h[h] * (one - h_t[h] * h_t[h])
            if keep.size:
                for h in range(H):
                    if keep[r, h]:
                        out[h] = zero
            if entering.size:
                before = h_0[b]
                if i > 0 and not (reverse and t + 1 >= lengths[b]):
                    before = tape[_row(first, lengths, t + 1 if reverse else t - 1, b) - tape_base]
                restart = reset.size and reset[r]
                for h in range(H):
                    p = zero if restart else before[h]
                    entering[r - base, h] = p * mask[b, h] if mask.size else p
        if w.size:
            _multiply(d_z, w, product, b0, last, base - _row(first, lengths, t, 0))
            _leave(carry, product, first, lengths, reset, mask, keep, t, b0, b1)


class Kernels(NamedTuple):
    """The kernels of one dtype."""

    multiply: Any
    forward: Any
    backward: Any


# F: floats that are written, f: that are read, i: int64, b: bool; the number of dimensions
_SIGNATURES = {
    _multiply: "f2 f2 F2 i i i",
    _forward: "F2 f1 f2 F2 F2 F2 i1 i1 b1 f2 b2 b b i i i i i i",
    _backward: "F2 f2 f2 i F2 f2 f2 F2 F2 i1 i1 b1 f2 b2 b b i i i i i i",
}
ANNOUNCE_AFTER = 2.0  # seconds of compiling
_compiled: dict[Any, Kernels] = {}
_compiling = RLock()  # two threads would compile twice; and a child must not inherit half of it
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release
    )


def kernels(dtype: Any) -> Kernels:
    """Compiles them on first use, or reads them from disk."""
    found = _compiled.get(dtype)
    if found is None:
        with _compiling:
            found = _compiled[dtype] = _compiled.get(dtype) or _compile(dtype)
    return found


def _compile(dtype: Any) -> Kernels:
    kinds = {"f": numba.from_dtype(dtype), "i": types.int64, "b": types.boolean}

    def kind(word: str) -> Any:
        scalar = kinds[word[0].lower()]
        return types.Array(scalar, int(word[1]), "C", readonly=word[0] != "F") if len(word) > 1 else scalar

    def one(function: Any, signature: str) -> Any:
        arguments = tuple(kind(word) for word in signature.split())
        with suppress(RuntimeError, OSError):  # no place to write to, or a full disk
            return _jit(function, arguments, cache=True)
        return _jit(function, arguments, cache=False)

    text = "compiling the kernels for %s with Numba: once, if their place on disk is writable; see `fastrnn info`"
    timer = Timer(ANNOUNCE_AFTER, logging.getLogger("fastrnn").warning, (text, dtype))
    timer.daemon = True
    timer.start()
    try:
        return Kernels(*(one(function, signature) for function, signature in _SIGNATURES.items()))
    finally:
        timer.cancel()


def _jit(function: Any, arguments: tuple[Any, ...], cache: bool) -> Any:
    compiled = numba.njit(nogil=True, error_model="numpy", cache=cache)(function)
    compiled.compile(arguments)
    compiled.disable_compile()
    return compiled
