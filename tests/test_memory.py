"""Memory: thousands of calls leave nothing behind, on error paths too; sizes that cannot be are a MemoryError before
anything was written, and the next call works; reference counts of arguments are unchanged.
"""

import gc
import sys
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case
from helpers.processes import output_of

import fastrnn

LEAK = """
import gc, numpy as np, fastrnn

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

rng = np.random.default_rng(0)
x, w, u = (rng.standard_normal(s).astype(np.float32) for s in ((6, 9, 17), (33, 17), (33, 33)))
u /= 10
lengths = np.arange(9) % 7
rnn = fastrnn.RNN(17, 33, num_layers=2, bidirectional=True, backend=BACKEND)
def good():
    output, h_n = fastrnn.rnn_forward(x, None, w, u, lengths=lengths, backend=BACKEND)
    fastrnn.rnn_backward(output, h_n, output, x, None, w, u, lengths=lengths, backend=BACKEND)
def layer():
    output, h_n, backward = rnn.forward_train(x)
    backward(output)
    with rnn.frozen(): rnn(x)
def bad():
    for wrong in ({"lengths": lengths - 1}, {"nonlinearity": "no"}, {"out": x}):
        try: fastrnn.rnn_forward(x, None, w, u, backend=BACKEND, **wrong)
        except (ValueError, TypeError): pass
        else: raise SystemExit("no error")
def huge():
    many = np.broadcast_to(x[:1, :1], (2**33, 2**20, 17))
    try: fastrnn.rnn_forward(many, None, w, u, backend=BACKEND)
    except MemoryError: pass
    else: raise SystemExit("no MemoryError")
work, count = CALLS
for _ in range(max(count // 10, 20)): work()
gc.collect()
before = resident()
for _ in range(count): work()
gc.collect()
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("what", "calls"), [("good", 10_000), ("layer", 1_500), ("bad", 10_000), ("huge", 1_000)])
def test_calls_leave_nothing_behind(backend: str, what: str, calls: int) -> None:
    """Resident memory grows by less than 1 MB over 10,000 calls, good or bad."""
    head = f"BACKEND = {backend!r}\n"
    calls = calls if backend == "cpp" else calls // 5
    grown = int(output_of(head + LEAK.replace("CALLS", f"{what}, {calls}"), timeout=120))
    assert grown < 1_000_000, f"{grown} bytes"


ABSURD = {
    "output of 2^60 bytes": (2**40, 2**12, 64),
    "output beyond 2^63 bytes": (2**40, 2**20, 64),
    "one row, 2^61 steps": (2**60, 1, 64),
    "one step, 2^61 rows": (1, 2**60, 64),
}


@pytest.mark.parametrize("what", ABSURD)
def test_absurd_sizes_are_a_memory_error(backend: str, what: str) -> None:
    """x of stride 0 stands for more rows than any machine holds."""
    T, B, H = ABSURD[what]
    x = np.broadcast_to(np.ones((1, 1, 1), np.float32), (T, B, 1))
    w_ih, w_hh = np.ones((H, 1), np.float32), np.ones((H, H), np.float32)
    with pytest.raises(MemoryError):
        fastrnn.rnn_forward(x, None, w_ih, w_hh, backend=backend)
    small = Case().build()
    arguments = (small.x, small.h_0, small.w_ih, small.w_hh)
    output, _ = fastrnn.rnn_forward(*arguments, backend=backend)
    assert np.isfinite(output).all(), "the next call works"
    tape = np.broadcast_to(np.float32(0.5), (T, B, H)) if T * B * H < 2**60 else None
    if tape is not None:
        with pytest.raises(MemoryError):
            fastrnn.rnn_backward(tape, None, tape, x, None, w_ih, w_hh, backend=backend)


@pytest.mark.parametrize("options", [{"zoneout": 0.5}, {"num_layers": 2, "dropout": 0.5}], ids=str)
def test_absurd_masks_are_a_memory_error(options: dict[str, Any]) -> None:
    x = np.broadcast_to(np.zeros((1, 1, 2), np.float32), (2**59, 1, 2))
    with pytest.raises(MemoryError):
        fastrnn.RNN(2, 8, **options).forward_train(x)


def test_absurd_sizes_leave_out_untouched(backend: str) -> None:
    """All memory is taken before the first write: a failing call has changed nothing in `out`."""
    if backend == "numpy":
        pytest.skip("NumPy takes its memory as it goes")
    H = 2**15  # w_hh of stride 0: 4 GiB when packed, twice that in float64
    limit = 3 << 30
    code = f"""
import resource, numpy as np, fastrnn
w_ih = np.broadcast_to(np.float64(0.5), ({H}, 1)); w_hh = np.broadcast_to(np.float64(0.5), ({H}, {H}))
x = np.ones((2, 40, 1)); out = np.full((2, 40, {H}), 7.0)
BACKEND = {backend!r}
fastrnn.rnn_forward(x[:, :2], None, w_ih[:9], w_hh[:9, :9], backend=BACKEND)
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
try: fastrnn.rnn_forward(x, None, w_ih, w_hh, backend=BACKEND, out=out)
except MemoryError as error: print((out == 7).all(), "bytes" in str(error) or "GiB" in str(error))
print(fastrnn.rnn_forward(x[:, :2], None, w_ih[:9], w_hh[:9, :9], backend=BACKEND)[0].shape)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits memory by RLIMIT_AS")
    assert output_of(code).splitlines() == ["True True", "(2, 2, 9)"]


def _counts(arrays: list[Any]) -> list[int]:
    gc.collect()
    return [sys.getrefcount(a) for a in arrays]


@pytest.mark.parametrize("fails", [False, True])
def test_reference_counts_are_unchanged(backend: str, fails: bool) -> None:
    p = Case(T=4, B=3, lengths="ragged").build()
    arrays = [a for a in vars(p).values() if isinstance(a, np.ndarray)]
    before = _counts(arrays)

    def call() -> None:
        lengths = p.lengths if not fails else p.lengths + 100
        output, _ = fastrnn.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, lengths=lengths, backend=backend)
        fastrnn.rnn_backward(
            p.d_output, p.d_h_n, output, p.x, p.h_0, p.w_ih, p.w_hh, lengths=p.lengths, backend=backend
        )  # fmt: skip

    for _ in range(20):
        if fails:
            with pytest.raises(ValueError, match="lengths"):
                call()
        else:
            call()
    assert _counts(arrays) == before


def test_a_used_backward_lets_its_arrays_go(backend: str) -> None:
    """After backward has run, x and the outputs of the layers are free, though backward itself lives on."""
    import weakref

    rnn = fastrnn.RNN(5, 7, num_layers=2, backend=backend)
    x = np.ones((6, 4, 5), np.float32)
    output, _, backward = rnn.forward_train(x)
    watched = weakref.ref(output), weakref.ref(x)
    upstream = np.ones_like(output)
    del output, x
    assert watched[1]() is not None, "held until backward"
    backward(upstream)
    gc.collect()
    assert watched[0]() is None
    assert watched[1]() is None
    with pytest.raises(RuntimeError):
        backward(upstream)
