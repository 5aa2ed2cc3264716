"""A loss over sequences whose output is never whole in memory; and truncated BPTT over a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from .. import _validate
from .._backends.options import Array
from .._recompute import Recompute
from .._threads import override
from . import autograd, dispatch, operators, recompute

if TYPE_CHECKING:
    from .layer import RNN


def reduce(
    layer: RNN,
    function: Callable[[Tensor, int, int], Tensor] | None,
    input: Tensor,
    hx: Tensor | None,
    checkpoint_every: Any,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor | None, Tensor]:
    """RNN.reduce."""
    if torch.compiler.is_compiling():
        raise NotImplementedError("RNN.reduce: expected eager mode, got compiled code, which cannot call its function")
    if layer.bidirectional:
        raise ValueError("RNN.reduce: expected a layer of one direction, got bidirectional=True")
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected torch.Tensor, got {type(input).__name__}")
    nonlinearity = dispatch.NONLINEARITIES.get(layer.mode)
    given = None if nonlinearity is None else operators.prepared(layer, input, hx, lengths, reset)
    if given is None or nonlinearity is None:
        torch.nn.RNN.forward(cast(Any, layer), input, hx)  # says what is wrong
        raise NotImplementedError(
            "RNN.reduce: expected arguments for fastrnn's kernels, got what torch.nn.RNN computes"
        )
    recompute.check(None)
    x, hx, weights, lengths, reset, plan, result = given
    lengths, reset = (each if each is None else each.clone() for each in (lengths, reset))  # backward reads them again
    how = recompute.how_of(plan, checkpoint_every, nonlinearity, x, weights, layer.num_layers, lengths, reset)
    weights = recompute.leaky(plan, weights, layer.num_layers)

    def seen(output: Tensor, begin: int, end: int) -> Tensor:
        """What function makes of output (n, B, H), as the caller has it: of a copy, for it may edit it."""
        output = output.to(result if result in dispatch.HALVES else output.dtype, copy=True)
        output = output.squeeze(1) if input.dim() == 2 else output.transpose(0, 1) if layer.batch_first else output
        value = function(output, begin, end)  # type: ignore[misc]
        if not isinstance(value, Tensor):
            raise TypeError(f"function: expected it to return torch.Tensor, got {type(value).__name__}")
        return value

    state = _State(seen if function is not None else None, how)
    with torch.no_grad():
        total, h_n = state.forward(x.detach(), None if hx is None else hx.detach(), [w.detach() for w in weights])
    shown = h_n.new_empty(0) if total is None else total
    total_, h_n = cast(Any, _Reduced.apply)(shown, h_n, state, x, hx, len(weights), *weights, *state.leaves)
    h_n = h_n.to(result) if result in dispatch.HALVES else h_n
    return None if total is None else total_, h_n.squeeze(1) if input.dim() == 2 else h_n


class _State:
    """What one call of reduce holds for its backward: the states at the chunks' ends, and what function reads."""

    def __init__(self, function: Callable[[Tensor, int, int], Tensor] | None, how: recompute.How) -> None:
        self.function, self.how = function, how
        self.leaves: list[Tensor] = []  # that require grad, and that function reads
        self.random: dict[int, Tensor] = {}  # torch's generator in front of chunks where function draws
        self.states: list[Any] = []
        self.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def value(self, output: Array, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """The output, a leaf, and function's value for it."""
        enabled, dtype = self.autocast
        shown = torch.from_numpy(output).requires_grad_()
        with torch.enable_grad(), torch.autocast("cpu", dtype, enabled):
            return shown, self.function(shown, begin, end)  # type: ignore[misc]

    def forward(self, x: Tensor, h_0: Tensor | None, weights: list[Tensor]) -> tuple[Tensor | None, Tensor]:
        (walk,) = recompute.walks(x, h_0, weights, self.how)
        total: Tensor | None = None

        def visit(chunk: int, output: Array) -> None:
            nonlocal total
            if self.function is None:
                return
            before = torch.get_rng_state()
            shown, value = self.value(walk.callers(output), *_bounds(walk, chunk))
            if not torch.equal(before, torch.get_rng_state()):
                self.random[chunk] = before
            if total is None:
                self.leaves = [leaf for leaf in _leaves(value) if leaf is not shown]
            total = value.detach().clone() if total is None else total.add_(value.detach())

        token = override.set(torch.get_num_threads())
        try:
            h_n = walk.forward(visit)
            if not walk.chunks:
                visit(0, _no_steps(walk))
        finally:
            override.reset(token)
        self.states = walk.states
        return total, torch.from_numpy(np.stack(h_n))

    def backward(
        self,
        d_total: Tensor | None,
        d_h_n: Tensor | None,
        x: Tensor,
        h_0: Tensor | None,
        weights: list[Tensor],
        needed: list[bool],
        leaves: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        d_leaves: list[Any] = [None] * len(leaves)
        (walk,) = recompute.walks(x, h_0, weights, self.how)
        walk.states = self.states

        def upstream(way: int, chunk: int, output: Array) -> Array | None:
            if self.function is None or d_total is None:
                return None
            after = torch.get_rng_state()
            torch.set_rng_state(self.random.get(chunk, after))
            shown, value = self.value(walk.callers(output), *_bounds(walk, chunk))
            torch.set_rng_state(after)
            if not value.requires_grad:
                return None
            for leaf in _leaves(value):
                if leaf is not shown and not any(leaf is known for known in leaves):
                    raise RuntimeError(
                        "function: expected the same tensors that require grad in each chunk as in the first, got "
                        f"another, of shape {tuple(leaf.shape)}"
                    )
            made = torch.autograd.grad(value, [shown, *leaves], d_total, retain_graph=True, allow_unused=True)
            for at, d in enumerate(made[1:]):
                if d is not None:
                    d_leaves[at] = d.clone() if d_leaves[at] is None else d_leaves[at].add_(d)
            return None if made[0] is None else autograd.array(made[0].contiguous())[:, walk.rows]

        found = recompute.backward(upstream, d_h_n, [walk], x, h_0, weights, needed, self.how)
        if not walk.chunks:
            upstream(0, 0, _no_steps(walk))
        return found, d_leaves


def _bounds(walk: Recompute, chunk: int) -> tuple[int, int]:
    return walk.chunks[chunk] if walk.chunks else (0, 0)


def _no_steps(walk: Recompute) -> Array:
    """The output (0, B, H) that function sees where all lengths are 0: there are no chunks then."""
    return np.zeros((0, walk.x.shape[1], len(walk.weights[0][1])), walk.x.dtype)


class _Reduced(Function):
    """Puts the derivative of a finished reduce behind its results."""

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, h_n: Tensor, state: _State, x: Tensor, hx: Tensor | None, count: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.state, ctx.count = state, count
        ctx.save_for_backward(x, hx, *tensors)
        ctx.set_materialize_grads(False)
        return total.view_as(total), h_n.view_as(h_n)

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, d_h_n: Tensor | None) -> tuple[Tensor | None, ...]:
        recompute.refuse_create_graph("RNN.reduce")
        x, hx, *tensors = ctx.saved_tensors
        weights, leaves = tensors[: ctx.count], tensors[ctx.count :]
        *_, need_x, need_hx, _ = ctx.needs_input_grad[:6]
        needed = [need_x, need_hx, *ctx.needs_input_grad[6 : 6 + ctx.count]]
        found, d_leaves = ctx.state.backward(d_total, d_h_n, x, hx, weights, needed, leaves)
        made = iter(found)
        d_x, d_hx, *d_weights = [next(made) if need else None for need in needed]
        return None, None, None, d_x, d_hx, None, *d_weights, *d_leaves


def _leaves(value: Tensor) -> list[Tensor]:
    """The leaves of autograd's graph that value is made of, each once."""
    if not value.requires_grad:
        return []
    if value.grad_fn is None:
        return [value]
    found: dict[int, Tensor] = {}
    waiting, known = [value.grad_fn], {value.grad_fn}
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        for following, _ in node.next_functions:
            if following is not None and following not in known:
                known.add(following)
                waiting.append(following)
    return list(found.values())


def truncated_bptt(
    layer: Any, stream: Tensor | Iterable[Any], hx: Any = None, *, steps: int | None = None
) -> Iterator[tuple[Any, Any]]:
    """Truncated back-propagation through time: walks a long sequence in pieces, and carries the state on.

        for output, h_n in fastrnn.torch.truncated_bptt(rnn, x, steps=100):
            optimizer.zero_grad()
            loss(output).backward()
            optimizer.step()

    Williams & Peng, "An efficient gradient-based algorithm for on-line training of recurrent network trajectories"
    (1990), with pieces that do not overlap: gradients end at each piece's start, where the state enters detached.
    Memory is that of one piece. The weights may change between pieces; the next one sees them.

    Arguments:
        layer: called as output, h_n = layer(piece, hx): fastrnn.torch.RNN, torch.nn.RNN, GRU or LSTM, ...
        stream: a tensor, cut along its axis of time (dimension 1 if layer.batch_first and it has 3, else 0), or an
            iterable of pieces, each of the same batch.
        hx: the state before the first piece; None for zeros. It is not detached: it may be learned.
        steps: of one piece of a tensor; the last one may be shorter.

    Yields output and h_n of each piece, as the layer gives them.

    Raises TypeError where steps is missing for a tensor, or given beside an iterable; ValueError where it is below 1.
    """
    if not isinstance(stream, Tensor):
        if steps is not None:
            raise TypeError("steps: expected None where stream is an iterable of pieces, got a value")
        pieces: Iterable[Any] = stream
    else:
        length = _validate.integer("steps", steps, at_least=1)
        pieces = cast(Any, stream).split(length, 1 if getattr(layer, "batch_first", False) and stream.dim() == 3 else 0)
    return _walk(layer, pieces, hx)


def _walk(layer: Any, pieces: Iterable[Any], hx: Any) -> Iterator[tuple[Any, Any]]:
    for piece in pieces:
        output, h_n = layer(piece, hx)
        yield output, h_n
        hx = tuple(h.detach() for h in h_n) if isinstance(h_n, tuple) else h_n.detach()
