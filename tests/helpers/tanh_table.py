"""The table of csrc/cpu/tanh_table.inl, from the formula: `python tests/helpers/tanh_table.py` prints it.

Row i holds, for the arguments x of one quarter of an octave, `node` t, `value` tanh(t) and c_1 ... c_5 of

    tanh(x) ~ tanh(t) + d (c_1 + d (c_2 + ... + d c_5)),    d = x - t

which interpolates tanh at the six Chebyshev nodes of the quarter, of which t is one; but t is moved to a float whose
tanh is a float too, to 1 / 1000 ULP, so that `value` has almost no error. The first quarter begins at 0: there t is 0
and tanh(x) ~ x + c_3 x^3 + c_5 x^5. Where tanh rounds to 1, all but `value` is 0. Quarters are counted modulo 32, as
the low bits of 4 * exponent + quarter have them.
"""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np

COLUMNS = ("node", "value", "c1", "c2", "c3", "c4", "c5")
OCTAVES = range(-4, 4)  # 2^-4, and all below it, to 16
SATURATED = 9.1
SEARCHED = 1000  # floats on both sides


def table() -> dict[str, Any]:
    """Column -> its 32 float32 numbers."""
    rows: list[list[Any]] = [[] for _ in range(32)]
    with mpmath.workprec(120):
        for octave in OCTAVES:
            for quarter in range(4):
                low, high = (mpmath.ldexp(4 + quarter + more, octave - 2) for more in (0, 1))
                first = octave == OCTAVES[0] and quarter == 0
                row = _first_row(high) if first else [0, 1, 0, 0, 0, 0, 0] if low > SATURATED else _row(low, high)
                rows[(4 * (octave + 127) + quarter) % 32] = row
    return {name: np.array([float(row[i]) for row in rows], np.float32) for i, name in enumerate(COLUMNS)}


def _first_row(high: Any) -> list[Any]:
    squares = [high**2 * (1 + root) / 2 for root in _chebyshev(2)]
    c3, c5 = _interpolate(squares, [(mpmath.tanh(mpmath.sqrt(s)) / mpmath.sqrt(s) - 1) / s for s in squares])
    return [0, 0, 1, 0, c3, 0, c5]


def _row(low: Any, high: Any) -> list[Any]:
    nodes = [(low + high) / 2 + (high - low) / 2 * root for root in _chebyshev(6)]
    t = _with_a_float_for_tanh(nodes.pop(3))  # the next one below the middle
    at_t = mpmath.tanh(t)
    return [t, at_t, *_interpolate([x - t for x in nodes], [(mpmath.tanh(x) - at_t) / (x - t) for x in nodes])]


def _chebyshev(n: int) -> list[Any]:
    """The roots of the n-th Chebyshev polynomial, falling."""
    return [mpmath.cos((2 * i + 1) * mpmath.pi / (2 * n)) for i in range(n)]


def _interpolate(x: list[Any], y: list[Any]) -> list[Any]:
    """c_0, c_1, ... of the polynomial through the points."""
    powers = mpmath.matrix(len(x), len(x))
    for i, value in enumerate(x):
        for j in range(len(x)):
            powers[i, j] = value**j
    return list(mpmath.lu_solve(powers, mpmath.matrix(y)))


def _with_a_float_for_tanh(t: Any) -> Any:
    """A float near t, the one whose tanh is the least part of an ULP from a float. Where tanh is flat its floats are
    far from each other, so the search begins where tanh is the float nearest to tanh(t).
    """
    t = mpmath.atanh(_rounded(mpmath.tanh(t)))
    near = [_rounded(t, i) for i in range(-SEARCHED, SEARCHED + 1)]
    return min(near, key=ulps_from_a_float)


def ulps_from_a_float(t: Any) -> Any:
    """The distance of tanh(t) from a float."""
    y = mpmath.tanh(t)
    return abs(y - _rounded(y)) / _ulp(y)


def _ulp(x: Any) -> Any:
    return mpmath.ldexp(1, mpmath.frexp(x)[1] - 24)


def _rounded(x: Any, further: int = 0) -> Any:
    """The float nearest to x, or so many floats further."""
    return (mpmath.nint(x / _ulp(x)) + further) * _ulp(x)


def main() -> None:
    for name, numbers in table().items():
        print(f"  static constexpr float {name}[32] = {{")
        for i in range(0, 32, 4):
            print("      " + " ".join(f"{number:.8e}f," for number in numbers[i : i + 4]))
        print("  };")


if __name__ == "__main__":
    main()
