"""Promise 7: arrays of more than 2^31 elements. Offsets of 2^39 elements are exercised in address space that has
almost no memory behind it; arrays that really hold so much are behind the marker `memory`.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case
from helpers.compare import assert_all_same_bits, assert_same_bits
from helpers.kernels import Kernel
from helpers.memory import SparseMemory

import fastrnn

ROOM = 1 << 46  # bytes of address space
FAR = 1 << 41  # bytes from the first to the last step or row of an array


@pytest.fixture
def space() -> Iterator[SparseMemory]:
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        pytest.skip("64-bit Linux")
    memory = SparseMemory(ROOM)
    yield memory
    memory.close()


def far_strides(shape: tuple[int, ...], itemsize: int, sign: int, last: bool) -> tuple[int, ...]:
    """Strides in elements: the ends of the first axis lie FAR bytes apart; each further axis fills half a stride."""
    strides, reach = [], FAR // itemsize
    for n in shape:
        strides.append(sign * (reach // max(n - 1, 1)))
        reach = abs(strides[-1]) // 2
    return (*strides[:-1], strides[-1] if last else 1)


@pytest.mark.native
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "case", [Case(T=3, B=4, I=7, H=9), Case(T=4, B=19, I=33, H=17, lengths="ragged", reverse=True)]
)
def test_offsets_far_beyond_2_to_the_31(kernel: Kernel, space: SparseMemory, dtype: str, case: Case, sign: int) -> None:
    """Every array's elements lie 2^41 bytes (2^39 floats, 2^38 doubles) apart and more, along every axis that may."""
    from dataclasses import replace

    p = replace(case, dtype=dtype).build()
    itemsize = np.dtype(dtype).itemsize
    floats = {n: a for n, a in vars(p).items() if isinstance(a, np.ndarray) and a.dtype == dtype}
    want = kernel.forward(p)

    def far(array: Any, last: bool) -> Any:
        return space.spread(array, far_strides(array.shape, itemsize, sign, last))

    def new(shape: tuple[int, ...], _: Any) -> Any:
        return far(np.full(shape, np.nan, dtype), last=False)

    inputs = p.but(**{name: far(a, last=name not in ("b_ih", "b_hh")) for name, a in floats.items()})
    got = kernel.forward(inputs, new=new)
    assert abs(got[0].strides[0]) * (p.x.shape[0] - 1) > 2**40
    assert_all_same_bits(got, want, "forward")
    assert_all_same_bits(kernel.backward(inputs, got[0], new=new), kernel.backward(p, want[0]), "backward")


# ---- Arrays that are really there: 8.6 GB each, one at a time

LARGE = {"T": 2**16 + 1, "B": 2**10, "width": 2**5}  # 2^31 + 2^15 elements of float32


def large_problem() -> tuple[Any, ...]:
    """x of stride 0 along T: no memory. Rows differ, so that a row from a wrong place is seen."""
    rng = np.random.default_rng(0)
    T, B, H = LARGE.values()
    x = np.broadcast_to(rng.standard_normal((1, B, 2)).astype(np.float32), (T, B, 2))
    w_ih, w_hh = (rng.standard_normal((H, n)).astype(np.float32) / 8 for n in (2, H))
    return x, w_ih, w_hh


@pytest.mark.memory
def test_an_output_of_more_than_2_to_the_31_elements() -> None:
    """The sequence is cut in two: the second half starts from the first one's h_n, with the same bits."""
    x, w_ih, w_hh = large_problem()
    T = len(x)
    output, h_n = fastrnn.rnn_forward(x, None, w_ih, w_hh, backend="cpp")
    assert output.size > 2**31
    cut = T - 5
    _, middle = fastrnn.rnn_forward(x[:100], None, w_ih, w_hh, backend="cpp")
    assert_same_bits(output[99], middle, "step 99")
    tail, tail_n = fastrnn.rnn_forward(x[cut:], output[cut - 1], w_ih, w_hh, backend="cpp")
    assert_all_same_bits([output[cut:], h_n], [tail, tail_n], "the last steps")


@pytest.mark.memory
def test_an_x_and_its_gradient_of_more_than_2_to_the_31_elements() -> None:
    """One at a time: x real and its d_x not needed; then x of stride 0 and d_x real."""
    T, B, I = LARGE.values()
    rng = np.random.default_rng(0)
    w_ih, w_hh = (rng.standard_normal((3, n)).astype(np.float32) / 8 for n in (I, 3))
    step = rng.standard_normal((1, B, I)).astype(np.float32)
    x = np.zeros((T, B, I), np.float32)
    x[-4:] = step
    assert x.size > 2**31
    output, _ = fastrnn.rnn_forward(x, None, w_ih, w_hh, backend="cpp")
    assert not output[:-4].any()
    want, _ = fastrnn.rnn_forward(np.broadcast_to(step, (4, B, I)), None, w_ih, w_hh, backend="cpp")
    assert_same_bits(output[-4:], want, "the last steps")
    upstream = np.broadcast_to(rng.standard_normal((1, B, 3)).astype(np.float32), (T, B, 3))
    got = fastrnn.rnn_backward(upstream, None, output, x, None, w_ih, w_hh, backend="cpp", needs=("w_ih",)).d_w_ih
    exact = fastrnn.rnn_backward(  # where x is 0 it adds nothing to d_w_ih
        upstream[-4:], None, output[-4:], x[-4:], output[-5], w_ih, w_hh, backend="cpp", needs=("w_ih",)
    ).d_w_ih  # fmt: skip
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-4 * np.abs(exact).max())
    del x
    x = np.broadcast_to(step, (T, B, I))
    d_x = fastrnn.rnn_backward(upstream, None, output, x, None, w_ih, w_hh, backend="cpp", needs=("x",)).d_x
    few = fastrnn.rnn_backward(
        upstream[-300:], None, output[-300:], x[-300:], None, w_ih, w_hh, backend="cpp", needs=("x",)
    ).d_x  # fmt: skip
    assert_same_bits(d_x[-300:], few, "d_x of the last steps")
    assert d_x[0].any()
