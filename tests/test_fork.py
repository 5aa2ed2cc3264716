"""Promise 7, fork: a child works after the parent has used the kernels, also when another thread of the parent was
computing at that moment; so do spawn, forkserver, Pool and the workers of torch's DataLoader. 100 children of 100 are
right, each within a second of its fork.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import output_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")

START = """
import os, sys, threading, time, warnings
import numpy as np, fastrnn
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork in a process with threads
rng = np.random.default_rng(0)
x, w, u = (rng.standard_normal(s).astype(np.float32) for s in ((20, 48, 64), (96, 64), (96, 96)))
u /= 20
fastrnn.set_num_threads(3)

def call():
    output, h_n = fastrnn.rnn_forward(x, None, w, u, backend=BACKEND)
    g = fastrnn.rnn_backward(output, None, output, x, None, w, u, backend=BACKEND)
    return b"".join(a.tobytes() for a in (output, h_n, *g))

def child_agrees(want):
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if all(call() == want for _ in range(3)) else 3
        finally:
            os._exit(code)
    right = os.waitpid(pid, 0)[1] == 0
    seconds.append(time.perf_counter() - start)
    return right

seconds = []
def report(results):
    print(sum(results), "right; slow:", [round(s, 2) for s in seconds if s >= 1], "| own:", call() == want)
"""


ALL_RIGHT = "100 right; slow: [] | own: True"


def run(backend: str, code: str, timeout: float = 10) -> str:
    if backend == "numba":  # to import Numba and read, or compile, its kernels takes seconds more
        timeout += 60
    return output_of(f"BACKEND = {backend!r}\n" + START + code, timeout=timeout)


def test_call_fork_call(backend: str) -> None:
    code = "want = call()\nreport([child_agrees(want) for _ in range(100)])"
    assert run(backend, code, timeout=100) == ALL_RIGHT


def test_fork_before_the_first_call(backend: str) -> None:
    code = """
pid = os.fork()
if pid == 0:
    call(); os._exit(0)
print(os.waitpid(pid, 0)[1], len(call()) > 0)
"""
    assert run(backend, code) == "0 True"


def test_fork_while_another_thread_computes(backend: str) -> None:
    if backend == "numpy":
        pytest.skip("a child may inherit a lock of NumPy's BLAS that another thread held: not ours")
    code = """
want = call()
stop = threading.Event()
def forever():
    while not stop.is_set(): call()
workers = [threading.Thread(target=forever) for _ in range(2)]
for worker in workers: worker.start()
results = []
for i in range(100):
    time.sleep(0.0003 * i)
    results.append(child_agrees(want))
stop.set()
for worker in workers: worker.join()
report(results)
"""
    assert run(backend, code, timeout=100) == ALL_RIGHT


# The module of a backend is found slowly the first time, so that the fork meets a thread that imports it.
FIRST = """
import signal
reached = threading.Event()
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("fastrnn._backends.") and not reached.is_set():
            reached.set()
            time.sleep(0.3)
sys.meta_path.insert(0, Slow())
first = threading.Thread(target=call)
first.start()
assert reached.wait(30)
pid = os.fork()
if pid == 0:
    signal.alarm(LIMIT)  # ends a child that hangs
    os._exit(0 if len(call()) else 1)
first.join()
print(os.waitpid(pid, 0)[1], len(call()) > 0)
"""


def test_fork_while_another_thread_makes_the_first_call(backend: str) -> None:
    """The child finds the backend loaded, not half of it behind a lock that nobody releases."""
    if backend == "numba":
        pytest.skip("a child may inherit the import lock of Numba, which a fork does not wait for")
    assert run(backend, "LIMIT = 5\n" + FIRST, timeout=40) == "0 True"


def test_fork_while_another_thread_makes_the_first_call_of_torchs_layer(torch: Any) -> None:
    code = """
import os, sys, threading, time, warnings, torch, fastrnn.torch
warnings.simplefilter("ignore", DeprecationWarning)
layer, x, LIMIT = fastrnn.torch.RNN(8, 8), torch.randn(4, 2, 8), 5
call = lambda: layer(x)[0]
"""
    assert output_of(code + FIRST, timeout=60) == "0 True"


def test_children_of_children(backend: str) -> None:
    code = """
want = call()
pid = os.fork()
if pid == 0:
    os._exit(0 if call() == want and child_agrees(want) and call() == want else 1)
print(os.waitpid(pid, 0)[1])
"""
    assert run(backend, code) == "0"


WORKER = """
import time, numpy as np, fastrnn
def job(seed):
    x = np.random.default_rng(seed).standard_normal((9, 20, 16)).astype(np.float32)
    w, u = np.full((24, 16), 0.1, np.float32), np.full((24, 24), 0.01, np.float32)
    fastrnn.set_num_threads(2)
    start = time.perf_counter()
    output, _ = fastrnn.rnn_forward(x, None, w, u, backend=BACKEND)
    limit = 60 if BACKEND == "numba" else 1  # seconds; Numba may have to be imported first
    return output.tobytes(), time.perf_counter() - start < limit
"""
POOL = """
import multiprocessing, warnings, worker
if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork in a process with threads
    want = [worker.job(i)[0] for i in range(100)]
    context = multiprocessing.get_context(METHOD)
    if METHOD == "forkserver": context.set_forkserver_preload(["worker"])
    with context.Pool(2, maxtasksperchild=LIVES) as pool:
        got = pool.map(worker.job, range(100), chunksize=1)
        print(sum(g == w and fast for (g, fast), w in zip(got, want)))
"""
LOADER = """
import multiprocessing, warnings, torch, worker
class Data(torch.utils.data.Dataset):
    def __len__(self): return 100
    def __getitem__(self, i): return worker.job(i)
if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    want = [worker.job(i)[0] for i in range(100)]
    loader = torch.utils.data.DataLoader(Data(), batch_size=1, num_workers=2, multiprocessing_context=METHOD)
    print(sum(g == w and bool(fast) for ((g,), (fast,)), w in zip(loader, want)))
"""


def run_main(folder: Path, main: str, timeout: float, **names: object) -> str:
    """What the program prints, as a file that a child may import; `worker` lies beside it."""
    head = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    (folder / "worker.py").write_text(head + WORKER)
    (folder / "main.py").write_text(head + main)
    code = f"import runpy, sys; sys.path.insert(0, {str(folder)!r}); sys.argv = [{str(folder / 'main.py')!r}]\n"
    return output_of(code + "runpy.run_path(sys.argv[0], run_name='__main__')", timeout=timeout)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_pool(backend: str, method: str, tmp_path: Path) -> None:
    """100 jobs in a Pool, the parent's kernels used before; where starting is cheap, each in a process of its own."""
    lives = None if method == "spawn" or (backend, method) == ("numba", "forkserver") else 1
    assert run_main(tmp_path, POOL, timeout=120, BACKEND=backend, METHOD=method, LIVES=lives) == "100"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_dataloader_workers(backend: str, method: str, tmp_path: Path, torch: Any) -> None:
    """100 items computed in the workers of torch's DataLoader, the parent's kernels used before."""
    assert run_main(tmp_path, LOADER, timeout=120, BACKEND=backend, METHOD=method) == "100"
