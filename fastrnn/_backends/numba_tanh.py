"""tanh as the kernels of the `numba` backend have it: the two formulas of csrc/cpu/tanh.inl, lane by lane.

    |x| <= 0.625    x + x^3 Q(x^2)
    above           1 - 2 / (exp(2 |x|) + 1), the sign put back

Numba's machine code on disk does not know this file: who changes it removes what was kept beside numba_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload


@intrinsic
def _reinterpret(context: Any, x: Any) -> Any:
    """The bits of a float as an integer of its width, and back."""
    pairs = {types.float32: types.int32, types.float64: types.int64}
    other = {**pairs, **{b: a for a, b in pairs.items()}}[x]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return other(x), generate


@intrinsic
def _fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the CPU has an FMA. A Horner step in one instruction: half as many wait in line."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(a)
        name = f"llvm.fmuladd.f{8 * context.get_abi_sizeof(kind)}"
        fmuladd = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(fmuladd, arguments)

    return a(a, a, a), generate


def _tanh(x: Any) -> Any:
    raise NotImplementedError("for compiled code")


@overload(_tanh, jit_options={"error_model": "numpy"})
def _tanh_of(x: Any) -> Callable[[Any], Any]:
    def tanh_float32(x: Any) -> Any:
        f, bits = np.float32, np.int32
        q = x * x
        near = f(0.00229274481618)
        near = _fma(near, q, f(-0.00834394551584))
        near = _fma(near, q, f(0.021768918651))
        near = _fma(near, q, f(-0.0539592595772))
        near = _fma(near, q, f(0.133333035569))
        near = _fma(near, q, f(-0.333333331721))
        near = _fma(x, q * near, x)
        size = abs(x)
        y = min(size + size, f(18.2))  # 2 |x|; tanh rounds to 1 from 18.03
        shifted = _fma(y, f(1.4426950408889634), f(12582912))  # 1.5 * 2^23: the integer is in the low bits
        r = _fma(shifted - f(12582912), f(-0.6931471805599453), y)
        e = f(0.00139337307158)
        e = _fma(e, r, f(0.0083692202918))
        e = _fma(e, r, f(0.0416664641974))
        e = _fma(e, r, f(0.16666504613))
        e = _fma(e, r, f(0.500000001354))
        e = _fma(e, r, f(1.0))
        e = _fma(_fma(r, e, f(1.0)), _reinterpret(bits((_reinterpret(shifted) + 127) << 23)), f(1.0))
        far = f(1.0) - f(2.0) / e
        value = far if size > f(0.625) else near  # a NaN takes near
        return _reinterpret(bits((_reinterpret(value) & 0x7FFFFFFF) | (_reinterpret(x) & 0x80000000)))  # -0 stays

    def tanh_float64(x: Any) -> Any:
        q = x * x
        near = 6.48516348279311315e-6
        near = _fma(near, q, -0.000031201101425797400033)
        near = _fma(near, q, 0.000092571161295567682707)
        near = _fma(near, q, -0.00023759064960555619551)
        near = _fma(near, q, 0.0005896606577757043347)
        near = _fma(near, q, -0.0014557754120478055104)
        near = _fma(near, q, 0.0035921217511549622695)
        near = _fma(near, q, -0.008863235103240877925)
        near = _fma(near, q, 0.021869488519008305756)
        near = _fma(near, q, -0.05396825396789699169)
        near = _fma(near, q, 0.13333333333333041602)
        near = _fma(near, q, -0.33333333333333332938)
        near = _fma(x, q * near, x)
        size = abs(x)
        y = min(size + size, 38.2)  # 2 |x|; tanh rounds to 1 from 38.12
        shifted = _fma(y, 1.4426950408889634074, 6755399441055744.0)  # 1.5 * 2^52: the integer is in the low bits
        r = _fma(shifted - 6755399441055744.0, -0.69314718055994530942, y)
        e = 2.5105312729622101787e-8
        e = _fma(e, r, 2.7626495546432196255e-7)
        e = _fma(e, r, 2.7557255170000887438e-6)
        e = _fma(e, r, 0.000024801504014426905068)
        e = _fma(e, r, 0.00019841269875002278793)
        e = _fma(e, r, 0.001388888893275100025)
        e = _fma(e, r, 0.0083333333333260831202)
        e = _fma(e, r, 0.041666666666572391458)
        e = _fma(e, r, 0.1666666666666667103)
        e = _fma(e, r, 0.50000000000000056734)
        e = _fma(e, r, 1.0)
        e = _fma(_fma(r, e, 1.0), _reinterpret((_reinterpret(shifted) + 1023) << 52), 1.0)
        far = 1.0 - 2.0 / e
        value = far if size > 0.625 else near
        return _reinterpret((_reinterpret(value) & 0x7FFFFFFFFFFFFFFF) | (_reinterpret(x) & -0x8000000000000000))

    return tanh_float32 if x == types.float32 else tanh_float64
