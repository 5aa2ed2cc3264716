"""Promise 7, memory: no kernel reads or writes beside an array, be it as narrow as one element. Each array lies against
a page that faults, once behind it and once in front of it.
"""

import sys
from typing import Any

import numpy as np
import pytest
from helpers.cases import SIZES, Case, Problem
from helpers.compare import assert_all_same_bits
from helpers.kernels import Kernel, native
from helpers.memory import guarded

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect"),
    pytest.mark.parametrize("end", ["low", "high"]),
]

CASES = [
    Case(T=3, B=7, I=7, H=9, lengths="ragged", reset=True, keep_mask=True, recurrent_mask=True),
    Case(T=3, B=7, I=33, H=31, reverse=True),
    Case(T=3, B=7, I=9, H=17, lengths="ragged", reset=True, keep_mask=True, recurrent_mask=True, alpha="unit"),
    Case(T=3, B=7, I=1, H=1, nonlinearity="relu", bias="none", h_0=False),
    Case(T=3, B=7, I=65, H=17, lengths="packed"),
    Case(T=2, B=129, I=15, H=3),  # one unit's gradient tiles, many rows
    Case(T=40, B=9, I=9, H=15, lengths="ragged"),  # several chunks of BPTT
]
# So few rows that the weights are packed block by block where they are used: steps * ceil(B / 6) is at most 2.
FEW_ROWS = [(1, 1), (2, 1), (1, 7), (2, 6), (1, 12)]


def few_rows() -> list[Case]:
    """Every odd width as I and as H, against widths of other tails, over all row counts in turn."""
    cases = []
    for i, width in enumerate(SIZES):
        other = SIZES[(7 * i + 3) % len(SIZES)]
        for j, (I, H) in enumerate([(width, other), (other, width), (width, width)]):
            T, B = FEW_ROWS[(i + j) % len(FEW_ROWS)]
            cases.append(Case(T=T, B=B, I=I, H=H, nonlinearity="tanh" if j else "relu", seed=i))
    return cases


def compare(kernel: Kernel, p: Problem, end: str, what: str, **how: Any) -> None:
    def new(shape: tuple[int, ...], dtype: Any) -> Any:
        return guarded(np.full(shape, np.nan, dtype), end)

    want = kernel.forward(p, **how)
    want_gradients = kernel.backward(p, want[0], **how)
    q = p.but(**{name: guarded(a, end) for name, a in vars(p).items() if isinstance(a, np.ndarray)})
    assert_all_same_bits(kernel.forward(q, new=new, **how), want, f"forward of {what}")
    tape = guarded(want[0], end)
    assert_all_same_bits(kernel.backward(q, tape, new=new, **how), want_gradients, f"backward of {what}")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_nothing_is_touched_beside_an_array(kernel: Kernel, dtype: str, case: Case, threads: int, end: str) -> None:
    from dataclasses import replace

    case = replace(case, dtype=dtype)
    compare(kernel, case.build(), end, case.repro("forward", kernel), threads=threads)


@pytest.mark.parametrize("layout", ["contiguous", "inner_strided"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_nothing_is_touched_beside_x_that_is_projected_already(
    kernel: Kernel, dtype: str, case: Case, layout: str, end: str
) -> None:
    from dataclasses import replace

    p = replace(case, dtype=dtype, I=case.H, layout=layout).build().but(w_ih=None)
    compare(kernel, p, end, case.repro("forward", kernel))


@pytest.mark.native
@pytest.mark.parametrize("order", ["C", "F"])
def test_nothing_is_touched_beside_weights_that_are_packed_where_used(
    kernel: Kernel, dtype: str, order: str, end: str
) -> None:
    """45 pairs of widths; weights by rows and by columns, which take different ways into the panels."""
    for case in few_rows():
        p = case.build()
        p = p.but(**{name: a.astype(dtype) for name, a in vars(p).items() if isinstance(a, np.ndarray)})
        p = p.but(w_ih=np.asarray(p.w_ih, order=order), w_hh=np.asarray(p.w_hh, order=order))
        compare(kernel, p, end, case.id)


@pytest.mark.native
def test_nothing_is_touched_beside_weights_that_are_packed_for_good(kernel: Kernel, dtype: str, end: str) -> None:
    for I, H in zip(SIZES, SIZES[::-1], strict=True):
        p = Case(T=2, B=3, I=I, H=H, dtype=dtype).build()
        weights = [guarded(a, end) for a in (p.w_ih, p.w_hh)]
        packed = native().pack_weights(*weights, isa=kernel.isa)
        assert_all_same_bits(kernel.forward(p, packed=packed), kernel.forward(p), f"I {I}, H {H}")


@pytest.mark.native
def test_nothing_is_touched_beside_the_array_of_tanh(kernel: Kernel, dtype: str, end: str) -> None:
    for n in (*SIZES, 0):
        x = np.linspace(-3, 3, n).astype(dtype)
        out = guarded(np.full(n, np.nan, dtype), end)
        native().tanh(guarded(x, end), out, isa=kernel.isa)
        assert_all_same_bits([out], [kernel.tanh(x)], f"{n} elements")
