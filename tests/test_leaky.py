"""Leaky units, h_t = (1 - alpha) p_t + alpha act(z_t): on every backend and instruction set, with all other options,
within bounds that follow from the arithmetic, with the gradient to alpha; alpha = 1 is the plain recurrence.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import bounds, oracle
from helpers.cases import LAYOUTS, NEEDS, SIZES, Case, pack, random_cases, rows_of, steps_of, with_layout
from helpers.checks import adjoint_gap, check_backward, check_forward, complex_step_errors, run_both, same_results
from helpers.compare import assert_all_same_bits, assert_same_bits, normalised_error, rms
from helpers.kernels import Kernel

import fastrnn

GRID = [replace(c, alpha=("unit", "unit", "one")[i % 3]) for i, c in enumerate(random_cases(24, seed=81))]
SMALL = [replace(c, T=min(c.T, 5), B=min(c.B, 4), I=min(c.I, 4), H=min(c.H, 5)) for c in GRID]
TAILS = [Case(T=3, B=3, I=5, H=n, alpha="unit", seed=n) for n in SIZES]
TAILS += [Case(T=3, B=n, I=3, H=17, alpha="unit", seed=n) for n in SIZES]
TAILS += [Case(T=3, B=2, I=n, H=5, alpha="unit", seed=n) for n in (1, 16, 33, 97)]
TAILS += [Case(T=n, B=2, I=3, H=5, alpha="unit", seed=n) for n in (1, 2, 65, 129)]
# One row, few rows (threads share the units), hoisted projection, several blocks of d_w, all masks at once.
SHAPES = [
    Case(T=7, B=1, I=33, H=65, seed=1),
    Case(T=9, B=3, I=17, H=129, lengths="ragged", keep_mask=True, seed=2),
    Case(T=6, B=19, I=130, H=40, reverse=True, lengths="ragged", recurrent_mask=True, seed=3),
    Case(T=5, B=67, I=3, H=33, nonlinearity="relu", keep_mask=True, reset=True, recurrent_mask=True, seed=4),
    Case(T=8, B=31, I=63, H=100, lengths="packed", reset=True, reverse=True, seed=5),
    Case(T=140, B=5, I=9, H=31, lengths="ragged", seed=6),
    Case(T=3, B=300, I=15, H=16, bias="none", h_0=False, seed=7),
    Case(T=40, B=2, I=33, H=600, seed=8),
]
SHAPES = [replace(case, alpha="unit") for case in SHAPES]


def ids(case: Case) -> str:
    return case.id


@pytest.mark.parametrize("case", GRID + TAILS, ids=ids)
def test_one_step_bound(kernel: Kernel, dtype: str, case: Case) -> None:
    check_forward(kernel, replace(case, dtype=dtype))


@pytest.mark.parametrize("case", GRID + TAILS, ids=ids)
def test_every_gradient_within_bound(kernel: Kernel, dtype: str, case: Case) -> None:
    check_backward(kernel, replace(case, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bounds_in_every_layout(kernel: Kernel, dtype: str, layout: str) -> None:
    for lengths in ("ragged", "packed"):
        case = Case(T=4, B=6, I=18, H=33, layout=layout, lengths=lengths, recurrent_mask=True, alpha="unit")
        check_forward(kernel, replace(case, dtype=dtype))
        check_backward(kernel, replace(case, dtype=dtype))


@pytest.mark.parametrize("case", SMALL, ids=ids)
def test_float64_equals_the_plain_loop_and_its_complex_step_derivatives(kernel: Kernel, case: Case) -> None:
    """Forward 1e-13; every gradient, that of alpha among them, 1e-13 of its largest element."""
    case = replace(case, dtype="float64")
    p = case.build()
    output, h_n = kernel.forward(p)
    want, want_n = oracle.forward(p.padded())
    assert normalised_error(bounds.as_padded(output, p), want) <= 1e-13
    assert normalised_error(h_n, want_n) <= 1e-13
    errors = complex_step_errors(kernel, case)
    assert "d_alpha" in errors
    assert max(errors.values()) <= 1e-13, f"{errors} of {case.id}"


@pytest.mark.parametrize("case", GRID[:12], ids=ids)
def test_adjoint_identity(kernel: Kernel, dtype: str, case: Case) -> None:
    gap = adjoint_gap(kernel, replace(case, dtype=dtype, d_h_n=True))
    assert gap <= 10 * float(np.finfo(dtype).eps)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_small_alpha_costs_no_digits(kernel: Kernel, size: float) -> None:
    """In float64 over many steps: what a division by alpha would lose, 1e-16 / alpha, is not lost."""
    for nonlinearity in ("tanh", "relu"):
        case = Case(T=40, B=2, I=3, H=7, dtype="float64", nonlinearity=nonlinearity)
        p = case.build()
        p = p.but(alpha=np.full(7, size))
        output, _ = kernel.forward(p)
        gradients = kernel.backward(p, output)
        for name, argument in {"d_alpha": "alpha", "d_w_hh": "w_hh", "d_b": "b_ih"}.items():
            assert normalised_error(getattr(gradients, name), oracle.gradient(p, argument)) <= 1e-13, name


@pytest.mark.parametrize("case", SHAPES, ids=ids)
def test_alpha_of_1_gives_the_bits_of_the_plain_recurrence(kernel: Kernel, dtype: str, case: Case) -> None:
    """With cpp; elsewhere d_z may differ in the last digit, as the activation is computed again."""
    p = replace(case, dtype=dtype).build()
    ones = p.but(alpha=np.ones(p.H, dtype))
    want, got = run_both(kernel, p.but(alpha=None)), run_both(kernel, ones)
    assert_same_bits(got[0] + 0, want[0] + 0, "output")
    assert_same_bits(got[1] + 0, want[1] + 0, "h_n")
    for name, g, w in zip(NEEDS, got[2:7], want[2:], strict=True):
        if kernel.is_native:
            assert_same_bits(g + 0, w + 0, f"d_{name}")
        else:
            assert normalised_error(g, w) <= 100 * float(np.finfo(dtype).eps)


def test_alpha_of_0_keeps_the_first_state(kernel: Kernel, dtype: str) -> None:
    """And passes gradients on as they are; the formula holds outside (0, 1], too."""
    p = Case(T=5, B=3, I=4, H=9, dtype=dtype, alpha="unit").build()
    p = p.but(alpha=np.zeros(9, dtype))
    output, h_n, d_x, d_h_0, d_w_ih, d_w_hh, d_b, d_alpha = run_both(kernel, p)
    assert (output == p.h_0).all()
    assert (h_n == p.h_0).all()
    assert not any(d.any() for d in (d_x, d_w_ih, d_w_hh, d_b))
    assert normalised_error(d_h_0, p.d_output.astype(np.float64).sum(0) + p.d_h_n) <= 10 * float(np.finfo(dtype).eps)
    assert d_alpha.all()
    for value in (-0.25, 1.5):
        q = p.but(alpha=np.full(9, value, dtype))
        output, _ = kernel.forward(q)
        assert normalised_error(output, oracle.forward(q)[0]) <= 1e3 * float(np.finfo(dtype).eps)


@pytest.mark.native
@pytest.mark.parametrize("case", SHAPES, ids=ids)
def test_threads_and_tuning_do_not_change_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p, threads=1)
    assert len(want) == 8
    settings: list[Any] = [None, {"hoist": 0}, {"hoist": 1}, {"row_block": 3}, {"slices": 5}, {"tile_rows": 2}]
    for threads in (1, 2, 8):
        for tuning in settings:
            same_results(run_both(kernel, p, threads=threads, tuning=tuning), want, f"{threads} threads, {tuning}")


@pytest.mark.parametrize("case", SHAPES, ids=ids)
def test_the_same_call_gives_the_same_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p)
    for threads in (1, 2, 4):
        with fastrnn.threads(threads):
            same_results(run_both(kernel, p), want, f"{threads} threads")


@pytest.mark.native
@pytest.mark.parametrize("case", [c for c in SHAPES if c.lengths != "packed"], ids=ids)
def test_the_batch_and_the_layout_do_not_change_a_row(kernel: Kernel, dtype: str, case: Case) -> None:
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p)
    order = np.random.default_rng(case.seed).permutation(case.B)
    for chosen in (np.array([case.B - 1]), order, order[: case.B // 2 + 1]):
        got = run_both(kernel, rows_of(p, chosen))
        for i, axis in {0: 1, 1: 0, 2: 1, 3: 0}.items():
            assert_same_bits(got[i], np.take(want[i], chosen, axis=axis), f"result {i} of rows {chosen.tolist()}")
    for layout in LAYOUTS:
        names = ("x", "d_output", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "alpha")
        flat = layout if layout != "batch_first" else "inner_strided"
        laid = {
            name: with_layout(value, layout if value.ndim == 3 else flat)
            for name in names
            if (value := getattr(p, name)) is not None
        }
        q = p.but(**laid)
        same_results(run_both(kernel, q), want, layout)
        same_results(kernel.backward(q, with_layout(want[0], layout)), want[2:], f"tape {layout}")


@pytest.mark.native
def test_packed_equals_padded(kernel: Kernel, dtype: str) -> None:
    case = Case(T=9, B=21, I=17, H=33, dtype=dtype, reset=True, keep_mask=True, recurrent_mask=True, alpha="unit")
    p = replace(case, lengths="packed", seed=3).build()
    got, want = run_both(kernel, p), run_both(kernel, p.padded())
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert_same_bits(g, pack(w, p.batch_sizes) if i in (0, 2) else w, f"result {i}")


@pytest.mark.native
def test_parts_of_a_sequence_chained_are_the_whole(kernel: Kernel, dtype: str) -> None:
    p = Case(T=30, B=4, I=9, H=17, dtype=dtype, alpha="unit", reset=True, keep_mask=True).build()
    output, h_n, d_x, d_h_0 = run_both(kernel, p)[:4]
    first = steps_of(p, slice(0, 11), p.h_0, None)
    early, between = kernel.forward(first)
    second = steps_of(p, slice(11, None), between, p.d_h_n)
    late, last = kernel.forward(second)
    same_results((np.concatenate([early, late]), last), (output, h_n), "forward")
    later = kernel.backward(second, late)
    earlier = kernel.backward(first.but(d_h_n=later.d_h_0), early)
    same_results((np.concatenate([earlier.d_x, later.d_x]), earlier.d_h_0), (d_x, d_h_0), "backward")


@pytest.mark.parametrize("options", [{}, {"lengths": "ragged", "reverse": True}, {"lengths": "packed", "reset": True}])
def test_needs_subsets_give_the_same_bits(kernel: Kernel, dtype: str, options: dict[str, Any]) -> None:
    p = Case(T=6, B=5, I=17, H=31, dtype=dtype, alpha="unit", **options).build()
    output, _ = kernel.forward(p)
    full = kernel.backward(p, output)
    everything = (*NEEDS, "alpha")
    for needs in [(), *[(name,) for name in everything], ("x", "alpha"), NEEDS]:
        some = kernel.backward(p, output, needs=needs)
        for name in everything:
            want = getattr(full, f"d_{name}") if name in needs else None
            assert_same_bits(getattr(some, f"d_{name}"), want, f"d_{name} with needs={needs}")


def test_nan_stays_in_its_row(kernel: Kernel, dtype: str) -> None:
    """And a reset ends it, forward and backward."""
    p = Case(T=6, B=5, I=7, H=19, dtype=dtype, alpha="unit").build()
    p = p.but(reset=np.zeros((6, 5), bool))
    p.reset[3] = True
    x, d_output = p.x.copy(), p.d_output.copy()
    x[1, 2], d_output[5, 3] = np.nan, np.nan
    output, h_n, d_x, d_h_0 = run_both(kernel, p.but(x=x, d_output=d_output))[:4]
    clean = run_both(kernel, p)
    assert np.isnan(output[1:3, 2]).all()
    assert not np.isnan(output[3:]).any()
    assert not np.isnan(h_n).any()
    assert np.isnan(d_x[3:, 3]).any()
    assert not np.isnan(d_x[:3, 3]).any()
    others = [0, 1, 4]
    assert_all_same_bits(
        [d_x[:, others], d_h_0[others]], [clean[2][:, others], clean[3][others]], "others", ("d_x", "d_h_0")
    )


@pytest.mark.parametrize(("T", "B", "I", "H"), [(20, 8, 10, 33), (100, 16, 9, 31), (200, 128, 16, 32)])
def test_float32_error_is_no_worse_than_torch(kernel: Kernel, torch: Any, T: int, B: int, I: int, H: int) -> None:
    """RMS error of each gradient against float64, beside that of the same loop in PyTorch, over three seeds."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for seed in range(3):
        p = Case(T=T, B=B, I=I, H=H, alpha="unit", seed=seed).build()
        exact, stock = (_torch_gradients(torch, p, dtype) for dtype in (torch.float64, torch.float32))
        output, _ = kernel.forward(p)
        for name, got in vars(kernel.backward(p, output)).items():
            ours.setdefault(name, []).append(rms(got - exact[name]))
            theirs.setdefault(name, []).append(rms(stock[name] - exact[name]))
    ratios = {name: rms(np.array(ours[name])) / rms(np.array(theirs[name])) for name in ours}
    assert max(ratios.values()) <= kernel.torch_ratio, ratios


def _torch_gradients(torch: Any, p: Any, dtype: Any) -> dict[str, Any]:
    names = ("x", "h_0", "w_ih", "w_hh", "b_ih", "alpha")
    t = {n: torch.from_numpy(np.array(getattr(p, n))).to(dtype).requires_grad_() for n in names}
    h, outputs = t["h_0"], []
    for x in t["x"]:
        z = x @ t["w_ih"].T + (t["b_ih"] + torch.from_numpy(p.b_hh).to(dtype)) + h @ t["w_hh"].T
        h = (1 - t["alpha"]) * h + t["alpha"] * torch.tanh(z)
        outputs.append(h)
    upstream = (torch.from_numpy(p.d_output).to(dtype), torch.from_numpy(p.d_h_n).to(dtype))
    torch.autograd.backward((torch.stack(outputs), h), upstream)
    return {f"d_{n}": t["b_ih" if n == "b" else n].grad.numpy() for n in (*NEEDS, "alpha")}
