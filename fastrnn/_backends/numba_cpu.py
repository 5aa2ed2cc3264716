"""The `numba` backend: kernels compiled by Numba on first use, for installations without the native module.

Everything is compiled loops (numba_kernels.py). A chunk of time steps, and most calls are one, is one call of them;
where it is large, its parts are, over slices of rows on a pool of Python threads. Only what is too short for its large
weights to be transposed (2^13 T B <= H (H + I), 2^17 <= H (H + I)) and, without AVX-512, many rows of a wide layer
(B >= 8 and B H H >= 2^20) are multiplied by NumPy's BLAS, on its own threads: there a fork in the middle of another
thread's call may hang the child, as it may in any program that uses NumPy. Only h is kept for BPTT. Between chunks
Ctrl-C is seen.

Numerics: the same call gives the same bits on the same machine, whatever set_num_threads says: slices, chunks and the
choice between loops and BLAS follow from the sizes alone. tanh is within 2 ULP, odd, at most 1. Weight gradients are
summed in the arrays' dtype inside a chunk of about 1024 rows, over the chunks in float64.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

import numpy as np

from .._threads import get_num_threads
from .numba_compile import kernels
from .numba_kernels import Options
from .numba_products import VECTOR
from .options import NEEDS, Array, RnnGradients, RnnOptions, WeightSums, empty

CHUNK_ROWS = 1024  # data rows of one chunk of time steps
CHUNK_WORK = 150_000_000  # multiply-adds of one chunk: some 10 ms, so that Ctrl-C is seen in time
BLAS_WORK = 500_000_000  # of one BLAS call: its threads meet at the end of each, dear where they get no core
PARALLEL_WORK = 2_000_000  # multiply-adds that pay for waking threads
# From so many rows and multiply-adds of a step on NumPy's BLAS is as fast as loops over vectors of 32 bytes, or faster;
# those over vectors of 64 take down to half its time.
BLAS_ROWS = 8
BLAS_STEP = 1 << 20 if VECTOR == 32 else inf
# The same where the weights hold so many elements for each row: transposing them takes longer than the loops save.
WEIGHTS_PER_ROW = 1 << 13
BLAS_WEIGHTS = 1 << 17  # where they are fewer, a call of BLAS costs more than it saves
KEPT_PLANS = 1000
KEPT_SPANS = 8  # of a plan: of more, making them takes no time beside the work
DOT_ROWS = 64  # data rows up to which the loops take the weights as they are


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
    holder = [kernel]  # emptied at the end: the pool keeps work that was cancelled until a thread comes by

    def work() -> None:
        while True:
            try:
                b0, b1 = waiting.popleft()
            except IndexError:
                return
            holder[0](b0, b1)

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
        holder.clear()
    for future in running:
        future.result()


_NO_INTEGERS = np.zeros(0, np.int64)
FLOAT64 = np.dtype(np.float64)
_NO_FLOATS = {dtype: np.zeros(0, dtype) for dtype in (np.dtype(np.float32), FLOAT64)}
_NO_ROWS = {dtype: none.reshape(0, 0) for dtype, none in _NO_FLOATS.items()}
_NO_BOOLS = np.zeros((1, 0), np.bool_)


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

    def __init__(self, shape: tuple[int, ...], I: int, H: int, options: RnnOptions) -> None:
        sizes, lengths = options.batch_sizes, options.lengths
        self.packed, self.ragged, self.reverse = sizes is not None, lengths is not None, options.reverse
        self.first = _NO_INTEGERS
        self.lengths = _NO_INTEGERS if lengths is None else lengths
        if sizes is None:
            self.T, self.B, _ = shape
            self.N = self.T * self.B
        else:
            self.T, self.B, self.N = len(sizes), int(sizes[0]) if len(sizes) else 0, shape[0]
            self.first = np.concatenate([[0], np.cumsum(sizes)])
            self.lengths = np.searchsorted(-sizes, -np.arange(1, self.B + 1), side="right")
        T, B, weights = self.T, max(self.B, 1), H * (H + I)
        steps: int = max(1, min(T, -(-CHUNK_ROWS // B), CHUNK_WORK // (B * weights)))
        self.chunk_rows = min(steps * B, self.N)  # of the largest chunk
        few = weights >= BLAS_WEIGHTS and weights >= self.N * WEIGHTS_PER_ROW
        self.blas = few or (B >= BLAS_ROWS and B * H * H >= BLAS_STEP)
        self.small = steps * B * H * max(H, I) < PARALLEL_WORK and not self.blas
        self.dots = self.small and self.N <= DOT_ROWS
        self.slices = _slices(self.B, steps * B * H * H)  # of the batch, for the recurrence
        self.steps, self.starts = (
            steps,
            range(0, T if self.B else 0, steps),
        )  # of the chunks, in the order of processing
        self._kept = [self._spans(i0) for i0 in self.starts] if len(self.starts) <= KEPT_SPANS else None
        self.output_shape = (*shape[:-1], H)
        self.x_rows, self.output_rows = (self.N, shape[-1]), (self.N, H)
        self.all_rows, self.first_steps, self.all_steps = (0, self.B), (-1, T), (0, T)
        self.short = self.small and len(self.starts) == 1  # one chunk, and one call of compiled code for all of it
        self.plain: dict[tuple[Any, str], Options] = {}  # by dtype and activation, for calls without other options

    def whole(self) -> bool:
        """One call of compiled code computes all of a chunk: with the same bits as in parts, which threads share."""
        return self.small or (get_num_threads() == 1 and not self.blas)

    def spans(self, backward: bool = False) -> Iterable[tuple[_Span, _Span]]:
        """Each chunk, and the same with the step before it."""
        if self._kept is not None:
            return reversed(self._kept) if backward else self._kept
        return map(self._spans, reversed(self.starts) if backward else self.starts)

    def _spans(self, i0: int) -> tuple[_Span, _Span]:
        i1 = min(i0 + self.steps, self.T)
        return self._span(i0, i1), self._span(max(i0 - 1, 0), i1)

    def _span(self, i0: int, i1: int) -> _Span:
        t0, t1 = (self.T - i1, self.T - i0) if self.reverse else (i0, i1)
        return _Span(i0, i1, t0, t1, self.row(t0), self.row(t1))

    def row(self, t: int) -> int:
        return int(self.first[t]) if self.packed else t * self.B

    def missing(self, span: _Span) -> Array:
        """(t1 - t0, B) bool: the steps beyond the rows' lengths."""
        return np.arange(span.t0, span.t1)[:, None] >= self.lengths


_plans: dict[tuple[tuple[int, ...], int, int, bool], _Plan] = {}  # what short calls would spend much of their time on


def _plan(x: Array, I: int, H: int, options: RnnOptions) -> _Plan:
    """I: of the product that w_ih has; 0 where x is projected already."""
    if options.lengths is not None or options.batch_sizes is not None:
        return _Plan(x.shape, I, H, options)
    key = (x.shape, I, H, options.reverse)
    found = _plans.get(key)
    if found is None:
        if len(_plans) >= KEPT_PLANS:
            _plans.clear()
        found = _plans[key] = _Plan(x.shape, I, H, options)
    return found


def _are_rows(x: Array, output: Array, d_output: Array | None = None) -> bool:
    """All can be taken as rows (N, K) without a copy."""
    both = x.flags.c_contiguous and output.flags.c_contiguous
    return both and (d_output is None or d_output.flags.c_contiguous)


class _Staged:
    """An array (T, B, K), or packed (N, K), that is no C-contiguous rows: copied chunk by chunk."""

    def __init__(self, array: Array, plan: _Plan, more_rows: int, blank: bool) -> None:
        self.array, self.plan, self.blank = array, plan, blank
        self.buffer = empty((plan.chunk_rows + more_rows, array.shape[-1]), array.dtype)

    def read(self, span: _Span) -> Array:
        rows = self.buffer[: span.r1 - span.r0]
        if self.plan.packed:
            rows[...] = self.array[span.r0 : span.r1]
            return rows
        shaped = rows.reshape(span.t1 - span.t0, self.plan.B, rows.shape[1])
        shaped[...] = self.array[span.t0 : span.t1]
        if self.blank:
            shaped[self.plan.missing(span)] = 0
        return rows

    def write(self, span: _Span) -> None:
        rows = self.buffer[: span.r1 - span.r0]
        if self.plan.packed:
            self.array[span.r0 : span.r1] = rows
        else:
            self.array[span.t0 : span.t1] = rows.reshape(span.t1 - span.t0, self.plan.B, rows.shape[1])


def _rows(array: Array, plan: _Plan, more_rows: int = 0, blank: bool = False) -> Array | _Staged:
    """array as C-contiguous rows (N, K), or what copies them; with `blank` zeros beyond the rows' lengths."""
    if array.flags.c_contiguous and not blank:
        return array.reshape(plan.N, array.shape[-1])
    return _Staged(array, plan, more_rows, blank)


def _read(rows: Array | _Staged, span: _Span) -> Array:
    """The rows r0..r1."""
    if isinstance(rows, _Staged):
        return rows.read(span)
    return rows if span.r1 - span.r0 == len(rows) else rows[span.r0 : span.r1]


def _room(rows: Array | _Staged, span: _Span) -> Array:
    """Where the rows r0..r1 may be written; write() puts staged ones into their array."""
    if isinstance(rows, _Staged):
        return rows.buffer[: span.r1 - span.r0]
    return rows if span.r1 - span.r0 == len(rows) else rows[span.r0 : span.r1]


def _product(a: Array, w: Array, out: Array, blas: bool) -> None:
    """out = a @ w; out is C-contiguous, and a or its transpose; w is, too, but for BLAS its transpose will do."""
    if not blas:
        turned, multiply = not a.flags.c_contiguous, kernels(a.dtype).multiply
        left = a.T if turned else a
        _run(lambda r0, r1: multiply(left, w, out, r0, r1, 0, turned), _slices(len(a), len(a) * w.size))
        return
    rows = max(1, BLAS_WORK // max(1, w.size))  # between the pieces Ctrl-C is seen
    for r in range(0, len(a), rows):
        np.matmul(a[r : r + rows], w, out=out[r : r + rows])


def _options(options: RnnOptions, plan: _Plan, H: int, dtype: Any) -> Options:
    """The options as the kernels take them."""
    if not options.plain:
        return _all_options(options, plan, H, dtype)
    key = dtype, options.nonlinearity
    found = plan.plain.get(key)
    if found is None:
        found = plan.plain[key] = _all_options(options, plan, H, dtype)
    return found


def _all_options(options: RnnOptions, plan: _Plan, H: int, dtype: Any) -> Options:
    reset, mask, keep, alpha = options.reset, options.recurrent_mask, options.keep_mask, options.alpha
    return (
        plan.first,
        plan.lengths,
        _NO_BOOLS[0] if reset is None else np.ascontiguousarray(reset).reshape(-1),
        _NO_ROWS[dtype] if mask is None else np.ascontiguousarray(mask),
        _NO_BOOLS if keep is None else np.ascontiguousarray(keep).reshape(-1, H),
        _NO_FLOATS[dtype] if alpha is None else np.ascontiguousarray(alpha),
        options.nonlinearity == "relu",
        plan.reverse,
        plan.T,
    )


def _bias(b: Array | None, dtype: Any) -> Array:
    return _NO_FLOATS[dtype] if b is None else np.ascontiguousarray(b)


def _states(h: Array | None, B: int, H: int, dtype: Any) -> Array:
    """A C-contiguous copy; zeros for None."""
    return np.zeros((B, H), dtype) if h is None else h.copy()


class _Again:
    """The activations of a chunk's rows from x and the tape: h_t and h_{t-1} give them only to 1 / alpha digits."""

    def __init__(
        self, plan: _Plan, projected: bool, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None,
        options: RnnOptions,
    ) -> None:  # fmt: skip
        self.plan, self.projected, self.relu = plan, projected, options.nonlinearity == "relu"
        self.w, self.u = pack_weights(w_ih, w_hh)
        with np.errstate(all="ignore"):
            self.bias = sum((b for b in (b_ih, b_hh) if b is not None), np.zeros(len(w_hh), w_hh.dtype))

    def __call__(
        self, span: _Span, x: Array, chunk: Array, tape: Array, tape_base: int, h_0: Array, given: Options
    ) -> None:
        """Into chunk[2]; chunk[1] becomes what w_hh multiplied, chunk[3] is overwritten."""
        plan, kernel, n = self.plan, kernels(chunk.dtype), len(x)
        entering, z, added = chunk[1, :n], chunk[2, :n], chunk[3, :n]
        state, steps = (tape, tape_base, h_0, given, span.r0), (span.i0, span.i1)
        _run(lambda b0, b1: kernel.enter_again(entering, *state, (b0, b1), steps), plan.slices)
        with np.errstate(all="ignore"):
            if self.projected:
                z[...] = x
            else:
                _product(x, self.w, z, plan.blas)
            _product(entering, self.u, added, plan.blas)
        _run(lambda r0, r1: kernel.activate(z, self.bias, added, self.relu, r0, r1), _slices(n, 16 * z.size))


# ---- A large chunk, in parts


def _forward_parts(
    plan: _Plan, span: _Span, rows: Array | None, z: Array, w: Array, u: Array,
    b_ih: Array, b_hh: Array, states: Array, work: Array, options: Options,
) -> None:  # fmt: skip
    kernel, B, steps = kernels(z.dtype).forward, plan.B, (span.i0, span.i1)
    given = (z[:0], z, w, u[:0] if plan.blas else u, b_ih, b_hh, states, work, options, span.r0)
    if span.i0 == 0:
        kernel(*given, (0, B), (-1, 0), False)
    if not plan.blas:
        if rows is not None:
            _product(rows, w, z, False)
        _run(lambda b0, b1: kernel(*given, (b0, b1), steps, False), plan.slices)
        return
    entering, product = states if len(work) == B + 1 else work[B + 1 :], work[:B]
    with np.errstate(all="ignore"):
        if rows is not None:
            _product(rows, w.T, z, True)
        for i in range(*steps):
            _product(entering, u.T, product, True)
            kernel(*given, (0, B), (i, i + 1), False)


def _backward_parts(
    plan: _Plan, span: _Span, chunk: Array, product: Array, rows: Array, w: Array, u: Array, upper: Any, lower: Any
) -> None:
    compiled, B, steps = kernels(chunk.dtype), plan.B, (span.i0, span.i1)
    kernel, arrays = compiled.backward, (chunk, product, *upper, rows[:0], w, u[:0] if plan.blas else u, *lower)
    if not plan.blas:
        _run(lambda b0, b1: kernel(*arrays, (b0, b1), steps), plan.slices)
    else:
        with np.errstate(all="ignore"):
            for i in reversed(range(*steps)):
                kernel(*arrays, (0, B), (i, i + 1))
                t = plan.T - 1 - i if plan.reverse else i
                here = slice(plan.row(t) - span.r0, plan.row(t + 1) - span.r0)
                _product(chunk[0, here], u, product[: here.stop - here.start], True)
        if span.i0 == 0:
            kernel(*arrays, (0, B), (-1, 0))
    d_z, entering = chunk[0, : len(rows)], chunk[min(1, len(chunk) - 1), : len(rows)]
    d_x, d_w_ih, d_w_hh, d_b, b_sum = lower[2:7]
    with np.errstate(all="ignore"):
        for a, b, d in ((d_z, w, d_x), (d_z.T, rows, d_w_ih), (d_z.T, entering, d_w_hh)):
            if d.size:
                _product(a, b, d, plan.blas)
    if d_b.size:
        compiled.add_rows(d_z, len(d_z), b_sum, d_b)


# ---- The functions of a backend


def pack_weights(w_ih: Array, w_hh: Array) -> tuple[Array, Array]:
    """Both transposed, as the forward kernel reads them."""
    w, u = empty(w_ih.shape[::-1], w_ih.dtype), empty(w_hh.shape, w_hh.dtype)
    kernels(w.dtype).pack(np.ascontiguousarray(w_ih), np.ascontiguousarray(w_hh), w, u)
    return w, u


def rnn_forward(
    x: Array,
    h_0: Array | None,
    w_ih: Array | None,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    options: RnnOptions,
    out: Array | None = None,
    packed: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """output (T, B, H), zero beyond a row's length, and h_n (B, H), each row's state after its own last step.

    Memory: the results, the weights transposed, and a chunk of about 1024 rows of x and of out if not C-contiguous.
    """
    H, dtype = len(w_hh), x.dtype
    projected, w_ih = w_ih is None, _NO_ROWS[dtype] if w_ih is None else w_ih
    plan = _plan(x, w_ih.shape[1], H, options)
    output = empty(plan.output_shape, dtype) if out is None else out
    B = plan.B
    states = _states(h_0, B, H, dtype)
    masked = not options.plain and (options.reset is not None or options.recurrent_mask is not None)
    work = empty((2 * B + 1 if masked else B + 1, H), dtype)
    if plan.dots or plan.blas:
        w, u = np.ascontiguousarray(w_ih), np.ascontiguousarray(w_hh)
    else:
        w, u = pack_weights(w_ih, w_hh) if packed is None else packed
    common = (_bias(b_ih, dtype), _bias(b_hh, dtype), states, work, _options(options, plan, H, dtype))
    kernel = kernels(dtype).forward
    if plan.short and not projected and _are_rows(x, output):
        rows, z = x.reshape(plan.x_rows), output.reshape(plan.output_rows)
        kernel(rows, z, w, u, *common, 0, plan.all_rows, plan.first_steps, plan.dots)
        return output, states
    inputs, outputs, whole = _rows(x, plan), _rows(output, plan), plan.whole()
    for span, _ in plan.spans():
        rows, z = _read(inputs, span), _room(outputs, span)
        if projected:
            z[...], rows = rows, z[:0]
        if whole:
            kernel(rows, z, w, u, *common, span.r0, (0, B), (span.i0 or -1, span.i1), plan.dots)
        else:
            _forward_parts(plan, span, None if projected else rows, z, w, u, *common)
        if isinstance(outputs, _Staged):
            outputs.write(span)
    return output, states


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

    Memory: the results, those of the weights in float64 too if there are several chunks, and chunks of about 1024 rows
    of d_z, of the states, and of what is given and not C-contiguous; x is staged where lengths are given. With alpha
    the activations are computed again, chunk by chunk: three more such chunks, and the weights transposed.
    """
    H, dtype = len(w_hh), x.dtype
    projected, w_ih = w_ih is None, _NO_ROWS[dtype] if w_ih is None else w_ih
    plan = _plan(x, w_ih.shape[1], H, options)
    B = plan.B
    no_rows, no_sum, leaky = _NO_ROWS[dtype], _NO_FLOATS[FLOAT64], options.alpha is not None
    d_x = empty(x.shape, dtype) if "x" in needs else None
    d_w_ih = empty(w_ih.shape, dtype) if not projected and "w_ih" in needs else None
    d_w_hh = empty((H, H), dtype) if "w_hh" in needs else None
    d_b, b_sum = (np.zeros(H, dtype), np.zeros(H)) if "b" in needs else (None, no_sum)
    d_alpha, alpha_sum = (np.zeros(H, dtype), np.zeros(H)) if leaky and "alpha" in needs else (None, no_sum)
    carry, product = _states(d_h_n, B, H, dtype), empty((B, H), dtype)
    first_states = np.zeros((B, H), dtype) if h_0 is None else np.ascontiguousarray(h_0)
    chunk = empty((4 if leaky else 1 if d_w_hh is None else 2, plan.chunk_rows, H), dtype)
    w, u = np.ascontiguousarray(w_ih), np.ascontiguousarray(w_hh)
    given = _options(options, plan, H, dtype)
    compiled = kernels(dtype)
    d_x_rows = no_rows if d_x is None else d_x.reshape(plan.x_rows)
    parts = (no_rows if d_w_ih is None else d_w_ih, no_rows if d_w_hh is None else d_w_hh, _bias(d_b, dtype), b_sum)
    if plan.short and options.plain and not projected and _are_rows(x, output, d_output):
        d_output_rows = no_rows if d_output is None else d_output.reshape(plan.output_rows)
        compiled.backward(
            chunk, product, d_output_rows, output.reshape(plan.output_rows), 0, x.reshape(plan.x_rows), w, u,
            first_states, carry, d_x_rows, *parts, given, 0, plan.all_rows, plan.all_steps,
        )  # fmt: skip
        result = RnnGradients(d_x, carry if "h_0" in needs else None, d_w_ih, d_w_hh, d_b)
        return result if sums is None else sums.take(result)
    # Of one chunk they are the products themselves, of several summed in float64.
    d_weights = [d for d in (d_w_ih, d_w_hh) if d is not None]
    totals = [] if len(plan.starts) == 1 else [np.zeros(d.shape) for d in d_weights]
    again = _Again(plan, projected, w_ih, w_hh, b_ih, b_hh, options) if leaky else None
    inputs, tapes = _rows(x, plan, blank=plan.ragged), _rows(output, plan, more_rows=B)
    upstream = None if d_output is None else _rows(d_output, plan)
    d_products = no_rows if projected else d_x_rows  # what the kernel multiplies for
    whole = plan.whole()
    for span, behind in plan.spans(backward=True):
        rows, tape = _read(inputs, span), (_read(tapes, behind), behind.r0)
        d_rows = no_rows if upstream is None else _read(upstream, span)
        if again is not None:
            again(span, rows, chunk, *tape, first_states, given)
        upper, lower = (d_rows, *tape), (first_states, carry, d_products[span.r0 : span.r1], *parts, given, span.r0)
        if whole:
            compiled.backward(chunk, product, *upper, rows, w, u, *lower, (0, B), (span.i0, span.i1))
        else:
            _backward_parts(plan, span, chunk, product, rows, w, u, upper, lower)
        if projected and d_x is not None:
            d_x_rows[span.r0 : span.r1] = chunk[0, : len(rows)]
        if d_alpha is not None:
            compiled.add_rows(chunk[3], len(rows), alpha_sum, d_alpha)
        if d_x is not None and plan.ragged:
            d_x[span.t0 : span.t1][plan.missing(span)] = 0
        if totals:
            with np.errstate(all="ignore"):
                for d_w, total in zip(d_weights, totals, strict=True):
                    total += d_w
    if totals:
        with np.errstate(all="ignore"):
            for d_w, total in zip(d_weights, totals, strict=True):
                d_w[...] = total
    result = RnnGradients(d_x, carry if "h_0" in needs else None, d_w_ih, d_w_hh, d_b)
    if d_alpha is not None:
        result.d_alpha = d_alpha
    return result if sums is None else sums.take(result)
