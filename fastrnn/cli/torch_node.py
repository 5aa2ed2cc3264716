"""`fastrnn torch-node`: compiles the autograd node of fastrnn.torch, for the PyTorch that is installed.

Recorded calls of fastrnn.torch.RNN (one layer, one direction, no options) and RNNCell then take some 20 us less; the
bits are the same. Needed: a C++20 compiler (CXX names it). The library is kept in XDG_CACHE_HOME/fastrnn, else
~/.cache/fastrnn, and fits one version of Python, PyTorch and fastrnn: after an update run the command again.
FASTRNN_TORCH_NODE=0 does without.
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from typing import Any

from .. import _compiled
from ._common import UsageError, require


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "torch-node", help="compile what makes short training steps of fastrnn.torch faster", description=__doc__
    )
    parser.add_argument("--force", action="store_true", help="compile although it is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compiles the node and loads it, as fastrnn.torch will."""
    require("torch", "torch")
    node, dispatch = import_module("fastrnn.torch.node"), import_module("fastrnn.torch.dispatch")
    functions = dispatch.backend()
    calls = getattr(functions, "torch_calls", None)
    if calls is None:
        raise UsageError("the node calls the backend cpp, which fastrnn.torch does not use here: see fastrnn info")
    path, why_not = node.state()
    if why_not is None and not args.force:
        print(f"compiled already: {path}")
        return 0
    start = time.perf_counter()
    try:
        path = node.build()
        node.load(path, calls)
    except _compiled.CompileError as error:
        raise UsageError(
            f"{error}\nIt needs a C++20 compiler, GCC 11 or Clang 12 or newer, which CXX may name, and PyTorch 2.13 or "
            "one with the same headers. Without the node all works as before, at Python's speed"
        ) from error
    except (OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    print(f"compiled in {time.perf_counter() - start:.0f} s: {path}")
    return 0
