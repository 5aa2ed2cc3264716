"""What the commands share."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import fastrnn

from .. import _threads

DTYPES = {"f32": "float32", "float32": "float32", "f64": "float64", "float64": "float64"}


class UsageError(Exception):
    """The command cannot do what was asked; its text is for the user. Exit code 2."""


def is_setting(error: BaseException) -> bool:
    """True for an environment variable that cannot work, whatever the command was about."""
    return isinstance(error, (RuntimeError, ValueError)) and str(error).startswith("FASTRNN_")


def option_error(option: str, error: BaseException) -> UsageError:
    """The error as one of this option, or of the environment variable that it names."""
    return UsageError(str(error) if is_setting(error) else f"{option}: {error}")


def require(module: str, extra: str = "cli") -> Any:
    """Imports a module that an extra brings, or says how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        try:
            mark = f'extra == "{extra}"'
            wanted = [line.split(";")[0].strip() for line in metadata.requires("fastrnn") or () if mark in line]
        except metadata.PackageNotFoundError:  # the source folder
            wanted = [f"fastrnn[{extra}]"]
        line = " ".join(f'"{requirement}"' for requirement in wanted)
        raise UsageError(f"this needs {module.split('.')[0]} ({error}); to get it: pip install {line}") from error


def backend_names(asked: str | None) -> list[str]:
    """The CPU backends in a comma-separated list, all available ones for None. Unknown or unavailable: UsageError."""
    known = {backend.name: backend for backend in fastrnn.backends() if backend.device == "cpu"}
    if asked is None:
        return [name for name, backend in known.items() if backend.available]
    names = list(dict.fromkeys(name.strip() for name in asked.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"--backend: expected one of {', '.join(known)}, got {name!r}")
        if not known[name].available:
            raise UsageError(f"--backend: {name} is not available: {known[name].reason}")
    return names


def at_least(low: int, at_most: float = math.inf) -> Any:
    """An argparse type: an int of at least low."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"expected at least {low}, got {value}")
        if value > at_most:
            raise argparse.ArgumentTypeError(f"expected at most {at_most}, got {value}")
        return value

    parse.__name__ = "int"
    return parse


thread_count = at_least(1, _threads.MOST)  # an argparse type


def seconds(text: str) -> float:
    """An argparse type: a duration."""
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 3600, got {text}")
    return value


seconds.__name__ = "float"


def check_outputs(args: argparse.Namespace, *options: str, moved: bool = False) -> None:
    """UsageError where one of these options names a file that cannot be written: before the work, not after it.

    moved: the file is written beside its place and then moved there.
    """
    for option in options:
        path: Path | None = getattr(args, option)
        if path is None:
            continue
        folder = path.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"--{option}: there is no directory {path.parent}")
        if path.is_dir():
            raise UsageError(f"--{option}: expected a file to write, got the directory {path}")
        there = path.exists()
        if moved and there and not path.is_file():
            raise UsageError(f"--{option}: expected a file to write, got the device or pipe {path}")
        for place, written in ((path, there), (folder, moved or not there)):
            if written and not os.access(place, os.W_OK):
                raise UsageError(f"--{option}: expected a place to write to, got {place}, which is read-only")


def print_table(table: Any, console: Any) -> None:
    """A table of rich's with every figure whole: closer together where the console is narrow, else beyond its edge."""

    def width() -> int:
        return int(console.measure(table, options=console.options.update(width=10_000)).maximum)

    if table.box and width() > console.width:
        table.padding = 0
    table.width = width()
    console.print(table, crop=False)


def write_json(path: Path, value: Any) -> None:
    """Writes a report and says so on stderr; what is not finite becomes null."""
    try:
        path.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json: {error}") from error
    print(f"wrote {path}", file=sys.stderr)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
