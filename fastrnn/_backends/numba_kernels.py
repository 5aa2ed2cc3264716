"""The kernels of the `numba` backend; numba_compile.py compiles them.

Every array that a kernel sees is C-contiguous, so that one signature serves all calls. nogil, no fastmath, no
parallel=True (its threading layer aborts on concurrent use).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .numba_pack import _pack as _pack
from .numba_tanh import _tanh
from .options import Array

# ---- The inner product in LLVM's terms: rows x vectors of outputs stay in registers over a block of k


BLOCK = 128  # terms of a sum that are one chain
LARGE = 1 << 19  # bytes


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

        def vectors_at(data: Any, row: Any, row_size: Any, count: int, kind: Any) -> list[Any]:
            places = [at(data, row, row_size, integer(c * kind.count)) for c in range(count)]
            return [builder.bitcast(place, kind.as_pointer()) for place in places]

        def tile(b: Any, j: Any, panel: Any, w_step: Any, count: int, width: int, done: Any) -> None:
            """Outputs b.., j..; lanes that are `done` already have this block of k. panel: w[k0, j:], w_step apart."""
            kind = ir.VectorType(scalar, width)
            fmuladd = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.v{width}f{8 * align}"
            )
            sums = [[cgutils.alloca_once(builder, kind) for _ in range(count)] for _ in range(rows)]
            for row in sums:
                for s in row:
                    builder.store(kind(None), s)
            first = at(a.data, builder.sub(b, a0), row_step, builder.mul(k0, k_step))

            with cgutils.for_range(builder, size) as loop:
                k = loop.index
                factors = [builder.load(v, align=align) for v in vectors_at(panel, k, w_step, count, kind)]
                for r in range(rows):
                    place = at(first, integer(r), row_step, builder.mul(k, k_step))
                    lane = builder.insert_element(kind(ir.Undefined), builder.load(place), lane_0)
                    spread = builder.shuffle_vector(lane, lane, ir.VectorType(i32, width)([0] * width))
                    for s, factor in zip(sums[r], factors, strict=True):
                        builder.store(builder.call(fmuladd, [spread, factor, builder.load(s)]), s)
            more = builder.icmp_signed(">", k0, integer(0))
            for r in range(rows):
                places = vectors_at(at(out.data, integer(0), H, j), builder.add(b, integer(r)), H, count, kind)
                for s, place in zip(sums[r], places, strict=True):
                    with builder.if_then(more):
                        before = builder.load(place, align=align)
                        added = builder.fadd(before, builder.load(s))
                        builder.store(builder.select(done, before, added) if done else added, s)
                    builder.store(builder.load(s), place, align=align)

        def columns(start: Any, stop: Any, count: int, width: int, done: Any = None) -> None:
            kind = ir.VectorType(scalar, width)
            with cgutils.for_range_slice(builder, start, stop, integer(count * width), intp=integer) as (j, _):
                panel, w_step = at(w.data, k0, H, j), H
                if rows == 4:  # many rows read a copy: a step of a power of two leaves most sets of a cache unused
                    copy = cgutils.alloca_once(builder, scalar, size=integer(BLOCK * count * width))
                    step = integer(count * width)
                    many = builder.icmp_signed(">=", builder.sub(b1, b0), integer(16))
                    with builder.if_then(many), cgutils.for_range(builder, size) as loop:
                        sources = vectors_at(panel, loop.index, w_step, count, kind)
                        for source, target in zip(
                            sources, vectors_at(copy, loop.index, step, count, kind), strict=True
                        ):
                            builder.store(builder.load(source, align=align), target, align=align)
                    panel, w_step = builder.select(many, copy, panel), builder.select(many, step, w_step)
                with cgutils.for_range_slice(builder, b0, b1, integer(rows), intp=integer) as (b, _):
                    tile(b, j, panel, w_step, count, width, done)

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


def _many_registers() -> bool:
    """AVX-512VL: 32 of 32 bytes, else 16."""
    return "+avx512vl" in (numba.config.CPU_FEATURES or get_host_cpu_features().flatten())


_tile_1 = _tiles(1, 8, 4, 2, 1)
_tile_2, _tile_3, _tile_4 = (
    (_tiles(2, 8, 4, 2, 1), _tiles(3, 4, 2, 1), _tiles(4, 4, 2, 1))
    if _many_registers()
    else (_tiles(2, 4, 2, 1), _tiles(3, 2, 1), _tiles(4, 2, 1))
)


def _dots(rows: int, outputs: int) -> Any:
    """out[b, j] = w[j] @ a[b - a0] for b0 <= b < b1, a multiple of `rows`: w holds what _tiles takes as its columns.

    One output is one sum in each lane of a vector of 32 bytes, added in halves, and after them what is left of the
    rows: for few rows, where to transpose w takes longer than the product.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, w, out = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in range(3))
        b0, b1, a0 = arguments[3:]
        H, K = cgutils.unpack_tuple(builder, w.shape, 2)
        scalar, integer = context.get_value_type(signature.args[0].dtype), H.type
        align = context.get_abi_sizeof(scalar)
        lanes, i32 = 32 // align, ir.IntType(32)
        whole = builder.and_(K, integer(-lanes))

        def fmuladd(kind: Any, name: str, *factors: Any) -> Any:
            function = ir.FunctionType(kind, [kind] * 3)
            return builder.call(
                cgutils.get_or_insert_function(builder.module, function, f"llvm.fmuladd.{name}"), factors
            )

        def place(data: Any, row: Any, column: Any) -> Any:
            return builder.gep(data, [builder.add(builder.mul(row, K), column)])

        def total(vector: Any) -> Any:
            for half in (lanes // 2, lanes // 4, lanes // 8):
                if half:
                    low, high = (ir.VectorType(i32, half)(list(range(i, i + half))) for i in (0, half))
                    none = vector.type(ir.Undefined)
                    vector = builder.fadd(
                        builder.shuffle_vector(vector, none, low), builder.shuffle_vector(vector, none, high)
                    )
            return builder.extract_element(vector, i32(0))

        def tile(b: Any, j: Any, count: int) -> None:
            kind = ir.VectorType(scalar, lanes)
            left = [builder.add(builder.sub(b, a0), integer(r)) for r in range(rows)]
            right = [builder.add(j, integer(o)) for o in range(count)]
            pairs = [(r, o) for r in range(rows) for o in range(count)]
            sums = [cgutils.alloca_once_value(builder, kind(None)) for _ in pairs]
            for s in sums:
                builder.store(kind(None), s)
            with cgutils.for_range_slice(builder, integer(0), whole, integer(lanes), intp=integer) as (k, _):
                values, factors = (
                    [
                        builder.load(builder.bitcast(place(data, row, k), kind.as_pointer()), align=align)
                        for row in found
                    ]
                    for data, found in ((a.data, left), (w.data, right))
                )
                for (r, o), s in zip(pairs, sums, strict=True):
                    builder.store(fmuladd(kind, f"v{lanes}f{8 * align}", values[r], factors[o], builder.load(s)), s)
            ends = [cgutils.alloca_once(builder, scalar) for _ in pairs]
            for s, end in zip(sums, ends, strict=True):
                builder.store(total(builder.load(s)), end)
            with cgutils.for_range_slice(builder, whole, K, integer(1), intp=integer) as (k, _):
                values, factors = (
                    [builder.load(place(data, row, k)) for row in found]
                    for data, found in ((a.data, left), (w.data, right))
                )
                for (r, o), end in zip(pairs, ends, strict=True):
                    builder.store(fmuladd(scalar, f"f{8 * align}", values[r], factors[o], builder.load(end)), end)
            for (r, o), end in zip(pairs, ends, strict=True):
                row = builder.mul(builder.add(b, integer(r)), H)
                builder.store(builder.load(end), builder.gep(out.data, [builder.add(row, right[o])]))

        with cgutils.for_range_slice(builder, b0, b1, integer(rows), intp=integer) as (b, _):
            stop = builder.and_(H, integer(-outputs))
            with cgutils.for_range_slice(builder, integer(0), stop, integer(outputs), intp=integer) as (j, _):
                tile(b, j, outputs)
            with cgutils.for_range_slice(builder, stop, H, integer(1), intp=integer) as (j, _):
                tile(b, j, 1)
        return context.get_dummy_value()

    def typed(context: Any, a: Any, w: Any, out: Any, b0: Any, b1: Any, a0: Any) -> tuple[Any, Any]:
        return types.void(a, w, out, *[types.int64] * 3), generate

    return intrinsic(typed)


_dots_1, _dots_2, _dots_4 = _dots(1, 8), _dots(2, 4), _dots(4, 2)


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
def _multiply(a: Array, w: Array, out: Array, b0: int, b1: int, a0: int, turned: bool) -> None:
    """out[b] = a[b - a0] @ w for the rows b0..b1; where `turned`, a holds its columns as rows."""
    K = len(w)
    rest = (b1 - b0) % 4
    fours = b1 - rest
    if b0 < fours:
        for k in range(0, max(K, 1), BLOCK):
            _tile_4(a, w, out, b0, fours, a0, turned, k, min(K - k, BLOCK))
    if fours < b1:
        block = _block(rest, w.size * w.itemsize)
        for k in range(0, max(K, 1), block):
            size = min(K - k, block)
            if rest == 1:
                _tile_1(a, w, out, fours, b1, a0, turned, k, size)
            elif rest == 2:
                _tile_2(a, w, out, fours, b1, a0, turned, k, size)
            else:
                _tile_3(a, w, out, fours, b1, a0, turned, k, size)


@register_jitable
def _block(rest: int, size: int) -> int:
    """Terms of one chain where fewer than four rows are left over, beside w of `size` bytes."""
    if size >= LARGE:  # more than the second cache holds: read along its rows
        return 8
    return 32 if rest == 1 else BLOCK


@register_jitable
def _multiply_rows(a: Array, w: Array, out: Array, b0: int, b1: int, by_dots: bool) -> None:
    """out[b] = a[b] @ w, or w @ a[b]."""
    if not by_dots:
        _multiply(a, w, out, b0, b1, 0, False)
        return
    fours, twos = b1 - (b1 - b0) % 4, b1 - (b1 - b0) % 2
    _dots_4(a, w, out, b0, fours, 0)
    _dots_2(a, w, out, fours, twos, 0)
    _dots_1(a, w, out, twos, b1, 0)


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
