"""The registry of backends: what can compute one direction of one layer, and which one `auto` takes."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import cast

from .options import Implementation

# (device, name) -> file, the fastest of a device first
_FILES = {
    ("cpu", "cpp"): "cpp",
    ("cpu", "numpy"): "reference",
}


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute the recurrence, on one device; reason says why it is not available."""

    name: str
    device: str
    available: bool
    reason: str | None = None
    functions: Implementation | None = field(default=None, repr=False)


@cache
def _load(device: str, name: str) -> Backend:
    try:
        module = import_module(f"{__name__}.{_FILES[device, name]}")
    except ImportError as error:
        return Backend(name, device, available=False, reason=str(error))
    return Backend(name, device, available=True, functions=cast(Implementation, module))


def backends() -> list[Backend]:
    """Every backend that this version knows, the fastest of each device first.

    Each has .name, .device, .available and, where it is not available, .reason. The first call loads the native module.
    """
    return [_load(device, name) for device, name in _FILES]


def get(name: str, device: str = "cpu") -> Implementation:
    """The functions of the backend `name`; of the fastest available one for "auto", which FASTRNN_BACKEND overrides.

    FASTRNN_BACKEND is read once, when "auto" is first asked for. Raises ValueError for an unknown name, RuntimeError
    for a backend that cannot run here.
    """
    if type(name) is not str:
        raise TypeError(f"backend: expected str, got {type(name).__name__}")
    return _get(name, device)


@cache
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


def _fastest(device: str) -> Implementation:
    candidates = [_load(*key) for key in _FILES if key[0] == device]
    missing = [backend for backend in candidates if backend.functions is None]
    chosen = next(backend for backend in candidates if backend.functions is not None)
    if candidates[0].functions is None:
        reasons = "; ".join(f"{backend.name!r} is not available: {backend.reason}" for backend in missing)
        message = f"fastrnn runs on the slow backend {chosen.name!r} ({reasons}). See `fastrnn info`."
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    return cast(Implementation, chosen.functions)
