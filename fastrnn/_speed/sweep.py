"""Random shapes, to find those on which this package is slower than a rival."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import report
from .arms import OPS, Maker
from .shapes import Shape

MOST = Shape(B=300, T=500, I=600, H=1100)
FEW_ROWS = 64
PATIENCE = 8  # times the seconds of the first try, for a loser


def draw(count: int, seed: int = 0) -> list[Shape]:
    """Sizes from 1 to MOST, log-uniform each; in every second shape T * B <= FEW_ROWS, drawn until it is."""
    rng = np.random.default_rng(seed)
    logs = [math.log(most + 1) for most in MOST]

    def one() -> Shape:
        drawn = (int(math.exp(log * u)) for log, u in zip(logs, rng.random(4), strict=True))
        return Shape(*map(min, drawn, MOST))

    shapes = []
    for number in range(count):
        shape = one()
        while number % 2 and shape.T * shape.B > FEW_ROWS:
            shape = one()
        shapes.append(shape)
    return shapes


def suspects(row: Mapping[str, Any], ours: Sequence[str], rival: str) -> list[tuple[str, str]]:
    """(arm, op) of those that took longer than the rival on this shape."""
    arms = row["arms"]
    return [
        (name, op)
        for name in ours
        for op in OPS
        if op in arms[name] and op in arms[rival]
        and arms[name][op]["seconds"]["median"] > arms[rival][op]["seconds"]["median"]
    ]  # fmt: skip


def judge(row: Mapping[str, Any], name: str, op: str, rival: str) -> dict[str, Any]:
    """How the arm fared against the rival, round by round: slower beyond noise where it lost three rounds of four."""
    rounds = [row["arms"][arm][op]["seconds"]["rounds"] for arm in (name, rival)]
    ratios = [a / b for a, b in zip(*rounds, strict=True)]
    return {
        "shape": row["shape"],
        "arm": name,
        "op": op,
        "seconds": row["arms"][name][op]["seconds"]["median"],
        "ratio": float(np.median(ratios)),
        "rounds": len(ratios),
        "lost": sum(ratio > 1 for ratio in ratios),
        "slower": float(np.percentile(ratios, 25)) > 1,
    }


def retime(
    found: Mapping[str, Any],
    makers: Mapping[str, Maker],
    ours: Sequence[str],
    rival: str,
    progress: Callable[[Shape], Any] = lambda shape: None,
) -> list[dict[str, Any]]:
    """The suspects of a report, timed once more and longer, judged; the worst first."""
    settings = found["settings"]
    verdicts = []
    for row in found["shapes"]:
        pairs = suspects(row, ours, rival)
        if not pairs:
            continue
        names = dict.fromkeys([*(name for name, _ in pairs), rival])
        again = report.measure(
            [Shape(**row["shape"])], {name: makers[name] for name in names}, dtype=settings["dtype"],
            threads=settings["threads"], budget=PATIENCE * settings["seconds_a_shape"], progress=progress,
        )  # fmt: skip
        verdicts += [judge(again["shapes"][0], name, op, rival) for name, op in pairs if again["right"]]
    return sorted(verdicts, key=lambda verdict: -verdict["ratio"])
