"""`fastrnn check`: one problem, drawn from a seed, on a backend, against the reference in a wider dtype.

Judged step by step, each from the backend's own neighbouring step; the error end to end is shown, not judged. Without
sizes a grid of problems runs. Exit code 1 when an error is beyond its bound, and the line that repeats the case.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import fastrnn

from .. import _bounds
from .._backends import reference
from .._backends.options import NONLINEARITIES, Array, RnnGradients, RnnOptions
from .._bounds import Deviation, Problem
from ._common import DTYPES, UsageError, at_least, backend_names, is_setting, thread_count

_OPS = ("forward", "backward")
_TANH_ULP = {"cpp": 2.0, "numba": 2.0, "numpy": 4.0}  # promise 1; what NumPy documents for its own


@dataclass(frozen=True)
class Case:
    """A problem in a few words. `fastrnn check` and the tests draw the same arrays from the same case."""

    T: int = 7
    B: int = 3
    I: int = 5
    H: int = 33
    dtype: str = "float32"
    nonlinearity: str = "tanh"
    bias: str = "both"
    no_h_0: bool = False
    lengths: bool = False
    reverse: bool = False
    reset: bool = False
    recurrent_mask: bool = False
    keep_mask: bool = False
    gain: float = 0.9
    seed: int = 0

    def words(self) -> str:
        """The arguments that make this case."""
        words = [f"--T {self.T} --B {self.B} --I {self.I} --H {self.H} --dtype {self.dtype}"]
        if self.nonlinearity != "tanh":
            words.append(f"--nonlinearity {self.nonlinearity}")
        if self.bias != "both":
            words.append(f"--bias {self.bias}")
        words += [f"--{name.replace('_', '-')}" for name in _FLAGS if getattr(self, name)]
        if self.gain != 0.9:
            words.append(f"--gain {self.gain:g}")
        return " ".join([*words, f"--seed {self.seed}"])

    def build(self) -> Problem:
        """Normal x, h_0, d_output, d_h_n; w_hh scaled to a spectral norm of `gain`."""
        T, B, I, H, dtype = self.T, self.B, self.I, self.H, np.dtype(self.dtype)
        rng = np.random.default_rng([_seed(), self.seed, T, B, I, H])

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape).astype(dtype)

        w_hh = rng.standard_normal((H, H))
        w_hh *= self.gain / np.linalg.norm(w_hh, 2)
        x, d_output = normal(T, B, I), normal(T, B, H)
        h_0 = None if self.no_h_0 else np.clip(normal(B, H), -2, 2)
        w_ih = (rng.standard_normal((H, I)) / np.sqrt(max(I, 1))).astype(dtype)
        b_ih = normal(H) * dtype.type(0.5) if self.bias in ("both", "ih") else None
        b_hh = normal(H) * dtype.type(0.5) if self.bias in ("both", "hh") else None
        lengths = None
        if self.lengths:
            lengths = rng.integers(0, T + 1, B).astype(np.int64)
            if B > 1:
                lengths[rng.permutation(B)[:2]] = (0, T)
        options = RnnOptions(
            nonlinearity=self.nonlinearity,
            reverse=self.reverse,
            lengths=lengths,
            reset=rng.random((T, B)) < 0.25 if self.reset else None,
            recurrent_mask=((rng.random((B, H)) < 0.8) / 0.8).astype(dtype) if self.recurrent_mask else None,
            keep_mask=rng.random((T, B, H)) < 0.3 if self.keep_mask else None,
        )
        return Problem(x, h_0, w_ih, w_hh.astype(dtype), b_ih, b_hh, d_output, normal(B, H), options)


_FLAGS = ("no_h_0", "lengths", "reverse", "reset", "recurrent_mask", "keep_mask")


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check", help="the errors of one case, or of a grid, against the reference", description=__doc__
    )
    parser.add_argument("--op", choices=_OPS, help="default: both")
    for name, low, what in (("T", 0, "time steps"), ("B", 0, "batch"), ("I", 0, "input size"), ("H", 1, "hidden size")):
        parser.add_argument(
            f"--{name}", type=at_least(low), help=f"{what}; default {getattr(Case, name)} if another is given"
        )
    parser.add_argument("--dtype", choices=DTYPES, help="default: both")
    parser.add_argument("--backend", help="one or more of them, comma-separated; default: all available ones")
    parser.add_argument("--isa", help="instruction set of cpp: v4, v3, v2, generic")
    parser.add_argument("--threads", type=thread_count, help="threads of cpp")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--nonlinearity", choices=NONLINEARITIES, default="tanh")
    parser.add_argument("--bias", choices=("both", "ih", "hh", "none"), default="both")
    parser.add_argument("--no-bias", action="store_const", const="none", dest="bias", help="the same as --bias none")
    parser.add_argument("--no-h-0", action="store_true", help="h_0=None")
    parser.add_argument("--lengths", action="store_true", help="random row lengths, 0 and T among them")
    parser.add_argument("--reverse", action="store_true")
    parser.add_argument("--reset", action="store_true", help="random restarts of the state")
    parser.add_argument("--recurrent-mask", action="store_true", help="a random mask of the recurrent state")
    parser.add_argument("--keep-mask", action="store_true", help="random units keep their state")
    parser.add_argument("--gain", type=float, default=0.9, help="spectral norm of w_hh; default 0.9")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the case, or the grid, on every backend asked for; 1 if any fails."""
    if args.isa:
        os.environ["FASTRNN_ISA"] = args.isa
    if args.threads:
        fastrnn.set_num_threads(args.threads)
    names = backend_names(args.backend)
    one = any(getattr(args, name) is not None for name in "TBIH")
    ops = [args.op] if args.op else list(_OPS)
    dtypes = [DTYPES[args.dtype]] if args.dtype else ["float32", "float64"]
    cases = [_one(args)] if one else list(_grid(args))
    jobs = list(itertools.product(cases, dtypes, names, ops))
    failed = 0
    for case, dtype, backend, op in jobs:
        case = replace(case, dtype=dtype)
        problem = _built(case)
        try:
            judged, end_to_end = measure(problem, op, backend)
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            if is_setting(error):  # not the kernel
                raise
            failed += 1
            print(f"FAIL  {op:<8}  {backend:<6}  {type(error).__name__}: {error}\n{_repro(case, op, backend, args)}")
            continue
        right = all(deviation.ok for deviation in judged.values())
        failed += not right
        name, worst = max(judged.items(), key=lambda item: (not item[1].ok, item[1].worst))
        verdict = "PASS" if right else "FAIL"
        print(f"{verdict}  {op:<8}  {backend:<6}  {worst.worst:5.2f} of the bound  {name:<6}  {case.words()}")
        if one or not right:
            print(_table(judged, end_to_end))
        if not right:
            print(_repro(case, op, backend, args))
        sys.stdout.flush()
    print(f"{len(jobs)} checks, {failed} failed")
    return 1 if failed else 0


def measure(problem: Problem, op: str, backend: str) -> tuple[dict[str, Deviation], dict[str, Deviation]]:
    """The judged deviation of every tensor, and the one end to end from the reference in the wide dtype."""
    options = {name: getattr(problem.options, name) for name in _OPTION_NAMES}
    T, B, H = problem.shape
    weights = (problem.w_ih, problem.w_hh)
    out = np.full((T, B, H), np.nan, problem.x.dtype)  # an element that is forgotten shows
    output, h_n = fastrnn.rnn_forward(
        problem.x, problem.h_0, *weights, problem.b_ih, problem.b_hh, **options, backend=backend, out=out
    )
    wide = _widened(problem)
    if op == "forward":
        expected = reference.rnn_forward(wide.x, wide.h_0, wide.w_ih, wide.w_hh, wide.b_ih, wide.b_hh, wide.options)
        end_to_end = {
            name: _bounds.deviation(computed, right)
            for name, computed, right in zip(("output", "h_n"), (output, h_n), expected, strict=True)
        }
        return _bounds.forward_deviation(problem, output, h_n, _TANH_ULP[backend]), end_to_end

    def backward(problem: Problem, output: Array) -> RnnGradients:
        return fastrnn.rnn_backward(
            problem.d_output, problem.d_h_n, output, problem.x, problem.h_0, problem.w_ih, problem.w_hh,
            **options, backend=backend,
        )  # fmt: skip

    gradients = backward(problem, output)
    tape = output.astype(wide.x.dtype)
    right = reference.rnn_backward(
        wide.d_output, wide.d_h_n, tape, wide.x, wide.h_0, wide.w_ih, wide.w_hh, wide.options
    )
    end_to_end = {name: _bounds.deviation(getattr(gradients, name), getattr(right, name)) for name in gradients._fields}
    d_z = _bounds.own_d_z(problem, output, backward)
    return _bounds.backward_deviation(problem, output, d_z, gradients), end_to_end


_OPTION_NAMES = ("nonlinearity", "reverse", "lengths", "reset", "recurrent_mask", "keep_mask")


def _widened(problem: Problem) -> Problem:
    wide = _bounds.wide_dtype(problem.x.dtype)
    mask = problem.options.recurrent_mask
    names = ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "d_output", "d_h_n")
    arrays: dict[str, Any] = {name: getattr(problem, name) for name in names}
    arrays = {name: None if array is None else array.astype(wide) for name, array in arrays.items()}
    options = replace(problem.options, recurrent_mask=None if mask is None else mask.astype(wide))
    return Problem(**arrays, options=options)


def _one(args: argparse.Namespace) -> Case:
    names = (*"TBIH", "nonlinearity", "bias", *_FLAGS, "gain", "seed")
    return Case(**{name: getattr(args, name) for name in names if getattr(args, name) is not None})


def _built(case: Case) -> Problem:
    try:
        return case.build()
    except (MemoryError, OverflowError, ValueError) as error:
        if is_setting(error):
            raise
        raise UsageError(f"{case.words()}: expected sizes that fit into memory, got others: {error}") from error


def _seed() -> int:
    """FASTRNN_SEED, which other draws of the same cases have; 0 where it is not set."""
    text = os.environ.get("FASTRNN_SEED", "0")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"FASTRNN_SEED: expected an integer of at least 0, got {text!r}")
    return int(text)


def _grid(args: argparse.Namespace) -> Iterator[Case]:
    """Sizes that miss every vector and tile width, and each option alone; what the arguments set is in all of them."""
    base = _one(args)
    for T, B, I, H in ((1, 1, 1, 1), (2, 1, 8, 64), (9, 17, 33, 65), (50, 3, 7, 129), (5, 64, 128, 16)):
        yield replace(base, T=T, B=B, I=I, H=H)
    yield replace(base, T=0)
    yield replace(base, nonlinearity="relu")
    yield replace(base, bias="none")
    for flag in _FLAGS:
        option: dict[str, Any] = {flag: True}
        yield replace(base, **option)
    yield replace(base, T=12, B=9, H=31, lengths=True, reverse=True, reset=True, recurrent_mask=True, keep_mask=True)


def _table(judged: dict[str, Deviation], end_to_end: dict[str, Deviation]) -> str:
    lines = ["  tensor    max error  eps max|ref|  of the bound | end to end  eps max|ref|"]
    for name, d in judged.items():
        whole = end_to_end.get(name)
        text = f"{whole.max_error:10.2e}  {whole.normalised:12.2f}" if whole else f"{'-':>10}  {'-':>12}"
        lines.append(
            f"  {name:<8} {d.max_error:10.2e}  {d.normalised:12.2f}  {d.worst:12.2f} | {text}{'' if d.ok else '  FAIL'}"
        )
    return "\n".join(lines)


def _repro(case: Case, op: str, backend: str, args: argparse.Namespace) -> str:
    isa = f" --isa {args.isa}" if args.isa else ""
    threads = f" --threads {args.threads}" if args.threads else ""
    return f"  again: fastrnn check --op {op} --backend {backend}{isa}{threads} {case.words()}"
