"""SequenceModel: embedding -> RNN -> pooling -> dropout -> readout, as one module that fit trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from .. import _validate
from .._backends.options import Array
from .._parameters import IncompatibleKeys, load_into
from ..layer import RNN
from .layers import POOLINGS, Embedding, Linear, draw_mask, pool

Backward: TypeAlias = Callable[[Array], tuple[Array | None, Array]]


class SequenceModel:
    """An RNN with what stands before and after it; fit trains it.

        y_t = readout(h_t) at every step, or with pool one y = readout(pooled h)

    Arguments:
        rnn: a time-major fastrnn.RNN.
        readout: its input size is what comes out of the pooling: D * H, or 2 * D * H for "mean+max".
        embedding: x is (T, B) tokens then.
        pool: None, "last", "mean", "max" or "mean+max".
        dropout: of what enters the readout.
        token_dropout: the probability with which a whole step of x is zeroed, without rescaling (Iyyer et al. 2015).
        seed: of both kinds of dropout; that between layers is the RNN's.

    parameters and grads hold those of the parts, as "embedding.weight", "rnn.weight_ih_l0", "readout.bias".
    """

    def __init__(
        self,
        rnn: RNN,
        readout: Linear,
        *,
        embedding: Embedding | None = None,
        pool: str | None = None,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        seed: Any = None,
    ) -> None:
        if rnn.batch_first:
            raise ValueError("rnn: expected batch_first=False, got True")
        if pool is not None and pool not in POOLINGS:
            raise ValueError(f"pool: expected None or one of {', '.join(map(repr, POOLINGS))}, got {pool!r}")
        self.rnn, self.readout, self.embedding, self.pool = rnn, readout, embedding, pool
        self.dropout = _validate.probability("dropout", dropout)
        self.token_dropout = _validate.probability("token_dropout", token_dropout)
        self._directions = 1 + rnn.bidirectional
        width = self._directions * rnn.hidden_size * (2 if pool == "mean+max" else 1)
        if readout.input_size != width:
            raise ValueError(f"readout: expected input_size {width} for pool={pool!r}, got {readout.input_size}")
        if embedding is not None and embedding.dimension != rnn.input_size:
            raise ValueError(f"embedding: expected dimension {rnn.input_size}, got {embedding.dimension}")
        if len({part.dtype for part in (rnn, readout, embedding) if part is not None}) > 1:
            raise TypeError("rnn, readout, embedding: expected one dtype, got several")
        self._parts: dict[str, Any] = {"rnn": rnn, "readout": readout}
        if embedding is not None:
            self._parts = {"embedding": embedding, **self._parts}
        self.reseed(seed)

    def reseed(self, seed: Any) -> None:
        """Starts the random numbers of all dropout anew."""
        self._rng, self.rnn._rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))

    @property
    def parameters(self) -> dict[str, Array]:
        """Name -> array of every parameter that is trained."""
        trained = {name: part for name, part in self._parts.items() if getattr(part, "trainable", True)}
        return {f"{name}.{key}": array for name, part in trained.items() for key, array in part.parameters.items()}

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients of parameters."""
        return {name: self._parts[name.partition(".")[0]].grads[name.partition(".")[2]] for name in self.parameters}

    def zero_grad(self) -> None:
        """Sets all gradients to zero."""
        for part in self._parts.values():
            part.zero_grad()

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters, also of those that are not trained."""
        return {f"{n}.{key}": array for n, part in self._parts.items() for key, array in part.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copies values into the parameters, in place; all of them or none. Errors as fastrnn.RNN's."""
        arrays = {f"{n}.{key}": array for n, part in self._parts.items() for key, array in part.parameters.items()}
        return load_into(arrays, state_dict, strict)

    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        """y (T, B, K), or (B, K) with pool; no dropout. Beyond a row's length y is readout(0)."""
        if self.embedding is not None:
            x = self.embedding(x)
        output, h_n = self.rnn(x, lengths=lengths)
        if self.pool is not None:
            output = pool(self.pool, output, h_n, lengths, self._directions)[0]
        return self.readout(output)

    def forward_train(
        self, x: Array, lengths: Array | None = None, h_0: Array | None = None
    ) -> tuple[Array, Array, Backward]:
        """y, h_n (L * D, B, H), backward: with dropout.

        backward(d_y) adds to grads and returns d_x (T, B, I), with an embedding the gradient of its vectors (T, B, E),
        and d_h_0.
        """
        embed = None
        if self.embedding is not None:
            x, embed = self.embedding.forward_train(x)
        kept = None
        if self.token_dropout > 0:
            kept = (self._rng.random(x.shape[:2], np.float32) >= self.token_dropout)[..., None].astype(x.dtype)
            x = np.multiply(x, kept, out=None if embed is None else x)  # x of an embedding is ours
        output, h_n, backward_rnn = self.rnn.forward_train(x, h_0, lengths)
        states, unpool = output, None
        if self.pool is not None:
            states, unpool = pool(self.pool, output, h_n, lengths, self._directions)
        noise = None
        if self.dropout > 0:
            noise = draw_mask(states.shape, self.dropout, states.dtype, self._rng)
            states = states * noise
        y, backward_readout = self.readout.forward_train(states)

        def backward(d_y: Array) -> tuple[Array | None, Array]:
            d_states = backward_readout(d_y)
            if noise is not None:
                d_states *= noise
            d_output, d_h_n = (d_states, None) if unpool is None else unpool(d_states)
            d_x, d_h_0 = backward_rnn(d_output, d_h_n)
            if kept is not None:
                d_x *= kept
            if embed is not None:
                embed(d_x)
            return d_x, d_h_0

        return y, h_n, backward
