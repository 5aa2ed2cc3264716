"""x that is projected already, w_ih=None: each kernel gives what it gives for a w_ih of the identity, whose products
are exact; cpp to the bit, whatever the threads, the tile and the path.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case, Problem, random_cases
from helpers.checks import run_both, same_results
from helpers.compare import assert_within
from helpers.kernels import Kernel, native

import fastrnn

NAMES = ("output", "h_n", "d_x", "d_h_0", "d_w_hh", "d_b", "d_alpha")


def pair(case: Case) -> tuple[Problem, Problem]:
    """The same problem without w_ih, and with the identity for it."""
    p = replace(case, I=case.H).build()
    return p.but(w_ih=None), p.but(w_ih=np.eye(case.H, dtype=case.dtype))


def cases(dtype: str) -> list[Case]:
    leaky = [
        Case(T=9, B=5, H=33, alpha="unit", lengths="ragged", recurrent_mask=True, keep_mask=True, seed=1),
        Case(T=3, B=67, H=17, alpha="one", reset=True, reverse=True, nonlinearity="relu", layout="inner_strided"),
        Case(T=6, B=7, H=9, alpha="unit", lengths="packed", bias="none"),
    ]
    large = [Case(T=5, B=260, H=31, seed=2), Case(T=70, B=9, H=130, lengths="ragged", seed=3)]
    few = [Case(T=0, B=3, H=5), Case(T=3, B=0, H=5), Case(T=1, B=1, H=1)]
    given = [*random_cases(40, seed=9), *leaky, *large, *few]
    return [replace(case, dtype=dtype) for case in given]


def without_d_w_ih(results: Any) -> list[Any]:
    return [*results[:4], *results[5:]]


def test_x_takes_the_place_of_its_product(kernel: Kernel, dtype: str) -> None:
    """All options, layouts and odd sizes. Numba cuts its chunks by the input size: sums of products over time, and
    steps that NumPy's BLAS multiplies, are those of another order there."""
    for case in cases(dtype):
        p, q = pair(case)
        got, want = run_both(kernel, p), run_both(kernel, q)
        assert got[4] is None, "d_w_ih"
        for name, g, w in zip(NAMES, without_d_w_ih(got), without_d_w_ih(want), strict=False):
            bound = 0.0
            if kernel.backend == "numba":
                bound = 200 * float(np.finfo(dtype).eps) * max(1.0, float(np.abs(w).max(initial=0)))
            assert_within(g, w, bound, f"{name} of {case.repro('forward', kernel)}")


@pytest.mark.native
@pytest.mark.parametrize(
    "case",
    [
        Case(T=9, B=3, H=129, lengths="ragged", seed=1),
        Case(T=17, B=97, H=129, lengths="ragged", recurrent_mask=True, reverse=True, seed=2),
        Case(T=12, B=260, H=96, reset=True, keep_mask=True, alpha="unit", seed=3),
        Case(T=40, B=2, H=600, layout="negative_all", seed=4),
    ],
    ids=lambda case: case.id,
)
def test_threads_and_tuning_do_not_change_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    p, _ = pair(replace(case, dtype=dtype))
    want = run_both(kernel, p, threads=1)
    settings = [None, {"hoist": 0}, {"hoist": 1}, {"row_block": 7}, {"slices": 3}, {"chunk_steps": 2}, {"tile_rows": 2}]
    for i, tuning in enumerate(settings):
        for threads in (1, 2 + i % 3):
            same_results(run_both(kernel, p, threads=threads, tuning=tuning), want, f"{tuning}, {threads} threads")
    packed = native().pack_weights(np.zeros((case.H, 3), dtype), p.w_hh, isa=kernel.isa)
    same_results(kernel.forward(p, packed=packed), want[:2], "packed for another input size")


def test_nan_stays_in_its_row_and_beyond_a_length_nothing_is_read(kernel: Kernel, dtype: str) -> None:
    p, _ = pair(Case(T=6, B=7, H=9, lengths="ragged", dtype=dtype, seed=5))
    want = run_both(kernel, p)
    x = p.x.copy()
    for b, n in enumerate(p.lengths):  # type: ignore[arg-type]
        x[n:, b] = np.nan
    same_results(run_both(kernel, p.but(x=x)), want, "NaN beyond the lengths")
    x[1, int(np.argmax(p.lengths))] = np.nan  # type: ignore[arg-type]
    others = [b for b in range(7) if b != int(np.argmax(p.lengths))]  # type: ignore[arg-type]
    output, h_n, d_x, d_h_0, *_ = run_both(kernel, p.but(x=x))
    assert np.isnan(output).any()
    got = (output[:, others], h_n[others], d_x[:, others], d_h_0[others])
    same_results(got, (want[0][:, others], want[1][others], want[2][:, others], want[3][others]), "other rows")


def test_functions_and_a_product_made_elsewhere(backend: str) -> None:
    """rnn_forward and rnn_backward with x w_ih^T, and the gradients of x and w_ih made of d_x, within rounding."""
    p = Case(T=11, B=6, I=7, H=13, lengths="ragged", reverse=True, dtype="float64", seed=6).build()
    how: dict[str, Any] = {"lengths": p.lengths, "reverse": True, "backend": backend}
    weights = p.w_hh, p.b_ih, p.b_hh
    projected = p.x @ p.w_ih.T
    want, want_h_n = fastrnn.rnn_forward(p.x, p.h_0, p.w_ih, *weights, **how)
    out = np.full_like(want, np.nan)
    output, h_n = fastrnn.rnn_forward(projected, p.h_0, None, *weights, **how, out=out)
    assert output is out
    g = fastrnn.rnn_backward(p.d_output, p.d_h_n, output, projected, p.h_0, None, p.w_hh, **how)
    w = fastrnn.rnn_backward(p.d_output, p.d_h_n, want, p.x, p.h_0, p.w_ih, p.w_hh, **how)
    assert g.d_w_ih is None
    d_w_ih = np.einsum("tbh,tbi->hi", g.d_x, p.x)
    pairs = {
        "output": (output, want), "h_n": (h_n, want_h_n), "d_x": (g.d_x @ p.w_ih, w.d_x), "d_h_0": (g.d_h_0, w.d_h_0),
        "d_w_ih": (d_w_ih, w.d_w_ih), "d_w_hh": (g.d_w_hh, w.d_w_hh), "d_b": (g.d_b, w.d_b),
    }  # fmt: skip
    for name, (one, other) in pairs.items():
        assert one is not None
        assert other is not None
        assert_within(one, other, 1e-13 * float(np.abs(other).max()), name)
    with pytest.raises(ValueError, match=r"^out: expected memory of its own, got memory that overlaps x"):
        fastrnn.rnn_forward(projected, p.h_0, None, *weights, **how, out=projected)
