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
from llvmlite import ir
from numba import types
from numba.core import cgutils
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


# ---- The inner product in LLVM's terms: rows x vectors of outputs stay in registers over a block of k


def _tiles(rows: int, *vectors: int) -> Any:
    """out[b] (+)= a[b - a0, k : k + size] @ w[k : k + size] for b0 <= b < b1, a multiple of `rows`; + where k > 0.

    One output is one ascending chain of fmuladd, an FMA where the CPU has it, whatever tile computes it. Columns are
    taken in tiles of so many vectors of 32 bytes; what is left by one vector that ends with the last column, or one by
    one where there are fewer than a vector holds. Where `turned`, a holds its columns as rows.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, w, out = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in range(3))
        b0, b1, a0, turned, k0, size = arguments[3:]
        (_, K_a), (_, H) = (cgutils.unpack_tuple(builder, array.shape, 2) for array in (a, w))
        scalar, integer = context.get_value_type(signature.args[0].dtype), H.type
        align = context.get_abi_sizeof(scalar)
        lanes, i32 = 32 // align, ir.IntType(32)
        one, lane_0 = integer(1), i32(0)
        row_step = builder.select(turned, one, K_a)
        k_step = builder.select(turned, K_a, one)

        def at(data: Any, row: Any, row_size: Any, column: Any) -> Any:
            return builder.gep(data, [builder.add(builder.mul(row, row_size), column)])

        def tile(b: Any, j: Any, count: int, width: int, done: Any) -> None:
            """Outputs b.., j..; lanes that are `done` already have this block of k."""
            kind = ir.VectorType(scalar, width)
            fmuladd = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.v{width}f{8 * align}"
            )
            sums = [[cgutils.alloca_once(builder, kind) for _ in range(count)] for _ in range(rows)]
            for row in sums:
                for s in row:
                    builder.store(kind(None), s)
            first = at(a.data, builder.sub(b, a0), row_step, builder.mul(k0, k_step))

            def vectors_at(data: Any, row: Any) -> list[Any]:
                places = [at(data, row, H, builder.add(j, integer(c * width))) for c in range(count)]
                return [builder.bitcast(place, kind.as_pointer()) for place in places]

            with cgutils.for_range(builder, size) as loop:
                k = loop.index
                factors = [builder.load(v, align=align) for v in vectors_at(w.data, builder.add(k0, k))]
                for r in range(rows):
                    place = at(first, integer(r), row_step, builder.mul(k, k_step))
                    lane = builder.insert_element(kind(ir.Undefined), builder.load(place), lane_0)
                    spread = builder.shuffle_vector(lane, lane, ir.VectorType(i32, width)([0] * width))
                    for s, factor in zip(sums[r], factors, strict=True):
                        builder.store(builder.call(fmuladd, [spread, factor, builder.load(s)]), s)
            more = builder.icmp_signed(">", k0, integer(0))
            for r in range(rows):
                for s, place in zip(sums[r], vectors_at(out.data, builder.add(b, integer(r))), strict=True):
                    with builder.if_then(more):
                        before = builder.load(place, align=align)
                        added = builder.fadd(before, builder.load(s))
                        builder.store(builder.select(done, before, added) if done else added, s)
                    builder.store(builder.load(s), place, align=align)

        def columns(start: Any, stop: Any, count: int, width: int, done: Any = None) -> None:
            across = cgutils.for_range_slice(builder, start, stop, integer(count * width), intp=integer)
            down = cgutils.for_range_slice(builder, b0, b1, integer(rows), intp=integer)
            with across as (j, _), down as (b, _):
                tile(b, j, count, width, done)

        start = integer(0)
        for count in vectors:  # powers of two, falling to 1
            stop = builder.and_(H, integer(-count * lanes))
            columns(start, stop, count, lanes)
            start = stop
        with builder.if_else(builder.icmp_signed("<", H, integer(lanes))) as (narrow, wide):
            with narrow:
                columns(start, H, 1, 1)
            with wide, builder.if_then(builder.icmp_signed("<", start, H)):
                new = builder.insert_element(ir.VectorType(integer, lanes)(ir.Undefined), builder.sub(H, start), lane_0)
                new = builder.shuffle_vector(new, new, ir.VectorType(i32, lanes)([0] * lanes))
                done = builder.icmp_signed("<", new, new.type(list(range(lanes, 0, -1))))
                columns(builder.sub(H, integer(lanes)), H, 1, lanes, done)
        return context.get_dummy_value()

    def typed(
        context: Any, a: Any, w: Any, out: Any, b0: Any, b1: Any, a0: Any, turned: Any, k: Any, size: Any
    ) -> tuple[Any, Any]:
        return types.void(a, w, out, *[types.int64] * 3, types.boolean, types.int64, types.int64), generate

    return intrinsic(typed)


_tile_1, _tile_2, _tile_4 = _tiles(1, 8, 4, 2, 1), _tiles(2, 4, 2, 1), _tiles(4, 2, 1)


# ---- Kernels: batch rows b0..b1, steps i0..i1 in the order of processing. Row b of step t is row first[t] + b of the
# data (t * B + b where first is empty: padded rows), and exists where t < lengths[b]; base is the first row that the
# chunk's arrays hold. Options that are not given are empty arrays. With w of size 0 the caller multiplies: then a call
# ends in front of the next product, and i0 = -1 only prepares the first one.


@register_jitable
def _row(first: Array, lengths: Array, t: int, b: int) -> int:
    return (first[t] if first.size else t * lengths.size) + b


@register_jitable
def _multiply(a: Array, w: Array, out: Array, b0: int, b1: int, a0: int, turned: bool) -> None:
    """out[b] = a[b - a0] @ w for the rows b0..b1; where `turned`, a holds its columns as rows."""
    K = len(w)
    fours = b1 - (b1 - b0) % 4
    twos = b1 - (b1 - b0) % 2
    if b0 < fours:
        for k in range(0, max(K, 1), 128):
            _tile_4(a, w, out, b0, fours, a0, turned, k, min(K - k, 128))
    if fours < b1:
        block = 8 if w.size * w.itemsize > 1 << 20 else 128  # a w that no cache holds is read along its rows
        for k in range(0, max(K, 1), block):
            size = min(K - k, block)
            if fours < twos:
                _tile_2(a, w, out, fours, twos, a0, turned, k, size)
            if twos < b1:
                _tile_1(a, w, out, twos, b1, a0, turned, k, size)


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
            _multiply(entering, w, product, b0, b1, 0, False)
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
            _multiply(d_z, w, product, b0, last, base - _row(first, lengths, t, 0), False)
            _leave(carry, product, first, lengths, reset, mask, keep, t, b0, b1)


class Kernels(NamedTuple):
    """The kernels of one dtype."""

    multiply: Any
    forward: Any
    backward: Any


# F: floats that are written, f: that are read, i: int64, b: bool; the number of dimensions
_SIGNATURES = {
    _multiply: "f2 f2 F2 i i i b",
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
