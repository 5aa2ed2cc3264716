"""The registry of backends: what can compute one direction of one layer, and which one `auto` takes."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from threading import RLock, get_ident
from typing import cast

from .options import Implementation

# (device, name) -> file, the fastest of a device first
_FILES = {
    ("cpu", "cpp"): "cpp",
    ("cpu", "numba"): "numba_cpu",
    ("cpu", "numpy"): "reference",
    ("cuda", "cuda"): "cuda",
    ("cuda", "cupy"): "cupy_gpu",
}
# What a backend imports that takes long: looked for by backends(), imported when the backend is first used.
_HEAVY = {"numba": "numba", "cupy": "cupy"}
# How to get what the import of a backend's file missed.
_GET = {
    "cpp": "to get it, with a C++17 compiler (GCC 11, Clang 12 or newer): "
    "FASTRNN_NATIVE=1 pip install --force-reinstall --no-deps --no-cache-dir .",
    "numba": "to get it: pip install numba",
    "cuda": "to get it, with nvcc of CUDA 12 or 13: "
    "FASTRNN_NATIVE=1 FASTRNN_CUDA=ON pip install --force-reinstall --no-deps --no-cache-dir .",
    "cupy": "to get it: pip install 'fastrnn[cuda13]', or 'fastrnn[cuda12]' for a driver of CUDA 12",
}


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute the recurrence, on one device; reason says why it is not available."""

    name: str
    device: str
    available: bool
    reason: str | None = None
    functions: Implementation | None = field(default=None, repr=False)


_loaded: dict[tuple[str, str], Backend] = {}
# What get() found. Not functools.cache: without the GIL that is locked in each call, and a fork would keep it so.
_chosen: dict[tuple[str, str], Implementation] = {}
# A fork waits for imports that other threads have begun: the child would wait for ever for the import's lock. Not for
# heavy packages: they take locks, logging's for one, that the thread that forks may hold already; nor for long, since
# what hooks into imports may do so too.
_loading = RLock()
_forking: set[int] = set()  # threads that hold _loading for a fork


def _before_fork() -> None:
    if _loading.acquire(timeout=5):
        _forking.add(get_ident())


def _after_fork() -> None:
    if get_ident() in _forking:
        _forking.discard(get_ident())
        _loading.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _load(device: str, name: str) -> Backend:
    """The backend with its functions; what its import raised is remembered as the reason."""
    if (device, name) in _loaded:
        return _loaded[device, name]
    package = _HEAVY.get(name)
    with _loading if package is None or find_spec(package) is None else nullcontext():
        if (device, name) not in _loaded:
            try:
                module = import_module(f"{__name__}.{_FILES[device, name]}")
            except ImportError as error:
                reason = f"{error}; {_GET[name]}" if name in _GET else str(error)
                _loaded[device, name] = Backend(name, device, available=False, reason=reason)
            else:
                _loaded[device, name] = Backend(name, device, available=True, functions=cast(Implementation, module))
        return _loaded[device, name]


def _look(device: str, name: str) -> Backend:
    package = _HEAVY.get(name)
    if name == "cupy" and "cupy" not in sys.modules and find_spec("cupy") and not _has_driver():
        return Backend(name, device, available=False, reason="no CUDA driver on this machine")
    if package is None or package in sys.modules or (device, name) in _loaded or find_spec(package) is None:
        return _load(device, name)
    return Backend(name, device, available=True)


@cache
def _has_driver() -> bool:
    """Whether there is a CUDA driver; it is not initialised, for no process forked after that could use the GPU."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def backends() -> list[Backend]:
    """Every backend that this version knows, the fastest of each device first.

    Each has .name, .device, .available and, where it is not available, .reason. The first call loads the native module.
    Numba and CuPy are only looked for, not imported, and so is the CUDA driver; should they fail, a call made after
    their first use says why.
    """
    return [_look(device, name) for device, name in _FILES]


def get(name: str, device: str = "cpu") -> Implementation:
    """The functions of the backend `name`; of the fastest available one for "auto", which FASTRNN_BACKEND overrides.

    FASTRNN_BACKEND is read once, when "auto" is first asked for. Raises ValueError for an unknown name, RuntimeError
    for a backend that cannot run here.
    """
    if type(name) is not str:
        raise TypeError(f"backend: expected str, got {type(name).__name__}")
    try:
        return _chosen[name, device]  # not .get(): CPython without the GIL locks there, and a fork would keep the lock
    except KeyError:
        pass
    found = _chosen[name, device] = _get(name, device)
    return found


def _get(name: str, device: str) -> Implementation:
    argument = "backend"
    if name == "auto":
        name = os.environ.get("FASTRNN_BACKEND", "auto")
        if name == "auto":
            return _fastest(device)
        argument = "FASTRNN_BACKEND"
    if (device, name) not in _FILES:
        known = ", ".join(repr(known) for where, known in _FILES if where == device)
        raise ValueError(f"{argument}: expected 'auto' or one of {known} for device {device!r}, got {name!r}")
    backend = _load(device, name)
    if backend.functions is None:
        raise RuntimeError(f"{argument}: expected an available backend, got {name!r}: {backend.reason}")
    return backend.functions


def fastest(device: str) -> tuple[Backend, list[str]]:
    """The fastest backend that can run, and why the faster ones cannot."""
    missing = []
    for name in [name for where, name in _FILES if where == device]:
        backend = _load(device, name)
        if backend.available:
            break
        missing.append(f"{name!r} is not available: {backend.reason}")
    return backend, missing


def _fastest(device: str) -> Implementation:
    backend, missing = fastest(device)
    if not backend.available:
        raise RuntimeError(f"backend: expected an available one for device {device!r}, got none: {'; '.join(missing)}")
    if missing:
        message = f"fastrnn runs on the slower backend {backend.name!r} ({'; '.join(missing)}). See `fastrnn info`."
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    return cast(Implementation, backend.functions)
