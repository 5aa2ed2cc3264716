"""Promise 1: tanh in float32 is within 2 ULP on all 2^32 inputs on every instruction set, where subnormal ones count as
0 in the C++ kernels; odd to the bit, |y| <= 1, never falling by more than 1 ULP between neighbours, NaN, infinities and
signed zeros right; in float64 within 2 ULP on samples. The numba backend's tanh keeps the same. The full sweep: pytest
-m nightly tests/test_tanh.py (at most 2 minutes per instruction set on one core); here every 509th pattern, runs of
neighbours in every binade, and the whole surroundings of every threshold.
"""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tanh_table
from helpers.compare import assert_same_bits, ulp_error
from helpers.kernels import Kernel, native

pytestmark = pytest.mark.own_tanh

ULPS = 2.0
TABLE_ULPS = 1.02  # of the table of csrc/cpu/tanh_table.inl
INFINITY = 0x7F800000  # the first pattern that is not finite
STRIDE = 509  # prime: every residue of every power of two
# Where implementations change formula: a table's quarters of octaves, series to rational, saturation to 1, overflow of
# exp(2x).
THRESHOLDS = (
    2.0**-12,
    2.0**-11,
    *(2.0**octave * (1 + quarter / 4) for octave in range(-4, 4) for quarter in range(4)),
    0.55,
    0.625,
    4.97,
    7.9,
    8.66,
    9.0,
    9.01,
    9.0109,
    22,
    44,
    88,
)


def pattern_to_float(first: int, last: int, step: int = 1) -> Any:
    return np.arange(first, last, step, dtype=np.int64).astype(np.uint32).view(np.float32)


def argument(kernel: Kernel, x: Any) -> Any:
    """What x counts as."""
    return x if kernel.keeps_subnormals else np.where(np.abs(x) < np.finfo(x.dtype).smallest_normal, 0 * x, x)


def judge(kernel: Kernel, x: Any) -> Any:
    """tanh of non-negative finite x, checked for accuracy, oddness and |y| <= 1; returns it."""
    y = kernel.tanh(x)
    error = ulp_error(y, np.tanh(argument(kernel, x).astype(np.float64)))
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    most = TABLE_ULPS if kernel.isa == "v4" else ULPS
    assert error[worst] <= most, f"{kernel.id}: tanh({x[worst]!r}) = {y[worst]!r}, {error[worst]:.2f} ulp"
    assert y.max() <= 1
    assert_same_bits(kernel.tanh(-x), -y, f"{kernel.id}: oddness")
    return y


def assert_never_falls_by_more_than_an_ulp(x: Any, y: Any) -> None:
    """x and y non-negative, so that patterns order as values do."""
    fall = y[:-1].view(np.int32) - y[1:].view(np.int32)
    worst = int(np.argmax(fall))
    assert fall[worst] <= 1, f"tanh({x[worst]!r}) = {y[worst]!r} > tanh({x[worst + 1]!r}) = {y[worst + 1]!r}"


def test_float32_strided_sweep(kernel: Kernel) -> None:
    """Every 509th of the finite non-negative patterns, and by oddness of the negative ones: 8.4 million values."""
    judge(kernel, pattern_to_float(0, INFINITY, STRIDE))


def test_float32_neighbours(kernel: Kernel) -> None:
    """Runs of neighbours: from the start of every binade and in its middle."""
    starts = [exponent << 23 for exponent in range(255)] + [(exponent << 23) + 0x2AAAAA for exponent in range(255)]
    for first in starts:
        x = pattern_to_float(first, first + 2048)
        assert_never_falls_by_more_than_an_ulp(x, judge(kernel, x))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_float32_around_thresholds(kernel: Kernel, threshold: float) -> None:
    """65,536 neighbours below and above: where a piecewise formula would jump."""
    middle = int(np.float32(threshold).view(np.uint32))
    x = pattern_to_float(middle - 65_536, middle + 65_536)
    assert_never_falls_by_more_than_an_ulp(x, judge(kernel, x))


def test_the_table_is_what_its_derivation_gives() -> None:
    text = (Path(__file__).parents[1] / "csrc/cpu/tanh_table.inl").read_text(encoding="utf-8")
    for name, numbers in tanh_table.table().items():
        found = re.search(rf"float {name}\[32\] = \{{([^}}]*)\}}", text)
        assert found, name
        written = [float(number.strip().rstrip("f")) for number in found[1].split(",") if number.strip()]
        assert_same_bits(np.array(written, np.float32), numbers, name)


def judge_trivial(kernel: Kernel, x: Any) -> Any:
    """Below 2^-14 the exact tanh is x, from 10 on it is 1, both to 0.1 ULP: patterns at most 1 apart; odd."""
    y = kernel.tanh(x)
    got = y.view(np.int32)
    apart = got - (argument(kernel, x).view(np.int32) if x[-1] < 1 else np.int32(0x3F800000))
    assert apart.min() >= -1, f"{kernel.id}: tanh({x[np.argmin(apart)]!r})"
    assert apart.max() <= (1 if x[-1] < 1 else 0), f"{kernel.id}: tanh({x[np.argmax(apart)]!r})"
    assert np.array_equal(kernel.tanh(-x).view(np.int32), got ^ np.int32(-(1 << 31))), f"{kernel.id}: oddness"
    return y


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_float32_full_sweep(kernel: Kernel) -> None:
    """All 2^32 patterns: the positive finite ones, the negative ones by oddness, every NaN. At most 120 s of CPU."""
    block = np.ones(31 << 20, np.uint8)  # once freed, malloc keeps smaller blocks instead of unmapping each
    del block
    start = time.process_time()
    chunk = 1 << 17  # small enough to stay in cache
    small, large = (int(np.float32(v).view(np.uint32)) for v in (2.0**-14, 10.0))
    for first in range(0, INFINITY, chunk):
        x = pattern_to_float(max(first - 1, 0), min(first + chunk, INFINITY))
        y = judge_trivial(kernel, x) if first + chunk <= small or first > large else judge(kernel, x)
        assert_never_falls_by_more_than_an_ulp(x, y)
    assert y[-1] == 1
    for first in range(INFINITY + 1, 1 << 31, chunk):
        for sign in (0, 1 << 31):
            x = pattern_to_float(first + sign, min(first + chunk, 1 << 31) + sign)
            assert np.isnan(kernel.tanh(x)).all()
    seconds = time.process_time() - start
    assert seconds <= 120, f"the sweep took {seconds:.0f} s"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 17, 33])
def test_special_values(kernel: Kernel, dtype: str, count: int) -> None:
    """In every lane: signed zeros kept, subnormals too or turned into them, infinities and the largest number to +-1,
    NaN to NaN."""
    info = np.finfo(dtype)
    tiny = [info.smallest_subnormal, info.smallest_normal, info.smallest_normal / 2]
    inputs = [0.0, *tiny, info.max, np.inf]
    outputs = [0.0, *argument(kernel, np.array(tiny, dtype)), 1.0, 1.0]
    for value, want in zip(inputs, outputs, strict=True):
        for sign in (1, -1):
            x, w = np.full(count, sign * value, dtype), np.full(count, sign * want, dtype)
            assert_same_bits(kernel.tanh(x), w, f"tanh({sign * value})")
    assert np.isnan(kernel.tanh(np.full(count, np.nan, dtype))).all()
    assert np.isnan(kernel.tanh(np.full(count, -np.nan, dtype))).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_value_does_not_depend_on_its_neighbours(kernel: Kernel, dtype: str) -> None:
    """Vector body and tail agree, beside NaN and infinities too."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(67) * 3).astype(dtype)
    want = np.concatenate([kernel.tanh(x[i : i + 1]) for i in range(x.size)])
    for n in range(1, x.size + 1):
        assert_same_bits(kernel.tanh(x[:n].copy()), want[:n], f"the first {n}")
    mixed = x.copy()
    mixed[::3] = np.nan
    mixed[1::3] = np.inf
    got = kernel.tanh(mixed)
    assert_same_bits(got[2::3].copy(), want[2::3].copy(), "beside NaN and inf")


def float64_samples(count: int) -> Any:
    """Random mantissas, log-uniform over the exponents that matter and beyond, and neighbourhoods of thresholds."""
    rng = np.random.default_rng(1)
    spread = np.exp2(rng.uniform(-60, 6, count))
    linear = np.concatenate([rng.uniform(0, 1, count), rng.uniform(0, 20, count // 2)])
    extreme = np.exp2(rng.uniform(-1074, 1023, count // 10))
    near = [
        np.array(t) * (1 + rng.uniform(-1e-6, 1e-6, count // 50)) for t in (*THRESHOLDS, 2.0**-27, 18.7, 19.06, 354.9)
    ]
    edges = [np.exp2(np.arange(-1074.0, 1023.0)), np.nextafter(np.exp2(np.arange(-1022.0, 1023.0)), 0)]
    return np.concatenate([spread, linear, extreme, *near, *edges])


def test_float64_against_mpmath(kernel: Kernel) -> None:
    """<= 2 ULP on 20,000 values, computed with 120 bits."""
    import mpmath

    x = np.random.default_rng(2).permutation(float64_samples(60_000))[:20_000]
    y = kernel.tanh(x)
    with mpmath.workprec(120):
        for value, got in zip(argument(kernel, x).tolist(), y.tolist(), strict=True):
            exact = mpmath.tanh(mpmath.mpf(value))
            exponent = max(mpmath.frexp(exact)[1], -1021)
            error = abs(mpmath.mpf(got) - exact) / mpmath.ldexp(1, exponent - 53)
            assert error <= ULPS, f"{kernel.id}: tanh({value!r}) = {got!r}, {float(error):.2f} ulp"
    assert_same_bits(kernel.tanh(-x), -y, "oddness")
    assert np.abs(y).max() <= 1


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="longdouble is no wider than float64 here")
def test_float64_dense(kernel: Kernel) -> None:
    """<= 2 ULP on 2 million values, against longdouble (whose own error is below 0.01 ULP of float64)."""
    x = float64_samples(1_000_000)
    y = kernel.tanh(x)
    error = ulp_error(y, np.tanh(argument(kernel, x).astype(np.longdouble)))
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    assert error[worst] <= ULPS + 0.01, f"{kernel.id}: tanh({x[worst]!r}) = {y[worst]!r}, {error[worst]:.2f} ulp"


def test_the_recurrence_uses_this_tanh(kernel: Kernel) -> None:
    """With w_ih the identity and h_0 zero, the forward pass of one step is tanh(x) to the bit."""
    from helpers.cases import Problem

    for dtype in ("float32", "float64"):
        H = 33
        x = (np.random.default_rng(3).standard_normal((1, 50, H)) * 3).astype(dtype)
        p = Problem(x=x, h_0=None, w_ih=np.eye(H, dtype=dtype), w_hh=np.zeros((H, H), dtype))
        output, _ = kernel.forward(p)
        assert_same_bits(output.ravel(), kernel.tanh(x.ravel()), dtype)


@pytest.mark.native
def test_module_lists_this_instruction_set(kernel: Kernel) -> None:
    assert (kernel.isa, True, True) in [tuple(record) for record in native().isas()]
