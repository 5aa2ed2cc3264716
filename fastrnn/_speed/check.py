"""Check first, then time: an arm's results against float64, and how far off they may be.

An error is the largest |computed - exact| over the largest |exact| of its array; of a sum over rows and steps, over the
root of its addends' squares, where they cancel and that is more. The limit is FACTOR times what the reference itself
errs in float32 on the same problem, scaled to the dtype, or SIGMAS sqrt(n) eps / 2 if that is more: n roundings in the
sums that make one element, as if independent: for weights those over rows and steps, and those of a step itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import numpy as np

from .._backends import reference
from .._backends.options import Array, RnnOptions
from .arms import RESULTS, Problem

FACTOR = 10.0
SIGMAS = 8.0


@dataclass(frozen=True)
class Error:
    """Of one array; NaN where it is not finite or has another shape."""

    value: float
    limit: float

    @property
    def right(self) -> bool:
        return self.value <= self.limit


class Truth:
    """The results of a problem in float64, by the reference, and the limits for one dtype."""

    def __init__(self, problem: Problem) -> None:
        self.dtype = problem.x.dtype
        B, T, I, H = problem.shape
        # One BLAS thread: on a busy machine two would wait for each other at every step.
        with import_module("threadpoolctl").threadpool_limits(1, "blas"):
            wide = problem.astype("float64")
            self._exact = dict(zip(RESULTS, _reference(wide), strict=True))
            self._scales = {name: float(np.max(np.abs(exact))) or 1.0 for name, exact in self._exact.items()}
            for name, size in _sizes_of_sums(wide, self._exact["output"]).items():
                self._scales[name] = max(self._scales[name], size)
            narrow = self._errors(_reference(problem.astype("float32")))
        scale = float(np.finfo(self.dtype).eps / np.finfo(np.float32).eps)
        terms = {name: I + H + (T * B if name in ("d_w_ih", "d_w_hh", "d_b") else 0) for name in RESULTS}
        floor = {name: SIGMAS * np.sqrt(n) * float(np.finfo(self.dtype).eps) / 2 for name, n in terms.items()}
        self.limits = {name: max(FACTOR * scale * narrow[name], floor[name]) for name in RESULTS}

    def judge(self, results: Any) -> dict[str, Error]:
        """The errors of what Arm.training returned, or of what Arm.forward did."""
        return {name: Error(error, self.limits[name]) for name, error in self._errors(results).items()}

    def _errors(self, results: Any) -> dict[str, float]:
        return {
            name: _error(np.asarray(got), self._exact[name]) / self._scales[name]
            for name, got in zip(RESULTS, results, strict=False)
        }


def _reference(p: Problem) -> tuple[Array, ...]:
    options = RnnOptions()
    output, h_n = reference.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, options)
    gradients = reference.rnn_backward(p.d_output, p.d_h_n, output, p.x, p.h_0, p.w_ih, p.w_hh, options)
    return (output, h_n, *cast(tuple[Array, ...], tuple(gradients)))


def _sizes_of_sums(p: Problem, output: Array) -> dict[str, float]:
    """The largest root of the sum of squares that an element of each weight gradient has for addends."""
    x = np.zeros_like(output)
    d_z = cast(
        Array, reference.rnn_backward(p.d_output, p.d_h_n, output, x, p.h_0, None, p.w_hh, RnnOptions(), ("x",)).d_x
    )
    entered = np.concatenate([p.h_0[None], output[:-1]])
    squares = np.square(d_z).reshape(-1, d_z.shape[-1]).T
    addends = {"d_w_ih": p.x, "d_w_hh": entered, "d_b": np.ones((*output.shape[:2], 1))}
    return {
        name: float(np.sqrt(np.max(squares @ np.square(a).reshape(-1, a.shape[-1])))) for name, a in addends.items()
    }


def _error(computed: Any, exact: Any) -> float:
    if computed.shape != exact.shape:
        return float("nan")
    return float(np.max(np.abs(computed - exact)))
