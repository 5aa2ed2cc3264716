"""Layers whose backward computes their states again, of chunks of time: operators for checkpoint_every, and reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from .. import _validate
from .._backends.options import Array, RnnOptions
from .._recompute import Masks, Recompute, chunk_steps
from .._threads import override
from . import autograd, dispatch, leak, stack
from .stack import Rates

_HOW = (
    "int num_layers, SymInt steps, str nonlinearity, bool bidirectional, Tensor? lengths, Tensor? reset, "
    "Tensor[] input_masks, Tensor? recurrent_masks, float dropout, float zoneout, Tensor? seed"
)
torch.library.define(
    "fastrnn::recomputed", f"(Tensor x, Tensor? h_0, Tensor[] weights, {_HOW}) -> (Tensor, Tensor, Tensor)"
)
torch.library.define(
    "fastrnn::recomputed_backward",
    "(Tensor? d_output, Tensor? d_h_n, Tensor states, Tensor x, Tensor? h_0, Tensor[] weights, bool[] needed, "
    f"{_HOW}) -> Tensor[]",
)


class How(NamedTuple):
    """What the operators take beside x, h_0 and weights."""

    num_layers: int
    steps: int
    nonlinearity: str
    bidirectional: bool
    lengths: Tensor | None = None
    reset: Tensor | None = None
    input_masks: Sequence[Tensor] = ()  # (B, I) of each layer
    recurrent_masks: Tensor | None = None  # (L, D, B, H)
    dropout: float = 0.0
    zoneout: float = 0.0
    seed: Tensor | None = None  # (1)


def _check(x: Tensor, h_0: Tensor | None, weights: Sequence[Tensor], how: How) -> None:
    """What the operators are given, but for lengths and reset: as a layer gives it, or TypeError or ValueError."""
    from . import operators  # which is made of this module

    D, L = 1 + how.bidirectional, _validate.integer("num_layers", int(how.num_layers), at_least=1)
    _validate.integer("steps", int(how.steps), at_least=1)
    if len(weights) % (L * D):
        raise ValueError(f"weights: expected as many for each of {L} layers, got {len(weights)}")
    each = len(weights) // L
    operators._check_weights(x, list(weights[:each]), how.nonlinearity, D, None)
    if weights[1].dim() != 2:
        raise ValueError(f"weights[1]: expected 2 dimensions, got shape {tuple(weights[1].shape)}")
    (T, B, I), H = x.shape, len(weights[1])
    if T == 0:
        raise ValueError(f"x: expected at least one time step, got shape {tuple(x.shape)}")
    shapes = (H, D * H), *[tuple(w.shape) for w in weights[1:each]]
    for at in range(each, len(weights)):
        shape = shapes[0] if at % each % (each // D) == 0 else shapes[at % each]
        operators._check(f"weights[{at}]", weights[at], shape, x)
    operators._check("h_0", h_0, (L * D, B, H), x)
    if len(how.input_masks) not in (0, L):
        raise ValueError(f"input_masks: expected none or {L}, got {len(how.input_masks)}")
    for at, mask in enumerate(how.input_masks):
        operators._check(f"input_masks[{at}]", mask, (B, D * H if at else I), x)
    operators._check("recurrent_masks", how.recurrent_masks, (L, D, B, H), x)
    _validate.probability("dropout", how.dropout)
    _validate.probability("zoneout", how.zoneout)
    if how.seed is not None and (how.seed.dtype is not torch.int64 or how.seed.numel() != 1):
        raise ValueError(f"seed: expected one torch.int64, got {how.seed.dtype} of shape {tuple(how.seed.shape)}")
    if how.seed is None and (how.zoneout or (how.dropout and L > 1)):
        raise ValueError("seed: expected one torch.int64 beside dropout and zoneout, got None")


def walks(x: Tensor, h_0: Tensor | None, weights: Sequence[Tensor], how: How) -> list[Recompute]:
    """Of each direction."""
    D, L = 1 + how.bidirectional, how.num_layers
    each = len(weights) // (L * D)
    functions = dispatch.backend()
    if isinstance(functions, str):
        raise RuntimeError("fastrnn's operators: expected a fast backend, got none")
    x_, h_0_, arrays = autograd._arrays(x, h_0, *weights)
    T, B = x_.shape[:2]
    lengths = None if how.lengths is None else _validate.sequence_lengths(how.lengths, T, B)
    reset = None if how.reset is None else np.array(_validate.exact("reset", how.reset, _validate.BOOL, (T, B), "TB"))
    inputs = [autograd.array(mask) for mask in how.input_masks]
    recurrent = None if how.recurrent_masks is None else autograd.array(how.recurrent_masks)
    made = []
    for way in range(D):
        own = []
        for first in range(way * each, len(arrays), D * each):
            matrices, alpha = leak.split(arrays[first : first + each])
            own.append([*[*matrices, None, None][:4], alpha])
        seed = () if how.seed is None else (int(how.seed), way)
        masks = Masks(inputs, None if recurrent is None else recurrent[:, way], how.dropout, how.zoneout, seed)
        options = RnnOptions(how.nonlinearity, way == 1, lengths, reset=reset)
        first_states = [None] * L if h_0_ is None else list(h_0_[way::D])
        made.append(Recompute(functions, int(how.steps), x_, first_states, own, options, masks))
    return made


def recomputed(x: Tensor, h_0: Tensor | None, weights: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """output (T, B, D * H), h_n (L * D, B, H), and the states (chunks, L * D, B, H) in front of each chunk."""
    how = How(*rest)
    _check(x, h_0, weights, how)
    D, H = 1 + how.bidirectional, weights[1].shape[0]
    output, h_n, states = (autograd.array(each) for each in _fake_recomputed(x, h_0, weights, *rest))
    if how.lengths is not None:
        output[...] = 0
    token = override.set(torch.get_num_threads())
    try:
        for way, walk in enumerate(walks(x, h_0, weights, how)):
            half = output[..., way * H : (way + 1) * H]

            def store(chunk: int, found: Array, half: Array = half, walk: Recompute = walk) -> None:
                half[walk.at(chunk)] = found

            h_n[way::D] = walk.forward(store)
            for chunk, before in enumerate(walk.states):
                for layer, h in enumerate(before):
                    states[chunk, layer * D + way] = 0 if h is None else h
    finally:
        override.reset(token)
    return torch.from_numpy(output), torch.from_numpy(h_n), torch.from_numpy(states)


def _fake_recomputed(x: Tensor, h_0: Tensor | None, weights: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    how, (T, B), H = How(*rest), x.shape[:2], weights[1].shape[0]
    D = 1 + how.bidirectional
    rows = how.num_layers * D
    return x.new_empty(T, B, D * H), x.new_empty(rows, B, H), x.new_empty(-(-T // how.steps), rows, B, H)


def recomputed_backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    states: Tensor,
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    needed: list[bool],
    *rest: Any,
) -> list[Tensor]:
    """Of x, h_0 and weights, those that are needed."""
    from . import operators

    how = How(*rest)
    _check(x, h_0, weights, how)
    (T, B, _), D, H = x.shape, 1 + how.bidirectional, len(weights[1])
    operators._check("d_output", d_output, (T, B, D * H), x)
    operators._check("d_h_n", d_h_n, (how.num_layers * D, B, H), x)
    operators._check("states", states, (-(-T // how.steps), how.num_layers * D, B, H), x)
    if len(needed) != 2 + len(weights):
        raise ValueError(f"needed: expected a bool for x, h_0 and each weight, got {needed}")
    d_output_, states_ = None if d_output is None else autograd.array(d_output), autograd.array(states)
    found = walks(x, h_0, weights, how)
    for way, walk in enumerate(found):
        walk.states = [list(before[way::D]) for before in states_[: len(walk.chunks)]]
        if h_0 is None and walk.states:
            walk.states[0] = walk.first

    def upstream(way: int, chunk: int, _: Array) -> Array | None:
        return None if d_output_ is None else d_output_[..., way * H : (way + 1) * H][found[way].at(chunk)]

    return backward(upstream, d_h_n, found, x, h_0, weights, needed, how)


def backward(
    upstream: Callable[[int, int, Array], Array | None],
    d_h_n: Tensor | None,
    walks: Sequence[Recompute],
    x: Tensor,
    h_0: Tensor | None,
    weights: Sequence[Tensor],
    needed: Sequence[bool],
    how: How,
) -> list[Tensor]:
    """upstream(direction, chunk, states there) gives the gradient of the output; walks have their states."""
    D, L = 1 + how.bidirectional, how.num_layers
    each = len(weights) // (L * D)
    d_x: Array | None = None
    H, d_weights = len(weights[1]), [cast(Any, None)] * len(weights)
    d_h_0 = np.zeros((L * D, x.shape[1], H), walks[0].x.dtype)
    d_h_n_ = None if d_h_n is None else autograd.array(d_h_n)
    token = override.set(torch.get_num_threads())
    try:
        for way, walk in enumerate(walks):
            own = [needed[2 + (k * D + way) * each : 2 + (k * D + way + 1) * each] for k in range(L)]
            names = ("w_ih", "w_hh", *("b", "b") * (each > 3), *("alpha",) * (each % 2))
            needs = {name for layer in own for name, need in zip(names, layer, strict=True) if need}
            part = np.zeros(tuple(x.shape), d_h_0.dtype) if needed[0] else None
            d_last = [None] * L if d_h_n_ is None else list(d_h_n_[way::D])

            def given(chunk: int, output: Array, way: int = way) -> Array | None:
                return upstream(way, chunk, output)

            d_h_0[way::D], sums = walk.backward(given, d_last, needs, part)
            d_x = part if d_x is None or part is None else np.add(d_x, part, out=d_x)
            for k, total in enumerate(sums):
                first = (k * D + way) * each
                found = [total.d_w_ih, total.d_w_hh]
                if each > 3:  # two arrays: whoever gets one may write to it
                    found += [total.d_b, None if total.d_b is None else total.d_b.copy()]
                d_weights[first : first + each] = [*found, total.d_alpha][:each]
    finally:
        override.reset(token)
    d_x = d_x if d_x is None else walks[0].unmasked(d_x)
    made = [made for made, need in zip((d_x, d_h_0, *d_weights), needed, strict=True) if need]
    return [torch.from_numpy(each) for each in made]


def _fake_backward(
    d_output: Any, d_h_n: Any, states: Any, x: Any, h_0: Any, weights: Any, needed: Any, *_: Any
) -> list[Tensor]:
    values = (x, h_0, *weights)
    return [v.new_empty(v.shape) for v, need in zip(values, needed, strict=True) if need and v is not None]


def _keep(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, h_0, weights, *rest = inputs
    how = How(*rest)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.how = how._replace(lengths=None, reset=None, input_masks=(), recurrent_masks=None, seed=None)
    ctx.layers, ctx.masks = len(weights), len(how.input_masks)
    tensors = how.lengths, how.reset, how.recurrent_masks, how.seed
    ctx.save_for_backward(x, h_0, output[2], *weights, *how.input_masks, *tensors)


def refuse_create_graph(name: str) -> None:
    """In a backward that has no derivative: torch would go on, with zeros."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name}: expected first derivatives alone, got create_graph=True")


def _derivative(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    refuse_create_graph("checkpoint_every")
    x, h_0, states, *others = ctx.saved_tensors
    weights, others = others[: ctx.layers], others[ctx.layers :]
    masks, (lengths, reset, recurrent, seed) = others[: ctx.masks], others[ctx.masks :]
    need_x, need_h_0, need_weights = ctx.needs_input_grad[:3]
    needed = [need_x, need_h_0, *need_weights]
    how = ctx.how._replace(lengths=lengths, reset=reset, input_masks=list(masks), recurrent_masks=recurrent, seed=seed)
    made: list[Tensor | None] = [None] * len(needed)
    if d_output is not None or d_h_n is not None:
        run = torch.ops.fastrnn.recomputed_backward
        those = iter(run(d_output, d_h_n, states, x, h_0, weights, needed, *how))
        made = [next(those) if need else None for need in needed]
    nothing = [[None] * ctx.masks if name == "input_masks" else None for name in How._fields]
    return made[0], made[1], made[2:], *nothing


torch.library.impl("fastrnn::recomputed", "cpu", recomputed)
torch.library.register_fake("fastrnn::recomputed", _fake_recomputed)
torch.library.impl("fastrnn::recomputed_backward", "cpu", recomputed_backward)
torch.library.register_fake("fastrnn::recomputed_backward", _fake_backward)
torch.library.register_autograd("fastrnn::recomputed", _derivative, setup_context=_keep)


def check(packed: Any, return_all_layers: bool = False) -> None:
    """What cannot be beside checkpoint_every."""
    if packed is not None:
        raise ValueError("checkpoint_every: expected None beside a PackedSequence, got a value; lengths does the same")
    if return_all_layers:
        raise ValueError("return_all_layers: expected False beside checkpoint_every, got True")
    if not torch.compiler.is_compiling() and dispatch.transformed() and not dispatch.watched():
        raise NotImplementedError("checkpoint_every: expected None in forward mode and under torch.func's transforms")


def run(
    plan: stack.Plan,
    checkpoint_every: Any,
    nonlinearity: str,
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """output, h_n, as stack.run and with its masks; but dropout and zoneout have streams of their own.

    Layers of one direction are computed again together. Of two directions each needs the whole output of the layer
    below, so it is done layer by layer, and what passes between layers is kept.
    """
    D, together = plan.directions, plan.num_layers if plan.directions == 1 else 1
    each, states = len(weights) // plan.num_layers, []
    for layer in range(0, plan.num_layers, together):
        if layer and plan.dropout:
            x = torch.dropout(x, plan.dropout, True)
        own = weights[layer * each : (layer + together) * each]
        h_0 = None if hx is None else hx[layer * D : (layer + together) * D]
        how = how_of(plan, checkpoint_every, nonlinearity, x, own, together, lengths, reset)
        x, h_n, _ = torch.ops.fastrnn.recomputed(x, h_0, leaky(plan, own, together), *how)
        states.append(h_n)
    return x, states[0] if len(states) == 1 else torch.cat(states)


def leaky(plan: stack.Plan, weights: Sequence[Tensor], L: int) -> list[Tensor]:
    """With alpha where zoneout does not draw."""
    if plan.rates is None or plan.training:
        return list(weights)
    return leak.beside(weights, L * plan.directions, weights[1].new_full((), 1 - plan.rates.zoneout))


def how_of(
    plan: stack.Plan,
    checkpoint_every: Any,
    nonlinearity: str,
    x: Tensor,
    weights: Sequence[Tensor],
    L: int,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> How:
    """Draws the masks, in the order of stack.run."""
    D, B, H = plan.directions, x.shape[1], weights[1].shape[0]
    rates = plan.rates if plan.training and plan.rates is not None else Rates()
    inputs, recurrent = [], []
    for layer in range(L):
        if rates.input_dropout:
            I = D * H if layer else x.shape[-1]
            inputs.append(torch.dropout(x.new_ones(B, I), rates.input_dropout, True))
        if rates.recurrent_dropout:
            recurrent.append(torch.dropout(x.new_ones(D, B, H), rates.recurrent_dropout, True))
    dropout = plan.dropout if L > 1 else 0.0
    seed = torch.randint(2**62, (1,)) if rates.zoneout or dropout else None
    steps = chunk_steps(checkpoint_every, x.shape[0], B)
    masks = torch.stack(recurrent) if recurrent else None
    return How(L, steps, nonlinearity, D == 2, lengths, reset, inputs, masks, dropout, rates.zoneout, seed)
