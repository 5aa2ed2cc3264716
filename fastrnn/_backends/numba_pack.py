"""Transposes weights for the `numba` backend; numba_compile.py compiles it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .options import Array


@intrinsic
def _turn(context: Any, given: Any, result: Any, r: Any, c: Any) -> Any:
    """result[c:, r:] = given[r:, c:].T in a square of vectors of 32 bytes: halves interleaved log2(n) times."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in range(2))
        scalar, align = context.get_value_type(given.dtype), given.dtype.bitwidth // 8
        n = 32 // align
        kind, order = ir.VectorType(scalar, n), ir.VectorType(ir.IntType(32), n)

        def places(array: Any, row: Any, column: Any) -> list[Any]:
            size = cgutils.unpack_tuple(builder, array.shape, 2)[1]
            first = builder.gep(array.data, [builder.add(builder.mul(row, size), column)])
            steps = (builder.gep(first, [builder.mul(size, size.type(i))]) for i in range(n))
            return [builder.bitcast(place, kind.as_pointer()) for place in steps]

        vectors = [builder.load(place, align=align) for place in places(source, *arguments[2:])]
        lower = [i // 2 + n * (i % 2) for i in range(n)]
        for _ in range(n.bit_length() - 1):
            pairs = zip(vectors[: n // 2], vectors[n // 2 :], strict=True)
            mixed = ([(a, b, lower), (a, b, [i + n // 2 for i in lower])] for a, b in pairs)
            vectors = [builder.shuffle_vector(a, b, order(lanes)) for pair in mixed for a, b, lanes in pair]
        for vector, place in zip(vectors, places(target, arguments[3], arguments[2]), strict=True):
            builder.store(vector, place, align=align)
        return context.get_dummy_value()

    return types.void(given, result, types.int64, types.int64), generate


def _pack(w_ih: Array, w_hh: Array, w: Array, u: Array) -> None:
    """Both transposed."""
    for given, result in ((w_ih, w), (w_hh, u)):
        rows, columns = given.shape
        side = 32 // given.itemsize
        if min(rows, columns) < side:
            for r in range(rows):
                for c in range(columns):
                    result[c, r] = given[r, c]
        else:  # the last squares overlap those before
            for r in range(0, rows, side):
                for c in range(0, columns, side):
                    _turn(given, result, min(r, rows - side), min(c, columns - side))
