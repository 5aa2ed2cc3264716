"""The layer as operators of torch's, for what watches operators: torch.compile, torch.export, make_fx, FlopCounterMode.

    fastrnn::rnn_forward    output, h_n
    fastrnn::rnn_backward   the gradients that are needed
    fastrnn::rnn_adjoint    the adjoint of one direction's recurrence, of which further derivatives are made

Each has the kernel of the CPU, a fake one, a derivative in reverse mode, a vmap rule and a count of its operations.
After the nonlinearity and the direction they take derivatives.TENSORS, the adjoint those of all directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import register_flop_formula

from .. import _validate
from .._backends.options import RnnOptions
from . import autograd, derivatives, dispatch, leak, recompute, stack, stepwise

if TYPE_CHECKING:
    from .layer import RNN

_SHARED = "Tensor? lengths, Tensor? batch_sizes, Tensor? reset"
_DIRECTION = f"str nonlinearity, bool reverse, {_SHARED}"
# (D, B, H); (D, T, B, H), or (D, N, H) for packed rows. With defaults: programs exported before there were any go on
_LAYER = f"str nonlinearity, bool bidirectional, {_SHARED}, Tensor? recurrent_mask=None, Tensor? keep_mask=None"
_SCHEMAS = {
    "rnn_forward": f"(Tensor x, Tensor? h_0, Tensor[] weights, {_LAYER}) -> (Tensor, Tensor)",
    "rnn_backward": "(Tensor? d_output, Tensor? d_h_n, Tensor output, Tensor x, Tensor? h_0, Tensor[] weights, "
    f"bool[] needed, {_LAYER}) -> Tensor[]",
    "rnn_adjoint": f"(Tensor? u, Tensor? u_n, Tensor h, Tensor w_hh, {_DIRECTION}) -> (Tensor, Tensor)",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"fastrnn::{_name}", _schema)


# ---- Values


def rnn_forward(
    x: Tensor, h_0: Tensor | None, weights: list[Tensor], nonlinearity: str, bidirectional: bool, *tensors: Any
) -> tuple[Tensor, Tensor]:
    options = _options(x, weights, nonlinearity, bidirectional, *tensors)
    _check("h_0", h_0, _state_shape(x, weights, options), x)
    return autograd.rnn_layer(x, h_0, options, *weights)


def rnn_backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    output: Tensor,
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    needed: list[bool],
    *how: Any,
) -> list[Tensor]:
    """Of x, h_0 and weights, those that are needed."""
    options = _options(x, weights, *how)
    for name, value in (("output", output), ("d_output", d_output)):
        _check(name, value, (*x.shape[:-1], len(options) * weights[1].shape[-1]), x)
    for name, value in (("h_0", h_0), ("d_h_n", d_h_n)):
        _check(name, value, _state_shape(x, weights, options), x)
    if len(needed) != 2 + len(weights) or (needed[1] and h_0 is None):
        raise ValueError(f"needed: expected a bool for x, h_0 (false where that is None) and each weight, got {needed}")
    marks = (*needed[:2], False, *needed[2:])
    made = autograd.rnn_layer_backward(d_output, d_h_n, output, x, h_0, options, weights, marks)
    return [each for each in made if each is not None]


def rnn_adjoint(u: Tensor | None, u_n: Tensor | None, h: Tensor, w_hh: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    nonlinearity, reverse, *tensors = how
    options = _options(h, [w_hh, w_hh], nonlinearity, False, *tensors)[0]
    _check("u", u, tuple(h.shape), h)
    _check("u_n", u_n, (*w_hh.shape[:-2], _batch(h, options), h.shape[-1]), h)
    return derivatives.adjoint(u, u_n, h, w_hh, replace(options, reverse=reverse))


def _options(
    x: Tensor, weights: list[Tensor], nonlinearity: str, bidirectional: bool, *tensors: Any
) -> tuple[RnnOptions, ...]:
    """Of each direction, in arrays, when x and weights fit."""
    if isinstance(dispatch.backend(), str):
        raise RuntimeError("fastrnn's operators: expected a fast backend, got none")
    _check_weights(x, weights, nonlinearity, 1 + bidirectional, tensors[1])
    one = cast(Any, x[0] if weights[1].dim() == 3 else x)  # model's, of which the checks read the shape
    D, H = 1 + bidirectional, weights[1].shape[-1]
    lengths, sizes, reset, masks, keeps = (*tensors, None, None)[: len(derivatives.TENSORS)]
    if lengths is not None:
        lengths = _validate.sequence_lengths(lengths, one.shape[0], one.shape[1])
    if sizes is not None:
        sizes = _validate.packed_sizes(sizes, one)
    if reset is not None:
        reset = _validate.exact("reset", reset, _validate.BOOL, tuple(one.shape[:2]), "TB")
    shared = lengths, sizes, reset
    if masks is not None:
        _check("recurrent_mask", masks, (D, _batch(x, RnnOptions(batch_sizes=sizes)), H), x)
        masks = autograd.array(masks)
    if keeps is not None:
        keeps = _validate.exact("keep_mask", keeps, _validate.BOOL, (D, *one.shape[:-1], H))
    own = [[None if each is None else each[way] for each in (masks, keeps)] for way in range(D)]
    return tuple(RnnOptions(nonlinearity, way == 1, *shared, *own[way]) for way in range(D))


def _check_weights(x: Tensor, weights: list[Tensor], nonlinearity: str, D: int, sizes: Tensor | None) -> None:
    if forward_ad._current_level >= 0 and not derivatives.below.get():  # torch would go on, with tangents of 0
        raise NotImplementedError("fastrnn's operators: expected no forward mode, which the layer itself has")
    _validate.check_nonlinearity(nonlinearity)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: expected torch.float32 or torch.float64, got {x.dtype}")
    if len(weights) not in (2 * D, 3 * D, 4 * D, 5 * D) or weights[1].dim() not in (2, 3):
        known = f"w_ih, w_hh and maybe b_ih, b_hh, and maybe alpha, of {D} directions"
        raise ValueError(f"weights: expected {known}, got {len(weights)}")
    M = weights[1].shape[:-2]
    if x.dim() != (3 if sizes is None else 2) + len(M) or x.shape[: len(M)] != M:
        want = f"{'M, ' if M else ''}T, B, I), or ({'M, ' if M else ''}N, I"
        raise ValueError(f"x: expected ({want}) beside batch_sizes, got shape {tuple(x.shape)}")
    H, each = weights[1].shape[-1], len(weights) // D
    if M and each % 2:
        raise ValueError("weights: expected no alpha of many models")
    for at, w in enumerate(weights):
        _check(f"weights[{at}]", w, (*M, *((H, x.shape[-1]), (H, H), (H,), (H,), (H,))[at % each]), x)


def _check(name: str, value: Tensor | None, shape: tuple[Any, ...], like: Tensor) -> None:
    if value is None:
        return
    if value.dtype is not like.dtype or value.device != like.device:
        raise TypeError(f"{name}: expected {like.dtype} on {like.device}, got {value.dtype} on {value.device}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")


def _batch(x: Tensor, o: RnnOptions) -> int:
    return x.shape[-2] if o.batch_sizes is None else int(o.batch_sizes[0]) if len(o.batch_sizes) else 0


def _state_shape(x: Tensor, weights: list[Tensor], options: tuple[RnnOptions, ...]) -> tuple[int, ...]:
    """(D, B, H), of M models (M, D, B, H)."""
    *M, _, H = weights[1].shape
    return *M, len(options), _batch(x, options[0]), H


# ---- Shapes alone


def _fake_forward(
    x: Tensor, h_0: Tensor | None, weights: list[Tensor], nonlinearity: str, bidirectional: bool, *tensors: Any
) -> tuple[Tensor, Tensor]:
    D, (*M, _, H), sizes = 1 + bidirectional, weights[1].shape, tensors[1]
    _check_weights(x, weights, nonlinearity, D, sizes)
    return x.new_empty(*x.shape[:-1], D * H), x.new_empty(*M, D, _fake_batch(x, sizes, h_0), H)


def _fake_batch(x: Tensor, sizes: Tensor | None, states: Tensor | None) -> Any:
    if sizes is None:
        return x.shape[-2]
    return torch.library.get_ctx().new_dynamic_size() if states is None else states.shape[-2]


def _fake_backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    output: Tensor,
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    needed: list[bool],
    *_: Any,
) -> list[Tensor]:
    values = (x, h_0, *weights)
    return [v.new_empty(v.shape) for v, need in zip(values, needed, strict=True) if need and v is not None]


def _fake_adjoint(u: Tensor | None, u_n: Tensor | None, h: Tensor, w_hh: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    nonlinearity, _, _, sizes, _ = how
    _check_weights(h, [w_hh, w_hh], nonlinearity, 1, sizes)
    return h.new_empty(h.shape), h.new_empty(*w_hh.shape[:-2], _fake_batch(h, sizes, u_n), h.shape[-1])


# ---- Derivatives. Options hold tensors here


def _keep_forward(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    x, h_0, weights, *ctx.how = inputs[:5]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], x, h_0, *inputs[5:], *weights)


def _forwards_backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None) -> tuple[Any, ...]:
    output, x, h_0, *saved = ctx.saved_tensors
    tensors, weights = saved[: len(derivatives.TENSORS)], saved[len(derivatives.TENSORS) :]
    need_x, need_h_0, need_weights = ctx.needs_input_grad[:3]
    needed = [need_x, need_h_0, *need_weights]
    made: Iterable[Tensor | None] = [None] * len(needed)
    if d_output is not None or d_h_n is not None:
        those = iter(
            torch.ops.fastrnn.rnn_backward(d_output, d_h_n, output, x, h_0, weights, needed, *ctx.how, *tensors)
        )
        made = [next(those) if need else None for need in needed]
    d_x, d_h_0, *d_weights = made
    return d_x, d_h_0, d_weights, *_no_gradients(ctx.how, tensors)


def _no_gradients(how: Any, tensors: Sequence[Any]) -> list[None]:
    """One for each argument; the dispatcher leaves out the last ones where they are their defaults."""
    given = len(tensors)
    while given > derivatives.SHARED and tensors[given - 1] is None:
        given -= 1
    return [None] * (len(how) + given)


def _keep_backward(ctx: Any, inputs: Any, output: list[Tensor]) -> None:
    d_output, d_h_n, out, x, h_0, weights, ctx.needed, *ctx.how = inputs[:9]
    ctx.save_for_backward(*inputs[9:], d_output, d_h_n, out, x, h_0, *weights)


def _backwards_backward(ctx: Any, upstream: list[Tensor]) -> tuple[Any, ...]:
    """By way of derivatives.gradients, which is differentiable."""
    tensors, saved = ctx.saved_tensors[: len(derivatives.TENSORS)], ctx.saved_tensors[len(derivatives.TENSORS) :]
    options = derivatives.of_tensors(*ctx.how, *tensors)
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        # aliases: of values that may be made of one another, each gets its own gradient
        own: list[Any] = [
            None if v is None else v.view_as(v) if higher and v.requires_grad else v.detach() for v in saved
        ]
        leaves = [v if v.requires_grad else v.requires_grad_() for v in own if v is not None]
        d_output, d_h_n, output, x, h_0, *weights = own
        needed = (*ctx.needed[:2], False, *ctx.needed[2:])
        made = derivatives.gradients(d_output, d_h_n, output, x, h_0, options, weights, needed)
        first = [each for each in made if each is not None]
        second = iter(torch.autograd.grad(first, leaves, upstream, allow_unused=True, create_graph=higher))
    d_d_output, d_d_h_n, d_output, d_x, d_h_0, *d_weights = [None if v is None else next(second) for v in own]
    return d_d_output, d_d_h_n, d_output, d_x, d_h_0, d_weights, None, *_no_gradients(ctx.how, tensors)


def _keep_adjoint(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    u, u_n, h, w_hh, *ctx.how = inputs[:6]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[6:], u, u_n, h, w_hh, output[0])


def _one_way(*how: Any) -> RnnOptions:
    nonlinearity, reverse, lengths, sizes, reset = how
    return RnnOptions(nonlinearity, reverse, lengths, sizes, reset)


def _adjoints_backward(ctx: Any, g_z: Tensor | None, g_0: Tensor | None) -> tuple[Any, ...]:
    lengths, sizes, reset, u, u_n, h, w_hh, d_z = ctx.saved_tensors
    options = _one_way(*ctx.how, lengths, sizes, reset)
    made = derivatives.adjoints_adjoint(g_z, g_0, u, u_n, h, w_hh, d_z, options)
    return *made, *[None] * 5


# ---- vmap


def _vmap_forward(info: Any, in_dims: Any, x: Any, h_0: Any, weights: Any, *how: Any) -> Any:
    _check_shared(in_dims[5:])

    def call(x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor) -> Any:
        return torch.ops.fastrnn.rnn_forward(x, h_0, weights, *how[:2], *derivatives.in_tensors(options))

    dims = (*in_dims[:2], None, *in_dims[2])
    return derivatives.mapped_layer(call, info.batch_size, dims, x, h_0, derivatives.of_tensors(*how), *weights)


def _vmap_backward(info: Any, in_dims: Any, *args: Any) -> Any:
    """One after the other, as the gradients of the weights are to be."""
    _check_shared(in_dims[9:])
    made = []
    for v in range(info.batch_size):
        own = [derivatives.one(each, at, v) for each, at in zip(args[:5], in_dims[:5], strict=True)]
        weights = [derivatives.one(w, at, v) for w, at in zip(args[5], in_dims[5], strict=True)]
        made.append(torch.ops.fastrnn.rnn_backward(*own, weights, *args[6:]))
    results = [torch.stack(each) for each in zip(*made, strict=True)]
    return results, [0] * len(results)


def _vmap_adjoint(info: Any, in_dims: Any, u: Any, u_n: Any, h: Any, w_hh: Any, *how: Any) -> Any:
    _check_shared(in_dims[6:])

    def call(u: Any, u_n: Any, h: Tensor, w_hh: Tensor, options: RnnOptions) -> Any:
        tensors = derivatives.in_tensors((options,))[: derivatives.SHARED]
        return torch.ops.fastrnn.rnn_adjoint(u, u_n, h, w_hh, *how[:2], *tensors)

    return derivatives.mapped_adjoint(call, info.batch_size, in_dims, u, u_n, h, w_hh, _one_way(*how))


def _check_shared(dims: Any) -> None:
    if any(dim is not None for dim in dims):
        raise NotImplementedError(f"{', '.join(derivatives.TENSORS)}: expected the same for all that vmap maps over")


# ---- Floating-point operations: a multiplication and an addition are two, as torch counts; what is O(H) a row is not


def _flops_forward(x: Any, h_0: Any, weights: Any, *_: Any, **__: Any) -> int:
    return sum(2 * prod(x[:-1]) * prod(w[-2:]) for w in weights if len(w) == len(weights[1]))


def _flops_backward(
    d_output: Any, d_h_n: Any, output: Any, x: Any, h_0: Any, weights: Any, needed: Any, *how: Any, **_: Any
) -> int:
    """d_h through w_hh, and for each matrix its own gradient and, through w_ih, that of x, where needed."""
    rows = 2 * prod(x[:-1])
    each = len(weights) // (len(output) and output[-1] // weights[1][-1])
    total = 0
    for at, (w, need) in enumerate(zip(weights, needed[2:], strict=True)):
        if len(w) == len(weights[1]):
            total += rows * prod(w[-2:]) * (need + (needed[0] if at % each == 0 else 1))
    return total


def _flops_adjoint(u: Any, u_n: Any, h: Any, w_hh: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(h[:-1]) * prod(w_hh[-2:]))


for _name, _cpu, _fake, _keep, _derivative, _vmap, _flops in (
    ("rnn_forward", rnn_forward, _fake_forward, _keep_forward, _forwards_backward, _vmap_forward, _flops_forward),
    (
        "rnn_backward",
        rnn_backward,
        _fake_backward,
        _keep_backward,
        _backwards_backward,
        _vmap_backward,
        _flops_backward,
    ),
    ("rnn_adjoint", rnn_adjoint, _fake_adjoint, _keep_adjoint, _adjoints_backward, _vmap_adjoint, _flops_adjoint),
):
    torch.library.impl(f"fastrnn::{_name}", "cpu", _cpu)
    torch.library.register_fake(f"fastrnn::{_name}", _fake)
    torch.library.register_autograd(f"fastrnn::{_name}", _derivative, setup_context=_keep)
    torch.library.register_vmap(f"fastrnn::{_name}", _vmap)
    register_flop_formula(getattr(torch.ops.fastrnn, _name))(_flops)


# ---- The layer, of operators


torch.library.define("fastrnn::no_state", "(Tensor x, Tensor batch_sizes, SymInt rows, SymInt H) -> Tensor")


def no_state(x: Tensor, batch_sizes: Tensor, rows: int, H: int) -> Tensor:
    """The h_0 of packed rows, whose B compiled code does not know otherwise: zeros (rows, B, H)."""
    return x.new_zeros(rows, int(batch_sizes[0]) if len(batch_sizes) else 0, H)


def _fake_no_state(x: Tensor, batch_sizes: Tensor, rows: int, H: int) -> Tensor:
    return x.new_empty(rows, torch.library.get_ctx().new_dynamic_size(), H)


torch.library.impl("fastrnn::no_state", "cpu", no_state)
torch.library.register_fake("fastrnn::no_state", _fake_no_state)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def stock_computes() -> bool:
    return isinstance(dispatch.backend(), str)


def run(
    layer: RNN,
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    return_all_layers: bool,
    checkpoint_every: Any,
) -> Any:
    """RNN.forward where operators are recorded: what torch.compile and torch.export can follow."""
    given = prepared(layer, input, hx, lengths, reset)
    if given is None:
        stack.refuse_beside_stock(layer, lengths, reset, return_all_layers, checkpoint_every, "for these arguments")
        return torch.nn.RNN.forward(cast(torch.nn.RNN, layer), input, hx)
    x, hx, weights, lengths, reset, plan, result = given
    nonlinearity = dispatch.NONLINEARITIES[layer.mode]
    packed, D = input if isinstance(input, PackedSequence) else None, plan.directions
    sizes = plan.batch_sizes
    operator = _onnx if torch.onnx.is_in_onnx_export() else torch.ops.fastrnn.rnn_forward

    def compute(x: Tensor, h_0: Tensor | None, weights: Any, recurrent: Tensor | None, keep: Tensor | None) -> Any:
        if torch.onnx.is_in_onnx_export() and len(weights) // D % 2:  # ONNX's RNN does not leak
            options = derivatives.of_tensors(nonlinearity, D == 2, lengths, sizes, reset)
            return stepwise.layer(x, h_0, options, *weights)
        return operator(x, h_0, weights, nonlinearity, D == 2, lengths, sizes, reset, recurrent, keep)

    if checkpoint_every is None:
        outputs, h_n = stack.run(compute, plan, x, hx, weights)
    else:
        recompute.check(packed, return_all_layers)
        every = checkpoint_every
        output, h_n = recompute.run(plan, every, nonlinearity, x, hx, weights, lengths, reset)
        outputs = [output]
    made: list[Any] = outputs if return_all_layers else outputs[-1:]
    if result in dispatch.HALVES:
        made, h_n = [output.to(result) for output in made], h_n.to(result)
    elif checkpoint_every is None and torch.is_grad_enabled() and not torch.onnx.is_in_onnx_export():
        # who edits it in place does not edit what is saved for backward
        made = [output.clone() if output.requires_grad else output for output in made]
    if packed is not None:
        made = [PackedSequence(output, *packed[1:]) for output in made]
        h_n = layer.permute_hidden(h_n, packed.unsorted_indices)
    elif cast(Tensor, input).dim() == 2:
        made, h_n = [output.squeeze(1) for output in made], h_n.squeeze(1)
    elif layer.batch_first:
        made = [output.transpose(0, 1) for output in made]
    return (made[-1], h_n, tuple(made)) if return_all_layers else (made[0], h_n)


def prepared(
    layer: RNN, input: Tensor | PackedSequence, hx: Tensor | None, lengths: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor | None, list[Tensor], Tensor | None, Tensor | None, stack.Plan, torch.dtype] | None:
    """x (T, B, I) or packed rows, hx (L * D, B, H), the weights, lengths, reset (T, B), the plan, and the dtype of the
    results; None where torch.nn.RNN has to compute, or to say what is wrong."""
    packed = input if isinstance(input, PackedSequence) else None
    x = cast(Tensor, input if packed is None else packed.data)
    weights = [getattr(layer, name) for name in layer._flat_weights_names]
    if (alpha := getattr(layer, "alpha", None)) is not None:
        weights = leak.beside(weights, layer.num_layers * (2 if layer.bidirectional else 1), alpha)
    if not _fits(layer, x, hx, packed, weights):
        return None
    _, result = dispatch.arithmetic(x.dtype)
    if result in dispatch.HALVES:
        x, hx, weights = x.float(), hx if hx is None else hx.float(), [w.float() for w in weights]
    rates = None if layer._rates is None else layer._rates.acting(layer.training)
    L, D, sizes = layer.num_layers, 2 if layer.bidirectional else 1, None
    if packed is not None:
        if lengths is not None or reset is not None:
            raise ValueError("lengths, reset: expected None beside a PackedSequence, got a tensor")
        sizes = packed.batch_sizes
        hx = hx if hx is None else layer.permute_hidden(hx, packed.sorted_indices)
        if hx is None and rates is not None:  # of which the masks take B
            hx = torch.ops.fastrnn.no_state(x, sizes, L * D, layer.hidden_size)
    elif x.dim() == 2:
        x, hx = x.unsqueeze(1), hx if hx is None else hx.unsqueeze(1)
        reset = reset if reset is None else reset.unsqueeze(1)
    elif layer.batch_first:
        x, reset = x.transpose(0, 1), reset if reset is None else reset.transpose(0, 1)
    lengths, reset = (each if each is None else each.cpu() for each in (lengths, reset))
    B = x.shape[1] if sizes is None else None if hx is None else hx.shape[1]
    plan = stack.Plan(L, D, layer.dropout if layer.training else 0.0, rates, layer.training, B, sizes)
    return x, hx, weights, lengths, reset, plan, result


def _fits(layer: RNN, x: Tensor, hx: Tensor | None, packed: PackedSequence | None, weights: list[Tensor]) -> bool:
    """False where torch.nn.RNN has to compute, or to say what is wrong."""
    everything, (accepted, _) = [x, *weights] if hx is None else [x, hx, *weights], dispatch.arithmetic(x.dtype)
    if not all(t.dtype in accepted and t.device.type == "cpu" for t in everything):
        return False
    if stock_computes() or x.shape[-1] != layer.input_size:
        return False
    states: tuple[int, ...] = (layer.num_layers * (2 if layer.bidirectional else 1), layer.hidden_size)
    if packed is not None:
        return x.dim() == 2 and (hx is None or hx.dim() == 3)
    if x.dim() not in (2, 3):
        return False
    time = 1 if layer.batch_first and x.dim() == 3 else 0
    if x.dim() == 3:
        states = (states[0], x.shape[1 - time], states[1])
    return x.shape[time] > 0 and (hx is None or tuple(hx.shape) == states)


def _onnx(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    nonlinearity: str,
    bidirectional: bool,
    lengths: Tensor | None,
    sizes: Tensor | None,
    reset: Tensor | None,
    recurrent_mask: Tensor | None,
    keep_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """ONNX's RNN node, inside torch.onnx.export(dynamo=True)."""
    if not (sizes is reset is recurrent_mask is keep_mask is None):
        raise NotImplementedError(
            "torch.onnx.export: expected no PackedSequence, reset, recurrent_dropout and zoneout, which ONNX lacks"
        )
    D, H = 2 if bidirectional else 1, weights[1].shape[0]
    each = len(weights) // D
    w, r, *b = (torch.stack(weights[kind::each]) for kind in range(each))
    output, h_n = torch.onnx.ops.symbolic_multi_out(
        "RNN",
        (x, w, r, torch.cat(b, 1) if b else None, None if lengths is None else lengths.to(torch.int32), h_0),
        {
            "hidden_size": H,
            "direction": "bidirectional" if bidirectional else "forward",
            "activations": [nonlinearity.capitalize()] * D,
        },
        dtypes=(x.dtype, x.dtype),
        shapes=((x.shape[0], D, x.shape[1], H), (D, x.shape[1], H)),
    )
    return output.transpose(1, 2).flatten(2), h_n


def as_leaf(layer: torch.nn.Module, input: Any, *args: Any, **kwargs: Any) -> Any:
    """The call of a layer in torch.fx.symbolic_trace."""
    path = input.tracer.path_of_module(layer)
    given = {name: value for name, value in kwargs.items() if value is not None}
    return input.tracer.create_proxy("call_module", path, (input, *args), given)
