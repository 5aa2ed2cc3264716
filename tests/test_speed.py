"""What every speed figure rests on: shapes, the check before the clock, the timing core on a clock of its own, the
native probe, the report.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.kernels import known_kernels, native

import fastrnn
from fastrnn._speed import arms, limits, report, shapes, timing
from fastrnn._speed.arms import Arm, Problem
from fastrnn._speed.check import Truth
from fastrnn._speed.shapes import Shape

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("threadpoolctl"), reason='the extra "cli" is not installed'
)
needs_native = pytest.mark.skipif(isinstance(native(), ImportError), reason=f"cpp: {native()}")
AVAILABLE = [b.name for b in fastrnn.backends() if b.available and b.device == "cpu"]

# ---- shapes


def test_shapes_are_parsed_once_each_in_order() -> None:
    assert shapes.parse("3x2x1x4") == [Shape(B=3, T=2, I=1, H=4)]
    assert shapes.parse("quick") == list(shapes.QUICK)
    assert shapes.parse("1x2x3x4, quick,1x2x3x4,8x128x128x128") == [Shape(1, 2, 3, 4), *shapes.QUICK]
    assert [str(shape) for shape in shapes.parse("10x20x30x40")] == ["10x20x30x40"]
    assert set(shapes.QUICK) <= {*shapes.GRID, *shapes.ODD}


@pytest.mark.parametrize(
    "text", ["", "grid,", "1x2x3", "1x2x3x4x5", "0x1x1x1", "1x-1x1x1", "1x1x1x1.5", "axbxcxd", "GRID", "1x1x1x٣"]
)
def test_bad_shapes_say_what_was_expected_and_what_came(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected default, grid, odd, quick, scaling or BxTxIxH, .*; got '"):
        shapes.parse(text)


def test_odd_shapes_cover_the_sizes_they_promise() -> None:
    assert {s.B for s in shapes.ODD} == {1, 2, 3, 5, 7, 20, 50}
    assert {s.I for s in shapes.ODD} == {1, 3, 10, 40}
    assert {s.H for s in shapes.ODD} == {96, 100, 200, 300}
    for group in (shapes.DEFAULT, shapes.GRID, shapes.ODD, shapes.QUICK, shapes.STEPS):
        assert len(set(group)) == len(group)


def test_flops_are_those_of_the_products() -> None:
    B, T, I, H = shape = Shape(3, 5, 7, 11)
    products = [(B, I, H), (B, H, H)]  # x w_ih^T, h w_hh^T
    assert shape.flops() == T * sum(2 * m * k * n for m, k, n in products)
    bptt = [(B, H, H), (B, H, I), (H, B, I), (H, B, H)]  # d_z w_hh, d_z w_ih, d_z^T x, d_z^T h
    assert shape.flops(training=True) == shape.flops() + T * sum(2 * m * k * n for m, k, n in bptt)


# ---- check first

SMALL = [
    Shape(1, 1, 1, 1),
    Shape(1, 9, 3, 33),
    Shape(7, 12, 10, 17),
    Shape(3, 31, 1, 100),
    Shape(4, 169, 1, 1),  # d_b's addends cancel
    Shape(1, 1, 331, 5),  # one addend, as exact as the step's sum of 336 terms
]


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_every_backend_passes_the_check(backend: str, shape: Shape, dtype: str) -> None:
    problem = Problem.draw(shape, np.dtype(dtype).name)
    arm, truth = arms.maker(backend)(problem), Truth(problem)
    for results, count in ((arm.training(), 7), (arm.forward(), 2)):
        errors = truth.judge(results)
        assert list(errors) == list(arms.RESULTS[:count])
        assert all(error.right for error in errors.values()), errors
        assert all(error.limit < 1e3 * np.finfo(dtype).eps for error in errors.values()), (
            "no limit that lets faults pass"
        )


@pytest.mark.parametrize("name", [arms.TORCH, arms.FASTRNN_TORCH])
def test_torch_arms_pass_the_check(torch: Any, name: str, dtype: str) -> None:
    try:
        make = arms.maker(name)
    except arms.UnavailableError as error:
        if name == arms.TORCH:
            raise
        pytest.skip(str(error))
    for shape in SMALL:
        problem = Problem.draw(shape, np.dtype(dtype).name)
        arm, truth = make(problem), Truth(problem)
        for results in (arm.training(), arm.training(), arm.forward()):
            errors = truth.judge(results)
            assert all(error.right for error in errors.values()), (shape, errors)


def _wrong_forward(p: Problem, **changes: Any) -> Any:
    return arms.backend_arm("numpy", replace(p, **changes)).training()


def _one_element(name: str, change: Callable[[Any], Any]) -> Callable[[Problem], Any]:
    def results(p: Problem) -> Any:
        found = list(arms.backend_arm("numpy", p).training())
        array = found[arms.RESULTS.index(name)] = found[arms.RESULTS.index(name)].copy()
        array.flat[-1] = change(array.flat[-1])
        return found

    return results


FAULTS: dict[str, tuple[Callable[[Problem], Any], set[str]]] = {
    "b_hh dropped": (lambda p: _wrong_forward(p, b_hh=0 * p.b_hh), set(arms.RESULTS)),
    "h_0 dropped": (lambda p: _wrong_forward(p, h_0=0 * p.h_0), {"output", "d_w_hh"}),
    "d_h_n dropped": (lambda p: _wrong_forward(p, d_h_n=0 * p.d_h_n), {"d_x", "d_b"}),
    "x off by a step": (lambda p: _wrong_forward(p, x=np.roll(p.x, 1, axis=0)), {"output", "d_w_ih"}),
    "a NaN": (_one_element("d_x", lambda value: np.nan), {"d_x"}),
    "an infinity": (_one_element("output", lambda value: np.inf), {"output"}),
    "one element of d_w_hh": (_one_element("d_w_hh", lambda value: value + 0.01), {"d_w_hh"}),
    "one element of d_b": (_one_element("d_b", lambda value: value * 1.001), {"d_b"}),
    "another shape": (lambda p: [a[..., :-1] for a in arms.backend_arm("numpy", p).training()], set(arms.RESULTS)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_sees_faults(fault: str, dtype: str) -> None:
    problem = Problem.draw(Shape(7, 12, 10, 17), np.dtype(dtype).name)
    results, seen = FAULTS[fault]
    wrong = {name for name, error in Truth(problem).judge(results(problem)).items() if not error.right}
    assert seen <= wrong


def test_problems_of_both_dtypes_are_the_same() -> None:
    narrow, wide = (Problem.draw(Shape(2, 3, 4, 5), dtype) for dtype in ("float32", "float64"))
    for name, array in narrow.arrays.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, wide.arrays[name]), name


# ---- then time


class Clock:
    """time.perf_counter and time.sleep, moved by hand."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0.0
        self.spins, self.until = 0.0, 0.0  # threads, for so long after a call

    def call(self, seconds: float, log: list[str] | None = None, name: str = "") -> Callable[[], None]:
        def run() -> None:
            self.now += seconds
            self.until = self.now + self.spins
            if log is not None:
                log.append(name)

        return run

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    time = SimpleNamespace(
        perf_counter=lambda: clock.now, process_time=lambda: min(clock.now, clock.until), sleep=clock.sleep
    )
    monkeypatch.setattr(timing, "time", time)
    return clock


def test_short_calls_are_warm_and_repeated(clock: Clock) -> None:
    log: list[str] = []
    assert timing.turn(clock.call(1e-3, log)) == pytest.approx(1e-3)
    assert len(log) == 1 + 3, "one that is not timed, then 3 ms"
    log.clear()
    assert timing.turn(clock.call(0.2, log), warm=False) == pytest.approx(0.2)
    assert len(log) == 1


def test_a_first_call_that_is_slow_does_not_count(clock: Clock) -> None:
    costs = iter([5.0, 0.01])

    def call() -> None:
        clock.now += next(costs)

    assert timing.turn(call) == pytest.approx(0.01)


def test_arms_take_turns_and_each_round_starts_with_another(clock: Clock) -> None:
    log: list[str] = []
    calls = {name: clock.call(0.06, log, name) for name in "abc"}
    rounds: list[float] = []
    found = timing.interleave(calls, budget=0.0, each_round=lambda: rounds.append(clock.now))
    assert len(rounds) == 1, "even three rounds would take more than five times no budget"
    log.clear()
    found = timing.interleave(calls, budget=0.75)
    assert "".join(log) == "aabbcc" + "bca" + "cab" + "abc", "long calls are warmed in the first round only"
    assert found["a"].values == pytest.approx((0.06,) * 4)


def test_rounds_end_with_the_budget(clock: Clock) -> None:
    calls = {"a": clock.call(0.1)}
    assert len(timing.interleave(calls, budget=1e-9)["a"].values) == 1
    assert len(timing.interleave(calls, budget=0.15)["a"].values) == 3, "at least three"
    assert len(timing.interleave(calls, budget=1.05)["a"].values) == 10, "the first took twice as long: it was warmed"
    assert len(timing.interleave(calls, budget=1e9, max_rounds=7)["a"].values) == 7


def test_a_pause_follows_arms_that_leave_spinning_threads(clock: Clock) -> None:
    """As long as they spin, and a look more; not for ever."""
    for spins, pause in ((0.0, timing.LOOK), (0.1, 0.1 + timing.LOOK), (9.0, timing.SETTLE)):
        clock.slept, clock.spins = 0.0, spins
        calls = {"a": clock.call(0.1), "b": clock.call(0.1)}
        timing.interleave(calls, budget=1e9, max_rounds=4, spins={"b"})
        assert clock.slept == pytest.approx(4 * pause, abs=4 * timing.LOOK)


def test_arms_that_multiply_by_numpys_blas_are_waited_for(backend: str) -> None:
    arm = arms.backend_arm(backend, Problem.draw(Shape(1, 2, 3, 4), "float32"))
    assert arm.spins is (backend in ("numpy", "numba"))


def test_a_workers_threads_are_waited_for_where_they_are() -> None:
    settled: list[str] = []
    call = SimpleNamespace(turn=lambda warm: 0.1, settle=lambda: settled.append("there"))
    timing.interleave({"a": call}, budget=1e9, max_rounds=2, spins={"a"})
    assert settled == ["there"] * 2


def test_no_garbage_is_collected_meanwhile(clock: Clock) -> None:
    seen: list[bool] = []

    def call() -> None:
        clock.now += 1
        seen.append(gc.isenabled())

    assert gc.isenabled()
    timing.interleave({"a": call}, budget=0)
    assert gc.isenabled()
    assert not any(seen)

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        timing.interleave({"a": broken}, budget=0)
    assert gc.isenabled()


def test_spread() -> None:
    spread = timing.Spread((4.0, 1.0, 2.0, 3.0, 100.0))
    assert (spread.median, spread.quartiles) == (3.0, (2.0, 4.0))
    assert spread.relative == pytest.approx(1 / 3)
    facts = spread.as_json()
    assert (facts["min"], facts["max"], facts["rounds"]) == (1.0, 100.0, [4.0, 1.0, 2.0, 3.0, 100.0])


# ---- the machine's limits


@needs_native
@pytest.mark.parametrize("isa", [i[4:] for i, reason in known_kernels().items() if i.startswith("cpp:") and not reason])
def test_probes_run_on_every_instruction_set(isa: str) -> None:
    for threads in (1, 3):
        for dtype in ("float32", "float64"):
            assert math.isfinite(native().fma_peak(dtype, threads, 1e-3, isa))
            assert native().fma_peak(dtype, threads, 1e-3, isa) > 0.01
        for size in (4096 * threads, 50_001, 1 << 22):
            assert 0.01 < native().read_bandwidth(size, threads, 1e-3, isa) < 1e5


@needs_native
def test_caches_are_read_faster_than_memory() -> None:
    """By an order of magnitude on an idle machine; the best of several tries, as others may be busy here."""
    cache, memory = (max(native().read_bandwidth(size, 1, 5e-3) for _ in range(3)) for size in (16 << 10, 64 << 20))
    assert cache > 1.5 * memory


@needs_native
def test_probes_refuse_what_they_cannot_measure() -> None:
    for call, name in (
        (lambda: native().fma_peak("float16", 1, 0.01), "dtype"),
        (lambda: native().fma_peak("float32", 0, 0.01), "threads"),
        (lambda: native().fma_peak("float32", 1, 0.0), "seconds"),
        (lambda: native().fma_peak("float32", 1, float("nan")), "seconds"),
        (lambda: native().read_bandwidth(1 << 20, 0, 0.01), "threads"),
        (lambda: native().read_bandwidth(4095, 1, 0.01), "bytes"),
        (lambda: native().read_bandwidth(8191, 2, 0.01), "bytes"),
        (lambda: native().read_bandwidth(-1, 1, 0.01), "bytes"),
        (lambda: native().read_bandwidth(1 << 20, 1, 1e9), "seconds"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            call()
    with pytest.raises(RuntimeError, match="sse9"):
        native().read_bandwidth(1 << 20, 1, 0.01, "sse9")
    with pytest.raises(MemoryError):
        native().read_bandwidth(1 << 62, 1, 0.01)


def test_the_bound_is_the_slower_of_arithmetic_and_reading() -> None:
    shape = Shape(1, 10, 1000, 1000)
    arithmetic, reading = 2 * 10 * 1000 * 2000 / 1e9, 10 * 4e6 / 1e9
    assert limits.bound(shape, "float32", False, 1.0, 1e6) == (pytest.approx(arithmetic), "fma")
    assert limits.bound(shape, "float32", False, 1e6, 1.0) == (pytest.approx(reading), "bandwidth")
    assert limits.bound(shape, "float64", True, 1e6, 1.0) == (pytest.approx(4 * reading), "bandwidth")


# ---- the report


def test_the_report_holds_every_figure_and_is_json() -> None:
    grid = [Shape(1, 9, 3, 33), Shape(7, 12, 10, 17)]
    seen: list[Shape] = []
    makers = {name: arms.maker(name) for name in AVAILABLE}
    found = report.measure(grid, makers, budget=0.02, progress=seen.append)
    assert seen == grid
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["right"] is True
    assert [Shape(**row["shape"]) for row in found["shapes"]] == grid
    for row in found["shapes"]:
        assert list(row["arms"]) == AVAILABLE
        base = row["arms"]["numpy"]
        for arm in row["arms"].values():
            assert arm["right"] is True
            assert arm["max_error"] == max(error["error"] for error in arm["errors"].values())
            for op in arms.OPS:
                shape, seconds = Shape(**row["shape"]), arm[op]["seconds"]["median"]
                assert arm[op]["gflops"] == pytest.approx(shape.flops(op == "training") / seconds / 1e9)
                assert arm[op]["speed_up"] == pytest.approx(base[op]["seconds"]["median"] / seconds)
                if "cpp" in AVAILABLE:
                    peak = max(other["fma_peak_gflops"]["max"] for other in found["shapes"])
                    assert arm[op]["percent_of_peak"] == pytest.approx(100 * arm[op]["gflops"] / peak)
                    assert arm[op]["percent_of_bound"] >= arm[op]["percent_of_peak"] * (1 - 1e-9)


def test_a_wrong_arm_is_reported_and_not_timed() -> None:
    def make(problem: Problem) -> Arm:
        arm = arms.backend_arm("numpy", problem)
        return replace(arm, forward=lambda: _wrong_forward(problem, b_hh=0 * problem.b_hh)[:2])

    makers = {"numpy": arms.maker("numpy"), "wrong": make}
    found = report.measure([Shape(2, 3, 4, 5)], makers, budget=0.0)
    (row,) = found["shapes"]
    assert found["right"] is False
    assert row["arms"]["numpy"]["right"] is True
    assert row["arms"]["wrong"]["right"] is False
    assert "forward" not in row["arms"]["wrong"]
    assert found["geometric_means"]["forward"] == {"numpy": {}}


def test_geometric_means_are_over_the_common_shapes() -> None:
    def arm(seconds: float) -> dict[str, Any]:
        return {op: {"seconds": {"median": seconds}} for op in arms.OPS}

    rows = [
        {"arms": {"a": arm(4), "b": arm(1)}},
        {"arms": {"a": arm(1), "b": arm(1)}},
        {"arms": {"a": arm(9), "b": {}}},
    ]
    means = report.geometric_means(rows)["forward"]
    assert means["a"]["b"] == pytest.approx(2.0)
    assert means["b"]["a"] == pytest.approx(0.5)


def test_unknown_arms_say_so() -> None:
    with pytest.raises(arms.UnavailableError, match="cudnn"):
        arms.maker("cudnn")
    assert set(AVAILABLE) | {arms.TORCH, arms.FASTRNN_TORCH} <= set(arms.known_arms())


def test_all_arms_get_the_same_threads_and_get_theirs_back(torch: Any) -> None:
    from threadpoolctl import threadpool_info

    def blas() -> list[int]:
        np.ones((2, 2)) @ np.ones((2, 2))
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    at_first = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        before = fastrnn.get_num_threads(), 3, blas()
        with arms.equal_threads(1):
            assert (fastrnn.get_num_threads(), torch.get_num_threads(), set(blas())) == (1, 1, {1})
        assert (fastrnn.get_num_threads(), torch.get_num_threads(), blas()) == before
    finally:
        torch.set_num_threads(at_first)
