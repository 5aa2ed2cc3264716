"""Compiles the kernels of the `numba` backend on first use, once per dtype, and calls them without Numba's dispatcher.

The machine code is kept on disk, beside the kernels' file or where NUMBA_CACHE_DIR says, if a place is writable. When
compiling takes more than 2 s, the logger "fastrnn" says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from threading import RLock, Timer
from typing import Any, NamedTuple

import numba
from numba import types

from . import numba_kernels


class Kernels(NamedTuple):
    """The compiled functions of one dtype: their entry points, which unpack the arguments and release the GIL, without
    Numba's look at the types of all arguments. So nothing checks them: arrays must be of the dtype and the number of
    dimensions of the signature, and C-contiguous."""

    pack: Callable[..., None]
    multiply: Callable[..., None]
    forward: Callable[..., None]
    backward: Callable[..., None]
    enter_again: Callable[..., None]
    activate: Callable[..., None]
    add_rows: Callable[..., None]


# f: floats, d: float64, i: int64, b: bool; the number of dimensions; commas: a tuple
_OPTIONS = "i1,i1,b1,f2,b2,f1,b,b,i"
_SIGNATURES = {
    "pack": "f2 f2 f2 f2",
    "multiply": "f2 f2 f2 i i i b",
    "forward": f"f2 f2 f2 f2 f1 f1 f2 f2 {_OPTIONS} i i,i i,i b",
    "backward": f"f3 f2 f2 f2 i f2 f2 f2 f2 f2 f2 f2 f2 f1 d1 {_OPTIONS} i i,i i,i",
    "enter_again": f"f2 f2 i f2 {_OPTIONS} i i,i i,i",
    "activate": "f2 f1 f2 b i i",
    "add_rows": "f2 i d1 f1",
}

ANNOUNCE_AFTER = 2.0  # seconds of compiling
_compiled: dict[Any, Kernels] = {}
_compiling = RLock()  # two threads would compile twice; and a child must not inherit half of it
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release
    )


def kernels(dtype: Any) -> Kernels:
    """Compiles them on first use, or reads them from disk."""
    found = _compiled.get(dtype)
    if found is None:
        with _compiling:
            found = _compiled[dtype] = _compiled.get(dtype) or _compile(dtype)
    return found


def _compile(dtype: Any) -> Kernels:
    kinds = {"f": numba.from_dtype(dtype), "d": types.float64, "i": types.int64, "b": types.boolean}

    def kind(word: str) -> Any:
        if "," in word:
            return types.Tuple([kind(part) for part in word.split(",")])
        scalar = kinds[word[0]]
        return types.Array(scalar, int(word[1]), "C") if len(word) > 1 else scalar

    def one(name: str, signature: str) -> Any:
        function, arguments = getattr(numba_kernels, f"_{name}"), tuple(kind(word) for word in signature.split())
        with suppress(RuntimeError, OSError):  # no place to write to, or a full disk
            return _jit(function, arguments, cache=True)
        return _jit(function, arguments, cache=False)

    text = "compiling the kernels for %s with Numba: once, if their place on disk is writable; see `fastrnn info`"
    timer = Timer(ANNOUNCE_AFTER, logging.getLogger("fastrnn").warning, (text, dtype))
    timer.daemon = True
    timer.start()
    try:
        return Kernels(**{name: one(name, signature) for name, signature in _SIGNATURES.items()})
    finally:
        timer.cancel()


def _jit(function: Any, arguments: tuple[Any, ...], cache: bool) -> Any:
    compiled = numba.njit(nogil=True, error_model="numpy", cache=cache)(function)
    compiled.compile(arguments)
    return compiled.overloads[arguments].entry_point
