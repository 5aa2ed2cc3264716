"""Promise 6 in the binding, line by line: what the native module takes and refuses, called directly, for both dtypes.
With the other tests that .ci/run names in its stage "coverage", every line and branch of csrc/bindings runs.
"""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import torch_calls
from helpers.cases import Case
from helpers.checks import same_results
from helpers.compare import assert_same_bits
from helpers.kernels import Kernel, native
from helpers.native_tensors import backward_tensors, dtypes_of_torch, forward_tensors

import fastrnn

__all__ = ["dtypes_of_torch"]  # used by every test

pytestmark = pytest.mark.skipif(isinstance(native(), ImportError), reason="the native module is not available")
Array = np.ndarray[Any, Any]


def arguments(dtype: str, T: int = 3, B: int = 2, I: int = 4, H: int = 5) -> dict[str, Any]:
    shapes = {"x": (T, B, I), "h_0": (B, H), "w_ih": (H, I), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,)}
    shapes |= {"output": (T, B, H), "h_n": (B, H)}
    return {name: np.full(shape, 0.25, dtype) for name, shape in shapes.items()}


def backward_arguments(dtype: str, T: int = 3, B: int = 2, I: int = 4, H: int = 5) -> dict[str, Any]:
    shapes = {"d_output": (T, B, H), "d_h_n": (B, H), "output": (T, B, H), "x": (T, B, I), "h_0": (B, H)}
    shapes |= {"w_ih": (H, I), "w_hh": (H, H), "d_x": (T, B, I), "d_h_0": (B, H), "d_w_ih": (H, I), "d_w_hh": (H, H)}
    return {name: np.full(shape, 0.25, dtype) for name, shape in {**shapes, "d_b": (H,)}.items()}


def forward(dtype: str, **other: Any) -> tuple[Array, Array]:
    given = {**arguments(dtype), **other}
    native().rnn_forward(**given)
    return given["output"], given["h_n"]


def backward(dtype: str, **other: Any) -> None:
    native().rnn_backward(**{**backward_arguments(dtype), **other})


def odd_strides(dtype: str, shape: tuple[int, ...]) -> Array:
    return np.zeros(shape, np.dtype([("pad", "i1"), ("value", dtype)]))["value"]


def misaligned(dtype: str, *shape: int) -> Array:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.zeros(size + 1, np.uint8)[1:].view(dtype).reshape(shape)


def readonly(dtype: str, *shape: int) -> Array:
    array = np.zeros(shape, dtype)
    array.setflags(write=False)
    return array


def floats(dtype: str, *shape: int) -> Array:
    return np.zeros(shape, dtype)


REFUSED: list[tuple[Callable[[str], Any], type[Exception], str]] = [
    (lambda t: forward(t, x=[1.0]), TypeError, "x: expected a float32 or float64 array"),
    (lambda t: forward(t, x=floats(">" + np.dtype(t).char, 3, 2, 4)), TypeError, "x: expected a float32 or float64"),
    (lambda t: forward(t, w_hh=[1.0]), TypeError, "w_hh: expected a NumPy array"),
    (lambda t: forward(t, w_hh=floats(t)), ValueError, "w_hh: expected 1 dimensions or more"),
    (lambda t: forward(t, w_hh=floats(t, 0, 0)), ValueError, "w_hh: expected at least one hidden unit"),
    (lambda t: forward(t, w_hh=floats(t, 5, 5, 1)), ValueError, "w_hh: expected 2 dimensions"),
    (lambda t: forward(t, w_hh=floats("i4", 5, 5)), TypeError, "w_hh: expected a NumPy array of "),
    (lambda t: forward(t, h_0=floats(t, 2, 6)), ValueError, "h_0: expected extent 5 on axis 1"),
    (lambda t: forward(t, h_n=readonly(t, 2, 5)), ValueError, "h_n: expected a writable array"),
    (lambda t: forward(t, b_ih=misaligned(t, 5)), ValueError, "b_ih: expected aligned data"),
    (lambda t: forward(t, b_ih=odd_strides(t, (5,))), ValueError, "b_ih: expected (strides|aligned)"),
    (lambda t: forward(t, w_ih=odd_strides(t, (5, 4))), ValueError, "w_ih: expected (strides|aligned)"),
    (lambda t: forward(t, x=odd_strides(t, (3, 2, 4))), ValueError, "x: expected (strides|aligned)"),
    (lambda t: forward(t, h_n=floats(t, 2, 10)[:, ::2]), ValueError, "h_n: expected a contiguous last axis"),
    (lambda t: forward(t, output=floats(t, 3, 2, 10)[..., ::2]), ValueError, "output: expected a contiguous last axis"),
    (lambda t: backward(t, d_b=floats(t, 10)[::2]), ValueError, "d_b: expected a contiguous array"),
    (lambda t: forward(t, w_ih=None), ValueError, "x: expected extent 5 on axis 2"),
    (lambda t: forward(t, w_ih=None, x=floats(t, 3, 2)), ValueError, "x: expected 3 dimensions"),
    (lambda t: forward(t, output=None), ValueError, "output, h_n: expected arrays, got None"),
    (lambda t: forward(t, h_n=None), ValueError, "output, h_n: expected arrays, got None"),
    (lambda t: backward(t, w_ih=None), ValueError, "d_w_ih: expected None without w_ih"),
    (lambda t: backward(t, w_ih=None, d_w_ih=None), ValueError, "x: expected extent 5 on axis 2"),
    (lambda t: backward(t, w_ih=None, d_w_ih=None, x=floats(t, 3, 2, 5)), ValueError, "d_x: expected extent 5 on"),
    (lambda t: backward(t, output=None), ValueError, "output: expected an array, got None"),
    (lambda t: forward(t, threads=0), ValueError, "threads: expected at least 1"),
    (lambda t: backward(t, threads=0), ValueError, "threads: expected at least 1"),
    (lambda t: forward(t, lengths=floats("i8", 4)[::2]), ValueError, "lengths: expected a C-contiguous array"),
    (lambda t: forward(t, lengths=floats("i4", 2)), TypeError, "lengths: expected a NumPy array of int64"),
    (lambda t: forward(t, lengths=floats("i8", 3)), ValueError, "lengths: expected extent 2 on axis 0"),
    (lambda t: forward(t, lengths=floats("i8", 2, 1)), ValueError, "lengths: expected 1 dimensions"),
    (lambda t: forward(t, lengths=misaligned("i8", 2)), ValueError, "lengths: expected aligned data"),
    (lambda t: forward(t, reset=[True]), TypeError, "reset: expected a NumPy array of bool"),
    (lambda t: forward(t, reset=floats("i1", 3, 2)), TypeError, "reset: expected a NumPy array of bool"),
    (lambda t: forward(t, reset=floats("?", 3, 3)), ValueError, "reset: expected extent 2 on axis 1"),
    (lambda t: forward(t, keep_mask=floats("?", 3, 2)), ValueError, "keep_mask: expected 3 dimensions"),
    (lambda t: forward(t, packed=1), TypeError, "packed: expected PackedWeights or None"),
    (lambda t: forward(t, tuning={"hoist": 1, "tile_rows": 1, "wrong": 1}), ValueError, "tuning: .* got wrong"),
    (lambda t: forward(t, tuning={1: 2}), TypeError, "tuning: expected a dict of str to int"),
    (lambda t: forward(t, isa="sse9"), RuntimeError, "isa: "),
    (lambda t: native().pack_weights(None, floats(t, 5, 5)), ValueError, "w_ih: expected an array"),
    (lambda t: native().pack_weights(floats(t, 5, 4), 7), TypeError, "w_hh: expected a float32 or float64 array"),
    (lambda t: native().tanh(floats("i4", 5), floats(t, 5)), TypeError, "x: expected a float32 or float64 array"),
    (lambda t: native().tanh(floats(t, 5), None), ValueError, "out: expected an array, got None"),
    (lambda t: native().fma_peak("float16", 1, 0.01), ValueError, "dtype: expected float32 or float64"),
    (lambda t: native().fma_peak(t, 5000, 0.01), ValueError, "threads: expected 1 to 4096"),
    (lambda t: native().fma_peak(t, 1, 61), ValueError, "seconds: expected more than 0 and at most 60"),
    (lambda t: native().read_bandwidth(8191, 2, 0.01), ValueError, "bytes: expected at least 4096 for each thread"),
]


@pytest.mark.parametrize(("call", "kind", "words"), REFUSED)
def test_a_wrong_call_is_refused(dtype: str, call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^{words}"):
        call(dtype)


PACKED = {"x": (6, 4), "output": (6, 5)}  # rows of 3, 2 and 1
SIZES = np.array([3, 2, 1], np.int64)


@pytest.mark.parametrize(
    ("sizes", "rows", "words"),
    [
        ([3, 4, 1], 8, "batch_sizes: expected positive, falling counts"),
        ([3, 0], 3, "batch_sizes: expected positive, falling counts"),
        ([3, 2, 1], 7, "batch_sizes: expected a sum of 7, the rows of x"),
        ([3, 2, 1], 4, "batch_sizes: expected a sum of 4, the rows of x"),
        ([2**62, 2**62], 4, "batch_sizes: expected a sum of 4, the rows of x"),
        ([], 4, "batch_sizes: expected a sum of 4, the rows of x"),
    ],
    ids=str,
)
def test_counts_of_packed_rows_are_checked(dtype: str, sizes: list[int], rows: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        forward(dtype, batch_sizes=np.array(sizes, np.int64), x=floats(dtype, rows, 4), output=floats(dtype, rows, 5))


def test_every_option_of_packed_and_padded_rows(dtype: str) -> None:
    """Masks and tuning are taken in both layouts, and the same rows give the same bits."""
    state = np.full((3, 5), 0.25, dtype)
    masks = {"reset": np.zeros(6, bool), "keep_mask": np.zeros((6, 5), bool)}
    tuning = {"hoist": 1, "tile_rows": 2, "row_block": 2, "slices": 1, "chunk_steps": 2}
    common: Any = {"h_0": state, "h_n": state.copy(), "recurrent_mask": np.ones((3, 5), dtype), "tuning": tuning}
    arrays = {name: np.full(shape, 0.25, dtype) for name, shape in PACKED.items()}
    output, _ = forward(dtype, batch_sizes=SIZES, **arrays, **masks, **common)
    padded = {"x": np.full((3, 3, 4), 0.25, dtype), "output": floats(dtype, 3, 3, 5)}
    masks = {"reset": np.zeros((3, 3), bool), "keep_mask": np.zeros((3, 3, 5), bool)}
    want, _ = forward(dtype, lengths=np.array([3, 2, 1]), **padded, **masks, **common)
    assert_same_bits(output, np.concatenate([want[t, :n] for t, n in enumerate(SIZES)]), "packed")
    with pytest.raises(ValueError, match=r"^lengths: expected None with batch_sizes"):
        forward(dtype, batch_sizes=SIZES, lengths=np.array([3, 2, 1]), **arrays, h_0=state, h_n=state.copy())


def test_packed_weights_are_for_one_shape_dtype_and_instruction_set(dtype: str) -> None:
    w_ih, w_hh, other = floats(dtype, 5, 4), floats(dtype, 5, 5), "float64" if dtype == "float32" else "float32"
    names = [name for name, compiled, supported in native().isas() if compiled and supported]
    packed = native().pack_weights(w_ih, w_hh, isa=names[0])
    forward(dtype, packed=packed)
    forward(dtype, packed=packed, isa=names[0])
    for wrong in (
        native().pack_weights(w_ih.astype(other), w_hh.astype(other)),
        native().pack_weights(floats(dtype, 5, 3), w_hh),
        native().pack_weights(floats(dtype, 6, 4), floats(dtype, 6, 6)),
    ):
        with pytest.raises(ValueError, match=r"^packed: expected weights of the same shape and dtype"):
            forward(dtype, packed=wrong)
    with pytest.raises(ValueError, match=r"^packed: expected weights packed for the same instruction set"):
        forward(dtype, packed=packed, isa="another")
    with pytest.raises(ValueError, match=r"^packed: expected what pack_weights returns"):
        forward(dtype, packed=native().PackedWeights.__new__(native().PackedWeights))


def test_x_that_is_projected_already_takes_the_place_of_w_ih(dtype: str) -> None:
    """The bits are those of a w_ih of the identity, padded and packed, with weights packed for any input size."""
    x = np.linspace(-1, 1, 30, dtype=dtype).reshape(6, 5)
    eye, packed = np.eye(5, dtype=dtype), native().pack_weights(floats(dtype, 5, 4), np.full((5, 5), 0.25, dtype))
    for options, shape in (({}, (3, 2)), ({"batch_sizes": SIZES}, (6,))):
        B = 2 + len(options)
        given: dict[str, Any] = {**options, "x": x.reshape(*shape, 5), "h_0": floats(dtype, B, 5)}
        ends = {"h_n": floats(dtype, B, 5)}
        want, _ = forward(dtype, w_ih=eye, output=floats(dtype, *shape, 5), **ends, **given)
        for kept in (None, packed):
            got, _ = forward(dtype, w_ih=None, packed=kept, output=floats(dtype, *shape, 5), **ends, **given)
            assert_same_bits(got, want, "output")
        results = []
        for w_ih, d_w_ih in ((eye, floats(dtype, 5, 5)), (None, None)):
            d_x = floats(dtype, *shape, 5)
            given |= {"output": want, "d_output": want, "d_h_n": None, "d_h_0": floats(dtype, B, 5)}
            backward(dtype, w_ih=w_ih, d_w_ih=d_w_ih, d_x=d_x, **given)
            results.append(d_x)
        assert_same_bits(results[1], results[0], "d_x")
    other = "float64" if dtype == "float32" else "float32"
    for wrong in (native().pack_weights(floats(dtype, 6, 4), floats(dtype, 6, 6)),
                  native().pack_weights(floats(other, 5, 4), floats(other, 5, 5))):  # fmt: skip
        with pytest.raises(ValueError, match=r"^packed: expected weights of the same shape and dtype"):
            forward(dtype, w_ih=None, x=floats(dtype, 3, 2, 5), packed=wrong)


@pytest.mark.parametrize("H", [1, 5])
def test_gradients_that_are_not_needed_may_be_missing(dtype: str, H: int) -> None:
    """Each alone has the bits that it has among the others; a single unit may lie anywhere."""
    names = ("d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")
    whole = backward_arguments(dtype, H=H)
    if H == 1:
        whole["d_b"] = floats(dtype, 3)[::3]
    native().rnn_backward(**whole)
    for name in names:
        given = backward_arguments(dtype, H=H) | {other: None for other in names if other != name}
        native().rnn_backward(**given)
        assert_same_bits(given[name], whole[name], name)


def test_measurements_and_tanh_run(dtype: str) -> None:
    x, out = np.linspace(-3, 3, 7, dtype=dtype), floats(dtype, 7)
    native().tanh(x, out)
    np.testing.assert_allclose(out, np.tanh(x), rtol=1e-6)
    assert native().fma_peak(dtype, 1, 1e-3) > 0
    assert native().read_bandwidth(1 << 20, 1, 1e-3) > 0


def endless(dtype: str, *shape: int) -> Array:
    return np.broadcast_to(np.zeros((), dtype), shape)


def test_memory_that_is_not_there_is_a_memory_error(dtype: str) -> None:
    """In calls that release the GIL: the error is kept until it is back."""
    I, B = 1 << 46, 1 << 56  # weights to pack, rows to keep gradients of
    results = {"output": floats(dtype, 40, 40, 5), "h_n": floats(dtype, 40, 5)}
    with pytest.raises(MemoryError):
        forward(dtype, x=endless(dtype, 40, 40, I), w_ih=endless(dtype, 5, I), h_0=None, **results)
    none: dict[str, Any] = dict.fromkeys(("d_h_n", "h_0", "d_x", "d_h_0", "d_w_ih", "d_w_hh"))
    output = endless(dtype, 1, B, 5)
    with pytest.raises(MemoryError):
        backward(dtype, x=endless(dtype, 1, B, 4), output=output, d_output=output, **none)


class AlarmError(Exception):
    pass


def until_the_alarm(call: Callable[[], Any]) -> None:
    """The alarm comes half-way through the call, as long as the last one took; a hundred times, then it is an error."""
    seconds = 0.04
    for _ in range(100):
        signal.setitimer(signal.ITIMER_REAL, seconds / 2)
        start = time.perf_counter()
        call()
        signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.perf_counter() - start
    raise AssertionError(f"no alarm within calls of {seconds:.4f} s")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of signals here")
@pytest.mark.parametrize("way", ["arrays", "tensors", "compiled code"])
def test_a_signal_ends_a_call(dtype: str, way: str) -> None:
    """What the handler raises comes out of the call, long before its end; in another thread the call goes on."""

    def handler(number: int, frame: Any) -> None:
        raise AlarmError

    p = Case(T=400, B=24, I=64, H=128, dtype=dtype).build()
    output = floats(dtype, *p.output_shape)
    kernel = Kernel("cpp", native().active_isa())
    compiled = torch_calls.of(native().torch_calls)
    calls: list[Callable[[], Any]] = {
        "arrays": [lambda: kernel.forward(p), lambda: kernel.backward(p, output)],
        "tensors": [lambda: forward_tensors(p), lambda: backward_tensors(p, output)],
        "compiled code": [lambda: torch_calls.forward(compiled, p), lambda: torch_calls.backward(compiled, p, output)],
    }[way]
    before = signal.signal(signal.SIGALRM, handler)
    limit_of_the_test = signal.setitimer(signal.ITIMER_REAL, 0)  # pytest-timeout's, which uses the same timer
    try:
        for call in calls:
            with pytest.raises(AlarmError):
                until_the_alarm(call)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *limit_of_the_test)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(fastrnn.rnn_forward(p.x[:9], None, p.w_ih, p.w_hh)))
    thread.start()
    thread.join()
    same_results(results[0], fastrnn.rnn_forward(p.x[:9], None, p.w_ih, p.w_hh), "in a thread")


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


def adam(t: str, **other: Array) -> None:
    arrays = {name: floats(t, 4) for name in ("p", "mean", "square", "grad")} | other
    native().adam(**arrays, b1=0.9, b2=0.9, rate=1, correction=1, eps=1, decay=0, keep=1, threads=1)


def sum_segments(t: str, **other: Array) -> None:
    arrays = {"sums": floats(t, 2, 3), "rows": floats(t, 4, 3), "order": integers(3, 0, 1), "first": integers(0, 1, 3)}
    native().sum_segments(**{**arrays, **other}, threads=1)


def max_over_time(t: str, **other: Array) -> None:
    arrays = {"top": floats(t, 2, 3), "at": integers(0, 0, 0, 0, 0, 0).reshape(2, 3), "x": floats(t, 4, 2, 3)}
    native().max_over_time(**{**arrays, "lengths": integers(4, 1), **other}, threads=1)


TRAINING: list[tuple[Callable[..., None], Callable[[str], dict[str, Array]], str]] = [
    *[(adam, lambda t, name=name: {name: floats(t, 3)}, "arrays of one size") for name in ("mean", "square", "grad")],
    *[(adam, lambda t, name=name: {name: readonly(t, 4)}, "writable arrays") for name in ("p", "mean", "square")],
    (sum_segments, lambda t: {"sums": floats(t, 2)}, "rows alike"),
    (sum_segments, lambda t: {"rows": floats(t, 4)}, "rows alike"),
    (sum_segments, lambda t: {"rows": floats(t, 4, 2)}, "rows alike"),
    (sum_segments, lambda t: {"sums": readonly(t, 2, 3)}, "rows alike"),
    (sum_segments, lambda t: {"first": integers(0, 1, 3).reshape(1, 3)}, "one segment for each sum"),
    (sum_segments, lambda t: {"first": integers(0, 3)}, "one segment for each sum"),
    (sum_segments, lambda t: {"order": integers(3, 0, 1).reshape(3, 1)}, "one segment for each sum"),
    (sum_segments, lambda t: {"first": integers(1, 2, 3)}, "segments that cover all rows"),
    (sum_segments, lambda t: {"first": integers(0, 1, 2)}, "segments that cover all rows"),
    (sum_segments, lambda t: {"sums": floats(t, 3, 3), "first": integers(0, 2, 1, 3)}, "segments that rise"),
    (sum_segments, lambda t: {"order": integers(3, -1, 1)}, "rows that exist"),
    (sum_segments, lambda t: {"order": integers(3, 4, 1)}, "rows that exist"),
    (max_over_time, lambda t: {"x": floats(t, 4, 2)}, "dimensions"),
    (max_over_time, lambda t: {"top": floats(t, 2)}, "dimensions"),
    (max_over_time, lambda t: {"at": integers(0, 0)}, "dimensions"),
    (max_over_time, lambda t: {"lengths": integers(4, 1).reshape(1, 2)}, "dimensions"),
    (max_over_time, lambda t: {"top": floats(t, 1, 3)}, "results"),
    (max_over_time, lambda t: {"top": floats(t, 2, 2)}, "results"),
    (max_over_time, lambda t: {"at": integers(0, 0, 0).reshape(1, 3)}, "results"),
    (max_over_time, lambda t: {"at": integers(0, 0).reshape(2, 1)}, "results"),
    (max_over_time, lambda t: {"lengths": integers(4, 1, 1)}, "a length for each row"),
    (max_over_time, lambda t: {"top": readonly(t, 2, 3)}, "a length for each row, writable"),
    (max_over_time, lambda t: {"at": readonly("i8", 2, 3)}, "a length for each row, writable"),
    (max_over_time, lambda t: {"lengths": integers(4, -1)}, "lengths in 0..T"),
    (max_over_time, lambda t: {"lengths": integers(5, 1)}, "lengths in 0..T"),
]


@pytest.mark.parametrize(("call", "wrong", "words"), TRAINING)
def test_a_wrong_call_of_a_training_function_is_refused(dtype: str, call: Any, wrong: Any, words: str) -> None:
    call(dtype)
    with pytest.raises(ValueError, match=words):
        call(dtype, **wrong(dtype))


@pytest.mark.parametrize("call", [adam, sum_segments, max_over_time])
def test_training_functions_convert_nothing(dtype: str, call: Any) -> None:
    """Another dtype or layout is a TypeError: what were written would be a copy."""
    other = "float64" if dtype == "float32" else "float32"
    name, shape = {adam: ("p", (4,)), sum_segments: ("sums", (2, 3)), max_over_time: ("top", (2, 3))}[call]
    for wrong in (
        floats(other, *shape),
        np.zeros([2 * n for n in shape], dtype)[tuple([slice(None, None, 2)] * len(shape))],
    ):
        with pytest.raises(TypeError):
            call(dtype, **{name: wrong})


def cell(dtype: str, B: int | None = 2, I: int = 4, H: int = 5, **other: Any) -> Any:
    rows = () if B is None else (B,)
    arrays = {"x": (*rows, I), "h": (*rows, H), "w_ih": (H, I), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,)}
    given = {
        name: np.linspace(-1, 1, int(np.prod(shape)), dtype=dtype).reshape(shape) for name, shape in arrays.items()
    }
    given |= other
    packed = given.pop("packed", None)
    return native().short_step(*given.values(), False, packed), given


@pytest.mark.parametrize("B", [None, 1, 7])
def test_a_short_step_has_the_bits_of_a_long_one(dtype: str, B: int | None) -> None:
    """One row or several, with and without a state, biases and packed weights, with and without the GIL."""
    for sizes in ({}, {"I": 90, "H": 95}):
        for other in ({}, {"h": None}, {"b_ih": None, "b_hh": None}):
            got, given = cell(dtype, B, **sizes, **other)
            rows = {name: None if given[name] is None else np.atleast_2d(given[name]) for name in ("x", "h")}
            weights = [given[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
            want, _ = fastrnn.rnn_forward(rows["x"][None], rows["h"], *weights, backend="cpp")
            assert_same_bits(got, want[0] if B else want[0, 0], f"{B}, {sizes}, {other}")
            packed = native().pack_weights(*weights[:2])
            assert_same_bits(cell(dtype, B, **sizes, **other, packed=packed)[0], got, "packed")


class Derived(np.ndarray[Any, Any]):
    pass


def test_a_step_that_is_not_a_simple_one_is_left_to_python(dtype: str) -> None:
    """None for wrong shapes and types, a class of its own, no rows at all, and where the step takes long."""
    other = "float64" if dtype == "float32" else "float32"
    for wrong in (
        {"x": [1.0]}, {"x": floats(dtype, 2, 4).view(Derived)}, {"h": floats(dtype, 2, 5).view(Derived)}, {"h": [1.0]},
        {"x": floats(dtype)}, {"x": floats(dtype, 2, 3)}, {"x": floats(other, 2, 4)}, {"x": floats(dtype, 0, 4)},
        {"h": floats(dtype, 3, 5)}, {"b_ih": floats(dtype, 4)}, {"w_ih": floats(dtype, 4, 4)}, {"x": floats(dtype, 4)},
    ):  # fmt: skip
        assert cell(dtype, **wrong)[0] is None, wrong
    assert cell(dtype, I=1000, H=1000)[0] is None


def test_a_step_with_other_weights_than_were_packed_is_refused(dtype: str) -> None:
    other = "float64" if dtype == "float32" else "float32"
    for packed in (
        native().pack_weights(floats(other, 5, 4), floats(other, 5, 5)),
        native().pack_weights(floats(dtype, 5, 3), floats(dtype, 5, 5)),
        native().pack_weights(floats(dtype, 6, 4), floats(dtype, 6, 6)),
    ):
        with pytest.raises(ValueError, match=r"^packed: expected weights of the same shape and dtype"):
            cell(dtype, packed=packed)
    with pytest.raises(TypeError, match=r": expected a float32 or float64 array"):
        cell(dtype, w_hh=floats("i4", 5, 5))


def test_sums_that_go_on_need_what_rounding_took(dtype: str) -> None:
    """accumulate takes b_lost with d_b, alpha_lost with d_alpha; neither without; d_alpha is with alpha alone."""
    row, none = floats(dtype, 5), {"d_b": None}
    biases = {"b_ih": floats(dtype, 5), "b_hh": floats(dtype, 5)}
    leaky = {"alpha": np.full(5, 0.5, dtype), "d_alpha": row.copy(), **biases}
    for wrong, name in (
        ({"d_alpha": row}, "d_alpha: expected None without alpha"),
        ({"accumulate": True}, "b_lost: expected an array with accumulate and d_b"),
        ({"b_lost": row}, "b_lost: expected an array with accumulate and d_b"),
        ({"accumulate": True, "b_lost": row, **none}, "b_lost: expected an array with accumulate and d_b"),
        ({"alpha_lost": row}, "alpha_lost: expected an array with accumulate and d_alpha"),
        ({"accumulate": True, "b_lost": row, **leaky}, "alpha_lost: expected an array with accumulate and d_alpha"),
        ({"accumulate": True, "alpha_lost": row, **none}, "alpha_lost: expected an array with accumulate and d_alpha"),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            backward(dtype, **wrong)
    backward(dtype, **leaky)
    backward(dtype, accumulate=True, b_lost=row, alpha_lost=row.copy(), **leaky)
