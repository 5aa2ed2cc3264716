"""The `cupy` backend: CuPy's products and the kernels of csrc/cuda/nvrtc, compiled by NVRTC on first use.

Everything runs on CuPy's current stream, on the device of x, and nothing waits for it. The first call for a hidden size
compiles (seconds; CuPy keeps the result on disk). cuBLAS, and so this backend, cannot be captured in a CUDA graph.

Numerics: the recurrence adds in a fixed order, the same call gives the same bits where the products of cuBLAS do. TF32
only where CUPY_TF32=1 asks CuPy for it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from . import cupy_plan, cupy_steps
from .options import NEEDS, Array, RnnGradients, RnnOptions

_REALS = {4: "float", 8: "double"}


def _require_device() -> None:
    """Raises ImportError where no GPU can be used; makes no CUDA context."""
    try:
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return
        reason = "no CUDA device is visible"
    except RuntimeError as error:  # CUDARuntimeError: no driver, an old one, no device
        reason = str(error)
    raise ImportError(f"no CUDA device: {reason}")


_require_device()


def sources() -> Path:
    """The folder of the kernels: inside an installed package, or the repository's."""
    installed = Path(__file__).with_name("nvrtc")
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "nvrtc"


def source(persistent: bool) -> str:
    """One text for NVRTC, which then needs no path to headers."""
    names = ("device.cuh", "rnn_steps.cuh", "rnn_persistent.cuh" if persistent else "sum_segments.cuh")
    text = "\n".join((sources() / name).read_text(encoding="utf-8") for name in names)
    return text.replace("#pragma once", "").replace('#include "rnn_steps.cuh"', "")


class CupyDevice:
    """A device, for cupy_steps; options: more of NVRTC's."""

    xp = cupy

    def __init__(self, number: int, options: tuple[str, ...] = ()) -> None:
        self.options = options
        get, runtime = cupy.cuda.runtime.deviceGetAttribute, cupy.cuda.runtime
        self.limits = cupy_plan.Limits(
            get(runtime.cudaDevAttrMultiProcessorCount, number),
            get(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, number),
            bool(get(runtime.cudaDevAttrCooperativeLaunch, number)),
        )
        self._kernels: dict[tuple[str, int, cupy_plan.Sizes | None], Any] = {}
        self._compiling = threading.Lock()

    def launch(
        self,
        name: str,
        dtype: np.dtype[Any],
        sizes: cupy_plan.Sizes | None,
        blocks: int,
        arguments: tuple[Any, ...],
    ) -> None:
        """As cupy_steps.Device.launch, on CuPy's current stream."""
        key = (name, dtype.itemsize, sizes)
        kernel = self._kernels.get(key)
        if kernel is None:
            with self._compiling:
                kernel = self._kernels.setdefault(key, self._compile(*key))
        shared = 0 if sizes is None else sizes.shared_bytes
        kernel((blocks,), (cupy_plan.THREADS,), arguments, shared_mem=shared)

    def _compile(self, name: str, itemsize: int, sizes: cupy_plan.Sizes | None) -> Any:
        macros = () if sizes is None else sizes.macros()
        together = sizes is not None and sizes.group > 1
        module = cupy.RawModule(
            code=source(sizes is not None),
            options=("-std=c++17", f"-DREAL={_REALS[itemsize]}", *macros, *self.options),
            enable_cooperative_groups=together,
        )
        kernel = module.get_function(name)
        if sizes is not None:
            kernel.max_dynamic_shared_size_bytes = sizes.shared_bytes
        if sizes is not None and together:
            # CuPy would make a grid that is too large smaller without a word of it.
            occupancy = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
            if occupancy(kernel.kernel.ptr, cupy_plan.THREADS, sizes.shared_bytes) < 1:
                raise RuntimeError(f"{name}: expected room for one block on each multiprocessor, got none for {sizes}")
        return kernel


@cache
def _device(number: int) -> CupyDevice:
    return CupyDevice(number)


# ---- For tensors of another library


@contextmanager
def on_stream(number: int, stream: int) -> Iterator[None]:
    """Inside it CuPy works on this device and on this stream of it, a handle of CUDA's."""
    with cupy.cuda.Device(number), cupy.cuda.ExternalStream(stream, number):
        yield


def from_tensor(tensor: Any) -> Any:
    """The tensor's memory as an array, by DLPack."""
    return cupy.from_dlpack(tensor)


# ---- The functions of a backend


def pack_weights(w_ih: Array, w_hh: Array) -> None:
    """cuBLAS and the kernels read the weights as they are."""


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
    """output (T, B, H), zero beyond a row's length, and h_n (B, H), each row's state after its own last step.

    Raises ValueError for alpha, which these kernels do not have. Memory: the results; copies of what is not
    C-contiguous; with some options three arrays (B, H).
    """
    with x.device:  # type: ignore[attr-defined]
        device = _device(x.device.id)  # type: ignore[attr-defined]
        return cupy_steps.rnn_forward(device, x, h_0, w_ih, w_hh, b_ih, b_hh, options, out)


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
    b_ih: Array | None = None,
    b_hh: Array | None = None,
) -> RnnGradients:
    """Gradients by BPTT; d_x is exactly 0 beyond a row's length.

    Memory: the results, d_z (T, B, H), copies of output and x if not C-contiguous; x once more where lengths are given,
    and (T, B, H) once more with any option but reverse.
    """
    with x.device:  # type: ignore[attr-defined]
        device = _device(x.device.id)  # type: ignore[attr-defined]
        return cupy_steps.rnn_backward(device, d_output, d_h_n, output, x, h_0, w_ih, w_hh, options, needs)


# ---- For training


def sum_segments(rows: Array, order: Array, first: Array) -> Array:
    """As _gathered.sum_segments, to the bits of C++: one thread for each sum. cupy.add.reduceat promises no order."""
    with rows.device:  # type: ignore[attr-defined]
        (_, E), S = rows.shape, len(first) - 1
        sums: Array = cupy.empty((S, E), rows.dtype)
        given = (sums, *map(cupy.ascontiguousarray, (rows, order, first)), np.int64(S), np.int64(E))
        if sums.size:
            device = _device(rows.device.id)  # type: ignore[attr-defined]
            device.launch("sum_segments", rows.dtype, None, -(-sums.size // cupy_plan.THREADS), given)
        return sums
