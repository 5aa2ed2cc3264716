"""The tables of `fastrnn bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._speed import arms, report
from .._speed.arms import OPS
from .._speed.shapes import Shape
from ._common import print_table, require
from ._speed_part import NOTE, duration, show_rounds, show_wrong

SHORT = {
    arms.TORCH: "torch", arms.FASTRNN_TORCH: "fastrnn.torch", "torch.compile": "compile", "onnxruntime": "onnxrt",
    "keras-jax": "keras-j", "keras-torch": "keras-t",
}  # fmt: skip


def rivals(found: Mapping[str, Any]) -> list[str]:
    return [name for name in found["arms"] if name not in found["ours"]]


def show(found: Mapping[str, Any], missing: Mapping[str, str], console: Any) -> None:
    """Forward, training, memory; then what the columns mean, and what was missing."""
    settings, lead, others = found["settings"], found["ours"][0], rivals(found)
    for op in OPS:
        title = f"{op}: {lead} {settings['instruction_set'] or ''}, {settings['dtype']}, threads {settings['threads']}"
        console.print()
        print_table(_times(found, op, title), console)
        for name in found["ours"]:
            text = f"{name}, geometric mean: {_number(report.mean_over_best(found['shapes'], op, name, others))} x as "
            text += "fast as the best peer of each shape"
            mean = found["geometric_means"][op].get(arms.TORCH, {}).get(name)
            if mean is not None:
                text += f", {_number(mean)} x as fast as {arms.TORCH}"
            console.print(text, highlight=False, soft_wrap=True)
    if any("training_memory" in arm for row in found["shapes"] for arm in row["arms"].values()):
        console.print()
        print_table(_memory(found), console)
    console.print()
    show_wrong(found, console)
    console.print(
        f"%: of the bound that `by` names, measured in this run: the multiply-add peak (fma), or w_hh once a step "
        f"(mem); best, x: the fastest peer, and how many times as long as {lead} it takes; right of them: the others, "
        "in the same way",
        **NOTE,
    )
    console.print("memory: over what holds inputs and weights; results included", **NOTE)
    show_rounds(found, console)
    for name, why in missing.items():
        console.print(f"not here: {name}: {why}", **NOTE)


def show_sweep(
    found: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]], ours: Sequence[str], console: Any
) -> None:
    """The shapes that are slower, and how all fared."""
    slower = [verdict for verdict in verdicts if verdict["slower"]]
    if slower:
        table = _empty(f"slower than {arms.TORCH}", ["arm", "op", *"BTIH", "time", "x", "rounds lost"])
        for verdict in slower:
            table.add_row(
                verdict["arm"], verdict["op"], *map(str, verdict["shape"].values()), duration(verdict["seconds"]),
                f"{verdict['ratio']:.2f}", f"{verdict['lost']} of {verdict['rounds']}",
            )  # fmt: skip
        print_table(table, console)
    show_wrong(found, console)
    for name in ours:
        for op in OPS:
            mean = found["geometric_means"][op].get(arms.TORCH, {}).get(name, np.nan)
            count = sum(verdict["arm"] == name and verdict["op"] == op for verdict in slower)
            console.print(
                f"{name}, {op}: slower on {count} of {len(found['shapes'])} shapes; geometric mean {_number(mean)} x "
                f"as fast as {arms.TORCH}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
    console.print(f"{len(verdicts)} suspects were timed again, {len(slower)} of them stayed slower", **NOTE)


def _empty(title: str, columns: Sequence[str]) -> Any:
    table = require("rich.table").Table(
        title=title, title_justify="left", title_style="bold", box=require("rich.box").SIMPLE_HEAD,
        collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    for column in columns:
        left = column in ("best", "by", "arm", "op")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    return table


def _times(found: Mapping[str, Any], op: str, title: str) -> Any:
    lead, others = found["ours"][0], rivals(found)
    rest = [*found["ours"][1:], *others]
    table = _empty(title, [*"BTIH", lead, "%", "by", "best", "x", *(SHORT.get(name, name) for name in rest)])
    for row in found["shapes"]:
        first, best = row["arms"][lead].get(op), report.best(row, op, others)
        cells = ["WRONG", "-", "-"]
        if first:
            percent = first.get("percent_of_bound")
            cells = [
                duration(first["seconds"]["median"]), f"{percent:.0f}" if percent else "-",
                {"fma": "fma", "bandwidth": "mem"}.get(first.get("bound"), "-"),
            ]  # fmt: skip
        ratio = _ratio(row, lead, best, op) if best else "-"
        if best and first and row["arms"][best][op]["seconds"]["median"] < first["seconds"]["median"]:
            ratio = f"[red]{ratio}[/]"
        cells += [SHORT.get(best, best) if best else "-", ratio]
        cells += [_ratio(row, lead, name, op) for name in rest]
        table.add_row(*map(str, row["shape"].values()), *cells)
    table.add_section()
    means = found["geometric_means"][op]
    over_best = _number(report.mean_over_best(found["shapes"], op, lead, others))
    numbers = [_number(means.get(name, {}).get(lead, np.nan)) for name in rest]
    table.add_row(*[""] * 4, "geo. mean", "", "", "", over_best, *numbers)
    return table


def _memory(found: Mapping[str, Any]) -> Any:
    names = [name for name in found["arms"] if any("training_memory" in row["arms"][name] for row in found["shapes"])]
    title = "memory of a training step, MiB"
    table = _empty(title, [*"BTIH", "output", *(SHORT.get(name, name) for name in names)])
    size = np.dtype(found["settings"]["dtype"]).itemsize
    for row in found["shapes"]:
        shape = Shape(**row["shape"])
        figures = [row["arms"][name].get("training_memory") for name in names]
        cells = ["-" if figure is None else f"{figure / 2**20:.1f}" for figure in figures]
        table.add_row(*map(str, shape), f"{shape.T * shape.B * shape.H * size / 2**20:.1f}", *cells)
    return table


def _ratio(row: Mapping[str, Any], lead: str, name: str, op: str) -> str:
    a, b = row["arms"][name], row["arms"][lead]
    if not a["right"]:
        return f"[red]{'FAILED' if 'failed' in a else 'WRONG'}[/]"
    return _number(a[op]["seconds"]["median"] / b[op]["seconds"]["median"]) if op in a and op in b else "-"


def _number(ratio: float) -> str:
    """Two decimals below 2: there they decide; none from 100 on."""
    if not np.isfinite(ratio):
        return "-"
    return f"{ratio:.2f}" if ratio < 1.995 else f"{ratio:.1f}" if ratio < 99.95 else f"{ratio:.0f}"
