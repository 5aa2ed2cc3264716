"""What the backends have in common: the run-time options of the recurrence, its gradients, their functions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NEEDS = ("x", "h_0", "w_ih", "w_hh", "b")  # of every call; "alpha" where that is given
NONLINEARITIES = ("tanh", "relu")


@dataclass(frozen=True, eq=False, slots=True)
class RnnOptions:
    """Options of one direction of one layer; the backends take them as checked.

    z_t = w_ih x_t + b_ih + b_hh + w_hh (recurrent_mask * p_t), where p_t is h_{t-1}, or 0 where reset[t]
    h_t = p_t where keep_mask[t], else (1 - alpha) p_t + alpha tanh(z_t), or relu(z_t); alpha is 1 where not given

    With batch_sizes the rows are packed, one time step after the other: (N, ...) stands for (T, B, ...) then.
    """

    nonlinearity: str = "tanh"
    reverse: bool = False  # from each row's last step to its first
    lengths: Array | None = None  # (B) int64: row b ends after lengths[b] steps
    batch_sizes: Array | None = None  # (T) int64, positive, never rising: the rows of each packed step
    reset: Array | None = None  # (T, B) bool: the state that enters step t is 0
    recurrent_mask: Array | None = None  # (B, H): multiplies the state that enters w_hh
    keep_mask: Array | None = None  # (T, B, H) bool: the unit keeps its previous state
    alpha: Array | None = None  # (H): leaky units
    plain: bool = field(init=False, repr=False)  # no option but nonlinearity and reverse: short calls ask often

    def __post_init__(self) -> None:
        masks = self.reset is self.recurrent_mask is self.keep_mask is None
        object.__setattr__(self, "plain", masks and self.lengths is self.batch_sizes is self.alpha is None)


class _FiveGradients(NamedTuple):
    d_x: Array | None
    d_h_0: Array | None
    d_w_ih: Array | None
    d_w_hh: Array | None
    d_b: Array | None


class RnnGradients(_FiveGradients):
    """Gradients of a scalar loss, shaped as the arrays they belong to; None where not needed. d_b_ih = d_b_hh = d_b.

    A named tuple of d_x, d_h_0, d_w_ih, d_w_hh, d_b; d_alpha, for leaky units, is there by its name alone.
    """

    d_alpha: Array | None = None

    def with_alpha(self, d_alpha: Array | None) -> RnnGradients:
        """These five, and now d_alpha."""
        self.d_alpha = d_alpha
        return self

    def _replace(self, **changes: Any) -> RnnGradients:
        d_alpha = changes.pop("d_alpha", self.d_alpha)
        return super()._replace(**changes).with_alpha(d_alpha)


class WeightSums(NamedTuple):
    """Gradients of the weights in the making: several calls of rnn_backward add to them, one for each range of steps,
    from the last processed range to the first. None where not needed."""

    d_w_ih: Array | None
    d_w_hh: Array | None
    d_b: Array | None
    d_alpha: Array | None = None
    b_lost: Array | None = None  # what rounding took from d_b and d_alpha meanwhile
    alpha_lost: Array | None = None

    @staticmethod
    def zero(w_ih: Array, needs: Collection[str]) -> WeightSums:
        H = len(w_ih)
        shapes = {"w_ih": w_ih.shape, "w_hh": (H, H), "b": (H,), "alpha": (H,)}
        made = {name: np.zeros(shape, w_ih.dtype) if name in needs else None for name, shape in shapes.items()}
        lost = [None if made[name] is None else np.zeros(H, w_ih.dtype) for name in ("b", "alpha")]
        return WeightSums(*made.values(), *lost)

    def take(self, gradients: RnnGradients) -> RnnGradients:
        """Adds those of the weights, for a backend that does not do so itself; what remains of the gradients."""
        given = (*gradients[2:], gradients.d_alpha)
        for total, d in zip(self, given, strict=False):
            if total is not None and d is not None:
                total += d
        return RnnGradients(*gradients[:2], None, None, None)

    def result(self) -> WeightSums:
        """Gives back what was lost, after the last call."""
        for total, lost in ((self.d_b, self.b_lost), (self.d_alpha, self.alpha_lost)):
            if total is not None and lost is not None:
                np.add(total, lost, out=total, where=np.isfinite(lost))
        return self


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """np.empty, but with a MemoryError also where NumPy cannot even count the bytes."""
    try:
        return np.empty(shape, dtype)
    except ValueError as error:
        needed = prod(shape) * np.dtype(dtype).itemsize
        raise MemoryError(f"cannot allocate {needed} bytes for an array of shape {shape}") from error


class Implementation(Protocol):
    """The functions that each backend's file defines; empty: those on the CPU alone."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array for results, as the function above makes it."""

    def pack_weights(self, w_ih: Array, w_hh: Array) -> Any:
        """The weights as the kernel reads them, for rnn_forward(packed=...); None where it reads them as they are."""

    def rnn_forward(
        self,
        x: Array,
        h_0: Array | None,
        w_ih: Array | None,
        w_hh: Array,
        b_ih: Array | None,
        b_hh: Array | None,
        options: RnnOptions,
        out: Array | None = None,
        packed: Any = None,
    ) -> tuple[Array, Array]:
        """output (in out where given), h_n. w_ih=None: x is w_ih x already, (T, B, H) or (N, H); packed may still hold
        a w_ih, which is not read."""

    def rnn_backward(
        self,
        d_output: Array | None,
        d_h_n: Array | None,
        output: Array,
        x: Array,
        h_0: Array | None,
        w_ih: Array | None,
        w_hh: Array,
        options: RnnOptions,
        needs: Collection[str] = NEEDS,
        b_ih: Array | None = None,
        b_hh: Array | None = None,
        *,
        sums: WeightSums | None = None,
    ) -> RnnGradients:
        """BPTT; output is what rnn_forward returned. The biases are read with options.alpha alone. Without w_ih d_x is
        the gradient of w_ih x, and d_w_ih is None.

        With sums the gradients of the weights are added to them, those that they have, and not among the results.
        """
