"""SequenceModel: embedding -> RNN -> pooling -> dropout -> readout, as one module that fit trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from .. import _validate
from .._backends.options import Array
from .._device import check_kind, moved, on, placed
from .._gathered import Gathered
from .._parameters import IncompatibleKeys, load_into
from ..layer import RNN
from .layers import POOLINGS, Embedding, Linear, draw_mask, pool

Backward: TypeAlias = Callable[[Array], tuple[Array | None, Array]]

# The price of the token path, in multiply-adds of one product of as much time: finding the tokens that occur, for each
# step of a batch, where BPTT saves two products more and where it does not, and for each row of the embedding; each
# number of w_ih x that is gathered beyond those of x.
_STEP_TRAINED, _STEP, _ROW, _NUMBER = 1024, 4096, 32, 64


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
        by_token: with an embedding, the input product w_ih x_t of layer 0 is computed once for each token that occurs
            in the batch, and gathered; BPTT sums gradients token by token before it multiplies. None: in each call
            where this is less work. That is counted: of N steps (the lengths' sum) and U different tokens, the
            (N - U) I D H multiply-adds saved must be above N (1024 + 64 max(D H - I, 0)) + 32 V, for finding tokens
            and moving more numbers; in a call without BPTT 4096 stands for 1024. True, False: always, never. Results
            differ in rounding. Not with the RNN's input_dropout, nor on a GPU.

    The parts are on one device, where x, h_0 and all results are; lengths may be NumPy's in any case. The masks of
    dropout are drawn on the host: of a seed the same on every device. Raises ValueError for parts that do not fit or
    are on several devices, TypeError for parts of several dtypes and for arrays of the wrong kind.

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
        by_token: bool | None = None,
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
        places = [_validate.place(part._home) for part in (rnn, readout, embedding) if part is not None]
        if len(set(places)) > 1:
            words = "rnn, readout" if embedding is None else "rnn, readout, embedding"
            raise ValueError(f"{words}: expected one device, got {', '.join(places)}")
        self._products = embedding is not None and rnn.device == "cpu" and not rnn.input_dropout
        if by_token is not None and _validate.boolean("by_token", by_token) and not self._products:
            raise ValueError("by_token: expected an embedding and an RNN on the CPU without input_dropout, got True")
        self.by_token = by_token
        self._parts: dict[str, Any] = {"rnn": rnn, "readout": readout}
        if embedding is not None:
            self._parts = {"embedding": embedding, **self._parts}
        self.reseed(seed)

    @property
    def _home(self) -> Any:
        """An array where all others are; None for the CPU."""
        return self.rnn._home

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

    @placed
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copies values into the parameters, in place; all of them or none. Errors as fastrnn.RNN's."""
        arrays = {f"{n}.{key}": array for n, part in self._parts.items() for key, array in part.parameters.items()}
        return load_into(arrays, state_dict, strict)

    @placed
    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        """y (T, B, K), or (B, K) with pool; no dropout. Beyond a row's length y is readout(0)."""
        output, h_n = self.rnn(self._embed(x, lengths, None, _STEP)[0], lengths=lengths)
        if self.pool is not None:
            output = pool(self.pool, output, h_n, lengths, self._directions)[0]
        return self.readout(output)

    @placed
    def forward_train(
        self, x: Array, lengths: Array | None = None, h_0: Array | None = None
    ) -> tuple[Array, Array, Backward]:
        """y, h_n (L * D, B, H), backward: with dropout.

        backward(d_y) adds to grads and returns d_x (T, B, I), None with an embedding, and d_h_0.
        """
        kept = None
        if self.token_dropout > 0:
            kept = self._rng.random(getattr(x, "shape", ())[:2], np.float32) >= self.token_dropout
        values, embed = self._embed(x, lengths, kept, _STEP_TRAINED)
        output, h_n, backward_rnn = self.rnn.forward_train(values, h_0, lengths)
        states, unpool = output, None
        if self.pool is not None:
            states, unpool = pool(self.pool, output, h_n, lengths, self._directions)
        noise = None
        if self.dropout > 0:
            noise = moved(draw_mask(states.shape, self.dropout, states.dtype, self._rng), self._home)
            states = states * noise
        y, backward_readout = self.readout.forward_train(states)

        def backward(d_y: Array) -> tuple[Array | None, Array]:
            d_states = backward_readout(d_y)
            if noise is not None:
                d_states *= noise
            d_output, d_h_n = (d_states, None) if unpool is None else unpool(d_states)
            d_x, d_h_0 = backward_rnn(d_output, d_h_n)
            return embed(d_x), d_h_0

        return y, h_n, on(self._home, backward)

    def _embed(
        self, x: Array, lengths: Array | None, kept: Array | None, price: int
    ) -> tuple[Any, Callable[[Array], Any]]:
        """What the RNN takes, 0 where kept (T, B) bool is False; and the way back of its gradient, which returns d_x,
        or adds to the embedding's."""
        embed = None
        if self.embedding is not None:
            if self._products and self.by_token is not False:
                gathered = self._gather(self.embedding, x, lengths, kept, price)
                if gathered is not None:
                    return gathered
            x, embed = self.embedding.forward_train(x)
        if kept is None:
            return x, embed or _unchanged
        check_kind("x", x, self._home)
        factor = moved(kept[..., None].astype(x.dtype), self._home)
        x = x * factor if embed is None else np.multiply(x, factor, out=x)  # x of an embedding is ours

        def backward(d_x: Array) -> Any:
            d_x *= factor
            return d_x if embed is None else embed(d_x)

        return x, backward

    def _gather(
        self, embedding: Embedding, tokens: Array, lengths: Array | None, kept: Array | None, price: int
    ) -> tuple[Gathered, Callable[[Array], None]] | None:
        """The tokens as rows of a table, and the way back, where by_token says so; else None."""
        if getattr(tokens, "ndim", None) != 2:  # the RNN's business
            return None
        T, B = tokens.shape
        steps = T * B if lengths is None else int(_validate.sequence_lengths(lengths, T, B).sum())
        I, width = embedding.dimension, self._directions * self.rnn.hidden_size
        costs = steps * (price + _NUMBER * max(width - I, 0)) + _ROW * embedding.size
        if self.by_token is None and steps * I * width <= costs:
            return None
        gathered, backward = embedding.gather(tokens, kept)
        if self.by_token is None and (steps - len(gathered.table)) * I * width <= costs:
            return None
        return gathered, backward


def _unchanged(d_x: Array) -> Array:
    return d_x
