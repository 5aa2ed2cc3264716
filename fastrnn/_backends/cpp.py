"""The `cpp` backend: the fused kernels of csrc/cpu, through the native module.

For a dtype and an instruction set, `output`, `h_n`, `d_x` and `d_h_0` of a row are the same bits whatever B, T, the
number of threads, alignment and strides; `d_w_ih`, `d_w_hh`, `d_b` and `d_alpha` are so for given (T, B, lengths).
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Any

import numpy as np

from .._threads import get_num_threads
from .options import NEEDS, Array, RnnGradients, RnnOptions, WeightSums

native: Any = import_module("fastrnn._fastrnn_cpu")
pack_weights = native.pack_weights
# One call on dense torch tensors of one dtype, whose sizes the caller has checked; None where one of them is not dense.
forward_tensors = native.forward_tensors
backward_tensors = native.backward_tensors
torch_calls = native.torch_calls  # the same, for csrc/torch/rnn_node.cc
# A cell's next state in a new array; None where an argument does not fit as it is, or the step is a long one.
short_step = native.short_step

empty = native.new_array  # np.empty, in memory that is kept between calls where there is much of it


def _rare(options: RnnOptions) -> dict[str, Any]:
    """The options that most calls do not have, as keywords; masks C-contiguous (copied where they are not)."""
    if options.plain:
        return {}
    keywords = {"lengths": options.lengths, "batch_sizes": options.batch_sizes}
    for name in ("reset", "recurrent_mask", "keep_mask"):
        mask = getattr(options, name)
        keywords[name] = mask if mask is None else np.ascontiguousarray(mask)
    if options.alpha is not None:
        keywords["alpha"] = options.alpha
    return keywords


def _batch(x: Array, options: RnnOptions) -> int:
    if options.batch_sizes is None:
        return int(x.shape[1])
    return int(options.batch_sizes[0]) if len(options.batch_sizes) else 0


def rnn_forward(
    x: Array,
    h_0: Array | None,
    w_ih: Array | None,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    options: RnnOptions,
    out: Array | None = None,
    packed: Any = None,
) -> tuple[Array, Array]:
    """output (T, B, H), zero beyond a row's length, and h_n (B, H), each row's state after its own last step."""
    H, dtype = len(w_hh), x.dtype
    output = empty((*x.shape[:-1], H), dtype) if out is None else out
    h_n = empty((_batch(x, options), H), dtype)
    relu = options.nonlinearity == "relu"
    threads = get_num_threads()
    native.rnn_forward(
        x, h_0, w_ih, w_hh, b_ih, b_hh, output, h_n, relu, options.reverse, threads, packed, **_rare(options)
    )
    return output, h_n


def _new_sums(w_ih: Array | None, w_hh: Array, needs: Collection[str]) -> tuple[Array | None, ...]:
    shapes = {"w_ih": None if w_ih is None else w_ih.shape, "w_hh": w_hh.shape, "b": w_hh.shape[:1]}
    wanted = [shape if name in needs else None for name, shape in shapes.items()]
    return tuple(None if shape is None else empty(shape, w_hh.dtype) for shape in wanted)


def rnn_backward(
    d_output: Array | None,
    d_h_n: Array | None,
    output: Array,
    x: Array,
    h_0: Array | None,
    w_ih: Array | None,
    w_hh: Array,
    options: RnnOptions,
    needs: Collection[str] = NEEDS,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    sums: WeightSums | None = None,
) -> RnnGradients:
    """Gradients by BPTT; d_x is exactly 0 beyond a row's length.

    With alpha the activations are computed again, to the bits of rnn_forward. With sums the bits are those of one call
    where the ranges of steps are whole blocks of the canonical sum (csrc/cpu/sum_order.h), counted from the last step.
    """
    H, dtype = len(w_hh), x.dtype
    gradients = RnnGradients(
        empty(x.shape, dtype) if "x" in needs else None,
        empty((_batch(x, options), H), dtype) if "h_0" in needs else None,
        *(_new_sums(w_ih, w_hh, needs) if sums is None else sums[:3]),
    )
    relu = options.nonlinearity == "relu"
    threads = get_num_threads()
    rare = _rare(options)
    if options.alpha is not None:
        d_alpha = sums.d_alpha if sums is not None else empty((H,), dtype) if "alpha" in needs else None
        gradients = gradients.with_alpha(d_alpha)
        rare |= {"b_ih": b_ih, "b_hh": b_hh, "d_alpha": gradients.d_alpha}
    if sums is not None:
        rare |= {"accumulate": True, "b_lost": sums.b_lost, "alpha_lost": sums.alpha_lost}
    native.rnn_backward(d_output, d_h_n, output, x, h_0, w_ih, w_hh, *gradients, relu, options.reverse, threads, **rare)
    return gradients if sums is None else RnnGradients(*gradients[:2], None, None, None)


def _of_all(options: RnnOptions) -> tuple[Any, ...]:
    reset = None if options.reset is None else np.ascontiguousarray(options.reset)
    return options.nonlinearity == "relu", options.reverse, get_num_threads(), options.lengths, reset


def rnn_forward_ensemble(
    x: Array,
    h_0: Array | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    options: RnnOptions,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """rnn_forward of M models, each with its own (x, h_0, w_ih, ...)[m], in one call; options, without masks and
    batch_sizes, are those of all. Threads take whole models."""
    M, T, B, _ = x.shape
    H, dtype = w_hh.shape[1], x.dtype
    output = empty((M, T, B, H), dtype) if out is None else out
    h_n = empty((M, B, H), dtype)
    native.rnn_forward_ensemble(x, h_0, w_ih, w_hh, b_ih, b_hh, output, h_n, *_of_all(options))
    return output, h_n


def rnn_backward_ensemble(
    d_output: Array | None,
    d_h_n: Array | None,
    output: Array,
    x: Array,
    h_0: Array | None,
    w_ih: Array,
    w_hh: Array,
    options: RnnOptions,
    needs: Collection[str] = NEEDS,
) -> RnnGradients:
    """rnn_backward, as rnn_forward_ensemble is rnn_forward."""
    M, _, B, _ = x.shape
    H, dtype = w_hh.shape[1], x.dtype
    gradients = RnnGradients(
        empty(x.shape, dtype) if "x" in needs else None,
        empty((M, B, H), dtype) if "h_0" in needs else None,
        empty(w_ih.shape, dtype) if "w_ih" in needs else None,
        empty(w_hh.shape, dtype) if "w_hh" in needs else None,
        empty((M, H), dtype) if "b" in needs else None,
    )
    native.rnn_backward_ensemble(d_output, d_h_n, output, x, h_0, w_ih, w_hh, *gradients, *_of_all(options))
    return gradients
