"""Derivatives of the layer to any order, in reverse and forward mode, batched: what torch.func, create_graph, ... need.

Two functions are closed under differentiation: the layer itself, and the adjoint of its recurrence,

    d_z_t = f'(h_t) (u_t + d_z_{t+1} w_hh)

whose own adjoint, as well as the tangent of the layer, is an adjoint again: of the opposite direction, with w_hh
transposed. The backends compute both; what remains is products of torch's, which know every derivative of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch._functorch.autograd_function import VmapInfo
from torch.autograd import Function, forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._backends.options import RnnOptions
from .._threads import override
from . import autograd, dispatch, stepwise

Options = tuple[RnnOptions, ...]
Results = TypeVar("Results")


below: ContextVar[bool] = ContextVar("fastrnn's operators are called below Layer and Adjoint", default=False)


class Layer(Function):
    """rnn_layer, with all derivatives. A result that is modified in place raises in backward."""

    @staticmethod
    def forward(x: Tensor, h_0: Tensor | None, options: Options, *weights: Tensor) -> tuple[Tensor, Tensor]:
        if torch._C._len_torch_dispatch_stack():  # something watches torch's operators
            how = options[0].nonlinearity, len(options) == 2, *in_tensors(options)
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
    if stepwise.needed(options, weights):
        return stepwise.layer(x, h_0, options, *weights)
    output, h_n = layer(x, h_0, options, *weights)
    saved = torch.is_grad_enabled() or forward_ad._current_level >= 0
    return output.clone() if saved else output, h_n


class Adjoint(Function):
    """d_z (as h) and d_h_0 (B, H), for the gradients u (as h) and u_n (B, H), or None, of one direction's h and h_n."""

    @staticmethod
    def forward(
        u: Tensor | None, u_n: Tensor | None, h: Tensor, w_hh: Tensor, options: RnnOptions
    ) -> tuple[Tensor, Tensor]:
        if torch._C._len_torch_dispatch_stack():
            how = options.nonlinearity, options.reverse, *in_tensors((options,))[:SHARED]
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
        with forward_ad._set_fwd_grad_enabled(True):
            u, u_n, h, w_hh, d_z = map(_primal, ctx.saved_tensors)
            return adjoints_tangents(u_dot, u_n_dot, h_dot, w_hh_dot, u, u_n, h, w_hh, d_z, ctx.options)

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
    run = autograd.function("rnn_backward", w_hh.dim() == 3)
    h_, w_hh_ = autograd.array(_settled(h)), autograd.array(_settled(w_hh))
    one = np.broadcast_to(np.eye(w_hh_.shape[-1], dtype=h_.dtype), w_hh_.shape)
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
    if w_hh.dim() == 3:
        return of_models(adjoints_adjoint, g_z, g_0, u, u_n, h, w_hh, d_z, o)
    a, _ = _adjoint(g_z, _first(g_0, o, w_hh.T), h, w_hh.T, flipped(o))
    d_u = a if u is not None else None
    d_u_n = last(a, g_0, o, u_n.shape[0]) if u_n is not None else None
    d_w_hh = _outer(d_z, entering(a, g_0, o))
    d_h = None
    if o.nonlinearity == "tanh":
        inner = entering(a @ w_hh.T, None if g_0 is None else g_0 @ w_hh.T, o)
        d_h = _valid(-2 * h * _upstream(u, u_n, w_hh, d_z, o) * _plus(g_z, inner), o)
    return d_u, d_u_n, d_h, d_w_hh


def adjoints_tangents(
    u_dot: Tensor | None,
    u_n_dot: Tensor | None,
    h_dot: Tensor | None,
    w_hh_dot: Tensor | None,
    u: Tensor | None,
    u_n: Tensor | None,
    h: Tensor,
    w_hh: Tensor,
    d_z: Tensor,
    o: RnnOptions,
) -> tuple[Tensor, Tensor]:
    """Of d_z and d_h_0, for those of u, u_n, h and w_hh (None: zero)."""
    if w_hh.dim() == 3:
        return of_models(adjoints_tangents, u_dot, u_n_dot, h_dot, w_hh_dot, u, u_n, h, w_hh, d_z, o)
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
    if weights[1].dim() == 3:
        return of_models(gradients, d_output, d_h_n, output, x, h_0, options, weights, needed)
    if stepwise.needed(options, weights):
        return stepwise.gradients(d_output, d_h_n, x, h_0, options, weights, needed)
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


def gradients_by_steps(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    options: Options,
    weights: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """gradients, by torch's own operators: d_output and d_h_n may be of a subclass that wraps other tensors."""
    if weights[1].dim() == 3:
        models = []
        for m in range(len(weights[1])):
            u, u_n, state = (None if v is None else v[m] for v in (d_output, d_h_n, h_0))
            models.append(gradients_by_steps(u, u_n, x[m], state, options, [w[m] for w in weights], needed))
        return tuple(None if d[0] is None else torch.stack(cast(Any, d)) for d in zip(*models, strict=True))
    made = stepwise.gradients(d_output, d_h_n, x, h_0, options, weights, needed)
    return made if torch.is_grad_enabled() else tuple(None if each is None else each.detach() for each in made)


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
    if weights[1].dim() == 3:
        return of_models(tangents, x_dot, h_0_dot, dots, output, x, h_0, options, weights)
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


def last(h: Tensor, otherwise: Tensor | None, o: RnnOptions, B: int | None = None) -> Tensor:
    """What leaves each row's own last step (B, H); otherwise, or 0, for rows without steps. Compiled code, which cannot
    read batch_sizes, knows B."""
    if o.batch_sizes is not None:
        sizes = torch.as_tensor(o.batch_sizes)
        if B is None:
            B = int(sizes[0]) if len(sizes) else 0
        if o.reverse:
            return h[:B]
        rows = torch.arange(B)
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
    """vmap's rule for Layer: into the batch; where weights are mapped, as models of one call, or one after the other
    where they are those of many models already."""
    x_at, h_0_at, _, *weights_at = in_dims
    if call is layer and not dispatch.transformed():
        call = _outermost
    if any(at is not None for at in weights_at):
        if weights[1].dim() - (weights_at[1] is not None) == 2 and len(weights) // len(options) % 2 == 0:  # no alpha
            stacked = [_stacked(w, at, V) for w, at in zip(weights, weights_at, strict=True)]
            return call(_stacked(x, x_at, V), _stacked(h_0, h_0_at, V), options, *stacked), (0, 0)
        made = []
        for v in range(V):
            own = [one(w, at, v) for w, at in zip(weights, weights_at, strict=True)]
            made.append(call(one(x, x_at, v), one(h_0, h_0_at, v), options, *own))
        return tuple(torch.stack(each) for each in zip(*made, strict=True)), (0, 0)
    results = call(_folded(x, x_at, V), _folded(h_0, h_0_at, V), tuple(_repeated(o, V) for o in options), *weights)
    return tuple(each.unflatten(-2, (-1, V)) for each in results), (-2, -2)


def _outermost(x: Tensor, h_0: Tensor | None, options: Options, *weights: Tensor) -> Any:
    """Layer where no transform is left around: with BPTT in one call."""
    run = autograd.apply if torch.is_grad_enabled() else autograd.rnn_layer
    return run(_settled(x), _settled(h_0), tuple(map(in_arrays, options)), *map(_settled, weights))


def mapped_adjoint(
    call: Any, V: int, in_dims: Any, u: Tensor | None, u_n: Tensor | None, h: Tensor, w_hh: Tensor, options: RnnOptions
) -> Any:
    """vmap's rule for Adjoint."""
    given = list(zip((u, u_n, h, w_hh), in_dims[:4], strict=True))
    if in_dims[3] is not None:
        if w_hh.dim() == 3:
            return call(*[_stacked(each, at, V) for each, at in given], options), (0, 0)
        made = [call(*[one(each, at, v) for each, at in given], options) for v in range(V)]
        return tuple(torch.stack(each) for each in zip(*made, strict=True)), (0, 0)
    results = call(*[_folded(each, at, V) for each, at in given[:3]], w_hh, _repeated(options, V))
    return tuple(each.unflatten(-2, (-1, V)) for each in results), (-2, -2)


def one(value: Tensor | None, at: int | None, v: int) -> Tensor | None:
    return value if value is None or at is None else value.select(at, v)


def _stacked(value: Tensor | None, at: int | None, V: int) -> Tensor | None:
    """Mapped at 0."""
    return value if value is None else value.expand(V, *value.shape) if at is None else value.movedim(at, 0)


def of_models(function: Callable[..., Results], *args: Any) -> Results:
    """function, of one model's tensors, for those of many, (M, ...) each: by vmap, whose rules make one call of it."""
    leaves, structure = tree_flatten(args)
    at = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    given: list[bool] = []

    def of_one(*tensors: Tensor) -> tuple[Tensor, ...]:
        own = dict(enumerate(leaves)) | dict(zip(at, tensors, strict=True))
        results: Any = function(*tree_unflatten(list(own.values()), structure))
        given[:] = [each is not None for each in results]
        return tuple(each for each in results if each is not None)

    made = iter(torch.vmap(of_one)(*[leaves[k] for k in at]))
    return cast(Results, tuple(next(made) if each else None for each in given))


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
    sizes = None if o.batch_sizes is None else torch.as_tensor(o.batch_sizes) * V
    axes = {"lengths": 0, "reset": -1, "recurrent_mask": -2, "keep_mask": -2}  # of the batch
    given = {name: at for name, at in axes.items() if getattr(o, name) is not None}
    rows = {name: torch.as_tensor(getattr(o, name)).repeat_interleave(V, at) for name, at in given.items()}
    return replace(o, batch_sizes=cast(Any, sizes), **cast(Any, rows))


# ---- Between torch and the backends. Here options hold tensors or arrays, as it comes


TENSORS = ("lengths", "batch_sizes", "reset", "recurrent_mask", "keep_mask")  # of the options, as operators take them
SHARED = 3  # the first are those of all directions; each direction has its own of the others, which are stacked


def in_tensors(options: Options) -> list[Any]:
    """TENSORS of all directions."""
    first = [getattr(options[0], name) for name in TENSORS]
    found = [None if value is None else torch.as_tensor(value) for value in first]
    for at, name in enumerate(TENSORS[SHARED:], SHARED):
        if first[at] is not None:
            found[at] = torch.stack([torch.as_tensor(getattr(o, name)) for o in options])
    return found


def of_tensors(nonlinearity: str, bidirectional: bool, *tensors: Any) -> Options:
    """What in_tensors took apart; the last of TENSORS may be missing."""
    given = {name: value for name, value in zip(TENSORS, tensors, strict=False) if value is not None}
    own = {name: given.pop(name) for name in TENSORS[SHARED:] if name in given}
    return tuple(
        RnnOptions(nonlinearity, reverse, **given, **{name: value[way] for name, value in own.items()})
        for way, reverse in enumerate((False, True)[: 1 + bidirectional])
    )


def in_arrays(o: RnnOptions) -> RnnOptions:
    if o.plain:
        return o
    given = {name: getattr(o, name) for name in TENSORS}
    return replace(o, **cast(Any, {name: np.asarray(value) for name, value in given.items() if value is not None}))


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
