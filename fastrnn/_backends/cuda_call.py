"""csrc/cuda/call.cuh's Call as a table of 64-bit integers, filled from arrays of NumPy, CuPy or torch.

The kernels compute the recurrence alone: xp = w_ih x + b_ih + b_hh comes from the caller's matrix product, and d_z goes
into the caller's matrix products. Nothing is copied here; what is not given is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FIELDS = (
    "T", "B", "H", "w", "w_row", "w_unit", "xp", "xp_step", "xp_row", "output", "output_step", "output_row", "h_0",
    "h_0_row", "h_0_unit", "h_n", "h_n_row", "d_output", "d_output_step", "d_output_row", "d_output_unit", "d_h_n",
    "d_h_n_row", "d_h_n_unit", "d_z", "d_z_step", "d_z_row", "d_h_0", "d_h_0_row", "lengths", "packed_start", "reset",
    "recurrent_mask", "keep_mask", "workspace", "dtype", "relu", "reverse", "cluster", "units", "chunks",
)  # fmt: skip
STORAGE = {"float64": 0, "float32": 1, "float16": 2, "bfloat16": 3}

Table = np.ndarray[Any, np.dtype[np.int64]]


def address(array: Any) -> int:
    """Where the data of an array of NumPy, CuPy or torch begins."""
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    interface = array.__array_interface__ if isinstance(array, np.ndarray) else array.__cuda_array_interface__
    return int(interface["data"][0])


def strides(array: Any) -> tuple[int, ...]:
    """In elements."""
    if hasattr(array, "data_ptr"):
        return tuple(array.stride())
    return tuple(stride // array.itemsize for stride in array.strides)


def _contiguous(array: Any) -> bool:
    if hasattr(array, "data_ptr"):
        return bool(array.is_contiguous())
    return bool(array.flags.c_contiguous)


class Call:
    """One call; table holds the fields in FIELDS' order, arrays the arrays they point to."""

    def __init__(self, T: int, B: int, H: int, dtype: str, *, relu: bool, reverse: bool) -> None:
        self.table: Table = np.zeros(len(FIELDS), np.int64)
        self.arrays: list[Any] = []
        self.set(T=T, B=B, H=H, dtype=STORAGE[dtype], relu=relu, reverse=reverse)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self.table[FIELDS.index(name)] = value

    def get(self, name: str) -> int:
        return int(self.table[FIELDS.index(name)])

    def matrix(self, name: str, array: Any, *, written: bool = False) -> None:
        """(B, H), or w (H, H)."""
        if array is None:
            return
        self.arrays.append(array)
        row, unit = strides(array)
        if written:
            _expect_unit(name, unit, array)
            self.set(**{name: address(array), f"{name}_row": row})
        else:
            self.set(**{name: address(array), f"{name}_row": row, f"{name}_unit": unit})

    def sequence(self, name: str, array: Any, *, any_unit: bool = False) -> None:
        """(T, B, H), or packed (N, H)."""
        if array is None:
            return
        self.arrays.append(array)
        *_, row, unit = steps = strides(array)
        values = {name: address(array), f"{name}_step": steps[0], f"{name}_row": row}
        if any_unit:
            values[f"{name}_unit"] = unit
        else:
            _expect_unit(name, unit, array)
        self.set(**values)

    def options(self, lengths: Any, packed_start: Any, reset: Any, recurrent_mask: Any, keep_mask: Any) -> None:
        """Contiguous arrays on the kernels' device; lengths and packed_start of int64, masks of one byte each."""
        names = ("lengths", "packed_start", "reset", "recurrent_mask", "keep_mask")
        given = (lengths, packed_start, reset, recurrent_mask, keep_mask)
        for name, array in zip(names, given, strict=True):
            if array is None:
                continue
            if not _contiguous(array):
                raise ValueError(f"{name}: expected a C-contiguous array, got strides {strides(array)}")
            self.arrays.append(array)
            self.set(**{name: address(array)})


def _expect_unit(name: str, unit: int, array: Any) -> None:
    if unit != 1 and array.shape[-1] > 1 and 0 not in array.shape:
        raise ValueError(f"{name}: expected a contiguous last axis, got a stride of {unit} elements")


def forward_call(xp: Any, h_0: Any, w_hh: Any, output: Any, h_n: Any, dtype: str, **options: Any) -> Call:
    """The kernels fill output, which may be xp, and h_n. options: T (needed where rows are packed), relu, reverse,
    lengths, packed_start, reset, recurrent_mask, keep_mask."""
    call = _call(output, h_n, dtype, options)
    call.matrix("w", w_hh)
    call.sequence("xp", xp)
    call.sequence("output", output)
    call.matrix("h_0", h_0)
    call.matrix("h_n", h_n, written=True)
    return call


def backward_call(
    d_output: Any, d_h_n: Any, output: Any, w_hh_t: Any, d_z: Any, d_h_0: Any, dtype: str, **options: Any
) -> Call:
    """The kernels fill d_z and d_h_0; w_hh_t is the transpose of w_hh, a view or, which "step" reads faster, a copy."""
    call = _call(output, d_h_0, dtype, options)
    call.matrix("w", w_hh_t)
    call.sequence("d_output", d_output, any_unit=True)
    call.matrix("d_h_n", d_h_n)
    call.sequence("output", output)
    call.sequence("d_z", d_z)
    call.matrix("d_h_0", d_h_0, written=True)
    return call


def _call(output: Any, states: Any, dtype: str, options: dict[str, Any]) -> Call:
    T = options.pop("T", output.shape[0])
    B, H = states.shape
    relu, reverse = options.pop("relu", False), options.pop("reverse", False)
    call = Call(T, B, H, dtype, relu=relu, reverse=reverse)
    names = ("lengths", "packed_start", "reset", "recurrent_mask", "keep_mask")
    call.options(*[options.pop(name, None) for name in names])
    if options:
        raise TypeError(f"unknown options: {', '.join(options)}")
    return call
