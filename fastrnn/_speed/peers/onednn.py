"""oneDNN's vanilla_rnn through a driver of our own, onednn_driver.cc, compiled once against the oneDNN that is found:
the pip packages' (in sys.prefix), else the system's.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ... import _compiled
from ..arms import Arm, Problem, UnavailableError

SOURCE = Path(__file__).with_name("onednn_driver.cc")
HEADER = Path("oneapi/dnnl/dnnl.hpp")


def find() -> tuple[str, Path]:
    """The compiler, and the prefix in which oneDNN's headers are. Raises UnavailableError."""
    from . import PEERS

    compiler = _compiled.compiler()
    prefixes = (Path(sys.prefix), Path("/usr/local"), Path("/usr"))
    prefix = next((prefix for prefix in prefixes if (prefix / "include" / HEADER).exists()), None)
    if prefix is None or compiler is None:
        missing = "its headers" if prefix is None else "a C++ compiler"
        raise UnavailableError(f"oneDNN: {missing} not found; to get it: {PEERS['onednn'].line}")
    return compiler, prefix


@cache
def driver() -> Any:
    """The driver, compiled if it is not in the cache. Raises UnavailableError with the compiler's words."""
    compiler, prefix = find()
    command = [compiler, "-std=c++17", "-O2", "-fopenmp", "-shared", "-fPIC", str(SOURCE), "-ldnnl"]
    if prefix != Path("/usr"):
        command += [f"-I{prefix}/include", f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib"]
    version = (prefix / "include/oneapi/dnnl/dnnl_version.h").read_bytes()
    library = _compiled.library("onednn_driver", (SOURCE.read_bytes(), version, " ".join(command)))
    try:
        if not library.exists():
            _compiled.build(command, library)
        elif (why := _compiled.unsafe(library)) is not None:
            raise _compiled.CompileError(f"{why}: nothing is loaded from there")
    except _compiled.CompileError as error:
        raise UnavailableError(f"oneDNN: the driver does not compile: {error}") from error
    found = ctypes.CDLL(str(library))
    found.fastrnn_peer_failure.restype = ctypes.c_char_p
    found.fastrnn_peer_create.restype = ctypes.c_void_p
    found.fastrnn_peer_held.restype = ctypes.c_size_t
    return found


class _Rnn:
    """One problem in the driver, and the arrays it reads and writes."""

    def __init__(self, p: Problem, threads: int) -> None:
        B, T, I, H = p.shape
        self.driver = driver()
        inputs = (p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih + p.b_hh, p.d_output, p.d_h_n)
        sizes = ((T, B, H), (B, H), (T, B, I), (B, H), (H, I), (H, H), (H,))
        self.results = [np.zeros(size, np.float32) for size in sizes]
        self.arrays = [np.ascontiguousarray(array) for array in (*inputs, *self.results)]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in self.arrays]
        self.handle = ctypes.c_void_p(self.driver.fastrnn_peer_create(threads, T, B, I, H, *pointers))
        if not self.handle:
            raise RuntimeError(f"oneDNN: {self.driver.fastrnn_peer_failure().decode()}")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.driver.fastrnn_peer_destroy(self.handle)

    def run(self, with_backward: bool) -> Any:
        self._checked(self.driver.fastrnn_peer_run(self.handle, int(with_backward)))
        return self.results if with_backward else self.results[:2]

    def unpack(self, results: Any) -> Any:
        self._checked(self.driver.fastrnn_peer_unpack(self.handle))
        return [array.copy() for array in results]

    def held(self) -> int:
        """Bytes that a training step needs and that are allocated ahead."""
        return int(self.driver.fastrnn_peer_held(self.handle)) + sum(array.nbytes for array in self.results)

    def _checked(self, code: int) -> None:
        if code:
            raise RuntimeError(f"oneDNN: {self.driver.fastrnn_peer_failure().decode()}")


def make(name: str, p: Problem, threads: int) -> Arm:
    rnn = _Rnn(p, threads)
    return Arm(
        name, lambda: rnn.run(False), lambda: rnn.run(True), spins=True, unpack=rnn.unpack, held=rnn.held()
    )  # fmt: skip
