"""What a Python signal handler does in the middle of a call of the native module: it has the caller's floating-point
environment, and may fork. The child of such a fork does not have the threads of the call: it gets an error and goes on
with calls of its own, and a call on one thread ends there too.
"""

import signal

import pytest
from helpers.kernels import native
from helpers.processes import output_of

pytestmark = [
    pytest.mark.skipif(isinstance(native(), ImportError), reason="the native module is not available"),
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX signals"),
]

HEAD = """
import os, signal, time
import numpy as np, fastrnn
T, B, I, H = SHAPE
fastrnn.set_num_threads(THREADS)
rng = np.random.default_rng(0)
x = np.broadcast_to(rng.standard_normal((1, B, I)).astype(np.float32), (T, B, I))
w, u = ((rng.standard_normal((H, n)) / (3 * np.sqrt(n))).astype(np.float32) for n in (I, H))
call = lambda: fastrnn.rnn_forward(x, None, w, u, backend="cpp")[1]
want = call().tobytes()
seen = []

def interrupted(handler):
    # one signal in the middle of a call; what the call gives
    signal.signal(signal.SIGALRM, lambda *_: seen.append(handler()))
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    while not seen:  # the next ones may be shorter
        signal.setitimer(signal.ITIMER_REAL, seconds / 2)
        result = call()
        signal.setitimer(signal.ITIMER_REAL, 0)
    return result
"""

ENVIRONMENT = """
smallest = 5e-324
assert interrupted(lambda: smallest * 1.0).tobytes() == want
print(seen[0] == smallest)
"""

FORK = """
def fork():
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # ends a child that hangs
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if RAISES:
            raise SystemExit(7)
    return pid

code = 3
try:
    right = interrupted(fork).tobytes() == want
except RuntimeError as error:
    code = 4 if "forked by a signal handler" in str(error) else 5
except SystemExit as error:
    code = error.code
else:
    code = 6 if right else 3
if seen and seen[0] > 0:
    print(code, os.waitstatus_to_exitcode(os.waitpid(seen[0], 0)[1]))
elif code in (4, 7) and call().tobytes() != want:
    raise SystemExit(1)
else:
    raise SystemExit(code)
"""

# One row, whose units are split over the threads, and many, whose rows are.
SHAPES = {"one row": (10_000, 1, 8, 700), "many rows": (300, 96, 64, 640)}


def run(code: str, shape: str, threads: int, **names: bool) -> str:
    head = f"SHAPE, THREADS = {SHAPES[shape]}, {threads}\n" + "".join(f"{k} = {v}\n" for k, v in names.items())
    return output_of(head + HEAD + code, timeout=60)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_handler_has_the_callers_floating_point_environment(shape: str, threads: int) -> None:
    assert run(ENVIRONMENT, shape, threads) == "True"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_handler_forks_and_its_child_ends_the_call(shape: str) -> None:
    """Parent: right (6). Child: SystemExit(7), and then a right call."""
    for threads in (1, 2):
        assert run(FORK, shape, threads, RAISES=True) == "6 7"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_handler_forks_and_its_child_goes_on(shape: str) -> None:
    """On one thread the child's call is right (6) too; on two it is an error (4), and the next one right. The signal
    may come when the call is over, on a machine whose speed changes; not three times.
    """
    assert run(FORK, shape, 1, RAISES=False) == "6 6"
    assert "6 4" in (run(FORK, shape, 2, RAISES=False) for _ in range(3))
