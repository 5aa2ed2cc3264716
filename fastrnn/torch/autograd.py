"""One layer of the RNN as a function of tensors that autograd differentiates once.

The backends get views of the tensors' memory: nothing is copied on the way in or out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import Function

from .._backends.options import Array, Implementation, RnnOptions, empty
from .._threads import override
from . import dispatch

_NOTHING = torch.empty(0)


def rnn_layer(
    x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """output (T, B, D * H), or (N, D * H) for packed rows x, and h_n (D, B, H), in memory of their own.

    x is (T, B, I) or (N, I), h_0 (D, B, H) or None for zeros; there are D options, one for each direction; weights
    are w_ih, w_hh and, unless there are no biases, b_ih, b_hh of each direction. Everything is of one dtype, on the
    CPU, and fits; autograd sees nothing.
    """
    D, each = len(options), len(weights) // len(options)
    if D == 1 and (found := _layer_of_tensors(x, h_0, options[0], *weights)) is not None:
        return found
    run = cast(Implementation, dispatch.backend()).rnn_forward
    x_, h_0_, arrays = _arrays(x, h_0, *weights)
    token = override.set(torch.get_num_threads())
    try:
        if D == 1:
            b_ih, b_hh = arrays[2:] or (None, None)
            output, state = run(x_, None if h_0_ is None else h_0_[0], arrays[0], arrays[1], b_ih, b_hh, options[0])
            h_n = state.reshape(1, *state.shape)  # of torch's strides, not [None]'s 0
        else:
            H, states = len(arrays[1]), []
            output = empty((*x_.shape[:-1], D * H), x_.dtype)
            for way in range(D):
                w_ih, w_hh, *b = arrays[way * each : (way + 1) * each]
                b_ih, b_hh = b or (None, None)
                half = output[..., way * H : (way + 1) * H]
                h = None if h_0_ is None else h_0_[way]
                states.append(run(x_, h, w_ih, w_hh, b_ih, b_hh, options[way], half)[1])
            h_n = np.stack(states)
    finally:
        override.reset(token)
    return torch.from_numpy(output), torch.from_numpy(h_n)


def _sizes(x: Tensor, options: RnnOptions) -> tuple[int, ...] | None:
    """T, B, I where the rows are plain or one packed step, and there is no other option."""
    if options.plain:
        return (*x.shape,)
    sizes = options.batch_sizes
    if sizes is None or len(sizes) != 1 or not (options.lengths is options.reset is None):
        return None
    return (1, *x.shape)


def _layer_of_tensors(
    x: Tensor, h_0: Tensor | None, options: RnnOptions, w_ih: Tensor, w_hh: Tensor, *biases: Tensor
) -> tuple[Tensor, Tensor] | None:
    """rnn_layer for one direction, without NumPy's views, which take longer than a short call; None: not possible."""
    run = getattr(dispatch.backend(), "forward_tensors", None)
    sizes = None if run is None else _sizes(x, options)
    if run is None or sizes is None:
        return None
    b_ih, b_hh = biases or (None, None)
    relu, wide = options.nonlinearity == "relu", x.dtype is torch.float64
    H, threads = w_hh.shape[0], torch.get_num_threads()
    arrays = run(x, h_0, w_ih, w_hh, b_ih, b_hh, *sizes, H, wide, relu, options.reverse, threads)
    if arrays is None:
        return None
    output = torch.from_numpy(arrays[0] if options.batch_sizes is None else arrays[0][0])
    return output, torch.from_numpy(arrays[1])


class RnnLayer(Function):
    """rnn_layer with BPTT as its derivative.

    Kept for backward: the arguments and the output. Where the output was modified in place meanwhile, it is computed
    again, to the same bits.
    """

    @staticmethod
    def forward(
        x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        return rnn_layer(x, h_0, options, *weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, h_0, ctx.options, *weights = inputs
        ctx.set_materialize_grads(False)
        # The tape is an alias of the output that does not count modifications, or autograd would refuse them; the
        # witness counts them without holding the memory, so that hooks and checkpoints of saved tensors may free it.
        ctx.save_for_backward(x, h_0, *weights, output[0].data)
        ctx.witness = output[0].detach()
        ctx.witness.data = _NOTHING
        ctx.version = ctx.witness._version

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            gradients: tuple[Tensor | None, ...] = _backward_beside_the_graph(ctx, *upstream)
            return gradients
        return _backward(ctx, *upstream)


# Function.apply, without its detour over inspect.signature: no torch.func transform is active where this is called.
apply = super(Function, RnnLayer).apply


def _backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None) -> tuple[Tensor | None, ...]:
    upstream = (d_output, d_h_n)
    if not (torch.is_grad_enabled() or dispatch.transformed()):
        x, h_0, *weights, output = ctx.saved_tensors
        if ctx.witness._version != ctx.version:
            output, _ = rnn_layer(x, h_0, ctx.options, *weights)
        try:
            return rnn_layer_backward(*upstream, output, x, h_0, ctx.options, weights, ctx.needs_input_grad)
        except RuntimeError:  # torch.autograd.grad(is_grads_batched=True) gives tensors without memory
            if not any(torch._C._functorch.is_legacy_batchedtensor(d) for d in upstream if d is not None):
                raise
    from . import derivatives  # which is made of this module

    x, h_0, *weights, _ = ctx.saved_tensors  # the tape has no history, and may have been modified
    output, _ = derivatives.layer(x, h_0, ctx.options, *weights)
    return derivatives.gradients(*upstream, output, x, h_0, ctx.options, weights, ctx.needs_input_grad)


_backward_beside_the_graph = _disable_dynamo(_backward)


def rnn_layer_backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    output: Tensor,
    x: Tensor,
    h_0: Tensor | None,
    options: tuple[RnnOptions, ...],
    weights: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of x, h_0, options (none) and weights: those that are needed."""
    need_x, need_h_0, _, *need_weights = needed
    if d_output is None and d_h_n is None:
        return (None,) * len(needed)
    D, each = len(options), len(weights) // len(options)
    if D == 1:
        given = d_output, d_h_n, output, x, h_0, weights[0], weights[1]
        found = _gradients_of_tensors(needed, options[0], *given)
        if found is not None:
            return found
    run = cast(Implementation, dispatch.backend()).rnn_backward
    x_, h_0_, matrices = _arrays(x, h_0, *[w for w in weights if w.dim() == 2])
    output_, d_h_n_, upstream = _arrays(output, d_h_n, *(() if d_output is None else (d_output,)))
    d_output_ = upstream[0] if upstream else None
    H = output_.shape[-1] // D
    d_x: Array | None = None
    d_h_0: list[Array] = []
    d_weights: list[Array | None] = []
    token = override.set(torch.get_num_threads())
    try:
        for way, option in enumerate(options):
            first = way * each
            w_ih, w_hh = matrices[2 * way : 2 * way + 2]
            needs = need_weights[first : first + each]
            wanted = {"x": need_x, "h_0": need_h_0, "w_ih": needs[0], "w_hh": needs[1], "b": any(needs[2:])}
            half = np.s_[..., way * H : (way + 1) * H]
            d = run(
                None if d_output_ is None else d_output_[half],
                None if d_h_n_ is None else d_h_n_[way],
                output_[half],
                x_,
                None if h_0_ is None else h_0_[way],
                w_ih,
                w_hh,
                option,
                tuple(name for name, need in wanted.items() if need),
            )
            d_x = d.d_x if d_x is None else np.add(d_x, cast(Array, d.d_x), out=d_x)
            if d.d_h_0 is not None:
                d_h_0.append(d.d_h_0)
            d_weights += [d.d_w_ih, d.d_w_hh]
            if each == 4:  # two arrays: whoever gets one may write to it
                d_b_hh = d.d_b.copy() if d.d_b is not None and all(needs[2:]) else d.d_b
                d_weights += [d.d_b if needs[2] else None, d_b_hh if needs[3] else None]
    finally:
        override.reset(token)
    d_states = None if not d_h_0 else d_h_0[0].reshape(1, *d_h_0[0].shape) if D == 1 else np.stack(d_h_0)
    return (_tensor(d_x), _tensor(d_states), None, *map(_tensor, d_weights))


def _gradients_of_tensors(
    needs: Sequence[bool],
    options: RnnOptions,
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    output: Tensor,
    x: Tensor,
    h_0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
) -> tuple[Tensor | None, ...] | None:
    """What _layer_of_tensors is to rnn_layer."""
    run = getattr(dispatch.backend(), "backward_tensors", None)
    sizes = None if run is None else _sizes(x, options)
    if run is None or sizes is None:
        return None
    need_x, need_h_0, _, need_w_ih, need_w_hh, *need_b = needs
    tensors = d_output, d_h_n, output, x, h_0, w_ih, w_hh
    wanted = need_x, need_h_0, need_w_ih, need_w_hh, any(need_b)
    relu, wide = options.nonlinearity == "relu", x.dtype is torch.float64
    arrays = run(*tensors, *sizes, w_hh.shape[0], wide, *wanted, relu, options.reverse, torch.get_num_threads())
    if arrays is None:
        return None
    d_x, d_h_0, d_w_ih, d_w_hh, d_b = arrays
    if d_x is not None and options.batch_sizes is not None:
        d_x = d_x[0]
    d_biases: list[Array | None] = []
    if need_b:  # two arrays: whoever gets one may write to it
        d_b_hh = d_b.copy() if all(need_b) else d_b
        d_biases = [d_b if need_b[0] else None, d_b_hh if need_b[1] else None]
    return (_tensor(d_x), _tensor(d_h_0), None, *map(_tensor, (d_w_ih, d_w_hh, *d_biases)))


def _arrays(x: Tensor, h_0: Tensor | None, *others: Tensor) -> tuple[Array, Array | None, list[Array]]:
    """The memory of tensors, which require no grad or are used where autograd is off."""
    arrays = [array(tensor) for tensor in ((x, *others) if h_0 is None else (x, *others, h_0))]
    return arrays[0], None if h_0 is None else arrays.pop(), arrays[1:]


class _Memory:
    """A tensor's memory as NumPy asks for it. Tensor.numpy() would forbid torch to resize it, which FSDP does."""

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        typestr, size = ("<f8", 8) if tensor.dtype is torch.float64 else ("<f4", 4)
        self.tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "typestr": typestr,
            "shape": tuple(tensor.shape),
            "strides": tuple([size * stride for stride in tensor.stride()]),
            "data": (tensor.data_ptr(), False),
        }


def array(tensor: Tensor) -> Array:
    """A tensor's memory; a copy where it is negated lazily or misaligned."""
    view = np.asarray(_Memory(tensor.resolve_neg()))
    return view if view.flags.aligned else view.copy()


def _tensor(array: Array | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
