"""The `cupy` backend without a GPU: its array code on NumPy arrays, its kernels compiled for the host, held against the
one-step bounds and the reference; the choice among its ways; and that the tests notice a broken kernel.

What this cannot see: NVRTC's and cuBLAS's own behaviour, memory ordering, speed. benchmarks/gpu_gate.py sees those.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import checks
from helpers.cases import DTYPES, GRADIENTS, NEEDS, Case, Problem, random_cases, with_layout
from helpers.compare import assert_all_same_bits, assert_same_bits, normalised_error
from helpers.cuda_on_host import COMPILER, H200, SOURCES, HostDevice, compile_options
from helpers.kernels import Gradients

from fastrnn._backends import cupy_plan, cupy_steps, reference
from fastrnn._backends.cupy_plan import Choice, Limits
from fastrnn._backends.options import RnnOptions

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
NVCC = shutil.which("nvcc")


class HostKernel:
    """What helpers.checks asks of a kernel."""

    backend, isa, is_native, tanh_ulps = "cupy", None, False, 2.0

    def __init__(self, choice: Choice | None = None, **device: Any) -> None:
        self.choice, self.device = choice, HostDevice(**device)

    def forward(self, p: Problem, out: Any = None) -> Any:
        given = (p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, RnnOptions(**p.options()), out)
        return cupy_steps.rnn_forward(self.device, *given, self.choice)

    def backward(self, p: Problem, output: Any, needs: tuple[str, ...] = NEEDS) -> Gradients:
        given = (p.d_output, p.d_h_n, output, p.x, p.h_0, p.w_ih, p.w_hh, RnnOptions(**p.options()), needs)
        return Gradients(*cupy_steps.rnn_backward(self.device, *given, self.choice))


def persistent(H: int, B: int, units: int, rows: int, itemsize: int, registers: int | None = None) -> Choice:
    """The kernel of these sizes; fewer columns in registers than it would keep there where `registers` is given."""
    it = cupy_plan.sizes(H, units, rows, itemsize)
    it = it if registers is None else replace(it, REG=min(registers, it.HP // it.SLICES))
    tiles = -(-B // rows)
    return Choice("block" if it.group == 1 else "grid", it, it.group * min(tiles, 3 if it.group > 1 else tiles))


def ways(H: int, B: int, itemsize: int) -> dict[str, Choice]:
    """Every way that can run so many units, and several sizes of the kernels."""
    found = {"steps": Choice("steps")}
    for units, rows, registers in ((32, 1, None), (64, 2, 4), (128, 4, 8), (256, 1, None)):
        it = persistent(H, B, units, rows, itemsize, registers)
        if it.sizes is not None and it.sizes.group == 1 and (units == 32 or units < 3 * H):
            found[f"block-{units}x{rows}"] = it
    for units, rows, registers in ((32, 2, 4), (64, 1, None)):
        it = persistent(H, B, units, rows, itemsize, registers)
        if it.sizes is not None and it.sizes.group > 1:
            found[f"grid-{units}x{rows}"] = it
    return found


# Sizes are compiled in: few of them, or compiling takes all the time.
CASES = [
    *random_cases(13, seed=801, max_work=20_000),
    *random_cases(13, seed=802, max_work=20_000, H=33),
    *random_cases(13, seed=803, max_work=40_000, H=65),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_way_is_within_the_bounds(case: Case, dtype: str) -> None:
    """Each element of each result, over random options, layouts and sizes that miss every tile: helpers.bounds."""
    case = replace(case, dtype=dtype)
    for name, choice in ways(case.H, case.build().B, np.dtype(dtype).itemsize).items():
        if name.startswith("grid") and (case.H not in (33, 65) or case.B > 17):  # slow on the host
            continue
        kernel = HostKernel(choice)
        checks.check_forward(kernel, case)
        checks.check_backward(kernel, case)
        persistent_launches = {launched for launched in kernel.device.launches if launched.endswith("persistent")}
        assert bool(persistent_launches) == (choice.way != "steps")


@pytest.mark.parametrize("way", ["steps", "block", "grid"])
@pytest.mark.parametrize("H", [33, 65, 129])
def test_gradients_of_the_reference(way: str, H: int) -> None:
    """float64, every option at once: 1e-12 of each array's largest element."""
    options: dict[str, Any] = {"reset": True, "recurrent_mask": True, "keep_mask": True, "dtype": "float64", "seed": H}
    for lengths in ("none", "ragged", "packed"):
        for reverse in (False, True):
            case = Case(T=9, B=5, I=3, H=H, lengths=lengths, reverse=reverse, **options)
            p = case.build()
            choice = Choice("steps")
            if way != "steps":
                choice = persistent(H, p.B, {33: 64, 65: 128, 129: 256}[H] if way == "block" else 32, 2, 8, 16)
            if choice.sizes is not None and choice.sizes.shared_bytes > H200.shared_bytes:
                pytest.skip("float64 of 256 units needs more than one block")
            kernel, given = HostKernel(choice), RnnOptions(**p.options())
            output, h_n = kernel.forward(p)
            want = reference.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, given)
            assert max(normalised_error(output, want[0]), normalised_error(h_n, want[1])) <= 1e-13, case.id
            got = kernel.backward(p, want[0])
            exact = reference.rnn_backward(p.d_output, p.d_h_n, want[0], p.x, p.h_0, p.w_ih, p.w_hh, given)
            for name, d, d_exact in zip(GRADIENTS, got, exact, strict=True):
                assert normalised_error(d, d_exact) <= 1e-12, (case.id, name)


@pytest.mark.parametrize("name", ["steps", "block-32x1", "grid-32x2"])
@pytest.mark.parametrize(("T", "B", "I"), [(0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1)])
def test_empty_sizes(name: str, T: int, B: int, I: int) -> None:
    case = Case(T=T, B=B, I=I, H=40 if name.startswith("grid") else 9, dtype="float64")
    p = case.build()
    choices = ways(p.H, max(B, 1), 8)
    kernel, given = HostKernel(choices[name]), RnnOptions(**p.options())
    got = kernel.forward(p)
    want = reference.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, given)
    assert max(map(normalised_error, got, want)) <= 1e-14
    exact = reference.rnn_backward(p.d_output, p.d_h_n, want[0], p.x, p.h_0, p.w_ih, p.w_hh, given)
    for d, d_exact in zip(kernel.backward(p, want[0]), exact, strict=True):
        assert d is not None
        assert d.shape == d_exact.shape
        assert normalised_error(d, d_exact) <= 1e-14


@pytest.mark.parametrize("name", ["steps", "block-64x2", "grid-32x2"])
def test_strided_outputs_and_what_is_not_needed(name: str) -> None:
    """out with gaps takes the same bits; a gradient that is not needed is None, and the others stay as they are."""
    case = Case(T=4, B=3, I=5, H=40, lengths="ragged", seed=3)
    p = case.build()
    kernel = HostKernel(ways(40, 3, 4)[name])
    output, h_n = kernel.forward(p)
    out = with_layout(np.full((4, 3, 40), np.nan, np.float32), "outer_strided")
    got = kernel.forward(p, out)
    assert got[0] is out
    assert_all_same_bits(got, (output, h_n), "out")
    everything = kernel.backward(p, output)
    for need in NEEDS:
        some = kernel.backward(p, with_layout(output, "batch_first"), (need,))
        for wanted, name_, d, full in zip(NEEDS, GRADIENTS, some, everything, strict=True):
            assert_same_bits(d, full if wanted == need else None, name_)


@pytest.mark.parametrize("name", ["steps", "block-64x2", "grid-32x2"])
@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's own product
def test_nan_stays_in_its_row(name: str) -> None:
    p = Case(T=5, B=5, I=3, H=40, lengths="ragged", reset=True, seed=4).build()
    kernel = HostKernel(ways(40, 5, 4)[name])
    clean = kernel.forward(p)
    lengths = np.asarray(p.lengths)
    long = int(np.argmax(lengths))
    x, h_0 = p.x.copy(), np.array(p.h_0)
    for b in range(5):
        x[lengths[b] :, b] = np.nan  # is not read
    x[0, long], h_0[long] = np.inf, np.nan
    output, h_n = kernel.forward(p.but(x=x, h_0=h_0))
    others = [b for b in range(5) if b != long]
    assert np.isnan(h_n[long]).any() or np.isnan(output[:, long]).any()
    assert_all_same_bits((output[:, others], h_n[others]), (clean[0][:, others], clean[1][others]), "other rows")
    d = kernel.backward(p.but(x=np.where(np.arange(5)[:, None, None] < lengths[:, None], p.x, np.nan)), clean[0])
    assert_all_same_bits(d, kernel.backward(p, clean[0]), "NaN beyond the lengths")


@pytest.mark.parametrize("name", ["block-64x2", "grid-32x2", "grid-64x1"])
def test_the_bits_do_not_depend_on_the_order_of_threads(name: str) -> None:
    """Threads of a launch run in 12 different orders."""
    p = Case(T=6, B=7, I=3, H=70 if name.startswith("grid") else 40, lengths="ragged", keep_mask=True, seed=5).build()
    choice = ways(p.H, 7, 4)[name]
    first = HostKernel(choice)
    output, h_n = first.forward(p)
    gradients = first.backward(p, output)
    for seed in range(1, 12):
        kernel = HostKernel(choice, seed=seed)
        assert_all_same_bits(kernel.forward(p), (output, h_n), f"forward, order {seed}")
        assert_all_same_bits(kernel.backward(p, output), gradients, f"backward, order {seed}")


# ---- Broken on purpose: each edit of the kernels has to be noticed by the tests above

FAULTS = {
    "no barrier between product and sum": (
        "multiply(own, shared, peers.receive(shared, buffer, b0));\n      __syncthreads();",
        "multiply(own, shared, peers.receive(shared, buffer, b0));",
    ),
    "the group is not waited for": ("while (static_cast<int>(load_acquire(arrived) - turn) < 0) wait_a_little();", ""),
    "one block too few is waited for": ("turn += group;", "turn += group - 1;"),
    "one buffer in global memory": ("global[(buffer * B + b) * HP + unit] = value;", "global[b * HP + unit] = value;"),
    "no barrier at the end of a step": (
        "    __syncthreads();\n    if (!global) return;\n    turn",
        "    if (!global) return;\n    __syncthreads();\n    turn",
    ),
    "a slice forgotten": ("slice < SLICES", "slice < SLICES - 1"),
    "the columns in shared memory forgotten": ("k = REG; k < COLUMNS; k += VEC", "k = COLUMNS; k < COLUMNS; k += VEC"),
    "the transpose forgotten": ("transposed ? w_hh[column * H + unit]", "transposed ? w_hh[unit * H + column]"),
    "ends are not looked at": ("!lengths || t < lengths[b]);\n  }", "true);\n  }"),
    "resets are not looked at": ("if (reset && rows.exists(t, b) && reset[rows.row(t, b)]) state = 0;", ""),
    "the step before of a kept unit": ("if (keep && keep[r * H + unit]) d_p += d;", ""),
    "the mask of the gradient": ("if (mask) d_p *= mask[b * H + unit];", ""),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_kernel_is_noticed(fault: str) -> None:
    noticed = []
    for units, registers in ((32, 4), (64, 4)):
        case = Case(T=6, B=3, I=3, H=62, lengths="ragged", reset=True, recurrent_mask=True, keep_mask=True, seed=6)
        for seed in range(3):
            kernel = HostKernel(persistent(62, 3, units, 2, 4, registers), edits=(FAULTS[fault],), seed=seed)
            try:
                checks.check_forward(kernel, case)
                checks.check_backward(kernel, case)
            except AssertionError:
                noticed.append((units, seed))
    assert noticed, f"nothing fails although {fault}"


STEP_FAULTS = (
    ("h_n of a row that ended", "if (states) states[at] = next;\n    }", "}\n    if (states) states[at] = next;"),
    (
        "the next reset",
        "const real state = reset && reset[next_row0 + b] ? real(0)",
        "const real state = false ? real(0)",
    ),
    ("bias", "z[row0 * H + at] + bias[h]", "z[row0 * H + at]"),
    ("the kept unit's gradient", "if (keep && keep[done_row0 * H + at]) d_p += d;", ""),
    ("d_output beyond the end", "if (!lengths || t < lengths[b]) {\n      if (d_output)", "{\n      if (d_output)"),
    ("the state before, of reversed rows", "reverse ? t + 1 : t - 1", "t - 1"),
    ("relu's derivative", "h <= 0 ? real(0) : d_h", "d_h"),
)


@pytest.mark.parametrize("fault", STEP_FAULTS, ids=lambda fault: fault[0])
def test_a_broken_step_is_noticed(fault: tuple[str, str, str], monkeypatch: Any) -> None:
    name, old, new = fault
    assert old in (SOURCES / "rnn_steps.cuh").read_text(), name
    noticed = False
    for nonlinearity in ("tanh", "relu"):
        case = Case(T=6, B=5, I=3, H=9, nonlinearity=nonlinearity, lengths="ragged", reverse=True, reset=True,
                    recurrent_mask=True, keep_mask=True, seed=6)  # fmt: skip
        kernel = HostKernel(Choice("steps"), edits=((old, new),))
        try:
            checks.check_forward(kernel, case)
            checks.check_backward(kernel, case)
        except AssertionError:
            noticed = True
    assert noticed, f"nothing fails although {name} is broken"


# ---- The choice


def test_every_candidate_fits_the_device() -> None:
    """Shared memory, whole groups, no more blocks at once than multiprocessors, all rows covered."""
    small, none = Limits(10, 48 << 10, True), Limits(132, 227 << 10, False)
    for limits in (H200, small, none):
        for H in (1, 9, 32, 33, 64, 100, 128, 250, 256, 257, 512, 1000, 1024, 2048, 3000):
            for B in (1, 2, 5, 32, 128, 1024):
                for itemsize in (4, 8):
                    found = cupy_plan.candidates(H, B, itemsize, limits)
                    for way, it, blocks in found:
                        assert it is not None
                        assert way == ("block" if it.group == 1 else "grid")
                        assert it.shared_bytes <= limits.shared_bytes
                        assert it.HP >= H > it.HP - it.UNITS
                        assert it.UNITS // it.PER * it.SLICES == cupy_plan.THREADS
                        assert blocks % it.group == 0
                        assert way == "block" or (limits.cooperative and blocks <= limits.multiprocessors)
                        assert way == "grid" or blocks * it.ROWS >= B
                    chosen = cupy_plan.choose(H, B, itemsize, limits)
                    assert chosen.way == "steps" or chosen in found
    assert cupy_plan.choose(128, 1, 4, H200).way == "block"
    assert cupy_plan.choose(1024, 1, 4, H200).way == "grid"
    assert cupy_plan.choose(4096, 512, 4, H200).way == "steps"
    assert cupy_plan.choose(1024, 1, 4, none).way == "steps"


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("H", [32, 64, 128, 256, 1024, 2048])
def test_registers_do_not_spill(H: int, architecture: str, tmp_path: Path) -> None:
    """What the choice would take for 1 and for 64 rows: ptxas, spills as errors, in both dtypes; and no atomic on
    floats, no approximate tanh."""
    (tmp_path / "kernels.cu").write_text('#include "device.cuh"\n#include "rnn_persistent.cuh"\n')
    choices = {
        (itemsize, choice.sizes)
        for itemsize in (4, 8)
        for B in (1, 64)
        if (found := cupy_plan.candidates(H, B, itemsize, H200))
        for choice in [min(found, key=lambda c: cupy_plan.seconds(c, H, B, itemsize, H200))]
    }
    assert choices or H == 2048
    for itemsize, it in choices:
        command = [
            str(NVCC),
            "-std=c++17",
            f"-arch={architecture}",
            f"-I{SOURCES}",
            "-Xptxas",
            "--warn-on-spills,-Werror",
        ]
        command += compile_options(np.dtype(f"f{itemsize}"), it)
        source = str(tmp_path / "kernels.cu")
        done = subprocess.run(
            [*command, "-cubin", "-o", str(tmp_path / "k.cubin"), source], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        subprocess.run([*command[:4], *command[6:], "-ptx", "-o", str(tmp_path / "k.ptx"), source], check=True)
        ptx = (tmp_path / "k.ptx").read_text()
        assert not re.search(r"\b(atom|red)\.[^\n]*\.f(32|64)|tanh\.approx|ld\.global\.nc[^\n]*exchange", ptx)
