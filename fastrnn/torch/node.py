"""The plain layer and step as C++ functions that autograd records: csrc/torch/rnn_node.cc, compiled on demand by
`fastrnn torch-node` against the installed torch. Where it was not, autograd.py's and cell.py's Function serve: the same
bits, some 20 us later.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .. import _compiled
from .._backends.options import RnnOptions

COMMAND = "fastrnn torch-node"
_SOURCES = ("rnn_node.cc", "rnn_calls.h")


class State(NamedTuple):
    """Whether the node is compiled: where it is or would be, and what keeps it from being used (None: nothing)."""

    path: Path
    why_not: str | None


def sources() -> Path:
    """The folder of rnn_node.cc."""
    installed = Path(__file__).parents[1] / "csrc" / "torch"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "csrc" / "torch"


def switch() -> str:
    """FASTRNN_TORCH_NODE: "0" never, "1" an error where it is not compiled, "" where it is. ValueError for others."""
    value = os.environ.get("FASTRNN_TORCH_NODE", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"FASTRNN_TORCH_NODE: expected 0 or 1, got {value!r}")
    return value


@cache
def _name() -> Path:
    facts = (torch.__version__, str(torch.version.git_version), platform.machine())
    python = sysconfig.get_config_var("EXT_SUFFIX") or ""
    return Path(_compiled.library("rnn_node", (*facts, python, *((sources() / n).read_bytes() for n in _SOURCES))).name)


def library() -> Path:
    """The file of the node that fits this Python, this torch and these kernels."""
    return _compiled.folder() / _name()


def state() -> State:
    """What is there, without loading it."""
    path = library()
    if not path.exists():
        return State(path, "not compiled")
    return State(path, _compiled.unsafe(path))


def command() -> list[str]:
    """The compiler's command, without the output. Raises CompileError."""
    compiler = _compiled.compiler()
    if os.name == "nt":
        raise _compiled.CompileError("it is written for GCC and Clang on Linux and macOS")
    if compiler is None:
        raise _compiled.CompileError("no C++ compiler found: install one, or name it in CXX")
    from torch.utils import cpp_extension  # half a second

    headers = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    libraries = cpp_extension.library_paths()
    return [
        *(compiler, "-std=c++20", "-O2", "-shared", "-fPIC", f"-I{sources()}"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-isystem{path}" for path in headers),
        *("-Wall", "-Wextra", "-Wconversion", "-Wshadow"),
        *(["-Werror"] if os.environ.get("FASTRNN_WERROR") == "ON" else []),
        str(sources() / _SOURCES[0]),
        *(flag for path in libraries for flag in (f"-L{path}", f"-Wl,-rpath,{path}")),
        *("-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"),
        *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []),
    ]


def build() -> Path:
    """Compiles it; what runs already goes on without. Raises _compiled.CompileError with the compiler's text."""
    path = library()
    _compiled.build(command(), path)
    return path


_chosen: dict[str, Any] = {}


def of(functions: Any) -> Any:
    """The node, of these functions of a backend: layer and step, which return None for what they leave to Python.
    None: there is none. Read once, at the first forward, as dispatch.backend() is."""
    calls = getattr(functions, "torch_calls", None)
    if calls is None:
        return None
    if "node" not in _chosen:
        _chosen["node"] = _choose(calls)
    return _chosen["node"]


def _choose(calls: Any) -> Any:
    wish = switch()
    if wish == "0":
        return None
    try:
        path, why_not = state()
    except (OSError, RuntimeError) as error:  # no sources, no home
        path, why_not = Path(), str(error)
    if why_not is None:
        try:
            return load(path, calls)
        except ImportError as error:
            why_not = str(error)
    if wish == "1":
        raise RuntimeError(f"FASTRNN_TORCH_NODE=1, but there is no node ({why_not}); to compile it: {COMMAND}")
    return None


def load(path: Path, calls: Any) -> Any:
    """The module in this file. Raises ImportError."""
    loader = ExtensionFileLoader("rnn_node", str(path))
    spec = spec_from_file_location("rnn_node", path, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    module.start(calls, backward)
    return module


def backward(
    step: bool,
    saved: tuple[Any, ...],
    modified: bool,
    relu: bool,
    needs: tuple[bool, ...],
    d_output: Tensor | None,
    d_h_n: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """What the node leaves to Python: create_graph, transforms, batches of gradients, tensors that are not dense."""
    from . import autograd, cell  # which use this module

    x, h_0, w_ih, w_hh, b_ih, b_hh, output = saved
    weights = (w_ih, w_hh) if b_ih is None else (w_ih, w_hh, b_ih, b_hh)
    ctx = SimpleNamespace(
        saved_tensors=(x, h_0, *weights, output),
        witness=SimpleNamespace(_version=int(modified)),
        version=0,
        needs_input_grad=(*needs[:2], False, *needs[2 : 2 + len(weights)]),
    )
    if step:
        ctx.nonlinearity = "relu" if relu else "tanh"
        found = cell.Step.backward(ctx, cast(Tensor, d_h_n))
    else:
        ctx.options = (RnnOptions("relu" if relu else "tanh"),)
        found = autograd.RnnLayer.backward(ctx, d_output, d_h_n)
    d_x, d_h_0, _, *d_weights = found
    return (d_x, d_h_0, *d_weights, *[None] * (4 - len(d_weights)))
