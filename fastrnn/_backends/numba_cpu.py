"""The `numba` backend: kernels compiled by Numba on first use, for installations without the native module.

Everything is compiled loops (numba_kernels.py) over slices of rows, on a pool of Python threads; only many rows of a
wide layer (B >= 8 and B H H >= 2^20) are multiplied by NumPy's BLAS, on its own threads: there a fork in the middle of
another thread's call may hang the child, as it may in any program that uses NumPy. Only h is kept for BPTT. Work is
done in chunks of time steps, between which Ctrl-C is seen.

Numerics: the same call gives the same bits on the same machine, whatever set_num_threads says: slices, chunks and the
choice between loops and BLAS follow from the sizes alone. tanh is within 2 ULP, odd, at most 1. Weight gradients are
summed in the arrays' dtype inside a chunk of about 1024 rows, over the chunks in float64.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from .._threads import get_num_threads
from .numba_kernels import kernels
from .options import NEEDS, Array, RnnGradients, RnnOptions, empty

CHUNK_ROWS = 1024  # data rows of one chunk of time steps
CHUNK_WORK = 150_000_000  # multiply-adds of one chunk: some 10 ms, so that Ctrl-C is seen in time
BLAS_WORK = 500_000_000  # of one BLAS call: its threads meet at the end of each, dear where they get no core
PARALLEL_WORK = 2_000_000  # multiply-adds that pay for waking threads
# From so many rows and multiply-adds of a step on NumPy's BLAS is faster than the loops.
BLAS_ROWS = 8
BLAS_STEP = 1 << 20


# ---- Threads: tasks in a queue that the caller and helpers empty together. A pool that is busy, or closed because the
# interpreter ends, only means that the caller computes alone.

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads stayed in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _run(kernel: Callable[[int, int], None], slices: list[tuple[int, int]]) -> None:
    """kernel(b0, b1) for every slice."""
    global _pool
    helpers = min(get_num_threads(), len(slices)) - 1
    if helpers < 1:
        for b0, b1 in slices:
            kernel(b0, b1)
        return
    waiting = deque(slices)

    def work() -> None:
        while True:
            try:
                b0, b1 = waiting.popleft()
            except IndexError:
                return
            kernel(b0, b1)

    pool = _pool = _pool or ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fastrnn")
    futures = []
    try:
        with suppress(RuntimeError):
            for _ in range(helpers):
                futures.append(pool.submit(work))
        work()
    finally:  # Ctrl-C, too, leaves only when nobody writes any more
        waiting.clear()
        running = [future for future in futures if not future.cancel()]
        wait(running)
    for future in running:
        future.result()


_NO_BOOLS = np.zeros((1, 0), np.bool_)
_NO_FLOATS = {dtype: np.zeros((0, 0), dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}
_NO_INTEGERS = np.zeros(0, np.int64)


def _slices(rows: int, work: int) -> list[tuple[int, int]]:
    """At most 8 slices of whole fours, as the loops take rows; one slice where work is small."""
    size = -(-rows // 32) * 4 if work >= PARALLEL_WORK else rows
    return [(r, min(r + size, rows)) for r in range(0, rows, size or 1)]


# ---- Chunks of time steps


class _Span(NamedTuple):
    """Steps i0..i1 in the order of processing, which are the times t0..t1 and the data rows r0..r1."""

    i0: int
    i1: int
    t0: int
    t1: int
    r0: int
    r1: int


class _Plan:
    """How a problem is cut: by T, B, I, H and its options alone, so that the same call gives the same bits."""

    def __init__(self, x: Array, H: int, options: RnnOptions) -> None:
        I, sizes = x.shape[-1], options.batch_sizes
        self.packed = sizes is not None
        self.reverse = options.reverse
        self.first = _NO_INTEGERS
        if sizes is None:
            self.T, self.B = int(x.shape[0]), int(x.shape[1])
            self.lengths = np.full(self.B, self.T, np.int64) if options.lengths is None else options.lengths
        else:
            self.T, self.B = len(sizes), int(sizes[0]) if len(sizes) else 0
            self.first = np.concatenate([[0], np.cumsum(sizes)])
            self.lengths = np.searchsorted(-sizes, -np.arange(1, self.B + 1), side="right")
        self.ragged = options.lengths is not None
        T, B = self.T, max(self.B, 1)
        self.steps: int = max(1, min(T, -(-CHUNK_ROWS // B), CHUNK_WORK // (B * H * (H + I))))
        self.blas = B >= BLAS_ROWS and B * H * H >= BLAS_STEP
        self.slices = _slices(self.B, self.steps * B * H * H)

    def spans(self) -> list[_Span]:
        """The chunks in the order of processing."""
        T, found = self.T, []
        for i0 in range(0, T, self.steps):
            i1 = min(i0 + self.steps, T)
            t0, t1 = (T - i1, T - i0) if self.reverse else (i0, i1)
            found.append(_Span(i0, i1, t0, t1, self.row(t0), self.row(t1)))
        return found

    def row(self, t: int) -> int:
        return int(self.first[t]) if self.packed else t * self.B

    @property
    def chunk_rows(self) -> int:  # of the largest chunk
        return min(self.steps * self.B, self.row(self.T) if self.T else 0)

    def missing(self, span: _Span) -> Array:
        """(t1 - t0, B) bool: the steps beyond the rows' lengths."""
        return np.arange(span.t0, span.t1)[:, None] >= self.lengths


class _Rows:
    """An array (T, B, K), or packed (N, K), as C-contiguous rows (rows, K), staged chunk by chunk where it is not."""

    def __init__(self, array: Array, plan: _Plan, more_rows: int = 0, blank: bool = False) -> None:
        self.array, self.plan, self.blank, K = array, plan, blank, array.shape[-1]
        self.whole = array.reshape(-1, K) if array.flags.c_contiguous and array.size and not blank else None
        self.buffer = empty((plan.chunk_rows + more_rows if self.whole is None else 0, K), array.dtype)

    def read(self, span: _Span) -> Array:
        """The rows r0..r1; with `blank` zeros beyond the rows' lengths."""
        if self.whole is not None:
            return self.whole[span.r0 : span.r1]
        rows = self.room(span)
        if self.plan.packed:
            rows[...] = self.array[span.r0 : span.r1]
            return rows
        shaped = rows.reshape(span.t1 - span.t0, self.plan.B, rows.shape[1])
        shaped[...] = self.array[span.t0 : span.t1]
        if self.blank:
            shaped[self.plan.missing(span)] = 0
        return rows

    def room(self, span: _Span) -> Array:
        """Where the rows r0..r1 may be written; write() puts them into the array."""
        return self.buffer[: span.r1 - span.r0] if self.whole is None else self.whole[span.r0 : span.r1]

    def write(self, span: _Span) -> None:
        if self.whole is None:
            rows = self.room(span)
            if self.plan.packed:
                self.array[span.r0 : span.r1] = rows
            else:
                self.array[span.t0 : span.t1] = rows.reshape(span.t1 - span.t0, self.plan.B, rows.shape[1])


def _product(a: Array, w: Array, out: Array, blas: bool) -> None:
    """out = a @ w; w and out are C-contiguous, and a or its transpose."""
    if not blas:
        turned, multiply = not a.flags.c_contiguous, kernels(a.dtype).multiply
        left = a.T if turned else a
        _run(lambda r0, r1: multiply(left, w, out, r0, r1, 0, turned), _slices(len(a), len(a) * w.size))
        return
    rows = max(1, BLAS_WORK // max(1, w.size))  # between the pieces Ctrl-C is seen
    for r in range(0, len(a), rows):
        np.matmul(a[r : r + rows], w, out=out[r : r + rows])


class _Sum:
    """A sum of products over chunks, in float64."""

    def __init__(self, shape: tuple[int, int], dtype: Any) -> None:
        self.part, self.total = empty(shape, dtype), np.zeros(shape)

    def add(self, a: Array, b: Array, blas: bool) -> None:
        _product(a, b, self.part, blas)
        self.total += self.part

    def result(self) -> Array:
        return self.total.astype(self.part.dtype, copy=False)


def _transposed(w: Array) -> Array:
    """w.T, C-contiguous; copied in strips, which a cache holds."""
    rows, columns = w.shape
    strip = 64 if rows * w.itemsize <= 512 else 16
    result = empty((columns, rows), w.dtype)
    for r in range(0, rows, strip):
        result[:, r : r + strip] = w[r : r + strip].T
    return result


def _masks(options: RnnOptions, H: int, dtype: Any) -> tuple[Array, Array, Array]:
    """reset, recurrent_mask and keep_mask as the kernels take them."""
    reset, mask, keep = options.reset, options.recurrent_mask, options.keep_mask
    return (
        _NO_BOOLS[0] if reset is None else np.ascontiguousarray(reset).reshape(-1),
        _NO_FLOATS[dtype] if mask is None else np.ascontiguousarray(mask),
        _NO_BOOLS if keep is None else np.ascontiguousarray(keep).reshape(-1, H),
    )


def _states(h: Array | None, B: int, H: int, dtype: Any) -> Array:
    """A C-contiguous copy; zeros for None."""
    states = empty((B, H), dtype)
    states[...] = 0 if h is None else h
    return states


# ---- The functions of a backend


def pack_weights(w_ih: Array, w_hh: Array) -> tuple[Array, Array]:
    """Both transposed, as the forward kernel reads them."""
    return _transposed(w_ih), _transposed(w_hh)


def rnn_forward(
    x: Array,
    h_0: Array | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    options: RnnOptions,
    out: Array | None = None,
    packed: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """output (T, B, H), zero beyond a row's length, and h_n (B, H), each row's state after its own last step.

    Memory: the results, a transposed copy of w_hh, and a chunk of about 1024 rows of x and of out if not C-contiguous.
    """
    H, dtype = len(w_hh), x.dtype
    output = empty((*x.shape[:-1], H), dtype) if out is None else out
    plan = _Plan(x, H, options)
    T, B = plan.T, plan.B
    states = _states(h_0, B, H, dtype)
    reset, mask, keep = _masks(options, H, dtype)
    entering = _states(h_0, B, H, dtype) if reset.size or mask.size else states
    product = empty((B, H), dtype)
    bias = sum((b for b in (b_ih, b_hh) if b is not None), np.zeros(H, dtype))
    w = _transposed(w_ih) if packed is None else packed[0]
    if plan.blas:
        u = np.ascontiguousarray(w_hh).T
    else:
        u = _transposed(w_hh) if packed is None else packed[1]
    inputs, outputs = _Rows(x, plan), _Rows(output, plan)
    relu = options.nonlinearity == "relu"
    common = (states, entering, product, plan.first, plan.lengths, reset, mask, keep, relu, plan.reverse, T)
    kernel = kernels(dtype).forward
    with np.errstate(all="ignore"):
        for span in plan.spans() if B else ():
            z = outputs.room(span)
            _product(inputs.read(span), w, z, plan.blas)
            if plan.blas:
                none = u[:0]
                if span.i0 == 0:
                    kernel(z, bias, none, *common, span.r0, 0, B, -1, 0)
                for i in range(span.i0, span.i1):
                    _product(entering, u, product, True)
                    kernel(z, bias, none, *common, span.r0, 0, B, i, i + 1)
            else:

                def work(b0: int, b1: int, z: Array = z, span: _Span = span) -> None:
                    kernel(z, bias, u, *common, span.r0, b0, b1, span.i0, span.i1)

                _run(work, plan.slices)
            outputs.write(span)
    return output, states


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
    """Gradients by BPTT; d_x is exactly 0 beyond a row's length.

    Memory: the results, those of the weights in float64 too, and chunks of about 1024 rows of d_z, of the states, and
    of what is given and not C-contiguous; x is staged where lengths are given.
    """
    (H, I), dtype = w_ih.shape, x.dtype
    d_x = empty(x.shape, dtype) if "x" in needs else None
    plan = _Plan(x, H, options)
    T, B = plan.T, plan.B
    d_w_ih = _Sum((H, I), dtype) if "w_ih" in needs else None
    d_w_hh = _Sum((H, H), dtype) if "w_hh" in needs else None
    d_b = _Sum((1, H), dtype) if "b" in needs else None
    carry, first_states, product = _states(d_h_n, B, H, dtype), _states(h_0, B, H, dtype), empty((B, H), dtype)
    d_z = empty((plan.chunk_rows, H), dtype)
    entering = empty((plan.chunk_rows if d_w_hh else 0, H), dtype)
    inputs, tapes = _Rows(x, plan, blank=plan.ragged), _Rows(output, plan, more_rows=B)
    upstream, gradients = None if d_output is None else _Rows(d_output, plan), None if d_x is None else _Rows(d_x, plan)
    u, w = np.ascontiguousarray(w_hh), np.ascontiguousarray(w_ih)
    reset, mask, keep = _masks(options, H, dtype)
    relu = options.nonlinearity == "relu"
    common = (first_states, carry, product, plan.first, plan.lengths, reset, mask, keep, relu, plan.reverse, T)
    kernel = kernels(dtype).backward
    with np.errstate(all="ignore"):
        for span in reversed(plan.spans()) if B else ():
            t0, t1 = (span.t0, min(span.t1 + 1, T)) if plan.reverse else (max(span.t0 - 1, 0), span.t1)
            tape_span = span._replace(t0=t0, t1=t1, r0=plan.row(t0), r1=plan.row(t1))
            rows = span.r1 - span.r0
            arrays = (
                d_z,
                d_z[:0] if upstream is None else upstream.read(span),
                tapes.read(tape_span),
                tape_span.r0,
                entering,
            )
            if plan.blas:
                for i in range(span.i1 - 1, span.i0 - 1, -1):
                    kernel(*arrays, u[:0], *common, span.r0, 0, B, i, i + 1)
                    t = T - 1 - i if plan.reverse else i
                    here = slice(plan.row(t) - span.r0, plan.row(t + 1) - span.r0)
                    _product(d_z[here], u, product[: here.stop - here.start], True)
                if span.i0 == 0:
                    kernel(*arrays, u[:0], *common, span.r0, 0, B, -1, 0)
            else:

                def work(b0: int, b1: int, arrays: Any = arrays, span: _Span = span) -> None:
                    kernel(*arrays, u, *common, span.r0, b0, b1, span.i0, span.i1)

                _run(work, plan.slices)
            if d_x is not None and gradients is not None:
                _product(d_z[:rows], w, gradients.room(span), plan.blas)
                gradients.write(span)
                if plan.ragged:
                    d_x[span.t0 : span.t1][plan.missing(span)] = 0
            d_z_t = d_z[:rows].T
            if d_w_ih:
                d_w_ih.add(d_z_t, inputs.read(span), plan.blas)
            if d_w_hh:
                d_w_hh.add(d_z_t, entering[:rows], plan.blas)
            if d_b:
                for r in range(0, rows, 256):  # short chains of additions, for accuracy
                    block = d_z[r : min(r + 256, rows)]
                    d_b.add(np.ones((1, len(block)), dtype), block, False)
    return RnnGradients(
        d_x,
        carry if "h_0" in needs else None,
        d_w_ih.result() if d_w_ih else None,
        d_w_hh.result() if d_w_hh else None,
        d_b.result().reshape(H) if d_b else None,
    )
