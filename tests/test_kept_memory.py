"""Memory that the cpp backend keeps between calls: large results and workspaces lie where those of a call before lay,
never two at once, never more than FASTRNN_KEPT_MIB; arrays made of it behave as every other array.
"""

from __future__ import annotations

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes import CFUNCTYPE, c_size_t, c_void_p
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from helpers import shared_library, torch_calls
from helpers.cases import SEED
from helpers.kernels import native
from helpers.processes import output_of

import fastrnn

pytestmark = pytest.mark.skipif(isinstance(native(), ImportError), reason="the native module is not available")

MIB = 1 << 20

# Under AddressSanitizer nothing is kept
KEEPS = "libasan" not in os.environ.get("LD_PRELOAD", "")


def new(*shape: int) -> Any:
    return native().new_array(shape, np.dtype("float32"))


def test_an_array_as_every_other() -> None:
    """It owns its memory, can be resized, made read-only and back; small and absurd ones are NumPy's own."""
    for rows in (3, 300):
        array = new(rows, 300)
        assert array.shape == (rows, 300)
        assert array.flags.owndata
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0 or rows == 3 or not KEEPS  # NumPy's own
        array[...] = np.arange(rows * 300).reshape(rows, 300)
        array.flags.writeable = False
        array.flags.writeable = True
        for size in (2000, 10, 0, 5):
            want = array.copy()
            want.resize(size, 300)
            array.resize(size, 300, refcheck=False)
            assert np.array_equal(array, want)
    assert new(0, 5).size == 0
    assert new().shape == ()
    with pytest.raises(MemoryError, match="shape"):
        new(1 << 60, 0, 4)
    for shape in ((1 << 58,), (1 << 61,), (1 << 40, 1 << 40)):
        with pytest.raises(MemoryError, match="shape"):
            new(*shape)
    with pytest.raises(ValueError, match="at most 8 axes"):
        new(*[1] * 9)


class Handler(ctypes.Structure):
    """NumPy's PyDataMem_Handler."""

    _fields_ = [
        ("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("context", c_void_p),
        ("malloc", CFUNCTYPE(c_void_p, c_void_p, c_size_t)),
        ("calloc", CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_size_t)),
        ("realloc", CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_size_t)),
        ("free", CFUNCTYPE(None, c_void_p, c_void_p, c_size_t)),
    ]  # fmt: skip


def memory_handler() -> Handler:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return Handler.from_address(pointer(native().memory_handler, b"mem_handler"))


def test_the_handler_keeps_the_contract_of_malloc() -> None:
    """What NumPy may do with an array's memory: zeros, larger and smaller, null; sizes that do not exist give null."""
    handler = memory_handler()
    assert (handler.name, handler.version) == (b"fastrnn", 1)
    for size in (1, 100, 100_000):
        block = handler.malloc(None, size)
        ctypes.memset(block, 7, size)
        handler.free(None, block, size)
        block = handler.calloc(None, size, 1)
        assert ctypes.string_at(block, size) == bytes(size)
        ctypes.memset(block, 5, size)
        block = handler.realloc(None, block, 3 * size)
        assert ctypes.string_at(block, size) == b"\5" * size
        assert handler.realloc(None, block, 1 << 62) is None
        assert ctypes.string_at(block, size) == b"\5" * size, "what was refused is not freed"
        block = handler.realloc(None, block, 1)
        assert ctypes.string_at(block, 1) == b"\5"
        handler.free(None, block, 1)
    assert handler.calloc(None, 0, 0) is not None
    assert handler.calloc(None, 1 << 40, 1 << 40) is None
    assert handler.calloc(None, 1 << 62, 1) is None
    assert handler.malloc(None, (1 << 64) - 1) is None
    handler.free(None, handler.realloc(None, None, 10), 10)
    handler.free(None, None, 0)
    calls = torch_calls.of(native().torch_calls)
    assert calls.take(1 << 62, 0) is None
    with pytest.raises(MemoryError, match="4611686018427387904 bytes are not available"):
        calls.take(1 << 62, 1)
    for explain in (0, 1):
        calls.give(calls.take(100_000, explain))


def test_the_first_large_arrays_of_many_threads() -> None:
    """None waits for what another one looks up: NumPy's table is known since the import."""
    code = (
        PROCESS
        + """
import sys, threading
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
def first():
    start.wait()
    for _ in range(20): new(100)
threads = [threading.Thread(target=first) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("all")
"""
    )
    for _ in range(5):
        assert output_of(code) == "all"


@pytest.mark.parametrize("sizes", ["fixed", "mixed"])
def test_no_memory_belongs_to_two_arrays(sizes: str) -> None:
    """Thousands of arrays come and go in random order, on four threads, between calls that take workspaces without the
    GIL; each keeps what it was filled with, and the calls give the same bits. Two threads more hold the lock all the
    time, also without the GIL."""
    x, w = np.ones((40, 16, 128), np.float32), np.full((128, 128), 0.01, np.float32)
    want = fastrnn.rnn_forward(x, None, w, w, backend="cpp")[0].tobytes()

    def come_and_go(seed: int) -> None:
        rng = np.random.default_rng([SEED, seed])
        alive: list[Any] = []
        for number in range(1500):
            if len(alive) > rng.integers(8):
                array, value = alive.pop(rng.integers(len(alive)))
                assert (array == value).all()
                continue
            if number % 10 == 0:
                assert fastrnn.rnn_forward(x, None, w, w, backend="cpp")[0].tobytes() == want
            rows = 70 if sizes == "fixed" else int(rng.integers(40, 400))
            array, value = new(rows, 256), np.float32(1500 * seed + number)
            array[...] = value
            alive.append((array, value))
        for array, value in alive:
            assert (array == value).all()

    done, handler = Event(), memory_handler()

    def churn() -> None:
        while not done.is_set():
            blocks = [handler.malloc(None, size) for size in (70_000, 80_000, 90_000)]
            for block in blocks:
                ctypes.memset(block, 255, 70_000)
                handler.free(None, block, 0)

    with ThreadPoolExecutor(6) as threads:
        others = [threads.submit(churn) for _ in range(2)]
        list(threads.map(come_and_go, range(4)))
        done.set()
        for other in others:
            other.result()


PROCESS = """
import numpy as np, fastrnn
from fastrnn import _fastrnn_cpu as native
new = lambda kib: native.new_array((256 * kib,), np.dtype("float32"))
"""


def test_what_is_kept() -> None:
    """The last block first, for what is at most a fifth smaller; at most the limit, the oldest go; what was not wanted
    for long makes room where something does not fit."""
    code = (
        PROCESS
        + """
kept = lambda: print(native.kept_bytes() >> 10)
a, b = new(1000), new(1000)
first, second = a.ctypes.data, b.ctypes.data
del a, b
a = new(1000)
print(a.ctypes.data == second, new(801).ctypes.data == first)
b = new(799)
kept()
del a, b
kept()
a = new(3000)
del a
kept()
arrays = [new(1500) for _ in range(4)]
del arrays
kept()
small = [new(63) for _ in range(100)]
del small
kept()
for _ in range(63): new(200)
new(5000)
kept()
new(200)
new(5000)
kept()
"""
    )
    if not KEEPS:
        pytest.skip("AddressSanitizer watches the ends of blocks")
    expected = ["True True", "1000", "2799", "3799", "3000", "3000", "3200", "200"]
    assert output_of(code, FASTRNN_KEPT_MIB="4").splitlines() == expected


@pytest.mark.parametrize("mib", ["0", "1"])
def test_the_limit(mib: str) -> None:
    code = (
        PROCESS
        + """
arrays = [new(kib) for kib in (64, 300, 700, 1024, 1025, 5000)]
del arrays
print(native.kept_bytes())
x, w = np.ones((90, 64, 64), np.float32), np.ones((64, 64), np.float32) / 64
output, h_n = fastrnn.rnn_forward(x, None, w, w)
fastrnn.rnn_backward(output, None, output, x, None, w, w)
del output
print(native.kept_bytes())
"""
    )
    first, second = map(int, output_of(code, FASTRNN_KEPT_MIB=mib).splitlines())
    assert first <= int(mib) * MIB
    assert second <= int(mib) * MIB
    assert (second > 0) == (mib == "1" and KEEPS)


@pytest.mark.parametrize("text", ["", "many", "-1", "1.5", "1048577", "99999999999999999999"])
def test_a_limit_that_is_no_number(text: str) -> None:
    """Where the first large result is made, each time; small calls do not read it."""
    code = """
import numpy as np, fastrnn
w = np.ones((64, 64), np.float32)
fastrnn.rnn_forward(np.ones((1, 1, 1), np.float32), None, w[:3, :1], w[:3, :3])
for _ in range(2):
    try: fastrnn.rnn_forward(np.ones((90, 64, 64), np.float32), None, w, w)
    except ValueError as error: print(error)
"""
    if not KEEPS:
        pytest.skip("AddressSanitizer: nothing is kept, nothing read")
    code += f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_kept_memory import memory_handler
from helpers import torch_calls
calls = torch_calls.of(fastrnn._backends.get("cpp").torch_calls)
print(memory_handler().malloc(None, 100_000), calls.take(100_000, 0))
try: calls.take(100_000, 1)
except ValueError as error: print(error)
"""
    expected = f"FASTRNN_KEPT_MIB: expected an integer from 0 to 1048576, got '{text}'"
    assert output_of(code, FASTRNN_KEPT_MIB=text).splitlines() == [expected, expected, "None None", expected]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts Linux's page faults")
def test_training_takes_no_new_pages() -> None:
    """Without it glibc gives the top of its heap back after each step: more than a thousand pages here."""
    code = """
import resource, numpy as np, fastrnn
rng = np.random.default_rng(0)
x = rng.standard_normal((100, 64, 128), np.float32)
w, u = (0.05 * rng.standard_normal((128, 128), np.float32) for _ in range(2))
def step():
    output, h_n = fastrnn.rnn_forward(x, None, w, u)
    fastrnn.rnn_backward(output, h_n, output, x, None, w, u)
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
before = faults()
for _ in range(10): step()
print((faults() - before) // 10)
"""
    if not KEEPS:
        pytest.skip("AddressSanitizer: nothing is kept")
    assert int(output_of(code, FASTRNN_NUM_THREADS="1")) < 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_children_of_a_process_whose_threads_take_memory(tmp_path: Path) -> None:
    """A child has its own memory, whatever another thread was at when it was forked; it keeps some, too."""
    if not KEEPS:
        pytest.skip("AddressSanitizer: its own allocator may stay locked in a child (seen with GCC 12)")
    here, library = Path(__file__).parent, shared_library.build("churn", tmp_path)
    code = (
        PROCESS
        + f"""
import ctypes, os, signal, sys, warnings
sys.path.insert(0, {str(here)!r})
from test_kept_memory import memory_handler
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork in a process with threads
churn, handler = ctypes.CDLL({library!r}), memory_handler()
assert churn.start(2, handler.malloc, handler.free) == 2
failed = 0
for _ in range(100):
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        alive = []
        for number in range(40):
            array = new(70 + 3 * number)
            array[...] = number
            alive.append(array)
            if number % 3 == 0: del alive[0]
        array = new(5000)
        place = array.ctypes.data
        del array
        if native.kept_bytes() == 0 or new(5000).ctypes.data != place: os._exit(2)
        os._exit(0 if all((a == a[0]).all() for a in alive) and len({{a[0] for a in alive}}) == len(alive) else 1)
    failed += os.waitpid(pid, 0)[1] != 0
churn.stop()
print(failed)
"""
    )
    assert output_of(code, timeout=120) == "0"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by RLIMIT_AS")
def test_what_is_kept_makes_way() -> None:
    """Where the system refuses, what is kept is given back, and the call goes through."""
    code = (
        PROCESS
        + """
import re, resource
arrays = [new(10 << 10) for _ in range(10)]
del arrays
print(native.kept_bytes() >= 100 << 20, new(1).nbytes >> 20)
with open("/proc/self/status") as file: used = 1024 * int(re.search(r"VmSize:\\s*(\\d+)", file.read())[1])
resource.setrlimit(resource.RLIMIT_AS, (used - (60 << 20), resource.RLIM_INFINITY))
print(new(20 << 10).nbytes >> 20, native.kept_bytes() >> 20)  # 20 MiB less in use would not be enough
try: new(1 << 20)
except MemoryError: print("refused")
"""
    )
    if not KEEPS:
        pytest.skip("AddressSanitizer needs its address space")
    assert output_of(code).splitlines() == ["True 0", "20 20", "refused"]


def test_tensors_of_the_node(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large results by the compiled node, too, in memory that is taken again; tensors as every other."""
    from helpers import torch_node

    torch_node.use(monkeypatch, True)
    layer = fastrnn.torch.RNN(64, 64)
    x = torch.randn(90, 64, 64, requires_grad=True)

    def step() -> Any:
        output, _ = layer(x)
        assert torch_node.recorded_by_node(output)
        return output, torch.autograd.grad(output.sum(), x)[0]

    output, d_x = step()
    assert output.data_ptr() % 64 == 0 == d_x.data_ptr() % 64
    places = {output.data_ptr(), d_x.data_ptr()}
    before, size = native().kept_bytes(), output.nbytes + d_x.nbytes
    del output, d_x
    assert native().kept_bytes() >= before + size or not KEEPS
    again = {each.data_ptr() for each in step()}
    assert again == places or not KEEPS
    with torch.inference_mode():
        output, _ = layer(x)
        assert output.is_inference()
    output, _ = layer(x)
    made = output.detach()
    want = torch.cat([made.reshape(-1), torch.zeros(7)])
    made.resize_(want.numel())
    made[-7:] = 0
    assert torch.equal(made, want)
    made.share_memory_()
    assert torch.equal(made, want)
