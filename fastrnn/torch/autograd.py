"""One layer of the RNN as a function of tensors that autograd differentiates once.

The backends get views of the tensors' memory: nothing is copied on the way in or out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import Function
from torch.nn import Parameter

from .._backends import ensemble
from .._backends.options import Array, Implementation, RnnOptions
from .._parameters import Weights
from .._threads import override
from . import dispatch, gpu, leak, node

_NOTHING = torch.empty(0, device="cpu")


def rnn_layer(
    x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """output (T, B, D * H), or (N, D * H) for packed rows x, and h_n (D, B, H), in memory of their own.

    x is (T, B, I) or (N, I), h_0 (D, B, H) or None for zeros; there are D options, one for each direction; weights
    are w_ih, w_hh and, unless there are no biases, b_ih, b_hh of each direction. Everything is of one dtype, on the
    CPU, and fits; autograd sees nothing. With leaky units each direction's weights end in alpha (H).

    Of M models at once all tensors, the results too, are (M, ...): weights[1] (M, H, H). They have no alpha.
    """
    if not x.is_cpu:
        return gpu.rnn_layer(x, h_0, options, *weights)
    D, each = len(options), len(weights) // len(options)
    stacked = weights[1].dim() == 3
    if D == 1 and not stacked and (found := _layer_of_tensors(x, h_0, options[0], *weights)) is not None:
        return found
    run = function("rnn_forward", stacked)
    x_, h_0_, arrays = _arrays(x, h_0, *weights)
    token = override.set(torch.get_num_threads())
    try:
        if D == 1:
            option, own = _direction(options[0], arrays)
            output, state = run(x_, None if h_0_ is None else h_0_[..., 0, :, :], *own, options=option)
            h_n = _one_way(state)
        else:
            H, states = arrays[1].shape[-1], []
            output = cast(Implementation, dispatch.backend()).empty((*x_.shape[:-1], D * H), x_.dtype)
            for way in range(D):
                option, own = _direction(options[way], arrays[way * each : (way + 1) * each])
                half = output[..., way * H : (way + 1) * H]
                h = None if h_0_ is None else h_0_[..., way, :, :]
                states.append(run(x_, h, *own, options=option, out=half)[1])
            h_n = np.stack(states, -3)
    finally:
        override.reset(token)
    return torch.from_numpy(output), torch.from_numpy(h_n)


def function(name: str, stacked: bool) -> Any:
    """The backend's function of this name, of one model or of many."""
    functions = cast(Implementation, dispatch.backend())
    return partial(getattr(ensemble, name), functions) if stacked else getattr(functions, name)


def _one_way(states: Array) -> Array:
    """(..., B, H) as (..., 1, B, H), with torch's strides, not the 0 of [None]."""
    return states.reshape(*states.shape[:-2], 1, *states.shape[-2:])


def _direction(options: RnnOptions, weights: list[Array]) -> tuple[RnnOptions, Weights]:
    """The options with alpha, and w_ih, w_hh, b_ih, b_hh."""
    own, alpha = leak.split(weights)
    w_ih, w_hh, b_ih, b_hh = own if len(own) == 4 else (*own, None, None)
    return options if alpha is None else replace(options, alpha=alpha), (w_ih, w_hh, b_ih, b_hh)


def _sizes(x: Tensor, options: RnnOptions) -> tuple[int, ...] | None:
    """T, B, I where the rows are plain or one packed step, and there is no other option."""
    if options.plain:
        return (*x.shape,)
    sizes = options.batch_sizes
    if (
        sizes is None
        or len(sizes) != 1
        or not (options.lengths is options.reset is options.recurrent_mask is options.keep_mask is None)
    ):
        return None
    return (1, *x.shape)


def _layer_of_tensors(
    x: Tensor, h_0: Tensor | None, options: RnnOptions, w_ih: Tensor, w_hh: Tensor, *biases: Tensor
) -> tuple[Tensor, Tensor] | None:
    """rnn_layer for one direction, without NumPy's views, which take longer than a short call; None: not possible."""
    run = getattr(dispatch.backend(), "forward_tensors", None)
    sizes = None if run is None or len(biases) % 2 else _sizes(x, options)
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


def keep(ctx: Any, x: Tensor, h_0: Tensor | None, weights: Sequence[Tensor], output: Tensor, D: int = 1) -> None:
    """For _backward. The tape is an alias of the output that does not count modifications, or autograd would refuse
    them; the witness counts them without holding the memory, so that hooks and checkpoints of saved tensors may free
    it. Of matrices it is also kept where their memory is, which Module.half() and the like exchange unseen; not of
    temporary ones, which would stay as long as the node."""
    ctx.save_for_backward(x, h_0, *weights, output.data)
    ctx.elements = x.numel()
    matrices = weights[:2] if D == 1 else (*weights[:2], *weights[len(weights) // 2 :][:2])
    ctx.places = [(w, w.untyped_storage()) if type(w) is Parameter else None for w in matrices]
    ctx.witness = witness = output.detach()
    witness.data = _NOTHING
    ctx.version = witness._version


def check_kept(ctx: Any, x: Tensor, weights: Sequence[Tensor]) -> None:
    """RuntimeError where x or a matrix is not what forward saw. A hook's copy of a parameter is its own business."""
    places = getattr(ctx, "places", None)
    if places is None:  # the compiled node, which looks itself
        return
    each = len(weights) // len(places) * 2
    for at, place in enumerate(places):
        w = weights[at % 2 + at // 2 * each]
        if place is not None and w is place[0] and w.untyped_storage() is not place[1]:
            raise RuntimeError(
                f"{_name(at % 2, each)}: expected the memory that it had in forward, got another: call backward before "
                "Module.half(), Module.to() and what else sets a parameter's data"
            )
    if x.numel() != ctx.elements:
        raise _unlike("x", f"{ctx.elements} elements", x)


def _check_saved(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    output: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    options: tuple[RnnOptions, ...],
    weights: Sequence[Tensor],
) -> None:
    """RuntimeError where the saved tensors are not of one dtype and device, or do not fit each other: hooks of saved
    tensors may return anything."""
    D, each, M, sizes = len(options), len(weights) // len(options), weights[1].shape[:-2], options[0].batch_sizes
    if weights[1].dim() < 2:
        raise _unlike("w_hh", "2 or 3 dimensions", weights[1])
    if x.dim() != len(M) + (3 if sizes is None else 2):
        raise _unlike("x", f"{len(M) + (3 if sizes is None else 2)} dimensions", x)
    H, rows = weights[1].shape[-1], x.shape[:-1]
    B = rows[-1] if sizes is None else int(sizes[0]) if len(sizes) else 0
    states, shapes = (*M, D, B, H), ((*M, H, x.shape[-1]), (*M, H, H), (*M, H), (*M, H), (*M, H))
    given: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("x", x, (*M, *rows[len(M) :], x.shape[-1])),
        ("h_0", h_0, states),
        ("output", output, (*rows, D * H)),
        ("d_output", d_output, (*rows, D * H)),
        ("d_h_n", d_h_n, states),
    ]
    given += [
        (_name(at, each), w, shapes[at % each if each > 3 or at % each < 2 else 4]) for at, w in enumerate(weights)
    ]
    first = d_h_n if d_output is None else d_output  # of which autograd knows the dtype
    like = x if first is None else first
    for name, value, shape in given:
        if value is None:
            continue
        if value.dtype is not like.dtype or value.device != like.device or value.layout is not torch.strided:
            raise _unlike(name, f"{like.dtype} on {like.device}", value)
        if tuple(value.shape) != shape:
            raise _unlike(name, f"shape {shape}", value)


def _name(at: int, each: int) -> str:
    """Of weight number at, each of them a direction."""
    names = ("w_ih", "w_hh", "b_ih", "b_hh")[: each // 2 * 2]
    return (*names, "alpha")[at % each]


def _unlike(name: str, want: str, got: Tensor) -> RuntimeError:
    return RuntimeError(
        f"{name}: expected {want} in backward, as in forward, got {got.dtype} on {got.device} of shape "
        f"{tuple(got.shape)}: from a hook of saved tensors, or set since?"
    )


def _foreign(d: Tensor | None) -> bool:
    """Whether it is of a class that wraps other tensors or none: torch's operators take it, memory it has not."""
    return d is not None and type(d) not in dispatch.PLAIN and type(d).__torch_dispatch__ is not _NO_DISPATCH


_NO_DISPATCH = Tensor.__torch_dispatch__


class RnnLayer(Function):
    """rnn_layer with BPTT as its derivative.

    Kept for backward: the arguments and the output. Where the output was modified in place meanwhile, it is computed
    again, to the same bits.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        made = rnn_layer(x, h_0, options, *weights)
        ctx.options = options
        ctx.set_materialize_grads(False)
        keep(ctx, x, h_0, weights, made[0], len(options))
        return made

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            gradients: tuple[Tensor | None, ...] = _backward_beside_the_graph(ctx, *upstream)
            return gradients
        return _backward(ctx, *upstream)


# Function.apply, without its detour over inspect.signature: no torch.func transform is active where this is called.
apply = super(Function, RnnLayer).apply


def recorded(x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor) -> Any:
    """apply, by the compiled node where there is one that takes the tensors."""
    made = _by_node(x, h_0, options, *weights)
    return cast(Any, apply)(x, h_0, options, *weights) if made is None else made


def unrecorded(x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor) -> Any:
    """rnn_layer likewise, where there is nothing to record."""
    made = _by_node(x, h_0, options, *weights)
    return rnn_layer(x, h_0, options, *weights) if made is None else made


def _by_node(x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor) -> Any:
    option = options[0]
    if not option.plain or option.reverse or len(options) > 1 or (compiled := node.of(dispatch.backend())) is None:
        return None
    return compiled.layer(option.nonlinearity == "relu", x, h_0, *weights)


def _backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None) -> tuple[Tensor | None, ...]:
    upstream = (d_output, d_h_n)
    foreign = _foreign(d_output) or _foreign(d_h_n)
    if not (foreign or torch.is_grad_enabled() or dispatch.transformed()):
        x, h_0, *weights, output = ctx.saved_tensors
        check_kept(ctx, x, weights)
        if ctx.witness._version != ctx.version:
            _check_saved(*upstream, None, x, h_0, ctx.options, weights)
            output, _ = rnn_layer(x, h_0, ctx.options, *weights)
        try:
            return rnn_layer_backward(*upstream, output, x, h_0, ctx.options, weights, ctx.needs_input_grad)
        except RuntimeError:  # torch.autograd.grad(is_grads_batched=True) gives tensors without memory
            if not any(torch._C._functorch.is_legacy_batchedtensor(d) for d in upstream if d is not None):
                raise
    from . import derivatives, stepwise  # which are made of this module

    x, h_0, *weights, _ = ctx.saved_tensors  # the tape has no history, and may have been modified
    check_kept(ctx, x, weights)
    if foreign:
        return derivatives.gradients_by_steps(*upstream, x, h_0, ctx.options, weights, ctx.needs_input_grad)
    _check_saved(*upstream, None, x, h_0, ctx.options, weights)
    if not x.is_cpu:
        raise NotImplementedError(
            "create_graph: expected False for tensors on a GPU, of which there are only the first "
            "derivatives, one by one"
        )
    if stepwise.needed(ctx.options, weights):
        output = None  # of which it makes no use
    else:
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
    """The gradients of x, h_0, options (none) and weights: those that are needed. Of M models as rnn_layer."""
    need_x, need_h_0, _, *need_weights = needed
    if d_output is None and d_h_n is None:
        return (None,) * len(needed)
    D, each = len(options), len(weights) // len(options)
    stacked = weights[1].dim() == 3
    if D == 1 and each % 2 == 0 and not stacked and x.is_cpu:
        found = gradients_of_tensors(needed, options[0], d_output, d_h_n, output, x, h_0, *weights[:2])
        if found is not None:
            return found
    _check_saved(d_output, d_h_n, output, x, h_0, options, weights)
    if not x.is_cpu:
        return gpu.rnn_layer_backward(d_output, d_h_n, output, x, h_0, options, weights, needed)
    run = function("rnn_backward", stacked)
    x_, h_0_, arrays = _arrays(x, h_0, *weights)
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
            own_option, (w_ih, w_hh, b_ih, b_hh) = _direction(option, arrays[first : first + each])
            needs, need_alpha = leak.split(need_weights[first : first + each])
            wanted = {"x": need_x, "h_0": need_h_0, "w_ih": needs[0], "w_hh": needs[1], "b": any(needs[2:])}
            wanted["alpha"] = need_alpha
            half = np.s_[..., way * H : (way + 1) * H]
            d = run(
                None if d_output_ is None else d_output_[half],
                None if d_h_n_ is None else d_h_n_[..., way, :, :],
                output_[half],
                x_,
                None if h_0_ is None else h_0_[..., way, :, :],
                w_ih,
                w_hh,
                own_option,
                tuple(name for name, need in wanted.items() if need),
                b_ih,
                b_hh,
            )
            d_x = d.d_x if d_x is None else np.add(d_x, cast(Array, d.d_x), out=d_x)
            if d.d_h_0 is not None:
                d_h_0.append(d.d_h_0)
            d_weights += [d.d_w_ih, d.d_w_hh]
            if len(needs) == 4:  # two arrays: whoever gets one may write to it
                d_b_hh = d.d_b.copy() if d.d_b is not None and all(needs[2:]) else d.d_b
                d_weights += [d.d_b if needs[2] else None, d_b_hh if needs[3] else None]
            if need_alpha is not None:
                d_weights.append(d.d_alpha)
    finally:
        override.reset(token)
    d_states = None if not d_h_0 else _one_way(d_h_0[0]) if D == 1 else np.stack(d_h_0, -3)
    return (_tensor(d_x), _tensor(d_states), None, *map(_tensor, d_weights))


def gradients_of_tensors(
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
    """What _layer_of_tensors is to rnn_layer. The states of one packed step may lack the axis of directions, which
    their gradient then lacks, too. The call looks at each dtype and shape."""
    run = getattr(dispatch.backend(), "backward_tensors", None)
    sizes = None if run is None or _foreign(d_output) or _foreign(d_h_n) else _sizes(x, options)
    if run is None or sizes is None or len(sizes) != 3 or w_hh.dim() != 2:
        return None
    need_x, need_h_0, _, need_w_ih, need_w_hh, *need_b = needs
    wanted = need_x, need_h_0, need_w_ih, need_w_hh, True in need_b
    relu, wide = options.nonlinearity == "relu", x.dtype is torch.float64
    tensors = d_output, d_h_n, output, x, h_0, w_ih, w_hh
    arrays = run(*tensors, *sizes, w_hh.shape[0], wide, *wanted, relu, options.reverse, torch.get_num_threads())
    if arrays is None:
        return None
    d_x, d_h_0, d_w_ih, d_w_hh, d_b = arrays
    if options.batch_sizes is not None:
        d_x = None if d_x is None else d_x[0]
        d_h_0 = d_h_0 if d_h_0 is None or h_0 is None or h_0.dim() == 3 else d_h_0[0]
    found = [None if d is None else torch.from_numpy(d) for d in (d_x, d_h_0, None, d_w_ih, d_w_hh)]
    if need_b:  # two arrays: whoever gets one may write to it
        need_b_ih, need_b_hh = need_b
        found.append(torch.from_numpy(d_b) if need_b_ih else None)
        found.append(torch.from_numpy(d_b.copy() if need_b_ih else d_b) if need_b_hh else None)
    return tuple(found)


def _arrays(x: Tensor, h_0: Tensor | None, *others: Tensor) -> tuple[Array, Array | None, list[Array]]:
    """The memory of tensors, which require no grad or are used where autograd is off."""
    arrays = [array(tensor) for tensor in ((x, *others) if h_0 is None else (x, *others, h_0))]
    return arrays[0], None if h_0 is None else arrays.pop(), arrays[1:]


_TYPES = {torch.float32: ("<f4", 4), torch.float64: ("<f8", 8)}


class _Memory:
    """A tensor's memory as NumPy asks for it. Tensor.numpy() would forbid torch to resize it, which FSDP does."""

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        typestr, size = _TYPES[tensor.dtype]
        self.tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "typestr": typestr,
            "shape": tuple(tensor.shape),
            "strides": tuple([size * stride for stride in tensor.stride()]),
            "data": (tensor.data_ptr(), False),
        }


def array(tensor: Tensor) -> Array:
    """A tensor's memory; a copy where it is negated lazily, misaligned or zeros without memory."""
    if tensor.dtype not in _TYPES or not tensor.is_cpu:
        raise TypeError(
            f"tensor: expected torch.float32 or torch.float64 on the CPU, got {tensor.dtype} on {tensor.device}"
        )
    if tensor._is_zerotensor():
        return np.zeros(tuple(tensor.shape), np.float64 if tensor.dtype is torch.float64 else np.float32)
    view = np.asarray(_Memory(tensor.resolve_neg()))
    return view if view.flags.aligned else view.copy()


def _tensor(array: Array | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
