"""Stand-ins for torch's tensors, for the calls of the native module that take them; they need no PyTorch."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .cases import Problem
from .kernels import native

Array = np.ndarray[Any, Any]

NO_TORCH: Any = ModuleType("torch")  # what the native module looks up in torch, where there is none
NO_TORCH.float32, NO_TORCH.float64 = object(), object()


@pytest.fixture(autouse=True)
def dtypes_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the calls: a signal in the middle of torch's import would leave it half done."""
    if find_spec("torch") is None:
        monkeypatch.setitem(sys.modules, "torch", NO_TORCH)
    else:
        import_module("torch")


class Tensor:
    """What the native module asks of a torch.Tensor."""

    def __init__(self, array: Array, dense: bool = True, negated: bool = False, **other: Any) -> None:
        self.array, self.dense, self.negated = array, dense, negated
        self.at = other.get("at", array.ctypes.data * bool(array.size))
        self.count = other.get("count", array.size)
        self.kind = other.get("kind", array.dtype.name)
        self.sizes = other.get("sizes", array.shape)

    @property
    def dtype(self) -> Any:
        return getattr(import_module("torch"), self.answer(self.kind))

    @property
    def shape(self) -> Any:
        return self.answer(self.sizes)

    def answer(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def is_contiguous(self) -> Any:
        return self.answer(self.dense)

    def is_neg(self) -> Any:
        return self.answer(self.negated)

    def data_ptr(self) -> Any:
        return self.answer(self.at)

    def numel(self) -> Any:
        return self.answer(self.count)


def tensor(array: Array | None) -> Tensor | None:
    return None if array is None else Tensor(array)


def sizes(p: Problem) -> tuple[int, int, int, int]:
    return (*p.x.shape[:2], p.x.shape[2], p.H)  # type: ignore[return-value]


def forward_tensors(p: Problem, **other: Any) -> Any:
    arrays = {name: getattr(p, name) for name in ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh")}
    given = {**{name: tensor(a) for name, a in arrays.items()}, **other}
    wide = p.x.dtype == np.float64
    return native().forward_tensors(*given.values(), *sizes(p), wide, p.nonlinearity == "relu", p.reverse, 2)


def backward_tensors(p: Problem, output: Array, needs: tuple[bool, ...] = (True,) * 5, **other: Any) -> Any:
    arrays = {name: getattr(p, name) for name in ("d_output", "d_h_n", "x", "h_0", "w_ih", "w_hh")}
    given = {**{name: tensor(a) for name, a in arrays.items()}, **other}
    given = {"d_output": given.pop("d_output"), "d_h_n": given.pop("d_h_n"), "output": tensor(output), **given}
    wide, relu = p.x.dtype == np.float64, p.nonlinearity == "relu"
    return native().backward_tensors(*given.values(), *sizes(p), wide, *needs, relu, p.reverse, 2)
