"""Layers on top of one another: what passes between them, and each one's masks, drawn with torch's generator.

The backends get masks as arrays and hold no random numbers, so that one seed means one thing on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._backends.options import RnnOptions
from . import autograd, leak

# x, h_0 (D, B, H) or None, weights of the layer, recurrent_mask (D, B, H), keep_mask (D, T, B, H) -> output, h_n
Compute: TypeAlias = Callable[
    [Tensor, Tensor | None, Sequence[Tensor], Tensor | None, Tensor | None], tuple[Tensor, Tensor]
]


class Rates(NamedTuple):
    """The probabilities of fastrnn.torch.RNN's masks."""

    recurrent_dropout: float = 0.0
    input_dropout: float = 0.0
    zoneout: float = 0.0

    @property
    def named(self) -> dict[str, float]:
        """Those that are not 0."""
        return {name: rate for name, rate in self._asdict().items() if rate}

    def acting(self, training: bool) -> Rates | None:
        """Those that act; None: none does."""
        rates = self if training else Rates(zoneout=self.zoneout)
        return rates if any(rates) else None


class Plan(NamedTuple):
    """What run needs beside tensors. Everything is time-major, as torch.nn.RNN has it between layers, so that a seed
    draws the same dropout."""

    num_layers: int
    directions: int
    dropout: float = 0.0  # 0 unless training
    rates: Rates | None = None  # those that act
    training: bool = False
    batch: Any = None  # B, and the batch_sizes of packed rows: read for the masks alone
    batch_sizes: Tensor | None = None


def run(
    compute: Compute, plan: Plan, x: Tensor, hx: Tensor | None, weights: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """The output of each layer, h_n (L * D, B, H).

    A layer draws in this order: dropout of its input, input_dropout's mask, recurrent_dropout's, zoneout's.
    """
    L, D, rates = plan.num_layers, plan.directions, plan.rates
    each, outputs, states = len(weights) // L, [], []
    for layer in range(L):
        if plan.dropout and layer:
            x = torch.dropout(x, plan.dropout, True)
        own = weights[layer * each : (layer + 1) * each]
        h_0 = None if hx is None else hx[layer * D : (layer + 1) * D]
        if rates is None:
            x, h_n = compute(x, h_0, own, None, None)
        elif plan.training:
            x, h_n = _masked(compute, plan, rates, x, h_0, own)
        else:
            # the expected state of units that are zoned out is that of leaky ones
            stays = weights[1].new_full((), 1 - rates.zoneout)
            x, h_n = compute(x, h_0, leak.beside(own, D, stays), None, None)
        outputs.append(x)
        states.append(h_n)
    return outputs, states[0] if L == 1 else torch.cat(states)


def _masked(
    compute: Compute, plan: Plan, rates: Rates, x: Tensor, h_0: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    D, H = plan.directions, weights[1].shape[0]
    if rates.input_dropout:
        mask = torch.dropout(x.new_ones(plan.batch, x.shape[-1]), rates.input_dropout, True)
        x = x * (mask if plan.batch_sizes is None else mask.index_select(0, packed_rows(plan.batch_sizes, x.shape[0])))
    recurrent = keep = None
    if rates.recurrent_dropout:
        recurrent = torch.dropout(x.new_ones(D, plan.batch, H), rates.recurrent_dropout, True)
    if rates.zoneout:
        keep = torch.rand(D, *x.shape[:-1], H, dtype=torch.float32, device=x.device) < rates.zoneout
    return compute(x, h_0, weights, recurrent, keep)


def packed_rows(batch_sizes: Tensor, N: int) -> Tensor:
    """(N): the row of the batch that each packed row belongs to."""
    starts = torch.cumsum(batch_sizes, 0) - batch_sizes
    return torch.arange(N) - torch.repeat_interleave(starts, batch_sizes, output_size=N)


def masked(
    options: tuple[RnnOptions, ...], recurrent: Tensor | None, keep: Tensor | None, arrays: bool
) -> tuple[RnnOptions, ...]:
    """Each direction's options with its masks, as arrays or as tensors."""
    if recurrent is None and keep is None:
        return options
    masks: Any = None if recurrent is None else autograd.array(recurrent) if arrays else recurrent
    keeps: Any = None if keep is None else keep.numpy() if arrays else keep
    return tuple(
        replace(
            o,
            recurrent_mask=None if masks is None else masks[way],
            keep_mask=None if keeps is None else keeps[way],
        )
        for way, o in enumerate(options)
    )


def refuse_beside_stock(layer: Any, lengths: Any, reset: Any, all_layers: bool, every: Any, why: str) -> None:
    """NotImplementedError for what torch.nn.RNN has not."""
    given = {"lengths": lengths, "reset": reset, "return_all_layers": all_layers or None, "checkpoint_every": every}
    found = {name: ("None", type(value).__name__) for name, value in given.items() if value is not None}
    rates = None if layer._rates is None else layer._rates.acting(layer.training)
    if (alpha := getattr(layer, "alpha", None)) is not None:
        found["alpha"] = "None", type(alpha).__name__
    found |= {name: ("0", rate) for name, rate in ({} if rates is None else rates.named).items()}
    for name, (expected, got) in found.items():
        raise NotImplementedError(f"{name}: expected {expected} where torch.nn.RNN computes ({why}), got {got}")
