"""The recurrence on the arrays of a device: the large products by its library, the steps by the kernels of csrc/cuda.

The same functions run on a GPU (CuPy arrays, kernels compiled by NVRTC: cupy_gpu.py) and on the host (NumPy arrays, the
same kernels compiled by a C++ compiler: the tests). The input product, d_x and the weight gradients are one product
each, outside the loop over time; only h is kept for BPTT.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from . import cupy_plan
from .options import NEEDS, Array, RnnGradients, RnnOptions

_NULL = np.uint64(0)  # a pointer that is not given
_THREADS = 256


class Device(Protocol):
    """Where the arrays live."""

    xp: Any  # the array module
    limits: cupy_plan.Limits

    def launch(
        self,
        name: str,
        dtype: np.dtype[Any],
        sizes: cupy_plan.Sizes | None,
        blocks: int,
        arguments: tuple[Any, ...],
    ) -> None:
        """Runs a kernel of csrc/cuda/nvrtc, with 256 threads a block; a group of several blocks runs at once."""


def _int(value: int) -> np.int64:
    return np.int64(value)


class Recurrence:
    """One direction of one layer, its rows and options on the device."""

    def __init__(self, device: Device, x: Array, H: int, options: RnnOptions, choice: cupy_plan.Choice | None) -> None:
        if options.alpha is not None:
            raise ValueError("alpha: expected None with backend 'cupy', which has no leaky units, got values")
        self.device, self.options, self.H, self.dtype = device, options, H, x.dtype
        sizes = options.batch_sizes
        self.packed = sizes is not None
        if sizes is None:
            self.T, self.B = int(x.shape[0]), int(x.shape[1])
            self.starts = [t * self.B for t in range(self.T + 1)]
        else:
            self.T, self.B = len(sizes), int(sizes[0]) if len(sizes) else 0
            self.starts = [0, *np.cumsum(sizes).tolist()]
        self.N = self.starts[-1] if self.T else 0
        self.plain = options.plain
        self.relu, self.reverse = np.int32(options.nonlinearity == "relu"), np.int32(options.reverse)
        self.choice = choice or cupy_plan.choose(H, self.B, x.dtype.itemsize, device.limits)
        xp = device.xp
        self.first = None if sizes is None else xp.asarray(np.array(self.starts, np.int64))
        self.lengths = None if options.lengths is None else xp.asarray(options.lengths)
        self.reset, self.keep = self._mask(options.reset), self._mask(options.keep_mask)
        self.mask = self._mask(options.recurrent_mask)

    def _mask(self, mask: Array | None) -> Any:
        xp = self.device.xp
        return None if mask is None else xp.ascontiguousarray(xp.asarray(mask))

    @cached_property
    def beyond(self) -> Any:
        """(T, B, 1) bool: the steps that do not exist; None: all do."""
        if self.lengths is None:
            return None
        return (self.device.xp.arange(self.T)[:, None] >= self.lengths)[:, :, None]

    def steps(self) -> list[tuple[int, int, int]]:
        """t, its first data row, its rows, in the order of processing."""
        steps = [(t, self.starts[t], self.starts[t + 1] - self.starts[t]) for t in range(self.T)]
        return steps[::-1] if self.options.reverse else steps

    def launch(self, name: str, count: int, *arguments: Any) -> None:
        """A kernel of one thread for each of `count` elements; arguments may be None."""
        given = tuple(_NULL if argument is None else argument for argument in arguments)
        self.device.launch(name, self.dtype, None, -(-count // _THREADS), given)

    def launch_persistent(self, name: str, *arguments: Any) -> None:
        """The kernel that walks through all steps."""
        sizes, blocks, xp = self.choice.sizes, self.choice.blocks, self.device.xp
        assert sizes is not None
        exchange = arrived = None
        if sizes.group > 1:
            exchange = xp.zeros((2, self.B, sizes.HP), self.dtype)
            arrived = xp.zeros((blocks // sizes.group, 32), np.uint32)  # each in a line of its own
        common = (exchange, arrived, self.first, self.lengths, self.reset, self.mask, self.keep)
        numbers = (_int(self.T), _int(self.B), _int(self.H), np.int32(sizes.group), self.relu, self.reverse)
        given = tuple(_NULL if argument is None else argument for argument in (*arguments, *common))
        self.device.launch(name, self.dtype, sizes, blocks, (*given, *numbers))

    # ---- Forward

    def forward(self, z: Any, bias: Any, w_hh: Any, h_0: Any, h_n: Any) -> None:
        """z (N, H), the input product, becomes the output; h_0 is None or C-contiguous."""
        if self.choice.sizes is not None:
            self.launch_persistent("rnn_forward_persistent", z, bias, w_hh, h_0, h_n)
            return
        xp, H = self.device.xp, self.H
        product = xp.empty((self.B, H), self.dtype)
        if h_0 is None:
            h_n[...] = 0
        else:
            h_n[...] = h_0
        states = None if self.plain else h_n
        entering = None if self.reset is None and self.mask is None else xp.empty_like(h_n)
        source = h_n if entering is None else entering
        transposed = w_hh.T
        common = (bias, product, states, entering, self.lengths, self.reset, self.mask, self.keep)
        steps = self.steps()
        nothing = (-1, 0, 0)
        if entering is not None:
            _, row0, rows = steps[0]
            numbers = (_int(0), _int(0), _int(0), _int(row0), _int(rows))
            self.launch("rnn_forward_step", rows * H, z, *common, *numbers, _int(H), self.relu)
        for (t, row0, rows), (_, next_row0, next_rows) in zip(steps, [*steps[1:], nothing], strict=True):
            xp.matmul(source[:rows], transposed, out=product[:rows])
            numbers = (_int(t), _int(row0), _int(rows), _int(next_row0), _int(next_rows))
            count = max(rows, next_rows if entering is not None else 0) * H
            self.launch("rnn_forward_step", count, z, *common, *numbers, _int(H), self.relu)
            if states is None:
                source = z[row0 : row0 + rows]
        if states is None:
            h_n[...] = source

    # ---- Backward

    def backward(self, d_z: Any, d_output: Any, output: Any, w_hh: Any, carry: Any) -> None:
        """d_z (N, H) is written; carry, d_h_n at first, becomes d_h_0; output is C-contiguous."""
        d_step, d_row, d_unit = self._strides(d_output)
        if self.choice.sizes is not None:
            upstream = (d_z, d_output, _int(d_step), _int(d_row), _int(d_unit))
            self.launch_persistent("rnn_backward_persistent", *upstream, output, w_hh, carry)
            return
        xp, H = self.device.xp, self.H
        product = xp.empty((self.B, H), self.dtype)
        common = (output, carry, product, self.lengths, self.reset, self.mask, self.keep)
        nothing = (-1, 0, 0)
        done = nothing
        for step in [*reversed(self.steps()), nothing]:
            (t, row0, rows), (done_t, done_row0, done_rows) = step, done
            start = row0 * d_row if self.packed else t * d_step
            strides = (_int(start), _int(d_row), _int(d_unit))
            numbers = (_int(done_t), _int(done_row0), _int(done_rows), _int(t), _int(row0), _int(rows))
            count = max(rows, done_rows) * H
            self.launch("rnn_backward_step", count, d_z, d_output, *strides, *common, *numbers, _int(H), self.relu)
            if rows:
                xp.matmul(d_z[row0 : row0 + rows], w_hh, out=product[:rows])
            done = step

    def _strides(self, array: Any) -> tuple[int, ...]:
        """Elements from one step, row and unit to the next; packed rows have no steps."""
        if array is None:
            return 0, 0, 0
        strides = tuple(stride // array.itemsize for stride in array.strides)
        return (0, *strides) if self.packed else strides

    def entering(self, output: Any, h_0: Any) -> Any:
        """(N, H): what w_hh multiplied in every step."""
        result = self.device.xp.empty((self.N, self.H), self.dtype)
        numbers = (_int(self.T), _int(self.B), _int(self.N), _int(self.H), self.reverse)
        arrays = (result, output, h_0, self.first, self.lengths, self.reset, self.mask)
        self.launch("rnn_entering", self.N * self.H, *arrays, *numbers)
        return result


def _rows(xp: Any, array: Any) -> Any:
    """C-contiguous rows (N, K) of an array (..., K)."""
    return xp.ascontiguousarray(array).reshape(-1, array.shape[-1]) if array.size else xp.empty((0, array.shape[-1]))


def rnn_forward(
    device: Device,
    x: Array,
    h_0: Array | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    options: RnnOptions,
    out: Array | None = None,
    choice: cupy_plan.Choice | None = None,
) -> tuple[Array, Array]:
    """As Implementation.rnn_forward; choice: how, None for the fastest by estimate."""
    xp, H, dtype = device.xp, len(w_hh), x.dtype
    call = Recurrence(device, x, H, options, choice)
    output = xp.empty((*x.shape[:-1], H), dtype) if out is None else out
    h_n = xp.empty((call.B, H), dtype)
    h_0 = None if h_0 is None else xp.ascontiguousarray(h_0)
    if call.N == 0:
        h_n[...] = 0 if h_0 is None else h_0
        return output, h_n
    z = output if output.flags.c_contiguous else xp.empty(output.shape, dtype)
    rows = z.reshape(call.N, H)
    if x.shape[-1]:
        xp.matmul(_rows(xp, x), w_ih.T, out=rows)
    else:
        rows[...] = 0
    bias = xp.zeros(H, dtype)
    for b in (b_ih, b_hh):
        if b is not None:
            bias += b
    call.forward(rows, bias, xp.ascontiguousarray(w_hh), h_0, h_n)
    if z is not output:
        output[...] = z
    return output, h_n


def rnn_backward(
    device: Device,
    d_output: Array | None,
    d_h_n: Array | None,
    output: Array,
    x: Array,
    h_0: Array | None,
    w_ih: Array,
    w_hh: Array,
    options: RnnOptions,
    needs: Collection[str] = NEEDS,
    choice: cupy_plan.Choice | None = None,
) -> RnnGradients:
    """As Implementation.rnn_backward; choice: as for rnn_forward."""
    xp, (H, I), dtype = device.xp, w_ih.shape, x.dtype
    call = Recurrence(device, x, H, options, choice)
    h_0 = None if h_0 is None else xp.ascontiguousarray(h_0)
    carry = xp.empty((call.B, H), dtype)
    carry[...] = 0 if d_h_n is None else d_h_n
    shapes = {"x": x.shape, "w_ih": (H, I), "w_hh": (H, H), "b": (H,)}
    made = {name: xp.empty(shape, dtype) if name in needs else None for name, shape in shapes.items()}
    d_x, d_w_ih, d_w_hh, d_b = made.values()
    if call.N == 0:
        for d in (d_w_ih, d_w_hh, d_b):
            if d is not None:
                d[...] = 0
        return RnnGradients(d_x, carry if "h_0" in needs else None, d_w_ih, d_w_hh, d_b)
    d_z, states = xp.empty((call.N, H), dtype), _rows(xp, output)
    call.backward(d_z, d_output, states, xp.ascontiguousarray(w_hh), carry)
    if d_x is not None and I:
        xp.matmul(d_z, w_ih, out=d_x.reshape(call.N, I))
        if call.beyond is not None:
            xp.copyto(d_x, dtype.type(0), where=call.beyond)
    if d_w_ih is not None and I:
        existing = x if call.beyond is None else xp.where(call.beyond, dtype.type(0), x)
        xp.matmul(d_z.T, _rows(xp, existing), out=d_w_ih)
    if d_w_hh is not None:
        _d_w_hh(call, d_z, states, h_0, d_w_hh)
    if d_b is not None:
        d_z.sum(axis=0, out=d_b)
    return RnnGradients(d_x, carry if "h_0" in needs else None, d_w_ih, d_w_hh, d_b)


def _d_w_hh(call: Recurrence, d_z: Any, output: Any, h_0: Any, d_w_hh: Any) -> None:
    xp, B, N = call.device.xp, call.B, call.N
    if not call.plain:
        xp.matmul(d_z.T, call.entering(output, h_0), out=d_w_hh)
        return
    later, before, first = slice(B, N), slice(0, N - B), slice(0, B)
    if call.options.reverse:
        later, before, first = before, later, slice(N - B, N)
    if call.T > 1:
        xp.matmul(d_z[later].T, output[before], out=d_w_hh)
    else:
        d_w_hh[...] = 0
    if h_0 is not None:
        d_w_hh += d_z[first].T @ h_0
