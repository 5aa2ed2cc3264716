"""Leaky units: alpha as a constructor takes it, and as the last of each direction's weights, where all find it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

_NUMBER = "_alpha_number"  # an attribute: the constructor's number, for what lost the buffer's value


def register(module: Module, alpha: Any, like: Tensor) -> None:
    """module.alpha: a parameter, a buffer, or None. like is a weight (H, .).

    A Parameter is one of the module's, a tensor a buffer of its state_dict; a number is a setting, which state_dict
    leaves out and refill puts back. Raises TypeError for another kind or dtype, ValueError for a shape but () and (H),
    and for values that are not in (0, 1].
    """
    values = alpha
    if alpha is None or isinstance(alpha, Parameter):
        module.register_parameter("alpha", alpha)
    elif isinstance(alpha, Tensor):
        module.register_buffer("alpha", alpha)
    elif isinstance(alpha, (int, float)) and not isinstance(alpha, bool):
        module.__dict__[_NUMBER] = alpha
        values = torch.as_tensor(alpha, dtype=like.dtype, device="cpu")
        alpha = torch.as_tensor(alpha, dtype=like.dtype, device=like.device)
        module.register_buffer("alpha", alpha, persistent=False)
    else:
        raise TypeError(f"alpha: expected None, float, torch.Tensor or Parameter, got {type(alpha).__name__}")
    if alpha is None:
        return
    if alpha.dtype is not like.dtype:
        raise TypeError(f"alpha: expected {like.dtype}, got {alpha.dtype}")
    if alpha.shape not in ((), like.shape[:1]):
        raise ValueError(f"alpha: expected shape () or (H,) = ({len(like)},), got {tuple(alpha.shape)}")
    if not values.is_meta:
        values = values.detach().reshape(-1)
        wrong = values[~((values > 0) & (values <= 1))]
        if len(wrong):
            raise ValueError(f"alpha: expected values in (0, 1], got {wrong[0].item()}")


def refill(module: Module) -> None:
    """Puts the constructor's number back into the buffer alpha, if it was one and still is."""
    number, alpha = module.__dict__.get(_NUMBER), module.__dict__["_buffers"].get("alpha")
    own = number is not None and alpha is not None and "alpha" in module._non_persistent_buffers_set
    if own and not alpha.dim():
        with torch.no_grad():
            alpha.copy_(torch.as_tensor(number, dtype=alpha.dtype, device=alpha.device))


def applied(module: Module, apply: Callable[..., Any], *how: Any) -> Any:
    """Module._apply, which to_empty, to, half, ... are made of. A number comes back from the meta device."""
    buffers = module.__dict__["_buffers"]
    lost = (before := buffers.get("alpha")) is not None and before.is_meta
    made = apply(*how)
    if lost and not buffers["alpha"].is_meta:
        refill(module)
    return made


def of(module: Module, kind: type[Module]) -> Any:
    """module.alpha, in less time; None also where torch made the module."""
    own = module.__dict__
    found = own["_parameters"].get("alpha")
    if found is None:
        found = own["_buffers"].get("alpha")
    if found is None and type(module) is not kind:  # a subclass, maybe one of a parametrization's
        found = getattr(module, "alpha", None)
    return found


def shown(module: Module) -> str:
    """For extra_repr."""
    alpha = getattr(module, "alpha", None)
    if alpha is None:
        return ""
    if isinstance(alpha, Parameter) or alpha.dim() or alpha.is_meta:
        return f", alpha={type(alpha).__name__}{tuple(alpha.shape)}"
    return f", alpha={alpha.item():.4g}"


def fits(alpha: Any, H: int, accepted: Sequence[torch.dtype], plain: Sequence[type]) -> bool:
    """Whether the kernels can take it."""
    return type(alpha) in plain and alpha.dtype in accepted and alpha.is_cpu and alpha.shape in ((), (H,))


def split(weights: Sequence[Any]) -> tuple[list[Any], Any]:
    """Those of one direction without alpha, and alpha or None."""
    found = list(weights)
    return (found[:-1], found[-1]) if len(found) % 2 else (found, None)


def beside(weights: Sequence[Tensor], directions: int, alpha: Tensor) -> list[Tensor]:
    """alpha after the weights of each of so many directions; of what leaks already, alpha times as much comes in."""
    each, H, found = len(weights) // directions, len(weights[1]), []
    for way in range(directions):
        own, before = split(weights[way * each : (way + 1) * each])
        found += [*own, (alpha if before is None else alpha * before).expand(H)]
    return found
