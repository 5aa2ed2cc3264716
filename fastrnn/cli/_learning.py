"""The learning part of `fastrnn compare`: the same RNN trained from the same seed on every backend.

Backends take turns, epoch by epoch. NumPy's BLAS gets the number of threads with which the numpy backend is fastest, so
that the speed-up is over NumPy at its best.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import fastrnn

from ._common import UsageError, print_table, require
from ._training import Task, Trainer

# A curve may depart from the float64 reference's, relatively, by this much; and by FACTOR times what the numpy backend
# itself departs in the same dtype, if that is more. Measured: about 5e-6 in float32 over 30 epochs on the digits.
FLOOR = {"float32": 1e-4, "float64": 1e-10}
FACTOR = 10.0
SAMPLES = 0.01  # share of the test sequences whose class may come out otherwise (at least two)


def learn(
    task: Task,
    names: list[str],
    *,
    dtype: str,
    hidden: int,
    batch: int,
    epochs: int,
    rate: float,
    seed: int,
    threads: int,
) -> dict[str, Any]:
    """Trains on every backend and, as the reference, on numpy in float64; the report, ready for JSON."""
    names = sorted(names, key=lambda name: name != "numpy")
    runs = {name: Trainer(task, name, dtype, hidden, rate, seed) for name in names}
    reference = runs.get("numpy") if dtype == "float64" else None
    reference = reference or Trainer(task, "numpy", "float64", hidden, rate, seed)
    trained = [*runs.values(), *([] if reference in runs.values() else [reference])]
    with fastrnn.threads(threads):
        blas_threads = _best_blas_threads(runs.get("numpy", reference), batch, threads)
        with require("threadpoolctl").threadpool_limits(blas_threads, "blas"):
            _train(trained, epochs, batch, seed)

    rows, limit, rule = judge(runs, reference)
    return {
        "task": task.name,
        "settings": {
            "T": task.x.shape[0], "I": task.x.shape[2], "H": hidden, "batch": batch, "epochs": epochs,
            "sequences": task.x.shape[1], "test_sequences": task.test_x.shape[1], "dtype": dtype,
            "rate": rate, "seed": seed, "threads": threads, "blas_threads": blas_threads,
        },
        "score": "accuracy" if task.classes else "mean squared error",
        "rule": rule,
        "limit": limit,
        "right": all(row["agrees"] for row in rows),
        "results": rows,
        "reference_losses": reference.losses,
    }  # fmt: skip


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


def _best_blas_threads(run: Trainer, batch: int, threads: int) -> int:
    """1 or all of them."""
    limits = require("threadpoolctl").threadpool_limits
    seconds: dict[int, float] = {}
    for count in {threads, 1}:
        with limits(count, "blas"):
            seconds[count] = run.warm_up(batch, budget=0.3)
    return min(seconds, key=lambda count: seconds[count])


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


def show(report: dict[str, Any], console: Any) -> None:
    """The table."""
    settings, classes = report["settings"], report["score"] == "accuracy"
    title = "{task}: T {T}, I {I}, H {H}, batch {batch}, {epochs} epochs, {dtype}".format(
        task=report["task"], **settings
    )
    box = require("rich.box").SIMPLE_HEAD
    table = require("rich.table").Table(
        title=require("rich.text").Text(title, "table.title"), title_justify="left", box=box, collapse_padding=True,
        pad_edge=False,
    )  # fmt: skip
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
    print_table(table, console)
    console.print(f"agrees: {report['rule']}", style="dim", highlight=False)
    console.print(
        f"threads: cpp {settings['threads']}, BLAS {settings['blas_threads']} (numpy's best)",
        style="dim",
        highlight=False,
    )


def digits(seed: int) -> Task:
    """scikit-learn's handwritten digits, read row by row: 8 steps of 8 pixels, 10 classes."""
    digits = require("sklearn.datasets").load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x = (digits.images[order] / 16).swapaxes(0, 1)  # (8, N, 8)
    targets = digits.target[order].astype(np.int64)
    split = len(targets) * 4 // 5
    return Task("handwritten digits", 10, x[:, :split], targets[:split], x[:, split:], targets[split:])


def sequences(path: Path, seed: int) -> Task:
    """Next-step prediction, each feature standardised: an error of 1 is that of the mean. A fifth of the rows tests."""
    try:
        with open(path, "rb") as file:
            data = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # what a damaged file makes the parser of its header raise is no closed list
        raise UsageError(f"--data: expected an .npy file, got {path}: {error or type(error).__name__}") from error
    if data.ndim != 3 or data.dtype.kind not in "fiu":
        raise UsageError(f"--data: expected a real array (T, B, I), got {data.dtype} {data.shape}")
    T, B, I = data.shape
    if T < 2 or B < 1 or I < 1:
        raise UsageError(f"--data: expected at least two time steps, a row and a feature, got (T, B, I) = {data.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        data = data.astype(np.float64)
        spread = data.std(axis=(0, 1))
    if not np.isfinite(spread).all():
        raise UsageError("--data: expected finite values whose squares do not overflow, got others")
    data = (data - data.mean(axis=(0, 1))) / np.where(spread > 0, spread, 1)
    order = np.random.default_rng(seed).permutation(B)
    split = max(1, B * 4 // 5)
    train, test = data[:, order[:split]], data[:, order[split:]] if split < B else data
    return Task(f"next step of {path.name}", 0, train[:-1], train[1:], test[:-1], test[1:])
