"""`fastrnn sentiment`: what cannot work is said before the work, in one line that names the option; files have the
format and the name that were asked for; texts, labels and names are shown as they are.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.kernels import native
from helpers.processes import run_python
from test_sentiment import SMALL, invented, run, write_csv

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from fastrnn.sentiment import SentimentClassifier, Settings, Texts

FEW = ["--epochs", "1", "--embedding-size", "4", "--hidden-size", "4"]
MARKUP = ("[pos]", "[/neg]")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.model"
    SentimentClassifier.train(invented(120), SMALL).save(path)
    return path


def refused(words: list[str], message: str, capsys: Any) -> None:
    """Exit code 2, nothing on stdout, and one line that begins so."""
    code, out, err = run(*words, capsys=capsys)
    assert (code, out) == (2, ""), err
    last = err.splitlines()[-1]
    assert last.startswith(f"fastrnn sentiment: error: {message}"), err
    assert "Traceback" not in err


def no_work(monkeypatch: Any) -> None:
    for name in ("train", "load"):
        monkeypatch.setattr(SentimentClassifier, name, lambda *_, **__: pytest.fail("the work began"))


# ---- Before the work


def test_outputs_are_checked_before_the_work(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    no_work(monkeypatch)
    data = ["--data", str(write_csv(tmp_path / "a.csv", invented(20)))]
    out, model, folder = ["--out", str(tmp_path / "m")], ["--model", "m"], str(tmp_path)
    picture = str(tmp_path / "p")
    for words, message in (
        (["train", *data, "--out", folder], f"--out: expected a file to write, got the directory {folder}"),
        (["train", *data, "--out", os.devnull], "--out: expected a file to write, got the device or pipe"),
        (["train", *data, *out, "--checkpoint", folder], "--checkpoint: expected a file to write, got the directory"),
        (["evaluate", *data, *model, "--json", "none/x"], "--json: there is no directory none"),
        (["evaluate", *data, *model, "--json", folder], "--json: expected a file to write, got the directory"),
        (["plot", *model, "--out", picture], "--out: expected a name that ends in one of "),
        (["plot", *model, "--out", folder], "--out: expected a file to write, got the directory"),
        (
            ["explain", *model, "x", "--png", picture + ".html"],
            "--png: expected a name that ends in .png, got 'p.html'",
        ),
        (["explain", *model, "x", "--html", picture + ".xhtml"], "--html: expected a name that ends in .html or .htm"),
        (["explain", *model, "x", "--html", folder], "--html: expected a file to write, got the directory"),
        (["train", *data, *out, "--drop-negations"], "--drop-negations: expected --stop-words with it, got it alone"),
        (["train", *data, *out, "--clip-norm", "0"], "--clip-norm: expected a number above 0, got 0"),
        (["train", *data, *out, "--rate", "nan"], "--rate: expected a number above 0, got nan"),
    ):
        refused(words, message, capsys)
    monkeypatch.setattr("os.access", lambda *_: False)
    refused(["train", *data, *out], f"--out: expected a place to write to, got {folder}, which is read-only", capsys)
    refused(["evaluate", *data, *model, "--json", picture], "--json: expected a place to write to", capsys)


def test_explanations_have_the_format_and_the_name_that_were_asked_for(
    saved: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(
        "explain", "--model", str(saved), "a lovely film", "--html", "why", "--png", "how", capsys=capsys
    )
    assert code == 0, err
    assert err.splitlines() == ["wrote why", "wrote how"]
    assert sorted(os.listdir()) == ["how", "why"]
    assert Path("why").read_text("utf-8").startswith("<!doctype html>")
    assert Path("how").read_bytes().startswith(b"\x89PNG")


# ---- Messages name what is wrong


def test_errors_name_their_option(saved: Path, tmp_path: Path, capsys: Any) -> None:
    data = ["--data", str(write_csv(tmp_path / "a.csv", invented(40)))]
    out, model = ["--out", str(tmp_path / "m")], ["--model", str(saved)]
    odd = write_csv(tmp_path / "odd.csv", Texts(["a", "b"], ["x", "y"]))
    empty = write_csv(tmp_path / "empty.csv", Texts())
    split = tmp_path / "split.tsv"
    split.write_text("set\ttext\tlabel\nTraining\tfine\tpos\nother\tdull\tneg\n")
    for words, message in (
        (["train", *data, *out, "--valid", "none.tsv"], "--valid: none.tsv: there is no such file"),
        (["train", *data, *out, "--valid", str(odd)], "--valid: expected labels among 'neg', 'pos', got 'x', 'y'"),
        (["train", *data, *out, "--valid", str(empty)], "--valid: expected labelled texts, got none"),
        (
            ["train", *data, *out, "--valid", str(split)],
            f"--valid: {split}: expected lines whose column 'set' says 'valid', got 'Training', 'other'",
        ),
        (["train", "--data", str(split), *out], f"--data: {split}: expected lines whose column 'set' says 'train'"),
        (["evaluate", "--data", str(odd), *model], "--data: expected labels among 'neg', 'pos', got 'x', 'y'"),
        (["evaluate", "--data", str(empty), *model], "--data: expected labelled texts, got none"),
        (
            ["explain", "fine", *model, "--label", "odd", "--html", str(tmp_path / "x.html")],
            "--label: expected one of 'neg', 'pos', got 'odd'",
        ),
    ):
        refused(words, message, capsys)
    assert not (tmp_path / "m").exists()
    assert run("evaluate", "--data", str(split), "--split", "", *model, capsys=capsys)[0] == 0
    assert run("evaluate", "--data", str(split), "--split", "training", *model, capsys=capsys)[0] == 0


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path, capsys: Any) -> None:
    first, second = (write_csv(tmp_path / f"{seed}.csv", invented(40, seed=seed)) for seed in (0, 1))
    words = ["--checkpoint", str(tmp_path / "ck"), "--out", str(tmp_path / "m"), *FEW]
    for _ in range(2):
        assert run("train", "--data", str(first), *words, capsys=capsys)[0] == 0
    model = (tmp_path / "m").read_bytes()
    refused(["train", "--data", str(second), *words], f"--checkpoint: {tmp_path / 'ck'} was made with other", capsys)
    assert (tmp_path / "m").read_bytes() == model


# ---- What is shown


def test_labels_and_names_are_shown_as_they_are(tmp_path: Path, capsys: Any) -> None:
    """No markup of rich's, no emoji codes, no mathematics of matplotlib's."""
    data = invented(60, (*MARKUP, ":smile:", r"$\pos$"))
    path = tmp_path / r"[b]$\x$.csv"
    write_csv(path, data)
    model = tmp_path / "m.model"
    code, out, err = run("train", "--data", str(path), "--out", str(model), *FEW, capsys=capsys)
    assert code == 0, err
    code, out, err = run("evaluate", "--data", str(path), "--model", str(model), capsys=capsys)
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()]
    for label in data.counts():
        assert sum(row[:1] == [label] for row in rows) == 2, out
        assert label in next(row for row in rows if row[:1] == ["truth"]), out
    words = ["plot", "--data", str(path), "--model", str(model), "--out", str(tmp_path / "p.png")]
    assert run(*words, capsys=capsys)[0] == 0
    words = ["explain", "a film", "--label", r"$\pos$", "--model", str(model), "--png", str(tmp_path / "e.png")]
    assert run(*words, capsys=capsys)[0] == 0


def test_figures_of_long_tables_are_whole(capsys: Any, monkeypatch: Any) -> None:
    from fastrnn.cli import _sentiment_show

    labels = [f"label number {n}" for n in range(12)]
    row = {"precision": 0.98765, "recall": 0.98765, "f1": 0.98765, "texts": 123456.0}
    report = {
        "texts": 123456, "accuracy": 0.5, "macro_precision": 0.5, "macro_recall": 0.5, "macro_f1": 0.5,
        "labels": dict.fromkeys(labels, row), "confusion": [[123456] * 12] * 12,
    }  # fmt: skip
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    _sentiment_show.show_evaluation(report)
    out = capsys.readouterr().out
    assert "…" not in out
    assert out.count("123456") == 12 * 12 + 12 + 2


# ---- Surroundings

PREDICT = "import sys; from fastrnn.cli import main; raise SystemExit(main(['sentiment', *sys.argv[1:]]))"


def in_a_process(*words: str, before: str = "", **environment: str) -> Any:
    code = f"import sys; sys.argv = ['fastrnn', *{list(words)!r}]; {before}\n{PREDICT}"
    return run_python(code, **environment)


@pytest.mark.parametrize(
    ("name", "value"), [("FASTRNN_NUM_THREADS", "abc"), ("FASTRNN_ISA", "v9"), ("FASTRNN_BACKEND", "foo")]
)
def test_an_impossible_setting_is_named(saved: Path, name: str, value: str) -> None:
    if name != "FASTRNN_BACKEND" and isinstance(native(), ImportError):
        pytest.skip(f"cpp: {native()}")
    result = in_a_process("predict", "--model", str(saved), "a film", **{name: value})
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fastrnn sentiment: error: {name}"), line
    assert value in line


def test_any_text_is_shown_on_any_terminal(saved: Path, tmp_path: Path) -> None:
    words = ["--model", str(saved), "naïve lovely film"]
    result = in_a_process("predict", *words, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert r"na\xefve" in result.stdout
    result = in_a_process("explain", *words, "--html", str(tmp_path / "a.html"), PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert r"na\xefve" in result.stdout


def test_bytes_that_are_no_text_are_read_as_in_files(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"a lovely \xff film\nan awful story\n")
    before = f"import os; os.dup2(os.open({str(tmp_path / 'in')!r}, os.O_RDONLY), 0)"
    result = in_a_process(
        "predict", "--model", str(saved), "-", "--json", before=before, PYTHONIOENCODING="utf-8:strict"
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["a lovely � film", "an awful story"]


def test_the_command_offers_every_setting(tmp_path: Path, capsys: Any) -> None:
    """But for the tokenizer's rules, which are the newest for a new model."""
    path = tmp_path / "m"
    code, _, err = run(
        "train", "--data", str(write_csv(tmp_path / "a.csv", invented(40))), "--out", str(path), "--stop-words",
        "--drop-negations", *FEW, capsys=capsys,
    )  # fmt: skip
    assert code == 0, err
    assert SentimentClassifier.load(path).settings == Settings(
        epochs=1, embedding_size=4, hidden_size=4, stop_words=True, keep_negations=False
    )
