"""The C sources beside this file as libraries, for LD_PRELOAD or ctypes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def build(name: str, folder: Path) -> str:
    """The path of what `name`.c becomes. A missing compiler is an error where the backend cpp has to be there."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        expected = "cpp" in os.environ.get("FASTRNN_EXPECT_BACKENDS", "").split(",")
        (pytest.fail if expected else pytest.skip)("no C compiler")
    source, library = Path(__file__).with_name(f"{name}.c"), folder / f"{name}.so"
    options = ("-O1", "-fPIC", "-shared", "-o", str(library))
    subprocess.run([compiler, *options, str(source), "-ldl", "-pthread"], check=True)
    return str(library)
