"""What the gate judges: every way of every GPU backend, on guarded arrays; the kernels alone, in every storage type.

Inputs lie between NaNs and must not change, results between canaries, in memory full of NaN: a read or a write beyond
an array, an element that nobody wrote, and an input that somebody wrote are seen. The same code runs with NumPy in
place of CuPy, and with the kernels compiled for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from helpers.cases import NEEDS, Problem
from helpers.kernels import Gradients
from helpers.recurrence import STORAGE, RecurrenceKernel

from fastrnn._backends import cupy_plan, cupy_steps
from fastrnn._backends.cuda_call import Call
from fastrnn._backends.options import RnnOptions

GUARD = 64  # elements on either side of an array
CANARY = 12345.0
ARRAYS = ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "d_output", "d_h_n")


class GuardError(AssertionError):
    """Memory that a call must not touch has changed."""


class Subject:
    """One way to compute, as helpers.checks takes kernels; xp is CuPy or NumPy."""

    isa, is_native, tanh_ulps = None, False, 2.0

    def __init__(
        self, name: str, xp: Any, forward: Any, backward: Any, context: Callable[[], Any] = nullcontext
    ) -> None:
        self.name = self.backend = name
        self.xp, self._forward, self._backward, self._context = xp, forward, backward, context

    def fetch(self, array: Any) -> Any:
        """On the host, bit for bit."""
        return array.get() if hasattr(array, "get") else np.array(array)

    def _guarded(self, array: Any) -> tuple[Any, Any]:
        """The array with its strides in the middle of NaNs, and the whole of that memory."""
        if array is None:
            return None, None
        order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
        packed = np.ascontiguousarray(array.transpose(order))
        whole = np.full(packed.size + 2 * GUARD, np.nan, array.dtype)
        whole[GUARD : GUARD + packed.size] = packed.reshape(-1)
        whole = self.xp.asarray(whole)
        view = whole[GUARD : GUARD + packed.size].reshape(packed.shape)
        return view.transpose([order.index(axis) for axis in range(array.ndim)]), whole

    def _options(self, p: Problem) -> RnnOptions:
        given = p.options()
        for name in ("reset", "recurrent_mask", "keep_mask"):
            if given[name] is not None:
                given[name] = self.xp.asarray(given[name])
        return RnnOptions(**given)

    def _call(self, p: Problem, function: Any) -> Any:
        pairs = {name: self._guarded(getattr(p, name)) for name in ARRAYS}
        before = {name: self.fetch(whole) for name, (_, whole) in pairs.items() if whole is not None}
        with self._context():
            result = function({name: view for name, (view, _) in pairs.items()}, self._options(p))
        for name, bits in before.items():
            if self.fetch(pairs[name][1]).tobytes() != bits.tobytes():
                raise GuardError(f"{self.name}: {name}, or what lies beside it, has changed")
        return result

    def forward(self, p: Problem) -> Any:
        """output, h_n on the host."""
        size = int(np.prod(p.output_shape))
        whole = np.full(size + 2 * GUARD, CANARY, p.w_hh.dtype)
        whole[GUARD : GUARD + size] = np.nan
        whole = self.xp.asarray(whole)
        out = whole[GUARD : GUARD + size].reshape(p.output_shape)

        def run(a: dict[str, Any], options: RnnOptions) -> Any:
            return self._forward(*(a[n] for n in ARRAYS[:6]), options, out)

        output, h_n = map(self.fetch, self._call(p, run))
        edges = self.fetch(whole)
        if not ((edges[:GUARD] == CANARY).all() and (edges[GUARD + size :] == CANARY).all()):
            raise GuardError(f"{self.name}: what lies beside output has changed")
        return output, h_n

    def backward(self, p: Problem, output: Any, needs: tuple[str, ...] = NEEDS) -> Gradients:
        """The gradients on the host."""
        tape, whole = self._guarded(output)

        def run(a: dict[str, Any], options: RnnOptions) -> Any:
            return self._backward(a["d_output"], a["d_h_n"], tape, *(a[n] for n in ARRAYS[:4]), options, needs)

        before = self.fetch(whole)
        found = self._call(p, run)
        if self.fetch(whole).tobytes() != before.tobytes():
            raise GuardError(f"{self.name}: output has changed in backward")
        return Gradients(*(None if d is None else self.fetch(d) for d in found))


def cupy_subject(device: Any, choice: cupy_plan.Choice) -> Subject:
    """A way of the `cupy` backend, on a cupy_steps.Device."""

    def forward(*given: Any) -> Any:
        return cupy_steps.rnn_forward(device, *given, choice)

    def backward(*given: Any) -> Any:
        return cupy_steps.rnn_backward(device, *given, choice)

    it = choice.sizes
    name = "cupy:steps" if it is None else f"cupy:{choice.way}-{it.HP}/{it.UNITS}x{it.ROWS}"
    return Subject(name, device.xp, forward, backward)


def cupy_subjects(device: Any, H: int, B: int, itemsize: int) -> Iterator[Subject]:
    """Every way of the `cupy` backend that can run the layer: each kind of block and every number of rows."""
    yield cupy_subject(device, cupy_plan.Choice("steps"))
    for choice in cupy_plan.candidates(H, B, itemsize, device.limits):
        yield cupy_subject(device, choice)


def _with_clusters(kernels: Any) -> Iterator[tuple[str, int]]:
    for name in kernels:
        yield from ((name, cluster) for cluster in ((2, 4, 8, 16) if "cluster" in name else (1,)))


def native_subjects(module: Any, xp: Any) -> Iterator[Subject]:
    """Every kernel of the `cuda` backend that computes in float32 or float64, over clusters of each size."""
    for name, cluster in _with_clusters(module.native.kernels):
        if not name.startswith("mma"):  # judged alone, by their own products' errors

            def context(name: str = name, cluster: int = cluster) -> AbstractContextManager[None]:
                forced: AbstractContextManager[None] = module.forced_kernel(name, cluster)
                return forced

            yield Subject(f"cuda:{name}/{cluster}", xp, module.rnn_forward, module.rnn_backward, context)


class NativeKernel(RecurrenceKernel):
    """A kernel of the native module alone, on device 0 and CuPy's current stream."""

    def __init__(self, native: Any, xp: Any, name: str, cluster: int) -> None:
        self.native, self.xp, self.name, self.cluster = native, xp, name, cluster

    def run(self, call: Call, backward: bool) -> None:
        count = self.native.workspace_bytes(self.name, call.table)
        if count:
            call.arrays.append(self.xp.full(count, 255, self.xp.uint8))
            call.set(workspace=call.arrays[-1].data.ptr)
        stream = self.xp.cuda.get_current_stream().ptr
        self.native.launch(self.name, self.cluster, call.table, backward, 0, stream)


class Recurrence(NamedTuple):
    """A kernel and the storage type that it is judged in."""

    name: str
    kernel: Any
    kernel_name: str
    storage: str


def recurrences(kernels: Any, make: Callable[[str, int], Any]) -> Iterator[Recurrence]:
    """Every kernel in every 16-bit type that it takes, those of tensor cores in float32 too; make(name, cluster)."""
    for name, cluster in _with_clusters(kernels):
        mma = name.startswith("mma")
        for storage in (STORAGE[name.rpartition("_")[2]],) if mma else ("float16", "bfloat16"):
            yield Recurrence(f"recurrence:{name}/{cluster} {storage}", make(name, cluster), name, storage)
