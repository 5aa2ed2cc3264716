"""The compiled node of fastrnn.torch for tests: compiled once, into a folder of its own, and switched on and off."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest


@cache
def compiled() -> Any:
    """The loaded module; a reason to skip where there can be none."""
    from fastrnn import _compiled
    from fastrnn.torch import dispatch, node

    calls = getattr(dispatch.backend(), "torch_calls", None)
    if calls is None:
        return "the node calls the backend cpp"
    if node.state().why_not is None:  # the user's own
        return node.load(node.library(), calls)
    if _compiled.compiler() is None:
        return "no C++ compiler"
    folder, before = TemporaryDirectory(), os.environ.get("XDG_CACHE_HOME")
    _folders.append(folder)
    os.environ["XDG_CACHE_HOME"] = folder.name
    try:
        return node.load(node.build(), calls)
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


_folders: list[TemporaryDirectory[str]] = []  # until the interpreter ends


def library() -> Path:
    """The file of compiled(); skips where there is none."""
    module = compiled()
    if isinstance(module, str):
        _skip(module)
    return Path(module.__spec__.origin)


def _skip(why: str) -> None:
    """Fails where PyTorch and the backend cpp must be present: then the node must be, too."""
    backends = os.environ.get("FASTRNN_EXPECT_BACKENDS", "").split(",")
    if os.environ.get("FASTRNN_EXPECT_TORCH") == "1" and "cpp" in backends:
        pytest.fail(f"expected the node, but {why}")
    pytest.skip(why)


def use(patch: pytest.MonkeyPatch, on: bool) -> None:
    """fastrnn.torch records by the node, or by Python."""
    from fastrnn.torch import node

    found = compiled() if on else None
    if isinstance(found, str):
        _skip(found)
    patch.setitem(node._chosen, "node", found)


def recorded_by_node(tensor: Any) -> bool:
    """Whether its grad_fn is the node's, and not Python's, which bears the same name."""
    import torch

    name = type(tensor.grad_fn).__name__
    assert name == tensor.grad_fn.name()
    return name in ("RnnLayerBackward", "StepBackward") and not isinstance(
        tensor.grad_fn, torch.autograd.function.BackwardCFunction
    )
