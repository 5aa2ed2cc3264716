"""A kernel of csrc/cuda alone, on the host or on a GPU: the recurrence of a problem whose w_ih is the identity and that
has no bias, in any storage type, and the judge of its results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from fastrnn._backends.cuda_call import Call, backward_call, forward_call

from . import bounds
from .cases import Case, Problem
from .compare import assert_same_bits, assert_within

Array = np.ndarray[Any, Any]
ARRAYS = ("x", "h_0", "w_hh", "recurrent_mask", "d_output", "d_h_n")

# On tensor cores: the relative error of a product of two numbers rounded to 11 bits; or of two split in two of 11 bits
# each, without the product of the second ones
PRODUCT_ERROR = {"tf32": 2.0**-10 + 2.0**-22, "tf32x3": 2.0**-21}
STORAGE = {"f16": "float16", "bf16": "bfloat16", "tf32": "float32", "tf32x3": "float32"}


def as_recurrence(p: Problem) -> Problem:
    """The problem whose input product is its x: w_ih the identity, no bias; x (T, B, I) with I = H."""
    return p.but(w_ih=np.eye(p.H, dtype=p.x.dtype), b_ih=None, b_hh=None)


def recurrence(case: Case) -> Problem:
    """The same of a case, whatever its inputs are."""
    return as_recurrence(replace(case, I=case.H, bias="none", layout="contiguous", alpha="none").build())


def empty_like_filled(a: Array) -> Array:
    """Contiguous, all bits 1: NaN in every float type."""
    out = np.empty(a.shape, a.dtype)
    out.view(np.uint8).reshape(-1)[...] = 255
    return out


def narrow(a: Array, storage: str) -> Array:
    """float32 values as 16-bit patterns, rounded to nearest even."""
    a = np.ascontiguousarray(a, np.float32)
    if storage == "float16":
        with np.errstate(over="ignore"):
            return a.astype(np.float16).view(np.uint16)
    u = a.view(np.uint32)
    nearest = ((u.astype(np.uint64) + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(a), (u >> 16) | 0x40, nearest).astype(np.uint16)


def widen(a: Array, storage: str) -> Array:
    """16-bit patterns as float32; float32 as it is."""
    if storage == "float32":
        return a
    if storage == "float16":
        return a.view(np.float16).astype(np.float32)
    return (a.astype(np.uint32) << 16).view(np.float32)


def _options(p: Problem) -> dict[str, Any]:
    options = p.options()
    options["relu"] = options.pop("nonlinearity") == "relu"
    assert options.pop("alpha") is None  # the kernels have no leaky units
    sizes = options.pop("batch_sizes")
    if sizes is not None:
        options.update(T=len(sizes), packed_start=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
    for name in ("reset", "recurrent_mask", "keep_mask"):
        if options[name] is not None:
            options[name] = np.ascontiguousarray(options[name])
    return options


class RecurrenceKernel(ABC):
    """Arrays go to xp and come back; storage names the type of 16-bit patterns."""

    xp: Any = np

    @abstractmethod
    def run(self, call: Call, backward: bool) -> None:
        """Runs it, workspace and all."""

    def _given(self, a: Any) -> Any:
        return a if a is None or self.xp is np else self.xp.asarray(a)

    def _back(self, a: Any) -> Array:
        return a if self.xp is np else a.get()

    def _all_options(self, p: Problem) -> dict[str, Any]:
        return {name: self._given(a) if isinstance(a, np.ndarray) else a for name, a in _options(p).items()}

    def forward(self, p: Problem, *, in_place: bool = False, storage: str | None = None) -> tuple[Array, Array]:
        xp = self._given(p.x.copy() if in_place else p.x)
        output = xp if in_place else self._given(empty_like_filled(p.x))
        h_n = self._given(empty_like_filled(np.empty((p.B, p.H), p.x.dtype)))
        h_0, w_hh = self._given(p.h_0), self._given(p.w_hh)
        options = self._all_options(p)
        self.run(forward_call(xp, h_0, w_hh, output, h_n, storage or str(p.x.dtype), **options), False)
        return self._back(output), self._back(h_n)

    def backward_z(self, p: Problem, output: Array, *, storage: str | None = None) -> tuple[Array, Array]:
        """d_z, d_h_0."""
        d_z = self._given(empty_like_filled(output))
        d_h_0 = self._given(empty_like_filled(np.empty((p.B, p.H), output.dtype)))
        d_output, d_h_n, tape = self._given(p.d_output), self._given(p.d_h_n), self._given(output)
        w_hh_t, options = self._given(p.w_hh.T), self._all_options(p)
        call = backward_call(d_output, d_h_n, tape, w_hh_t, d_z, d_h_0, storage or str(output.dtype), **options)
        self.run(call, True)
        return self._back(d_z), self._back(d_h_0)


class Run:
    """Forward and backward of a problem in float32, rounded to `storage` before; name: the kernel's."""

    def __init__(self, kernel: RecurrenceKernel, name: str, storage: str, p: Problem) -> None:
        self.name, self.storage, self.p, self.packed = name, storage, p, p
        if storage != "float32":
            given = {field: getattr(p, field) for field in ARRAYS if getattr(p, field) is not None}
            self.packed = p.but(**{f: narrow(a, storage) for f, a in given.items()})
            self.p = p.but(**{f: self.wide(getattr(self.packed, f)) for f in given})
        self.tape, self.h_n = kernel.forward(self.packed, storage=storage)
        self.d_z, self.d_h_0 = kernel.backward_z(self.packed, self.tape, storage=storage)

    def wide(self, a: Array) -> Array:
        return widen(a, self.storage)

    def bits(self) -> tuple[Array, ...]:
        """output, h_n, d_z, d_h_0."""
        return self.tape, self.h_n, self.d_z, self.d_h_0

    def product_errors(self) -> tuple[float, float]:
        """Forward, backward. Tensor cores read 16-bit states: h times its mask is rounded, d_z is as it is stored; else
        d_z is carried in float32, and stored rounded."""
        tensor_cores, rounded = self.name.startswith("mma"), bounds.UNIT_ROUNDOFF.get(self.storage)
        if rounded is None:
            error = PRODUCT_ERROR.get(self.name.rpartition("_")[2], 0.0)
            return error, error
        masked = tensor_cores and self.p.recurrent_mask is not None
        return rounded if masked else 0.0, 0.0 if tensor_cores else rounded

    def check(self, what: str) -> None:
        """Every element, each step judged from the kernel's own previous one."""
        padded = self.p.padded()
        output, d_z = (bounds.as_padded(self.wide(a), self.p) for a in (self.tape, self.d_z))
        assert output is not None
        assert d_z is not None
        forward, backward = self.product_errors()
        gradients = bounds.judge_backward(padded, output, d_z, product_error=backward)
        judged = {
            "output": (output, bounds.judge_forward(padded, output, product_error=forward)),
            "d_z": (d_z, gradients["d_z"]),
            "d_h_0": (self.wide(self.d_h_0), gradients["d_h_0"]),
        }
        for field, (got, judgement) in judged.items():
            if self.storage != "float32":
                judgement = bounds.stored(judgement, self.storage)
            assert_within(got, judgement.reference, judgement.bound, f"{self.name}, {what}: {field}")
        assert_same_bits(self.wide(self.h_n), bounds.last_states(padded, output), f"{self.name}, {what}: h_n")
