"""Promise 7, numbers: in the C++ kernels subnormal numbers count as 0, as operands and as results, so that a gradient
that vanishes through them costs no time to speak of on any CPU; a zero's sign in the input changes no bit.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case
from helpers.checks import run_both, same_results
from helpers.compare import assert_all_same_bits, is_subnormal
from helpers.kernels import Kernel

import fastrnn.training
from fastrnn.training import _native

TINY = {"float32": 1e-39, "float64": 1e-309}  # times a number of about 1: subnormal
LIMIT = 1.3  # times the time of normal numbers


@pytest.mark.native
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("T", [1, 7])
def test_a_subnormal_number_counts_as_zero(kernel: Kernel, dtype: str, nonlinearity: str, T: int) -> None:
    """Wherever it stands: the bits of the same problem with zeros there."""
    p = Case(T=T, B=9, I=17, H=33, dtype=dtype, nonlinearity=nonlinearity).build()
    rng = np.random.default_rng(T)
    mixed, zeroed = {}, {}
    for name in ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "d_output", "d_h_n"):
        array = getattr(p, name)
        here = rng.random(array.shape) < 0.3
        tiny = array * array.dtype.type(TINY[dtype])
        assert is_subnormal(tiny[here]).any()
        mixed[name], zeroed[name] = np.where(here, tiny, array), np.where(here, 0 * array, array)
    same_results(run_both(kernel, p.but(**mixed)), run_both(kernel, p.but(**zeroed)), "subnormals for zeros")


@pytest.mark.native
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_no_result_is_subnormal(kernel: Kernel, dtype: str, nonlinearity: str) -> None:
    """Where the exact one is, 0 stands; a state that is only passed on keeps its bits."""
    p = Case(T=4, B=9, I=33, H=33, dtype=dtype, nonlinearity=nonlinearity, bias="none").build()
    root = p.x.dtype.type(TINY[dtype] ** 0.5)
    p = p.but(x=p.x * root, w_ih=np.eye(33, dtype=dtype) * root, w_hh=np.zeros_like(p.w_hh), h_0=np.zeros_like(p.h_0))
    p = p.but(d_output=p.d_output * root, d_h_n=p.d_h_n * root)
    assert is_subnormal(np.float64(root) * root if dtype == "float64" else p.x[0, 0, 0] * root)
    results = run_both(kernel, p)
    assert not any(is_subnormal(result).any() for result in results)
    assert not results[0].any(), "output"
    assert not results[2].any(), "d_x"
    h_0 = p.h_0 + p.h_0.dtype.type(TINY[dtype])
    _, h_n = kernel.forward(p.but(h_0=h_0, lengths=np.zeros(9, np.int64)))
    assert_all_same_bits([h_n], [h_0], "h_n of rows without steps")


@pytest.mark.native
def test_the_sign_of_zero_in_the_input_changes_no_bit(kernel: Kernel, dtype: str) -> None:
    p = Case(T=4, B=9, I=17, H=33, dtype=dtype, bias="none").build()
    x, h_0 = np.where(np.abs(p.x) < 1, 0, p.x), np.zeros_like(p.h_0)
    minus = p.but(x=np.where(x == 0, -x, x).astype(dtype), h_0=-h_0)
    plus = p.but(x=np.where(x == 0, 0, x).astype(dtype), h_0=h_0)
    assert np.signbit(minus.x[x == 0]).all()
    same_results(run_both(kernel, minus), run_both(kernel, plus), "zeros of either sign")
    nothing = np.zeros_like(p.x)
    output, h_n = kernel.forward(p.but(x=-nothing, h_0=-h_0))
    assert not np.signbit(output).any(), "a sum of zeros is +0: it starts from the bias +0"
    assert not np.signbit(h_n).any()


def ratio(slow: Callable[[], Any], fast: Callable[[], Any]) -> float:
    """Median of CPU-time ratios, the two in turns."""
    for call in (slow, fast):
        call()
    ratios = []
    for _ in range(9):
        times = []
        for call in (slow, fast):
            start = time.thread_time()
            call()
            times.append(time.thread_time() - start)
        ratios.append(times[0] / times[1])
    return float(np.median(ratios))


@pytest.mark.native
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_vanishing_gradient_costs_no_more_time(kernel: Kernel, dtype: str, nonlinearity: str) -> None:
    """The last step's gradient alone, halved or more at each step: most of 400 steps are 0."""
    gain = 0.5 if dtype == "float32" else 0.02
    p = Case(T=400, B=16, I=33, H=65, dtype=dtype, nonlinearity=nonlinearity, gain=gain).build()
    output, _ = kernel.forward(p)
    upstream = np.zeros_like(p.d_output)
    upstream[-1] = p.d_output[-1]
    vanishing = p.but(d_output=upstream)
    d_x = kernel.backward(vanishing, output).d_x
    assert d_x[-1].all(), "it begins"
    assert not d_x[0].any(), "it vanishes on the way"
    slow, fast = (lambda q=q: kernel.backward(q, output, threads=1) for q in (vanishing, p))
    assert ratio(slow, fast) <= LIMIT


@pytest.mark.native
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_nothing_but_subnormals_costs_little_more_time(kernel: Kernel, dtype: str, way: str) -> None:
    p = Case(T=60, B=32, I=64, H=129, dtype=dtype, bias="none").build()
    tiny = p.x.dtype.type(TINY[dtype])
    names = ("x", "h_0") if way == "forward" else ("d_output", "d_h_n")
    q = p.but(**{name: getattr(p, name) * tiny for name in names})
    output, _ = kernel.forward(p)
    if way == "forward":
        slow, fast = (lambda a=a: kernel.forward(a, threads=1) for a in (q, p))
    else:
        slow, fast = (lambda a=a: kernel.backward(a, output, threads=1) for a in (q, p))
    assert ratio(slow, fast) <= LIMIT


@pytest.mark.native
def test_moments_of_adam_that_vanish_cost_little_more_time(dtype: str) -> None:
    """Of a parameter without a gradient, as a rare word's vector, the moments fade away. On several threads too."""
    if _native.native() is None:
        pytest.skip("no native module")
    size, calls, ends = 200_001, [], []
    for moment in (TINY[dtype], 1.0):
        p, grad = {"a": np.ones(size, dtype)}, {"a": np.zeros(size, dtype)}
        optimizer = fastrnn.training.Adam()
        optimizer.step(p, grad)
        for slot in optimizer.state["a"].values():
            slot[...] = moment
        ends.append((optimizer, p))

        def call(optimizer: Any = optimizer, p: Any = p, grad: Any = grad) -> None:
            with fastrnn.threads(1):
                for _ in range(20):
                    optimizer.step(p, grad)

        calls.append(call)
    assert ratio(*calls) <= LIMIT
    for threads in (1, 2, 3):
        with fastrnn.threads(threads):
            optimizer, p = ends[0]
            optimizer.state["a"]["mean"][...] = TINY[dtype]
            optimizer.step(p, {"a": np.zeros(size, dtype)})
            assert not any(slot.any() for slot in optimizer.state["a"].values())


@pytest.mark.native
def test_sums_and_maxima_of_training_keep_subnormals(dtype: str) -> None:
    """The embedding's gradient and pooling: the bits of NumPy, on any number of threads, and no more time."""
    if (module := _native.native()) is None:
        pytest.skip("no native module")
    rows = np.random.default_rng(0).standard_normal((8_000, 40)).astype(dtype)
    tiny = rows * rows.dtype.type(TINY[dtype])
    order, first = np.arange(8_000), np.arange(0, 8_001, 8)
    wanted = np.zeros((1_000, 40), dtype)
    for i in range(8):
        wanted += tiny[i::8]
    top, lengths = tiny.reshape(10, 800, 40).max(axis=0), np.full(800, 10)
    assert is_subnormal(wanted).any()
    for threads in (1, 2, 3):
        sums = np.empty_like(wanted)
        module.sum_segments(sums, tiny, order, first, threads)
        with fastrnn.threads(threads):
            found, _ = _native.max_over_time(tiny.reshape(10, 800, 40), lengths)
        assert_all_same_bits([sums, found], [wanted, top], f"{threads} threads")
    slow, fast = (lambda a=a: [module.sum_segments(sums, a, order, first, 1) for _ in range(20)] for a in (tiny, rows))
    assert ratio(slow, fast) <= LIMIT
