"""What the backends have in common: the run-time options of the recurrence, its gradients, their functions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NEEDS = ("x", "h_0", "w_ih", "w_hh", "b")
NONLINEARITIES = ("tanh", "relu")


@dataclass(frozen=True, eq=False, slots=True)
class RnnOptions:
    """Options of one direction of one layer; the backends take them as checked.

    z_t = w_ih x_t + b_ih + b_hh + w_hh (recurrent_mask * p_t), where p_t is h_{t-1}, or 0 where reset[t]
    h_t = p_t where keep_mask[t], else tanh(z_t) or relu(z_t)

    With batch_sizes the rows are packed, one time step after the other: (N, ...) stands for (T, B, ...) then.
    """

    nonlinearity: str = "tanh"
    reverse: bool = False  # from each row's last step to its first
    lengths: Array | None = None  # (B) int64: row b ends after lengths[b] steps
    batch_sizes: Array | None = None  # (T) int64, positive, never rising: the rows of each packed step
    reset: Array | None = None  # (T, B) bool: the state that enters step t is 0
    recurrent_mask: Array | None = None  # (B, H): multiplies the state that enters w_hh
    keep_mask: Array | None = None  # (T, B, H) bool: the unit keeps its previous state

    @property
    def plain(self) -> bool:
        """No option but nonlinearity and reverse."""
        return self.lengths is self.batch_sizes is self.reset is self.recurrent_mask is self.keep_mask is None


class RnnGradients(NamedTuple):
    """Gradients of a scalar loss, shaped as the arrays they belong to; None where not needed. d_b_ih = d_b_hh = d_b."""

    d_x: Array | None
    d_h_0: Array | None
    d_w_ih: Array | None
    d_w_hh: Array | None
    d_b: Array | None


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """np.empty, but with a MemoryError also where NumPy cannot even count the bytes."""
    try:
        return np.empty(shape, dtype)
    except ValueError as error:
        needed = prod(shape) * np.dtype(dtype).itemsize
        raise MemoryError(f"cannot allocate {needed} bytes for an array of shape {shape}") from error


class Implementation(Protocol):
    """The functions that each backend's file defines."""

    def pack_weights(self, w_ih: Array, w_hh: Array) -> Any:
        """The weights as the kernel reads them, for rnn_forward(packed=...); None where it reads them as they are."""

    def rnn_forward(
        self,
        x: Array,
        h_0: Array | None,
        w_ih: Array,
        w_hh: Array,
        b_ih: Array | None,
        b_hh: Array | None,
        options: RnnOptions,
        out: Array | None = None,
        packed: Any = None,
    ) -> tuple[Array, Array]:
        """output (in out where given), h_n."""

    def rnn_backward(
        self,
        d_output: Array | None,
        d_h_n: Array | None,
        output: Array,
        x: Array,
        h_0: Array | None,
        w_ih: Array,
        w_hh: Array,
        options: RnnOptions,
        needs: Collection[str] = NEEDS,
    ) -> RnnGradients:
        """BPTT; output is what rnn_forward returned."""
