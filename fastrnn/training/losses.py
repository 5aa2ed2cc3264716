"""Losses and their gradients: each returns (loss, d_y), loss a float (summed in float64), d_y like y.

Means are over the positions that the mask keeps; with class weights, weighted means, as PyTorch has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .. import _validate
from .._backends.options import Array

Loss: TypeAlias = Callable[..., tuple[float, Array]]


def mean_squared_error(y: Array, targets: Array, mask: Array | None = None) -> tuple[float, Array]:
    """Mean of (y - targets)^2 over all elements of y (..., K); mask (...) bool keeps positions.

    Raises ValueError for shapes that differ, TypeError for y that is not float32 or float64. No position: 0.
    """
    y, kept = _checked(y, mask)
    difference = y - _targets(targets, y)
    difference[~kept] = 0
    count = max(int(kept.sum()) * y.shape[-1], 1)
    loss = float(np.square(difference, dtype=np.float64).sum()) / count
    return loss, difference * y.dtype.type(2 / count)


def softmax_cross_entropy(
    logits: Array, targets: Array, mask: Array | None = None, class_weights: Array | None = None
) -> tuple[float, Array]:
    """Mean of -log softmax(logits)[target] over the positions: logits (..., K), targets (...) of int in 0..K-1.

    class_weights (K): each position counts with its target's weight, and the mean divides by the sum of these weights.
    Targets that the mask drops may be anything. Raises TypeError for targets that are not integers, ValueError for
    wrong shapes and for a target outside 0..K-1.
    """
    logits, kept = _checked(logits, mask)
    targets, K = np.asarray(targets), logits.shape[-1]
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integers, got {targets.dtype}")
    if targets.shape != kept.shape:
        raise ValueError(f"targets: expected shape {kept.shape} for logits {logits.shape}, got {targets.shape}")
    targets = np.where(kept, targets, 0)
    if targets.size and not (targets.min() >= 0 and targets.max() < K):
        raise ValueError(f"targets: expected values in 0..K-1 = 0..{K - 1}, got {targets.min()}..{targets.max()}")
    weights = kept * (1.0 if class_weights is None else _class_weights(class_weights, K)[targets])
    total = float(weights.sum())
    share = weights / total if total else weights * 0.0
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exp = np.exp(shifted)
    sums = exp.sum(axis=-1, keepdims=True)
    picked = np.take_along_axis(shifted, targets[..., None], -1)
    each = np.where(kept, (np.log(sums) - picked)[..., 0], 0).astype(np.float64)
    d = exp / sums
    np.put_along_axis(d, targets[..., None], np.take_along_axis(d, targets[..., None], -1) - 1, -1)
    d *= share[..., None].astype(d.dtype)
    d[~kept] = 0
    return float((each * share).sum()), d


def binary_cross_entropy(
    logits: Array, targets: Array, mask: Array | None = None, class_weights: Array | None = None
) -> tuple[float, Array]:
    """Mean over all elements of -t log s - (1 - t) log(1 - s), s = sigmoid(logits (..., K)), t (..., K) in 0..1.

    mask (...) bool keeps positions. class_weights (K) multiplies the first term, that of the positives, as torch's
    pos_weight does. Computed from the logits, without overflow.
    """
    logits, kept = _checked(logits, mask)
    t, K = _targets(targets, logits), logits.shape[-1]
    outside = (t < 0) | (t > 1)
    if outside[kept].any():
        raise ValueError(f"targets: expected values in 0..1, got {t[kept][outside[kept]][0]}")
    weights = np.ones(K) if class_weights is None else _class_weights(class_weights, K)
    w = weights.astype(logits.dtype)
    count = max(int(kept.sum()) * K, 1)
    small = np.exp(-np.abs(logits))  # in (0, 1]
    softplus = np.log1p(small) + np.maximum(-logits, 0)  # -log s; -log(1 - s) = softplus + logits
    factor = 1 + (w - 1) * t
    each = (1 - t) * logits + factor * softplus
    sigmoid, other = np.where(logits >= 0, 1, small) / (1 + small), np.where(logits >= 0, small, 1) / (1 + small)
    d = ((1 - t) * sigmoid - w * t * other) * logits.dtype.type(1 / count)
    d[~kept] = 0
    return float(each[kept].sum(dtype=np.float64)) / count, d


def _checked(y: Any, mask: Any) -> tuple[Array, Array]:
    """y (..., K), and which positions (...) count."""
    if not isinstance(y, np.ndarray) or y.dtype not in _validate.FLOATS:
        raise TypeError(f"y: expected a float32 or float64 array, got {getattr(y, 'dtype', type(y).__name__)}")
    if y.ndim == 0:
        raise ValueError("y: expected (..., K), got a scalar")
    if mask is None:
        return y, np.ones(y.shape[:-1], bool)
    return y, _validate.exact("mask", mask, _validate.BOOL, y.shape[:-1])


def _targets(targets: Any, y: Array) -> Array:
    targets = np.asarray(targets)
    if targets.shape != y.shape:
        raise ValueError(f"targets: expected shape {y.shape}, got {targets.shape}")
    return np.asarray(targets, y.dtype)


def _class_weights(value: Any, K: int) -> Array:
    weights = np.asarray(value, np.float64)
    if weights.shape != (K,) or not (weights >= 0).all():
        raise ValueError(f"class_weights: expected {K} values of at least 0, got {value!r}")
    return weights
