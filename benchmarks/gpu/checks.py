"""The gate's correctness and race stages, over any subjects: results go to a journal line by line, so that a run that
was cut off goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers import checks
from helpers.cases import DTYPES, Case, random_cases
from helpers.recurrence import Run, recurrence

SHAPES = [  # T, B, I, H: what misses every tile, and the widths where another kernel begins
    *((5, 3, 7, H) for H in (1, 7, 8, 9, 31, 32, 33, 63, 65, 127, 129, 255, 256, 257, 384, 511, 513, 1023, 1025)),
    *((4, B, 5, 96) for B in (1, 2, 4, 5, 7, 8, 9, 33, 129, 257)),
    *((T, 3, 4, 65) for T in (1, 2, 3, 64)),
    (3, 2, 0, 40),
    (2, 70_000, 1, 8),  # more blocks than a second dimension of a grid has
]


def cases(quick: bool = False) -> list[Case]:
    """Plain ones of each shape, all options at once at some, and random ones; in both dtypes."""
    found = [Case(T, B, I, H, seed=H) for T, B, I, H in (SHAPES[:6] if quick else SHAPES)]
    everything = {"reset": True, "recurrent_mask": True, "keep_mask": True, "reverse": True}
    for H in (9, 65) if quick else (9, 65, 200, 300, 600):
        found += [Case(7, 5, 3, H, lengths=lengths, **everything, seed=H) for lengths in ("none", "ragged", "packed")]
    found += random_cases(6 if quick else 60, seed=900, max_work=200_000)
    return [replace(case, dtype=dtype) for dtype in DTYPES for case in found]


class Journal:
    """Lines of JSON, one a finished piece of work, by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):
            path.write_text(text + "\n")
        lines = text.splitlines()
        self.done: dict[str, Any] = {}
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # the line that was being written when the run was cut off
                continue
            self.done[entry["key"]] = entry

    def work(self, items: Iterable[tuple[str, Callable[[], dict[str, Any]]]], seconds: float) -> bool:
        """Does what is not done yet; False where the time ran out."""
        end = time.monotonic() + seconds
        for key, run in items:
            if key in self.done:
                continue
            if time.monotonic() > end:
                return False
            try:
                entry = {"key": key, "ok": True, **run()}
            except (AssertionError, RuntimeError, ValueError, TypeError, MemoryError) as error:
                entry = {"key": key, "ok": False, "error": f"{type(error).__name__}: {error}"}
            self.done[key] = entry
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        return True

    def summary(self) -> dict[str, Any]:
        """Counts, and the first failures."""
        failed = [entry for entry in self.done.values() if not entry["ok"]]
        refused = sum("refused" in entry for entry in self.done.values())
        return {"checks": len(self.done), "refused": refused, "failed": len(failed), "failures": failed[:20]}


def judge(subject: Any, case: Case) -> dict[str, Any]:
    """Both directions by the bounds of tests/helpers; a kernel that cannot do the case says so."""
    try:
        checks.check_forward(subject, case)
        checks.check_backward(subject, case)
    except ValueError as error:
        return {"refused": str(error)}
    return {}


def correctness(
    subjects: Callable[[Case], Iterator[Any]], quick: bool = False
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every subject on every case."""
    for case in cases(quick):
        for subject in subjects(case):

            def run(subject: Any = subject, case: Case = case) -> dict[str, Any]:
                return judge(subject, case)

            yield f"{subject.name} {case.dtype} {case.id} {case.seed}", run


def judge_recurrence(one: Any, case: Case) -> dict[str, Any]:
    """A kernel alone, in its storage type (subjects.Recurrence)."""
    try:
        Run(one.kernel, one.kernel_name, one.storage, recurrence(case)).check(case.id)
    except ValueError as error:
        return {"refused": str(error)}
    return {}


def recurrence_correctness(
    kernels: Callable[[], Iterator[Any]],
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every kernel on the quick cases of float32 and at widths around those where another one begins."""
    wide = [Case(4, 5, H, H, lengths="ragged", seed=H) for H in (128, 129, 256, 257, 511, 512, 1023, 1024)]
    for case in (*cases(quick=True), *wide):
        if case.dtype == "float32":
            for one in kernels():

                def run(one: Any = one, case: Case = case) -> dict[str, Any]:
                    return judge_recurrence(one, case)

                yield f"{one.name} {case.id} {case.seed}", run


RACES = [(64, B, 8, H) for H in (64, 200, 256, 512, 1000) for B in (1, 5, 33)]


def recurrence_races(
    kernels: Callable[[], Iterator[Any]], repeats: int = 50, disturb: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """As races(), for the kernels alone, at the largest batch of each width."""
    for T, B, _, H in RACES[2::3]:
        p = recurrence(Case(T, B, H, H, lengths="ragged", keep_mask=True, reset=True, seed=1))
        for one in kernels():

            def run(one: Any = one, p: Any = p) -> dict[str, Any]:
                def results() -> tuple[Any, ...]:
                    return Run(one.kernel, one.kernel_name, one.storage, p).bits()

                return same_bits(one.name, results, ("output", "h_n", "d_z", "d_h_0"), repeats, disturb)

            yield f"{one.name} {T} {B} {H}", run


def races(
    subjects: Callable[[Case], Iterator[Any]], repeats: int = 200, disturb: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The same call again and again, other work of the device beside it: the same bits every time."""
    for T, B, I, H in RACES:
        for dtype in DTYPES:
            case = Case(T, B, I, H, dtype=dtype, lengths="ragged", keep_mask=True, reset=True, seed=1)
            for subject in subjects(case):

                def run(subject: Any = subject, case: Case = case) -> dict[str, Any]:
                    return repeat(subject, case, repeats, disturb)

                yield f"{subject.name} {case.dtype} {case.id}", run


def repeat(subject: Any, case: Case, repeats: int, disturb: Callable[[], None]) -> dict[str, Any]:
    """AssertionError where one of the repeats gives another bit."""
    p = case.build()
    tape: list[Any] = []  # of the first call: what every backward reads

    def results() -> tuple[Any, ...]:
        output, h_n = subject.forward(p)
        tape.append(output)
        return (output, h_n, *subject.backward(p, tape[0]))

    names = ("output", "h_n", "d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")
    return same_bits(f"{subject.name}, {case.id}", results, names, repeats, disturb)


def same_bits(
    what: str,
    results: Callable[[], tuple[Any, ...]],
    names: tuple[str, ...],
    repeats: int,
    disturb: Callable[[], None],
) -> dict[str, Any]:
    """results() again and again."""
    try:
        first = [a.tobytes() for a in results()]
    except ValueError as error:
        return {"refused": str(error)}
    for i in range(repeats):
        disturb()
        again = [a.tobytes() for a in results()]
        different = [n for n, a, b in zip(names, first, again, strict=True) if a != b]
        if different:
            raise AssertionError(f"{what}: other bits in {', '.join(different)}, repeat {i}")
    return {"repeats": repeats}
