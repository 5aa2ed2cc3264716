"""fastrnn.sentiment, what comes in: settings, files, splits and validation are checked before the work, and errors name
what is wrong; models made before keep their tokens.
"""

import gzip
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.processes import output_of
from test_sentiment import SMALL, invented

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from fastrnn import training
from fastrnn.sentiment import SentimentClassifier, Settings, Texts, Tokenizer, classifier, explain, hold_out, read
from fastrnn.sentiment.classifier import _score

SHORT = replace(SMALL, epochs=1)


@pytest.fixture(scope="module")
def model() -> SentimentClassifier:
    return SentimentClassifier.train(invented(80), SHORT)


# ---- Text


def test_a_model_made_before_keeps_its_tokens(model: SentimentClassifier, tmp_path: Path) -> None:
    """A file without token_rules was trained with rules 1: its predictions, which the tokens make, stay the same."""
    path = tmp_path / "m.model"
    model.save(path)
    assert SentimentClassifier.load(path).tokenizer.rules == 2
    arrays, found = training.load_arrays(path, "sentiment model")
    del found["settings"]["token_rules"]
    training.save_arrays(path, arrays, found)
    old = SentimentClassifier.load(path)
    assert old.tokenizer("7.5 <3 a film> ok") == ["<number>", "ok"]
    assert old.on("cpu").settings.token_rules == 1
    old.save(path)
    assert SentimentClassifier.load(path).tokenizer("7.5") == ["<number>"]
    assert model.tokenizer("7.5 <3 a film> ok") == ["7.5", "3", "a", "film", "ok"]
    with pytest.raises(ValueError, match="token_rules: expected one of 1, 2, got 3"):
        Settings(token_rules=3)
    with pytest.raises(ValueError, match="rules: expected one of 1, 2, got 3"):
        Tokenizer(rules=3)


# ---- Files


def test_damage_within_a_compressed_file_is_named(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b"text,label\n" + os.urandom(5000).hex().encode()))
    whole[40:60] = b"\xff" * 20
    (tmp_path / "a.csv.gz").write_bytes(whole)
    with pytest.raises(ValueError, match=r"a\.csv\.gz: expected a whole file, got a damaged one"):
        read(tmp_path / "a.csv.gz")


ROWS = [("Training", "fine", "pos"), ("TRAINING ", "dull", "neg"), ("other", "so", "neg")]


def write_rows(folder: Path, ending: str, column: str = "split", rows: Sequence[tuple[str, str, str]] = ROWS) -> Path:
    path = folder / f"data{ending}"
    if ending == ".jsonl":
        lines = [json.dumps({column: split, "text": text, "label": label}) for split, text, label in rows]
    else:
        lines = [f"{column}\ttext\tlabel", *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("ending", [".tsv", ".jsonl"])
@pytest.mark.parametrize("column", ["split", "Fold", "set"])
def test_a_split_is_found_in_capitals_or_not(tmp_path: Path, ending: str, column: str) -> None:
    path = write_rows(tmp_path, ending, column)
    for asked in ("training", "Training", " TRAINING"):
        assert read(path, asked).texts == ["fine", "dull"]
    assert len(read(path)) == 3


@pytest.mark.parametrize("ending", [".tsv", ".jsonl"])
def test_a_split_that_no_line_names_is_an_error(tmp_path: Path, ending: str) -> None:
    words = r"expected lines whose column 'set' says 'train', got '(Training|other)', '.*"
    with pytest.raises(ValueError, match=words):
        read(write_rows(tmp_path, ending, "set"), "train")
    assert len(read(write_rows(tmp_path, ending, rows=[]), "train")) == 0
    path = tmp_path / "null.jsonl"
    path.write_text('{"split": null, "text": "a", "label": "x"}\n')
    assert len(read(path, "train")) == 1


def test_holding_out_leaves_texts_of_every_label() -> None:
    data = invented(41)
    data.add("41", "so so", "third")
    for share in (0.5, 0.99, 0.999):
        rest, held = hold_out(data, share, seed=0)
        assert rest.counts().keys() == data.counts().keys()
        assert held.counts().keys() == {"neg", "pos"}
    one = SentimentClassifier.train(invented(40), replace(SHORT, held_out=0.99))
    assert one.report["texts"] == 38


# ---- Settings


def test_numbers_of_numpy_are_settings_as_others_are(tmp_path: Path) -> None:
    numpy = Settings(
        embedding_size=np.int32(4), hidden_size=np.int64(4), epochs=np.int64(1), batch_size=np.uint8(16),
        patience=np.int64(2), rate=np.float32(0.5), clip_norm=np.float64(1), dropout=np.float32(0.25),
        balance=np.float64(0), held_out=np.float64(0.1), seed=np.int64(3), runs=np.int16(1),
    )  # fmt: skip
    one = SentimentClassifier.train(invented(40), numpy)
    one.save(tmp_path / "m")
    plain = Settings(
        embedding_size=4, hidden_size=4, epochs=1, batch_size=16, patience=2, rate=0.5, dropout=0.25, seed=3
    )
    assert SentimentClassifier.load(tmp_path / "m").settings == plain == numpy
    assert all(type(value) in (int, float, bool, str) for value in vars(numpy).values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip_norm": 0}, "clip_norm: expected a number above 0, got 0"),
        ({"clip_norm": float("nan")}, "clip_norm: expected a number above 0, got nan"),
        ({"rate": -1.0}, "rate: expected a number above 0, got -1"),
        ({"rate": float("inf")}, "rate: expected a number above 0, got inf"),
        ({"rate": "fast"}, "rate: expected a number above 0, got str"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"patience": 1.5}, "patience: expected int, got float"),
    ],
)
def test_settings_are_checked_when_they_are_made(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        Settings(**settings)


# ---- Validation


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        (Texts(), "validation: expected labelled texts, got none"),
        (Texts(skipped=[("line 2", "no text")]), "validation: .*skipped 1 of 1: line 2: no text"),
        (Texts(["a"], ["odd"]), "validation: expected labels among 'neg', 'pos', got 'odd'"),
    ],
)
def test_validation_is_checked_before_training(validation: Texts, words: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(classifier, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=words):
        SentimentClassifier.train(invented(20), SHORT, validation=validation)


def test_the_epoch_is_chosen_by_what_evaluate_says(model: SentimentClassifier) -> None:
    """The same macro F1, also where a label neither occurs nor is found; with all of them as scikit-learn's default."""
    from sklearn.metrics import accuracy_score, f1_score

    logits, targets = np.eye(3)[[0, 1, 0, 1, 1]], np.array([0, 1, 1, 1, 0])
    accuracy, both = accuracy_score(targets, logits.argmax(1)), f1_score(targets, logits.argmax(1), average="macro")
    assert _score(logits, targets) == pytest.approx(0.5 * (accuracy + both * 2 / 3))
    logits[0], targets[0] = (0, 0, 1), 2
    found = logits.argmax(1)
    assert _score(logits, targets) == 0.5 * (
        accuracy_score(targets, found) + f1_score(targets, found, average="macro", zero_division=0.0)
    )
    data = Texts(["a lovely film", "a great story"], ["pos", "pos"])
    report = model.evaluate(data)
    numbers = np.array([model.labels.index(label) for label in data.labels])
    mean = 0.5 * (report["accuracy"] + report["macro_f1"])
    assert _score(model.probabilities(data.texts), numbers) == pytest.approx(mean)


# ---- Explanations


@pytest.mark.parametrize("steps", [0, -3])
def test_an_explanation_needs_a_step(model: SentimentClassifier, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=f"steps: expected at least 1, got {steps}"):
            explain(model, "a film", steps=steps)


def test_an_explanation_is_written_under_the_name_given(model: SentimentClassifier, tmp_path: Path) -> None:
    found = explain(model, "a lovely film")
    found.write(tmp_path / "page", format="html")
    found.write(tmp_path / "page.svg")
    found.write(tmp_path / "picture", format="png")
    assert sorted(os.listdir(tmp_path)) == ["page", "page.svg", "picture"]
    assert (tmp_path / "page").read_text("utf-8").startswith("<!doctype html>")
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")
    for name in ("why", "why.xhtml"):
        with pytest.raises(ValueError, match="expected the format 'html' or one of matplotlib's"):
            found.write(tmp_path / name)
    assert len(os.listdir(tmp_path)) == 3


def test_labels_and_words_are_no_mathematics(tmp_path: Path) -> None:
    one = SentimentClassifier.train(invented(40, (r"$\pos$", "$x")), SHORT)
    explain(one, "a film", r"$\pos$").write(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# ---- Environment


def test_a_backend_that_is_unknown_does_not_damage_a_model(model: SentimentClassifier, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    code = (
        "from fastrnn.sentiment import SentimentClassifier\n"
        "try:\n"
        f"    SentimentClassifier.load({str(tmp_path / 'm')!r}).predict(['a film'])\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    assert output_of(code, FASTRNN_BACKEND="foo").startswith("FASTRNN_BACKEND: expected 'auto' or one of")
