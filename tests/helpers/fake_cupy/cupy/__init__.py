"""A stand-in for CuPy on machines without a GPU: its arrays lie in host memory, its kernels run on the host.

Tests put the folder above this one first on sys.path of a process of their own, where fastrnn then finds a device. Only
what fastrnn uses of CuPy is here. What CuPy refuses is refused: NumPy neither converts its arrays nor mixes with them,
they have neither flags.writeable nor flags.aligned, and new memory is full of NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda

__version__ = "0+host"


class _Flags:
    def __init__(self, flags: Any) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801
    """Holds a NumPy array, and is none."""

    __module__ = "cupy"

    def __init__(self, array: Any, number: int = 0) -> None:
        self._array, self._number = array, number

    shape = property(lambda self: self._array.shape)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    dtype = property(lambda self: self._array.dtype)
    itemsize = property(lambda self: self._array.itemsize)
    nbytes = property(lambda self: self._array.nbytes)
    strides = property(lambda self: self._array.strides)
    flags = property(lambda self: _Flags(self._array.flags))
    device = property(lambda self: cuda.Device(self._number))
    T = property(lambda self: self._new(self._array.T))

    @property
    def data(self) -> Any:
        return cuda.MemoryPointer(self._array.ctypes.data)

    def _new(self, array: Any) -> Any:
        return ndarray(np.asarray(array), self._number)

    def __len__(self) -> int:
        return len(self._array)

    def __repr__(self) -> str:
        return repr(self._array)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        (out,) = kwargs.pop("out", (None,))
        if out is not None:
            kwargs["out"] = (_host(out),)
        result = getattr(ufunc, method)(*map(_host, inputs), **kwargs)
        return self._new(result) if out is None else out

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        own = globals().get(function.__name__)
        return NotImplemented if own is None else own(*args, **kwargs)

    def __bool__(self) -> bool:
        return bool(self._array)

    def __getitem__(self, at: Any) -> Any:
        return self._new(self._array[_host(at)])

    def __setitem__(self, at: Any, value: Any) -> None:
        self._array[_host(at)] = _host(value)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def get(self) -> Any:
        return self._array.copy()

    def item(self) -> Any:
        return self._array.item()

    def copy(self) -> Any:
        return self._new(self._array.copy())

    def astype(self, dtype: Any) -> Any:
        return self._new(self._array.astype(dtype))

    def reshape(self, *shape: Any) -> Any:
        return self._new(self._array.reshape(*shape))

    def swapaxes(self, a: int, b: int) -> Any:
        return self._new(self._array.swapaxes(a, b))

    def sum(self, axis: Any = None, out: Any = None) -> Any:
        result = self._array.sum(axis=axis, out=None if out is None else _host(out))
        return self._new(result) if out is None else out


def _host(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}")
    return tuple(map(_host, value)) if isinstance(value, tuple) else value


def _ours(value: Any) -> Any:
    return ndarray(np.asarray(value))


def empty(shape: Any, dtype: Any = float) -> Any:
    return _ours(np.frombuffer(bytearray(b"\xff" * (np.dtype(dtype).itemsize * int(np.prod(shape)))), dtype)
                 .reshape(shape))  # fmt: skip


def zeros(shape: Any, dtype: Any = float) -> Any:
    return _ours(np.zeros(shape, dtype))


def empty_like(array: Any) -> Any:
    return empty(array.shape, array.dtype)


def zeros_like(array: Any) -> Any:
    return zeros(array.shape, array.dtype)


def asarray(value: Any) -> Any:
    return value if isinstance(value, ndarray) else _ours(np.array(value))


def ascontiguousarray(value: Any) -> Any:
    return value if value.flags.c_contiguous else _ours(np.ascontiguousarray(_host(value)))


def asnumpy(value: Any) -> Any:
    return value.get() if isinstance(value, ndarray) else np.asarray(value)


def from_dlpack(value: Any) -> Any:
    return _ours(np.from_dlpack(value))


def arange(*args: Any) -> Any:
    return _ours(np.arange(*args))


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    result = np.matmul(_host(a), _host(b), out=None if out is None else _host(out))
    return _ours(result) if out is None else out


def where(condition: Any, a: Any, b: Any) -> Any:
    return _ours(np.where(_host(condition), _host(a), _host(b)))


def stack(arrays: Any) -> Any:
    return _ours(np.stack([_host(array) for array in arrays]))


def shares_memory(a: Any, b: Any) -> bool:
    return bool(np.shares_memory(_host(a), _host(b)))


def may_share_memory(a: Any, b: Any) -> bool:
    return bool(np.may_share_memory(_host(a), _host(b)))


def copyto(to: Any, value: Any, where: Any = True) -> None:
    np.copyto(_host(to), _host(value), where=_host(where))


class RawModule:
    """Compiles with the host's compiler what NVRTC would be given."""

    def __init__(self, *, code: str, options: tuple[str, ...], enable_cooperative_groups: bool) -> None:
        assert options[0] == "-std=c++17"
        self.code, self.options, self.together = code, options[1:], enable_cooperative_groups

    def get_function(self, name: str) -> Any:
        return cuda.Kernel(self.code, self.options, name, self.together)
