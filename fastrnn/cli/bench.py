"""`fastrnn bench`: this package against every other library that computes the same, on this machine, in one run.

Each arm runs in a process of its own, on the same number of threads, checked against float64 first; shape by shape the
arms then take turns. The table: time, percent of what no kernel can beat (the multiply-add peak, or reading w_hh once a
step, both measured in the same run), and how many times as long the others take. Figures are medians. Memory: what one
training step takes over inputs and weights, in fresh processes, by the kernel's count of resident pages.

--sweep N: N random shapes against torch.nn.RNN instead, those slower listed; a loser is timed again before it counts.

Exit code 1 when a result departs from float64 further than rounding explains, or the sweep finds a slower shape.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import fastrnn

from .._speed import arms, peers, report, shapes, sweep
from .._speed.arms import Problem, UnavailableError
from .._speed.shapes import Shape
from .._speed.worker import Worker
from . import _bench_part, _bench_plot, _plot, _speed_part, info
from ._common import DTYPES, UsageError, at_least, check_outputs, require, seconds, thread_count, write_json

SCHEMA = 1  # of the JSON file
RIVALS = (arms.TORCH, *peers.PEERS, report.REFERENCE)
DISTRIBUTIONS = ("torch", "jax", "jaxlib", "onnxruntime", "keras", "onednn-cpu-gomp", "numpy", "numba")


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="against PyTorch, JAX, ONNX Runtime, Keras and oneDNN, shape by shape",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", default="default", help=f"{', '.join(shapes.SETS)} or BxTxIxH, comma-separated")
    parser.add_argument("--peers", help=f"of {', '.join(RIVALS)}, comma-separated; default: all that are installed")
    parser.add_argument("--threads", type=thread_count, help="of every arm; default: the CPUs this process may use")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seconds", type=seconds, help="of timing for each shape; default 1, or 0.1 with --sweep")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, each round too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it: bars for each shape; and the scaling")
    parser.add_argument("--sweep", type=at_least(1), nargs="?", const=300, metavar="N", help="default 300")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the sweep")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes the files; 1 where a result is wrong or a shape of the sweep is slower."""
    for module in ("rich", "threadpoolctl", *(("matplotlib",) if args.plot else ())):
        require(module)
    check_outputs(args, "json", "plot")
    if args.sweep and (args.plot or args.peers):
        raise UsageError("--sweep: expected neither --plot nor --peers with it")
    if args.plot:
        _plot.check_format("--plot", args.plot)
    try:
        grid = shapes.parse(args.shapes)
    except ValueError as error:
        raise UsageError(f"--shapes: {error}") from error
    dtype, threads = DTYPES[args.dtype], args.threads or fastrnn.get_num_threads()
    asked = [arms.TORCH] if args.sweep else _asked(args.peers)
    missing = _missing(asked, dtype)
    if missing and (args.peers or args.sweep):
        raise UsageError("--peers: " + "; ".join(f"{name}: {why}" for name, why in missing.items()))
    ours = _ours(dtype)
    names = [*ours, *(name for name in asked if name not in missing)]

    console = require("rich.console").Console()
    if not console.is_terminal:
        console = require("rich.console").Console(width=160)
    facts: dict[str, Any] = {"schema": SCHEMA, "machine": info.collect(), "versions": _versions(), "missing": missing}
    with ExitStack() as stack:
        try:
            workers = {name: stack.enter_context(Worker(name, threads)) for name in names}
            makers: dict[str, arms.Maker] = {name: worker.make for name, worker in workers.items()}
            if args.sweep:
                return _sweep(args, facts, makers, ours, dtype, threads, console)
            facts["speed"] = _speed_part.run(grid, makers, dtype, threads, args.seconds or 1.0)
        except UnavailableError as error:
            raise UsageError(str(error)) from error
    found = {**facts["speed"], "ours": ours}
    facts["speed"] = found
    if not args.no_memory:
        _memory(found, dtype, threads)
    _bench_part.show(found, missing, console)
    if args.json:
        write_json(args.json, facts)
    if args.plot:
        _bench_plot.draw(facts, args.plot)
        print(f"wrote {args.plot}", file=sys.stderr)
    return 0 if found["right"] else 1


def _asked(text: str | None) -> list[str]:
    names = list(RIVALS) if text is None else list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in RIVALS:
            raise UsageError(f"--peers: expected {', '.join(RIVALS)}, got {name!r}")
    return names


def _missing(names: list[str], dtype: str) -> dict[str, str]:
    """Of the arms named, those that cannot run, and why."""
    missing = {}
    for name in names:
        try:
            if name in peers.PEERS:
                peers.require(name, dtype)
            elif name == arms.TORCH:
                arms.maker(name)
        except UnavailableError as error:
            missing[name] = str(error)
    return missing


def _ours(dtype: str) -> list[str]:
    """The fastest backend first, fastrnn.torch.RNN where there is PyTorch; `numpy` is the reference, no contestant."""
    names = [b.name for b in fastrnn.backends() if b.available and b.device == "cpu" and b.name != report.REFERENCE]
    try:
        arms.maker(arms.FASTRNN_TORCH)
    except UnavailableError:
        pass
    else:
        names.append(arms.FASTRNN_TORCH)
    if not names:
        raise UsageError("no backend but the reference runs here; `fastrnn info` says why")
    return names


def _memory(found: dict[str, Any], dtype: str, threads: int) -> None:
    """Adds to each arm of each row "training_memory", in bytes."""
    with _speed_part.progress("memory", len(found["arms"])) as step:
        for name in found["arms"]:
            step(name)
            with Worker(name, threads, for_memory=True) as worker:
                for row in found["shapes"]:
                    if row["arms"][name].get("training"):
                        problem = Problem.draw(Shape(**row["shape"]), dtype)
                        row["arms"][name]["training_memory"] = worker.peak_memory(problem)


def _sweep(
    args: argparse.Namespace, facts: dict[str, Any], makers: dict[str, arms.Maker], ours: list[str], dtype: str,
    threads: int, console: Any,
) -> int:  # fmt: skip
    grid = sweep.draw(args.sweep, args.seed)
    found = _speed_part.run(grid, makers, dtype, threads, args.seconds or 0.1)
    suspicious = sum(bool(sweep.suspects(row, ours, arms.TORCH)) for row in found["shapes"])
    with _speed_part.progress("again", suspicious) as step:
        verdicts = sweep.retime(found, makers, ours, arms.TORCH, step)
    facts |= {"speed": {**found, "ours": ours}, "sweep": {"seed": args.seed, "timed_again": verdicts}}
    _bench_part.show_sweep(found, verdicts, ours, console)
    if args.json:
        write_json(args.json, facts)
    return 1 if not found["right"] or any(verdict["slower"] for verdict in verdicts) else 0


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
