"""Promise 7, failed allocation: whichever allocation of a call is refused, the call raises MemoryError, has written
nothing, has leaked nothing, and the next call is right. Every n-th allocation is refused in turn until none is left,
those of the binding, of NumPy and of the interpreter among them.
"""

import platform
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import shared_library
from helpers.kernels import native
from helpers.processes import output_of

HELPERS = Path(__file__).parent / "helpers"
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc" or isinstance(native(), ImportError),
    reason="the native module, under a glibc whose malloc can be replaced",
)

CODE = """
import ctypes, gc, json, sys
import numpy as np, fastrnn
from fastrnn import _fastrnn_cpu as native
from helpers.cases import Case

shim = ctypes.CDLL(None)
shim.until_failure.restype = shim.live_blocks.restype = ctypes.c_long
fail_after, until_failure = shim.fail_after, shim.until_failure
fail_after.argtypes = [ctypes.c_long]

def calls():
    '''name -> (call, the arrays it writes, whether it leaves the results in new arrays)'''
    for name, case in {
        "plain": Case(T=3, B=40, I=65, H=129),
        "ragged, masked": Case(T=4, B=9, I=7, H=33, lengths="ragged", reset=True, recurrent_mask=True, keep_mask=True),
        "packed, strided": Case(T=4, B=9, I=7, H=33, lengths="packed", layout="negative_all"),
        "tiny": Case(T=1, B=1, I=3, H=5, dtype="float64"),
    }.items():
        p = case.build()
        o = p.options()
        relu = o.pop("nonlinearity") == "relu"
        dtype, H, B = p.x.dtype, p.H, p.B
        output, h_n = np.full(p.output_shape, 7, dtype), np.full((B, H), 7, dtype)
        tape = fastrnn.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, **p.options(), backend="cpp")[0]
        shapes = p.x.shape, (B, H), p.w_ih.shape, (H, H), (H,)
        gradients = [np.full(shape, 7, dtype) for shape in shapes]
        def forward(p=p, o=o, output=output, h_n=h_n, relu=relu):
            native.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, output, h_n, relu=relu, threads=3,
                               tuning={"hoist": 1}, isa="generic", **o)
        def backward(p=p, o=o, gradients=gradients, tape=tape, relu=relu):
            native.rnn_backward(p.d_output, p.d_h_n, tape, p.x, p.h_0, p.w_ih, p.w_hh, *gradients, relu=relu,
                                threads=3, tuning={"row_block": 5}, **o)
        def functional(p=p, tape=tape):
            o, inputs = {"backend": "cpp", **p.options()}, (p.x, p.h_0, p.w_ih, p.w_hh)
            forward = fastrnn.rnn_forward(*inputs, p.b_ih, p.b_hh, **o)
            return [*forward, *fastrnn.rnn_backward(p.d_output, p.d_h_n, tape, *inputs, **o)]
        yield "forward, " + name, forward, [output, h_n]
        yield "backward, " + name, backward, gradients
        yield "functional, " + name, functional, []
    leaky = {"alpha": 0.5, "train_alpha": True}
    rnns = [fastrnn.RNN(5, 9, num_layers=2, bidirectional=True, backend="cpp", seed=0, **o) for o in ({}, leaky)]
    cell = fastrnn.RNNCell(5, 9, backend="cpp", seed=0)
    x = np.ones((4, 3, 5), np.float32)
    def layer(rnn):
        for d in rnn.grads.values(): d[...] = 0
        output, h_n, backward = rnn.forward_train(x)
        backward(output, h_n)
        with rnn.frozen(): return [rnn(x)[0], cell(x[0]), *(d.copy() for d in rnn.grads.values())]
    yield "layer", lambda: layer(rnns[0]), []
    yield "leaky layer", lambda: layer(rnns[1]), []

def bits(arrays): return [a.tobytes() for a in arrays]

report = {}
for name, call, written in calls():
    want = bits(written if (result := call()) is None else result)
    messages = set()
    def sweep(n=0, check=True):
        while True:
            n += 1
            for a in written: a[...] = 7
            left, result = 0, None
            fail_after(n)
            try:
                result = call()
                left = until_failure()
                fail_after(0)
            except (MemoryError, SystemError) as error:
                fail_after(0)  # a reduction of NumPy that is refused memory may return NULL without an exception
                if isinstance(error, SystemError) and not name.startswith("functional"): raise
                messages.add(str(error))
                assert all((a == 7).all() for a in written), f"{name}: allocation {n} refused, and something written"
                assert bits(written if (again := call()) is None else again) == want, f"{name}: wrong after {n}"
            else:
                assert bits(written if result is None else result) == want, f"{name}: wrong without allocation {n}"
            if left > 0: return n - 1
    for _ in range(3): count = sweep()
    gc.collect()
    before, sweeps = shim.live_blocks(), 10
    for _ in range(sweeps): sweep()
    gc.collect()
    grown = (shim.live_blocks() - before) / sweeps
    report[name] = count, grown, sum("bytes are not available" in m for m in messages)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: Any) -> str:
    return shared_library.build("failing_malloc", tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("kept", ["0", "128"])  # MiB between calls: with some a call takes less from malloc
def test_whichever_allocation_fails_nothing_is_lost(shim: str, kept: str) -> None:
    import json

    head = f"import sys\nsys.path.insert(0, {str(HELPERS.parent)!r})\n"
    report = json.loads(output_of(head + CODE, timeout=300, LD_PRELOAD=shim, FASTRNN_KEPT_MIB=kept))
    assert len(report) == 14
    for name, (count, grown, messages) in report.items():
        assert count >= 1, f"{name}: no allocation was refused"
        assert grown < 1, f"{name}: {grown} blocks are left behind by {count} refused allocations"
        assert messages >= 1 or kept != "0", f"{name}: no message names the bytes needed"
