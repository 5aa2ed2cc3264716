"""What the numba backend alone has: products that take one way or another by their sizes. Each way is right for every
number of rows that is left over, with every option.
"""

import math
import os
import platform
import re
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case
from helpers.checks import check_backward, check_forward
from helpers.kernels import Kernel, known_kernels
from helpers.processes import output_of

from fastrnn._speed.arms import Problem, backend_arm, equal_threads
from fastrnn._speed.shapes import Shape
from fastrnn._speed.timing import interleave

pytestmark = pytest.mark.skipif(bool(known_kernels()["numba"]), reason="Numba is not installed")


@pytest.fixture(name="numba")
def _numba() -> Kernel:
    return Kernel("numba")


def plan_of(case: Case) -> Any:
    from fastrnn._backends.numba_cpu import _Plan
    from fastrnn._backends.options import RnnOptions

    p = case.build()
    return _Plan(p.x.shape, p.x.shape[-1], p.H, RnnOptions(**p.options()))


@pytest.mark.parametrize("B", [1, 2, 3, 5, 6, 7])
def test_few_rows_read_large_weights_in_blocks_of_8(numba: Kernel, dtype: str, B: int) -> None:
    """Loops over w_hh of half a MiB or more, where 1, 2 or 3 rows are left over by tiles of four."""
    from fastrnn._backends.numba_products import LARGE

    case = Case(T=-(-20 // B), B=B, I=3, H=365, dtype=dtype, seed=B)
    assert case.H**2 * np.dtype(dtype).itemsize >= LARGE
    assert not plan_of(case).blas
    check_forward(numba, case)
    check_backward(numba, case)


OPTIONS: list[dict[str, Any]] = [
    {}, {"lengths": "ragged", "reset": True}, {"lengths": "packed", "keep_mask": True}, {"recurrent_mask": True},
    {"nonlinearity": "relu", "reverse": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("T", "B"), [(1, 1), (2, 1), (1, 3), (5, 1)])
def test_a_call_too_short_to_transpose_its_large_weights(
    numba: Kernel, dtype: str, T: int, B: int, options: dict[str, Any]
) -> None:
    """Such a call multiplies by NumPy's BLAS."""
    case = Case(T=T, B=B, I=200, H=300, dtype=dtype, seed=T, **options)
    assert plan_of(case).blas
    check_forward(numba, case)
    check_backward(numba, case)


@pytest.mark.parametrize("blas", [False, True])
@pytest.mark.parametrize("options", [*OPTIONS, {"alpha": "unit"}], ids=str)
def test_many_rows_of_a_wide_layer(
    numba: Kernel, dtype: str, options: dict[str, Any], blas: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NumPy's BLAS where vectors have 32 bytes, by the loops where they have 64: both are right everywhere."""
    from fastrnn._backends import numba_cpu

    monkeypatch.setattr(numba_cpu, "BLAS_STEP", 1 if blas else math.inf)
    monkeypatch.setattr(numba_cpu, "_plans", {})
    case = Case(T=5, B=11, I=33, H=65, dtype=dtype, seed=9, **options)
    assert plan_of(case).blas is blas
    check_forward(numba, case)
    check_backward(numba, case)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("T", "B"), [(1, 1), (1, 2), (1, 3), (2, 4), (1, 7), (3, 5)])
@pytest.mark.parametrize(("I", "H"), [(1, 1), (3, 2), (7, 9), (8, 15), (17, 8), (16, 33), (129, 181)])
def test_a_call_of_few_rows_takes_its_weights_as_they_are(
    numba: Kernel, dtype: str, T: int, B: int, I: int, H: int, options: dict[str, Any]
) -> None:
    """Dot products of rows, 4, 2 and 1 at a time, and what is left of a row behind its last whole vector."""
    case = Case(T=T, B=B, I=I, H=H, dtype=dtype, seed=T + H, **options)
    plan = plan_of(case)
    assert plan.dots
    assert plan.whole()
    check_forward(numba, case)
    check_backward(numba, case)


@pytest.mark.parametrize("options", [*OPTIONS, {"alpha": "unit"}], ids=str)
@pytest.mark.parametrize(("T", "B", "I", "H"), [(40, 7, 64, 96), (40, 41, 64, 48)])
def test_one_call_of_compiled_code_has_the_bits_of_parts(
    dtype: str, default_threads: None, T: int, B: int, I: int, H: int, options: dict[str, Any]
) -> None:
    """On one thread a chunk is one call, on more it is cut into parts for them."""
    import fastrnn

    case, kernel = Case(T=T, B=B, I=I, H=H, dtype=dtype, **options), Kernel("numba")
    p, results = case.build(), []
    for threads in (1, 2):
        fastrnn.set_num_threads(threads)
        assert plan_of(case).whole() == (threads == 1)
        output, h_n = kernel.forward(p)
        results.append([output, h_n, *kernel.backward(p, output)])
    for left, right in zip(*results, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_chunks_that_are_not_listed_are_the_same(
    dtype: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Of a long sequence they are made one at a time; forward and BPTT have the bits of those that a plan keeps."""
    from fastrnn._backends import numba_cpu

    kernel, p = Kernel("numba"), Case(T=23, B=3, I=5, H=9, dtype=dtype, **options).build()
    monkeypatch.setattr(numba_cpu, "CHUNK_ROWS", 12)
    results = []
    for kept in (100, 0):
        monkeypatch.setattr(numba_cpu, "KEPT_SPANS", kept)
        monkeypatch.setattr(numba_cpu, "_plans", {})
        output, h_n = kernel.forward(p)
        results.append([output, h_n, *kernel.backward(p, output)])
    for left, right in zip(*results, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("H", [1, 3, 4, 5, 8, 9, 15, 16, 17, 31, 100])
@pytest.mark.parametrize("I", [1, 2, 7, 8, 9, 33])
def test_packed_weights_are_the_transposes(dtype: str, I: int, H: int) -> None:
    from fastrnn._backends.numba_cpu import pack_weights

    rng = np.random.default_rng(I * H)
    w_ih, w_hh = (rng.standard_normal((H, K)).astype(dtype) for K in (I, H))
    for given in ((w_ih, w_hh), (np.asfortranarray(w_ih), w_hh[::-1, ::-1])):
        for packed, w in zip(pack_weights(*given), given, strict=True):
            assert packed.flags.c_contiguous
            assert np.array_equal(packed, w.T)


def test_the_plans_that_are_kept_are_limited(numba: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn._backends import numba_cpu

    monkeypatch.setattr(numba_cpu, "KEPT_PLANS", 3)
    monkeypatch.setattr(numba_cpu, "_plans", {})
    for T in (1, 2, 3, 4, 5, 1, 2):
        check_forward(numba, Case(T=T, B=2, I=3, H=4))
        assert 1 <= len(numba_cpu._plans) <= 3


@pytest.mark.parametrize("B", [1, 4])
@pytest.mark.parametrize("H", [1, 16, 64, 128])
def test_one_step_is_faster_than_the_reference(dtype: str, B: int, H: int) -> None:
    """The fastest of many short turns, each backend's after the other's: what disturbs one of them is not the fastest,
    and three attempts may fail before the test does. About twice as fast; the limit is 1.2."""
    p = Problem.draw(Shape(B, 1, H, H), np.dtype(dtype).name)
    for op in ("forward", "training"):
        calls, ratios = {name: getattr(backend_arm(name, p), op) for name in ("numba", "numpy")}, [0.0]
        while max(ratios) < 1.2 and len(ratios) <= 3:
            with equal_threads(1):
                seconds = interleave(calls, budget=0.4, min_rounds=20, max_rounds=100)
            ratios.append(min(seconds["numpy"].values) / min(seconds["numba"].values))
        assert max(ratios) >= 1.2, (op, ratios)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 15, 16, 17, 18, 19, 33])
@pytest.mark.parametrize("K", [1, 127, 128, 129, 257])
def test_a_product_of_any_size_is_within_the_bound_of_its_sums(dtype: str, rows: int, K: int) -> None:
    """|a @ w - exact| <= (K + 2) eps / 2 |a| @ |w|, from a as rows and as columns; each column has the same bits beside
    whatever number of others, and nothing is written behind the last one."""
    from fastrnn._backends.numba_cpu import _product

    rng = np.random.default_rng(rows * K)
    a, w = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, K), (K, 251)))
    exact, size = (f(a).astype(np.longdouble) @ f(w).astype(np.longdouble) for f in (np.positive, np.abs))
    bound, first = (K + 2) * np.finfo(dtype).eps / 2 * size, None
    for n in (251, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 64, 65, 95, 112, 113, 127, 128, 129, 160, 191):
        for given in (a, np.asfortranarray(a)):
            memory = np.full(rows * n + 64, np.nan, dtype)
            out = memory[: rows * n].reshape(rows, n)
            _product(given, w[:, :n].copy(), out, blas=False)
            first = out if first is None else first
            assert (np.abs(out - exact[:, :n]) <= bound[:, :n]).all(), (n, given.flags)
            np.testing.assert_array_equal(out, first[:, :n])
            assert np.isnan(memory[rows * n :]).all()


OTHER_CPUS = {
    "vectors of 32 bytes, 16 registers": ("haswell", "+avx,+avx2,+fma,+bmi,+bmi2,+sse4.1,+sse4.2,+ssse3,+sse3,+popcnt"),
    "no FMA": ("generic", ""),
}
# As the kernel says, not as Numba does; taken for granted on other systems.
HAS_AVX2 = sys.platform != "linux" or {"avx2", "fma", "bmi2"} <= set(Path("/proc/cpuinfo").read_text().split())


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="code for x86-64 processors")
@pytest.mark.parametrize("cpu", OTHER_CPUS)
def test_products_for_other_processors(cpu: str, tmp_path: Path) -> None:
    """The tests of products pass on code that is compiled for processors with less than this one has."""
    name, features = OTHER_CPUS[cpu]
    if features and not HAS_AVX2:
        pytest.skip("the kernel knows of no AVX2, FMA and BMI2 here")
    chosen = ["-k", "any_size or few_rows", "--color=no", "-pno:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", __file__, *chosen]
    cpu_of_numba = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    assert output_of("from fastrnn._backends.numba_products import VECTOR; print(VECTOR)", **cpu_of_numba) == "32"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FASTRNN_EXPECT", "PYTEST_ADDOPTS"))}
    environment = {**inherited, **cpu_of_numba}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^[0-9]+ passed, [0-9]+ deselected", result.stdout, re.MULTILINE), result.stdout


def test_a_pool_that_is_late_keeps_no_memory(monkeypatch: pytest.MonkeyPatch, no_collector: None) -> None:
    """What a call hands to threads that never come to it, and computes alone, is free when the call returns."""
    from fastrnn._backends import numba_cpu

    release, workers = threading.Event(), os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    monkeypatch.setattr(numba_cpu, "_pool", pool)
    monkeypatch.setattr(numba_cpu, "get_num_threads", lambda: 2)
    busy = [pool.submit(release.wait) for _ in range(workers)]
    try:
        array, done = np.zeros(9), []
        kernel = partial(lambda held, b0, b1: done.append((b0, b1, held.size)), array)
        memory = weakref.ref(array)
        numba_cpu._run(kernel, [(0, 1), (1, 3)])
        assert done == [(0, 1, 9), (1, 3, 9)]
        del kernel, array
        assert memory() is None
    finally:
        release.set()
        pool.shutdown()
    assert all(task.result() for task in busy)
