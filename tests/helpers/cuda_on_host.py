"""The kernels that NVRTC compiles for CuPy, compiled for the host: fastrnn/_backends/cupy_steps.py on NumPy arrays.

cuda_on_host.h stands in for CUDA: the source of the kernels is the same to the letter.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn._backends import cupy_plan

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "nvrtc"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
H200 = cupy_plan.Limits(132, 227 << 10, True)

Edits = tuple[tuple[str, str], ...]
_folder = tempfile.mkdtemp(prefix="fastrnn-cuda-on-host-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)


def compile_options(dtype: np.dtype[Any], sizes: cupy_plan.Sizes | None) -> tuple[str, ...]:
    real = {4: "float", 8: "double"}[dtype.itemsize]
    return (f"-DREAL={real}", *(() if sizes is None else sizes.macros()))


@lru_cache
def compile_text(code: str, options: tuple[str, ...], *names: str) -> ctypes.CDLL:
    """The kernels `names` of a source without what stands in device.cuh."""
    folder = Path(tempfile.mkdtemp(dir=_folder))
    text = f'#include "cuda_on_host.h"\n{code}'
    for name in names:
        text += (
            f'extern "C" void run_{name}(unsigned blocks, unsigned threads, unsigned shared, int together, '
            f"unsigned seed, void** a) {{ host::launch(fastrnn::{name}, blocks, threads, shared, together, "
            "seed, a); }\n"
        )
    (folder / "kernels.cc").write_text(text)
    command = [str(COMPILER), "-std=c++17", "-O1", "-fPIC", "-shared", "-w", f"-I{Path(__file__).parent}", *options]
    subprocess.run([*command, "-o", str(folder / "kernels.so"), str(folder / "kernels.cc")], check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


@lru_cache
def module(dtype: np.dtype[Any], sizes: cupy_plan.Sizes | None, edits: Edits = ()) -> ctypes.CDLL:
    """The kernels of these sizes; edits: replacements in their source, each of which has to occur."""
    source, names = (SOURCES / "rnn_steps.cuh").read_text(), ["rnn_forward_step", "rnn_backward_step", "rnn_entering"]
    if sizes is not None:
        source += (SOURCES / "rnn_persistent.cuh").read_text().replace('#include "rnn_steps.cuh"', "")
        names = ["rnn_forward_persistent", "rnn_backward_persistent"]
    for old, new in edits:
        assert sizes is None or old in source, f"not in the kernels: {old}"
        source = source.replace(old, new)
    return compile_text(source.replace("#pragma once", ""), compile_options(dtype, sizes), *names)


def run(
    library: ctypes.CDLL, name: str, blocks: int, shared: int, together: bool, arguments: Any, seed: int = 0
) -> None:
    """One launch: arrays go as pointers to their data, NumPy's scalars by value."""
    held = [np.array(a.ctypes.data, np.uint64) if isinstance(a, np.ndarray) else np.array(a) for a in arguments]
    pointers = (ctypes.c_void_p * len(held))(*[value.ctypes.data for value in held])
    getattr(library, f"run_{name}")(blocks, cupy_plan.THREADS, shared, together, seed, pointers)


class HostDevice:
    """cupy_steps.Device on the host; launches are counted by name."""

    xp = np

    def __init__(self, limits: cupy_plan.Limits = H200, edits: Edits = (), seed: int = 0) -> None:
        self.limits, self.edits, self.seed = limits, edits, seed
        self.launches: Counter[str] = Counter()

    def launch(
        self, name: str, dtype: np.dtype[Any], sizes: cupy_plan.Sizes | None, blocks: int, arguments: tuple[Any, ...]
    ) -> None:
        self.launches[name] += 1
        shared = 0 if sizes is None else sizes.shared_bytes
        together = sizes is not None and sizes.group > 1
        assert shared <= self.limits.shared_bytes
        assert not together or blocks <= self.limits.multiprocessors
        run(module(dtype, sizes, self.edits), name, blocks, shared, together, arguments, self.seed)
