"""What the commands share."""

from __future__ import annotations

import argparse
import json
import math
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import fastrnn

DTYPES = {"f32": "float32", "float32": "float32", "f64": "float64", "float64": "float64"}


class UsageError(Exception):
    """The command cannot do what was asked; its text is for the user. Exit code 2."""


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


def at_least(low: int) -> Any:
    """An argparse type: an int of at least low."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"expected at least {low}, got {value}")
        return value

    parse.__name__ = "int"
    return parse


def seconds(text: str) -> float:
    """An argparse type: a duration."""
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 3600, got {text}")
    return value


seconds.__name__ = "float"


def check_folders(args: argparse.Namespace) -> None:
    """UsageError where --json or --plot name a folder that is not there: before the work, not after it."""
    for option in ("json", "plot"):
        path = getattr(args, option)
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"--{option}: there is no directory {path.parent}")


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
