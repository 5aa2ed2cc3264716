"""Losses and their gradients: each returns (loss, d_y), loss a float (summed in float64), d_y like y.

Means are over the positions that the mask keeps; with class weights, weighted means, as PyTorch has them. y, targets
and mask are NumPy's arrays, or CuPy's on one device, and an array of the other kind raises TypeError. A GPU is waited
for once, by binary_cross_entropy with a mask twice, and once more for class weights that are there.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeAlias

import numpy as np

from .. import _validate
from .._backends.options import Array
from .._device import check_kind, module_of, moved, numbers, out_of_range, placed
from .._validate import gpu

Loss: TypeAlias = Callable[..., tuple[float, Array]]


@placed
def mean_squared_error(y: Array, targets: Array, mask: Array | None = None) -> tuple[float, Array]:
    """Mean of (y - targets)^2 over all elements of y (..., K); mask (...) bool keeps positions.

    Raises ValueError for shapes that differ, TypeError for y that is not float32 or float64. No position: 0.
    """
    mask = _checked(y, mask)
    difference = y - _targets(targets, y)
    _drop(difference, mask)
    total, kept = numbers(np.square(difference, dtype=np.float64).sum(), _positions(y, mask))
    count = max(int(kept) * y.shape[-1], 1)
    return total / count, difference * y.dtype.type(2 / count)


@placed
def softmax_cross_entropy(
    logits: Array, targets: Array, mask: Array | None = None, class_weights: Array | None = None
) -> tuple[float, Array]:
    """Mean of -log softmax(logits)[target] over the positions: logits (..., K), targets (...) of int in 0..K-1.

    class_weights (K): each position counts with its target's weight, and the mean divides by the sum of these weights.
    Targets that the mask drops may be anything. Raises TypeError for targets that are not integers, ValueError for
    wrong shapes and for a target outside 0..K-1.
    """
    mask = _checked(logits, mask)
    check_kind("targets", targets, gpu(logits))
    xp, K, shape = module_of(logits), logits.shape[-1], logits.shape[:-1]
    targets = xp.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integers, got {targets.dtype}")
    if targets.shape != shape:
        raise ValueError(f"targets: expected shape {shape} for logits {logits.shape}, got {targets.shape}")
    if mask is not None:
        targets = xp.where(mask, targets, targets.dtype.type(0))
    ends = (targets.min(), targets.max()) if targets.size else (0, 0)  # looked at together with the loss
    inside = targets.astype(np.int64, order="C", copy=False).clip(0, K - 1)
    at = (*(xp.arange(n).reshape(-1, *[1] * (len(shape) - i - 1)) for i, n in enumerate(shape)), inside)
    weights = xp.ones(shape) if class_weights is None else _class_weights(class_weights, logits)[inside]
    if mask is not None:
        weights = weights * mask
    total = weights.sum()
    share = weights / xp.where(total > 0, total, 1.0)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exp = np.exp(shifted)
    sums = exp.sum(axis=-1, keepdims=True)
    each = np.log(sums)[..., 0] - shifted[at]
    if mask is not None:
        each = xp.where(mask, each, logits.dtype.type(0))
    d = exp / sums
    d[at] -= 1
    d *= share[..., None].astype(d.dtype)
    _drop(d, mask)
    loss, lowest, highest = numbers((each.astype(np.float64) * share).sum(), *ends)
    if lowest < 0 or highest >= K:
        raise out_of_range("targets", "0..K-1 = ", targets, K)
    return loss, d


@placed
def binary_cross_entropy(
    logits: Array, targets: Array, mask: Array | None = None, class_weights: Array | None = None
) -> tuple[float, Array]:
    """Mean over all elements of -t log s - (1 - t) log(1 - s), s = sigmoid(logits (..., K)), t (..., K) in 0..1.

    mask (...) bool keeps positions. class_weights (K) multiplies the first term, that of the positives, as torch's
    pos_weight does. Computed from the logits, without overflow.
    """
    mask = _checked(logits, mask)
    t, xp, K = _targets(targets, logits), module_of(logits), logits.shape[-1]
    outside = (t < 0) | (t > 1)
    if mask is not None:
        outside &= mask[..., None]
    w = (xp.ones(K) if class_weights is None else _class_weights(class_weights, logits)).astype(logits.dtype)
    small = np.exp(-np.abs(logits))  # in (0, 1]
    softplus = np.log1p(small) + np.maximum(-logits, 0)  # -log s; -log(1 - s) = softplus + logits
    factor = 1 + (w - 1) * t
    each = (1 - t) * logits + factor * softplus
    each = each.reshape(-1) if mask is None else each[mask]
    total, kept, wrong = numbers(each.sum(dtype=np.float64), _positions(logits, mask), outside.any())
    if wrong:
        raise ValueError(f"targets: expected values in 0..1, got {moved(t, None)[moved(outside, None)][0]}")
    count = max(int(kept) * K, 1)
    sigmoid, other = xp.where(logits >= 0, 1, small) / (1 + small), xp.where(logits >= 0, small, 1) / (1 + small)
    d = ((1 - t) * sigmoid - w * t * other) * logits.dtype.type(1 / count)
    _drop(d, mask)
    return total / count, d


def _checked(y: Any, mask: Any) -> Array | None:
    """Checks y (..., K); which positions (...) count, None for all."""
    if not (isinstance(y, np.ndarray) or gpu(y) is not None) or y.dtype not in _validate.FLOATS:
        raise TypeError(f"y: expected a float32 or float64 array, got {getattr(y, 'dtype', type(y).__name__)}")
    if y.ndim == 0:
        raise ValueError("y: expected (..., K), got a scalar")
    return None if mask is None else _validate.exact("mask", mask, _validate.BOOL, y.shape[:-1], home=gpu(y))


def _positions(y: Array, mask: Array | None) -> Any:
    """How many count."""
    return prod(y.shape[:-1]) if mask is None else mask.sum()


def _drop(array: Array, mask: Array | None) -> None:
    """Sets the positions that do not count to 0."""
    if mask is None:
        return
    if gpu(array) is None:
        array[~mask] = 0
    else:  # CuPy would count the mask first, and wait for that
        module_of(array).copyto(array, array.dtype.type(0), where=~mask[..., None])


def _targets(targets: Any, y: Array) -> Any:
    check_kind("targets", targets, gpu(y))
    targets = module_of(y).asarray(targets)
    if targets.shape != y.shape:
        raise ValueError(f"targets: expected shape {y.shape}, got {targets.shape}")
    return targets.astype(y.dtype, copy=False)


def _class_weights(value: Any, y: Array) -> Any:
    """(K) float64 beside y; given on the host, or of y's kind, which is waited for."""
    if gpu(y) is None:
        check_kind("class_weights", value, None)
    weights, K = np.asarray(moved(value, None), np.float64), y.shape[-1]
    if weights.shape != (K,) or not (weights >= 0).all():
        raise ValueError(f"class_weights: expected {K} values of at least 0, got {value!r}")
    return moved(weights, gpu(y))
