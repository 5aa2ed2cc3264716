"""Initial values: uniform as torch's, Glorot, orthogonal, identity."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._backends.options import Array
from .._device import placed
from ..layer import RNN, RNNCell

SCHEMES = ("uniform", "glorot", "orthogonal", "identity")


def uniform(shape: tuple[int, ...], bound: float, rng: np.random.Generator) -> Array:
    """Uniform in +-bound, float64."""
    return rng.uniform(-bound, bound, shape)


def glorot(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Uniform in +-sqrt(6 / (rows + columns)) (Glorot and Bengio 2010), float64."""
    return uniform(shape, float(np.sqrt(6 / sum(shape))), rng)


def orthogonal(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Orthonormal rows or columns, uniformly distributed (Saxe et al. 2014), float64."""
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.where(np.diag(r) < 0, -1, 1)  # without this the distribution is not uniform
    return q if shape[0] >= shape[1] else q.T


@placed
def initialize(rnn: RNN | RNNCell, scheme: str, *, gain: float = 1.0, seed: Any = None) -> None:
    """Draws the parameters of rnn anew, in place: of a seed the same on every device.

    scheme: "uniform": all in +-1 / sqrt(H), as torch and the constructor have it; "glorot": both matrices, biases 0;
    "orthogonal": weight_hh orthogonal, weight_ih Glorot, biases 0; "identity": weight_hh the identity, weight_ih normal
    with standard deviation 0.001, biases 0, for relu (Le, Jaitly and Hinton 2015). gain multiplies weight_hh.
    alpha, where it is a parameter, keeps its values. Raises ValueError for another scheme and for read-only parameters;
    nothing has been changed then.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(map(repr, SCHEMES))}, got {scheme!r}")
    rng = np.random.default_rng(seed)
    values = {}
    for name, array in rnn.parameters.items():
        if name == "alpha":
            continue
        values[name] = _drawn(name, array.shape, scheme, rng, rnn.hidden_size).astype(rnn.dtype)
        if name.startswith("weight_hh"):
            values[name] *= gain
    rnn.load_state_dict(values, strict=False)


def _drawn(name: str, shape: tuple[int, ...], scheme: str, rng: np.random.Generator, H: int) -> Array:
    if scheme == "uniform":
        return uniform(shape, H**-0.5, rng)
    if name.startswith("bias"):
        return np.zeros(shape)
    rows, columns = shape
    if scheme == "glorot" or (scheme == "orthogonal" and name.startswith("weight_ih")):
        return glorot((rows, columns), rng)
    if scheme == "orthogonal":
        return orthogonal((rows, columns), rng)
    return np.eye(H) if name.startswith("weight_hh") else rng.standard_normal(shape) * 1e-3
