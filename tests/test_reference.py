"""The NumPy reference, against which every other backend is held: equal to an independent scalar-plain oracle, to
PyTorch in float64 (forward and all gradients), to closed forms; and generic in dtype, longdouble and complex included.
"""

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import bounds, oracle
from helpers.cases import GRADIENTS, NEEDS, Case, Problem, random_cases
from helpers.compare import normalised_error
from helpers.kernels import Kernel

NUMPY = Kernel("numpy")
TOLERANCE = 1e-13


@pytest.mark.parametrize("case", random_cases(40, seed=51, max_work=300_000), ids=lambda case: case.id)
def test_forward_equals_the_oracle(case: Case) -> None:
    p = replace(case, dtype="float64").build()
    output, h_n = NUMPY.forward(p)
    want, want_n = oracle.forward(p.padded(), np.longdouble)
    assert normalised_error(bounds.as_padded(output, p), want) <= TOLERANCE
    assert normalised_error(h_n, want_n) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["complex128", "longdouble", "clongdouble"])
def test_every_dtype_passes_through(dtype: str) -> None:
    """Results in the dtype of the input, with its precision; complex arguments are not conjugated."""
    p = Case(T=4, B=3, I=5, H=6, dtype="float64", lengths="ragged", recurrent_mask=True).build()
    names = ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "recurrent_mask", "d_output", "d_h_n")
    p = p.but(**{name: getattr(p, name).astype(dtype) for name in names})
    if p.x.dtype.kind == "c":
        p.x[0, 0, 0] += 0.25j
    output, h_n = NUMPY.forward(p)
    assert output.dtype == h_n.dtype == np.dtype(dtype)
    want, want_n = oracle.forward(p, dtype)
    eps = float(np.finfo(dtype).eps)
    assert np.abs(output - want).max() <= 20 * eps
    assert np.abs(h_n - want_n).max() <= 20 * eps
    for name, gradient in zip(GRADIENTS, NUMPY.backward(p, output), strict=True):
        assert gradient.dtype == np.dtype(dtype), name


def test_complex_step_through_the_reference_equals_that_through_the_oracle() -> None:
    """The reference is analytic: it may itself serve for complex-step derivatives, as `fastrnn check` uses it."""
    p = Case(T=4, B=3, I=3, H=4, dtype="float64", lengths="ragged", keep_mask=True, reset=True).build()
    v = np.random.default_rng(0).standard_normal(p.w_hh.shape)
    complex_p = p.but(**{n: getattr(p, n).astype(complex) for n in ("x", "h_0", "w_ih", "b_ih", "b_hh")})
    output, _ = NUMPY.forward(complex_p.but(w_hh=p.w_hh + 1e-150j * v))
    want, _ = oracle.directional_derivative(p, {"w_hh": v})
    assert normalised_error(output.imag / 1e-150, want) <= TOLERANCE


def test_zero_weights_give_tanh_of_the_bias() -> None:
    p = Case(T=4, B=3, I=5, H=6, dtype="float64").build()
    p = p.but(w_ih=np.zeros_like(p.w_ih), w_hh=np.zeros_like(p.w_hh))
    output, h_n = NUMPY.forward(p)
    want = np.tanh(p.b_ih + p.b_hh)
    assert np.allclose(output, want, rtol=0, atol=1e-16)
    assert np.allclose(h_n, want, rtol=0, atol=1e-16)
    g = NUMPY.backward(p, output)
    d_z = (p.d_output.sum((0, 1)) + p.d_h_n.sum(0)) * (1 - want**2)
    assert normalised_error(g.d_b, d_z) <= TOLERANCE
    assert not g.d_x.any()
    assert not g.d_h_0.any()


def test_one_unit_of_relu_is_a_linear_recurrence() -> None:
    """H = 1, all positive: h_t = a^t h_0 + sum a^(t-s) w x_s, and its gradients are powers of a."""
    T, a, w = 6, 0.5, 2.0
    x = np.random.default_rng(0).random((T, 1, 1)) + 0.1
    h_0 = np.array([[3.0]])
    p = Problem(x=x, h_0=h_0, w_ih=np.array([[w]]), w_hh=np.array([[a]]), nonlinearity="relu")
    output, h_n = NUMPY.forward(p)
    powers = a ** np.arange(T + 1)
    want = [powers[t + 1] * 3.0 + sum(powers[t - s] * w * x[s, 0, 0] for s in range(t + 1)) for t in range(T)]
    assert np.allclose(output.ravel(), want, rtol=1e-15)
    assert h_n[0, 0] == output[-1, 0, 0]
    g = NUMPY.backward(p.but(d_h_n=np.ones((1, 1))), output)
    assert np.allclose(g.d_x.ravel(), w * powers[T - 1 :: -1], rtol=1e-15)
    assert np.allclose(g.d_h_0, powers[T], rtol=1e-15)
    before = np.concatenate([h_0.ravel(), output.ravel()[:-1]])
    assert np.allclose(g.d_w_hh, (powers[T - 1 :: -1] * before).sum(), rtol=1e-15)
    assert np.allclose(g.d_b, powers[:T].sum(), rtol=1e-15)


def test_one_step_is_a_layer() -> None:
    p = Case(T=1, B=4, I=3, H=5, dtype="float64").build()
    output, h_n = NUMPY.forward(p)
    want = np.tanh(p.x[0] @ p.w_ih.T + p.h_0 @ p.w_hh.T + p.b_ih + p.b_hh)
    assert normalised_error(output[0], want) <= TOLERANCE
    assert np.array_equal(h_n, output[0])
    g = NUMPY.backward(p, output)
    d_z = (p.d_output[0] + p.d_h_n) * (1 - want**2)
    wanted = (d_z @ p.w_ih, d_z @ p.w_hh, d_z.T @ p.x[0], d_z.T @ p.h_0, d_z.sum(0))
    for name, gradient, right in zip(GRADIENTS, g, wanted, strict=True):
        assert normalised_error(gradient[0] if name == "d_x" else gradient, right) <= TOLERANCE, name


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0)], ids=str)
def test_empty_dimensions(kernel: Kernel, dtype: str, shape: tuple[int, int, int]) -> None:
    """T = 0: h_n is h_0; B = 0: empty results; I = 0: the recurrence without input. Gradients of nothing are zeros."""
    T, B, I = shape
    p = Case(T=T, B=B, I=I, H=6, dtype=dtype).build()
    output, h_n = kernel.forward(p)
    assert output.shape == (T, B, 6)
    want, want_n = oracle.forward(p)
    assert np.allclose(output, want, atol=1e-6)
    assert np.allclose(h_n, want_n, atol=1e-6)
    if T == 0:
        assert np.array_equal(h_n, p.h_0)
    g = kernel.backward(p, output)
    for name, need in zip(GRADIENTS, NEEDS, strict=True):
        value = getattr(g, name)
        assert value.shape == {"x": p.x.shape, "h_0": (B, 6), "w_ih": (6, I), "w_hh": (6, 6), "b": (6,)}[need]
        if (T == 0 and name != "d_h_0") or B == 0:
            assert not value.any()
    if T == 0:
        assert np.array_equal(g.d_h_0, p.d_h_n)


TORCH_CASES = random_cases(24, seed=52, max_work=300_000, reset=False, recurrent_mask=False, keep_mask=False, h_0=True)


@pytest.mark.parametrize("case", [c for c in TORCH_CASES if c.bias in ("both", "none")], ids=lambda case: case.id)
def test_equals_torch_in_float64(torch: Any, case: Case) -> None:
    """Forward and every gradient, <= 1e-12 normalised; ragged rows through PackedSequence; reverse as torch's own."""
    p = replace(case, dtype="float64", d_h_n=True).build().padded()
    if p.lengths is not None:
        keep = p.lengths > 0  # torch takes no empty rows
        if not keep.any():
            pytest.skip("no row is left")
        p = p.but(
            x=p.x[:, keep], h_0=p.h_0[keep], lengths=p.lengths[keep], d_h_n=p.d_h_n[keep],
            d_output=None if p.d_output is None else p.d_output[:, keep],
        )  # fmt: skip
    output, h_n = NUMPY.forward(p)
    want = _torch_run(torch, p)
    got = {"output": output, "h_n": h_n, **vars(NUMPY.backward(p, output))}
    for name, value in want.items():
        assert normalised_error(got[name], value) <= 1e-12, name


def _torch_run(torch: Any, p: Problem) -> dict[str, Any]:
    """One direction by torch.nn.RNN: reverse is the second direction of a bidirectional layer."""
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    T, B, I = p.x.shape
    layer = torch.nn.RNN(
        I, p.H, bidirectional=p.reverse, bias=p.b_ih is not None, nonlinearity=p.nonlinearity, dtype=torch.float64
    )
    suffix = "_l0_reverse" if p.reverse else "_l0"
    with torch.no_grad():
        for name, value in {"weight_ih": p.w_ih, "weight_hh": p.w_hh, "bias_ih": p.b_ih, "bias_hh": p.b_hh}.items():
            if value is not None:
                getattr(layer, name + suffix).copy_(torch.from_numpy(value.copy()))
    x = torch.from_numpy(p.x.copy()).requires_grad_()
    h_0 = torch.from_numpy(p.h_0.copy()).requires_grad_()
    states = torch.stack([torch.zeros_like(h_0), h_0]) if p.reverse else h_0[None]
    if p.lengths is None:
        output, h_n = layer(x, states)
    else:
        packed = pack_padded_sequence(x, torch.from_numpy(p.lengths), enforce_sorted=False)
        output, h_n = layer(packed, states)
        output, _ = pad_packed_sequence(output, total_length=T)
    output, h_n = output[..., -p.H :], h_n[-1]
    d_output = np.zeros(output.shape) if p.d_output is None else p.d_output.copy()
    torch.autograd.backward((output, h_n), (torch.from_numpy(d_output), torch.from_numpy(p.d_h_n)))
    run = {"output": output.detach(), "h_n": h_n.detach(), "d_x": x.grad, "d_h_0": h_0.grad}
    run["d_w_ih"], run["d_w_hh"] = getattr(layer, "weight_ih" + suffix).grad, getattr(layer, "weight_hh" + suffix).grad
    if p.b_ih is not None:
        run["d_b"] = getattr(layer, "bias_ih" + suffix).grad
    return {name: value.numpy() for name, value in run.items()}


def test_backend_file_defines_every_function() -> None:
    module = importlib.import_module("fastrnn._backends.reference")
    assert callable(module.rnn_forward)
    assert callable(module.rnn_backward)
