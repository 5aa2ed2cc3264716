"""The command line: `fastrnn info | check | compare | bench | sentiment | torch-node`, the same as `python -m fastrnn`.

Data goes to stdout, log and progress to stderr. Exit codes: 0 right, 1 a check failed, 2 usage (also an impossible
environment variable, too little memory, an output that cannot be written), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import fastrnn

from . import bench, check, compare, info, sentiment, torch_node
from ._common import UsageError, is_setting

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EBADF)  # of stdout, where no file has a name


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        print(f"fastrnn {fastrnn.__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="fastrnn", description="The tanh (Elman) RNN, fused: what runs here, and how well."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for command in (info, check, compare, bench, sentiment, torch_node):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    stdout: Any = sys.stdout
    if getattr(stdout, "errors", None) == "strict" and hasattr(
        stdout, "reconfigure"
    ):  # a character that the terminal lacks: \xef
        stdout.reconfigure(errors="backslashreplace")
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has gone: `fastrnn info | head`
        _drop_stdout()
        return 0
    except Exception as error:
        text = _explained(error)
        if text is None:
            raise
        print(f"fastrnn {args.command}: error: {text}", file=sys.stderr)
        return 2
    return code


def _explained(error: Exception) -> str | None:
    """What is the user's to change; None: a bug, whose traceback is wanted."""
    if isinstance(error, UsageError) or is_setting(error):
        return str(error)
    if isinstance(error, MemoryError):
        return f"this does not fit into memory: {error}" if str(error) else "this does not fit into memory"
    if isinstance(error, OSError) and error.filename is None and error.errno in _FULL:
        _drop_stdout()
        return f"the output cannot be written: {error}"
    return None


def _drop_stdout() -> None:
    """What is still in its buffer is not tried again when Python ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
