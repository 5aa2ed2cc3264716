"""Promise 5: NaN or Inf in one sequence touches that sequence only, forward from its time step on, and backward; what
lies beyond a row's length is never read; a reset row leaves its NaN behind.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case, pack
from helpers.checks import run_both
from helpers.compare import assert_same_bits
from helpers.kernels import Kernel

BAD = [np.nan, np.inf, -np.inf]
ROW, TIME = 2, 3
CASES = [
    Case(T=7, B=5, I=9, H=17, seed=1),
    Case(T=7, B=5, I=9, H=17, reverse=True, nonlinearity="relu", seed=2),
    Case(T=7, B=5, I=33, H=65, lengths="full", recurrent_mask=True, keep_mask=True, seed=3),
    Case(T=7, B=20, I=130, H=40, bias="none", seed=4),
]
IDS = [case.id for case in CASES]


def assert_other_rows_same(got: Any, want: Any, what: str, axis: int) -> None:
    def others(a: Any) -> Any:
        return np.delete(a, ROW, axis=axis)

    assert_same_bits(others(got), others(want), what)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_forward_stays_in_its_row_and_its_future(kernel: Kernel, dtype: str, case: Case, bad: float) -> None:
    p = replace(case, dtype=dtype).build()
    output, h_n = kernel.forward(p)
    x = p.x.copy()
    x[TIME, ROW, 4] = bad
    got, got_n = kernel.forward(p.but(x=x))
    assert_other_rows_same(got, output, "output of the other rows", 1)
    assert_other_rows_same(got_n, h_n, "h_n of the other rows", 0)
    past = slice(TIME + 1, None) if case.reverse else slice(0, TIME)
    assert_same_bits(got[past, ROW], output[past, ROW], "output before the bad step")
    if np.isnan(bad):
        computed = ~np.isnan(got[TIME, ROW])
        allowed = np.zeros(case.H, bool) if p.keep_mask is None else p.keep_mask[TIME, ROW]
        assert (computed == allowed).all(), "NaN reaches every unit of its step that is computed"
        assert np.isnan(got_n[ROW]).any()
    elif case.nonlinearity == "tanh":
        assert (np.abs(got[TIME, ROW]) <= 1).all(), "infinite sums saturate"


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["h_0", "recurrent_mask"])
def test_bad_states_stay_in_their_row(kernel: Kernel, dtype: str, name: str, bad: float) -> None:
    p = replace(CASES[2], dtype=dtype).build()
    want = run_both(kernel, p)
    value = getattr(p, name).copy()
    value[ROW, 3] = bad
    got = run_both(kernel, p.but(**{name: value}))
    for i, axis in enumerate((1, 0, 1, 0)):
        assert_other_rows_same(got[i], want[i], f"result {i}", axis)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("source", ["d_output", "d_h_n", "output"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_backward_stays_in_its_row_and_its_past(
    kernel: Kernel, dtype: str, case: Case, source: str, bad: float
) -> None:
    """A bad upstream gradient or tape value reaches its own row's d_x and d_h_0, none of a step processed later."""
    p = replace(case, dtype=dtype).build()
    output, _ = kernel.forward(p)
    want = kernel.backward(p, output)
    tape, q = output.copy(), p
    if source == "output":
        tape[TIME, ROW, 4] = bad
    elif source == "d_output":
        q = p.but(d_output=p.d_output.copy())
        q.d_output[TIME, ROW, 4] = bad
    else:
        q = p.but(d_h_n=p.d_h_n.copy())
        q.d_h_n[ROW, 4] = bad
    got = kernel.backward(q, tape)
    assert_other_rows_same(got.d_x, want.d_x, "d_x of the other rows", 1)
    assert_other_rows_same(got.d_h_0, want.d_h_0, "d_h_0 of the other rows", 0)
    if source != "d_h_n":
        later = slice(0, TIME) if case.reverse else slice(TIME + 1, None)
        assert_same_bits(got.d_x[later, ROW], want.d_x[later, ROW], "d_x of later steps")


def test_nan_reaches_the_gradients_of_the_weights(kernel: Kernel, dtype: str) -> None:
    """Nothing is hidden: a NaN in the upstream gradient of a computed step is a NaN in d_w and d_b."""
    p = replace(CASES[0], dtype=dtype).build()
    output, _ = kernel.forward(p)
    p.d_output[TIME, ROW, 4] = np.nan
    gradients = kernel.backward(p, output)
    for name in ("d_w_ih", "d_w_hh", "d_b"):
        assert np.isnan(getattr(gradients, name)[4]).all(), name
    assert np.isnan(gradients.d_h_0[ROW]).all()
    assert np.isnan(gradients.d_x[TIME, ROW]).all()


@pytest.mark.parametrize("junk", BAD)
@pytest.mark.parametrize("reverse", [False, True])
def test_beyond_a_rows_length_nothing_is_read(kernel: Kernel, dtype: str, reverse: bool, junk: float) -> None:
    """x, d_output, reset and keep_mask there may hold anything; output there may be overwritten before backward."""
    case = Case(T=9, B=12, I=17, H=33, dtype=dtype, lengths="ragged", reverse=reverse, keep_mask=True, reset=True)
    p = case.build()
    want = run_both(kernel, p)
    beyond = np.arange(case.T)[:, None] >= p.lengths
    q = p.but(
        x=p.x.copy(), d_output=p.d_output.copy(), reset=p.reset | beyond, keep_mask=p.keep_mask | beyond[..., None]
    )
    q.x[beyond] = junk
    q.d_output[beyond] = junk
    output, h_n = kernel.forward(q)
    tape = output.copy()
    tape[beyond] = junk
    for i, (g, w) in enumerate(zip((output, h_n, *kernel.backward(q, tape)), want, strict=True)):
        assert_same_bits(g, w, f"result {i}")


def test_a_row_of_length_zero_may_be_all_nan(kernel: Kernel, dtype: str) -> None:
    p = Case(T=4, B=3, I=5, H=9, dtype=dtype).build()
    p = p.but(lengths=np.array([4, 0, 2]))
    want = run_both(kernel, p)
    p.x[:, 1] = np.nan
    p.d_output[:, 1] = np.nan
    got = run_both(kernel, p)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert_same_bits(g, w, f"result {i}")
    assert_same_bits(got[1][1], p.h_0[1], "h_n of the empty row")
    assert_same_bits(got[3][1], p.d_h_n[1], "d_h_0 of the empty row")


@pytest.mark.parametrize("packed", [False, True])
def test_a_reset_leaves_nan_behind(kernel: Kernel, dtype: str, packed: bool) -> None:
    """From the reset on the row is that of a clean run; backward, no gradient passes the reset either way."""
    case = Case(T=7, B=4, I=9, H=17, dtype=dtype, lengths="full")
    p = case.build()
    reset = np.zeros((case.T, case.B), bool)
    reset[4, ROW] = True
    p = p.but(reset=reset)
    clean = kernel.forward(p)
    p.x[1, ROW] = np.nan
    if packed:
        sizes = np.full(case.T, case.B)
        q = p.but(lengths=None, batch_sizes=sizes, x=pack(p.x, sizes), reset=pack(reset, sizes))
        q = q.but(d_output=pack(p.d_output, sizes))
    else:
        q = p
    output, h_n = kernel.forward(q)
    gradients = kernel.backward(q, output)
    shape = (case.T, case.B, -1)
    output, d_x = output.reshape(shape), gradients.d_x.reshape(shape)
    assert np.isnan(output[1:4, ROW]).all()
    assert_same_bits(output[4:, ROW], clean[0][4:, ROW], "output from the reset on")
    assert_same_bits(h_n, clean[1], "h_n")
    assert np.isfinite(d_x[4:, ROW]).all()
    assert np.isnan(d_x[1, ROW]).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("reverse", [False, True])
def test_no_bad_gradient_passes_a_reset(kernel: Kernel, dtype: str, reverse: bool, bad: float) -> None:
    """Upstream gradients of a step behind the reset: before it the row keeps its d_x and d_h_0. A product with 0 would
    let NaN through."""
    case = Case(T=7, B=4, I=9, H=17, dtype=dtype, reverse=reverse, recurrent_mask=True, keep_mask=True)
    p = case.build()
    reset = np.zeros((case.T, case.B), bool)
    reset[TIME, ROW] = True
    p = p.but(reset=reset)
    output, _ = kernel.forward(p)
    want = kernel.backward(p, output)
    behind = slice(0, TIME + 1) if reverse else slice(TIME, None)
    p.d_output[behind, ROW] = bad
    p.d_h_n[ROW] = bad
    got = kernel.backward(p, output)
    before = slice(TIME + 1, None) if reverse else slice(0, TIME)
    assert not np.isfinite(got.d_x[behind, ROW]).any()
    assert_same_bits(got.d_x[before], want.d_x[before], "d_x before the reset")
    assert_same_bits(got.d_h_0, want.d_h_0, "d_h_0")


def test_bad_weights_are_not_hidden(kernel: Kernel, dtype: str) -> None:
    """A NaN in a weight reaches its unit in every row, even where the input is 0."""
    p = Case(T=2, B=3, I=5, H=9, dtype=dtype).build()
    p.w_ih[4, 2] = np.nan
    p.x[...] = 0
    output, _ = kernel.forward(p)
    assert np.isnan(output[0, :, 4]).all()
    assert np.isfinite(np.delete(output[0], 4, axis=1)).all()
    assert np.isnan(output[1]).all()


def test_bad_weights_do_not_reach_d_x_beyond_a_rows_length(kernel: Kernel, dtype: str) -> None:
    p = Case(T=5, B=3, I=5, H=9, dtype=dtype).build()
    p = p.but(lengths=np.array([5, 0, 2]))
    output, _ = kernel.forward(p)
    p.w_ih[4, 2] = np.inf
    d_x = kernel.backward(p, output).d_x
    beyond = np.arange(5)[:, None] >= p.lengths
    assert not d_x[beyond].any()
    assert not np.isfinite(d_x[~beyond][:, 2]).any()


def test_relu_of_special_sums(kernel: Kernel, dtype: str) -> None:
    """relu(NaN) = NaN, relu(-0) = relu(-inf) = +0, relu(inf) = inf; relu' = [h > 0]."""
    H = 5
    p = Case(T=1, B=1, I=1, H=H, dtype=dtype, nonlinearity="relu", bias="ih", h_0=False).build()
    zero = np.zeros((H, 1), dtype)
    sums = np.array([np.nan, -0.0, -np.inf, np.inf, -3.0], dtype)
    p = p.but(w_ih=zero, w_hh=np.zeros((H, H), dtype), b_ih=sums)
    output, _ = kernel.forward(p)
    assert_same_bits(output[0, 0], np.array([np.nan, 0, 0, np.inf, 0], dtype), "relu")
    tape = np.array([[[0.0, np.finfo(dtype).smallest_normal, 2.0, 0.0, 1.0]]], dtype)
    g = kernel.backward(p.but(w_ih=np.ones((H, 1), dtype), d_h_n=None), tape)
    assert_same_bits(g.d_b + 0, np.where(tape[0, 0] > 0, p.d_output[0, 0], 0).astype(dtype) + 0, "relu'")
