"""The whole judgement of one case, as functions: tests call them, and test_helpers.py feeds them broken kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import bounds, oracle
from .cases import Case, Problem
from .compare import assert_same_bits, assert_within, normalised_error
from .kernels import d_z_of

Array = np.ndarray[Any, Any]


def check_results(p: Problem, output: Array, got: dict[str, Array], what: str, tanh_ulps: float = 2.0) -> None:
    """The results in `got` are p's (padded), by the bounds: the gradients, if any, given `output` and got's d_z."""
    judged = {"output": bounds.judge_forward(p, output, tanh_ulps)} if "output" in got else {}
    if "d_z" in got:
        judged |= bounds.judge_backward(p, output, got["d_z"], tanh_ulps=tanh_ulps)
    for name, judgement in judged.items():
        if name in got:
            assert_within(got[name], judgement.reference, judgement.bound, f"{name} of {what}")
    if "h_n" in got:
        assert_same_bits(got["h_n"], bounds.last_states(p, output), f"h_n of {what}")
    for name in got.keys() & {"output", "d_z", "d_x"}:
        assert not got[name][~oracle.valid_rows(p)].any(), f"{name} beyond a row's length of {what}"


def check_forward(kernel: Any, case: Case) -> None:
    """Promise 2: every element within the one-step bound, h_n the very state at each row's own end, zeros beyond."""
    p, what = case.build(), case.repro("forward", kernel)
    output, h_n = kernel.forward(p)
    assert output.dtype == h_n.dtype == np.dtype(case.dtype), what
    assert output.shape == p.output_shape, what
    output = bounds.as_padded(output, p)
    check_results(p.padded(), output, {"output": output, "h_n": h_n}, what, kernel.tanh_ulps)
    if case.nonlinearity == "tanh" and case.h_0 is False:
        assert (np.abs(output) <= 1).all(), f"|output| <= 1 of {what}"


def check_backward(kernel: Any, case: Case) -> None:
    """Promise 3 by element: each gradient within the bound that the kernel's d_z gives, d_z within a one-step bound."""
    p, what = case.build(), case.repro("backward", kernel)
    output, _ = kernel.forward(p)
    gradients = kernel.backward(p, output)
    for name, gradient in vars(gradients).items():
        assert gradient is not None, f"{name} of {what}"
        assert gradient.dtype == np.dtype(case.dtype), f"{name} of {what}"
    got = {"d_z": d_z_of(kernel, p, output), **vars(gradients)}
    got = {name: bounds.as_padded(a, p) if name in ("d_z", "d_x") else a for name, a in got.items()}
    check_results(p.padded(), bounds.as_padded(output, p), got, what, kernel.tanh_ulps)


def complex_step_errors(kernel: Any, case: Case) -> dict[str, float]:
    """Normalised error of every gradient against complex-step derivatives of the oracle (all in one float64 case)."""
    p = case.build()
    output, _ = kernel.forward(p)
    gradients = kernel.backward(p, output)
    padded = p.padded()
    names = {"d_x": "x", "d_h_0": "h_0", "d_w_ih": "w_ih", "d_w_hh": "w_hh", "d_b": "b_ih"}
    names |= {"d_alpha": "alpha"} if p.alpha is not None else {}
    if padded.h_0 is None:
        padded = padded.but(h_0=np.zeros((p.B, p.H), p.w_hh.dtype))
    if padded.b_ih is None:
        padded = padded.but(b_ih=np.zeros(p.H, p.w_hh.dtype))
    errors = {}
    for name, argument in names.items():
        got = getattr(gradients, name)
        got = bounds.as_padded(got, p) if name == "d_x" else got
        errors[name] = normalised_error(got, oracle.gradient(padded, argument))
    return errors


def adjoint_gap(kernel: Any, case: Case) -> float:
    """|<J v, u> - <v, J^T u>| / (|J v| |u|), v over all arguments at once, J v by a complex step, J^T by the kernel."""
    p = case.build()
    output, _ = kernel.forward(p)
    gradients = kernel.backward(p, output)
    padded = p.padded()
    rng = np.random.default_rng(case.seed)
    arguments = [("x", bounds.as_padded(gradients.d_x, p)), ("w_ih", gradients.d_w_ih), ("w_hh", gradients.d_w_hh)]
    arguments += [("h_0", gradients.d_h_0)] if p.h_0 is not None else []
    arguments += [("b_ih", gradients.d_b)] if p.b_ih is not None else []
    arguments += [("alpha", gradients.d_alpha)] if p.alpha is not None else []
    direction = {name: rng.standard_normal(gradient.shape) for name, gradient in arguments}
    d_output, d_h_n = oracle.directional_derivative(padded, direction)
    left = float(oracle.loss(padded, d_output, d_h_n))
    right = sum(float((direction[name] * gradient.astype(np.float64)).sum()) for name, gradient in arguments)
    u_norm, jv_norm = _joint_norm(padded.d_output, padded.d_h_n), _joint_norm(d_output, d_h_n)
    return abs(left - right) / (u_norm * jv_norm) if u_norm * jv_norm else abs(left - right)


def _joint_norm(*arrays: Array | None) -> float:
    return float(np.sqrt(sum(float(np.square(a.astype(np.float64)).sum()) for a in arrays if a is not None)))


def same_results(got: Any, want: Any, what: str) -> None:
    """Two (output, h_n) or two Gradients: the same bits."""
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert_same_bits(g, w, f"{what}, result {i}")


def run_both(kernel: Any, p: Problem, **how: Any) -> tuple[Array, ...]:
    """output, h_n and the gradients of one problem: five, or six with alpha."""
    output, h_n = kernel.forward(p, **how)
    return (output, h_n, *kernel.backward(p, output, **how))
