"""Promise 6 at the last gate: the native functions, called past the validation with whatever hypothesis finds, raise a
Python exception or compute; they never crash. A crash ends the run with faulthandler's traceback.
"""

import sys
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.kernels import native

pytestmark = pytest.mark.skipif(isinstance(native(), ImportError), reason="the native module is not available")
REFUSALS = (TypeError, ValueError, MemoryError, OverflowError)

T, B, I, H = 3, 4, 5, 6
FORWARD = {
    "x": (T, B, I), "h_0": (B, H), "w_ih": (H, I), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,), "output": (T, B, H),
    "h_n": (B, H),
}  # fmt: skip
BACKWARD = {
    "d_output": (T, B, H), "d_h_n": (B, H), "output": (T, B, H), "x": (T, B, I), "h_0": (B, H), "w_ih": (H, I),
    "w_hh": (H, H), "d_x": (T, B, I), "d_h_0": (B, H), "d_w_ih": (H, I), "d_w_hh": (H, H), "d_b": (H,),
}  # fmt: skip
OPTIONS = (
    "relu", "reverse", "lengths", "batch_sizes", "reset", "recurrent_mask", "keep_mask", "isa", "threads", "tuning",
)  # fmt: skip

sizes = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7])
integers = st.one_of(st.integers(-3, 9), st.sampled_from([2**31 - 1, 2**31, -(2**31), 2**63 - 1, -(2**63), 2**64]))
junk = st.one_of(
    st.none(), st.booleans(), integers, st.floats(), st.text(max_size=4), st.binary(max_size=4),
    st.lists(integers, max_size=4), st.builds(object), st.builds(dict),
    st.builds(lambda: native().PackedWeights.__new__(native().PackedWeights)),
)  # fmt: skip


@st.composite
def arrays(draw: Any, shape: tuple[int, ...] | None = None) -> Any:
    """An array as nobody should hand over: of some shape, dtype, byte order, alignment, strides and class."""
    if shape is None or draw(st.integers(0, 3)) == 0:
        shape = tuple(draw(st.lists(sizes, max_size=4)))
    dtype = draw(
        st.sampled_from(["f4", "f4", "f4", "f8", ">f4", "f2", "c8", "i8", "i4", "?", "O", "M8[s]", "V4", "U1"])
    )
    makes = ["plain", "misaligned", "zero", "negative", "fortran", "odd", "readonly", "class", "far"]
    make = draw(st.sampled_from(makes))
    if make == "far" and 0 in shape[1:]:  # no element, but an extent that no memory holds
        return np.broadcast_to(np.zeros((1,) * len(shape), dtype), (2**40, *shape[1:]))
    if make == "misaligned" and dtype != "O":
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.zeros(count + 1, np.uint8)[1:].view(dtype).reshape(shape)
    a = np.zeros(shape, dtype)
    if make == "zero":
        return np.lib.stride_tricks.as_strided(a, shape, [0] * len(shape)) if a.size else a
    if make == "negative":
        return a[(slice(None, None, -1),) * a.ndim]
    if make == "fortran":
        return np.asfortranarray(a)
    if make == "odd" and dtype == "f4" and a.ndim:
        records = np.zeros(shape, np.dtype([("pad", "i1"), ("value", "f4")]))
        return records["value"]
    if make == "readonly":
        a.setflags(write=False)
    if make == "class":
        return draw(st.sampled_from([np.ma.masked_array, np.ndarray.tolist, memoryview]))(a) if dtype == "f4" else a
    return a


def option(name: str) -> Any:
    if name in ("lengths", "batch_sizes"):
        values = st.lists(st.one_of(st.integers(-2, 5), integers.filter(lambda n: -(2**63) <= n < 2**63)), max_size=5)
        return st.one_of(values.map(lambda v: np.array(v, np.int64)), arrays(), junk)
    if name == "tuning":
        keys = st.sampled_from(["hoist", "tile_rows", "row_block", "chunk_steps", "wrong"])
        return st.one_of(st.dictionaries(keys, integers, max_size=4), junk)
    if name == "isa":
        return st.one_of(st.sampled_from(["v2", "v3", "v4", "generic", "", "v3\0", "\ud800"]), junk)
    if name in ("reset", "recurrent_mask", "keep_mask"):
        shape = {"reset": (T, B), "recurrent_mask": (B, H), "keep_mask": (T, B, H)}[name]
        return st.one_of(st.just(np.ones(shape, "f4" if name == "recurrent_mask" else "?")), arrays(shape), junk)
    return junk


@st.composite
def hostile(draw: Any, shapes: dict[str, tuple[int, ...]], options: tuple[str, ...]) -> Any:
    """A right call of which up to three arguments are replaced, and any options added."""
    call: Any = {name: np.full(shape, 0.25, np.float32) for name, shape in shapes.items()}
    if draw(st.booleans()):  # packed rows
        call["batch_sizes"] = np.array([4, 3, 2], np.int64)
        for name, shape in shapes.items():
            if len(shape) == 3:
                call[name] = np.full((9, shape[-1]), 0.25, np.float32)
    for name in draw(st.lists(st.sampled_from(list(shapes)), max_size=3)):
        call[name] = draw(st.one_of(arrays(call[name].shape if isinstance(call[name], np.ndarray) else None), junk))
    for name in draw(st.lists(st.sampled_from(options), max_size=3)):
        call[name] = draw(option(name))
    return {name: call[name] for name in shapes}, {k: v for k, v in call.items() if k not in shapes}


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    kept = [a for a in arguments if isinstance(a, np.ndarray)]
    before = [sys.getrefcount(a) for a in kept]
    try:
        function(*arguments, **options)
    except REFUSALS as error:
        assert str(error), "a refusal says why"  # noqa: PT017
    except RuntimeError as error:
        assert str(error).startswith("isa: "), "only an instruction set that cannot run here is one"  # noqa: PT017
    assert [sys.getrefcount(a) for a in kept] == before


@hypothesis.given(hostile(FORWARD, (*OPTIONS, "packed")))
@hypothesis.settings(max_examples=1_000)
def test_forward_raises_or_computes(call: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attempt(native().rnn_forward, *call[0].values(), **call[1])


@hypothesis.given(hostile(BACKWARD, OPTIONS))
@hypothesis.settings(max_examples=1_000)
def test_backward_raises_or_computes(call: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attempt(native().rnn_backward, *call[0].values(), **call[1])


@hypothesis.given(st.one_of(arrays((H, I)), junk), st.one_of(arrays((H, H)), junk), option("isa"))
@hypothesis.settings(max_examples=500)
def test_the_smaller_functions_raise_or_compute(a: Any, b: Any, isa: Any) -> None:
    attempt(native().pack_weights, a, b, isa=isa)
    attempt(native().tanh, a, b, isa=isa)
    if not (isinstance(b, int | float) and 0 <= b <= 60):
        attempt(native().fma_peak, "float32", a, b, isa=isa)


def test_weights_that_were_never_packed_are_refused() -> None:
    """PackedWeights.__new__ alone leaves the object without its C++ part."""
    module = native()
    arguments = [np.zeros(shape, np.float32) for shape in FORWARD.values()]
    with pytest.raises(ValueError, match="packed: expected what pack_weights returns"):
        module.rnn_forward(*arguments, packed=module.PackedWeights.__new__(module.PackedWeights))


def test_the_native_module_refuses_misaligned_data() -> None:
    arguments = [np.zeros(shape, np.float32) for shape in FORWARD.values()]
    arguments[3] = np.zeros(H * H * 4 + 1, np.uint8)[1:].view(np.float32).reshape(H, H)
    with pytest.raises(ValueError, match="w_hh: expected aligned data"):
        native().rnn_forward(*arguments)


@pytest.mark.parametrize("sizes", [[-1, 5], [0, 4], [2**62, 2**62, 4], [2, 3], [-(2**63), 4]], ids=str)
def test_the_native_module_refuses_batch_sizes_that_are_none(sizes: list[int]) -> None:
    arguments = [np.zeros(shape if len(shape) < 3 else (4, shape[-1]), np.float32) for shape in FORWARD.values()]
    with pytest.raises(ValueError, match="batch_sizes: expected"):
        native().rnn_forward(*arguments, batch_sizes=np.array(sizes, np.int64))
