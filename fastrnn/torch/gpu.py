"""One layer on CUDA tensors: what autograd.py has for the CPU, on torch's current stream of the tensors' device.

The native `cuda` backend takes tensors as they are; `cupy` gets them as CuPy arrays by DLPack, without a copy. output
and h_n lie in torch's memory, gradients in that of the library that computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.utils.dlpack
from torch import Tensor

from .._backends.options import RnnOptions
from . import dispatch

Convert: TypeAlias = Callable[[Any], Any]


def _settled(tensor: Tensor) -> Tensor:
    """With its elements in memory: a copy where it is negated lazily, or zeros without memory."""
    return tensor.clone() if tensor._is_zerotensor() else tensor.resolve_neg()


@contextmanager
def _library(functions: Any, x: Tensor) -> Iterator[tuple[Convert, Convert]]:
    """Tensors to the backend's arrays, and back."""
    if not hasattr(functions, "from_tensor"):
        yield (lambda tensor: None if tensor is None else _settled(tensor)), (lambda tensor: tensor)
        return
    with functions.on_stream(x.device.index or 0, torch.cuda.current_stream(x.device).cuda_stream):
        yield (
            lambda tensor: None if tensor is None else functions.from_tensor(_settled(tensor.detach())),
            lambda array: None if array is None else torch.utils.dlpack.from_dlpack(array),
        )


def rnn_layer(
    x: Tensor, h_0: Tensor | None, options: tuple[RnnOptions, ...], *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """autograd.rnn_layer."""
    functions: Any = dispatch.backend("cuda")
    D, each, H = len(options), len(weights) // len(options), weights[1].shape[0]
    sizes = options[0].batch_sizes
    B = x.shape[1] if sizes is None else int(sizes[0]) if len(sizes) else 0
    output, h_n = x.new_empty((*x.shape[:-1], D * H)), x.new_empty((D, B, H))
    with _library(functions, x) as (to, _):
        x_, h_0_, output_, h_n_, arrays = to(x), to(h_0), to(output), to(h_n), [to(w) for w in weights]
        for way in range(D):
            w_ih, w_hh, *b = arrays[way * each : (way + 1) * each]
            b_ih, b_hh = b or (None, None)
            h = None if h_0_ is None else h_0_[way]
            half = output_[..., way * H : (way + 1) * H]
            h_n_[way] = functions.rnn_forward(x_, h, w_ih, w_hh, b_ih, b_hh, options[way], half)[1]
    return output, h_n


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
    """autograd.rnn_layer_backward."""
    functions: Any = dispatch.backend("cuda")
    need_x, need_h_0, _, *need_weights = needed
    each, H = len(weights) // len(options), weights[1].shape[0]
    d_x: Tensor | None = None
    d_h_0: list[Tensor] = []
    d_weights: list[Tensor | None] = []
    with _library(functions, x) as (to, back):
        d_output_, d_h_n_, output_, x_, h_0_ = to(d_output), to(d_h_n), to(output), to(x), to(h_0)
        for way, option in enumerate(options):
            needs = need_weights[way * each : (way + 1) * each]
            wanted = {"x": need_x, "h_0": need_h_0, "w_ih": needs[0], "w_hh": needs[1], "b": any(needs[2:])}
            half = (..., slice(way * H, (way + 1) * H))
            found = functions.rnn_backward(
                None if d_output_ is None else d_output_[half],
                None if d_h_n_ is None else d_h_n_[way],
                output_[half],
                x_,
                None if h_0_ is None else h_0_[way],
                *[to(w) for w in weights[way * each : way * each + 2]],
                option,
                tuple(name for name, need in wanted.items() if need),
            )
            d = type(found)(*map(back, found))
            d_x = d.d_x if d_x is None else d_x.add_(d.d_x)
            if d.d_h_0 is not None:
                d_h_0.append(d.d_h_0)
            d_weights += [d.d_w_ih, d.d_w_hh]
            if each == 4:  # two tensors: whoever gets one may write to it
                d_b_hh = d.d_b.clone() if d.d_b is not None and all(needs[2:]) else d.d_b
                d_weights += [d.d_b if needs[2] else None, d_b_hh if needs[3] else None]
        d_states = torch.stack(d_h_0) if d_h_0 else None
    return (d_x, d_states, None, *d_weights)
