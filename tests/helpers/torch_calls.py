"""csrc/torch/rnn_calls.h for ctypes: what the native module offers to the compiled node of fastrnn.torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_int, c_size_t, c_ssize_t, c_void_p, py_object
from typing import Any

import numpy as np

NAME = b"fastrnn._fastrnn_cpu.torch_calls"


class Problem(Structure):
    _fields_ = [(n, c_ssize_t) for n in "TBIH"] + [(n, c_int) for n in ("wide", "relu", "reverse", "threads")]


class Forward(Structure):
    _fields_ = [("problem", Problem)] + [
        (n, c_void_p) for n in ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "output", "h_n")
    ]


class Backward(Structure):
    _fields_ = [
        ("problem", Problem),
        ("d_output", c_void_p),
        ("d_output_strides", c_ssize_t * 3),
        ("d_h_n", c_void_p),
        ("d_h_n_strides", c_ssize_t * 2),
        *[(n, c_void_p) for n in ("output", "x", "h_0", "w_ih", "w_hh", "d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")],
    ]


FORWARD = ctypes.PYFUNCTYPE(c_int, POINTER(Forward))  # with the GIL, which the functions may release
BACKWARD = ctypes.PYFUNCTYPE(c_int, POINTER(Backward))
TAKE = ctypes.PYFUNCTYPE(c_void_p, c_size_t, c_int)
GIVE = ctypes.CFUNCTYPE(None, c_void_p)


class Calls(Structure):
    _fields_ = [("version", c_int), ("forward", FORWARD), ("backward", BACKWARD), ("take", TAKE), ("give", GIVE)]


def of(capsule: Any) -> Calls:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = c_void_p, [py_object, ctypes.c_char_p]
    return Calls.from_address(pointer(capsule, NAME))


def capsule(calls: Calls) -> Any:
    """For as long as calls lives."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = py_object, [c_void_p, ctypes.c_char_p, c_void_p]
    return new(ctypes.addressof(calls), NAME, None)


def watched(real: Calls, see: Callable[[Any], None]) -> Calls:
    """Calls that show each problem to see, and go on to the real ones."""

    def through(call: Any) -> Any:
        def run(p: Any) -> int:
            see(p.contents)
            result: int = call(p)
            return result

        return run

    return Calls(real.version, FORWARD(through(real.forward)), BACKWARD(through(real.backward)), real.take, real.give)


def _problem(p: Any) -> Problem:
    wide, relu = p.x.dtype.itemsize == 8, p.nonlinearity == "relu"
    return Problem(*p.x.shape, p.H, wide, relu, p.reverse, 2)


def _addresses(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: a if a is None else a.ctypes.data for name, a in arrays.items()}


def forward(calls: Calls, p: Any) -> tuple[Any, Any]:
    """output and h_n of a helpers.cases.Problem with dense arrays."""
    made = {"output": np.empty(p.output_shape, p.x.dtype), "h_n": np.empty((p.B, p.H), p.x.dtype)}
    given = {name: getattr(p, name) for name in ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh")}
    calls.forward(ctypes.byref(Forward(problem=_problem(p), **_addresses({**given, **made}))))
    return made["output"], made["h_n"]


def backward(calls: Calls, p: Any, output: Any) -> list[Any]:
    """d_x, d_h_0, d_w_ih, d_w_hh and d_b; d_output and d_h_n may have any strides."""
    like = {"d_x": p.x.shape, "d_h_0": (p.B, p.H), "d_w_ih": p.w_ih.shape, "d_w_hh": p.w_hh.shape, "d_b": (p.H,)}
    made = {name: np.empty(shape, p.x.dtype) for name, shape in like.items()}
    given = {name: getattr(p, name) for name in ("d_output", "d_h_n", "x", "h_0", "w_ih", "w_hh")}
    asked = Backward(problem=_problem(p), **_addresses({**given, "output": output, **made}))
    for name, strides in (("d_output", asked.d_output_strides), ("d_h_n", asked.d_h_n_strides)):
        if given[name] is not None:
            strides[:] = [stride // p.x.itemsize for stride in given[name].strides]
    calls.backward(ctypes.byref(asked))
    return list(made.values())
