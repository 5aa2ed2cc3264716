"""The layer step by step, of torch's operators: every derivative of options under which the recurrence's adjoint is no
adjoint of the same kind, so that derivatives.Layer does not serve.

A graph of some ten operators a step: made for second derivatives, forward mode and torch.func's transforms only. Values
and first derivatives come from the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .._backends.options import RnnOptions
from . import dispatch


def needed(options: Sequence[RnnOptions], weights: Sequence[Tensor]) -> bool:
    """Whether the options are such; with alpha among the weights they always are, and where vmap maps over lengths or
    reset, which are tensors then."""
    o = options[0]
    masked, rows = not (o.recurrent_mask is o.keep_mask is None), cast(Any, (o.lengths, o.reset))
    mapped = any(isinstance(each, Tensor) and dispatch.mapped(each) for each in rows)
    return masked or mapped or len(weights) // len(options) % 2 == 1


def layer(x: Tensor, h_0: Tensor | None, options: Sequence[RnnOptions], *weights: Tensor) -> tuple[Tensor, Tensor]:
    """autograd.rnn_layer, by the formulas of RnnOptions. Each direction's weights may end in alpha (H), leaky units:
    h_t = (1 - alpha) h_{t-1} + alpha tanh(z_t), or relu(z_t)."""
    each = len(weights) // len(options)
    found = []
    with torch.autocast("cpu", enabled=False):  # which acts on what comes in already
        for way, o in enumerate(options):
            first = None if h_0 is None else h_0[way]
            found.append(_direction(x, first, o, *weights[way * each : (way + 1) * each]))
    outputs, states = zip(*found, strict=True)
    return torch.cat(outputs, -1), torch.stack(states)


def _direction(
    x: Tensor, h: Tensor | None, o: RnnOptions, w_ih: Tensor, w_hh: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor]:
    biases, alpha = others[: len(others) // 2 * 2], others[-1] if len(others) % 2 else None
    reset, mask, keep, lengths, sizes = (
        None if value is None else torch.as_tensor(value)
        for value in (o.reset, o.recurrent_mask, o.keep_mask, o.lengths, o.batch_sizes)
    )
    exists = None
    if lengths is not None:
        exists = (torch.arange(x.shape[0], device=x.device)[:, None] < lengths).unsqueeze(-1)
        x = torch.where(exists, x, 0)  # beyond there may be a NaN
    z = x @ w_ih.T + sum(biases)
    counts: Any = None if sizes is None else sizes.tolist()

    def steps(value: Any) -> Any:
        return value.unbind(0) if counts is None else value.split(counts)

    zs, keeps = steps(z), None if keep is None else steps(keep)
    if h is None:
        h = z.new_zeros(z.shape[1] if counts is None else max(counts, default=0), w_hh.shape[0])
    activate = torch.relu if o.nonlinearity == "relu" else torch.tanh
    outputs: list[Any] = [None] * len(zs)
    for t in reversed(range(len(zs))) if o.reverse else range(len(zs)):
        n = len(zs[t])
        before = h[:n]
        p = before if reset is None else torch.where(reset[t].unsqueeze(-1), 0, before)
        new = activate(zs[t] + (p if mask is None else p * mask[:n]) @ w_hh.T)
        if alpha is not None:
            new = (1 - alpha) * p + alpha * new
        if keeps is not None:
            new = torch.where(keeps[t], p, new)
        outputs[t] = new if exists is None else torch.where(exists[t], new, 0)
        new = new if exists is None else torch.where(exists[t], new, before)
        h = new if n == len(h) else torch.cat([new, h[n:]])
    return (torch.stack if counts is None else torch.cat)(outputs), h


def gradients(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    options: Sequence[RnnOptions],
    weights: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """derivatives.gradients."""
    with torch.enable_grad():
        # aliases: of values that may be made of one another, each gets its own gradient
        own: list[Any] = [
            None if v is None else v.view_as(v) if v.requires_grad else v.detach() for v in (x, h_0, *weights)
        ]
        wanted = [v for v, need in zip(own, (*needed[:2], *needed[3:]), strict=True) if need]
        results = layer(own[0], own[1], options, *own[2:])
        upstream = [d for d in (d_output, d_h_n) if d is not None]
        those = [r for r, d in zip(results, (d_output, d_h_n), strict=True) if d is not None]
        made = iter(torch.autograd.grad(those, wanted, upstream, create_graph=True, materialize_grads=True))
    return tuple(next(made) if need else None for need in needed)
