"""The machine's limits, measured by the native module, and what they mean for a shape."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from .shapes import Shape

PROBE = 10e-3  # seconds
GRANULE = 4096  # bytes that a thread reads at least
SIZES = {"16 KiB": 16 << 10, "256 KiB": 256 << 10, "1 MiB": 1 << 20, "8 MiB": 8 << 20, "128 MiB": 128 << 20}


def native() -> Any:
    """The native module, or None."""
    try:
        return import_module("fastrnn._fastrnn_cpu")
    except ImportError:
        return None


def isa() -> str | None:
    """The instruction set of `cpp`; None without the native module."""
    module = native()
    return module.active_isa() if module else None


def fma_peak(dtype: str, threads: int, seconds: float = PROBE) -> float | None:
    """GFLOP/s of all threads together, with the instruction set of `cpp`; None without the native module."""
    module = native()
    return module.fma_peak(dtype, threads, seconds) if module else None


def read_bandwidth(size: int, threads: int, seconds: float = PROBE) -> float | None:
    """GB/s at which the threads together read this many bytes, an equal part each (GRANULE at least), over and over;
    None without the native module."""
    module = native()
    return module.read_bandwidth(max(size, GRANULE * threads), threads, seconds) if module else None


def weight_bandwidth(shape: Shape, dtype: str, threads: int, seconds: float = PROBE) -> float | None:
    """read_bandwidth of w_hh."""
    return read_bandwidth(shape.H * shape.H * np.dtype(dtype).itemsize, threads, seconds)


def bound(shape: Shape, dtype: str, training: bool, peak: float, bandwidth: float) -> tuple[float, str]:
    """Seconds that no kernel can be faster than, and whether "fma" or "bandwidth" is the reason.

    Forward and in BPTT, w_hh is read at least once a step.
    """
    arithmetic = shape.flops(training) / (1e9 * peak)
    size = np.dtype(dtype).itemsize * shape.H * shape.H
    reading = (2 if training else 1) * shape.T * size / (1e9 * bandwidth)
    return max((arithmetic, "fma"), (reading, "bandwidth"))


def probe(threads: int, seconds: float = 50e-3) -> dict[str, Any] | None:
    """FMA peak and read bandwidth on one thread and on `threads`, ready for JSON; None without the native module."""
    if not native():
        return None
    counts = sorted({1, threads})
    return {
        "instruction_set": isa(),
        "fma_peak_gflops": {
            dtype: {str(n): fma_peak(dtype, n, seconds) for n in counts} for dtype in ("float32", "float64")
        },
        "read_bandwidth_gb_s": {
            name: {str(n): read_bandwidth(size, n, seconds) for n in counts} for name, size in SIZES.items()
        },
    }
