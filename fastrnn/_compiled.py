"""Shared libraries that are compiled on demand, against what is installed here, and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path


class CompileError(RuntimeError):
    """There is no compiler, or it fails: its text."""


def compiler() -> str | None:
    """The C++ compiler: CXX, else what the path has."""
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def folder() -> Path:
    """Where the libraries are: XDG_CACHE_HOME/fastrnn, else ~/.cache/fastrnn."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastrnn"


def library(name: str, made_of: Iterable[str | bytes]) -> Path:
    """The library's file, there or not. made_of: all that decides what is in it, or what it fits."""
    key = hashlib.sha256()
    for part in made_of:
        data = part.encode() if isinstance(part, str) else part
        key.update(len(data).to_bytes(8, "little") + data)
    return folder() / f"{name}_{key.hexdigest()[:16]}.so"


def unsafe(path: Path) -> str | None:
    """Why a library must not be loaded from there: another user could have written it. None: it may be."""
    if not hasattr(os, "getuid"):
        return None
    for each in (path.parent, path):
        if each.exists():
            facts = each.stat()
            if facts.st_uid != os.getuid():
                return f"{each} belongs to another user"
            if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"others may write to {each}"
    return None


def build(command: Sequence[str], path: Path) -> None:
    """Runs the compiler's command, to which -o is added. The library appears whole or not at all, also where two build
    it at once. Raises CompileError; OSError where the folder cannot be written to."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (why := unsafe(path)) is not None:
        raise CompileError(f"{why}: nothing is loaded from there")
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        fresh = Path(temporary) / "fresh.so"
        try:
            result = subprocess.run([*command, "-o", str(fresh)], capture_output=True, text=True, check=False)
        except OSError as error:
            raise CompileError(f"{command[0]}: {error.strerror}") from error
        if result.returncode:
            raise CompileError(result.stderr.strip() or f"{command[0]} ends with {result.returncode}")
        fresh.chmod(0o700)
        os.replace(fresh, path)
