"""A stand-in for CuPy on machines without a GPU: its arrays lie in host memory, its kernels run on the host.

Tests put the folder above this one first on sys.path of a process of their own, where fastrnn then finds a device. Only
what fastrnn uses of CuPy 13 is here. What CuPy refuses is refused: NumPy neither converts its arrays nor mixes with
them, nor do those of another than the current device, they have neither flags.writeable nor flags.aligned, and new
memory is full of NaN. As in CuPy, integers that are no index are taken modulo the size, in silence. cuda.waits counts
how often CuPy would wait for the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda

__version__ = "0+host"

# what fastrnn calls as np.<name> on arrays of either kind: CuPy has each under this name
_UFUNCS = {
    "absolute", "add", "bitwise_and", "bitwise_or", "divide", "equal", "exp", "greater", "greater_equal", "invert",
    "less", "less_equal", "log", "log1p", "matmul", "maximum", "multiply", "negative", "not_equal", "sign", "sqrt",
    "square", "subtract",
}  # fmt: skip


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

    def _made(self, array: Any, out: Any) -> Any:
        return self._new(array) if out is None else out

    def __len__(self) -> int:
        return len(self._array)

    def __repr__(self) -> str:
        return repr(self._array)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or ufunc.__name__ not in _UFUNCS:
            return NotImplemented
        (out,) = kwargs.pop("out", (None,))
        if out is not None:
            kwargs["out"] = _own(out)
        result = ufunc(*map(_host, inputs), **kwargs)
        return self._made(result, out)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        own = globals().get(function.__name__)
        return NotImplemented if own is None else own(*args, **kwargs)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __getitem__(self, at: Any) -> Any:
        return self._new(self._array[self._index(at)])

    def __setitem__(self, at: Any, value: Any) -> None:
        if not np.isscalar(value) and not isinstance(value, ndarray):
            raise TypeError(f"non-scalar {type(value)} cannot be used for fill")
        _own(self)[self._index(at)] = _host(value)

    def _index(self, at: Any) -> Any:
        """at for NumPy; integers in arrays are taken modulo the size."""
        if not isinstance(at, tuple):
            return self._index((at,))[0] if isinstance(at, ndarray) else at
        parts, axis = [], 0
        for part in at:
            if isinstance(part, ndarray):
                _own(self)
                array, part = _own(part), _own(part)
                cuda.waits += array.dtype == bool  # CuPy counts it
                if array.dtype != bool and self.shape[axis]:
                    part = array.astype(np.int64) % self.shape[axis]
                axis += array.ndim if array.dtype == bool else 1
            elif part is Ellipsis:
                axis += self.ndim - sum(other is not None and other is not Ellipsis for other in at)
            else:
                axis += part is not None
            parts.append(part)
        return tuple(parts)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def get(self) -> Any:
        cuda.waits += 1
        return self._array.copy()

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def copy(self) -> Any:
        return _ours(self._array.copy())

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> Any:
        return self._new(_own(self).astype(dtype, order=order, copy=copy))

    def reshape(self, *shape: Any) -> Any:
        return self._new(self._array.reshape(*shape))

    def swapaxes(self, a: int, b: int) -> Any:
        return self._new(self._array.swapaxes(a, b))

    def take(self, indices: Any, axis: Any = None) -> Any:
        return self._new(_own(self).take(_own(indices), axis=axis, mode="wrap"))

    def clip(self, low: Any, high: Any, out: Any = None) -> Any:
        return self._made(_own(self).clip(low, high, out=None if out is None else _own(out)), out)

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        given = None if out is None else _own(out)
        return self._made(_own(self).sum(axis=axis, dtype=dtype, out=given, keepdims=keepdims), out)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return self._made(_own(self).min(axis=axis, keepdims=keepdims), out)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return self._made(_own(self).max(axis=axis, keepdims=keepdims), out)

    def argmax(self, axis: Any = None) -> Any:
        return self._new(_own(self).argmax(axis=axis))

    def any(self) -> Any:
        return self._new(_own(self).any())


def _own(array: Any) -> Any:
    """The memory of an array on the current device."""
    if not isinstance(array, ndarray):
        raise TypeError(f"Unsupported type {type(array)}")
    if array._number != cuda.Device().id:
        raise ValueError(
            "Array device must be same as the current device: "
            f"array device = {array._number} while current = {cuda.Device().id}"
        )
    return array._array


def _host(value: Any) -> Any:
    """What a kernel takes: an array, or a number by value."""
    return value if np.isscalar(value) else _own(value)


def _ours(value: Any) -> Any:
    return ndarray(np.asarray(value), cuda.Device().id)


def empty(shape: Any, dtype: Any = float) -> Any:
    return _ours(np.frombuffer(bytearray(b"\xff" * (np.dtype(dtype).itemsize * int(np.prod(shape)))), dtype)
                 .reshape(shape))  # fmt: skip


def zeros(shape: Any, dtype: Any = float) -> Any:
    return _ours(np.zeros(shape, dtype))


def ones(shape: Any, dtype: Any = float) -> Any:
    return _ours(np.ones(shape, dtype))


def full(shape: Any, value: Any, dtype: Any = None) -> Any:
    return _ours(np.full(shape, value, dtype))


def empty_like(array: Any) -> Any:
    return empty(array.shape, array.dtype)


def zeros_like(array: Any) -> Any:
    return zeros(array.shape, array.dtype)


def array(value: Any, dtype: Any = None) -> Any:
    return _ours(np.array(value._array if isinstance(value, ndarray) else value, dtype))


def asarray(value: Any, dtype: Any = None) -> Any:
    there = isinstance(value, ndarray) and value.device == cuda.Device() and dtype in (None, value.dtype)
    return value if there else array(value, dtype)


def ascontiguousarray(value: Any) -> Any:
    return value if value.flags.c_contiguous else _ours(np.ascontiguousarray(_own(value)))


def asnumpy(value: Any) -> Any:
    return value.get() if isinstance(value, ndarray) else np.asarray(value)


def from_dlpack(value: Any) -> Any:
    return _ours(np.from_dlpack(value))


def arange(*args: Any) -> Any:
    return _ours(np.arange(*args))


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    result = np.matmul(_own(a), _own(b), out=None if out is None else _own(out))
    return _ours(result) if out is None else out


def vdot(a: Any, b: Any) -> Any:
    return _ours(np.vdot(_own(a), _own(b)))


def where(condition: Any, a: Any, b: Any) -> Any:
    return _ours(np.where(_own(condition), _host(a), _host(b)))


def stack(arrays: Any) -> Any:
    return _ours(np.stack([_own(array) for array in arrays]))


def concatenate(arrays: Any, axis: int = 0) -> Any:
    return _ours(np.concatenate([_own(array) for array in arrays], axis))


def broadcast_to(array: Any, shape: Any) -> Any:
    return ndarray(np.broadcast_to(array._array, shape), array._number)


def argsort(array: Any, axis: int = -1, kind: str | None = None) -> Any:
    if kind not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    return _ours(np.argsort(_own(array), axis, kind="stable"))


def flatnonzero(array: Any) -> Any:
    cuda.waits += 1
    return _ours(np.flatnonzero(_own(array)))


def shares_memory(a: Any, b: Any) -> bool:
    return bool(np.shares_memory(a._array, b._array))


def may_share_memory(a: Any, b: Any) -> bool:
    return bool(np.may_share_memory(a._array, b._array))


def copyto(to: Any, value: Any, where: Any = None) -> None:
    if not isinstance(value, (ndarray, np.generic)):  # CuPy asks np.can_cast, which refuses Python's numbers
        raise TypeError("can_cast() does not support Python ints, floats, and complex")
    np.copyto(_own(to), _host(value), where=True if where is None else _own(where))


class RawModule:
    """Compiles with the host's compiler what NVRTC would be given."""

    def __init__(self, *, code: str, options: tuple[str, ...], enable_cooperative_groups: bool) -> None:
        assert options[0] == "-std=c++17"
        self.code, self.options, self.together = code, options[1:], enable_cooperative_groups

    def get_function(self, name: str) -> Any:
        return cuda.Kernel(self.code, self.options, name, self.together)
