"""The speed report: arms over shapes, checked, then timed in turns; a dict that is JSON as it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import limits
from .arms import OPS, Arm, ArmError, Maker, Problem, equal_threads
from .check import Error, Truth
from .shapes import Shape
from .timing import Spread, interleave

REFERENCE = "numpy"


def measure(
    shapes: Sequence[Shape],
    makers: Mapping[str, Maker],
    *,
    dtype: str = "float32",
    threads: int = 1,
    budget: float = 1.0,
    progress: Callable[[Shape], Any] = lambda shape: None,
) -> dict[str, Any]:
    """One row a shape; progress is called before each. `budget`: seconds of timing for a shape, at least three rounds.

    An arm whose results are beyond their limits (check.py) is not timed: its row says so, and `right` is False.
    """
    rows = []
    with equal_threads(threads):
        for shape in shapes:
            progress(shape)
            rows.append(_row(shape, makers, dtype, threads, budget))
    _add_percentages(rows, dtype)
    return {
        "settings": {"dtype": dtype, "threads": threads, "instruction_set": limits.isa(), "seconds_a_shape": budget},
        "arms": list(makers),
        "shapes": rows,
        "geometric_means": geometric_means(rows),
        "right": all(arm["right"] for row in rows for arm in row["arms"].values()),
    }


def _row(shape: Shape, makers: Mapping[str, Maker], dtype: str, threads: int, budget: float) -> dict[str, Any]:
    problem = Problem.draw(shape, dtype)
    truth = Truth(problem)
    arms: dict[str, Arm] = {}
    checked: dict[str, dict[str, Error]] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            arms[name] = make(problem)
            checked[name] = _check(arms[name], truth)
        except ArmError as error:
            checked[name], failed[name] = {}, str(error)
    del truth
    peaks: list[float] = []
    bandwidths: list[float] = []

    def measure_limits() -> None:
        for figures, figure in (
            (peaks, limits.fma_peak(dtype, threads)),
            (bandwidths, limits.weight_bandwidth(shape, dtype, threads)),
        ):
            if figure is not None:
                figures.append(figure)

    right = [name for name, errors in checked.items() if _right(errors)]
    calls = {(name, op): getattr(arms[name], op) for name in right for op in arms[name].ops}
    spins = {(name, op) for name, op in calls if arms[name].spins and threads > 1}
    times = interleave(calls, budget=budget, each_round=measure_limits, spins=spins) if calls else {}
    peak, bandwidth = (Spread(tuple(figures)) if figures else None for figures in (peaks, bandwidths))

    row: dict[str, Any] = {
        "shape": shape._asdict(),
        "fma_peak_gflops": peak and peak.as_json(),
        "weight_bandwidth_gb_s": bandwidth and bandwidth.as_json(),
        "arms": {},
    }
    for name, errors in checked.items():
        arm: dict[str, Any] = {
            "right": _right(errors),
            "max_error": float(np.max([error.value for error in errors.values()])) if errors else None,
            "errors": {key: {"error": error.value, "limit": error.limit} for key, error in errors.items()},
        }
        if name in failed:
            arm["failed"] = failed[name]
        for op in OPS:
            if (name, op) in times:
                seconds, base = times[name, op], times.get((REFERENCE, op))
                arm[op] = {
                    "seconds": seconds.as_json(),
                    "gflops": 1e-9 * shape.flops(op == "training") / seconds.median,
                    "speed_up": base.median / seconds.median if base else None,
                }
        row["arms"][name] = arm
    return row


def _add_percentages(rows: Sequence[dict[str, Any]], dtype: str) -> None:
    """To each arm's ops; of the best round of the run: what disturbs a machine only lowers its limits."""
    peaks = [row["fma_peak_gflops"]["max"] for row in rows if row["fma_peak_gflops"]]
    for row in rows:
        if not row["weight_bandwidth_gb_s"]:
            continue
        shape, bandwidth = Shape(**row["shape"]), row["weight_bandwidth_gb_s"]["max"]
        for arm in row["arms"].values():
            for op in arm.keys() & set(OPS):
                arm[op] |= percentages(shape, dtype, op, arm[op]["seconds"]["median"], max(peaks), bandwidth)


def percentages(
    shape: Shape, dtype: str, op: str, seconds: float, peak: float, bandwidth: float
) -> dict[str, float | str]:
    """Of the FMA peak (GFLOP/s) and of the bound on any kernel (limits.py), and which bound it is."""
    bound, reason = limits.bound(shape, dtype, op == "training", peak, bandwidth)
    return {
        "percent_of_peak": 100e-9 * shape.flops(op == "training") / seconds / peak,
        "percent_of_bound": 100 * bound / seconds,
        "bound": reason,
    }


def geometric_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Of how many times as long as arm b arm a takes, over the shapes that both ran: means[op][a][b]."""
    means: dict[str, dict[str, dict[str, float]]] = {}
    for op in OPS:
        seconds: dict[str, dict[int, float]] = {}
        for number, row in enumerate(rows):
            for name, arm in row["arms"].items():
                if op in arm:
                    seconds.setdefault(name, {})[number] = arm[op]["seconds"]["median"]
        means[op] = {a: {b: _mean_ratio(seconds[a], seconds[b]) for b in seconds if b != a} for a in seconds}
    return means


def best(row: Mapping[str, Any], op: str, names: Sequence[str]) -> str | None:
    """The fastest of the arms named, on one shape; None where none of them ran."""
    seconds = {name: row["arms"][name][op]["seconds"]["median"] for name in names if op in row["arms"][name]}
    return min(seconds, key=seconds.__getitem__, default=None)


def mean_over_best(rows: Sequence[Mapping[str, Any]], op: str, name: str, rivals: Sequence[str]) -> float:
    """Geometric mean over the shapes of the best rival's time over that of the arm `name`; NaN without any."""
    times: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for number, row in enumerate(rows):
        rival = best(row, op, rivals)
        if rival and op in row["arms"][name]:
            for column, arm in zip(times, (rival, name), strict=True):
                column[number] = row["arms"][arm][op]["seconds"]["median"]
    return _mean_ratio(*times)


def _mean_ratio(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    common = sorted(a.keys() & b.keys())
    return float(np.exp(np.mean([np.log(a[i] / b[i]) for i in common]))) if common else float("nan")


def _check(arm: Arm, truth: Truth) -> dict[str, Error]:
    """The worse of the errors of a forward call and of a training call, for each array."""
    errors: dict[str, Error] = {}
    for op in reversed(arm.ops):
        for name, error in truth.judge(arm.results(op)).items():
            if name not in errors or not error.value <= errors[name].value:
                errors[name] = error
    return errors


def _right(errors: Mapping[str, Error]) -> bool:
    """False without any: the arm failed."""
    return bool(errors) and all(error.right for error in errors.values())
