"""`fastrnn compare`: what each backend brings on this machine, in two parts.

Learning: the same RNN, trained from the same seed on every backend; score, loss curve, seconds. By default on
scikit-learn's handwritten digits, from the last state; with --data, next-step prediction of your own sequences.

Speed: forward and training time (forward and BPTT, all gradients) shape by shape, of every backend and of torch.nn.RNN
where PyTorch is installed, all on the same number of threads. Each arm is checked against float64 first; then the arms
take turns. Figures are medians; percent is of the highest multiply-add peak measured between the turns.

Exit code 1 when a result departs from float64 further than rounding explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import fastrnn

from .._speed import shapes
from . import _learning, _plot, _speed_part, info
from ._common import (
    DTYPES,
    UsageError,
    at_least,
    backend_names,
    check_outputs,
    require,
    seconds,
    thread_count,
    write_json,
)

SCHEMA = 1  # of the JSON file


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="backends side by side: what they learn, and how fast they are",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=("learning", "speed"), help="one part; default: both")
    parser.add_argument("--backend", help="one or more of them, comma-separated; default: all available ones")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=thread_count, help="of every arm; default: the CPUs this process may use")
    parser.add_argument("--quick", action="store_true", help="3 epochs, 4 shapes, one thread: ends within seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, each round and loss too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it")
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--shapes",
        help=f"{', '.join(shapes.SETS)} or BxTxIxH, comma-separated; with --data the data's own",
    )
    speed.add_argument("--seconds", type=seconds, help="of timing for each shape; default 1, or 0.2 with --quick")
    learning = parser.add_argument_group("learning")
    learning.add_argument(
        "--data", type=Path, metavar="X.npy", help="your own sequences (T, B, I): next-step prediction"
    )
    learning.add_argument("--hidden", type=at_least(1), default=128, help="hidden size; default 128")
    learning.add_argument(
        "--batch", type=at_least(1), help="sequences a step; default 64, or fewer for 8 steps an epoch"
    )
    learning.add_argument("--epochs", type=at_least(1), help="default 30, or 3 with --quick")
    learning.add_argument("--rate", type=float, default=2e-3, help="Adam's learning rate; default 0.002")
    learning.add_argument("--seed", type=at_least(0), default=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the tables, writes the files; 1 where a result is wrong."""
    for module in ("rich", "threadpoolctl", *(("matplotlib",) if args.plot else ())):
        require(module)
    check_outputs(args, "json", "plot")
    if args.plot:
        _plot.check_format("--plot", args.plot)
    dtype = DTYPES[args.dtype]
    names = backend_names(args.backend)
    threads = args.threads or (1 if args.quick else fastrnn.get_num_threads())
    grid = _shapes(args)
    task = _task(args)
    batch = args.batch or (min(64, max(1, task.x.shape[1] // 8)) if task else 64)
    if not grid:
        grid = [shapes.Shape(batch, task.x.shape[0], task.x.shape[2], args.hidden)]

    console = require("rich.console").Console()
    if not console.is_terminal:
        console = require("rich.console").Console(width=120)
    report: dict[str, Any] = {"schema": SCHEMA, "machine": info.collect(), "learning": None, "speed": None}
    if args.only != "speed" and task:
        report["learning"] = _learning.learn(
            task, names, dtype=dtype, hidden=args.hidden, batch=batch, epochs=args.epochs or (3 if args.quick else 30),
            rate=args.rate, seed=args.seed, threads=threads,
        )  # fmt: skip
        _learning.show(report["learning"], console)
    if args.only != "learning":
        budget = args.seconds or (0.2 if args.quick else 1.0)
        report["speed"] = _speed_part.measure(grid, names, dtype, threads, budget)
        _speed_part.show(report["speed"], console)
    report["right"] = all(part["right"] for part in (report["learning"], report["speed"]) if part)

    if args.json:
        write_json(args.json, report)
    if args.plot:
        _plot.draw(report, args.plot)
        print(f"wrote {args.plot}", file=sys.stderr)
    return 0 if report["right"] else 1


def _task(args: argparse.Namespace) -> Any:
    """What is to be learned; None where nothing is and no --data says which shape to time."""
    if args.data:
        return _learning.sequences(args.data, args.seed)
    return None if args.only == "speed" else _learning.digits(args.seed)


def _shapes(args: argparse.Namespace) -> list[shapes.Shape]:
    """Empty where the data's own shape is to be timed."""
    if args.data and not args.shapes:
        return []
    try:
        return shapes.parse(args.shapes or ("quick" if args.quick else "default"))
    except ValueError as error:
        raise UsageError(f"--shapes: {error}") from error
