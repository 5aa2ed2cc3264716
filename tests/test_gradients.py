"""Promise 3: gradients. In float64 they equal complex-step derivatives to 1e-13 (normalised: max error / max value of
the tensor); <J v, u> = <v, J^T u> within 10 eps |J v| |u|; in every dtype each element lies within a bound that
follows from the arithmetic (helpers/bounds.py); in float32 the error is no worse than PyTorch's own.
"""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import oracle
from helpers.cases import BROADCASTS, GRADIENTS, LAYOUTS, NEEDS, SIZES, WIDE, Case, random_cases, with_layout
from helpers.checks import adjoint_gap, check_backward, complex_step_errors
from helpers.compare import assert_all_same_bits, assert_same_bits, rms

import fastrnn

SMALL = [replace(c, T=min(c.T, 5), B=min(c.B, 4), I=min(c.I, 4), H=min(c.H, 5)) for c in random_cases(36, seed=31)]
GRID = random_cases(44, seed=32)
TAILS = [Case(T=3, B=3, I=5, H=n, seed=n) for n in SIZES] + [Case(T=3, B=n, I=3, H=17, seed=n) for n in SIZES]
TAILS += [Case(T=3, B=2, I=n, H=5, seed=n) for n in SIZES] + [Case(T=n, B=2, I=3, H=5, seed=n) for n in SIZES]
BIG = [
    Case(T=6, B=37, I=300, H=257, lengths="ragged", seed=1),
    Case(T=40, B=5, I=96, H=130, reset=True, keep_mask=True, seed=2),
    Case(T=3, B=300, I=33, H=65, lengths="packed", reverse=True, seed=3),  # more rows than one block of the d_w sum
    Case(T=40, B=9, I=3, H=601, seed=4),  # narrow x: several tasks of its units, several blocks
    Case(T=40, B=9, I=8, H=290, reverse=True, seed=5),
    Case(T=2, B=130, I=730, H=731, seed=6),  # large w_ih: larger groups of rows for d_x
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_float64_gradients_equal_complex_step(kernel: Any, case: Case) -> None:
    """Normalised error <= 1e-13 for every gradient."""
    case = replace(case, dtype="float64")
    for name, error in complex_step_errors(kernel, case).items():
        assert error <= 1e-13, f"{name}: {error:.1e} of {case.repro('backward', kernel)}"


@pytest.mark.parametrize("case", random_cases(20, seed=33, max_work=300_000), ids=lambda case: case.id)
def test_adjoint_identity(kernel: Any, dtype: str, case: Case) -> None:
    """|<J v, u> - <v, J^T u>| <= 10 eps |J v| |u|, v over all arguments together, contractive weights."""
    case = replace(case, dtype=dtype, d_h_n=True)
    gap = adjoint_gap(kernel, case)
    assert gap <= 10 * float(np.finfo(dtype).eps), f"gap {gap:.1e} of {case.repro('backward', kernel)}"


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_every_element_within_bound(kernel: Any, dtype: str, case: Case) -> None:
    check_backward(kernel, replace(case, dtype=dtype))


@pytest.mark.parametrize("case", TAILS, ids=lambda case: case.id)
def test_every_element_within_bound_at_every_size(kernel: Any, dtype: str, case: Case) -> None:
    check_backward(kernel, replace(case, dtype=dtype))


@pytest.mark.parametrize("case", BIG, ids=lambda case: case.id)
def test_every_element_within_bound_large(kernel: Any, dtype: str, case: Case) -> None:
    check_backward(kernel, replace(case, dtype=dtype))


def test_every_element_within_bound_of_wide_rows(kernel: Any) -> None:
    with fastrnn.threads(1):
        check_backward(kernel, WIDE)


@pytest.mark.parametrize("layout", [*LAYOUTS, *BROADCASTS])
def test_every_element_within_bound_in_every_layout(kernel: Any, dtype: str, layout: str) -> None:
    check_backward(kernel, Case(T=4, B=6, I=18, H=33, layout=layout, lengths="ragged", dtype=dtype))
    check_backward(kernel, Case(T=4, B=6, I=18, H=33, layout=layout, lengths="packed", dtype=dtype))
    check_backward(kernel, Case(T=4, B=6, I=3, H=33, layout=layout, lengths="ragged", dtype=dtype))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_tape_of_many_steps_in_another_layout_gives_the_same_bits(kernel: Any, dtype: str, reverse: bool) -> None:
    p = Case(T=301, B=17, I=5, H=9, reverse=reverse, dtype=dtype).build()
    output, _ = kernel.forward(p)
    assert_all_same_bits(
        kernel.backward(p, with_layout(output, "negative_time")), kernel.backward(p, output), "negative_time", GRADIENTS
    )


@pytest.mark.parametrize("gain", [0.0, 1.5, 20.0])
def test_every_element_within_bound_for_chaotic_and_saturated_weights(kernel: Any, dtype: str, gain: float) -> None:
    check_backward(kernel, Case(T=33, B=3, I=9, H=33, gain=gain, dtype=dtype))
    check_backward(kernel, Case(T=9, B=3, I=9, H=33, gain=gain, nonlinearity="relu", dtype=dtype))


@pytest.mark.parametrize(
    "options", [{}, {"lengths": "ragged", "reverse": True}, {"lengths": "packed"}, {"reset": True}]
)
def test_needs_subsets_give_the_same_bits(kernel: Any, dtype: str, options: dict[str, Any]) -> None:
    """Every subset of needs: None for the rest, the same bits for those asked for."""
    p = Case(T=6, B=5, I=17, H=31, dtype=dtype, **options).build()
    output, _ = kernel.forward(p)
    full = kernel.backward(p, output)
    for count in range(len(NEEDS) + 1):
        for needs in itertools.combinations(NEEDS, count):
            some = kernel.backward(p, output, needs=needs)
            for need, name in zip(NEEDS, GRADIENTS, strict=True):
                want = getattr(full, name) if need in needs else None
                assert_same_bits(getattr(some, name), want, f"{name} with needs={needs}")


@pytest.mark.parametrize("option", ["d_output", "d_h_n", "both"])
def test_missing_upstream_gradients_equal_zeros(kernel: Any, dtype: str, option: str) -> None:
    p = Case(T=6, B=5, I=9, H=15, dtype=dtype, lengths="ragged").build()
    output, _ = kernel.forward(p)
    names = ("d_output", "d_h_n") if option == "both" else (option,)
    missing = kernel.backward(p.but(**dict.fromkeys(names)), output)
    zeros = kernel.backward(p.but(**{name: np.zeros_like(getattr(p, name)) for name in names}), output)
    for name in GRADIENTS:
        got, want = getattr(missing, name), getattr(zeros, name)
        assert_same_bits(got + 0, want + 0, name)  # + 0: the sign of a zero may differ
        assert option != "both" or not got.any()


def test_stride_zero_upstream_gradients(kernel: Any, dtype: str) -> None:
    """What sum().backward() hands over: one number, stride 0 along every axis."""
    p = Case(T=6, B=5, I=9, H=15, dtype=dtype, lengths="ragged").build()
    output, _ = kernel.forward(p)
    one = np.ones((), dtype)
    flat = p.but(d_output=np.broadcast_to(one, p.output_shape), d_h_n=np.broadcast_to(one, (p.B, p.H)))
    full = p.but(d_output=np.ones(p.output_shape, dtype), d_h_n=np.ones((p.B, p.H), dtype))
    assert_all_same_bits(kernel.backward(flat, output), kernel.backward(full, output), "stride 0", GRADIENTS)


def test_inputs_are_never_modified(kernel: Any, dtype: str) -> None:
    p = Case(
        T=6, B=5, I=9, H=15, dtype=dtype, lengths="ragged", reset=True, keep_mask=True, recurrent_mask=True
    ).build()
    before = {name: value.copy() for name, value in vars(p).items() if isinstance(value, np.ndarray)}
    output, _ = kernel.forward(p)
    tape = output.copy()
    kernel.backward(p, output)
    assert_same_bits(output, tape, "output")
    for name, value in before.items():
        assert np.array_equal(getattr(p, name), value), name


@pytest.mark.parametrize(
    ("T", "B", "I", "H"), [(20, 8, 10, 33), (10, 40, 65, 128), (100, 16, 9, 31), (200, 128, 16, 32)]
)
def test_float32_error_is_no_worse_than_torch(kernel: Any, torch: Any, T: int, B: int, I: int, H: int) -> None:
    """RMS error against float64 of each gradient, contractive weights, over three seeds: at most Kernel.torch_ratio
    times PyTorch's, which is 1.2 (room for noise) where there are FMAs.
    """
    ours: dict[str, list[float]] = {name: [] for name in GRADIENTS}
    theirs: dict[str, list[float]] = {name: [] for name in GRADIENTS}
    for seed in range(3):
        p = Case(T=T, B=B, I=I, H=H, seed=seed).build()
        exact = _torch_gradients(torch, p, torch.float64)
        stock = _torch_gradients(torch, p, torch.float32)
        output, _ = kernel.forward(p)
        got = kernel.backward(p, output)
        for name in GRADIENTS:
            ours[name].append(rms(getattr(got, name) - exact[name]))
            theirs[name].append(rms(stock[name] - exact[name]))
    ratios = {name: rms(np.array(ours[name])) / rms(np.array(theirs[name])) for name in GRADIENTS}
    words = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    assert max(ratios.values()) <= kernel.torch_ratio, f"rms error in units of PyTorch's: {words}"


def _torch_gradients(torch: Any, p: Any, dtype: Any) -> dict[str, Any]:
    def leaf(array: Any) -> Any:
        return torch.from_numpy(array.copy()).to(dtype).requires_grad_()

    layer = torch.nn.RNN(p.x.shape[2], p.H, dtype=dtype)
    names = {"weight_ih_l0": p.w_ih, "weight_hh_l0": p.w_hh, "bias_ih_l0": p.b_ih, "bias_hh_l0": p.b_hh}
    layer.load_state_dict({name: torch.from_numpy(value).to(dtype) for name, value in names.items()})
    x, h_0 = leaf(p.x), leaf(p.h_0[None])
    output, h_n = layer(x, h_0)
    upstream = (torch.from_numpy(p.d_output).to(dtype), torch.from_numpy(p.d_h_n[None]).to(dtype))
    torch.autograd.backward((output, h_n), upstream)
    grads = (x.grad, h_0.grad[0], layer.weight_ih_l0.grad, layer.weight_hh_l0.grad, layer.bias_ih_l0.grad)
    return {name: grad.numpy() for name, grad in zip(GRADIENTS, grads, strict=True)}


def test_oracle_gradient_of_a_known_function() -> None:
    """The judge itself: T = 1, H = 1: d tanh(w x + b) / dw = x (1 - tanh^2)."""
    p = Case(T=1, B=1, I=1, H=1, dtype="float64", bias="ih", h_0=True).build()
    z = p.w_ih[0, 0] * p.x[0, 0, 0] + p.w_hh[0, 0] * p.h_0[0, 0] + p.b_ih[0]
    up = p.d_output[0, 0, 0] + p.d_h_n[0, 0]
    slope = up / np.cosh(z) ** 2
    for name, factor in {"w_ih": p.x[0, 0, 0], "w_hh": p.h_0[0, 0], "x": p.w_ih[0, 0], "b_ih": 1.0}.items():
        assert abs(oracle.gradient(p, name).item() - factor * slope) <= 1e-15 * max(1, abs(factor * slope))
