"""BPTT that keeps the states at the ends of chunks of time, and computes what is between them again.

Chen, Xu, Zhang & Guestrin, "Training deep nets with sublinear memory cost" (2016); for RNNs Gruslys et al.,
"Memory-efficient backpropagation through time" (2016). With chunks of sqrt(T) steps, sqrt(T) states are kept and
sqrt(T) are computed at a time. It costs one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any, NamedTuple, cast

import numpy as np

from . import _validate
from ._backends.options import Array, Implementation, RnnOptions, WeightSums


def chunk_steps(checkpoint_every: Any, T: int, B: int) -> int:
    """The steps of a chunk: whole blocks of the canonical sum of the gradients of the weights (csrc/cpu/sum_order.h),
    so that recomputation does not change their bits; the square root of T for "auto"."""
    block = -(-256 // max(B, 1))
    if isinstance(checkpoint_every, str):
        if checkpoint_every != "auto":
            raise ValueError(f"checkpoint_every: expected None, 'auto' or an int, got {checkpoint_every!r}")
        wanted = isqrt(T)
    else:
        wanted = _validate.integer("checkpoint_every", checkpoint_every, at_least=1)
    return max(1, -(-wanted // block)) * block


class Masks:
    """The masks of one direction, those of a chunk drawn again to the same bits when it is computed again.

    recurrent is (L, B, H); inputs are (B, I) of each layer, or none. Inter-layer dropout and zoneout are drawn for each
    chunk from a stream of its own, of the seed.
    """

    def __init__(
        self,
        inputs: Sequence[Array] = (),
        recurrent: Array | None = None,
        dropout: float = 0.0,
        zoneout: float = 0.0,
        seed: tuple[int, ...] = (),
    ) -> None:
        self.inputs, self.recurrent, self.dropout, self.zoneout, self.seed = inputs, recurrent, dropout, zoneout, seed

    def noise(self, layer: int, chunk: int, x: Array, rows: Any) -> Array | None:
        """What multiplies a layer's input."""
        mask = self.inputs[layer][rows] if self.inputs else None
        if not (self.dropout and layer):
            return mask
        kept = self._draw(0, layer, chunk, x.shape) >= self.dropout
        noise = np.multiply(kept, 1 / (1 - self.dropout) if self.dropout < 1 else 0, dtype=x.dtype)
        return noise if mask is None else noise * mask

    def options(self, layer: int, chunk: int, o: RnnOptions, shape: tuple[int, ...], rows: Any) -> RnnOptions:
        changes: dict[str, Any] = {}
        if self.recurrent is not None:
            changes["recurrent_mask"] = self.recurrent[layer][rows]
        if self.zoneout:
            changes["keep_mask"] = self._draw(1, layer, chunk, shape) < self.zoneout
        return replace(o, **changes) if changes else o

    def _draw(self, kind: int, layer: int, chunk: int, shape: tuple[int, ...]) -> Array:
        return np.random.default_rng([*self.seed, kind, layer, chunk]).random(shape, np.float32)


class _Pass(NamedTuple):
    """One layer's pass over a chunk."""

    x: Array
    noise: Array | None
    options: RnnOptions
    h_0: Array | None
    output: Array


class Recompute:
    """Layers of one direction over x (T, B, I), walked in chunks of the given number of steps.

    weights are w_ih, w_hh, b_ih, b_hh, alpha of each layer; options hold for all of them. The chunks' borders are
    counted from the last processed step. Rows of different lengths are walked in length order, each from its own start
    or, in reverse, from its own end.
    """

    def __init__(
        self,
        functions: Implementation,
        steps: int,
        x: Array,
        h_0: Sequence[Array | None],
        weights: Sequence[Sequence[Any]],
        options: RnnOptions,
        masks: Masks | None = None,
    ) -> None:
        self.functions, self.x, self.weights, self.masks = functions, x, weights, masks
        self.options, self.turned, self.rows = options, False, cast(Any, slice(None))
        T = x.shape[0]
        if options.lengths is not None:
            self.rows = np.argsort(-options.lengths, kind="stable")
            self.options = replace(options, lengths=options.lengths[self.rows], reverse=False)
            self.turned, T = options.reverse, int(options.lengths.max(initial=0))
        self.chunks = [(max(end - steps, 0), end) for end in reversed(range(T, 0, -steps))]
        if self.options.reverse:
            self.chunks = [(T - end, T - begin) for begin, end in self.chunks]
        self.first = [None if h is None else h[self.rows] for h in h_0]
        self.states: list[list[Array | None]] = []  # before each chunk, of each layer

    def at(self, chunk: int) -> Any:
        """Where a chunk's steps and rows are in x, and in all that is shaped (T, B, ...)."""
        begin, end = self.chunks[chunk]
        if not self.turned:
            return slice(begin, end), self.rows
        s, lengths = np.arange(begin, end)[:, None], cast(Array, self.options.lengths)
        return np.where(s < lengths, lengths - 1 - s, s), self.rows

    def forward(self, visit: Callable[[int, Array], None]) -> list[Array]:
        """h_n of each layer; visit(chunk, output) sees the last layer's output, which is at(chunk)."""
        states = self.first
        for chunk in range(len(self.chunks)):
            self.states.append(states)
            passes, states = self._walk(chunk, states)
            visit(chunk, passes[-1].output)
        return [self.callers(self._settled(h), 0) for h in states]

    def backward(
        self,
        upstream: Callable[[int, Array], Array | None],
        d_h_n: Sequence[Array | None],
        needs: Collection[str],
        d_x: Array | None,
    ) -> tuple[list[Array], list[WeightSums]]:
        """d_h_0 and the gradients of the weights, of each layer; d_x is filled, which is zero beyond the chunks, and
        is the gradient of the first layer's input behind its mask: two directions add theirs before unmasked does it.

        upstream(chunk, output) is the gradient of the last layer's output, which is at(chunk).
        """
        d_states: list[Any] = [None if d is None else d[self.rows] for d in d_h_n]
        sums = [WeightSums.zero(w_ih, needs) for w_ih, *_ in self.weights]
        for chunk in reversed(range(len(self.chunks))):
            passes, _ = self._walk(chunk, self.states[chunk])
            d = upstream(chunk, passes[-1].output)
            for layer in reversed(range(len(passes))):
                x, noise, options, h_0, output = passes[layer]
                w_ih, w_hh, b_ih, b_hh, _ = self.weights[layer]
                wanted = {"x", "h_0", *needs} if layer or d_x is not None else {"h_0", *needs}
                given = d, d_states[layer], output, x, h_0, w_ih, w_hh, options, wanted, b_ih, b_hh
                made = self.functions.rnn_backward(*given, sums=sums[layer])
                d, d_states[layer] = made.d_x, made.d_h_0
                if d is not None and noise is not None and layer:
                    d = d * noise
            if d_x is not None and d is not None:
                d_x[self.at(chunk)] = d
        return [self.callers(self._settled(d), 0) for d in d_states], [each.result() for each in sums]

    def unmasked(self, d_x: Array) -> Array:
        """The gradient of x, in place."""
        if self.masks is not None and self.masks.inputs:
            d_x *= self.masks.inputs[0]
        return d_x

    def _walk(self, chunk: int, states: list[Array | None]) -> tuple[list[_Pass], list[Any]]:
        x, passes, after = self.x[self.at(chunk)], [], []
        base = self._options(chunk)
        for layer, (h_0, weights) in enumerate(zip(states, self.weights, strict=True)):
            w_ih, w_hh, b_ih, b_hh, alpha = weights
            options, noise = base if alpha is None else replace(base, alpha=alpha), None
            if self.masks is not None:
                noise = self.masks.noise(layer, chunk, x, self.rows)
                x = x if noise is None else x * noise
                options = self.masks.options(layer, chunk, options, (*x.shape[:2], len(w_hh)), self.rows)
            output, h_n = self.functions.rnn_forward(x, h_0, w_ih, w_hh, b_ih, b_hh, options)
            passes.append(_Pass(x, noise, options, h_0, output))
            after.append(h_n)
            x = output
        return passes, after

    def _options(self, chunk: int) -> RnnOptions:
        o, changes = self.options, cast("dict[str, Any]", {})
        if o.lengths is not None:
            begin, end = self.chunks[chunk]
            changes["lengths"] = np.clip(o.lengths - begin, 0, end - begin)
        if o.reset is not None:
            changes["reset"] = o.reset[self.at(chunk)]
        return replace(o, **changes) if changes else o

    def _settled(self, h: Array | None) -> Array:
        """Zeros where nothing was given and no step was made."""
        H = len(self.weights[0][1])
        return np.zeros((self.x.shape[1], H), self.x.dtype) if h is None else h

    def callers(self, value: Array, axis: int = 1) -> Array:
        """value with the rows of its axis as the caller has them."""
        if isinstance(self.rows, slice):
            return value
        result = np.empty_like(value)
        result[(slice(None),) * axis + (self.rows,)] = value
        return result
