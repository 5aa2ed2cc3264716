"""The floating-point environment: what a caller has set neither changes a bit of the `cpp` results nor gets lost."""

import ctypes
import platform
from typing import Any

import numpy as np
import pytest
from helpers.compare import assert_same_bits
from helpers.kernels import native

import fastrnn

FE_UPWARD = 0x800  # x86


@pytest.fixture
def libm() -> Any:
    if isinstance(native(), ImportError):
        pytest.skip("the native module is not available")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the constants of Linux on x86-64")
    return ctypes.CDLL("libm.so.6")


def problem() -> list[Any]:
    """x, h_0, w_ih, w_hh; drawn before the environment is changed, for NumPy's own arithmetic follows it"""
    rng = np.random.default_rng(0)
    x, h_0 = rng.standard_normal((300, 32, 24)).astype(np.float32), rng.standard_normal((32, 40)).astype(np.float32)
    w_ih, w_hh = (rng.standard_normal((40, n)).astype(np.float32) / 8 for n in (24, 40))
    x[::2] *= np.float32(1e-38)  # products that are subnormal
    return [x, h_0, w_ih, w_hh]


def results(p: list[Any], threads: int) -> list[Any]:
    with fastrnn.threads(threads):
        output, h_n = fastrnn.rnn_forward(*p, backend="cpp")
        return [output, h_n, *fastrnn.rnn_backward(output, h_n, output, *p, backend="cpp")]


def test_rounding_mode_of_the_caller(libm: Any) -> None:
    p = problem()
    want = results(p, 1)
    for threads in (1, 2, 3):
        assert libm.fesetround(FE_UPWARD) == 0
        try:
            got = results(p, threads)
            after = libm.fegetround()
        finally:
            libm.fesetround(0)
        assert after == FE_UPWARD
        for a, b in zip(got, want, strict=True):
            assert_same_bits(a, b, f"rounding upward, {threads} threads")


def test_flush_to_zero_of_the_caller(libm: Any, torch: Any) -> None:
    p = problem()
    want = results(p, 1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush to zero")
    try:
        got = [results(p, threads) for threads in (1, 2, 3)]
        still = float(torch.tensor(1e-38) * torch.tensor(1e-3)) == 0
    finally:
        torch.set_flush_denormal(False)
    assert still
    for arrays in got:
        for a, b in zip(arrays, want, strict=True):
            assert_same_bits(a, b, "flush to zero")
