"""`fastrnn compare`: the same RNN, trained from the same seed on every backend: score, loss curve, seconds.

By default on scikit-learn's handwritten digits, read row by row: 8 steps of 8 pixels, 10 classes, from the last state.
With --data, next-step prediction of your own sequences. Backends take turns, epoch by epoch. Exit code 1 when a backend
departs from the float64 reference further than rounding explains. NumPy's BLAS gets the number of threads with which
the numpy backend is fastest, so that the speed-up is over NumPy at its best.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn

from . import info
from ._common import DTYPES, UsageError, at_least, backend_names, require
from ._training import Task, Trainer

# A curve may depart from the float64 reference's, relatively, by this much; and by FACTOR times what the numpy backend
# itself departs in the same dtype, if that is more. Measured: about 5e-6 in float32 over 30 epochs on the digits.
FLOOR = {"float32": 1e-4, "float64": 1e-10}
FACTOR = 10.0
SAMPLES = 0.01  # share of the test sequences whose class may come out otherwise (at least two)


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare", help="train the same RNN on every backend: score, loss curve, seconds", description=__doc__
    )
    parser.add_argument("--data", type=Path, metavar="X.npy", help="your own sequences (T, B, I): next-step prediction")
    parser.add_argument("--backend", help="one or more of them, comma-separated; default: all available ones")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--hidden", type=at_least(1), default=128, help="hidden size; default 128")
    parser.add_argument("--batch", type=at_least(1), help="sequences a step; default 64, or fewer for 8 steps an epoch")
    parser.add_argument("--epochs", type=at_least(1), help="default 30, or 3 with --quick")
    parser.add_argument("--rate", type=float, default=2e-3, help="Adam's learning rate; default 0.002")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--quick", action="store_true", help="3 epochs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, the curves too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw curves, differences and seconds")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains, prints the table, writes the files; 1 where a backend disagrees."""
    require("rich")
    if args.plot:
        require("matplotlib")
    dtype = DTYPES[args.dtype]
    names = sorted(backend_names(args.backend), key=lambda name: name != "numpy")
    task = _sequences(args.data, args.seed) if args.data else _digits(args.seed)
    epochs = args.epochs or (3 if args.quick else 30)
    batch = args.batch or min(64, max(1, task.x.shape[1] // 8))

    runs = {name: Trainer(task, name, dtype, args.hidden, args.rate, args.seed) for name in names}
    reference = runs.get("numpy") if dtype == "float64" else None
    reference = reference or Trainer(task, "numpy", "float64", args.hidden, args.rate, args.seed)
    trained = [*runs.values(), *([] if reference in runs.values() else [reference])]
    blas_threads = _best_blas_threads(runs.get("numpy", reference), batch)
    with require("threadpoolctl").threadpool_limits(blas_threads, "blas"):
        _train(trained, epochs, batch, args.seed)

    rows, limit, rule = judge(runs, reference)
    report = {
        "task": task.name,
        "settings": {
            "T": task.x.shape[0], "I": task.x.shape[2], "H": args.hidden, "batch": batch, "epochs": epochs,
            "sequences": task.x.shape[1], "test_sequences": task.test_x.shape[1], "dtype": dtype,
            "rate": args.rate, "seed": args.seed, "threads": fastrnn.get_num_threads(), "blas_threads": blas_threads,
        },
        "score": "accuracy" if task.classes else "mean squared error",
        "rule": rule,
        "limit": limit,
        "agree": all(row["agrees"] for row in rows),
        "results": rows,
        "reference_losses": reference.losses,
        "machine": info.collect(),
    }  # fmt: skip
    _show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {args.json}", file=sys.stderr)
    if args.plot:
        from . import _plot

        _plot.draw(report, args.plot)
        print(f"wrote {args.plot}", file=sys.stderr)
    return 0 if report["agree"] else 1


def judge(runs: dict[str, Trainer], reference: Trainer) -> tuple[list[dict[str, Any]], float, str]:
    """One row for each backend, the limit on its curve_difference, and the rule by which `agrees` was found."""
    apart = {name: curve_difference(run.losses, reference.losses) for name, run in runs.items()}
    dtype = next(iter(runs.values())).dtype
    limit = max(FLOOR[dtype], FACTOR * apart.get("numpy", 0.0))
    right = reference.score()
    classes = bool(reference.task.classes)
    slack = max(2 / len(reference.task.test_targets), SAMPLES) if classes else limit * right
    base = runs["numpy"].seconds if "numpy" in runs else None
    rows = []
    for name, run in runs.items():
        score = run.score()
        rows.append(
            {
                "backend": name,
                "score": score,
                "final_loss": run.losses[-1],
                "curve_difference": apart[name],
                "seconds": run.seconds,
                "total_seconds": run.total_seconds,
                "speed_up": base / run.seconds if base else None,
                "agrees": apart[name] <= limit and abs(score - right) <= slack,
                "losses": run.losses,
            }
        )
    bound = f"{slack:.1%} in accuracy" if classes else f"{slack:.1e} in the test error"
    rule = f"within {limit:.1e} of the float64 reference's loss in every epoch, relatively, and within {bound}"
    return rows, limit, rule


def curve_difference(losses: list[float], reference: list[float]) -> float:
    """The largest relative difference of two loss curves; infinity where one is not finite."""
    a, b = np.asarray(losses), np.asarray(reference)
    difference = np.max(np.abs(a - b) / np.maximum(np.abs(b), np.finfo(np.float64).tiny))
    return float(difference) if np.isfinite(difference) else float("inf")


def _best_blas_threads(run: Trainer, batch: int) -> int | None:
    """1, or None for as many as BLAS likes."""
    limits = require("threadpoolctl").threadpool_limits
    seconds: dict[int | None, float] = {}
    for threads in (None, 1):
        with limits(threads, "blas"):
            seconds[threads] = run.warm_up(batch, budget=0.3)
    return min(seconds, key=lambda threads: seconds[threads])


def _train(runs: list[Trainer], epochs: int, batch: int, seed: int) -> None:
    progress_module, console_module = require("rich.progress"), require("rich.console")
    columns = (
        "{task.description:<24}",
        progress_module.BarColumn(),
        progress_module.MofNCompleteColumn(),
        "{task.fields[loss]}",
    )
    rng = np.random.default_rng(seed)
    count = runs[0].task.x.shape[1]
    with progress_module.Progress(*columns, console=console_module.Console(stderr=True)) as progress:
        bars = {}
        for i, run in enumerate(runs):
            run.warm_up(batch)
            bars[i] = progress.add_task(f"{run.backend} {run.dtype}", total=epochs, loss="")
        for _ in range(epochs):
            order = rng.permutation(count)
            batches = [order[start : start + batch] for start in range(0, count, batch)]
            for i, run in enumerate(runs):
                run.epoch(batches)
                progress.update(bars[i], advance=1, loss=f"loss {run.losses[-1]:.4f}")


def _show(report: dict[str, Any]) -> None:
    console = require("rich.console").Console()
    settings, classes = report["settings"], report["score"] == "accuracy"
    title = "{task}: T {T}, I {I}, H {H}, batch {batch}, {epochs} epochs, {dtype}".format(
        task=report["task"], **settings
    )
    box = require("rich.box").SIMPLE_HEAD
    table = require("rich.table").Table(
        title=title, title_justify="left", box=box, collapse_padding=True, pad_edge=False
    )
    score = "accuracy" if classes else "test MSE"
    for name in ("backend", score, "loss", "off float64", "RNN s", "total s", "speed-up", ""):
        table.add_column(name, justify="left" if name == "backend" else "right", no_wrap=True)
    for row in report["results"]:
        table.add_row(
            row["backend"],
            f"{row['score']:.2%}" if classes else f"{row['score']:.4f}",
            f"{row['final_loss']:.5f}",
            f"{row['curve_difference']:.1e}",
            f"{row['seconds']:.2f}",
            f"{row['total_seconds']:.2f}",
            f"{row['speed_up']:.1f} x" if row["speed_up"] else "-",
            "[green]agrees[/]" if row["agrees"] else "[red]DIFFERS[/]",
        )
    blas = settings["blas_threads"] or "all"
    console.print(table)
    console.print(f"agrees: {report['rule']}", style="dim", highlight=False)
    console.print(f"threads: cpp {settings['threads']}, BLAS {blas} (numpy's best)", style="dim", highlight=False)


def _digits(seed: int) -> Task:
    digits = require("sklearn.datasets").load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x = (digits.images[order] / 16).swapaxes(0, 1)  # (8, N, 8)
    targets = digits.target[order].astype(np.int64)
    split = len(targets) * 4 // 5
    return Task("handwritten digits", 10, x[:, :split], targets[:split], x[:, split:], targets[split:])


def _sequences(path: Path, seed: int) -> Task:
    """Each feature standardised: an error of 1 is that of predicting the mean. A fifth of the rows is the test."""
    try:
        data = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--data: {error}") from error
    if not isinstance(data, np.ndarray) or data.ndim != 3 or data.dtype.kind not in "fiu":
        raise UsageError(f"--data: expected a real array (T, B, I), got {getattr(data, 'shape', type(data).__name__)}")
    T, B, I = data.shape
    if T < 2 or B < 1 or I < 1:
        raise UsageError(f"--data: expected at least two time steps, a row and a feature, got (T, B, I) = {data.shape}")
    if not np.isfinite(data).all():
        raise UsageError("--data: expected finite values, got NaN or infinity")
    data = data.astype(np.float64)
    spread = data.std(axis=(0, 1))
    data = (data - data.mean(axis=(0, 1))) / np.where(spread > 0, spread, 1)
    order = np.random.default_rng(seed).permutation(B)
    split = max(1, B * 4 // 5)
    train, test = data[:, order[:split]], data[:, order[split:]] if split < B else data
    return Task(f"next step of {path.name}", 0, train[:-1], train[1:], test[:-1], test[1:])
