"""Promise 7, numbers: subnormals are kept, exactly, and a gradient that vanishes into them costs no time to speak of;
a zero's sign in the input changes no bit of the results.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case
from helpers.checks import run_both, same_results
from helpers.compare import assert_all_same_bits
from helpers.kernels import Kernel

TINY = {"float32": 1e-39, "float64": 1e-309}  # times a number of about 1: subnormal
LIMIT = 1.3  # times the time of normal numbers
# Without FMA a subnormal product is an instruction's result, which the CPUs we know pay for: everything subnormal, as
# in the second test, was up to 2.0 times as slow. Vanishing gradients are not.
LIMIT_WITHOUT_FMA = 2.5


@pytest.mark.native
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_subnormals_are_kept(kernel: Kernel, dtype: str, nonlinearity: str) -> None:
    """With w_ih the identity and w_hh 0, h = act(x) = x for positive subnormal x, and d_x = d_output: every bit."""
    H = 33
    p = Case(T=4, B=9, I=H, H=H, dtype=dtype, nonlinearity=nonlinearity, bias="none", d_h_n=False).build()
    tiny, eye = p.x.dtype.type(TINY[dtype]), np.eye(H, dtype=dtype)
    x, upstream = np.abs(p.x) * tiny, p.d_output * tiny
    assert ((x < np.finfo(dtype).tiny) & (x > 0)).any()
    p = p.but(x=x, w_ih=eye, w_hh=np.zeros_like(eye), d_output=upstream)
    output, _ = kernel.forward(p)
    assert_all_same_bits([output], [x], "output")
    positive = output > 0  # relu' is 0 at 0
    d_x = kernel.backward(p, output).d_x
    assert_all_same_bits([d_x[positive]], [upstream[positive]], "d_x")


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
    """The last step's gradient alone, halved or more at each step: most of 400 steps are subnormal or 0."""
    gain = 0.5 if dtype == "float32" else 0.02
    p = Case(T=400, B=16, I=33, H=65, dtype=dtype, nonlinearity=nonlinearity, gain=gain).build()
    output, _ = kernel.forward(p)
    upstream = np.zeros_like(p.d_output)
    upstream[-1] = p.d_output[-1]
    vanishing = p.but(d_output=upstream)
    d_x = np.abs(kernel.backward(vanishing, output).d_x)
    assert ((d_x > 0) & (d_x < np.finfo(dtype).tiny)).any()
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
    assert ratio(slow, fast) <= (LIMIT if kernel.isa in ("v3", "v4") else LIMIT_WITHOUT_FMA)
