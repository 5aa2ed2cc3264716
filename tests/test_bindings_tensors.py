"""The calls of the native module that take torch's tensors as they are, line by line, as tests/test_bindings.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import torch_calls
from helpers.cases import Case
from helpers.checks import same_results
from helpers.kernels import Kernel, native
from helpers.native_tensors import Tensor, backward_tensors, dtypes_of_torch, forward_tensors
from helpers.processes import output_of

__all__ = ["dtypes_of_torch"]  # used by every test

pytestmark = pytest.mark.skipif(isinstance(native(), ImportError), reason="the native module is not available")

CASES = [
    Case(T=5, B=3, I=4, H=9, seed=1),
    Case(T=20, B=16, I=33, H=65, reverse=True, seed=2),  # long enough for the GIL to be released
    Case(T=4, B=2, I=3, H=5, nonlinearity="relu", h_0=False, bias="none", seed=3),
    Case(T=0, B=2, I=3, H=5, seed=4),
    Case(T=3, B=0, I=3, H=5, seed=5),
    Case(T=3, B=2, I=0, H=5, seed=6),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_tensors_give_the_bits_of_arrays(dtype: str, case: Case) -> None:
    """forward_tensors and backward_tensors: h_n and d_h_0 have torch's leading 1; what is not needed is None."""
    p = Case(**{**vars(case), "dtype": dtype}).build()
    kernel = Kernel("cpp", native().active_isa())
    output, h_n = forward_tensors(p)
    same_results((output, h_n[0]), kernel.forward(p), "forward")
    want = list(kernel.backward(p, output))
    d_x, d_h_0, *d_weights = backward_tensors(p, output)
    same_results((d_x, d_h_0[0], *d_weights), want, "backward")
    assert backward_tensors(p, output, (False,) * 5) == (None,) * 5
    only_h_n = p.but(d_output=None)
    same_results((backward_tensors(only_h_n, output)[0],), (kernel.backward(only_h_n, output).d_x,), "d_h_n alone")
    if p.d_h_n is not None:
        only_output = p.but(d_h_n=None)
        same_results((backward_tensors(only_output, output)[0],), (kernel.backward(only_output, output).d_x,), "alone")


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.id)
def test_the_calls_for_compiled_code_give_the_bits_of_arrays(dtype: str, case: Case) -> None:
    """torch_calls: what comes from above may have any strides."""
    p = Case(**{**vars(case), "dtype": dtype}).build()
    p = p.but(d_output=p.d_output[::-1, :, ::-1], d_h_n=np.broadcast_to(p.d_h_n[:1], p.d_h_n.shape))
    kernel, calls = Kernel("cpp", native().active_isa()), torch_calls.of(native().torch_calls)
    assert calls.version == 2
    output, h_n = torch_calls.forward(calls, p)
    same_results((output, h_n), kernel.forward(p), "forward")
    same_results(torch_calls.backward(calls, p, output), list(kernel.backward(p, output)), "backward")


def test_the_calls_for_compiled_code_set_exceptions(dtype: str) -> None:
    calls = torch_calls.of(native().torch_calls)
    problem = torch_calls.Problem(1, 1 << 57, 1, 5, dtype == "float64", 0, 0, 1)
    asked = torch_calls.Backward(problem=problem, d_x=8, x=8, output=8, w_ih=8, w_hh=8, d_output=8)
    with pytest.raises(MemoryError):
        calls.backward(asked)
    code = f"""
from helpers import torch_calls
from fastrnn import _fastrnn_cpu
from helpers.cases import Case
try:
    torch_calls.forward(torch_calls.of(_fastrnn_cpu.torch_calls), Case(T=1, B=1, I=1, H=1, dtype={dtype!r}).build())
except RuntimeError as error:
    print(error)
"""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
    assert output_of(head + code, FASTRNN_ISA="v9") == "FASTRNN_ISA: expected one of v4, v3, v2, generic, got 'v9'"


@pytest.mark.parametrize("how", [{"dense": False}, {"negated": True}, {"at": 1 << 40 | 1}, {"at": 0}], ids=str)
def test_tensors_that_are_not_simply_memory_are_left_to_the_caller(dtype: str, how: dict[str, Any]) -> None:
    p = Case(T=3, B=2, I=3, H=5, dtype=dtype).build()
    output = np.zeros(p.output_shape, dtype)
    assert forward_tensors(p, w_ih=Tensor(p.w_ih, **how)) is None
    assert backward_tensors(p, output, w_ih=Tensor(p.w_ih, **how)) is None


def test_tensors_of_another_dtype_are_left_to_the_caller(dtype: str) -> None:
    p = Case(T=3, B=2, I=3, H=5, dtype=dtype).build()
    other = Tensor(p.w_hh, kind="float64" if dtype == "float32" else "float32")
    assert forward_tensors(p, w_hh=other) is None
    assert backward_tensors(p, np.zeros(p.output_shape, dtype), w_hh=other) is None


@pytest.mark.parametrize(
    ("name", "sizes", "taken"),
    [
        ("x", (3, 2, 4), False),
        ("x", (2, 2, 3), False),
        ("x", (1, 3, 2, 3), False),
        ("x", (2, 3), False),
        ("h_0", (1, 2, 5), True),
        ("h_0", (2, 5), True),
        ("h_0", (5,), False),
        ("w_hh", (5, 6), False),
        ("w_ih", (), False),
    ],
)
def test_what_backward_gets_has_the_sizes_of_the_problem(
    dtype: str, name: str, sizes: tuple[int, ...], taken: bool
) -> None:
    p = Case(T=3, B=2, I=3, H=5, dtype=dtype).build()
    given = {name: Tensor(getattr(p, name), sizes=sizes)}
    assert (backward_tensors(p, np.zeros(p.output_shape, dtype), **given) is not None) == taken


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"sizes": ZeroDivisionError()}, ZeroDivisionError),
        ({"sizes": [3, 2, 3]}, TypeError),
        ({"sizes": (3, 2, "3")}, TypeError),
    ],
    ids=str,
)
def test_what_the_shape_of_a_tensor_raises_comes_out(dtype: str, how: dict[str, Any], kind: type[Exception]) -> None:
    p = Case(T=3, B=2, I=3, H=5, dtype=dtype).build()
    with pytest.raises(kind):
        backward_tensors(p, np.zeros(p.output_shape, dtype), x=Tensor(p.x, **how))


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"dense": ZeroDivisionError()}, ZeroDivisionError),
        ({"kind": ZeroDivisionError()}, ZeroDivisionError),
        ({"negated": ZeroDivisionError()}, ZeroDivisionError),
        ({"at": ZeroDivisionError()}, ZeroDivisionError),
        ({"at": "7"}, TypeError),
        ({"at": -1}, OverflowError),
        ({"at": 0, "count": ZeroDivisionError()}, ZeroDivisionError),
        ({"at": 0, "count": "7"}, TypeError),
    ],
    ids=str,
)
def test_what_a_tensor_raises_comes_out(dtype: str, how: dict[str, Any], kind: type[Exception]) -> None:
    p = Case(T=3, B=2, I=3, H=5, dtype=dtype).build()
    with pytest.raises(kind):
        forward_tensors(p, x=Tensor(p.x, **how))
    with pytest.raises(kind):
        backward_tensors(p, np.zeros(p.output_shape, dtype), x=Tensor(p.x, **how))
