"""Checks of arguments: a few cheap comparisons where all is well; the explanation only after one of them failed.

Every message reads "<argument>: expected <what>, got <what>": TypeError for the wrong kind, dtype or device, ValueError
for the wrong rank, shape, value, layout or overlap.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np

from ._backends.options import NEEDS, NONLINEARITIES, Array, RnnOptions

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
BOOL = np.dtype(np.bool_)
ndarray = np.ndarray

_PLAIN = {(name, reverse): RnnOptions(name, reverse) for name in NONLINEARITIES for reverse in (False, True)}


# ---- Arrays


def floats(name: str, value: Any, dims: str, dtype: Any = None, home: Any = None) -> Array:
    """value as an aligned array of one dimension for each letter of dims, of dtype (None: float32 or float64), on the
    device of home, a CuPy array (None: the CPU)."""
    if (
        type(value) is ndarray
        and home is None
        and value.ndim == len(dims)
        and (value.dtype is dtype if dtype is not None else value.dtype in FLOATS)
        and value.flags.aligned
    ):
        return value
    array = _numpy(name, value) if home is None else on_device(name, value, home)
    _check_dtype(name, array, dtype)
    if array.ndim != len(dims):
        raise ValueError(f"{name}: expected {len(dims)} dimensions {_tuple(dims)}, got shape {array.shape}")
    _check_aligned(name, array)
    return array


def exact(
    name: str, value: Any, dtype: Any, shape: tuple[int, ...], dims: Sequence[str] = "", home: Any = None
) -> Array:
    """value as an aligned array of exactly this dtype and shape, on the device of home, a CuPy array (None: the CPU);
    dims names the axes in the message."""
    if (
        type(value) is ndarray
        and home is None
        and value.dtype is dtype
        and value.shape == shape
        and value.flags.aligned
    ):
        return value
    array = _numpy(name, value) if home is None else on_device(name, value, home)
    _check_dtype(name, array, dtype)
    if array.shape != shape:
        wanted = f"{_tuple(dims)} = {shape}" if dims else shape
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    _check_aligned(name, array)
    return array


def gpu(value: Any) -> Any:
    """value where it is a CuPy array, else None: the home of a call's arrays."""
    if type(value) is ndarray:
        return None
    cupy = sys.modules.get("cupy")
    return value if cupy is not None and isinstance(value, cupy.ndarray) else None


def device_name(value: Any) -> str:
    """An argument `device`."""
    if value not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu' or 'cuda', got {value!r}")
    return str(value)


def device(home: Any) -> str:
    """The device of a call's arrays, as the registry of backends knows it."""
    return "cpu" if home is None else "cuda"


def like(given: Any, array: Array | None) -> Any:
    """array as the kind of array that was given: a torch tensor on the same memory where that was one."""
    if array is None or isinstance(given, ndarray) or gpu(given) is not None:
        return array
    return sys.modules["torch"].from_numpy(array)


def _numpy(name: str, value: Any) -> Array:
    if type(value) is ndarray:
        return value
    if type(value) is np.memmap:
        return value.view(ndarray)
    if not any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(value).__mro__):
        raise TypeError(f"{name}: expected numpy.ndarray or a torch.Tensor on the CPU, got {_kind(value)}")
    if value.device.type != "cpu":
        raise TypeError(f"{name}: expected a tensor on device cpu, got one on {value.device}")
    if value.requires_grad:
        raise TypeError(
            f"{name}: expected a tensor that does not require grad, got one that does; use fastrnn.torch, which "
            f"differentiates, or pass {name}.detach()"
        )
    try:
        return np.asarray(value.numpy())
    except (TypeError, RuntimeError) as error:  # bfloat16, sparse, a tensor without memory of its own
        raise TypeError(f"{name}: expected a tensor that NumPy can share, got {value.dtype}: {error}") from None


def on_device(name: str, value: Any, home: Any) -> Array:
    """value as a CuPy array on the device of home."""
    if gpu(value) is None:
        raise TypeError(f"{name}: expected cupy.ndarray on {place(home)}, got {_kind(value)}")
    if value.device != home.device:
        raise TypeError(f"{name}: expected an array on {place(home)}, got one on {place(value)}")
    return cast(Array, value)


def _fetched(value: Any) -> Any:
    """Integers that the host has to know: a CuPy array is waited for."""
    return value if gpu(value) is None else value.get()


def place(home: Any) -> str:
    """The device of home, as errors name it."""
    return "cpu" if home is None else f"cuda:{home.device.id}"


def _check_dtype(name: str, array: Array, dtype: Any) -> None:
    wanted = FLOATS if dtype is None else (dtype,)
    if array.dtype in wanted:
        return
    if not array.dtype.isnative:
        raise TypeError(f"{name}: expected native byte order, got dtype {array.dtype.str}")
    raise TypeError(f"{name}: expected dtype {' or '.join(map(str, wanted))}, got {array.dtype}")


def _check_aligned(name: str, array: Array) -> None:
    if not getattr(array.flags, "aligned", True):  # CuPy's are
        raise ValueError(
            f"{name}: expected data aligned to {array.itemsize} bytes, got misaligned data; pass {name}.copy()"
        )


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _tuple(dims: Sequence[str]) -> str:
    return f"({', '.join(dims)})" if len(dims) > 1 else f"({dims},)"


# ---- The problem: sizes, options, what is needed


def problem(
    x: Any, h_0: Any, w_ih: Any, w_hh: Any, batch_sizes: Any
) -> tuple[Array, Array | None, Array | None, Array, Array | None, int]:
    """What rnn_forward and rnn_backward share, as arrays that fit together, and B; w_ih=None: x is projected."""
    home = gpu(x)
    x = floats("x", x, "TBI" if batch_sizes is None else "NI", home=home)
    dtype, shape = x.dtype, x.shape
    if batch_sizes is None:
        B = shape[1]
    else:
        batch_sizes = packed_sizes(batch_sizes if home is None else _fetched(batch_sizes), x)
        B = int(batch_sizes[0]) if len(batch_sizes) else 0
    if w_ih is None:
        if home is not None:
            raise ValueError("w_ih: expected an array for CuPy arrays, whose backends project x themselves, got None")
        H = len(floats("w_hh", w_hh, "HH", dtype))
        if H == 0:
            raise ValueError(f"w_hh: expected a hidden size H of at least 1, got shape {w_hh.shape}")
        if shape[-1] != H:
            raise ValueError(f"x: expected a last axis of H = {H}, as w_hh has, where w_ih is None, got shape {shape}")
    else:
        w_ih = floats("w_ih", w_ih, "HI", dtype, home)
        H, I = w_ih.shape
        if shape[-1] != I:
            raise ValueError(f"w_ih: expected shape (H, I) = ({H}, {shape[-1]}) for x {shape}, got {w_ih.shape}")
        if H == 0:
            raise ValueError(f"w_ih: expected a hidden size H of at least 1, got shape {w_ih.shape}")
    w_hh = exact("w_hh", w_hh, dtype, (H, H), "HH", home)
    if h_0 is not None:
        h_0 = exact("h_0", h_0, dtype, (B, H), "BH", home)
    return x, h_0, w_ih, w_hh, batch_sizes, B


def packed_sizes(value: Any, x: Array) -> Array:
    """batch_sizes as an int64 copy: positive, never rising, N in sum, as PackedSequence has them."""
    sizes = _integers("batch_sizes", value)
    if sizes.size and int(sizes.min()) < 1:
        raise ValueError(f"batch_sizes: expected positive values, got {sizes.min()}")
    if np.any(sizes[1:] > sizes[:-1]):
        at = int(np.flatnonzero(sizes[1:] > sizes[:-1])[0])
        raise ValueError(f"batch_sizes: expected values that never rise, got {sizes[at]} before {sizes[at + 1]}")
    total = sum(sizes.tolist())  # Python's integers do not overflow
    if total != x.shape[0]:
        raise ValueError(f"batch_sizes: expected the sum N = {x.shape[0]}, got {total}")
    return sizes


def sequence_lengths(value: Any, T: int, B: int) -> Array:
    """lengths as an int64 copy, each in 0..T."""
    lengths = _integers("lengths", value)
    if lengths.shape != (B,):
        raise ValueError(f"lengths: expected shape (B,) = ({B},), got {lengths.shape}")
    wrong = np.flatnonzero((lengths < 0) | (lengths > T))
    if wrong.size:
        raise ValueError(f"lengths: expected values in 0..T = 0..{T}, got {lengths[wrong[0]]} at index {wrong[0]}")
    return lengths


def _integers(name: str, value: Any) -> Array:
    array = _numpy(name, value)
    if array.dtype not in (np.int32, np.int64):
        raise TypeError(f"{name}: expected dtype int32 or int64, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name}: expected 1 dimension, got shape {array.shape}")
    return array.astype(np.int64)  # a copy: nobody can change it between this check and its use


def options(
    x: Array,
    B: int,
    H: int,
    nonlinearity: Any,
    reverse: Any,
    lengths: Any = None,
    batch_sizes: Array | None = None,
    reset: Any = None,
    recurrent_mask: Any = None,
    keep_mask: Any = None,
    alpha: Any = None,
) -> RnnOptions:
    """The options of one call; batch_sizes is checked already."""
    if type(reverse) is not bool:
        raise TypeError(f"reverse: expected bool, got {_kind(reverse)}")
    check_nonlinearity(nonlinearity)
    if lengths is batch_sizes is reset is recurrent_mask is keep_mask is alpha is None:
        return _PLAIN[nonlinearity, reverse]
    lead, dims = (x.shape[:1], "N") if batch_sizes is not None else (x.shape[:2], "TB")
    if lengths is not None:
        if batch_sizes is not None:
            raise ValueError(f"lengths: expected None where batch_sizes is given, got {_kind(lengths)}")
        lengths = sequence_lengths(lengths if gpu(x) is None else _fetched(lengths), x.shape[0], B)
    if reset is not None:
        reset = exact("reset", reset, BOOL, lead, dims, gpu(x))
    if recurrent_mask is not None:
        recurrent_mask = exact("recurrent_mask", recurrent_mask, x.dtype, (B, H), "BH", gpu(x))
    if keep_mask is not None:
        keep_mask = exact("keep_mask", keep_mask, BOOL, (*lead, H), dims + "H", gpu(x))
    if alpha is not None:
        if gpu(x) is not None:
            raise ValueError("alpha: expected None for CuPy arrays, whose backends have no leaky units, got values")
        alpha = leak(alpha, x.dtype, H)
    return RnnOptions(nonlinearity, reverse, lengths, batch_sizes, reset, recurrent_mask, keep_mask, alpha)


def leak(value: Any, dtype: Any, H: int) -> Array:
    """alpha, a number or an array (H), as a finite array (H)."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        with np.errstate(over="ignore"):
            try:
                number = dtype.type(value)
            except OverflowError:  # an int beyond every float
                number = dtype.type(np.inf if value > 0 else -np.inf)
        array = np.broadcast_to(number, (H,))
    else:
        array = exact("alpha", value, dtype, (H,), "H")
    if not np.isfinite(array).all():
        raise ValueError(f"alpha: expected finite values, got {array[~np.isfinite(array)][0]}")
    return array


def proper_leak(value: Any, dtype: Any, H: int) -> Array:
    """alpha as a layer takes it: a writable copy, each value in (0, 1]."""
    array = leak(value, dtype, H).copy()
    wrong = array[(array <= 0) | (array > 1)]
    if wrong.size:
        raise ValueError(f"alpha: expected values in (0, 1], got {wrong[0]}")
    return array


def check_nonlinearity(value: Any) -> None:
    if type(value) is not str:
        raise TypeError(f"nonlinearity: expected str, got {_kind(value)}")
    if value not in NONLINEARITIES:
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {value!r}")


def check_needs(needs: Any, leaky: bool) -> tuple[str, ...]:
    if needs is NEEDS:  # the default
        return tuple(NEEDS)
    if isinstance(needs, str) or not isinstance(needs, Collection):
        raise TypeError(f"needs: expected a tuple of names, got {_kind(needs)}")
    known = (*NEEDS, "alpha") if leaky else NEEDS
    for name in needs:
        if name not in known:
            raise ValueError(f"needs: expected names among {', '.join(map(repr, known))}, got {name!r}")
    return tuple(needs)


def writable(out: Any, dtype: Any, shape: tuple[int, ...], dims: str, inputs: dict[str, Array | None]) -> Array:
    """out as an array that a kernel may write while it reads the inputs."""
    home = gpu(inputs["x"])
    array = exact("out", out, dtype, shape, dims, home)
    if home is None and not array.flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")
    if array.size == 0:
        return array
    if shape[-1] > 1 and array.strides[-1] != array.itemsize:
        raise ValueError(f"out: expected a contiguous last axis, got a stride of {array.strides[-1]} bytes")
    if _overlaps_itself(array):
        raise ValueError(f"out: expected elements that do not share memory, got strides {array.strides}")
    may_share = np.may_share_memory if home is None else sys.modules["cupy"].may_share_memory
    for name, other in inputs.items():
        if other is not None and may_share(array, other) and _shares_memory(array, other):
            raise ValueError(f"out: expected memory of its own, got memory that overlaps {name}")
    return array


def _overlaps_itself(array: Array) -> bool:
    """True unless each axis steps over all that the axes of smaller strides span; array is not empty."""
    span = array.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)):
        if size > 1:
            if stride < span:
                return True
            span += stride * (size - 1)
    return False


def _shares_memory(a: Array, b: Array) -> bool:
    if gpu(a) is not None:
        return bool(sys.modules["cupy"].shares_memory(a, b))
    try:
        return np.shares_memory(a, b, max_work=cast(Any, 1_000_000))
    except RuntimeError:  # numpy's TooHardError: in doubt they do
        return True


# ---- Scalars of the layers


def integer(name: str, value: Any, at_least: int, at_most: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name}: expected int, got {_kind(value)}")
    number = operator.index(value)
    if number < at_least:
        raise ValueError(f"{name}: expected at least {at_least}, got {number}")
    if at_most is not None and number > at_most:
        raise ValueError(f"{name}: expected at most {at_most}, got {number}")
    return number


def boolean(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError(f"{name}: expected bool, got {_kind(value)}")
    return value


def probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number in [0, 1], got {_kind(value)}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return float(value)


def float_dtype(name: str, value: Any) -> np.dtype[Any]:
    if value is not None:  # which NumPy would take for float64
        with suppress(TypeError):
            dtype = np.dtype(value)
            if dtype in FLOATS:
                return FLOATS[FLOATS.index(dtype)]
            value = dtype
    raise TypeError(f"{name}: expected float32 or float64, got {value}")
