"""The speed part of `fastrnn compare`: which arms run, the progress bar, the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._speed import arms, report
from .._speed.arms import OPS
from .._speed.shapes import Shape
from ._common import UsageError, print_table, require

LABELS = {arms.TORCH: "torch"}  # of arms whose names are too long for a table
NOTE = {"style": "dim", "highlight": False, "soft_wrap": True, "markup": False}
_PARTS = {"forward": ("output", "h_n"), "training": ("d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")}


def measure(
    shapes: Sequence[Shape], backends: Sequence[str], dtype: str, threads: int, seconds: float
) -> dict[str, Any]:
    """The report of _speed over the backends and torch.nn.RNN, with the version of torch or why it is absent."""
    makers = {name: arms.maker(name) for name in backends}
    try:
        makers[arms.TORCH] = arms.maker(arms.TORCH)
        torch = str(require("torch").__version__)
    except arms.UnavailableError as error:
        torch = str(error)
    return {**run(shapes, makers, dtype, threads, seconds), "torch": torch}


def run(
    shapes: Sequence[Shape], makers: Mapping[str, arms.Maker], dtype: str, threads: int, seconds: float
) -> dict[str, Any]:
    """report.measure with a progress bar. UsageError where a shape does not fit into memory."""
    seen: list[Shape] = []
    with progress("speed", len(shapes)) as step:

        def next_shape(shape: Shape) -> None:
            seen.append(shape)
            step(shape)

        try:
            return report.measure(shapes, makers, dtype=dtype, threads=threads, budget=seconds, progress=next_shape)
        except MemoryError as error:
            raise UsageError(f"--shapes: {seen[-1]} does not fit into memory ({error})") from error


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[object], None]]:
    """A bar on stderr; the function is called with what comes next, before each of the total."""
    rich = require("rich.progress")
    columns = (f"{what} {{task.description:<20}}", rich.BarColumn(), rich.MofNCompleteColumn())
    with rich.Progress(*columns, console=require("rich.console").Console(stderr=True)) as bar:
        task, done = bar.add_task("", total=total), -1

        def step(description: object) -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done, description=str(description))

        yield step
        bar.update(task, completed=total)


def lead(names: Sequence[str]) -> str:
    """The arm that the others are compared with: the fastest backend."""
    return next((name for name in names if name not in (report.REFERENCE, arms.TORCH)), names[0])


def others(names: Sequence[str]) -> list[str]:
    """The other arms, in the order of the columns."""
    return [name for name in names if name != lead(names)]


def label(name: str) -> str:
    return LABELS.get(name, name)


def show(found: Mapping[str, Any], console: Any) -> None:
    """A table each for forward and training, what the columns mean, and how much the rounds spread."""
    names, settings = found["arms"], found["settings"]
    first = lead(names)
    for op in OPS:
        isa = f" {settings['instruction_set']}" if settings["instruction_set"] else ""
        title = f"{op}: {label(first)}{isa}, {settings['dtype']}, threads {settings['threads']}"
        console.print()
        print_table(_table(found, op, title), console)
        means = found["geometric_means"][op].get(first, {})
        factors = {name: 1 / means[name] for name in others(names) if np.isfinite(means.get(name, np.nan))}
        if factors:
            text = ", ".join(f"{factor:.1f} x as fast as {label(name)}" for name, factor in factors.items())
            console.print(f"{label(first)}, geometric mean: {text}", highlight=False, soft_wrap=True)
    console.print()
    show_wrong(found, console)
    console.print(f"%: of the multiply-add peak measured in this run; x: times as long as {label(first)}", **NOTE)
    console.print(f"error: {label(first)}'s largest against float64, over the array's largest element", **NOTE)
    show_rounds(found, console)


def show_wrong(found: Mapping[str, Any], console: Any) -> None:
    """A line for each arm and shape that failed its check."""
    wrong = [
        f"{name} at {Shape(**row['shape'])} ({', '.join(key for key, e in arm['errors'].items() if not _within(e))})"
        for row in found["shapes"]
        for name, arm in row["arms"].items()
        if not arm["right"] and "failed" not in arm
    ]
    for row in found["shapes"]:
        for arm in row["arms"].values():
            if "failed" in arm:
                text = f"FAILED at {Shape(**row['shape'])}: {arm['failed']}"
                console.print(text, style="red", highlight=False, soft_wrap=True, markup=False)
    for text in wrong:
        console.print(f"WRONG against float64: {text}", style="red", highlight=False, soft_wrap=True)


def show_rounds(found: Mapping[str, Any], console: Any) -> None:
    """The peak that percentages are of, and how much the rounds spread."""
    peaks = [peak for row in found["shapes"] if row["fma_peak_gflops"] for peak in row["fma_peak_gflops"]["rounds"]]
    if peaks:
        console.print(
            f"peak: {max(peaks):.0f} GFLOP/s in the best round, {np.median(peaks):.0f} in the median one", **NOTE
        )
    spreads = [row["arms"][name][op]["seconds"] for row, name, op in _timed(found)]
    if spreads:
        usual, worst = np.median([s["spread"] for s in spreads]), max(s["spread"] for s in spreads)
        counts = [len(s["rounds"]) for s in spreads]
        rounds = f"{min(counts)} to {max(counts)} rounds" if min(counts) < max(counts) else f"{counts[0]} rounds"
        console.print(
            f"times: medians of {rounds}; half of the rounds within {usual:.0%} of it, at worst {worst:.0%}", **NOTE
        )


def _timed(found: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str, str]]:
    return [(row, name, op) for row in found["shapes"] for name in found["arms"] for op in OPS
            if op in row["arms"][name]]  # fmt: skip


def _table(found: Mapping[str, Any], op: str, title: str) -> Any:
    names = found["arms"]
    first = lead(names)
    table = require("rich.table").Table(
        title=title, title_justify="left", title_style="bold", box=require("rich.box").SIMPLE_HEAD,
        collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    columns = [*"BTIH", label(first), "%"]
    for name in others(names):
        columns += [label(name), "x"]
    for column in (*columns, "error"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found["shapes"]:
        arm = row["arms"][first]
        percent = arm[op].get("percent_of_peak") if op in arm else None
        cells = [*map(str, row["shape"].values()), _time(arm, op), f"{percent:.0f}" if percent is not None else "-"]
        for name in others(names):
            other = row["arms"][name]
            cells += [_time(other, op), _ratio(other, arm, op)]
        error = float(np.max([arm["errors"][key]["error"] for key in _PARTS[op]]))
        table.add_row(*cells, f"{error:.1e}")
    return table


def _time(arm: Mapping[str, Any], op: str) -> str:
    return duration(arm[op]["seconds"]["median"]) if op in arm else "[red]WRONG[/]"


def _ratio(a: Mapping[str, Any], b: Mapping[str, Any], op: str) -> str:
    return f"{a[op]['seconds']['median'] / b[op]['seconds']['median']:.1f}" if op in a and op in b else "-"


def _within(error: Mapping[str, float]) -> bool:
    return error["error"] <= error["limit"]


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{seconds * scale:#.3g} {unit}" if seconds * scale < 99.95 else f"{seconds * scale:.0f} {unit}"
    return f"{seconds:#.3g} s"
