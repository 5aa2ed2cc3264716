"""The layer as operators of torch's, for what watches operators: torch.compile, torch.export, make_fx, FlopCounterMode.

    fastrnn::rnn_forward    output, h_n
    fastrnn::rnn_backward   the gradients that are needed
    fastrnn::rnn_adjoint    the adjoint of one direction's recurrence, of which further derivatives are made

Each has the kernel of the CPU, a fake one, a derivative in reverse mode, a vmap rule and a count of its operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import register_flop_formula

from .. import _validate
from .._backends.options import RnnOptions
from . import autograd, derivatives, dispatch

if TYPE_CHECKING:
    from .layer import RNN

_EXTRA = "str nonlinearity, bool {way}, Tensor? lengths, Tensor? batch_sizes, Tensor? reset"
_LAYER, _DIRECTION = _EXTRA.format(way="bidirectional"), _EXTRA.format(way="reverse")
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
    x: Tensor, h_0: Tensor | None, weights: list[Tensor], nonlinearity: str, bidirectional: bool, *extra: Tensor | None
) -> tuple[Tensor, Tensor]:
    options = _options(x, weights, nonlinearity, (False, True)[: 1 + bidirectional], *extra)
    _check("h_0", h_0, (len(options), _batch(x, options[0]), len(weights[1])), x)
    return autograd.rnn_layer(x, h_0, options, *weights)


def rnn_backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    output: Tensor,
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    needed: list[bool],
    nonlinearity: str,
    bidirectional: bool,
    *extra: Tensor | None,
) -> list[Tensor]:
    """Of x, h_0 and weights, those that are needed."""
    options = _options(x, weights, nonlinearity, (False, True)[: 1 + bidirectional], *extra)
    D, H = len(options), len(weights[1])
    for name, value in (("output", output), ("d_output", d_output)):
        _check(name, value, (*x.shape[:-1], D * H), x)
    for name, value in (("h_0", h_0), ("d_h_n", d_h_n)):
        _check(name, value, (D, _batch(x, options[0]), H), x)
    if len(needed) != 2 + len(weights) or (needed[1] and h_0 is None):
        raise ValueError(f"needed: expected a bool for x, h_0 (false where that is None) and each weight, got {needed}")
    marks = (*needed[:2], False, *needed[2:])
    made = autograd.rnn_layer_backward(d_output, d_h_n, output, x, h_0, options, weights, marks)
    return [each for each in made if each is not None]


def rnn_adjoint(
    u: Tensor | None,
    u_n: Tensor | None,
    h: Tensor,
    w_hh: Tensor,
    nonlinearity: str,
    reverse: bool,
    *extra: Tensor | None,
) -> tuple[Tensor, Tensor]:
    (options,) = _options(h, [w_hh, w_hh], nonlinearity, (reverse,), *extra)
    _check("u", u, tuple(h.shape), h)
    _check("u_n", u_n, (_batch(h, options), h.shape[-1]), h)
    return derivatives.adjoint(u, u_n, h, w_hh, options)


def _options(
    x: Tensor, weights: list[Tensor], nonlinearity: str, ways: tuple[bool, ...], *extra: Tensor | None
) -> tuple[RnnOptions, ...]:
    """Of each direction, when x and weights fit."""
    if isinstance(dispatch.backend(), str):
        raise RuntimeError("fastrnn's operators: expected a fast backend, got none")
    lengths, sizes, reset = extra
    _check_weights(x, weights, nonlinearity, len(ways), sizes)
    array = cast(Any, x)  # of which the checks read the shape
    lengths_ = None if lengths is None else _validate.sequence_lengths(lengths, x.shape[0], x.shape[1])
    sizes_ = None if sizes is None else _validate.packed_sizes(sizes, array)
    reset_ = None if reset is None else _validate.exact("reset", reset, _validate.BOOL, tuple(x.shape[:2]), "TB")
    return tuple(RnnOptions(nonlinearity, reverse, lengths_, sizes_, reset_) for reverse in ways)


def _check_weights(x: Tensor, weights: list[Tensor], nonlinearity: str, D: int, sizes: Tensor | None) -> None:
    if forward_ad._current_level >= 0 and not derivatives.below.get():  # torch would go on, with tangents of 0
        raise NotImplementedError("fastrnn's operators: expected no forward mode, which the layer itself has")
    _validate.check_nonlinearity(nonlinearity)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: expected torch.float32 or torch.float64, got {x.dtype}")
    if x.dim() != (3 if sizes is None else 2):
        raise ValueError(f"x: expected (T, B, I), or (N, I) beside batch_sizes, got shape {tuple(x.shape)}")
    if len(weights) not in (2 * D, 4 * D) or weights[1].dim() != 2:
        raise ValueError(f"weights: expected w_ih, w_hh and maybe b_ih, b_hh of {D} directions, got {len(weights)}")
    H, each = weights[1].shape[0], len(weights) // D
    for at, w in enumerate(weights):
        _check(f"weights[{at}]", w, ((H, x.shape[-1]), (H, H), (H,), (H,))[at % each], x)


def _check(name: str, value: Tensor | None, shape: tuple[Any, ...], like: Tensor) -> None:
    if value is None:
        return
    if value.dtype is not like.dtype or value.device != like.device:
        raise TypeError(f"{name}: expected {like.dtype} on {like.device}, got {value.dtype} on {value.device}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")


def _batch(x: Tensor, o: RnnOptions) -> int:
    return x.shape[1] if o.batch_sizes is None else int(o.batch_sizes[0]) if len(o.batch_sizes) else 0


# ---- Shapes alone


def _fake_forward(
    x: Tensor, h_0: Tensor | None, weights: list[Tensor], nonlinearity: str, bidirectional: bool, *extra: Tensor | None
) -> tuple[Tensor, Tensor]:
    D, H, sizes = 1 + bidirectional, weights[1].shape[0], extra[1]
    _check_weights(x, weights, nonlinearity, D, sizes)
    B = x.shape[1] if sizes is None else h_0.shape[1] if h_0 is not None else torch.library.get_ctx().new_dynamic_size()
    return x.new_empty(*x.shape[:-1], D * H), x.new_empty(D, B, H)


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


def _fake_adjoint(
    u: Tensor | None,
    u_n: Tensor | None,
    h: Tensor,
    w_hh: Tensor,
    nonlinearity: str,
    reverse: bool,
    *extra: Tensor | None,
) -> tuple[Tensor, Tensor]:
    sizes = extra[1]
    _check_weights(h, [w_hh, w_hh], nonlinearity, 1, sizes)
    B = h.shape[1] if sizes is None else u_n.shape[0] if u_n is not None else torch.library.get_ctx().new_dynamic_size()
    return h.new_empty(h.shape), h.new_empty(B, h.shape[-1])


# ---- Derivatives. Options hold tensors here


def _ways(nonlinearity: str, bidirectional: bool, *extra: Any) -> tuple[RnnOptions, ...]:
    return tuple(_one_way(nonlinearity, reverse, *extra) for reverse in (False, True)[: 1 + bidirectional])


def _one_way(nonlinearity: str, reverse: bool, lengths: Any = None, sizes: Any = None, reset: Any = None) -> RnnOptions:
    return RnnOptions(nonlinearity, reverse, lengths, sizes, reset)


def _keep_forward(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    x, h_0, weights, *ctx.how = inputs[:5]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], x, h_0, *inputs[5:], *weights)


def _forwards_backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None) -> tuple[Any, ...]:
    output, x, h_0, lengths, sizes, reset, *weights = ctx.saved_tensors
    need_x, need_h_0, need_weights = ctx.needs_input_grad[:3]
    needed = [need_x, need_h_0, *need_weights]
    made: Iterable[Tensor | None] = [None] * len(needed)
    if d_output is not None or d_h_n is not None:
        those = iter(
            torch.ops.fastrnn.rnn_backward(
                d_output, d_h_n, output, x, h_0, weights, needed, *ctx.how, lengths, sizes, reset
            )
        )
        made = [next(those) if need else None for need in needed]
    d_x, d_h_0, *d_weights = made
    return d_x, d_h_0, d_weights, None, None, None, None, None


def _keep_backward(ctx: Any, inputs: Any, output: list[Tensor]) -> None:
    d_output, d_h_n, out, x, h_0, weights, ctx.needed, *ctx.how = inputs[:9]
    ctx.save_for_backward(*inputs[9:], d_output, d_h_n, out, x, h_0, *weights)


def _backwards_backward(ctx: Any, upstream: list[Tensor]) -> tuple[Any, ...]:
    """By way of derivatives.gradients, which is differentiable."""
    lengths, sizes, reset, *saved = ctx.saved_tensors
    options = _ways(*ctx.how, lengths, sizes, reset)
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
    return d_d_output, d_d_h_n, d_output, d_x, d_h_0, d_weights, *[None] * 6


def _keep_adjoint(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    u, u_n, h, w_hh, *ctx.how = inputs[:6]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[6:], u, u_n, h, w_hh, output[0])


def _adjoints_backward(ctx: Any, g_z: Tensor | None, g_0: Tensor | None) -> tuple[Any, ...]:
    lengths, sizes, reset, u, u_n, h, w_hh, d_z = ctx.saved_tensors
    nonlinearity, reverse = ctx.how
    options = _one_way(nonlinearity, reverse, lengths, sizes, reset)
    made = derivatives.adjoints_adjoint(g_z, g_0, u, u_n, h, w_hh, d_z, options)
    return *made, *[None] * 5


# ---- vmap


def _vmap_forward(info: Any, in_dims: Any, x: Any, h_0: Any, weights: Any, *how: Any) -> Any:
    _check_shared(in_dims[5:])

    def call(x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor) -> Any:
        return torch.ops.fastrnn.rnn_forward(x, h_0, weights, *how[:2], *derivatives.in_tensors(options[0]))

    dims = (*in_dims[:2], None, *in_dims[2])
    return derivatives.mapped_layer(call, info.batch_size, dims, x, h_0, _ways(*how), *weights)


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
        return torch.ops.fastrnn.rnn_adjoint(u, u_n, h, w_hh, *how[:2], *derivatives.in_tensors(options))

    return derivatives.mapped_adjoint(call, info.batch_size, in_dims, u, u_n, h, w_hh, _one_way(*how))


def _check_shared(dims: Any) -> None:
    if any(dim is not None for dim in dims):
        raise NotImplementedError("lengths, batch_sizes, reset: expected the same for all that vmap maps over")


# ---- Floating-point operations: a multiplication and an addition are two, as torch counts; what is O(H) a row is not


def _flops_forward(x: Any, h_0: Any, weights: Any, *_: Any, **__: Any) -> int:
    return sum(2 * prod(x[:-1]) * prod(w) for w in weights if len(w) == 2)


def _flops_backward(
    d_output: Any, d_h_n: Any, output: Any, x: Any, h_0: Any, weights: Any, needed: Any, *how: Any, **_: Any
) -> int:
    """d_h through w_hh, and for each matrix its own gradient and, through w_ih, that of x, where needed."""
    rows = 2 * prod(x[:-1])
    each = len(weights) // (len(output) and output[-1] // weights[1][0])
    total = 0
    for at, (w, need) in enumerate(zip(weights, needed[2:], strict=True)):
        if len(w) == 2:
            total += rows * prod(w) * (need + (needed[0] if at % each == 0 else 1))
    return total


def _flops_adjoint(u: Any, u_n: Any, h: Any, w_hh: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(h[:-1]) * prod(w_hh))


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


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def stock_computes() -> bool:
    return isinstance(dispatch.backend(), str)


def run(
    layer: RNN, input: Tensor | PackedSequence, hx: Tensor | None, lengths: Tensor | None, reset: Tensor | None
) -> tuple[Tensor | PackedSequence, Tensor]:
    """RNN.forward where operators are recorded: what torch.compile and torch.export can follow."""
    packed = input if isinstance(input, PackedSequence) else None
    x = cast(Tensor, input if packed is None else packed.data)
    weights = [getattr(layer, name) for name in layer._flat_weights_names]
    if not _fits(layer, x, hx, packed, weights):
        for name, value in (("lengths", lengths), ("reset", reset)):
            if value is not None:
                raise NotImplementedError(f"{name}: expected None where torch.nn.RNN computes, got a tensor")
        return cast("tuple[Tensor, Tensor]", torch.nn.RNN.forward(cast(torch.nn.RNN, layer), input, hx))
    _, result = dispatch.arithmetic(x.dtype)
    if result in dispatch.HALVES:
        x, hx, weights = x.float(), hx if hx is None else hx.float(), [w.float() for w in weights]
    single, sizes = packed is None and x.dim() == 2, None
    if packed is not None:
        if lengths is not None or reset is not None:
            raise ValueError("lengths, reset: expected None beside a PackedSequence, got a tensor")
        sizes = packed.batch_sizes
        hx = hx if hx is None else layer.permute_hidden(hx, packed.sorted_indices)
    elif single:
        x, hx = x.unsqueeze(1), hx if hx is None else hx.unsqueeze(1)
        reset = reset if reset is None else reset.unsqueeze(1)
    elif layer.batch_first:
        x, reset = x.transpose(0, 1), reset if reset is None else reset.transpose(0, 1)
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    each, states = len(weights) // L, []
    for at in range(L):
        if layer.dropout and layer.training and at:
            x = torch.dropout(x, layer.dropout, True)
        h_0 = None if hx is None else hx[at * D : (at + 1) * D]
        compute = _onnx if torch.onnx.is_in_onnx_export() else torch.ops.fastrnn.rnn_forward
        x, h_n = compute(
            x, h_0, weights[at * each : (at + 1) * each], layer.nonlinearity, D == 2, lengths, sizes, reset
        )
        states.append(h_n)
    h_n = states[0] if L == 1 else torch.cat(states)
    if result in dispatch.HALVES:
        x, h_n = x.to(result), h_n.to(result)
    if packed is not None:
        result = PackedSequence(x, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return result, layer.permute_hidden(h_n, packed.unsorted_indices)
    if single:
        return x.squeeze(1), h_n.squeeze(1)
    return x.transpose(0, 1) if layer.batch_first else x, h_n


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
) -> tuple[Tensor, Tensor]:
    """ONNX's RNN node, inside torch.onnx.export(dynamo=True)."""
    if sizes is not None or reset is not None:
        raise NotImplementedError("torch.onnx.export: expected no PackedSequence and no reset, which ONNX's RNN lacks")
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
