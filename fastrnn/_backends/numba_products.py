"""The inner products of the `numba` backend in LLVM's terms: rows x vectors of outputs stay in registers.

The machine code of numba_kernels.py on disk does not know this file: who changes it removes what was kept there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, register_jitable

from .options import Array

BLOCK = 128  # terms of a sum that are one chain
LARGE = 1 << 19  # bytes


def _wide() -> bool:
    """AVX-512 with its 32 registers, else 16 of 32 bytes: what Numba compiles for, by NUMBA_CPU_FEATURES if set."""
    chosen = numba.config.CPU_FEATURES  # "" for a CPU that is named generic
    return "+avx512vl" in (get_host_cpu_features() if chosen is None else chosen)


VECTOR = 64 if _wide() else 32  # bytes


def _widths(align: int) -> tuple[int, ...]:
    """Lanes of the vectors, the widest first, down to one; a row of fewer elements takes the next ones."""
    return (*([VECTOR // align] if VECTOR > 32 else []), 32 // align, 1)


def _vector(scalar: Any, lanes: int) -> Any:
    return ir.VectorType(scalar, lanes)


def _lanes_below(builder: Any, limit: Any, lanes: int) -> Any:
    """A mask: lane < limit."""
    kind = _vector(limit.type, lanes)
    spread = _spread(builder, limit, lanes)
    return builder.icmp_signed("<", kind(list(range(lanes))), spread)


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    kind, i32 = _vector(value.type, lanes), ir.IntType(32)
    first = builder.insert_element(kind(ir.Undefined), value, i32(0))
    return builder.shuffle_vector(first, first, _vector(i32, lanes)([0] * lanes))


def _fmuladd(builder: Any, kind: Any, align: int, *factors: Any) -> Any:
    """a * b + c, rounded once where the CPU has an FMA."""
    function = ir.FunctionType(kind, [kind] * 3)
    name = f"llvm.fmuladd.v{kind.count}f{8 * align}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), factors)


def _at(builder: Any, data: Any, row: Any, row_size: Any, column: Any) -> Any:
    return builder.gep(data, [builder.add(builder.mul(row, row_size), column)])


def _vectors_at(builder: Any, data: Any, row: Any, row_size: Any, count: int, kind: Any) -> list[Any]:
    """Places of `count` vectors, one behind the other."""
    first = _at(builder, data, row, row_size, row_size.type(0))
    places = (builder.gep(first, [row_size.type(c * kind.count)]) for c in range(count))
    return [builder.bitcast(place, kind.as_pointer()) for place in places]


def _by_width(builder: Any, widths: Sequence[int], size: Any, body: Any) -> None:
    """body(width) of the first width that `size` elements fill; the last width is 1."""
    if len(widths) == 1:
        body(widths[0])
        return
    with builder.if_else(builder.icmp_signed(">=", size, size.type(widths[0]))) as (fits, less):
        with fits:
            body(widths[0])
        with less:
            _by_width(builder, widths[1:], size, body)


# ---- Outputs as lanes


def _tiles(rows: int, most: int) -> Any:
    """out[b] (+)= a[b - a0, k : k + size] @ w[k : k + size] for b0 <= b < b1, a multiple of `rows`; + where k > 0.

    One output is one ascending chain of fmuladd, an FMA where the CPU has it, whatever tile computes it. Columns are
    taken in tiles of `most` vectors, a power of two, then of fewer; where a last tile would reach beyond them, it
    overlaps the one before. Where `turned`, a holds its columns as rows.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, w, out = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in range(3))
        b0, b1, a0, turned, k0, size = arguments[3:]
        (_, K_a), (_, H) = (cgutils.unpack_tuple(builder, array.shape, 2) for array in (a, w))
        scalar, integer = context.get_value_type(signature.args[0].dtype), H.type
        align = context.get_abi_sizeof(scalar)
        one = integer(1)
        row_step = builder.select(turned, one, K_a)
        k_step = builder.select(turned, K_a, one)
        copy = (
            cgutils.alloca_once(builder, scalar, size=integer(BLOCK * most * _widths(align)[0])) if rows == 4 else None
        )

        def tile(b: Any, j: Any, panel: Any, w_step: Any, count: int, kind: Any, covered: Any) -> None:
            """Outputs b.., j..; those before `covered` have this block of k already. panel: w[k0, j:], w_step apart."""
            sums = [[cgutils.alloca_once(builder, kind) for _ in range(count)] for _ in range(rows)]
            for row in sums:
                for s in row:
                    builder.store(kind(None), s)
            first = _at(builder, a.data, builder.sub(b, a0), row_step, builder.mul(k0, k_step))
            with cgutils.for_range(builder, size) as loop:
                k = loop.index
                places = _vectors_at(builder, panel, k, w_step, count, kind)
                factors = [builder.load(place, align=align) for place in places]
                for r in range(rows):
                    value = builder.load(_at(builder, first, integer(r), row_step, builder.mul(k, k_step)))
                    value = _spread(builder, value, kind.count)
                    for s, factor in zip(sums[r], factors, strict=True):
                        builder.store(_fmuladd(builder, kind, align, value, factor, builder.load(s)), s)
            more = builder.icmp_signed(">", k0, integer(0))
            done = _lanes_below(builder, builder.sub(covered, j), kind.count)
            for r in range(rows):
                places = _vectors_at(builder, builder.gep(out.data, [j]), builder.add(b, integer(r)), H, count, kind)
                for c, (s, place) in enumerate(zip(sums[r], places, strict=True)):
                    with builder.if_then(more):
                        before = builder.load(place, align=align)
                        added = builder.fadd(before, builder.load(s))
                        builder.store(added if c else builder.select(done, before, added), s)
                    builder.store(builder.load(s), place, align=align)

        def column_tile(j: Any, count: int, kind: Any, covered: Any) -> None:
            """All rows of the columns j.., in `count` vectors."""
            panel, w_step = builder.gep(w.data, [builder.add(builder.mul(k0, H), j)]), H
            if copy is not None:  # many rows read a copy: a step of a power of two leaves most sets of a cache unused
                step = integer(count * kind.count)
                many = builder.icmp_signed(">=", builder.sub(b1, b0), integer(16))
                with builder.if_then(many), cgutils.for_range(builder, size) as loop:
                    sources = _vectors_at(builder, panel, loop.index, w_step, count, kind)
                    for source, target in zip(
                        sources, _vectors_at(builder, copy, loop.index, step, count, kind), strict=True
                    ):
                        builder.store(builder.load(source, align=align), target, align=align)
                panel, w_step = builder.select(many, copy, panel), builder.select(many, step, w_step)
            with cgutils.for_range_slice(builder, b0, b1, integer(rows), intp=integer) as (b, _):
                tile(b, j, panel, w_step, count, kind, covered)

        def smaller(a: Any, b: Any) -> Any:
            return builder.select(builder.icmp_signed("<", a, b), a, b)

        def columns(width: int) -> None:
            """All columns, at least a vector of them."""
            kind, largest = _vector(scalar, width), most if width == _widths(align)[0] else 1
            tile_size = largest * width
            # Tiles of `largest` vectors; the last one is moved back where it would reach less than a vector beyond H.
            whole = builder.and_(H, integer(-tile_size))
            rest = builder.sub(H, whole)
            overlaps = builder.icmp_signed(">", rest, integer(tile_size - width))
            overlaps = builder.and_(overlaps, builder.icmp_signed(">", whole, integer(0)))
            stop = builder.select(overlaps, builder.add(whole, one), whole)
            with cgutils.for_range_slice(builder, integer(0), stop, integer(tile_size), intp=integer) as (j, _):
                column_tile(smaller(j, builder.sub(H, integer(tile_size))), largest, kind, j)
            covered = builder.select(overlaps, H, whole)
            # Behind such tiles as many vectors as end with the last column; without one whole vectors first.
            rest = builder.sub(H, covered)
            round_up = builder.select(builder.icmp_signed(">", whole, integer(0)), integer(width - 1), integer(0))
            vectors = builder.sdiv(builder.add(rest, round_up), integer(width))
            start = smaller(covered, builder.sub(H, builder.mul(vectors, integer(width))))
            count = largest // 2
            while count > 1:
                size_here = integer(count * width)
                taken = builder.icmp_signed("!=", builder.and_(vectors, integer(count)), integer(0))
                with builder.if_then(taken):
                    column_tile(start, count, kind, covered)
                start = builder.select(taken, builder.add(start, size_here), start)
                count //= 2
            if largest > 1:
                with cgutils.for_range_slice(builder, start, H, integer(width), intp=integer) as (j, _):
                    done = builder.select(builder.icmp_signed("<", covered, j), j, covered)
                    column_tile(smaller(j, builder.sub(H, integer(width))), 1, kind, done)

        _by_width(builder, _widths(align), H, columns)
        return context.get_dummy_value()

    def typed(
        context: Any, a: Any, w: Any, out: Any, b0: Any, b1: Any, a0: Any, turned: Any, k: Any, size: Any
    ) -> tuple[Any, Any]:
        return types.void(a, w, out, *[types.int64] * 3, types.boolean, types.int64, types.int64), generate

    return intrinsic(typed)


_tile_1, _tile_2, _tile_3, _tile_4 = (
    (_tiles(1, 8), _tiles(2, 8), _tiles(3, 4), _tiles(4, 4))
    if _wide()
    else (_tiles(1, 8), _tiles(2, 4), _tiles(3, 2), _tiles(4, 2))
)


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


# ---- Terms as lanes


def _dots(rows: int, outputs: int) -> Any:
    """out[b, j] = w[j] @ a[b - a0] for b0 <= b < b1, a multiple of `rows`: w holds what _tiles takes as its columns.

    One output is one sum in each lane of a vector, added in halves: for few rows, where to transpose w takes longer
    than the product. Outputs are taken `outputs` at a time, a power of two; the last ones again where fewer are left.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, w, out = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in range(3))
        b0, b1, a0 = arguments[3:]
        H, K = cgutils.unpack_tuple(builder, w.shape, 2)
        scalar, integer = context.get_value_type(signature.args[0].dtype), H.type
        align, i32 = context.get_abi_sizeof(scalar), ir.IntType(32)

        def shuffled(one: Any, other: Any, lanes: list[int]) -> Any:
            return builder.shuffle_vector(one, other, _vector(i32, len(lanes))(lanes))

        def halves(one: Any, other: Any, segments: int) -> Any:
            """Each segment of the vectors folded into half its lanes; without `other` in a vector of half the size."""
            lanes = one.type.count
            width, both = lanes // segments, lanes if other is None else 2 * lanes
            low = [start + i for start in range(0, both, width) for i in range(width // 2)]
            pair = one, one if other is None else other
            return builder.fadd(shuffled(*pair, low), shuffled(*pair, [i + width // 2 for i in low]))

        def totals(sums: list[Any]) -> list[Any]:
            """The sum of each vector's lanes, in order, as the lanes of fewer vectors."""
            segments = 1
            while segments < sums[0].type.count:
                if len(sums) > 1:
                    sums = [halves(*pair, segments) for pair in zip(sums[::2], sums[1::2], strict=True)]
                    segments *= 2
                else:
                    sums = [halves(sums[0], None, segments)]
            return sums

        def tile(b: Any, j: Any, count: int, width: int) -> None:
            kind = _vector(scalar, width)
            left = [builder.add(builder.sub(b, a0), integer(r)) for r in range(rows)]
            right = [builder.add(j, integer(o)) for o in range(count)]
            sums = [[cgutils.alloca_once(builder, kind) for _ in range(count)] for _ in range(rows)]
            for row in sums:
                for s in row:
                    builder.store(kind(None), s)

            def add(k: Any, done: Any = None) -> None:
                """The terms k..; but for the lanes that are done."""

                def vectors(data: Any, found: list[Any]) -> list[Any]:
                    places = (builder.bitcast(_at(builder, data, row, K, k), kind.as_pointer()) for row in found)
                    loaded = [builder.load(place, align=align) for place in places]
                    return loaded if done is None else [builder.select(done, kind(None), v) for v in loaded]

                values, factors = vectors(a.data, left), vectors(w.data, right)
                for value, row in zip(values, sums, strict=True):
                    for factor, s in zip(factors, row, strict=True):
                        builder.store(_fmuladd(builder, kind, align, value, factor, builder.load(s)), s)

            whole = builder.and_(K, integer(-width))
            with cgutils.for_range_slice(builder, integer(0), whole, integer(width), intp=integer) as (k, _):
                add(k)
            if width > 1:
                with builder.if_then(builder.icmp_signed("<", whole, K)):
                    last = builder.sub(K, integer(width))
                    add(last, _lanes_below(builder, builder.sub(whole, last), width))
            found = totals([builder.load(s) for row in sums for s in row])
            step = min(count, found[0].type.count)  # of one row, in one vector
            for place in range(0, rows * count, step):
                vector, lane = divmod(place, found[0].type.count)
                part = shuffled(found[vector], found[vector], list(range(lane, lane + step)))
                row, column = builder.add(b, integer(place // count)), builder.add(j, integer(place % count))
                target = builder.bitcast(_at(builder, out.data, row, H, column), part.type.as_pointer())
                builder.store(part, target, align=align)

        def by_outputs(width: int) -> None:
            with cgutils.for_range_slice(builder, b0, b1, integer(rows), intp=integer) as (b, _):
                enough = builder.icmp_signed(">=", H, integer(outputs))
                with builder.if_else(enough) as (many, few):
                    with many, cgutils.for_range_slice(
                        builder, integer(0), H, integer(outputs), intp=integer
                    ) as (j, _):  # fmt: skip
                        last = builder.sub(H, integer(outputs))
                        tile(b, builder.select(builder.icmp_signed("<", j, last), j, last), outputs, width)
                    with few, cgutils.for_range_slice(builder, integer(0), H, integer(1), intp=integer) as (j, _):
                        tile(b, j, 1, width)

        _by_width(builder, _widths(align), K, by_outputs)
        return context.get_dummy_value()

    def typed(context: Any, a: Any, w: Any, out: Any, b0: Any, b1: Any, a0: Any) -> tuple[Any, Any]:
        return types.void(a, w, out, *[types.int64] * 3), generate

    return intrinsic(typed)


_dots_1, _dots_2, _dots_4 = (
    (_dots(1, 8), _dots(2, 8), _dots(4, 4)) if _wide() else (_dots(1, 8), _dots(2, 4), _dots(4, 2))
)


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
