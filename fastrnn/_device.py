"""Where arrays live: what NumPy and CuPy have in common is written once, and asks here for the rest.

A home is a CuPy array on the device in question, or None for the CPU. CuPy is never imported for arrays of the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import numpy as np

from . import _backends, _validate
from ._backends.options import Array
from ._validate import gpu

_P = ParamSpec("_P")
_T = TypeVar("_T")

_CPU = nullcontext()


def home_on(device: Any) -> Any:
    """The home of arrays on "cpu", or on "cuda", which is CuPy's current device.

    Raises ValueError for another device, RuntimeError for a GPU that cannot be used.
    """
    if _validate.device_name(device) == "cpu":
        return None
    backend, missing = _backends.fastest(device)
    if not backend.available:
        raise RuntimeError(f"device: expected one that can be used, got {device!r}: {'; '.join(missing)}")
    return import_module("cupy").empty(1)


def module_of(array: Any) -> Any:
    """The module with the functions for this array, or for arrays of this home: CuPy or NumPy."""
    return np if gpu(array) is None else sys.modules["cupy"]


def beside(home: Any) -> Any:
    """A context in which new arrays are made, and functions run, on the device of home."""
    return _CPU if home is None else home.device


def on(home: Any, function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, run on the device of home."""
    if home is None:
        return function

    def called(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with beside(home):
            return function(*args, **kwargs)

    return called


def placed(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, run on the device of the first CuPy array, or part of a model on a GPU, among its arguments."""

    @wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if "cupy" not in sys.modules:
            return function(*args, **kwargs)
        homes = (getattr(argument, "_home", gpu(argument)) for argument in (*args, *kwargs.values()))
        return on(next((home for home in homes if home is not None), None), function)(*args, **kwargs)

    return called


def moved(array: Any, home: Any) -> Any:
    """The array where home is; itself where it is there already."""
    if home is None:
        return array if gpu(array) is None else array.get()
    with beside(home):
        return sys.modules["cupy"].asarray(array)


def check_kind(name: str, value: Any, home: Any) -> None:
    """Raises TypeError for a CuPy array where home is None, and for all but an array on the device of home."""
    if home is not None:
        _validate.on_device(name, value, home)
    elif gpu(value) is not None:
        raise TypeError(f"{name}: expected numpy.ndarray, got cupy.ndarray")


def numbers(*values: Any) -> list[float]:
    """Scalars and 0-d arrays as floats; those on a GPU are waited for once."""
    there = [] if "cupy" not in sys.modules else [value for value in values if gpu(value) is not None]
    if not there:
        return [float(value) for value in values]
    with beside(there[0]):
        fetched = iter(module_of(there[0]).stack([value.astype(np.float64) for value in there]).tolist())
    return [float(value if gpu(value) is None else next(fetched)) for value in values]


def check_range(name: str, what: str, values: Array, size: int) -> None:
    """Raises ValueError unless all integers are in 0..size-1; CuPy itself takes any index modulo the size."""
    if values.size:
        lowest, highest = numbers(values.min(), values.max())
        if lowest < 0 or highest >= size:
            raise out_of_range(name, what, values, size)


def out_of_range(name: str, what: str, values: Array, size: int) -> ValueError:
    """The error for integers that are not all in 0..size-1."""
    return ValueError(f"{name}: expected values in {what}0..{size - 1}, got {int(values.min())}..{int(values.max())}")
