"""Many models of one shape in one call of a backend: each has, to the bit, what a call of its own gives."""

from __future__ import annotations

import json
import signal
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case, Problem, misaligned
from helpers.compare import assert_all_same_bits
from helpers.kernels import native
from helpers.processes import output_of

Array = np.ndarray[Any, Any]

NAMES = ("output", "h_n", "d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")
STACKED = ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "d_output", "d_h_n")
# Some that all threads share, and some too small for any but the caller
CASES = [
    Case(T=33, B=9, I=33, H=65),
    Case(T=140, B=5, I=17, H=31, reverse=True, lengths="ragged", reset=True),
    Case(T=9, B=3, I=1, H=129, nonlinearity="relu", bias="none", h_0=False),
    Case(T=2, B=1, I=7, H=3, bias="hh", d_h_n=False),
    Case(T=5, B=4, I=7, H=9, lengths="packed", d_output="none"),
    Case(T=5, B=4, I=7, H=9, recurrent_mask=True, keep_mask=True),
]

only_cpp = pytest.mark.skipif(isinstance(native(), ImportError), reason="the native module")


def functions(backend: str) -> Any:
    from fastrnn._backends import get

    return get(backend)


def problems(case: Case, M: int) -> list[Problem]:
    """M of them, of the same numbers in other places, with the same options."""
    first = case.build()
    given = {name: array for name in STACKED if (array := getattr(first, name)) is not None}
    return [first.but(**{name: np.roll(array, m) for name, array in given.items()}) for m in range(M)]


def stack(made: list[Problem], layout: str = "contiguous") -> dict[str, Array | None]:
    """The arrays that each model has of its own, (M, ...)."""

    def of(name: str) -> Array | None:
        arrays = [getattr(p, name) for p in made]
        if arrays[0] is None:
            return None
        if layout == "models last":
            return np.moveaxis(np.stack(arrays, -1), -1, 0)
        if layout == "backwards":
            return np.stack(arrays[::-1])[::-1]
        if layout == "misaligned rows":
            stacked = np.stack(arrays)
            return misaligned(stacked, stacked.itemsize)
        return np.stack(arrays)

    return {name: of(name) for name in STACKED}


def options_of(p: Problem) -> Any:
    from fastrnn._backends.options import RnnOptions

    return RnnOptions(**p.options())


def one_by_one(backend: str, made: list[Problem]) -> list[Array]:
    module, results = functions(backend), []
    for p in made:
        options = options_of(p)
        output, h_n = module.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, options)
        gradients = module.rnn_backward(p.d_output, p.d_h_n, output, p.x, p.h_0, p.w_ih, p.w_hh, options)
        results.append([output, h_n, *gradients])
    return [np.stack(each) for each in zip(*results, strict=True)]


def at_once(backend: str, made: list[Problem], layout: str = "contiguous") -> list[Array]:
    from fastrnn._backends import ensemble

    module, options = functions(backend), options_of(made[0])
    x, h_0, w_ih, w_hh, b_ih, b_hh, d_output, d_h_n = stack(made, layout).values()
    output, h_n = ensemble.rnn_forward(module, x, h_0, w_ih, w_hh, b_ih, b_hh, options)
    gradients = ensemble.rnn_backward(module, d_output, d_h_n, output, x, h_0, w_ih, w_hh, options)
    return [output, h_n, *gradients]


@pytest.mark.parametrize("M", [1, 2, 3, 7])
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_each_model_has_the_bits_of_its_own_call(backend: str, dtype: str, case: Case, M: int) -> None:
    """On 1 to 4 threads: as many models as threads can share, and those that are left."""
    import fastrnn

    made = problems(replace(case, dtype=dtype), M)
    with fastrnn.threads(1):
        want = one_by_one(backend, made)
    for threads in (1, 2, 3, 4):
        with fastrnn.threads(threads):
            assert_all_same_bits(at_once(backend, made), want, f"{threads} threads", NAMES)


@only_cpp
@pytest.mark.parametrize("layout", ["models last", "backwards", "misaligned rows"])
def test_strides_do_not_change_bits(dtype: str, layout: str) -> None:
    made = problems(Case(T=5, B=3, I=7, H=9, lengths="ragged", dtype=dtype), 3)
    assert_all_same_bits(at_once("cpp", made, layout), at_once("cpp", made), layout, NAMES)


@only_cpp
def test_one_call_of_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module, calls = functions("cpp"), []
    for name in ("rnn_forward", "rnn_backward", "rnn_forward_ensemble", "rnn_backward_ensemble"):
        real = getattr(module.native, name)
        monkeypatch.setattr(module.native, name, lambda *a, name=name, real=real: calls.append(name) or real(*a))
    at_once("cpp", problems(CASES[1], 3))
    assert calls == ["rnn_forward_ensemble", "rnn_backward_ensemble"]


@only_cpp
def test_nan_in_one_model_touches_that_model_alone() -> None:
    made = problems(CASES[0], 5)
    clean = at_once("cpp", made)
    made[2].x[3, 1, 0] = np.nan
    for name, got, want in zip(NAMES, at_once("cpp", made), clean, strict=True):
        assert np.isnan(got[2]).any(), name
        assert_all_same_bits(np.delete(got, 2, 0), np.delete(want, 2, 0), name)


@only_cpp
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_no_wrong_call_reaches_memory(kind: str) -> None:
    """Each array of another type, with an axis more, or an element more or less along an axis; or not given at all."""
    M, T, B, I, H = 3, 2, 5, 7, 9
    shapes = {
        "x": (M, T, B, I), "h_0": (M, B, H), "w_ih": (M, H, I), "w_hh": (M, H, H), "b_ih": (M, H), "b_hh": (M, H),
        "output": (M, T, B, H), "h_n": (M, B, H),
    }  # fmt: skip
    more = {
        "d_output": (M, T, B, H), "d_h_n": (M, B, H), "output": (M, T, B, H), "x": (M, T, B, I), "h_0": (M, B, H),
        "w_ih": (M, H, I), "w_hh": (M, H, H), "d_x": (M, T, B, I), "d_h_0": (M, B, H), "d_w_ih": (M, H, I),
        "d_w_hh": (M, H, H), "d_b": (M, H),
    }  # fmt: skip
    for call, wanted in ((native().rnn_forward_ensemble, shapes), (native().rnn_backward_ensemble, more)):
        given = {name: np.zeros(shape, kind) for name, shape in wanted.items()}
        how = False, False, 1, None, None
        call(*given.values(), *how)
        empty = {name: array[..., :0] for name, array in given.items() if array.shape[-1] == I}
        call(*(given | empty).values(), *how)
        needed = ("w_ih", "output", "h_n") if call is native().rnn_forward_ensemble else ("w_ih", "output")
        for name in needed:
            with pytest.raises(ValueError, match="expected arrays, got None"):
                call(*(given | {name: None}).values(), *how)
        for name, array in {"w_hh": np.zeros((M, 0, 0), kind)}.items():
            with pytest.raises(ValueError, match=f"{name}: expected at least one hidden unit"):
                call(*(given | {name: array}).values(), *how)
        for name, array in given.items():
            wrong = [array.astype(np.int32), array.tolist(), array[None], array[..., :-1], array[:-1], array[:, :-1]]
            for value in wrong:
                with pytest.raises((TypeError, ValueError)):
                    call(*(given | {name: value}).values(), *how)
        for name in ("output", "h_n") if call is native().rnn_forward_ensemble else ("d_x", "d_b"):
            strided = np.zeros((*wanted[name], 2), kind)[..., 0]
            with pytest.raises(ValueError, match=f"{name}: expected a contiguous"):
                call(*(given | {name: strided}).values(), *how)
            fixed = given[name].copy()
            fixed.flags.writeable = False
            with pytest.raises(ValueError, match=f"{name}: expected a writable"):
                call(*(given | {name: fixed}).values(), *how)
        for at, value, message in (
            (2, 0, "threads: expected at least 1"),
            (3, np.zeros(B + 1, np.int64), "lengths: expected extent"),
            (3, np.full(B, T + 1), r"lengths: expected values in 0\.\.T"),
            (4, np.zeros((T, B + 1), bool), "reset: expected extent"),
        ):
            with pytest.raises(ValueError, match=message):
                call(*given.values(), *how[:at], value, *how[at + 1 :])


@only_cpp
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_that_is_not_there_is_an_error_on_whichever_thread(threads: int) -> None:
    """Weights (H, H) of one number, repeated, which to pack takes terabytes."""
    H = 1 << 21
    number = np.zeros((), np.float32)
    w_ih, w_hh = np.broadcast_to(number, (2, H, 1)), np.broadcast_to(number, (2, H, H))
    output, h_n = np.zeros((2, 3, 1, H), np.float32), np.zeros((2, 1, H), np.float32)
    x = np.zeros((2, 3, 1, 1), np.float32)
    with pytest.raises(MemoryError, match="workspace"):
        native().rnn_forward_ensemble(x, None, w_ih, w_hh, None, None, output, h_n, False, False, threads, None, None)
    d_x = np.zeros_like(x)
    with pytest.raises(MemoryError, match="workspace"):
        native().rnn_backward_ensemble(
            output, None, output, x, None, w_ih, w_hh, d_x, None, None, None, None, False, False, threads, None, None
        )


CTRL_C = """
import json, os, signal, threading, time
import numpy as np
from fastrnn import _fastrnn_cpu as native
signal.signal(signal.SIGINT, signal.default_int_handler)
M, T, B, H = 1000, 2000, 8, 200
one = np.float32(0.01)
x, w, tape = (np.broadcast_to(one, shape) for shape in ((M, T, B, H), (M, H, H), (M, T, B, H)))
output, h_n, d_w = np.zeros((1, T, B, H), np.float32), np.zeros((M, B, H), np.float32), np.zeros((M, H, H), np.float32)
output = np.lib.stride_tricks.as_strided(output, (M, T, B, H), (0, *output.strides[1:]))  # of all models the same
waits = []
for delay in (0.15, 0.3, 0.5):
    def send():
        global sent
        sent = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(delay, send).start()
    try:
        if BACKWARD:
            given = tape, None, tape, x, None, w, w, None, None, None, d_w, None
            native.rnn_backward_ensemble(*given, False, False, THREADS, None, None)
        else:
            native.rnn_forward_ensemble(x, None, w, w, None, None, output, h_n, False, False, THREADS, None, None)
    except KeyboardInterrupt:
        waits.append(time.perf_counter() - sent)
print(json.dumps(waits))
"""


@only_cpp
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX signals")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_ctrl_c(way: str, threads: int) -> None:
    """Raises KeyboardInterrupt at most 200 ms after SIGINT, median of three."""
    waits = json.loads(output_of(f"BACKWARD, THREADS = {way == 'backward'}, {threads}\n" + CTRL_C))
    assert len(waits) == 3
    assert statistics.median(waits) <= 0.2, f"{[round(1000 * w) for w in waits]} ms"
