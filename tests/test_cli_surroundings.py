"""The command line and what it cannot choose: environment, memory, threads, terminals, full disks, names of files. One
line and exit code 2 where it cannot go on, and no figure is lost; a bug keeps its traceback.
"""

import codecs
import importlib.util
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.kernels import native
from helpers.processes import run_python

from fastrnn import cli
from fastrnn._speed import limits, report
from fastrnn._speed.arms import OPS
from fastrnn._speed.shapes import DEFAULT, Shape

EXTRA = all(importlib.util.find_spec(name) for name in ("rich", "matplotlib", "sklearn", "threadpoolctl"))
needs_extra = pytest.mark.skipif(not EXTRA, reason='the extra "cli" is not installed')
needs_native = pytest.mark.skipif(isinstance(native(), ImportError), reason="the native module is missing")


QUICK = ("check", "--T", "1", "--backend", "numpy")


def in_a_process(*words: str, before: str = "pass", **environment: str) -> Any:
    code = f"import os\n{before}\nfrom fastrnn.cli import main\nraise SystemExit(main({list(words)!r}))"
    return run_python(code, **environment)


def one_line(result: Any) -> str:
    """The error of a command that ends with code 2; before it there may be a progress bar."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return str(result.stderr.splitlines()[-1])


# ---- Environment and memory


@needs_extra
@needs_native
@pytest.mark.parametrize(
    ("name", "value"), [("FASTRNN_NUM_THREADS", "abc"), ("FASTRNN_NUM_THREADS", "5000"), ("FASTRNN_ISA", "v9")]
)
def test_an_impossible_setting_is_named(name: str, value: str) -> None:
    words = ("compare", "--only", "speed", "--shapes", "1x1x1x1", "--backend", "cpp")
    line = one_line(in_a_process(*words, **{name: value}))
    assert line.startswith(f"fastrnn compare: error: {name}"), line
    assert value in line


def test_check_names_an_impossible_seed() -> None:
    line = one_line(in_a_process(*QUICK, FASTRNN_SEED="abc"))
    assert line == "fastrnn check: error: FASTRNN_SEED: expected an integer of at least 0, got 'abc'"


def test_what_does_not_fit_into_memory_is_one_line(capsys: Any, monkeypatch: Any) -> None:
    code = cli.main(["check", "--T", "10000000", "--B", "10000000", "--backend", "numpy"])
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastrnn check: error: --T 10000000 --B 10000000")
    assert "expected sizes that fit into memory" in line

    def full(*_: Any) -> None:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr("fastrnn.cli.info.collect", full)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "fastrnn info: error: this does not fit into memory: Unable to allocate\n"


@pytest.mark.parametrize(
    "error", [ValueError("x: expected"), KeyError("x"), FileNotFoundError(2, "none", "x"), BlockingIOError(11, "later")]
)
def test_a_bug_is_not_hidden(error: Exception, monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr("fastrnn.cli.info.collect", broken)
    with pytest.raises(type(error)):
        cli.main(["info"])


def test_a_stream_that_cannot_be_changed_is_taken_as_it_is(monkeypatch: Any) -> None:
    stream = codecs.getwriter("utf-8")(io.BytesIO())
    monkeypatch.setattr("sys.stdout", stream)
    assert cli.main(["info"]) == 0
    assert b"fastrnn" in stream.getvalue()


# ---- Threads


class Narrow:
    """The probes of the native module: what they refuse, and what they were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def active_isa(self) -> str:
        return "v3"

    def fma_peak(self, dtype: str, threads: int, seconds: float) -> float:
        return 1.0

    def read_bandwidth(self, size: int, threads: int, seconds: float) -> float:
        if size // threads < 4096:
            raise ValueError("bytes: expected at least 4096 for each thread")
        self.asked.append((size, threads))
        return 1.0


@pytest.mark.parametrize("threads", [1, 4, 5, 64, 4096])
def test_probes_take_any_number_of_threads(threads: int, monkeypatch: Any) -> None:
    module = Narrow()
    monkeypatch.setattr(limits, "native", lambda: module)
    found = limits.probe(threads)
    assert found is not None
    assert found["fma_peak_gflops"]["float64"].keys() == {"1", str(threads)}
    assert {(16 << 10, 1), (max(16 << 10, 4096 * threads), threads), (128 << 20, threads)} <= set(module.asked)
    assert limits.fma_peak("float32", threads) == 1.0
    assert limits.weight_bandwidth(Shape(1, 1, 1, 8), "float32", threads) == 1.0


@needs_native
def test_info_probes_with_more_threads_than_four(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("fastrnn.cli.info.collect", lambda: {"threads": {"number": 8, "why": ""}})
    assert cli.main(["info", "--probe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probe"]["read_bandwidth_gb_s"]["16 KiB"].keys() == {"1", "8"}


def test_info_says_why_it_did_not_probe(monkeypatch: Any, capsys: Any) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("Resource temporarily unavailable")

    monkeypatch.setattr("fastrnn.cli.info.collect", lambda: {"threads": {"number": 8, "why": ""}})
    monkeypatch.setattr(limits, "probe", refused)
    assert cli.main(["info", "--probe"]) == 0
    assert "Resource temporarily unavailable" in capsys.readouterr().out


# ---- Output


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    line = one_line(in_a_process(*QUICK, before="os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"))
    assert line.startswith("fastrnn check: error: the output cannot be written: ")


def test_a_reader_that_leaves_is_no_error() -> None:
    result = in_a_process(*QUICK, before="r, w = os.pipe(); os.close(r); os.dup2(w, 1)")
    assert (result.returncode, result.stderr) == (0, "")


@needs_extra
def test_names_of_files_are_shown_as_they_are(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """No markup of rich's, no mathematics of matplotlib's."""
    monkeypatch.setattr("fastrnn.cli.info.collect", dict)
    for name in (r"[b]$\x$.npy", ":smile:.npy"):
        path = tmp_path / name
        np.save(path, np.random.default_rng(0).random((4, 6, 2)))
        words = ["compare", "--only", "learning", "--data", str(path), "--backend", "numpy", "--hidden", "2"]
        assert cli.main([*words, "--epochs", "1", "--plot", str(tmp_path / "c.png")]) == 0
        assert f"next step of {path.name}: T 3" in capsys.readouterr().out


def measured(names: list[str]) -> dict[str, Any]:
    """A report whose every figure is as wide as figures are."""
    keys = ("output", "h_n", "d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")
    rows: list[dict[str, Any]] = []
    for shape in DEFAULT:
        row: dict[str, Any] = {"shape": shape._asdict(), "fma_peak_gflops": None, "arms": {}}
        for number, name in enumerate(names):
            timed = {"seconds": {"median": 10.94e-3 * 3.3**number, "spread": 0.01, "rounds": [1.0]}}
            errors = {key: {"error": 3.2e-7, "limit": 1.0} for key in keys}
            arm = {"right": True, "errors": errors, "training_memory": 123456789}
            row["arms"][name] = {
                **arm,
                **{op: {**timed, "percent_of_peak": 88.0, "percent_of_bound": 88.0, "bound": "fma"} for op in OPS},
            }
        rows.append(row)
    settings = {"dtype": "float32", "threads": 16, "instruction_set": "v4"}
    means = report.geometric_means(rows)
    return {"settings": settings, "arms": names, "shapes": rows, "geometric_means": means, "right": True}


@needs_extra
@pytest.mark.parametrize("width", [30, 80])
def test_figures_are_whole_on_a_narrow_terminal(width: int) -> None:
    """Of compare and of bench; what four arms need fits into 80 columns."""
    from rich.console import Console

    from fastrnn.cli import _bench_part, _learning, _speed_part

    four = ["cpp", "numba", "numpy", "torch.nn.RNN"]
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    _speed_part.show(measured(four), console)
    out = file.getvalue()
    assert "…" not in out
    lines = [line for line in out.splitlines() if "3.2e-07" in line]
    assert len(lines) == 2 * len(DEFAULT)
    assert all(figure in line for line in lines for figure in ("10.9 ms", "36.1 ms", "119 ms", "393 ms", "35.9"))
    assert width == 30 or max(map(len, lines)) <= 80
    _bench_part.show({**measured([*four, "jax", "onednn", "keras-torch"]), "ours": four[:2]}, {}, console)
    row = {
        "backend": "numpy", "score": 0.98765, "final_loss": 0.12345, "curve_difference": 1.2e-7, "seconds": 123.45,
        "total_seconds": 543.21, "speed_up": 12.3, "agrees": True,
    }  # fmt: skip
    found = {"T": 8, "I": 8, "H": 128, "batch": 64, "epochs": 30, "dtype": "float32", "threads": 2, "blas_threads": 1}
    _learning.show({"settings": found, "task": "digits", "score": "accuracy", "rule": "", "results": [row]}, console)
    out = file.getvalue()
    assert "…" not in out
    for figure in ("117.7", "98.77%", "0.12345", "1.2e-07", "123.45", "543.21", "12.3 x", "agrees"):
        assert figure in out
