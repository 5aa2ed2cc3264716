"""Python code in a process of its own, away from the source folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile


def run_python(
    code: str, timeout: float = 60, clean: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the code in a new interpreter in an empty folder; clean drops every FASTRNN_* variable but those that say
    what is tested: the source folder, or a fault (tests/mutations.py, which leaves out .pth files by -S)."""
    what = ("FASTRNN_ALLOW_SOURCE", "FASTRNN_FAULT")
    kept = {k: v for k, v in os.environ.items() if not (clean and k.startswith("FASTRNN_")) or k in what}
    python = [sys.executable, *["-S"] * sys.flags.no_site]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [*python, "-c", code],
            env={**kept, **environment}, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip


def output_of(code: str, timeout: float = 60, clean: bool = True, **environment: str) -> str:
    """What the code prints; its failure is an AssertionError with its standard error."""
    result = run_python(code, timeout, clean, **environment)
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout.strip()
