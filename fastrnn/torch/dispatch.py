"""Who computes, and in which dtype: a backend of fastrnn, or torch's own layer where none can, said once a reason."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad
from torch.nn import Parameter

from .. import _backends
from .._backends.options import Implementation

PLAIN = (Tensor, Parameter)  # subclasses do as they like
HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64, *HALVES)
# torch.nn.RNN computes by layer.mode; its attribute nonlinearity, changed after construction, has no effect
NONLINEARITIES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
_MIXED = (torch.float32, *HALVES)  # what autocast takes together
_ALIKE = {dtype: ((dtype,), dtype) for dtype in FLOATS}

_warned: set[tuple[str, str]] = set()  # layer, reason


# What backend() found. Not functools.cache: without the GIL that is locked in each call, and a fork would keep it so.
_chosen: dict[str, Implementation | str] = {}


def backend(device: str = "cpu") -> Implementation | str:
    """The functions of the backend that computes on this kind of device, or why torch's own layer does: "" where that
    was asked for.

    FASTRNN_DISABLE and FASTRNN_BACKEND are read once, at the first forward. Raises ValueError and RuntimeError for
    values that are impossible.
    """
    if device not in _chosen:
        _chosen[device] = _choose(device)
    return _chosen[device]


def _choose(device: str) -> Implementation | str:
    disable = os.environ.get("FASTRNN_DISABLE") or "0"
    if disable not in ("0", "1"):
        raise ValueError(f"FASTRNN_DISABLE: expected 0 or 1, got {disable!r}")
    if disable == "1":
        return ""
    if not any(known.device == device for known in _backends.backends()):
        return f"for tensors on device {device}"
    if os.environ.get("FASTRNN_BACKEND", "auto") == "auto":
        fastest, missing = _backends.fastest(device)
        if not fastest.available or fastest.name == "numpy":  # slower than torch.nn.RNN
            return f"where no fast backend is available ({'; '.join(missing)})"
    return _backends.get("auto", device)


def kind(tensor: Any) -> str:
    """The kind of device that a tensor is on, as the registry of backends names it."""
    return str(tensor.device.type)


def arithmetic(dtype: Any, device: str = "cpu") -> tuple[tuple[torch.dtype, ...], Any]:
    """For an input of this dtype: the dtypes that the other tensors may have, none where torch has to see to it, and
    that of the results. Where the latter is one of HALVES, float32 is computed in."""
    if dtype in _MIXED and torch.is_autocast_enabled(device):
        return _MIXED, torch.get_autocast_dtype(device)
    return _ALIKE.get(dtype, ((), dtype))


def eager_arithmetic(dtype: Any, device: str) -> tuple[tuple[torch.dtype, ...], Any]:
    """arithmetic, in less time; torch.compile does not know what it asks."""
    if torch._C._is_any_autocast_enabled():
        return arithmetic(dtype, device)
    return _ALIKE.get(dtype, ((), dtype))


def surroundings() -> str | None:
    """Why torch's own operators have to be called now, whatever the arguments are; None: no reason."""
    if torch._C._are_functorch_transforms_active() and any(
        interpreter.key() == TransformType.Functionalize for interpreter in retrieve_all_functorch_interpreters()
    ):
        return "inside torch.func.functionalize"
    if torch._C._get_tracing_state() is not None:
        return "inside torch.jit.trace"
    return None


def unfit(transformed: bool, more: bool) -> str | None:
    """Why torch's own operators have to be called for tensors on a GPU; None: no reason. more: masks, leaky units or
    checkpoints, which torch's layer refuses by name."""
    if transformed:
        return "where tensors on a GPU meet torch.func, forward mode or a mode that watches operators"
    return "for tensors on a GPU with more than torch.nn.RNN's own options" if more else None


def transformed() -> bool:
    """Whether more may be asked for than values and a first derivative: inside a torch.func transform, inside
    forward-mode differentiation, inside a mode that watches torch's operators (make_fx, FlopCounterMode, ...)."""
    return bool(
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
    )


def mapped(tensor: Tensor) -> bool:
    """Whether torch.vmap maps over it, on any level."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def unwrapped(tensor: Tensor) -> Tensor:
    """What it is without torch.func's transforms: all that vmap maps over."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def watched() -> bool:
    """Where transformed: whether by a mode alone, which then sees fastrnn's operators."""
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def about(tensors: Iterable[Any]) -> str:
    """Why a backend cannot take these tensors, while torch's own layer can."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            continue
        if tensor.device.type != "cpu":
            return f"for tensors on device {tensor.device.type}"
        if tensor.dtype not in FLOATS:
            return f"for tensors of {tensor.dtype}"
        if type(tensor) not in PLAIN:
            return f"for tensors of type {type(tensor).__name__}"
        if tensor.layout is not torch.strided:
            return f"for tensors of layout {tensor.layout}"
    return "for these arguments"


def say_once(why: str, layer: str = "RNN") -> None:
    """Warns that torch.nn's layer computes; nothing for "", nor for a reason that was given before."""
    if why and (layer, why) not in _warned:
        _warned.add((layer, why))
        stock = f"torch.nn.{layer.removesuffix('Ensemble')}"
        warnings.warn(
            f"fastrnn.torch.{layer} runs at the speed of {stock}, which computes {why}. FASTRNN_DISABLE=1 makes it do "
            "so always, without this warning.",
            RuntimeWarning,
            stacklevel=2,
        )
