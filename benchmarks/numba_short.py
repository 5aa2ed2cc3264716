"""The `numba` backend beside the reference where calls are short: B 1 to 4, T 1 to 64, H to 128.

    python benchmarks/numba_short.py --threads 1

Both take turns in one process; the figure of each is its fastest turn, which a busy machine disturbs least. For each
T and dtype: how many times as fast as the reference `numba` is, the least over the shapes, its shape, and the median;
exit code 1 where it is slower anywhere. The first run compiles the kernels.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn._speed.arms import OPS, Problem, backend_arm, equal_threads
from fastrnn._speed.shapes import Shape
from fastrnn._speed.timing import turn

STEPS = (1, 2, 4, 8, 16, 64)
ROWS = (1, 2, 4)
HIDDEN = (1, 8, 16, 31, 64, 100, 127, 128)  # I = H
TURN = 2e-4  # seconds


def ratio(calls: list[Callable[[], Any]], seconds: float, rounds: int = 10) -> float:
    """How many times as long as the first call the second one takes."""
    fastest = [float("inf")] * 2
    end = time.perf_counter() + seconds
    while rounds > 0 or time.perf_counter() < end:
        fastest = [min(best, turn(call, least=TURN)) for best, call in zip(fastest, calls, strict=True)]
        rounds -= 1
    return fastest[1] / fastest[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of both; default 1")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each shape, dtype and op at least; default 0.1")
    options = parser.parse_args()
    slower = 0
    print(f"{'T':>3} {'dtype':8}" + "".join(f" {op + ', least':>17} {'B x T x I x H':16} {'median':>6}" for op in OPS))
    with equal_threads(options.threads):
        for T in STEPS:
            for dtype in ("float32", "float64"):
                line = f"{T:3} {dtype:8}"
                for op in OPS:
                    found = []
                    for shape in (Shape(B, T, H, H) for B in ROWS for H in HIDDEN):
                        problem = Problem.draw(shape, dtype)
                        calls = [getattr(backend_arm(name, problem), op) for name in ("numba", "numpy")]
                        found.append((ratio(calls, options.seconds), shape))
                    least, shape = min(found)
                    slower += least < 1
                    line += f" {least:17.2f} {shape!s:16} {np.median([value for value, _ in found]):6.2f}"
                print(line, flush=True)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
