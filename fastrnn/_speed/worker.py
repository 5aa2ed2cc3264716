"""An arm in a process of its own: its library reads its settings afresh, its threads spin beside nobody else's.

The process holds the clock: it repeats the call and sends back the seconds of one. Only its results, for the check, and
the problem, once, go through the pipe.
"""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from . import arms, peers, timing
from .arms import Arm, ArmError, Problem, UnavailableError
from .shapes import Shape

# What is freed goes back to the system at once, so that memory of an earlier call does not hide that of the next one
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "FASTRNN_KEPT_MIB": "0"}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Worker:
    """The process that runs the arm `name`, a peer's or one of arms.maker's, for one problem after the other.

    Raises UnavailableError where the arm cannot run. for_memory: peak_memory is what will be asked.
    """

    def __init__(self, name: str, threads: int, *, for_memory: bool = False) -> None:
        self.name = name
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, threads), daemon=True)
        with _environment(peers.environment(name, threads) | (_GIVE_BACK if for_memory else {})):
            self._process.start()
        theirs.close()
        self._ready = False

    def make(self, problem: Problem) -> Arm:
        """The Maker of the arm: the problem replaces the one before."""
        ops = self.ask("build", problem)
        forward, training = (Call(self, op) if op in ops else None for op in arms.OPS)
        assert forward
        return Arm(self.name, forward, training, spins=self.ask("spins"))

    def peak_memory(self, problem: Problem) -> int | None:
        """Bytes that one training step takes over what the process held before, results included; None where there are
        no gradients or the system does not tell. A step of a tiny problem goes ahead.
        """
        B, T, _, _ = problem.shape
        self.ask("build", Problem.draw(Shape(min(B, 2), min(T, 3), 4, 8), problem.x.dtype.name))
        self.ask("peak")
        self.ask("build", problem)
        peak: int | None = self.ask("peak")
        return peak

    def ask(self, command: str, *arguments: Any) -> Any:
        """What the process answers; its exceptions are raised here."""
        try:
            if not self._ready:
                self._ready = True
                self._answer()  # to its start
            self._connection.send((command, arguments))
            return self._answer()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join(5)
            raise ArmError(f"{self.name}: its process ended with code {self._process.exitcode}") from error

    def _answer(self) -> Any:
        answer = self._connection.recv()
        if isinstance(answer, _Failure):
            raise answer.kind(f"{self.name}: {answer.text}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()  # at which it leaves
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class Call:
    """One operation of a worker's arm: timing.turn leaves the clock to it."""

    worker: Worker
    op: str

    def __call__(self) -> Any:
        return self.worker.ask("results", self.op)

    def turn(self, warm: bool) -> float:
        seconds: float = self.worker.ask("turn", self.op, warm)
        return seconds

    def settle(self) -> None:
        self.worker.ask("settle")


@dataclass(frozen=True)
class _Failure:
    kind: type[Exception]
    text: str


def _serve(connection: Connection, name: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which closes the pipe
    gc.disable()
    try:
        with arms.equal_threads(threads):
            make = peers.maker(name, threads) if name in peers.PEERS else arms.maker(name)
            connection.send(None)
            _answer_all(connection, make)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:
        connection.send(_failure(error))


def _answer_all(connection: Connection, make: arms.Maker) -> None:
    arm: Arm | None = None
    while True:
        command, arguments = connection.recv()
        answer: Any
        try:
            if command == "build":
                arm = None
                gc.collect()
                arm = make(arguments[0].copy())  # into memory of NumPy's: unpickled arrays lie in bytes
                answer = arm.ops
            elif arm is None:
                raise RuntimeError("there is no problem yet")
            elif command == "spins":
                answer = arm.spins
            elif command == "results":
                answer = [np.asarray(array) for array in arm.results(*arguments)]
            elif command == "turn":
                op, warm = arguments
                answer = timing.turn(getattr(arm, op), warm)
            elif command == "settle":
                timing.settle()
                answer = None
            elif command == "peak":
                answer = _peak(arm)
            else:
                raise RuntimeError(f"unknown command {command!r}")
        except Exception as error:
            answer = _failure(error)
        connection.send(answer)


def _failure(error: Exception) -> _Failure:
    for kind in (UnavailableError, MemoryError):
        if isinstance(error, kind):
            return _Failure(kind, str(error))
    return _Failure(ArmError, f"{type(error).__name__}: {error}")


def _peak(arm: Arm) -> int | None:
    if not arm.training:
        return None
    gc.collect()
    try:
        _CLEAR.write_text("5", encoding="ascii")  # the peak starts from what is resident now
    except OSError:  # no Linux
        return None
    before = _resident("VmRSS")
    results = arm.training()
    peak = _resident("VmHWM")
    del results
    return max(0, peak - before) + arm.held


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Of a process that starts meanwhile."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
