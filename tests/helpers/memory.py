"""Arrays in memory of the tests' own making: beside pages that fault, and far apart in address space. Linux."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def guarded(array: Array, end: str) -> Array:
    """A copy whose first byte follows ("low"), or whose last byte precedes ("high"), a page that must not be touched.

    Fortran-ordered arrays stay so; everything else becomes C-contiguous."""
    page = mmap.PAGESIZE
    room = (array.nbytes + page - 1) // page * page
    whole = np.frombuffer(mmap.mmap(-1, room + 2 * page), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in (whole.ctypes.data, whole.ctypes.data + page + room):
        assert protect(start, page, 0) == 0
    inside = whole[page : page + room]
    raw = inside[room - array.nbytes :] if end == "high" else inside[: array.nbytes]
    fortran = array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous
    view = raw.view(array.dtype).reshape(array.shape, order="F" if fortran else "C")
    view[...] = array
    return view


class SparseMemory:
    """Address space without memory behind it: only the pages that are written take any."""

    def __init__(self, nbytes: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
        address = libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"{nbytes} bytes of address space")
        self._unmap, self._address, self._nbytes, self._used = libc.munmap, address, nbytes, 0

    def spread(self, array: Array, strides: tuple[int, ...]) -> Array:
        """A copy with these strides, counted in elements, behind what was taken before."""
        item = array.itemsize
        span = sum((n - 1) * abs(s) for n, s in zip(array.shape, strides, strict=True)) + 1
        below = sum((n - 1) * -s for n, s in zip(array.shape, strides, strict=True) if s < 0)
        start = self._used
        self._used += -(-span * item // mmap.PAGESIZE) * mmap.PAGESIZE
        assert self._used <= self._nbytes, "the address space is too small for the test"
        pointer = ctypes.cast(self._address + start, ctypes.POINTER(ctypes.c_ubyte))
        raw = np.ctypeslib.as_array(pointer, (span * item,)).view(array.dtype)
        view = np.lib.stride_tricks.as_strided(raw[below:], array.shape, [s * item for s in strides], writeable=True)
        view[...] = array
        return view

    def close(self) -> None:
        """No array of spread() may be used any more."""
        self._unmap(self._address, self._nbytes)
