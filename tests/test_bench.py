"""`fastrnn bench`: arms in processes of their own, the peers that are installed, the sweep's shapes and verdicts, the
command and its figure.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import cli
from fastrnn._speed import arms, peers, report, sweep
from fastrnn._speed.arms import OPS, ArmError, Problem, UnavailableError
from fastrnn._speed.check import Truth
from fastrnn._speed.shapes import SCALING, Shape
from fastrnn._speed.worker import Worker

EXTRA = all(importlib.util.find_spec(name) for name in ("rich", "matplotlib", "threadpoolctl"))
pytestmark = pytest.mark.skipif(not EXTRA, reason='the extra "cli" is not installed')
LEAD = next((b.name for b in fastrnn.backends() if b.available and b.device == "cpu" and b.name != "numpy"), None)
needs_lead = pytest.mark.skipif(LEAD is None, reason="no backend but the reference runs here")

# ---- an arm in a process of its own


def test_a_worker_computes_times_and_measures_memory() -> None:
    small, large = (Problem.draw(shape) for shape in (Shape(2, 3, 4, 5), Shape(64, 64, 8, 256)))
    with Worker("numpy", 1, for_memory=True) as worker:
        for problem in (small, large, small):
            arm, truth = worker.make(problem), Truth(problem)
            assert arm.ops == OPS
            for op in OPS:
                errors = truth.judge(arm.results(op))
                assert len(errors) == (2 if op == "forward" else 7)
                assert all(error.right for error in errors.values()), errors
                assert 0 < getattr(arm, op).turn(True) < 60
                getattr(arm, op).settle()
        results = sum(np.asarray(array).nbytes for array in worker.make(large).results("training"))
        for _ in range(2):  # what was freed does not hide what is taken anew
            peak = worker.peak_memory(large)
            if peak is None:
                pytest.skip("the system does not tell")
            assert 0.9 * results < peak < 6 * results
        assert worker.peak_memory(small) < results / 4


def test_a_worker_says_what_went_wrong_and_goes_on() -> None:
    with Worker("numpy", 1) as worker:
        with pytest.raises(RuntimeError, match=r"numpy: .*no problem"):
            worker.ask("results", "forward")
        worker.make(Problem.draw(Shape(1, 1, 1, 1)))
        with pytest.raises(ArmError, match=r"numpy: .*unknown command 'sing'"):
            worker.ask("sing")
        assert worker.make(Problem.draw(Shape(1, 2, 1, 1))).results("forward")[0].shape == (2, 1, 1)
    with pytest.raises((RuntimeError, OSError)):
        worker.ask("spins")
    with Worker("cudnn", 1) as worker, pytest.raises(UnavailableError, match="cudnn"):
        worker.make(Problem.draw(Shape(1, 1, 1, 1)))


def test_a_worker_that_dies_is_named() -> None:
    with Worker("numpy", 1) as worker:
        worker.make(Problem.draw(Shape(1, 1, 1, 1)))
        worker._process.kill()
        with pytest.raises(ArmError, match="numpy: its process ended with code -9"):
            worker.ask("spins")


def test_an_arm_that_fails_is_reported_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from fastrnn.cli import _bench_part

    def broken(problem: Problem) -> arms.Arm:
        raise ArmError("broken: no more [memory]")

    found = report.measure([Shape(2, 3, 4, 5)], {"numpy": arms.maker("numpy"), "broken": broken}, budget=0.0)
    (row,) = found["shapes"]
    assert found["right"] is False
    assert row["arms"]["broken"] == {
        "right": False,
        "max_error": None,
        "errors": {},
        "failed": "broken: no more [memory]",
    }
    assert set(OPS) <= set(row["arms"]["numpy"])
    _bench_part.show({**found, "ours": ["numpy"]}, {"absent": 'why, "fastrnn[torch]"'}, Console(width=120))
    out = capsys.readouterr().out
    assert "FAILED at 2x3x4x5: broken: no more [memory]" in out
    assert 'not here: absent: why, "fastrnn[torch]"' in out


# ---- the peers

SLOW_TO_BUILD = ("torch.compile", "onednn")  # a C++ compiler runs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly if name in SLOW_TO_BUILD else ()) for name in peers.PEERS]
)
def test_a_peer_that_is_installed_computes_the_same(name: str, dtype: Any) -> None:
    dtype = np.dtype(dtype).name
    try:
        peers.require(name, dtype)
    except UnavailableError as error:
        pytest.skip(str(error))
    with Worker(name, 1) as worker:
        for shape in (Shape(1, 1, 1, 1), Shape(3, 31, 10, 17)):
            problem = Problem.draw(shape, dtype)
            arm, truth = worker.make(problem), Truth(problem)
            assert arm.ops == (OPS[:1] if name == "onnxruntime" else OPS)
            for op in (*arm.ops, *arm.ops):  # a second call too: some add into what they were given
                errors = truth.judge(arm.results(op))
                assert all(error.right for error in errors.values()), (shape, op, errors)


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_that_is_absent_says_the_line_that_gets_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UnavailableError, match="pip install") as raised:
        peers.require(name, "float32")
    assert peers.PEERS[name].line in str(raised.value)


def test_peers_refuse_a_dtype_they_lack() -> None:
    for name in ("onnxruntime", "onednn", "keras-jax", "keras-torch"):
        with pytest.raises(UnavailableError, match=f"{name} has no float64"):
            peers.require(name, "float64")


# ---- the sweep


def test_the_sweep_draws_log_uniformly_and_half_of_it_small() -> None:
    shapes = sweep.draw(2000, seed=1)
    assert shapes == sweep.draw(2000, seed=1)
    assert shapes[:10] != sweep.draw(10, seed=2)
    assert all(1 <= size <= most for shape in shapes for size, most in zip(shape, sweep.MOST, strict=True))
    assert all(shape.T * shape.B <= 64 for shape in shapes[1::2])
    free = shapes[::2]
    for size, most in zip("BTIH", sweep.MOST, strict=True):  # as many below the square root as above it
        below = np.mean([math.log(getattr(shape, size) + 0.5) < math.log(most + 1) / 2 for shape in free])
        assert 0.4 < below < 0.6, size
        assert max(getattr(shape, size) for shape in free) > 0.9 * most


def _row(**seconds: list[float]) -> dict[str, Any]:
    def timed(rounds: list[float]) -> dict[str, Any]:
        return {op: {"seconds": {"median": float(np.median(rounds)), "rounds": rounds}} for op in OPS}

    return {"shape": Shape(1, 2, 3, 4)._asdict(), "arms": {name: timed(rounds) for name, rounds in seconds.items()}}


def test_only_a_loss_beyond_noise_counts() -> None:
    row = _row(fast=[1.0] * 4, even=[1.9, 2.1, 2.2, 1.8], slow=[2.5, 2.6, 2.4, 1.9], torch=[2.0] * 4)
    assert sweep.suspects(row, ("fast", "even", "slow"), "torch") == [("slow", op) for op in OPS]
    assert [sweep.judge(row, name, "forward", "torch")["slower"] for name in ("fast", "even", "slow")] == [
        False, False, True,
    ]  # fmt: skip
    verdict = sweep.judge(row, "slow", "training", "torch")
    assert (verdict["lost"], verdict["rounds"]) == (3, 4)
    assert verdict["ratio"] == pytest.approx(1.225)


def test_the_best_peer_of_each_shape() -> None:
    rows = [_row(ours=[1.0], a=[2.0], b=[8.0]), _row(ours=[1.0], a=[9.0], b=[0.5])]
    rows[0]["arms"]["none"] = rows[1]["arms"]["none"] = {}
    assert [report.best(row, "forward", ("a", "b", "none")) for row in rows] == ["a", "b"]
    assert report.best(rows[0], "forward", ("none",)) is None
    assert report.mean_over_best(rows, "training", "ours", ("a", "b", "none")) == pytest.approx(1.0)
    assert math.isnan(report.mean_over_best(rows, "training", "ours", ()))


# ---- the command


def _bench(*words: str) -> int:
    try:
        return cli.main(["bench", *words])
    except SystemExit as leaving:
        return int(leaving.code or 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shapes", "8x8"), "--shapes: expected"),
        (("--peers", "cudnn"), "--peers: expected torch.nn.RNN, .*got 'cudnn'"),
        (("--peers", "onnxruntime", "--dtype", "f64"), "onnxruntime has no float64"),
        (("--threads", "0"), "at least 1"),
        (("--sweep", "0"), "at least 1"),
        (("--sweep", "3", "--peers", "jax"), "--sweep: expected"),
        (("--json", "/no/such/folder/b.json"), "--json: there is no directory"),
        (("--plot", "/"), "--plot: expected a file to write, got the directory /"),
        (("--plot", "b.nonsense"), "--plot: expected a name"),
    ],
)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(said, err), err


@needs_lead
def test_bench_writes_its_tables_its_file_and_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = [shape._replace(T=4) for shape in SCALING[-2:]] + [Shape(2, 3, 4, 5)]
    words = ["--shapes", ",".join(map(str, grid)), "--peers", "numpy", "--threads", "1", "--seconds", "0.01"]
    code = _bench(*words, "--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png"))
    out = capsys.readouterr().out
    assert code == 0, out
    facts = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    found = facts["speed"]
    assert found["ours"][0] == LEAD
    assert found["arms"] == [*found["ours"], "numpy"]
    assert found["settings"]["threads"] == 1
    assert [Shape(**row["shape"]) for row in found["shapes"]] == grid
    for row in found["shapes"]:
        for arm in row["arms"].values():
            assert arm["right"]
            assert "training_memory" in arm
    for word in ("forward:", "training:", "memory of a training step", "geo. mean", "best peer of each shape"):
        assert word in out
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@needs_lead
def test_a_sweep_compares_with_torch(torch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--sweep", "2", "--seed", "3", "--threads", "1", "--seconds", "0.01", "--json", str(tmp_path / "s.json"))
    code = _bench(*words)
    out = capsys.readouterr().out
    facts = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert [Shape(**row["shape"]) for row in facts["speed"]["shapes"]] == sweep.draw(2, seed=3)
    slower = [verdict for verdict in facts["sweep"]["timed_again"] if verdict["slower"]]
    assert code == (1 if slower else 0)
    assert f"{arms.FASTRNN_TORCH}, training: slower on" in out
