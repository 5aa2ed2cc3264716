"""The figure of `fastrnn compare`: loss curves, their distance from the float64 reference, seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ._common import UsageError, require

_COLORS = {"numpy": "#8d99ae", "cpp": "#d1495b", "numba": "#00798c", "cuda": "#66a182", "cupy": "#edae49"}


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the figure of a report, in the format that the path's ending names."""
    figure_module = require("matplotlib.figure")  # no pyplot: no display, no global state
    figure = figure_module.Figure(figsize=(13, 4.4), layout="constrained")
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
    curves.set(title="training loss", xlabel="epoch", yscale="log")
    apart.set(title="largest relative distance from it so far", xlabel="epoch", yscale="log")
    curves.legend(frameon=False)
    apart.legend(frameon=False)

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
    bars.set(title="seconds in the RNN, forward and BPTT", ylim=(0, 1.3 * max(row["total_seconds"] for row in results)))
    bars.legend(frameon=False, fontsize="small")

    for axes in (curves, apart, bars):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    shape = "T {T}, I {I}, H {H}, batch {batch}, {dtype}".format(**settings)
    figure.suptitle(f"fastrnn compare: {report['task']} ({shape})", x=0.01, ha="left", fontweight="bold")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot: {error}") from error


def _score(score: float, report: dict[str, Any]) -> str:
    return f"{score:.1%} of the test right" if report["score"] == "accuracy" else f"test error {score:.3g}"
