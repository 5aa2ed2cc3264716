"""Python code that finds the stand-in for CuPy (tests/helpers/fake_cupy), in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

from .processes import output_of

TESTS = Path(__file__).resolve().parents[1]
PATHS = os.pathsep.join([str(TESTS / "helpers" / "fake_cupy"), str(TESTS)])

PRELUDE = f"""
import sys, warnings
sys.path[:0] = {PATHS.split(os.pathsep)!r}
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "fastrnn runs on the slower backend")
import numpy as np, cupy, fastrnn
from helpers.cases import Case, random_cases, GRADIENTS, NEEDS
from helpers.compare import normalised_error
def on_gpu(value):
    return cupy.ndarray(np.array(value)) if isinstance(value, np.ndarray) else value
def message(kind, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as error:
        return str(error)
    raise AssertionError("nothing was raised")
"""


def run(code: str, **environment: str) -> str:
    """What the code prints after the prelude. Without the compiled node of fastrnn.torch, which a user may have: it
    looks at the real device of a tensor that only says it is on a GPU."""
    return output_of(PRELUDE + code, timeout=300, FASTRNN_TORCH_NODE="0", **environment)
