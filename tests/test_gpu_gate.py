"""benchmarks/gpu_gate.py as far as a machine without a GPU can run it: it says "no device" and how it ends, goes on
where it stopped, and its checks pass right kernels and catch wrong ones, memory around arrays included."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case
from helpers.cuda_host import HostKernel, kernel_names
from helpers.cuda_on_host import COMPILER, HostDevice
from helpers.cupy_process import run

from fastrnn._backends import cupy_plan, reference

GATE = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu_gate.py"
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture
def gate(monkeypatch: Any) -> Any:
    """The gate's module."""
    monkeypatch.syspath_prepend(str(GATE.parent))
    import gpu_gate

    return gpu_gate


def test_without_a_device_every_stage_says_so(tmp_path: Path) -> None:
    """Exit code 3; no stage passes, fails or is left out; the environment is written all the same."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, str(GATE), "--out", str(tmp_path)], capture_output=True, text=True, env=hidden
    )
    assert done.returncode == 3, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    names = ["environment", "build", "primitives", "correctness", "races", "training", "sanitizer", "timings"]
    assert [line.split()[0] for line in lines[: len(names)]] == names
    assert all("no device: " in line for line in lines[: len(names)])
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == {*names, "report"}
    assert {entry["status"] for entry in found.values()} == {"no device"}
    assert found["environment"]["python"]
    assert "commit" in found["environment"]


def test_unknown_stages_are_refused(gate: Any, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        gate.main(["--out", str(tmp_path), "--stages", "timings,tea"])
    assert "got 'tea'" in capsys.readouterr().err


# ---- The journal


def test_the_journal_goes_on_where_it_stopped(gate: Any, tmp_path: Path) -> None:
    ran: list[str] = []

    def items(broken: bool) -> Iterator[Any]:
        for key in "abcd":

            def run(key: str = key) -> dict[str, Any]:
                ran.append(key)
                assert not (broken and key == "b"), "b is wrong"
                return {"value": key}

            yield key, run

    path = tmp_path / "j.jsonl"
    assert not gate.checks.Journal(path).work(items(True), seconds=-1)
    assert ran == []
    first = gate.checks.Journal(path)
    pairs = list(items(True))
    assert first.work(pairs[:2], 100)
    with path.open("a") as file:
        file.write('{"key": "c", "ok": tr')  # cut off while it was written
    second = gate.checks.Journal(path)
    assert second.work(pairs, 100)
    assert ran == ["a", "b", "c", "d"]
    found = second.summary()
    assert (found["checks"], found["failed"]) == (4, 1)
    (failure,) = found["failures"]
    assert failure["key"] == "b"
    assert failure["error"].startswith("AssertionError: b is wrong")
    assert gate._journal(tmp_path, "j", iter(pairs))["status"] == "failed"


def test_the_worst_stage_decides(gate: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Passed stages are not run again; a failure is the exit code even beside stages without a device."""
    for name, status in (("build", "passed"), ("races", "failed"), ("timings", "unfinished")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"status": status, "seconds": 1}))
    ran: list[str] = []

    def run(command: list[str], **_: Any) -> None:
        name = command[command.index("--stage") + 1]
        ran.append(name)
        status = {"races": "failed", "timings": "unfinished", "primitives": "no device"}[name]
        (tmp_path / f"{name}.json").write_text(json.dumps({"status": status, "seconds": 1}))

    monkeypatch.setattr(gate.subprocess, "run", run)
    assert gate.main(["--out", str(tmp_path), "--stages", "build,timings"]) == 2
    assert gate.main(["--out", str(tmp_path), "--stages", "build,primitives,timings"]) == 3
    assert gate.main(["--out", str(tmp_path), "--stages", "build,primitives,races"]) == 1
    assert gate.main(["--out", str(tmp_path), "--stages", "build"]) == 0
    assert "build" not in ran


def test_the_report_has_a_row_for_each_ratio(gate: Any, tmp_path: Path) -> None:
    arms = {
        "torch.nn.RNN": {"forward": {"median_ms": 3.0}, "training": {"median_ms": 8.0}},
        "fastrnn.torch.RNN": {"forward": {"median_ms": 1.5}},
        "flashrnn": {"error": "ImportError: no"},
    }
    entry = {"key": "32x512x512 ieee", "ok": True, "arms": arms}
    (tmp_path / "timings.jsonl").write_text(json.dumps(entry) + "\n")
    summary = {"status": "failed", "checks": 5, "refused": 1, "failed": 1, "failures": [{"key": "k", "error": "e"}]}
    (tmp_path / "correctness.json").write_text(json.dumps(summary))
    found = gate.report(tmp_path)
    assert found["status"] == "failed"
    assert "correctness: 5 checks, 1 refused, 1 failed" in found["table"]
    assert "  k: e" in found["table"]
    assert found["table"][-1].split() == ["32x512x512", "ieee", "forward", "3.000", "1.500", "2.00"]


# ---- The checks


@needs_compiler
def test_the_checks_of_training_pass_and_notice_faults() -> None:
    """On the stand-in for CuPy: one of each kind; sums in another order and a loss that is wrong in the ninth digit."""
    code = f"""
sys.path.insert(0, {str(GATE.parent)!r})
from gpu import training as checks
from fastrnn import training
from fastrnn._backends import cupy_gpu
found = dict(checks.checks(cupy))
assert len(found) == 20
sums = "embedding float32 1000 64 50000"
for key in (sums, "losses masked=True", "pooling max", "fit max 2"):
    found[key]()
right, loss = cupy_gpu.sum_segments, training.mean_squared_error
def turned(rows, order, first):
    parts = [part[::-1] for part in np.split(order.get(), first.get()[1:-1])]
    return right(rows, cupy.asarray(np.concatenate(parts)), first)
cupy_gpu.sum_segments = turned
print(message(AssertionError, found[sums]))
training.mean_squared_error = lambda y, *more: (loss(y, *more)[0] * (1 + 1e-9 * (type(y) is not np.ndarray)), None)
message(AssertionError, found["losses masked=False"])
"""
    assert run(code).strip() == "other bits than in order"


def subject(gate: Any, change: Any = None) -> Any:
    """The reference on guarded arrays; change(arguments, output, h_n) breaks it."""

    def forward(*given: Any) -> Any:
        *arguments, options, out = given
        output, h_n = reference.rnn_forward(*arguments, options, out)
        if change is not None:
            change(arguments, output, h_n)
        return output, h_n

    return gate.subjects.Subject("reference", np, forward, reference.rnn_backward)


CHANGES = {
    "an element that nobody wrote": lambda a, output, h_n: output.__setitem__((-1, -1, -1), np.nan),
    "a wrong element": lambda a, output, h_n: output.__setitem__((0, 0, 0), output[0, 0, 0] + 1e-5),
    "a write behind the output": lambda a, output, h_n: _beside(output, output.size),
    "a write in front of the output": lambda a, output, h_n: _beside(output, -1),
    "an input that is written": lambda a, output, h_n: a[0].__setitem__((0, 0, 0), 5),
    "a write behind an input": lambda a, output, h_n: _beside(a[3], a[3].size),
}


def _beside(array: Any, at: int) -> None:
    """Writes where the array's memory would have element `at`."""
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    start = (array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // array.itemsize
    whole.reshape(-1)[start + at] = 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_results_pass(gate: Any, dtype: str) -> None:
    for case in (Case(dtype=dtype), Case(dtype=dtype, lengths="packed", layout="negative_all", reset=True)):
        assert gate.checks.judge(subject(gate), case) == {}
        assert gate.checks.repeat(subject(gate), case, 3, lambda: None) == {"repeats": 3}


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_results_are_caught(gate: Any, change: str) -> None:
    with pytest.raises(AssertionError):
        gate.checks.judge(subject(gate, CHANGES[change]), Case(seed=2))


def test_other_bits_in_a_repeat_are_caught(gate: Any) -> None:
    calls = []

    def now_and_then(arguments: Any, output: Any, h_n: Any) -> None:
        calls.append(0)
        if len(calls) == 5:
            h_n[0, 0] = np.nextafter(h_n[0, 0], 2)

    with pytest.raises(AssertionError, match=r"other bits in h_n, repeat 3$"):
        gate.checks.repeat(subject(gate, now_and_then), Case(), 10, lambda: None)


def test_what_a_kernel_cannot_do_is_no_failure(gate: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("too wide")

    one = gate.subjects.Subject("narrow", np, refuse, refuse)
    assert gate.checks.judge(one, Case()) == {"refused": "too wide"}


def test_the_kernels_alone_pass_on_the_host_in_every_storage_type(gate: Any, host: Any) -> None:
    """Those of the native module, the same source compiled for the host; a wrong one is noticed."""
    names = [name for name in kernel_names(host) if "_16" not in name]

    def make(name: str, cluster: int) -> HostKernel:
        return HostKernel(host, name, cluster)

    found = {one.name: one for one in gate.subjects.recurrences(names, make) if one.kernel.cluster in (1, 4)}
    assert {"recurrence:mma_cluster_8_tf32x3/4 float32", "recurrence:step/1 bfloat16"} <= found.keys()
    assert "recurrence:mma_block_8_f16/1 bfloat16" not in found
    case = Case(T=4, B=3, H=33, lengths="ragged", keep_mask=True, seed=3)
    for one in found.values():
        assert gate.checks.judge_recurrence(one, case) == {}
    tf32 = found["recurrence:mma_block_8_tf32/1 float32"]
    with pytest.raises(AssertionError, match="output"):
        gate.checks.judge_recurrence(tf32._replace(kernel_name="mma_block_8_tf32x3"), case)
    races = dict(gate.checks.recurrence_races(lambda: iter([tf32]), repeats=2))
    assert races["recurrence:mma_block_8_tf32/1 float32 64 33 64"]() == {"repeats": 2}


@needs_compiler
def test_the_ways_of_cupy_pass_on_the_host(gate: Any) -> None:
    """The gate's own subjects, all ways of one width, the kernels compiled for the host."""
    limits = cupy_plan.Limits(4, 48 << 10, True)
    names = set()
    for case in (
        Case(T=4, B=3, I=3, H=33, lengths="ragged", seed=3),
        Case(T=3, B=1, I=2, H=33, keep_mask=True, seed=4),
    ):
        for one in gate.subjects.cupy_subjects(HostDevice(limits), case.H, case.B, 4):
            if one.name == "cupy:steps" or one.name.endswith("x1"):
                names.add(one.name)
                assert gate.checks.judge(one, case) == {}
    assert {"cupy:steps", "cupy:block-64/64x1", "cupy:grid-64/32x1"} <= names


def test_the_cases_cover_every_option_and_both_dtypes(gate: Any) -> None:
    found = gate.checks.cases()
    assert {case.dtype for case in found} == {"float32", "float64"}
    assert {case.lengths for case in found} >= {"none", "ragged", "packed"}
    for name in ("reverse", "reset", "recurrent_mask", "keep_mask"):
        assert {getattr(case, name) for case in found} == {False, True}
    assert max(case.H for case in found) > 1024
    assert len({(case.id, case.dtype, case.seed) for case in found}) == len(found)
