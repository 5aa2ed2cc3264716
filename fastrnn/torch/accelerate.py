"""accelerate and restore: the layers of a model that is there already run on fastrnn's kernels, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import dispatch
from .cell import RNNCell
from .layer import RNN

_OURS: dict[type, type] = {nn.RNN: RNN, nn.RNNCell: RNNCell}
_STOCK = {ours: stock for stock, ours in _OURS.items()}
# What our classes have and torch's have not: a module's own attribute of such a name would get another meaning. One
# called reduce would not, which nothing calls.
_ADDED = {stock: {"alpha", *dir(ours)}.difference(dir(stock), ["reduce"]) for stock, ours in _OURS.items()}
_NONE = ("alpha", "_rates")  # of these None has none, and restore may leave it behind
_MARK = "_accelerated_by_fastrnn"  # an attribute, so that it goes with copies and pickles


@dataclass(frozen=True)
class Report:
    """What accelerate or restore did: its text is a table.

    Attributes:
        action: "accelerate" or "restore".
        swapped: the name of each module that was swapped -> the module.
        left: the name of each module that could have been expected to be -> why it was not.

    Names are those of model.named_modules(); "" is the model itself.
    """

    action: str
    swapped: dict[str, nn.Module]
    left: dict[str, str]

    def __str__(self) -> str:
        rows = [("swapped", name, repr(module)) for name, module in self.swapped.items()]
        rows += [("left", name, why) for name, why in self.left.items()]
        width = max((len(name or "(the model)") for _, name, _ in rows), default=0)
        lines = [f"{self.action}: {len(self.swapped)} swapped, {len(self.left)} left"]
        lines += [f"  {what:7}  {name or '(the model)':{width}}  {words}" for what, name, words in rows]
        return "\n".join(lines)

    __repr__ = __str__


def accelerate(model: nn.Module) -> Report:
    """Makes every torch.nn.RNN and torch.nn.RNNCell in the model a fastrnn.torch.RNN or RNNCell, in place.

    The modules stay the objects they are, and get another class: parameters, buffers, hooks, the training flag, what an
    optimizer or DistributedDataParallel holds of them, and modules that several parents share, are untouched, and
    nothing is copied. The model itself may be such a layer. Pickles of whole modules then need fastrnn to be loaded, a
    state_dict does not; isinstance(module, torch.nn.RNN) is False until restore(model).

    Left as they are, with the reason in the report: subclasses of the two, parametrized layers (parametrize afterwards,
    it works), layers whose forward was replaced, those with an attribute of their own that fastrnn gives a meaning
    (alpha, zoneout, ...), scripted ones, those of a dtype or on a device that no backend of fastrnn computes for, and
    all where no backend is fast or FASTRNN_DISABLE=1. torch.nn.LSTM and GRU are other layers: nothing is said of them.
    A second call finds nothing left to do.

    Returns a Report. Raises TypeError where model is no torch.nn.Module.
    """
    swapped, left = {}, {}
    for name, module in _modules(model):
        why = _why_not(module)
        if why is None:
            module.__class__ = _OURS[type(module)]
            module.__dict__[_MARK] = True
            swapped[name] = module
        elif why:
            left[name] = why
    return Report("accelerate", swapped, left)


def restore(model: nn.Module) -> Report:
    """Undoes accelerate: its layers are torch.nn's again, the same objects with the same parameters.

    Layers that were made as fastrnn.torch's are not touched. An accelerated layer that was parametrized since, or got a
    rate that torch.nn.RNN has not (zoneout, ...), is left, and reported: take that away first.

    Returns a Report. Raises TypeError where model is no torch.nn.Module.
    """
    swapped, left = {}, {}
    for name, module in _modules(model):
        if _MARK not in module.__dict__:
            continue
        rates = getattr(module, "_rates", None)
        extra = [] if rates is None else list(rates.named)
        if getattr(module, "alpha", None) is not None:
            extra.append("alpha")
        if extra:
            left[name] = f"torch.nn.RNN has no {' and no '.join(extra)}"
        elif type(module) in _STOCK:
            del module.__dict__[_MARK]
            module.__class__ = _STOCK[type(module)]
            swapped[name] = module
        else:
            left[name] = _of_another_class(module)
    return Report("restore", swapped, left)


def _modules(model: Any) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected torch.nn.Module, got {type(model).__name__}")
    return list(model.named_modules())


def _why_not(module: nn.Module) -> str | None:
    """None: to be swapped; "": nobody would expect it to be."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted: accelerate before torch.jit.script" if module.original_name in ("RNN", "RNNCell") else ""
    if type(module) not in _OURS:
        return _of_another_class(module) if isinstance(module, tuple(_OURS)) else ""
    if "forward" in module.__dict__:
        return "its forward was replaced"
    own = {*module.__dict__, *module._parameters, *module._buffers, *module._modules}
    taken = sorted(_ADDED[type(module)] & own)
    if taken := [name for name in taken if name not in _NONE or getattr(module, name) is not None]:
        return f"fastrnn.torch.{type(module).__name__} has another meaning for its own {' and '.join(taken)}"
    tensors = [*module.parameters(), *module.buffers()]
    for dtype in {tensor.dtype for tensor in tensors}.difference(dispatch.FLOATS):
        return f"its parameters are of {dtype}"
    for device in {tensor.device.type for tensor in tensors}:  # on meta nothing computes: it will move to the CPU
        functions = dispatch.backend() if device in ("cpu", "meta") else dispatch.backend(device)
        if isinstance(functions, str):
            return f"torch computes {functions}" if functions else "torch computes: FASTRNN_DISABLE=1"
    return None


def _of_another_class(module: nn.Module) -> str:
    if nn.utils.parametrize.is_parametrized(module):
        return "parametrized: remove the parametrizations first; afterwards they may be registered again"
    known = next(kind for kind in type(module).__mro__ if kind in _OURS or kind in _STOCK)
    return (
        f"{type(module).__name__} is a subclass of {'torch.nn' if known in _OURS else 'fastrnn.torch'}.{known.__name__}"
    )
