"""Options, and the arms of each shape: checked, then timed one after the other.

Everything is from fastrnn._speed: shapes, arms, checks and the machine's limits are the same as in `fastrnn compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from fastrnn._speed import arms, limits, report, shapes
from fastrnn._speed.check import Truth
from fastrnn._speed.shapes import Shape


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastrnn")
    group.addoption("--shapes", help=f"{', '.join(shapes.SETS)} or BxTxIxH, comma-separated; none given: quick")
    group.addoption("--threads", type=int, default=1, help="of every arm; default 1")
    group.addoption("--dtype", choices=("float32", "float64"), default="float32")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`shape` and `arm`: shape by shape, and within a shape arm by arm, so that rivals run next to each other."""
    text = metafunc.config.getoption("--shapes")
    try:
        chosen = list(getattr(metafunc.module, "SHAPES", shapes.QUICK)) if text is None else shapes.parse(text)
    except ValueError as error:
        raise pytest.UsageError(f"--shapes: {error}") from error
    names = getattr(metafunc.module, "ARMS", arms.known_arms())
    pairs = [(shape, name) for shape in chosen for name in names]
    metafunc.parametrize(("shape", "arm"), pairs, ids=[f"{shape}-{name}" for shape, name in pairs])


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The same number of threads for all, as long as the session lasts."""
    count = request.config.getoption("--threads")
    if count < 1:
        raise pytest.UsageError(f"--threads: expected at least 1, got {count}")
    with arms.equal_threads(count):
        yield count


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--dtype"))


@lru_cache(maxsize=1)
def problem_and_truth(shape: Shape, dtype: str) -> tuple[arms.Problem, Truth]:
    problem = arms.Problem.draw(shape, dtype)
    return problem, Truth(problem)


@pytest.fixture(scope="session")
def peaks(threads: int, dtype: str) -> list[float]:
    """The FMA peaks measured in this session, GFLOP/s."""
    measured = (limits.fma_peak(dtype, threads) for _ in range(5))
    return [peak for peak in measured if peak]


@pytest.fixture
def run(benchmark: Any, threads: int, dtype: str, peaks: list[float]) -> Callable[..., None]:
    """run(shape, name, op, make): builds the arm, checks it, times arm.op, and says in extra_info what came out."""

    def run(shape: Shape, name: str, op: str, make: Callable[[str], arms.Maker] = arms.maker) -> None:
        benchmark.group = f"{op} {shape} {dtype}"
        problem, truth = problem_and_truth(shape, dtype)
        try:
            arm = make(name)(problem)
        except arms.UnavailableError as error:
            pytest.skip(f"{name}: {error}")
        call = getattr(arm, op)
        errors = truth.judge(arm.results(op))
        wrong = {key: (error.value, error.limit) for key, error in errors.items() if not error.right}
        assert not wrong, f"{name}: (error, limit) against float64: {wrong}"

        benchmark(call)
        benchmark.extra_info |= {
            "arm": name,
            "op": op,
            "shape": shape._asdict(),
            "dtype": dtype,
            "threads": threads,
            "isa": limits.isa(),
            "max_error": float(np.max([error.value for error in errors.values()])),
        }
        if benchmark.stats:  # not with --benchmark-disable
            seconds = benchmark.stats.stats.median
            benchmark.extra_info["gflops"] = 1e-9 * shape.flops(op == "training") / seconds
            bandwidth, peak = limits.weight_bandwidth(shape, dtype, threads), limits.fma_peak(dtype, threads)
            if peak and bandwidth:
                peaks.append(peak)
                peak = max(peaks)  # what disturbs a machine only lowers its peak
                found = report.percentages(shape, dtype, op, seconds, peak, bandwidth)
                benchmark.extra_info |= {**found, "fma_peak_gflops": peak, "weight_bandwidth_gb_s": bandwidth}

    return run
