"""The figure of `fastrnn bench`. Above, bars: how many times as long each library takes, shape by shape.

Below, lines: nanoseconds for one of the T x B rows, against T, B and H, over the shapes that differ in that size only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._speed import arms, report
from .._speed.arms import OPS
from .._speed.shapes import Shape
from . import _bench_part
from ._common import UsageError, require

COLORS = {
    "cpp": "#d1495b", arms.FASTRNN_TORCH: "#f2a3ad", "numba": "#00798c", arms.TORCH: "#2b2d42",
    "torch.compile": "#6d6f86",
    "jax": "#3d7ea6", "keras-jax": "#9cc5dd", "keras-torch": "#b9bac8", "onnxruntime": "#66a182", "onednn": "#edae49",
    "numpy": "#c9ced6",
}  # fmt: skip
_ROW, _BAR = 0.46, 0.8  # inches of a shape; share of it that bars fill


def draw(facts: Mapping[str, Any], path: Path) -> None:
    """Writes the figure of a bench report, in the format that the path's ending names."""
    found = facts["speed"]
    rows = found["shapes"]
    series = {size: chosen for size in "TBH" if len(chosen := _longest(_shapes(rows), size)) > 1}
    heights = [1.9 + _ROW * len(rows), *([4.4] if series else [])]
    figure = require("matplotlib.figure").Figure(figsize=(14, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _bars(parts[0], found)
    if series:
        _scaling(parts[1], found, series)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot: {error}") from error


def _bars(figure: Any, found: Mapping[str, Any]) -> None:
    rows, lead, settings = found["shapes"], found["ours"][0], found["settings"]
    panels = figure.subplots(1, 2, sharey=True)
    names = [name for name in found["arms"] if name != lead]
    for axes, op in zip(panels, OPS, strict=True):
        shown = [name for name in names if any(op in row["arms"][name] for row in rows)]
        height = _BAR / max(1, len(shown))
        for number, name in enumerate(shown):
            ratios = [_ratio(row, op, name, lead) for row in rows]
            places = [y - _BAR / 2 + (number + 0.5) * height for y in range(len(rows))]
            lengths = [ratio - 1 if np.isfinite(ratio) else 0.0 for ratio in ratios]
            axes.barh(places, lengths, 0.9 * height, left=1, color=_color(name), label=name, zorder=2)
        for y, row in enumerate(rows):
            best = report.best(row, op, _bench_part.rivals(found))
            if best and op in row["arms"][lead]:
                ratio = _ratio(row, op, best, lead)
                axes.annotate(
                    f"{ratio:.2f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize="small",
                    color=_color(best), fontweight="bold" if ratio < 1 else "normal", annotation_clip=False,
                )  # fmt: skip
        axes.annotate("best", (1.01, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize="small")
        axes.axvline(1, color=_color(lead), linewidth=1.6, zorder=3)
        axes.set(xscale="log", ylim=(len(rows) - 0.4, -0.6))
        low, top = axes.get_xlim()
        ticks = [t * 10.0**e for e in range(-2, 5) for t in (1, 2, 5) if low <= t * 10.0**e <= top]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_xticks([], minor=True)
        axes.set_title("forward" if op == "forward" else "training: forward and BPTT", loc="left")
        axes.set_xlabel(f"times as long as {lead}, log scale")
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
        for y in range(1, len(rows)):
            axes.axhline(y - 0.5, color="0.95", linewidth=0.8, zorder=0)
    labels = [f"B {s.B:<3d} T {s.T:<4d} I {s.I:<4d} H {s.H:<4d}" for s in _shapes(rows)]
    panels[0].set_yticks(range(len(rows)), labels, family="monospace", fontsize="small")
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    isa = f", {settings['instruction_set']}" if settings["instruction_set"] else ""
    text = f"{lead} and the others ({settings['dtype']}, threads {settings['threads']}{isa})"
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold")


def _scaling(figure: Any, found: Mapping[str, Any], series: Mapping[str, Sequence[Shape]]) -> None:
    """Training time of one row, against each size."""
    rows = found["shapes"]
    op = "training"
    panels = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for axes, (size, chosen) in zip(panels, series.items(), strict=True):
        for name in reversed(found["arms"]):
            points = [
                (getattr(shape, size), row["arms"][name][op]["seconds"]["median"] * 1e9 / (shape.T * shape.B))
                for shape, row in zip(_shapes(rows), rows, strict=True)
                if shape in chosen and op in row["arms"][name]
            ]
            points.sort()
            if points:
                first = name == found["ours"][0]
                axes.plot(
                    *zip(*points, strict=True), color=_color(name), marker="o", markersize=5 if first else 3.5,
                    linewidth=2.4 if first else 1.3, zorder=3 if first else 2, markeredgecolor="white",
                    markeredgewidth=0.6, label=name,
                )  # fmt: skip
        ticks = sorted({getattr(shape, size) for shape in chosen})
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(size)
        axes.set_title(_fixed(chosen, size), loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels), frameon=False)
    panels[0].set_ylabel("ns for each of the T x B rows, log scale")
    figure.suptitle("Training: how the cost of one row grows", x=0.01, ha="left", fontweight="bold")


def _longest(shapes: Sequence[Shape], size: str) -> list[Shape]:
    """The most shapes that differ in this size only; I follows H where they are equal."""

    def rest(shape: Shape) -> tuple[object, ...]:
        square = size == "H" and shape.I == shape.H
        return (*shape._replace(**{size: 0, **({"I": 0} if square else {})}), square)

    groups: dict[tuple[object, ...], dict[int, Shape]] = {}
    for shape in shapes:
        groups.setdefault(rest(shape), {})[getattr(shape, size)] = shape
    return list(max(groups.values(), key=len).values())


def _fixed(chosen: Sequence[Shape], size: str) -> str:
    words = []
    for other in "BTIH":
        values = {getattr(shape, other) for shape in chosen}
        if other == size:
            continue
        same = size == "H" and other == "I" and all(shape.I == shape.H for shape in chosen)
        text = "H" if same else str(*values) if len(values) == 1 else f"{min(values)} to {max(values)}"
        words.append(f"{other} {'=' if same else ''} {text}".replace("  ", " "))
    return ", ".join(words)


def _shapes(rows: Sequence[Mapping[str, Any]]) -> list[Shape]:
    return [Shape(**row["shape"]) for row in rows]


def _ratio(row: Mapping[str, Any], op: str, name: str, lead: str) -> float:
    a, b = row["arms"][name], row["arms"][lead]
    return float(a[op]["seconds"]["median"] / b[op]["seconds"]["median"]) if op in a and op in b else float("nan")


def _color(name: str) -> str:
    return COLORS.get(name, "#7a7d8c")
