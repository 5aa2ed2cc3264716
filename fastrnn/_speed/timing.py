"""The timing core: calls take turns, round after round; medians, and how far the rounds spread."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

K = TypeVar("K", bound=Hashable)

TURN = 3e-3  # seconds that short calls are repeated for in one turn
COLD = 50e-3  # calls longer than this find their data in the same place whether or not another one went before
PATIENCE = 5.0  # times the budget, for the least number of rounds
LOOK = 4e-3  # seconds between two looks at whether threads still spin
SETTLE = 0.25  # seconds after which nobody waits for them any longer


@dataclass(frozen=True)
class Spread:
    """Figures of one quantity, one a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(self.values, (25, 75))
        return float(low), float(high)

    @property
    def relative(self) -> float:
        """Half the distance of the quartiles, over the median: half of the rounds lie within about this much."""
        low, high = self.quartiles
        return (high - low) / 2 / self.median

    def as_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "quartiles": list(self.quartiles),
            "spread": self.relative,
            "rounds": list(self.values),
        }


def interleave(
    calls: Mapping[K, Callable[[], Any]],
    *,
    budget: float,
    min_rounds: int = 3,
    max_rounds: int = 25,
    each_round: Callable[[], Any] = lambda: None,
    spins: Collection[K] = (),
) -> dict[K, Spread]:
    """Seconds of one call of each, warm, one figure a round.

    Rounds go on until `budget` seconds are over: at least min_rounds unless those take five times the budget, at most
    max_rounds. Every round starts with another call, so that none is always the one after a certain other. After the
    calls in `spins` the next one waits until their threads sleep.
    """
    keys = list(calls)
    seconds: dict[K, list[float]] = {key: [] for key in keys}
    start = time.perf_counter()
    with _no_garbage_collection():
        for number in range(max_rounds):  # the first always runs
            if number and time.perf_counter() - start > (budget if number >= min_rounds else PATIENCE * budget):
                break
            each_round()
            first = number % len(keys) if keys else 0
            for key in keys[first:] + keys[:first]:
                warm = not seconds[key] or seconds[key][-1] < COLD
                seconds[key].append(turn(calls[key], warm))
                if key in spins:
                    getattr(calls[key], "settle", settle)()
    return {key: Spread(tuple(values)) for key, values in seconds.items()}


def turn(call: Callable[[], Any], warm: bool = True, least: float = TURN) -> float:
    """Seconds of one call, after one that is not timed if `warm`; repeated until `least` seconds are over.

    A call into another process (worker.Call) has a `turn` of its own: the clock is there.
    """
    remote: Callable[[bool], float] | None = getattr(call, "turn", None)
    if remote:
        return remote(warm)
    if warm:
        call()
    calls, start = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= least:
            return elapsed / calls


def settle() -> None:
    """Waits until this process's threads sleep. After a call OpenMP's spin for 4 to 10 ms, OpenBLAS's for 100.

    A call into another process (worker.Call) has a `settle` of its own: the threads are there.
    """
    used, end = time.process_time(), time.perf_counter() + SETTLE
    while time.perf_counter() < end:
        time.sleep(LOOK)
        before, used = used, time.process_time()
        if used - before < LOOK / 4:
            return


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
