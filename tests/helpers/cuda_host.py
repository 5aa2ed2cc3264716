"""The CUDA kernels on the host: csrc/cuda compiled by the host's compiler, driven like the other kernels."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn._backends.cuda_call import Call

from .recurrence import RecurrenceKernel, empty_like_filled

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).resolve().parents[2]
SOURCES = (*sorted((ROOT / "csrc" / "cuda").glob("*.cuh")), ROOT / "csrc" / "cuda" / "plan.h",
           ROOT / "tests" / "helpers" / "cuda_machine.h", ROOT / "tests" / "helpers" / "cuda_host.cc")  # fmt: skip
FLAGS = (
    "-std=c++17", "-O2", "-g", "-fPIC", "-shared", "-ffp-contract=off", "-fno-trapping-math", "-Wall", "-Wextra",
    "-Wshadow", "-Werror",
)  # fmt: skip
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def compiler() -> str | None:
    return next(
        (found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))), None
    )


def build(folder: Path, *, sanitize: bool = False) -> Path:
    """The shared library, in folder; compiled once."""
    library = folder / f"cuda_host{'_sanitized' if sanitize else ''}.so"
    newest = max(source.stat().st_mtime for source in SOURCES)
    if library.exists() and library.stat().st_mtime > newest:
        return library
    command = [str(compiler()), *FLAGS, *(SANITIZE if sanitize else ()), f"-I{ROOT / 'csrc'}", str(SOURCES[-1])]
    fma = ["-mfma"] if "fma" in _cpu_flags() else []  # else fma() calls the C library: the same bits, slower
    subprocess.run([*command, *fma, "-o", str(library)], check=True)
    return library


def _cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def load(library: Path) -> Any:
    host = ctypes.CDLL(str(library))
    for text in (host.kernel_name, host.make_plan, host.choose_kernel):
        text.restype = ctypes.c_char_p
    return host


def kernel_names(host: Any) -> list[str]:
    names = []
    while (name := host.kernel_name(len(names))) is not None:
        names.append(name.decode())
    return names


def plan(host: Any, name: str, call: Call, cluster: int, max_shared: int = 227 * 1024) -> tuple[list[int], str]:
    """[blocks, threads, shared, workspace] and why not."""
    out = (ctypes.c_longlong * 4)()
    table = call.table.ctypes.data_as(ctypes.c_void_p)
    why = host.make_plan(name.encode(), table, cluster, ctypes.c_longlong(max_shared), out)
    return list(out), why.decode()


@dataclass(frozen=True)
class HostKernel(RecurrenceKernel):
    """A kernel by name, over clusters of `cluster` blocks."""

    host: Any
    name: str
    cluster: int = 1
    seed: int = 0
    backend: str = "cuda_host"

    def run(self, call: Call, backward: bool) -> None:
        if self.name == "step":
            call.arrays.append(np.full(3 * call.get("B") * call.get("H"), np.nan))
            call.set(workspace=call.arrays[-1].ctypes.data)
        error = ctypes.create_string_buffer(400)
        table = call.table.ctypes.data_as(ctypes.c_void_p)
        if self.host.run_kernel(self.name.encode(), table, self.cluster, backward, self.seed, error, 400):
            raise RuntimeError(error.value.decode())


class NumpyLibrary:
    """What cuda_products asks of CuPy or torch."""

    def __init__(self, dtype: Any) -> None:
        self.number, self.dtype = np.dtype(dtype), str(np.dtype(dtype))

    def empty(self, shape: tuple[int, ...]) -> Array:
        return empty_like_filled(np.empty(shape, self.number))

    def on_device(self, array: Array) -> Array:
        return array.copy()

    def contiguous(self, array: Array) -> Array:
        return np.ascontiguousarray(array)

    def product(self, a: Array, b: Array, out: Any = None) -> Any:
        return np.matmul(a, b, out=out)

    def where(self, condition: Array, a: Any, b: Any) -> Any:
        zero = self.number.type(0)
        return np.where(condition, zero if isinstance(a, int) else a, zero if isinstance(b, int) else b)

    def sum_rows(self, a: Array) -> Any:
        return a.sum(axis=0)


def pointer(a: Array) -> Any:
    return ctypes.c_void_p(a.ctypes.data)
