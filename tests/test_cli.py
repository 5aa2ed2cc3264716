"""The command line: `info` tells the truth, `check` judges (and rejects a broken kernel), `compare` trains and
writes its files. Data on stdout, log on stderr, exit codes 0 right, 1 a check failed, 2 usage.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case, random_cases
from helpers.kernels import Kernel, known_kernels, native
from helpers.processes import run_python

import fastrnn
from fastrnn import cli
from fastrnn._speed import limits
from fastrnn._speed.shapes import QUICK, Shape
from fastrnn.cli import _speed_part

EXTRA = all(importlib.util.find_spec(name) for name in ("rich", "matplotlib", "sklearn", "threadpoolctl"))
try:
    VERSION = fastrnn.__version__
except importlib.metadata.PackageNotFoundError:  # the source folder
    VERSION = ""
pytestmark = pytest.mark.skipif(not VERSION, reason="fastrnn is not installed: it has no version")
needs_extra = pytest.mark.skipif(not EXTRA, reason='the extra "cli" is not installed')


def run(*words: str, capsys: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command; argparse leaves by SystemExit."""
    try:
        code = cli.main(list(words))
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


# ---- info


def test_info_json_tells_what_the_api_tells(capsys: Any) -> None:
    code, out, err = run("info", "--json", capsys=capsys)
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["fastrnn"] == VERSION
    assert Path(facts["location"]) == Path(fastrnn.__file__).parent
    assert facts["threads"]["number"] == fastrnn.get_num_threads()
    rows = {row["name"]: row for row in facts["backends"]["list"]}
    for record in fastrnn.backends():
        assert rows[record.name] == {
            "name": record.name, "device": record.device, "available": record.available, "reason": record.reason,
        }  # fmt: skip
    if not isinstance(native(), ImportError):
        assert facts["instruction_set"]["active"] == native().active_isa()
        listed = [(r["name"], r["compiled"], r["supported"]) for r in facts["instruction_set"]["list"]]
        assert listed == [tuple(isa) for isa in native().isas()]


def test_info_text_names_everything(capsys: Any) -> None:
    code, out, _ = run("info", capsys=capsys)
    assert code == 0
    for word in (VERSION, np.__version__, "numpy", "cpp", "threads", "auto takes"):
        assert word in out


def test_info_probes_the_machine(capsys: Any) -> None:
    if isinstance(native(), ImportError):
        pytest.skip(f"cpp: {native()}")
    code, out, _ = run("info", "--probe", capsys=capsys)
    assert code == 0
    assert "GFLOP/s on 1 thread" in out
    code, out, _ = run("info", "--probe", "--json", capsys=capsys)
    probe = json.loads(out)["probe"]
    assert probe["fma_peak_gflops"]["float32"]["1"] > 0
    assert all(rates["1"] > 0 for rates in probe["read_bandwidth_gb_s"].values())


def test_info_shows_environment_and_broken_settings() -> None:
    """What a bug report needs most: a setting that cannot work does not stop info."""
    code = "from fastrnn.cli import main; raise SystemExit(main(['info', '--json']))"
    result = run_python(code, FASTRNN_NUM_THREADS="two", FASTRNN_ISA="sse9")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["environment"]["FASTRNN_NUM_THREADS"] == "two"
    assert facts["threads"]["number"] is None
    assert "FASTRNN_NUM_THREADS" in facts["threads"]["why"]
    if not isinstance(native(), ImportError):
        assert facts["instruction_set"]["active"] is None
        assert "sse9" in facts["instruction_set"]["why"]


def test_python_m_and_the_script_are_the_same() -> None:
    module = run_python(
        "import runpy, sys; sys.argv = ['fastrnn', '--version']; runpy.run_module('fastrnn', run_name='__main__')"
    )
    assert module.stdout.strip() == f"fastrnn {VERSION}"
    script = Path(sys.executable).with_name("fastrnn")
    if not script.exists():
        pytest.skip("the package was installed without its script")
    result = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == module.stdout


# ---- check

USAGE = [
    (),
    ("no-such-command",),
    ("check", "--T", "x"),
    ("check", "--T", "-1"),
    ("check", "--H", "0"),
    ("check", "--op", "sideways"),
    ("check", "--dtype", "f16"),
    ("check", "--backend", "cudnn"),
    ("check", "--nonlinearity", "gelu"),
    ("check", "--threads", "0"),
    ("check", "--threads", "5000"),
    ("check", "--seed", "-1"),
    ("check", "--T", "10000000", "--B", "10000000", "--backend", "numpy"),
    ("check", "--T", "1000000000000", "--B", "1000000000000", "--backend", "numpy"),
    ("check", "--T", "100000000000000000000", "--backend", "numpy"),
    ("compare", "--data", "/no/such/file.npy", "--quick"),
    ("compare", "--epochs", "0"),
    ("compare", "--shapes", "8x128x64"),
    ("compare", "--shapes", "huge", "--only", "speed"),
    ("compare", "--shapes", "0x1x1x1", "--only", "speed"),
    ("compare", "--only", "speed", "--shapes", "99999x99999x99999x9"),
    ("compare", "--only", "everything"),
    ("compare", "--seconds", "0"),
    ("compare", "--seconds", "nan"),
    ("compare", "--threads", "0"),
    ("compare", "--threads", "5000"),
    ("compare", "--json", "/no/such/folder/c.json"),
    ("compare", "--json", "/"),
    ("compare", "--hidden", "10000000", "--only", "learning", "--backend", "numpy"),
    ("compare", "--plot", "/no/such/folder/c.png"),
    ("compare", "--quick", "--plot", "c.nonsense"),
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...], capsys: Any) -> None:
    code, out, err = run(*words, capsys=capsys)
    assert code == 2
    assert out == ""
    assert "error" in err


def test_an_impossible_instruction_set_is_exit_code_2() -> None:
    if isinstance(native(), ImportError):
        pytest.skip(f"cpp: {native()}")
    code = "from fastrnn.cli import main; raise SystemExit(main('check --T 2 --isa sse9 --backend cpp'.split()))"
    result = run_python(code)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "sse9" in result.stderr


def test_check_passes_on_every_backend(backend: str, capsys: Any) -> None:
    """Its whole grid: a tighter, statistical bound than that of test_forward_error.py, on the active kernels."""
    code, out, err = run("check", "--backend", backend, capsys=capsys)
    assert code == 0, out
    assert err == ""
    assert out.splitlines()[-1].endswith(" checks, 0 failed")


@pytest.mark.parametrize("identity", [i for i in known_kernels() if i.startswith("cpp:")])
def test_check_passes_on_every_instruction_set(identity: str) -> None:
    if known_kernels()[identity]:
        pytest.skip(f"{identity}: {known_kernels()[identity]}")
    code = f"from fastrnn.cli import main; raise SystemExit(main('check --backend cpp --isa {identity[4:]}'.split()))"
    result = run_python(code)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("op", ["forward", "backward"])
def test_check_rejects_a_broken_kernel(backend: str, op: str, capsys: Any, monkeypatch: Any) -> None:
    """b_hh dropped, or d_w_hh without its first step (no h_0): exit code 1 and the line that repeats the case."""
    sound_forward, sound_backward = fastrnn.rnn_forward, fastrnn.rnn_backward

    def forward(x: Any, h_0: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None, **options: Any) -> Any:
        return sound_forward(x, h_0, w_ih, w_hh, b_ih, None, **options)

    def backward(d_output: Any, d_h_n: Any, output: Any, x: Any, h_0: Any, w_ih: Any, w_hh: Any, **options: Any) -> Any:
        return sound_backward(d_output, d_h_n, output, x, None, w_ih, w_hh, **options)

    if op == "forward":
        monkeypatch.setattr(fastrnn, "rnn_forward", forward)
    else:
        monkeypatch.setattr(fastrnn, "rnn_backward", backward)
    words = ["--op", op, "--backend", backend, "--T", "3", "--dtype", "f32", "--seed", "5"]
    code, out, _ = run("check", *words, capsys=capsys)
    assert code == 1
    assert "FAIL" in out
    again = next(line for line in out.splitlines() if "again:" in line)
    monkeypatch.undo()
    repeated = again.partition("fastrnn ")[2].split()
    assert run(*repeated, capsys=capsys)[0] == 0, "the same case on the sound kernel"
    for word in words:
        assert word in repeated or word == "f32"


@pytest.mark.parametrize("case", random_cases(20, seed=71, max_work=100_000), ids=lambda case: case.id)
def test_check_draws_the_arrays_of_a_failing_test(case: Case, capsys: Any) -> None:
    """What Case.repro() prints runs, and builds the very arrays of the test (padded, contiguous, full upstream)."""
    from fastrnn.cli import check

    case = replace(case, layout="contiguous", d_output="random", d_h_n=True)
    if case.lengths not in ("none", "ragged"):
        case = replace(case, lengths="ragged")
    line = case.repro("forward", Kernel("numpy")).splitlines()[0]
    drawn = []
    build = check.Case.build
    patch = pytest.MonkeyPatch()
    patch.setattr(check.Case, "build", lambda self: drawn.append(build(self)) or drawn[-1])
    with patch.context():
        code, out, _ = run(*line.split()[1:], capsys=capsys)
    patch.undo()
    assert code == 0, out
    want = case.build()
    for name in ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "d_output", "d_h_n"):
        _equal(getattr(drawn[0], name), getattr(want, name), name)
    for name in ("lengths", "reset", "recurrent_mask", "keep_mask"):
        _equal(getattr(drawn[0].options, name), getattr(want, name), name)


def _equal(got: Any, want: Any, name: str) -> None:
    assert (got is None) == (want is None), name
    assert want is None or np.array_equal(got, want), name


# ---- compare

AVAILABLE = [b.name for b in fastrnn.backends() if b.available and b.device == "cpu"]
PNG = b"\x89PNG\r\n\x1a\n"


@needs_extra
@pytest.mark.timeout(300)
def test_compare_quick_writes_its_files(tmp_path: Path, capsys: Any) -> None:
    """The digits are learnt, every arm is right, and the report holds what the tables show."""
    report, picture = tmp_path / "c.json", tmp_path / "c.png"
    words = ["compare", "--quick", "--threads", "1", "--json", str(report), "--plot", str(picture)]
    code, out, err = run(*words, capsys=capsys)
    assert code == 0, out
    assert "wrote" in err
    assert "wrote" not in out
    facts = json.loads(report.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # no NaN
    assert facts["schema"] == 1
    assert facts["right"] is True
    assert facts["machine"]["fastrnn"] == VERSION
    learning, speed = facts["learning"], facts["speed"]
    assert {row["backend"] for row in learning["results"]} == set(AVAILABLE)
    for row in learning["results"]:
        assert row["backend"] in out
        assert row["agrees"] is True
        assert row["score"] > 0.5, "three epochs on ten classes: far above chance"
        assert len(row["losses"]) == 3
        assert row["losses"][-1] < row["losses"][0]
        assert row["seconds"] > 0
    assert speed["settings"]["threads"] == learning["settings"]["threads"] == 1
    assert [Shape(**row["shape"]) for row in speed["shapes"]] == list(QUICK)
    assert set(AVAILABLE) <= set(speed["arms"])
    assert picture.read_bytes()[:8] == PNG

    lines = out.splitlines()
    for op in ("forward", "training"):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{op}: "))
        header = lines[start + 2].split()
        assert header[:4] == ["B", "T", "I", "H"]
        assert header[-1] == "error"
        for line, row in zip(lines[start + 4 :], speed["shapes"], strict=False):
            assert line.split()[:4] == [str(size) for size in row["shape"].values()]
            for name in speed["arms"]:
                assert _speed_part.duration(row["arms"][name][op]["seconds"]["median"]) in line


@needs_extra
def test_compare_takes_your_own_sequences(tmp_path: Path, capsys: Any) -> None:
    t = np.arange(12)[:, None, None] + np.random.default_rng(0).random((1, 30, 1)) * 6
    data = np.concatenate([np.sin(t), np.cos(t)], axis=2).astype(np.float32)
    np.save(tmp_path / "x.npy", data)
    words = ["compare", "--data", str(tmp_path / "x.npy"), "--epochs", "2", "--json", str(tmp_path / "c.json")]
    code, out, _ = run(*words, "--hidden", "9", "--batch", "5", "--seconds", "0.01", capsys=capsys)
    assert code == 0, out
    facts = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert facts["learning"]["settings"]["I"] == 2
    assert [row["shape"] for row in facts["speed"]["shapes"]] == [{"B": 5, "T": 11, "I": 2, "H": 9}], "the data's own"
    for bad in (data[0], np.full((3, 4, 2), np.nan), np.array([["a"]])):
        np.save(tmp_path / "bad.npy", bad)
        code, _, err = run("compare", "--data", str(tmp_path / "bad.npy"), "--quick", capsys=capsys)
        assert code == 2, bad.shape
        assert "--data" in err


@needs_extra
@pytest.mark.parametrize("only", ["learning", "speed"])
def test_compare_runs_one_part_and_one_backend(only: str, tmp_path: Path, capsys: Any) -> None:
    report, picture = tmp_path / "c.json", tmp_path / "c.png"
    words = ["--only", only, "--backend", "numpy", "--dtype", "f64", "--epochs", "1", "--hidden", "3"]
    words += ["--shapes", "2x3x4x5", "--seconds", "0.01", "--json", str(report), "--plot", str(picture)]
    code, out, _ = run("compare", *words, capsys=capsys)
    assert code == 0, out
    facts = json.loads(report.read_text(encoding="utf-8"))
    assert [part for part in ("learning", "speed") if facts[part]] == [only]
    assert picture.read_bytes()[:8] == PNG
    if only == "speed":
        assert "cpp" not in facts["speed"]["arms"]
        assert facts["speed"]["settings"]["dtype"] == "float64"


@needs_extra
@pytest.mark.parametrize("only", ["learning", "speed"])
@pytest.mark.timeout(300)
def test_compare_rejects_a_broken_backend(only: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """A backend whose BPTT takes tanh' of the step before is told apart: exit code 1, and no time for it."""
    if isinstance(native(), ImportError):
        pytest.skip(f"cpp: {native()}")
    module = importlib.import_module("fastrnn._backends.cpp")
    sound = module.rnn_backward

    def broken(d_output: Any, d_h_n: Any, output: Any, *rest: Any, **options: Any) -> Any:
        return sound(d_output, d_h_n, np.roll(output, 1, axis=0), *rest, **options)

    monkeypatch.setattr(module, "rnn_backward", broken)
    words = ["--only", only, "--shapes", "3x5x7x9", "--epochs", "3", "--plot", str(tmp_path / "c.png")]
    code, out, _ = run("compare", *words, capsys=capsys)
    assert code == 1, out
    assert ("DIFFERS" if only == "learning" else "WRONG against float64: cpp at 3x5x7x9") in out
    assert (tmp_path / "c.png").read_bytes()[:8] == PNG


@needs_extra
def test_compare_without_the_native_module(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """No peak is known: no percentages, and the figure shows GFLOP/s."""
    monkeypatch.setattr(limits, "native", lambda: None)
    words = ["--only", "speed", "--backend", "numpy", "--shapes", "2x3x4x5", "--seconds", "0.01"]
    words += ["--json", str(tmp_path / "c.json"), "--plot", str(tmp_path / "c.png")]
    code, out, _ = run("compare", *words, capsys=capsys)
    assert code == 0, out
    assert "forward: numpy, float32" in out
    (row,) = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["speed"]["shapes"]
    assert row["fma_peak_gflops"] is row["weight_bandwidth_gb_s"] is None
    assert "percent_of_peak" not in row["arms"]["numpy"]["forward"]
    assert (tmp_path / "c.png").read_bytes()[:8] == PNG


@needs_extra
def test_durations_have_three_digits() -> None:
    for seconds, text in ((1.234e-6, "1.23 us"), (99.96e-6, "100 us"), (0.9996e-3, "1.00 ms"), (12.0, "12.0 s")):
        assert _speed_part.duration(seconds) == text


def test_commands_without_the_extra_say_how_to_get_it() -> None:
    code = (
        "import sys\n"
        "for name in ('rich', 'matplotlib', 'sklearn'): sys.modules[name] = None\n"
        "from fastrnn.cli import main\n"
        "assert main(['check', '--T', '1', '--backend', 'numpy']) == 0\n"
        "raise SystemExit(main(['compare', '--quick']))\n"
    )
    result = run_python(code)
    assert result.returncode == 2, result.stderr
    assert "pip install" in result.stderr
