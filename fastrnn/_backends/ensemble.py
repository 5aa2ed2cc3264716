"""M models of one shape, each argument of rnn_forward and rnn_backward stacked (M, ...): in one call where the backend
has one, else one after the other, to the same bits. The options are those of all models, and alpha is not
among them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from .options import NEEDS, Array, RnnGradients, RnnOptions, empty


def rnn_forward(
    functions: Any,
    x: Array,
    h_0: Array | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    options: RnnOptions,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """output (M, T, B, H), or (M, N, H) for packed rows, in out where given, and h_n (M, B, H)."""
    stacked = x, h_0, w_ih, w_hh, b_ih, b_hh
    if (at_once := _at_once(functions, "rnn_forward_ensemble", options)) is not None:
        made: tuple[Array, Array] = at_once(*stacked, options, out)
        return made
    output = empty((*x.shape[:-1], w_hh.shape[1]), x.dtype) if out is None else out
    states = [functions.rnn_forward(*_of(m, *stacked), options, output[m])[1] for m in range(len(w_hh))]
    return output, np.stack(states)


def rnn_backward(
    functions: Any,
    d_output: Array | None,
    d_h_n: Array | None,
    output: Array,
    x: Array,
    h_0: Array | None,
    w_ih: Array,
    w_hh: Array,
    options: RnnOptions,
    needs: Collection[str] = NEEDS,
    *_: Any,
) -> RnnGradients:
    """The gradients, (M, ...) as the arrays they belong to. Last come the biases, which are read with alpha alone."""
    stacked = d_output, d_h_n, output, x, h_0, w_ih, w_hh
    if (at_once := _at_once(functions, "rnn_backward_ensemble", options)) is not None:
        made: RnnGradients = at_once(*stacked, options, needs)
        return made
    each = [functions.rnn_backward(*_of(m, *stacked), options, needs) for m in range(len(w_hh))]
    return RnnGradients(*[None if d[0] is None else np.stack(d) for d in zip(*each, strict=True)])


def _at_once(functions: Any, name: str, options: RnnOptions) -> Any:
    return getattr(functions, name, None) if replace(options, lengths=None, reset=None).plain else None


def _of(m: int, *stacked: Array | None) -> Any:
    return [None if array is None else array[m] for array in stacked]
