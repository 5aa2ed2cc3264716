"""The figure of `fastrnn compare`. Above: what share of the machine's arithmetic each arm gets, shape by shape. Below:
loss curves, their distance from the float64 reference, seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._speed.arms import OPS
from .._speed.shapes import Shape
from . import _speed_part
from ._common import UsageError, require

_COLORS = {"numpy": "#8d99ae", "cpp": "#d1495b", "numba": "#00798c", "cuda": "#66a182", "cupy": "#edae49"}
_TORCH = "#2b2d42"
_ROW, _HEAD, _LEARNING = 0.27, 1.8, 4.4  # inches


def check_format(option: str, path: Path) -> None:
    """UsageError unless the path's ending names a format that matplotlib writes."""
    known = require("matplotlib.figure").Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise UsageError(f"{option}: expected a name that ends in one of {', '.join(sorted(known))}, got {path.name!r}")


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Writes the figure of a report, in the format that the path's ending names."""
    figure_module = require("matplotlib.figure")  # no pyplot: no display, no global state
    speed, learning = report["speed"], report["learning"]
    heights = [_HEAD + _ROW * len(speed["shapes"])] if speed else []
    heights += [_LEARNING] if learning else []
    figure = figure_module.Figure(figsize=(13, sum(heights)), layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if speed:
        _speed(parts.pop(0), speed)
    if learning:
        _learning(parts.pop(0), learning)
    try:
        figure.savefig(path, dpi=150, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot: {error}") from error


def _speed(figure: Any, found: Mapping[str, Any]) -> None:
    """A line of dots for each shape, one dot an arm; numbers at the right: how many times as long the others take."""
    rows, settings = found["shapes"], found["settings"]
    first = _speed_part.lead(found["arms"])
    percent = all("percent_of_peak" in arm[op] for row in rows for arm in row["arms"].values() for op in _ops(arm))
    quantity = "percent_of_peak" if percent else "gflops"
    panels = figure.subplots(1, 2, sharey=True)
    for axes, op in zip(panels, OPS, strict=True):
        dots = _dots(rows, found["arms"], op, quantity)
        for y in range(len(rows)):
            values = [dots[name][y] for name in dots if np.isfinite(dots[name][y])]
            if values:
                axes.plot([min(values), max(values)], [y, y], color="0.85", linewidth=3, zorder=1)
        for name in [*_speed_part.others(found["arms"]), first]:  # the lead on top
            size = 64 if name == first else 40
            axes.scatter(
                dots[name], range(len(rows)), size, _color(name), label=_speed_part.label(name), zorder=2,
                edgecolors="white", linewidths=0.8,
            )  # fmt: skip
        figures = [figure for column in dots.values() for figure in column if np.isfinite(figure)] or [1.0]
        low, top = min(figures), 100.0 if percent else max(figures)
        axes.set(xscale="log", xlim=(low / 1.25, top * 1.25), ylim=(len(rows) - 0.4, -0.6))
        if percent:
            axes.axvline(100, color="0.4", linewidth=1, linestyle=":")
        ticks = [t * 10.0**e for e in range(-4, 5) for t in (1, 2, 5) if low / 1.25 <= t * 10.0**e <= top * 1.25]
        axes.set_xticks(ticks, [f"{t:g} %" if percent else f"{t:g}" for t in ticks])
        axes.set_xticks([], minor=True)
        _ratios(axes, rows, found["arms"], op)
        axes.set_title(op if op == "forward" else "training: forward and BPTT", loc="left")
        axes.set_xlabel("of the measured multiply-add peak, log scale" if percent else "GFLOP/s, log scale")
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(rows)), [_shape_label(Shape(**row["shape"])) for row in rows], family="monospace")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels), frameon=False)
    isa = f", {settings['instruction_set']}" if settings["instruction_set"] else ""
    title = f"Speed ({settings['dtype']}, threads {settings['threads']}{isa})"
    if len(found["arms"]) > 1:
        title += f"; numbers: how many times as long as {_speed_part.label(first)} the others take"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.get_layout_engine().set(wspace=0.06)


def _ops(arm: Mapping[str, Any]) -> list[str]:
    return [op for op in OPS if op in arm]


def _dots(rows: Sequence[Mapping[str, Any]], names: Sequence[str], op: str, quantity: str) -> dict[str, list[float]]:
    """Each arm's figure for each shape; NaN where it was not timed."""
    return {name: [row["arms"][name].get(op, {}).get(quantity, np.nan) for row in rows] for name in names}


def _ratios(axes: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str], op: str) -> None:
    """Right of the panel, a column for each other arm."""
    first = _speed_part.lead(names)
    for column, name in enumerate(_speed_part.others(names)):
        at = 1.09 + 0.15 * column
        text: dict[str, Any] = {
            "fontsize": "small", "color": _color(name), "ha": "right", "va": "center", "annotation_clip": False,
        }  # fmt: skip
        head = f"x {_speed_part.label(name)}"
        axes.annotate(head, (at, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", **text)
        for y, row in enumerate(rows):
            a, b = row["arms"][first], row["arms"][name]
            if op in a and op in b:
                ratio = b[op]["seconds"]["median"] / a[op]["seconds"]["median"]
                weight = "bold" if ratio < 1 else "normal"
                place = {"xycoords": ("axes fraction", "data"), "fontweight": weight}
                axes.annotate(f"{ratio:.1f}", (at, y), **place, **text)


def _shape_label(shape: Shape) -> str:
    return f"B {shape.B:<3d} T {shape.T:<4d} I {shape.I:<4d} H {shape.H:<4d}"


def _color(name: str) -> str:
    return _COLORS.get(name, _TORCH)


def _learning(figure: Any, report: Mapping[str, Any]) -> None:
    curves, apart, bars = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
    settings, results = report["settings"], report["results"]
    reference = np.asarray(report["reference_losses"])
    epochs = np.arange(1, len(reference) + 1)
    line = {"linewidth": 1.8} if len(epochs) > 1 else {"marker": "o"}

    curves.plot(
        epochs, reference, color="0.8", linewidth=7, solid_capstyle="round", label="numpy float64, the reference"
    )
    floor = np.finfo(np.float64).eps
    for i, row in enumerate(results):
        color = _COLORS[row["backend"]]
        label = f"{row['backend']}  {_score(row['score'], report)}"
        dashes = (0, (4, 1.5 * i)) if i else "-"
        curves.plot(epochs, row["losses"], color=color, linestyle=dashes, label=label, **line)
        difference = np.maximum.accumulate(np.abs(np.asarray(row["losses"]) - reference) / np.abs(reference))
        if row["curve_difference"] > 0:
            apart.plot(epochs, np.maximum(difference, floor), color=color, label=row["backend"], **line)
    apart.axhline(report["limit"], color="0.4", linewidth=1, linestyle=":", label="limit")
    curves.set(xlabel="epoch", yscale="log")
    curves.set_title("training loss", loc="left")
    apart.set(xlabel="epoch", yscale="log")
    apart.set_title("largest relative distance from the reference so far", loc="left")
    curves.legend(frameon=False)
    apart.legend(frameon=False)
    for axes in (curves, apart):
        axes.xaxis.get_major_locator().set_params(integer=True)

    names = [row["backend"] for row in results]
    seconds = [row["seconds"] for row in results]
    rest = [row["total_seconds"] - row["seconds"] for row in results]
    places = np.arange(len(names))
    bars.bar(places, seconds, 0.6, color=[_COLORS[name] for name in names])
    bars.bar(places, rest, 0.6, bottom=seconds, color="0.93", label="readout, loss, Adam: the same NumPy for all")
    for place, row in zip(places, results, strict=True):
        text = f"{row['seconds']:.2f} s" + (f"\n{row['speed_up']:.1f} x" if row["speed_up"] else "")
        bars.annotate(text, (place, row["total_seconds"]), (0, 4), textcoords="offset points", ha="center")
    bars.set_xticks(places, names)
    bars.set(ylim=(0, 1.35 * max(row["total_seconds"] for row in results)))
    bars.set_title("seconds in the RNN, forward and BPTT", loc="left")
    bars.legend(frameon=False, fontsize="small", loc="upper right")

    for axes in (curves, apart, bars):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    shape = "T {T}, I {I}, H {H}, batch {batch}, {dtype}, threads {threads}".format(**settings)
    title = f"Learning: {report['task']} ({shape})"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", parse_math=False)


def _score(score: float, report: Mapping[str, Any]) -> str:
    return f"{score:.1%} of the test right" if report["score"] == "accuracy" else f"test error {score:.3g}"
