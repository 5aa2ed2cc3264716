"""Comparers: exact bits, units in the last place, bounds by element, and normalised errors. NaN never passes."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def bits(a: Array) -> Array:
    return np.ascontiguousarray(a).view({2: np.uint16, 4: np.uint32, 8: np.uint64}[a.dtype.itemsize])


def assert_same_bits(got: Array | None, want: Array | None, what: str) -> None:
    """Equal to the last bit; NaN equals NaN of any payload, +0 and -0 differ."""
    if got is None or want is None:
        assert got is want, f"{what}: one of the two is None"
        return
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype} against {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape} against {want.shape}"
    different = (bits(got) != bits(want)) & ~(np.isnan(got) & np.isnan(want))
    if different.any():
        at = tuple(int(i) for i in np.argwhere(different)[0])
        raise AssertionError(
            f"{what}: {different.sum()} of {got.size} elements differ in their bits; first at {at}: "
            f"{got[at]!r} against {want[at]!r}"
        )


def assert_all_same_bits(got: Any, want: Any, what: str, names: tuple[str, ...] = ()) -> None:
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert_same_bits(g, w, f"{what}: {names[i] if names else i}")


def is_subnormal(array: Any) -> Any:
    return (array != 0) & (np.abs(array) < np.finfo(array.dtype).smallest_normal)


def ulp_size(reference: Array, dtype: Any) -> Array:
    """One unit in the last place of `dtype` at the (wider) reference value, exact at the binade boundaries."""
    info = np.finfo(dtype)
    _, exponent = np.frexp(np.asarray(reference))
    exponent = np.where(np.equal(reference, 0), info.minexp + 1, np.maximum(exponent, info.minexp + 1))
    return np.ldexp(np.ones_like(reference), exponent - 1 - info.nmant)


def ulp_error(got: Array, reference: Array) -> Array:
    """|got - reference| in ulps of got's dtype; the reference is wider and finite."""
    wide = np.asarray(reference)
    return np.abs(got.astype(wide.dtype) - wide) / ulp_size(wide, got.dtype)


def assert_within(got: Array, reference: Array, bound: Array | float, what: str) -> None:
    """|got - reference| <= bound by element. A NaN in the difference fails."""
    wide = np.result_type(got.dtype, reference.dtype)
    error = np.abs(got.astype(wide) - reference.astype(wide))
    bound = np.broadcast_to(np.asarray(bound, wide), error.shape)
    bad = ~(error <= bound)
    if bad.any():
        with np.errstate(all="ignore"):
            ratio = np.where(np.isnan(error), np.inf, error / bound)
        at = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.where(bad, ratio, -1))), error.shape))
        raise AssertionError(
            f"{what}: {bad.sum()} of {bad.size} elements outside the bound; worst at {at}: got {got[at]!r}, want "
            f"{reference[at]!r}, error {error[at]:.3e}, bound {bound[at]:.3e}"
        )


def normalised_error(got: Array, reference: Array) -> float:
    """max |got - reference| / max |reference|; inf where a NaN or a shape is wrong, 0 for empty arrays."""
    if got.shape != reference.shape:
        return float("inf")
    if got.size == 0:
        return 0.0
    wide = np.result_type(got.dtype, reference.dtype)
    error = np.abs(got.astype(wide) - reference.astype(wide)).max()
    if np.isnan(error):
        return float("inf")
    scale = np.abs(reference).max()
    if scale == 0:
        return 0.0 if error == 0 else float("inf")
    return float(error / scale)


def rms(a: Array) -> float:
    return float(np.sqrt(np.mean(np.square(a.astype(np.float64))))) if a.size else 0.0
