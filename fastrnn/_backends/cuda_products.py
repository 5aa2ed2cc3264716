"""The parts of the `cuda` backend that any array library can do: the input product before the kernel, the gradients of
x, the weights and the bias after it. Written once over a Library, so that the tests run it with NumPy and the kernels
on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod
from typing import Any, Protocol

import numpy as np

from .cuda_call import Call, backward_call, forward_call
from .options import Array, RnnGradients, RnnOptions

Launch = Callable[[Call, bool], None]  # the call, and whether it is the backward pass


class Library(Protocol):
    """What is asked of CuPy or torch; every array on the device and in the stream of the call."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Of the call's dtype."""

    def on_device(self, array: Array) -> Any:
        """A NumPy array of int64 or bool, copied."""

    def contiguous(self, array: Any) -> Any: ...
    def product(self, a: Any, b: Any, out: Any = None) -> Any: ...
    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """b may be a number."""

    def sum_rows(self, a: Any) -> Any: ...
    @property
    def dtype(self) -> str: ...


def _refuse(options: RnnOptions) -> None:
    if options.alpha is not None:
        raise ValueError("alpha: expected None with backend 'cuda', which has no leaky units, got values")


def _options(library: Library, options: RnnOptions, T: int) -> dict[str, Any]:
    """As cuda_call takes them, on the device."""
    given: dict[str, Any] = {"relu": options.nonlinearity == "relu", "reverse": options.reverse, "T": T}
    if options.lengths is not None:
        given["lengths"] = library.on_device(options.lengths)
    if options.batch_sizes is not None:
        given["packed_start"] = library.on_device(np.concatenate([[0], np.cumsum(options.batch_sizes, dtype=np.int64)]))
    for name in ("reset", "recurrent_mask", "keep_mask"):
        mask = getattr(options, name)
        given[name] = None if mask is None else library.contiguous(mask)
    return given


def _sizes(x: Any, options: RnnOptions) -> tuple[int, int]:
    """T, B."""
    if options.batch_sizes is None:
        return int(x.shape[0]), int(x.shape[1])
    return len(options.batch_sizes), int(options.batch_sizes[0]) if len(options.batch_sizes) else 0


def rnn_forward(
    library: Library,
    launch: Launch,
    x: Any,
    h_0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    options: RnnOptions,
    out: Any = None,
) -> tuple[Any, Any]:
    """output, h_n. The input product is written into output, and overwritten there by the kernel."""
    _refuse(options)
    (T, B), (H, I) = _sizes(x, options), w_ih.shape
    output = library.empty((*x.shape[:-1], H)) if out is None else out
    h_n = library.empty((B, H))
    z = output if out is None else library.empty(tuple(output.shape))
    n = prod(x.shape[:-1])
    rows = z.reshape(n, H)
    library.product(x.reshape(n, I), w_ih.T, rows)
    for bias in (b_ih, b_hh):
        if bias is not None:
            rows += bias
    launch(forward_call(z, h_0, w_hh, output, h_n, library.dtype, **_options(library, options, T)), False)
    return output, h_n


def rnn_backward(
    library: Library,
    launch: Launch,
    d_output: Any,
    d_h_n: Any,
    output: Any,
    x: Any,
    h_0: Any,
    w_ih: Any,
    w_hh: Any,
    options: RnnOptions,
    needs: Collection[str],
) -> RnnGradients:
    _refuse(options)
    (T, B), (H, I) = _sizes(x, options), w_ih.shape
    d_z, d_h_0 = library.empty(tuple(output.shape)), library.empty((B, H))
    if H > 1 and output.size and _last_stride(output) != 1:
        output = library.contiguous(output)
    transposed = library.contiguous(w_hh.T)
    call = backward_call(
        d_output, d_h_n, output, transposed, d_z, d_h_0, library.dtype, **_options(library, options, T)
    )
    launch(call, True)
    n = prod(x.shape[:-1])
    rows = d_z.reshape(n, H)
    valid = None  # where steps exist, if not everywhere: nothing else may reach a product
    if options.lengths is not None:
        valid = library.on_device((np.arange(T)[:, None] < options.lengths[None, :])[..., None])
    d_x = None
    if "x" in needs:
        d_x = library.product(rows, w_ih).reshape(x.shape)
        d_x = d_x if valid is None else library.where(valid, d_x, 0)
    d_w_ih = None
    if "w_ih" in needs:
        inputs = x if valid is None else library.where(valid, x, 0)
        d_w_ih = library.product(rows.T, inputs.reshape(n, I))
    d_w_hh = _d_w_hh(library, rows, output, h_0, options, T, B) if "w_hh" in needs else None
    return RnnGradients(
        d_x, d_h_0 if "h_0" in needs else None, d_w_ih, d_w_hh, library.sum_rows(rows) if "b" in needs else None
    )


def _last_stride(array: Any) -> int:
    return int(array.stride()[-1] if hasattr(array, "data_ptr") else array.strides[-1] // array.itemsize)


def _d_w_hh(library: Library, d_z: Any, output: Any, h_0: Any, options: RnnOptions, T: int, B: int) -> Any:
    """The sum of d_z times the state that entered w_hh, over all rows; d_z is (N, H)."""
    states = output.reshape(d_z.shape)
    masked = options.reset is not None or options.recurrent_mask is not None
    starts_together = options.batch_sizes is None and not (options.reverse and options.lengths is not None)
    if starts_together and not masked and T > 0:
        # Without a copy: each row's state entered the next step; output is 0 beyond a row's length, and so is d_z.
        n = B * (T - 1)
        later, earlier, first = (d_z[:n], states[B:], d_z[n:]) if options.reverse else (d_z[B:], states[:n], d_z[:B])
        total = library.product(later.T, earlier)
        if h_0 is not None:
            total += library.product(first.T, h_0)
        return total
    before, batch = _rows_before(options, T, B)
    entering = states[library.on_device(np.maximum(before, 0))]
    of_row = library.on_device(batch)
    fresh = library.on_device((before < 0)[:, None])
    entering = library.where(fresh, 0 if h_0 is None else h_0[of_row], entering)
    if options.reset is not None:
        entering = library.where(options.reset.reshape(-1, 1), 0, entering)
    if options.recurrent_mask is not None:
        entering = entering * options.recurrent_mask[of_row]
    return library.product(d_z.T, entering)


def _rows_before(options: RnnOptions, T: int, B: int) -> tuple[Array, Array]:
    """For each data row the row whose output entered it, -1 where h_0 did, and its batch row; on the host."""
    if options.batch_sizes is None:
        sizes = np.full(T, B, np.int64)
        lengths = np.full(B, T, np.int64) if options.lengths is None else options.lengths
    else:
        sizes = options.batch_sizes
        lengths = (sizes[:, None] > np.arange(B)[None, :]).sum(axis=0)
    start = np.cumsum(sizes) - sizes
    t = np.repeat(np.arange(T), sizes)
    batch = np.arange(len(t)) - start[t] if len(t) else np.zeros(0, np.int64)
    source = t + 1 if options.reverse else t - 1
    exists = (source >= 0) & (source < lengths[batch])
    before = np.where(exists, start[np.clip(source, 0, max(T - 1, 0))] + batch, -1) if len(t) else batch
    return before, batch
