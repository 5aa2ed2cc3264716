"""Promise 2: every element of the forward pass within a one-step bound that follows from the arithmetic, for any T,
any weights and every option; end to end, the error against float64 is no worse than PyTorch's own.

The bound (helpers/bounds.py): |h - exact step from the kernel's own state| <= 2 ulp of tanh (4 for the NumPy backend,
NumPy's own bound) + slope of tanh * min(n, 6 sqrt(n)) eps/2 * (|w_ih||x| + |w_hh||p| + |b|), n = I + H + 5.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import oracle
from helpers.cases import BROADCASTS, LAYOUTS, SIZES, WIDE, Case, Problem, random_cases
from helpers.checks import check_forward
from helpers.compare import normalised_error, rms

import fastrnn

GRID = random_cases(44, seed=2)
# Each size once in each place of the innermost loops, the other dimensions small.
TAILS = [Case(T=2, B=3, I=5, H=n, seed=n) for n in SIZES] + [Case(T=2, B=n, I=3, H=17, seed=n) for n in SIZES]
TAILS += [Case(T=2, B=2, I=n, H=5, seed=n) for n in SIZES]
BIG = [
    Case(T=6, B=37, I=300, H=257, lengths="ragged", seed=1),
    Case(T=40, B=5, I=96, H=130, reset=True, keep_mask=True, seed=2),
    Case(T=3, B=130, I=97, H=129, lengths="packed", reverse=True, seed=3),
]
LONG = [Case(T=10_000, B=1, I=3, H=9, gain=0.99, seed=4), Case(T=2_000, B=2, I=1, H=8, gain=3.0, seed=5)]


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_one_step_bound(kernel: Any, dtype: str, case: Case) -> None:
    check_forward(kernel, replace(case, dtype=dtype))


@pytest.mark.parametrize("case", TAILS, ids=lambda case: case.id)
def test_one_step_bound_at_every_size(kernel: Any, dtype: str, case: Case) -> None:
    check_forward(kernel, replace(case, dtype=dtype))


@pytest.mark.parametrize("case", BIG + LONG, ids=lambda case: case.id)
def test_one_step_bound_large(kernel: Any, dtype: str, case: Case) -> None:
    check_forward(kernel, replace(case, dtype=dtype))


def test_one_step_bound_of_wide_rows(kernel: Any) -> None:
    with fastrnn.threads(1):
        check_forward(kernel, WIDE)


@pytest.mark.parametrize("layout", [*LAYOUTS, *BROADCASTS])
def test_one_step_bound_of_every_layout(kernel: Any, dtype: str, layout: str) -> None:
    check_forward(kernel, Case(T=4, B=6, I=18, H=33, layout=layout, lengths="ragged", dtype=dtype))
    check_forward(kernel, Case(T=4, B=6, I=18, H=33, layout=layout, lengths="packed", dtype=dtype))


@pytest.mark.parametrize("gain", [0.0, 1.5, 20.0])
def test_one_step_bound_for_chaotic_and_saturated_weights(kernel: Any, dtype: str, gain: float) -> None:
    check_forward(kernel, Case(T=65, B=3, I=9, H=33, gain=gain, dtype=dtype))
    check_forward(kernel, Case(T=9, B=3, I=9, H=33, gain=gain, nonlinearity="relu", dtype=dtype))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6])
def test_one_step_bound_at_extreme_scales(kernel: Any, dtype: str, scale: float) -> None:
    """Tiny inputs (relative accuracy near 0 counts) and saturating ones."""
    case = Case(T=3, B=2, I=9, H=17, bias="none", h_0=False, dtype=dtype)
    p = case.build()
    p = p.but(x=p.x * p.x.dtype.type(scale))
    output, _ = kernel.forward(p)
    want, _ = oracle.forward(p, np.longdouble)
    if scale > 1:
        assert (np.abs(output) <= 1).all()
    assert normalised_error(output, want) <= 40 * float(np.finfo(dtype).eps)


def test_subnormals(kernel: Any, dtype: str) -> None:
    """Kept, or 0 in the C++ kernels; but not, after them, in the calling thread."""
    tiny = np.finfo(dtype).smallest_subnormal
    H = 19
    x = (np.arange(1, 2 * H + 1) * tiny).astype(dtype).reshape(2, 1, H)
    for nonlinearity in ("relu", "tanh"):
        p = Problem(x=x, h_0=None, w_ih=np.eye(H, dtype=dtype), w_hh=np.zeros((H, H), dtype), nonlinearity=nonlinearity)
        output, _ = kernel.forward(p)
        assert (output == (x if kernel.keeps_subnormals else 0)).all()
        upstream = p.but(d_output=x, d_h_n=np.zeros((1, H), dtype))
        d_x = kernel.backward(upstream, np.full_like(x, 0.5) if nonlinearity == "relu" else np.zeros_like(x)).d_x
        assert (d_x == (x if kernel.keeps_subnormals else 0)).all()
    assert x[0, 0, 0] * np.dtype(dtype).type(1) == tiny


@pytest.mark.native
@pytest.mark.parametrize("rows", [1, 40])
def test_a_long_sum_errs_as_its_blocks_do(kernel: Any, dtype: str, rows: int) -> None:
    """RMS error of z over 2,048 terms, in roundings of its RMS size: 3.6 in blocks of 128, 13 in one chain."""
    rng, K, H = np.random.default_rng(rows), 2048, 2080 // rows
    x, w = rng.standard_normal((3, rows, K)).astype(dtype), (rng.standard_normal((H, K)) / K**0.5).astype(dtype)
    p = Problem(x=x, h_0=None, w_ih=w, w_hh=np.zeros((H, H), dtype), nonlinearity="relu")
    z = x.astype(np.longdouble) @ w.astype(np.longdouble).T
    output, _ = kernel.forward(p)
    positive = z > 0
    error = rms(output[positive] - z[positive]) / rms(z[positive]) / (float(np.finfo(dtype).eps) / 2)
    assert error <= 5, f"{error:.1f} roundings"


@pytest.mark.parametrize(("T", "B", "I", "H"), [(30, 4, 10, 33), (12, 8, 64, 128), (50, 16, 7, 65), (10, 3, 200, 256)])
def test_end_to_end_error_is_no_worse_than_torch(kernel: Any, torch: Any, T: int, B: int, I: int, H: int) -> None:
    """RMS error in float32 against float64, contractive weights, over four seeds: at most Kernel.torch_ratio times
    PyTorch's, which is 1.2 (room for noise) where there are FMAs.
    """
    ours, theirs = [], []
    for seed in range(4):
        p = Case(T=T, B=B, I=I, H=H, seed=seed).build()
        exact, _ = oracle.forward(p)
        output, _ = kernel.forward(p)
        ours.append(rms(output - exact))
        theirs.append(rms(_torch_forward(torch, p) - exact))
    ratio = rms(np.array(ours)) / rms(np.array(theirs))
    assert ratio <= kernel.torch_ratio, f"rms error {ours} against PyTorch's {theirs}: {ratio:.2f}"


def _torch_forward(torch: Any, p: Any) -> Any:
    layer = torch.nn.RNN(p.x.shape[2], p.H)
    names = {"weight_ih_l0": p.w_ih, "weight_hh_l0": p.w_hh, "bias_ih_l0": p.b_ih, "bias_hh_l0": p.b_hh}
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in names.items()})
    with torch.no_grad():
        return layer(torch.from_numpy(p.x), torch.from_numpy(p.h_0[None]))[0].numpy()
