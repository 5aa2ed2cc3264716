"""Promise 7, fork: a child works after the parent has used the kernels, also when another thread of the parent was
computing at that moment; so do spawn, forkserver and Pool. Each within 10 seconds, or the child hangs.
"""

import os
import sys

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
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if all(call() == want for _ in range(3)) else 3
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0
"""


def run(backend: str, code: str, timeout: float = 10) -> str:
    if backend == "numba":  # to import Numba and read, or compile, its kernels takes seconds more
        timeout += 60
    return output_of(f"BACKEND = {backend!r}\n" + START + code, timeout=timeout)


def test_call_fork_call(backend: str) -> None:
    code = "want = call()\nprint(all(child_agrees(want) for _ in range(10)), call() == want)"
    assert run(backend, code) == "True True"


def test_fork_before_the_first_call(backend: str) -> None:
    code = """
pid = os.fork()
if pid == 0:
    call(); os._exit(0)
print(os.waitpid(pid, 0)[1], len(call()) > 0)
"""
    assert run(backend, code) == "0 True"


def test_fork_while_another_thread_computes(backend: str) -> None:
    code = """
want = call()
stop = threading.Event()
def forever():
    while not stop.is_set(): call()
workers = [threading.Thread(target=forever) for _ in range(2)]
for worker in workers: worker.start()
results = []
for i in range(10):
    time.sleep(0.003 * i)
    results.append(child_agrees(want))
stop.set()
for worker in workers: worker.join()
print(all(results), call() == want)
"""
    assert run(backend, code) == "True True"


def test_children_of_children(backend: str) -> None:
    code = """
want = call()
pid = os.fork()
if pid == 0:
    os._exit(0 if call() == want and child_agrees(want) and call() == want else 1)
print(os.waitpid(pid, 0)[1])
"""
    assert run(backend, code) == "0"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_pool(backend: str, method: str) -> None:
    """Pool by every start method, the parent's kernels used before."""
    if method not in ("fork", "spawn", "forkserver") or sys.platform == "win32":
        pytest.skip("POSIX start methods")
    code = f"""
import runpy, tempfile, textwrap, pathlib
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "worker.py").write_text(textwrap.dedent('''
    import numpy as np, fastrnn
    def job(seed):
        x = np.random.default_rng(seed).standard_normal((9, 20, 16)).astype(np.float32)
        w, u = np.full((24, 16), 0.1, np.float32), np.full((24, 24), 0.01, np.float32)
        fastrnn.set_num_threads(2)
        return fastrnn.rnn_forward(x, None, w, u, backend={backend!r})[0].tobytes()
'''))
(folder / "main.py").write_text(textwrap.dedent('''
    import multiprocessing, sys, worker
    if __name__ == "__main__":
        want = [worker.job(i) for i in range(8)]
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            print(pool.map(worker.job, range(8)) == want)
'''))
sys.path.insert(0, str(folder))
import subprocess
environment = {{**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning"}}
subprocess.run([sys.executable, str(folder / "main.py")], check=True, timeout=30, env=environment)
"""
    assert run(backend, code, timeout=40) == "True"
