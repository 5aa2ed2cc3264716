"""Derivatives of the layer to any order, in reverse and forward mode, batched: what torch.func, create_graph, ... need.

Two functions are closed under differentiation: the layer itself, and the adjoint of its recurrence,

    d_z_t = f'(h_t) (u_t + d_z_{t+1} w_hh)

whose own adjoint, as well as the tangent of the layer, is an adjoint again: of the opposite direction, with w_hh
transposed. The backends compute both; what remains is products of torch's, which know every derivative of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch._functorch.autograd_function import VmapInfo
from torch.autograd import Function, forward_ad

from .._backends.options import Implementation, RnnOptions
from .._threads import override
from . import autograd, dispatch

Options = tuple[RnnOptions, ...]


below: ContextVar[bool] = ContextVar("fastrnn's operators are called below Layer and Adjoint", default=False)


class Layer(Function):
    """rnn_layer, with all derivatives. A result that is modified in place raises in backward."""

    @staticmethod
    def forward(x: Tensor, h_0: Tensor | None, options: Options, *weights: Tensor) -> tuple[Tensor, Tensor]:
        if torch._C._len_torch_dispatch_stack():  # something watches torch's operators
            how = options[0].nonlinearity, len(options) == 2, *in_tensors(options[0])
            return _operator("rnn_forward", x, h_0, weights, *how)
        return autograd.rnn_layer(_settled(x), _settled(h_0), tuple(map(in_arrays, options)), *map(_settled, weights))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, h_0, ctx.options, *weights = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h_0, *weights, output[0])
        ctx.save_for_forward(x, h_0, *weights, output[0])

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None) -> tuple[Tensor | None, ...]:
        x, h_0, *weights, output = ctx.saved_tensors
        return gradients(d_output, d_h_n, output, x, h_0, ctx.options, weights, ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor | None, h_0_dot: Tensor | None, _: Any, *dots: Tensor | None) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):  # torch turns it off, and would lose an outer jvp's tangents
            x, h_0, *weights, output = map(_primal, ctx.saved_tensors)
            return tangents(x_dot, h_0_dot, dots, output, x, h_0, ctx.options, weights)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, h_0: Tensor | None, options: Options, *weights: Tensor) -> Any:
        return mapped_layer(layer, info.batch_size, in_dims, x, h_0, options, *weights)


def rnn_layer(x: Tensor, h_0: Tensor | None, options: Options, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """Layer. Who modifies output in place does not modify what is saved for backward."""
    output, h_n = layer(x, h_0, options, *weights)
    return output.clone(), h_n


class Adjoint(Function):
    """d_z (as h) and d_h_0 (B, H), for the gradients u (as h) and u_n (B, H), or None, of one direction's h and h_n."""

    @staticmethod
    def forward(
        u: Tensor | None, u_n: Tensor | None, h: Tensor, w_hh: Tensor, options: RnnOptions
    ) -> tuple[Tensor, Tensor]:
        if torch._C._len_torch_dispatch_stack():
            how = options.nonlinearity, options.reverse, *in_tensors(options)
            return _operator("rnn_adjoint", u, u_n, h, w_hh, *how)
        given = [each for each in (u, u_n, h, w_hh) if each is not None]
        if any(map(torch._C._functorch.is_legacy_batchedtensor, given)):
            batched: tuple[Tensor, Tensor] = _grads_batched(u, u_n, h, w_hh, options)
            return batched
        return adjoint(u, u_n, h, w_hh, in_arrays(options))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        u, u_n, h, w_hh, ctx.options = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(u, u_n, h, w_hh, output[0])
        ctx.save_for_forward(u, u_n, h, w_hh, output[0])

    @staticmethod
    def backward(ctx: Any, g_z: Tensor | None, g_0: Tensor | None) -> tuple[Tensor | None, ...]:
        u, u_n, h, w_hh, d_z = ctx.saved_tensors
        return *adjoints_adjoint(g_z, g_0, u, u_n, h, w_hh, d_z, ctx.options), None

    @staticmethod
    def jvp(
        ctx: Any,
        u_dot: Tensor | None,
        u_n_dot: Tensor | None,
        h_dot: Tensor | None,
        w_hh_dot: Tensor | None,
        _: None,
    ) -> tuple[Tensor, Tensor]:
        o = ctx.options
        with forward_ad._set_fwd_grad_enabled(True):
            u, u_n, h, w_hh, d_z = map(_primal, ctx.saved_tensors)
            carried = d_z @ w_hh_dot if w_hh_dot is not None else None  # what reaches the step before, beside A's own
            bent = None
            if h_dot is not None and o.nonlinearity == "tanh":
                bent = _valid(-2 * h * h_dot * _upstream(u, u_n, w_hh, d_z, o), o)
                carried = _plus(carried, bent @ w_hh)
            if carried is not None:
                u_dot = _plus(u_dot, entering(carried, None, flipped(o)))
            d_z_dot, d_h_0_dot = _adjoint(u_dot, u_n_dot, h, w_hh, o)
            if carried is not None:
                d_h_0_dot = d_h_0_dot + _first(last(carried, None, flipped(o)), o)
            return _plus(bent, d_z_dot), d_h_0_dot

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, u: Tensor | None, u_n: Tensor | None, h: Tensor, w_hh: Tensor, options: RnnOptions
    ) -> Any:
        return mapped_adjoint(_adjoint, info.batch_size, in_dims, u, u_n, h, w_hh, options)


layer = cast(Any, Layer.apply)
_adjoint = cast(Any, Adjoint.apply)


def _grads_batched(*args: Any) -> Any:
    """Adjoint inside the vmap, older than torch.func's, of torch.autograd.grad(is_grads_batched=True) and the like."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    mapped = [isinstance(each, Tensor) and torch._C._functorch.is_legacy_batchedtensor(each) for each in args]
    plain: list[Any] = [
        torch._remove_batch_dim(each, level, 1, 0) if at else each for each, at in zip(args, mapped, strict=True)
    ]
    V = plain[mapped.index(True)].shape[0]
    results, at = Adjoint.vmap(VmapInfo(V, "error"), tuple(0 if each else None for each in mapped), *plain)
    return tuple(
        torch._add_batch_dim(each.movedim(dim, 0).contiguous(), 0, level) for each, dim in zip(results, at, strict=True)
    )


def adjoint(
    u: Tensor | None, u_n: Tensor | None, h: Tensor, w_hh: Tensor, options: RnnOptions
) -> tuple[Tensor, Tensor]:
    """Adjoint's values. The backend's d_x is d_z where w_ih is 1; nothing that it returns reads x then."""
    run = cast(Implementation, dispatch.backend()).rnn_backward
    h_, w_hh_ = autograd.array(_settled(h)), autograd.array(_settled(w_hh))
    one = np.eye(len(w_hh_), dtype=h_.dtype)
    u_, u_n_ = (None if t is None else autograd.array(_settled(t)) for t in (u, u_n))
    token = override.set(torch.get_num_threads())
    try:
        d = run(u_, u_n_, h_, h_, None, one, w_hh_, options, ("x", "h_0"))
    finally:
        override.reset(token)
    return torch.from_numpy(d.d_x), torch.from_numpy(d.d_h_0)


def adjoints_adjoint(
    g_z: Tensor | None,
    g_0: Tensor | None,
    u: Tensor | None,
    u_n: Tensor | None,
    h: Tensor,
    w_hh: Tensor,
    d_z: Tensor,
    o: RnnOptions,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """The gradients of u, u_n, h and w_hh, for those of d_z and d_h_0."""
    a, _ = _adjoint(g_z, _first(g_0, o, w_hh.T), h, w_hh.T, flipped(o))
    d_u = a if u is not None else None
    d_u_n = last(a, g_0, o) if u_n is not None else None
    d_w_hh = _outer(d_z, entering(a, g_0, o))
    d_h = None
    if o.nonlinearity == "tanh":
        inner = entering(a @ w_hh.T, None if g_0 is None else g_0 @ w_hh.T, o)
        d_h = _valid(-2 * h * _upstream(u, u_n, w_hh, d_z, o) * _plus(g_z, inner), o)
    return d_u, d_u_n, d_h, d_w_hh


def gradients(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    output: Tensor,
    x: Tensor,
    h_0: Tensor | None,
    options: Options,
    weights: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """BPTT: the gradients of x, h_0, options (none) and weights, those that are needed."""
    if d_output is None and d_h_n is None:
        return (None,) * len(needed)
    each, H = len(weights) // len(options), weights[1].shape[0]
    d_x: Tensor | None = None
    d_h_0: list[Tensor] = []
    d_weights: list[Tensor | None] = []
    for way, o in enumerate(options):
        w_ih, w_hh = weights[way * each : way * each + 2]
        need = needed[3 + way * each : 3 + (way + 1) * each]
        h, state = output.narrow(-1, way * H, H), None if h_0 is None else h_0[way]
        u, u_n = None if d_output is None else d_output.narrow(-1, way * H, H), None if d_h_n is None else d_h_n[way]
        d_z, d_state = _adjoint(u, u_n, h, w_hh, o)
        if needed[0]:
            d_x = _plus(d_x, d_z @ w_ih)
        d_h_0.append(d_state)
        d_weights.append(_outer(d_z, _valid(x, o)) if need[0] else None)
        d_weights.append(_outer(d_z, entering(h, state, o)) if need[1] else None)
        d_weights += [d_z.reshape(-1, H).sum(0) if b else None for b in need[2:]]
    return (d_x, torch.stack(d_h_0) if needed[1] else None, None, *d_weights)


def tangents(
    x_dot: Tensor | None,
    h_0_dot: Tensor | None,
    dots: Sequence[Tensor | None],
    output: Tensor,
    x: Tensor,
    h_0: Tensor | None,
    options: Options,
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Of output and h_n, for those of x, h_0 and weights (None: zero)."""
    each, H = len(weights) // len(options), weights[1].shape[0]
    outputs, states = [], []
    for way, o in enumerate(options):
        first = way * each
        w_ih, w_hh = weights[first : first + 2]
        w_ih_dot, w_hh_dot, *b_dots = dots[first : first + each]
        h = output.narrow(-1, way * H, H)
        state, state_dot = (None if given is None else given[way] for given in (h_0, h_0_dot))
        z_dot: Tensor | None = None
        for b_dot in b_dots:
            z_dot = _plus(z_dot, None if b_dot is None else b_dot.expand(h.shape))
        if x_dot is not None:
            z_dot = _plus(z_dot, x_dot @ w_ih.T)
        if w_ih_dot is not None:
            z_dot = _plus(z_dot, x @ w_ih_dot.T)
        if w_hh_dot is not None:
            z_dot = _plus(z_dot, entering(h, state, o) @ w_hh_dot.T)
        h_dot, _ = _adjoint(z_dot, _first(state_dot, o, w_hh.T), h, w_hh.T, flipped(o))
        outputs.append(h_dot)
        states.append(last(h_dot, state_dot, o))
    return torch.cat(outputs, -1), torch.stack(states)


# ---- One direction's steps, in torch's terms


def flipped(o: RnnOptions) -> RnnOptions:
    """From the last step to the first where o goes from the first to the last: what o hands on from step to step, and
    what its reset stops, goes the opposite way."""
    reset: Any = o.reset
    if reset is not None:
        reset = torch.as_tensor(reset)
        none = torch.zeros_like(reset[:1])
        if o.reverse:
            reset = torch.cat([none, reset[:-1]])
        else:
            reset = torch.cat([reset[1:], none])
            if o.lengths is not None:  # a row's last step comes first: nothing is to be stopped there
                reset = reset & ~_steps(o, len(reset), 1)
    return replace(o, reverse=not o.reverse, reset=reset)


def entering(h: Tensor, first: Tensor | None, o: RnnOptions) -> Tensor:
    """What enters each step, where h leaves each step and first (B, H), or 0, enters each row's own first."""
    if o.batch_sizes is not None:
        start = h.new_zeros(1, h.shape[-1]) if first is None else first
        return torch.cat([h, start]).index_select(0, _packed_index(o, h.shape[0], first is not None))
    start = torch.zeros_like(h[:1]) if first is None else first.unsqueeze(0)
    before = torch.cat([h[1:], start] if o.reverse else [start, h[:-1]])
    if o.reverse and o.lengths is not None:
        before = torch.where(_steps(o, h.shape[0], 1).unsqueeze(-1), start, before)
    if o.reset is not None:
        before = before.masked_fill(torch.as_tensor(o.reset).unsqueeze(-1), 0)
    return before


def last(h: Tensor, otherwise: Tensor | None, o: RnnOptions) -> Tensor:
    """What leaves each row's own last step (B, H); otherwise, or 0, for rows without steps."""
    if o.batch_sizes is not None:
        sizes = torch.as_tensor(o.batch_sizes)
        rows = torch.arange(int(sizes[0]) if len(sizes) else 0)
        if o.reverse:
            return h[: len(rows)]
        ends = torch.cumsum(sizes, 0)
        own = (sizes > rows[:, None]).sum(1) - 1
        return h.index_select(0, (ends - sizes)[own] + rows)
    if o.lengths is None:
        return h[0] if o.reverse else h[-1]
    lengths = torch.as_tensor(o.lengths)
    final = h[0] if o.reverse else h[(lengths - 1).clamp(min=0), torch.arange(len(lengths))]
    return torch.where((lengths > 0).unsqueeze(-1), final, torch.zeros_like(final) if otherwise is None else otherwise)


def _first(value: Tensor | None, o: RnnOptions, matrix: Tensor | None = None) -> Tensor | None:
    """value (B, H) @ matrix as it enters each row's first step: 0 where that is a reset."""
    if value is None:
        return None
    value = value if matrix is None else value @ matrix
    if o.reset is None:
        return value
    reset = torch.as_tensor(o.reset)
    at = reset[-1 if o.reverse else 0]
    if o.reverse and o.lengths is not None:
        lengths = torch.as_tensor(o.lengths)
        at = reset[(lengths - 1).clamp(min=0), torch.arange(len(lengths))]
    return value.masked_fill(at.unsqueeze(-1), 0)


def _packed_index(o: RnnOptions, N: int, every: bool) -> Tensor:
    """Where the row that enters each packed row is: n for row n, N + b, or N unless every, for what enters first."""
    sizes, rows = torch.as_tensor(o.batch_sizes), torch.arange(N)
    ends = torch.cumsum(sizes, 0)
    steps = torch.searchsorted(ends, rows, right=True)
    b = rows - (ends - sizes)[steps]
    first = N + b if every else torch.full_like(b, N)
    if not o.reverse:
        return torch.where(steps == 0, first, rows - sizes[steps - 1])
    after = torch.cat([sizes[1:], torch.zeros_like(sizes[:1])])[steps]
    return torch.where(b < after, rows + sizes[steps], first)


def _steps(o: RnnOptions, T: int, final: int) -> Tensor:
    """(T, B): true at the last step of each row where final is 1, at each of its steps where it is 0."""
    lengths, t = torch.as_tensor(o.lengths), torch.arange(T)[:, None]
    return t == lengths - 1 if final else t < lengths


def _valid(value: Tensor, o: RnnOptions) -> Tensor:
    """0 beyond a row's length: there may be anything, a NaN too."""
    if o.lengths is None:
        return value
    return torch.where(_steps(o, value.shape[0], 0).unsqueeze(-1), value, torch.zeros_like(value))


def _upstream(u: Tensor | None, u_n: Tensor | None, w_hh: Tensor, d_z: Tensor, o: RnnOptions) -> Tensor:
    """d_h: what d_z is before f' multiplies it."""
    return cast(Tensor, _plus(u, entering(d_z @ w_hh, u_n, flipped(o))))


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.reshape(-1, rows.shape[-1]).T @ columns.reshape(-1, columns.shape[-1])


def _plus(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


# ---- vmap: mapped tensors and options


def mapped_layer(
    call: Any, V: int, in_dims: Any, x: Tensor, h_0: Tensor | None, options: Options, *weights: Tensor
) -> Any:
    """vmap's rule for Layer: into the batch; where weights are mapped, one after the other."""
    x_at, h_0_at, _, *weights_at = in_dims
    if any(at is not None for at in weights_at):
        made = []
        for v in range(V):
            own = [one(w, at, v) for w, at in zip(weights, weights_at, strict=True)]
            made.append(call(one(x, x_at, v), one(h_0, h_0_at, v), options, *own))
        return tuple(torch.stack(each) for each in zip(*made, strict=True)), (0, 0)
    results = call(_folded(x, x_at, V), _folded(h_0, h_0_at, V), tuple(_repeated(o, V) for o in options), *weights)
    return tuple(each.unflatten(-2, (-1, V)) for each in results), (-2, -2)


def mapped_adjoint(
    call: Any, V: int, in_dims: Any, u: Tensor | None, u_n: Tensor | None, h: Tensor, w_hh: Tensor, options: RnnOptions
) -> Any:
    """vmap's rule for Adjoint."""
    given = list(zip((u, u_n, h, w_hh), in_dims[:4], strict=True))
    if in_dims[3] is not None:
        made = [call(*[one(each, at, v) for each, at in given], options) for v in range(V)]
        return tuple(torch.stack(each) for each in zip(*made, strict=True)), (0, 0)
    results = call(*[_folded(each, at, V) for each, at in given[:3]], w_hh, _repeated(options, V))
    return tuple(each.unflatten(-2, (-1, V)) for each in results), (-2, -2)


def one(value: Tensor | None, at: int | None, v: int) -> Tensor | None:
    return value if value is None or at is None else value.select(at, v)


def _folded(value: Tensor | None, at: int | None, V: int) -> Tensor | None:
    """(..., B, K) as (..., B * V, K)."""
    if value is None:
        return None
    if at is None:
        return value.unsqueeze(-2).expand(*value.shape[:-1], V, value.shape[-1]).flatten(-3, -2)
    return value.movedim(at, -2).flatten(-3, -2)


def _repeated(o: RnnOptions, V: int) -> RnnOptions:
    """For rows that _folded made."""
    if o.plain:
        return o
    lengths, sizes, reset = in_tensors(o)
    return replace(
        o,
        lengths=lengths if lengths is None else lengths.repeat_interleave(V),
        batch_sizes=sizes if sizes is None else sizes * V,
        reset=reset if reset is None else reset.repeat_interleave(V, 1),
    )


# ---- Between torch and the backends. Here options hold tensors or arrays, as it comes


def in_tensors(o: RnnOptions) -> list[Any]:
    return [None if value is None else torch.as_tensor(value) for value in (o.lengths, o.batch_sizes, o.reset)]


def in_arrays(o: RnnOptions) -> RnnOptions:
    if o.plain:
        return o
    lengths, sizes, reset = (
        None if value is None else np.asarray(value) for value in (o.lengths, o.batch_sizes, o.reset)
    )
    return replace(o, lengths=lengths, batch_sizes=sizes, reset=reset)


def _operator(name: str, *args: Any) -> tuple[Tensor, Tensor]:
    token = below.set(True)
    try:
        return cast("tuple[Tensor, Tensor]", getattr(torch.ops.fastrnn, name)(*args))
    finally:
        below.reset(token)


def _primal(value: Any) -> Any:
    return None if value is None else cast(Any, forward_ad.unpack_dual)(value).primal


def _settled(value: Any) -> Any:
    """A zero without memory, as torch's derivatives pass them on, in memory."""
    return value.clone() if value is not None and value._is_zerotensor() else value
