"""The `cpp` backend: the fused kernels of csrc/cpu, through the native module.

For a dtype and an instruction set, `output`, `h_n`, `d_x` and `d_h_0` of a row are the same bits whatever B, T, the
number of threads, alignment and strides; `d_w_ih`, `d_w_hh` and `d_b` are so for given (T, B, lengths).
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Any

import numpy as np

from .._threads import get_num_threads
from .options import NEEDS, Array, RnnGradients, RnnOptions, empty

native: Any = import_module("fastrnn._fastrnn_cpu")
pack_weights = native.pack_weights
# One call on dense torch tensors of one dtype, whose sizes the caller has checked; None where one of them is not dense.
forward_tensors = native.forward_tensors
backward_tensors = native.backward_tensors


def _rare(options: RnnOptions) -> dict[str, Any]:
    """The options that most calls do not have, as keywords; masks C-contiguous (copied where they are not)."""
    if options.plain:
        return {}
    keywords = {"lengths": options.lengths, "batch_sizes": options.batch_sizes}
    for name in ("reset", "recurrent_mask", "keep_mask"):
        mask = getattr(options, name)
        keywords[name] = mask if mask is None else np.ascontiguousarray(mask)
    return keywords


def _batch(x: Array, options: RnnOptions) -> int:
    if options.batch_sizes is None:
        return int(x.shape[1])
    return int(options.batch_sizes[0]) if len(options.batch_sizes) else 0


def rnn_forward(
    x: Array,
    h_0: Array | None,
    w_ih: Array,
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


def rnn_backward(
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
    """Gradients by BPTT; d_x is exactly 0 beyond a row's length."""
    H, dtype = len(w_hh), x.dtype
    gradients = RnnGradients(
        empty(x.shape, dtype) if "x" in needs else None,
        empty((_batch(x, options), H), dtype) if "h_0" in needs else None,
        empty(w_ih.shape, dtype) if "w_ih" in needs else None,
        empty((H, H), dtype) if "w_hh" in needs else None,
        empty((H,), dtype) if "b" in needs else None,
    )
    relu = options.nonlinearity == "relu"
    threads = get_num_threads()
    native.rnn_backward(
        d_output, d_h_n, output, x, h_0, w_ih, w_hh, *gradients, relu, options.reverse, threads, **_rare(options)
    )
    return gradients
