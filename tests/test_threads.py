"""Promise 7, concurrency: many Python threads at once give the bits of serial calls, whatever the number of kernel
threads and while it changes; an error in one thread leaves the others alone; the interpreter may exit meanwhile.
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case
from helpers.checks import same_results
from helpers.kernels import Kernel, native
from helpers.processes import output_of

import fastrnn

THREADS, CALLS = 16, 50
MIX = [  # small ones run on the calling thread alone; the others have work for several: rows, or the units of one step
    Case(T=5, B=1, I=9, H=33, seed=1),
    Case(T=8, B=60, I=33, H=129, lengths="ragged", seed=2),
    Case(T=6, B=33, I=7, H=16, nonlinearity="relu", reverse=True, dtype="float64", seed=3),
    Case(T=3, B=50, I=31, H=127, dtype="float64", lengths="packed", seed=4),
    Case(T=40, B=2, I=33, H=300, seed=5),
    Case(T=70, B=3, I=5, H=160, lengths="ragged", seed=6),
]


def calls_of(backend: str) -> int:
    """OpenBLAS makes bare matmul crawl when many threads call it; there is nothing of ours to find."""
    return CALLS if backend == "cpp" else CALLS // 10


def in_threads(work: Any, count: int = THREADS) -> None:
    """Runs work(i) in `count` threads that start together; the first exception comes out."""
    barrier = threading.Barrier(count)

    def start(i: int) -> None:
        barrier.wait()
        work(i)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(start, i) for i in range(count)]:
            future.result()


@pytest.fixture(autouse=True)
def _switch_often() -> Any:
    """Threads of Python change places every 0.1 ms, so that races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def test_many_python_threads_give_serial_bits(kernel: Kernel) -> None:
    """16 Python threads x 50 mixed calls, with 1, 2 and 3 kernel threads side by side."""
    assert_serial_bits(kernel, (1, 2, 3), THREADS, CALLS)


@pytest.mark.nightly
@pytest.mark.parametrize("threads", [(1,), (3,), (1, 2, 3, 8)], ids=str)
def test_64_python_threads_give_serial_bits(kernel: Kernel, threads: tuple[int, ...]) -> None:
    """64 Python threads x 500 mixed calls."""
    assert_serial_bits(kernel, threads, 64, 500)


def assert_serial_bits(kernel: Kernel, threads: tuple[int, ...], python_threads: int, calls: int) -> None:
    """Forward, backward, cell and refused calls; each takes the next number of kernel threads."""
    jobs: list[Callable[[int], Any]] = []
    for case in MIX:
        p = case.build()
        output, _ = kernel.forward(p, threads=1)
        jobs.append(lambda n, p=p: kernel.forward(p, threads=n))
        jobs.append(lambda n, p=p, output=output: kernel.backward(p, output, threads=n))
    cell, rows = fastrnn.RNNCell(9, 33, backend=kernel.backend, seed=0), np.ones((3, 9), np.float32)
    jobs.append(lambda n: [cell(rows)])
    wants = [list(job(1)) for job in jobs]
    wrong = (p.x, None, p.w_ih, p.w_hh[:-1])

    def work(i: int) -> None:
        for call in range(calls if kernel.is_native else calls // 10):
            k = (i * 7 + call) % (len(jobs) + 1)
            if k == len(jobs):
                with pytest.raises(ValueError, match=r"^w_hh: expected"):
                    fastrnn.rnn_forward(*wrong, batch_sizes=p.batch_sizes, backend=kernel.backend)
            else:
                same_results(jobs[k](threads[(i + call) % len(threads)]), wants[k], f"thread {i}, call {call}, job {k}")

    in_threads(work, python_threads)


@pytest.mark.usefixtures("default_threads")
def test_the_number_of_threads_may_change_while_running(backend: str) -> None:
    p = MIX[1].build()
    args = (p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh)
    want = fastrnn.rnn_forward(*args, backend=backend)
    stop = threading.Event()

    def change() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            fastrnn.set_num_threads(1 + n % 5)

    changer = threading.Thread(target=change)
    changer.start()
    try:

        def work(i: int) -> None:
            for call in range(calls_of(backend)):
                same_results(fastrnn.rnn_forward(*args, backend=backend), want, f"thread {i}, call {call}")

        in_threads(work, 4)
    finally:
        stop.set()
        changer.join()


def test_an_error_in_one_thread_leaves_the_others_alone(backend: str) -> None:
    p = MIX[1].build()
    args = (p.x, p.h_0, p.w_ih, p.w_hh)
    want = fastrnn.rnn_forward(*args, backend=backend)

    def work(i: int) -> None:
        for call in range(calls_of(backend)):
            if i % 2:
                with pytest.raises(ValueError, match="w_hh"):
                    fastrnn.rnn_forward(*args[:3], p.w_hh[:-1], backend=backend)
            else:
                same_results(fastrnn.rnn_forward(*args, backend=backend), want, f"thread {i}, call {call}")

    in_threads(work)


def test_one_layer_in_many_threads(backend: str) -> None:
    """Inference on one RNN, frozen and not, entered and left by each thread on its own."""
    rnn = fastrnn.RNN(9, 33, num_layers=2, bidirectional=True, backend=backend, seed=0)
    x = np.random.default_rng(0).standard_normal((7, 5, 9)).astype(np.float32)
    want = rnn(x)

    def work(i: int) -> None:
        for call in range(calls_of(backend)):
            if (i + call) % 2:
                with rnn.frozen():
                    got = rnn(x)
            else:
                got = rnn(x)
            same_results(got, want, f"thread {i}, call {call}")

    in_threads(work)
    rnn.parameters["weight_hh_l0"][0, 0] = 0  # writable again


def test_exit_with_calls_in_flight(backend: str) -> None:
    """Daemon threads are computing when the interpreter ends: it ends, without a crash."""
    if backend == "numpy":
        pytest.skip("bare numpy.matmul in daemon threads hangs at exit now and then: OpenBLAS's threads, not ours")
    code = f"""
import threading, time, numpy as np, fastrnn
x = np.zeros((50, 32, 64), np.float32); w = np.zeros((128, 64), np.float32); u = np.zeros((128, 128), np.float32)
def forever():
    while True: fastrnn.rnn_forward(x, None, w, u, backend={backend!r})
fastrnn.set_num_threads(3)
for _ in range(4): threading.Thread(target=forever, daemon=True).start()
time.sleep(0.3)
print("leaving")
"""
    for _ in range(3):
        assert output_of(code, timeout=20) == "leaving"


def test_a_short_lived_thread_leaves_nothing_behind(backend: str) -> None:
    """50 calls, each from a new thread: the number of OS threads does not grow with them."""
    p = MIX[1].build()

    def call() -> None:
        fastrnn.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, backend=backend)

    def one() -> None:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    one()
    before = _os_threads()
    for _ in range(50):
        one()
    assert _os_threads() <= before + 5


def _os_threads() -> int:
    import os

    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        pytest.skip("no /proc here")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's sched_setaffinity")
def test_a_worker_that_was_woken_may_run_where_it_could_before() -> None:
    """It is kept off its waker's CPU while it wakes up; a narrower choice of CPUs stays, too."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    if isinstance(native(), ImportError):
        pytest.skip("the native module is not available")
    code = """if True:
        import os, sys, threading, time
        import numpy as np, fastrnn
        x, w = np.ones((64, 64, 64), np.float32), np.zeros((128, 64), np.float32)
        first = threading.Thread(target=int)  # with which ThreadSanitizer starts one of its own
        first.start()
        first.join()
        before = set(os.listdir("/proc/self/task"))
        fastrnn.set_num_threads(3)
        def calls():
            for i in range(20):
                time.sleep(0.002)  # workers sleep
                fastrnn.rnn_forward(x, None, w, np.zeros((128, 128), np.float32), backend="cpp")
        def stays(threads, cpus):
            for _ in range(500):
                found = [os.sched_getaffinity(thread) for thread in threads]
                if all(one == cpus for one in found):
                    return
                time.sleep(0.01)
            raise AssertionError(f"expected {cpus}, got {found}")
        calls()
        cpus = os.sched_getaffinity(0)
        workers = [int(thread) for thread in set(os.listdir("/proc/self/task")) - before]
        assert len(workers) == 2, workers
        stays(workers, cpus)
        for narrow in ({min(cpus)}, {max(cpus)}):
            for thread in workers:
                os.sched_setaffinity(thread, narrow)
            calls()
            stays(workers, narrow)
    """
    output_of(code)
