"""fastrnn.sentiment and its command: bad data loses nothing and crashes nothing, a saved model is the same model,
a damaged one is refused, explanations add up.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from fastrnn import cli, training
from fastrnn.sentiment import (
    SentimentClassifier,
    Settings,
    Texts,
    Tokenizer,
    Vocabulary,
    classifier,
    download_imdb,
    explain,
    hold_out,
    load_vectors,
    read,
)
from fastrnn.sentiment.text import NEGATIONS, STOP_WORDS

GOOD, BAD = ("good", "great", "moving", "lovely"), ("bad", "awful", "dull", "poor")
FILLER = ("the", "film", "a", "story", "was", "and", "an", "actor", "in", "it", "scene", "of")


def invented(N: int = 240, labels: tuple[str, ...] = ("neg", "pos"), seed: int = 0) -> Texts:
    """Texts of 5 to 20 words, whose label is told by one or two of them; with a third label, by none."""
    r, data = np.random.default_rng(seed), Texts()
    for n in range(N):
        label = labels[n % len(labels)]
        words = list(r.choice(FILLER, r.integers(5, 20)))
        if label in ("neg", "pos"):
            words[int(r.integers(len(words)))] = str(r.choice(GOOD if label == "pos" else BAD))
        data.add(str(n), " ".join(words), label)
    return data


SMALL = Settings(embedding_size=8, hidden_size=8, epochs=8, rate=0.02, batch_size=16, dropout=0.2, token_dropout=0.1)


@pytest.fixture(scope="module")
def model() -> SentimentClassifier:
    return SentimentClassifier.train(invented(), SMALL)


def run(*words: str, capsys: Any) -> tuple[int, str, str]:
    try:
        code = cli.main(["sentiment", *words])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


# ---- Text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("...!?", []),
        ("I didn't LIKE it<br /><br />at all: 7/10.", ["i", "didn't", "like", "it", "at", "all", "7", "10"]),
        ("Rock &amp; roll &lt;3", ["rock", "roll", "3"]),
        ("1984 and 3.14 or 42", ["<number>", "and", "<number>", "or", "42"]),
        ("it’s ca n't café naïve 日本", ["it's", "ca", "n't", "café", "naïve", "日本"]),
        ("a < b and c > d", ["a", "b", "and", "c", "d"]),
        ("I <3 it, the acting was great > all", ["i", "3", "it", "the", "acting", "was", "great", "all"]),
        ("</p><!-- x > 1 --><BR/>so<sigh>", ["1", "so"]),
        ("7.5 of 10, 1,5, 10.0, 1,000", ["7.5", "of", "10", "1,5", "<number>", "<number>"]),
        ("हिन्दी फ़िल्म, தமிழ்", ["हिन्दी", "फ़िल्म", "தமிழ்"]),
        ("cafe\u0301 l'e\u0301te\u0301, ma\u0301", ["cafe\u0301", "l'e\u0301te\u0301", "ma\u0301"]),
        ("می\u200cخواهم \u200d \u0301 x\u200d", ["می\u200cخواهم", "x"]),
        ("well-made, one_two", ["well", "made", "one", "two"]),
    ],
)
def test_tokenizer(text: str, tokens: list[str]) -> None:
    assert Tokenizer()(text) == tokens


def test_stop_words_keep_negations_unless_told() -> None:
    text = "It was not the best and I would never see it again"
    assert Tokenizer(stop_words=True)(text) == ["not", "best", "never", "see", "again"]
    assert Tokenizer(stop_words=True, keep_negations=False)(text) == ["best", "see", "again"]
    assert not STOP_WORDS & NEGATIONS


def test_vocabulary_counts_and_breaks_ties_by_alphabet() -> None:
    texts = [["b", "a", "c"], ["c", "b", "d"], ["c", "a"]]
    assert Vocabulary.build(texts, 10, 1).words == ["<unknown>", "c", "a", "b", "d"]
    assert Vocabulary.build(texts, 10, 2).words == ["<unknown>", "c", "a", "b"]
    vocabulary = Vocabulary.build(texts, 3, 1)
    assert vocabulary.words == ["<unknown>", "c", "a"]
    assert vocabulary.numbers(["a", "x", "c"]).tolist() == [2, 0, 1]
    assert vocabulary.numbers([]).shape == (0,)


@pytest.mark.parametrize("header", ["", "3 2\n"])
def test_pretrained_vectors(tmp_path: Path, header: str) -> None:
    path = tmp_path / "vectors.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write(header + "film 1 2\nnew york -1 0.5\nunused 3 4\n")
    vocabulary, weight = Vocabulary(["<unknown>", "film", "actor", "new york"]), np.zeros((4, 2), np.float32)
    assert load_vectors(path, vocabulary, weight) == 2
    assert weight.tolist() == [[0, 0], [1, 2], [0, 0], [-1, 0.5]]
    for content, words in (("film 1\n", "line 1: expected a word and 2 numbers"), ("film 1 x\n", "line 1: expected 2")):
        path.with_suffix("").write_text(content)
        with pytest.raises(ValueError, match=words):
            load_vectors(path.with_suffix(""), vocabulary, weight)
    with pytest.raises(FileNotFoundError):
        load_vectors(tmp_path / "none", vocabulary, weight)


# ---- Files


def test_a_folder_is_read_by_its_labels(tmp_path: Path) -> None:
    for name, content in {
        "train/pos/0_9.txt": "fine", "train/neg/0_1.txt": "poor", "train/neg/1_2.txt": "", "train/unsup/0_0.txt": "x",
        "test/pos/0_10.txt": "great é",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("latin-1"))  # not UTF-8: read all the same
    data = read(tmp_path, "train")
    assert (data.texts, data.labels) == (["poor", "fine"], ["neg", "pos"])
    assert data.skipped == [("neg/1_2.txt", "no text")]
    assert read(tmp_path, "test").texts == ["great �"]
    with pytest.raises(FileNotFoundError, match="there is no folder 'valid'"):
        read(tmp_path, "valid")
    with pytest.raises(ValueError, match=r"expected folders of \.txt files"):
        read(tmp_path / "train" / "pos")


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_csv_lines_that_are_broken_are_reported_with_their_number(tmp_path: Path, ending: str) -> None:
    content = (
        "\ufeffid,Review,Sentiment,split\r\n1,\"two\nlines, one text\",pos,train\r\n2,alone\r\n3,,neg,train\r\n"
        "4,fine,,train\r\n5,other,neg,test\r\n\r\n6,n\0ul,neg,train\r\n"
    )  # fmt: skip
    path = tmp_path / f"data{ending}"
    path.write_bytes(gzip.compress(content.encode()) if ending.endswith("gz") else content.encode())
    data = read(path, "train")
    assert (data.texts, data.labels) == (["two\nlines, one text", "nul"], ["pos", "neg"])
    assert data.skipped == [("line 4", "2 columns instead of 4"), ("line 5", "no text"), ("line 6", "no label")]
    assert "skipped 3 of 5: line 4: 2 columns" in data.report()
    assert read(path).texts[-2:] == ["other", "nul"]


def test_tsv_and_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text('label\ttext\npositive\tso "good\nneutral\tan ok film\nnegative\n')
    data = read(path)
    assert (data.texts, data.labels) == (['so "good', "an ok film"], ["positive", "neutral"])
    assert data.skipped == [("line 4", "1 columns instead of 2")]
    path = tmp_path / "data.jsonl"
    rows = ['{"text": "a", "label": 1}', "{", "[1]", "", '{"text": "b"}', '{"text": null, "label": 0}', "[" * 100_000]
    path.write_text("\n".join([*rows, '{"text": "c", "label": 0}']))
    data = read(path)
    assert (data.texts, data.labels) == (["a", "c"], ["1", "0"])
    assert [where for where, _ in data.skipped] == [f"line {n}" for n in (2, 3, 5, 6, 7)]
    assert read(path, text="text", label="label").counts() == {"0": 1, "1": 1}


def test_files_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.csv", b"", "expected a first line with the names of the columns"),
        ("b.csv", b"x,y\n1,2\n", "expected a column 'text' or 'review' or 'sentence' for the text, got the col"),
        ("c.xlsx", b"", r"expected a folder, or a file that ends in \.csv, \.tsv or \.jsonl"),
        ("d.csv.gz", gzip.compress(b"text,label\n" + os.urandom(9999))[:-3000], "expected a whole file, got a damag"),
        ("e.csv.gz", b"text,label\n", "expected a whole file, got a damaged one"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.csv")


def test_hold_out_takes_its_share_of_every_label() -> None:
    data = invented(100, ("neg", "pos", "so"))
    rest, held = hold_out(data, 0.2, seed=1)
    assert held.counts() == {"neg": 7, "pos": 7, "so": 7}
    assert sorted(rest.texts + held.texts) == sorted(data.texts)
    assert hold_out(data, 0.2, seed=1)[1].texts == held.texts != hold_out(data, 0.2, seed=2)[1].texts


def test_download_unpacks_only_what_has_the_right_checksum(tmp_path: Path) -> None:
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("aclImdb/train/pos/0_9.txt", "aclImdb/test/pos/0_9.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"fine"))
    url, digest = archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="expected the SHA-256 checksum 00"):
        download_imdb(tmp_path / "a", url=url, sha256="00")
    assert not any((tmp_path / "a").iterdir())
    folder = download_imdb(tmp_path / "a", url=url, sha256=digest)
    archive.unlink()
    assert download_imdb(tmp_path / "a", url=url, sha256=digest) == folder  # not loaded twice


# ---- The model


def test_it_learns_and_the_same_seed_gives_the_same_model(model: SentimentClassifier) -> None:
    test = invented(200, seed=5)
    report = model.evaluate(test)
    assert report["accuracy"] > 0.97
    assert np.sum(report["confusion"]) == 200
    again = SentimentClassifier.train(invented(), SMALL)
    np.testing.assert_array_equal(model.probabilities(test.texts), again.probabilities(test.texts))
    three = SentimentClassifier.train(invented(360, ("neg", "neutral", "pos")), SMALL)
    report = three.evaluate(invented(90, ("neg", "neutral", "pos"), seed=7))
    assert report["macro_f1"] > 0.9
    assert list(report["labels"]) == ["neg", "neutral", "pos"]


def test_evaluation_equals_the_definitions(model: SentimentClassifier) -> None:
    data = invented(60, seed=9)
    data.labels[:20] = ["pos"] * 20  # wrong on purpose
    report = model.evaluate(data)
    found = [p.label for p in model.predict(data.texts)]
    hits = sum(a == b for a, b in zip(found, data.labels, strict=True))
    assert report["accuracy"] == hits / 60
    for label, row in report["labels"].items():
        right = sum(a == b == label for a, b in zip(found, data.labels, strict=True))
        precision, recall = right / max(found.count(label), 1), right / data.labels.count(label)
        assert row["precision"] == pytest.approx(precision)
        assert row["recall"] == pytest.approx(recall)
        assert row["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert report["macro_f1"] == pytest.approx(np.mean([row["f1"] for row in report["labels"].values()]))


def test_a_saved_model_is_the_same_model(model: SentimentClassifier, tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    model.save(path)
    loaded = SentimentClassifier.load(path)
    texts = invented(50, seed=3).texts
    np.testing.assert_array_equal(model.probabilities(texts), loaded.probabilities(texts))
    assert (loaded.settings, loaded.labels, loaded.history.records) == (
        model.settings,
        model.labels,
        model.history.records,
    )
    assert loaded.report == model.report


def test_a_damaged_or_hostile_model_is_refused(model: SentimentClassifier, tmp_path: Path) -> None:
    """Sizes are compared with the arrays before anything is allocated."""
    path = tmp_path / "a.model"
    model.save(path)
    arrays, good = training.load_arrays(path, "sentiment model")
    s = good["settings"]
    for name, change in {
        "huge": {"settings": {**s, "hidden_size": 10**9}},
        "huge table": {"settings": {**s, "embedding_size": 10**9}},
        "layers": {"settings": {**s, "layers": 10**6}},
        "pool": {"settings": {**s, "pool": "sum"}},
        "types": {"settings": {**s, "hidden_size": "8"}},
        "missing": {"settings": {}},
        "no settings": {"settings": None},
        "labels": {"labels": ["a", "a"]},
        "label count": {"labels": ["a", "b", "c"]},
        "words": {"words": [1, 2]},
        "word count": {"words": good["words"][:-1]},
        "history": {"history": 3},
        "version": {"version": 2},
    }.items():
        training.save_arrays(path, arrays, {**good, **change})
        with pytest.raises(ValueError, match="expected a sentiment model of fastrnn, got a damaged one"):
            print(name, SentimentClassifier.load(path))
    training.save_arrays(path, {}, good)
    with pytest.raises(ValueError, match=r"embedding\.weight: expected shape"):
        SentimentClassifier.load(path)
    training.save_arrays(path, arrays, {**good, "kind": "checkpoint"})
    with pytest.raises(ValueError, match="expected a sentiment model of fastrnn, got checkpoint"):
        SentimentClassifier.load(path)


def test_training_resumes_with_the_same_bits(tmp_path: Path, monkeypatch: Any) -> None:
    whole, calls = SentimentClassifier.train(invented(), SMALL), 0
    original = training.Adam.step

    def step(self: Any, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(training.Adam, "step", step)
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        SentimentClassifier.train(invented(), SMALL, checkpoint=path)
    resumed = SentimentClassifier.train(invented(), SMALL, checkpoint=path)
    for left, right in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: SentimentClassifier.train(Texts()), "data: expected labelled texts, got none"),
        (
            lambda m: SentimentClassifier.train(Texts(["a", "b"], ["x", "x"])),
            "data: expected texts of two labels or more",
        ),
        (lambda m: m.predict(["fine", "?!"]), r"texts\[1\]: expected a text with words in it, got '\?!'"),
        (lambda m: m.evaluate(Texts(["a"], ["odd"])), "data: expected labels among 'neg', 'pos', got 'odd'"),
        (lambda m: explain(m, "a film", "odd"), "label: expected one of 'neg', 'pos', got 'odd'"),
        (
            lambda m: SentimentClassifier.train(invented(), replace(SMALL, layers=2), start=m),
            "start: expected a model with layers 2, got one with 1",
        ),
        (lambda m: Settings(pool="sum"), "pool: expected one of"),
        (lambda m: Settings(held_out=1.0), "held_out: expected a share between 0 and 1"),
    ],
)
def test_bad_input_is_named(model: SentimentClassifier, call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(model)


def test_training_goes_on_from_another_model(model: SentimentClassifier) -> None:
    """Its words come first; vectors and RNN are its own before the first step; labels and readout are new."""
    data = invented(60, ("neg", "neutral", "pos"), seed=1)
    data.add("more", "sequel sequel", "neutral")
    before = model.model.state_dict()
    barely = replace(SMALL, epochs=1, rate=1e-8, held_out=0.01)
    one = SentimentClassifier.train(data, barely, start=model)
    V = len(model.vocabulary)
    assert one.labels == ["neg", "neutral", "pos"]
    assert one.vocabulary.words[:V] == model.vocabulary.words
    assert one.vocabulary.words[V:] == ["sequel"]
    for name, array in one.model.state_dict().items():
        if not name.startswith("readout"):
            np.testing.assert_allclose(array[: len(before[name])], before[name], rtol=0, atol=1e-6)
    for name, array in model.model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], name)
    losses = [
        SentimentClassifier.train(data, replace(SMALL, epochs=2), start=start).history.records[-1]["loss"]
        for start in (model, None)
    ]
    assert losses[0] < 0.9 * losses[1]


def test_runs_are_averaged(model: SentimentClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins at the same parameters, with batches of its own; the mean of all is kept unless one was better."""
    data, settings = invented(60, seed=1), replace(SMALL, epochs=2, rate=0.005)
    begun: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    trained = classifier.fit

    def recorded(one: Any, *arguments: Any, **keywords: Any) -> Any:
        begun.append(one.state_dict())
        history = trained(one, *arguments, **keywords)
        ends.append(one.state_dict())
        return history

    alone = SentimentClassifier.train(data, settings, start=model)
    monkeypatch.setattr(classifier, "fit", recorded)
    one = SentimentClassifier.train(data, replace(settings, runs=3), start=model, checkpoint=tmp_path / "state")
    assert sorted(os.listdir(tmp_path)) == ["state", "state.run2", "state.run3"]
    assert len(begun) == 3
    for name, array in one.model.state_dict().items():
        assert np.array_equal(begun[0][name], begun[1][name])
        assert np.array_equal(ends[0][name], alone.model.state_dict()[name])
        mean = (ends[0][name].astype(np.float64) + ends[1][name] + ends[2][name]) / 3
        np.testing.assert_allclose(array, mean, rtol=0, atol=1e-6)
    assert not np.array_equal(ends[0]["rnn.weight_hh_l0"], ends[1]["rnn.weight_hh_l0"])
    one.save(tmp_path / "model")
    assert SentimentClassifier.load(tmp_path / "model").settings.runs == 3

    # Two beginnings whose mean knows nothing: the better run stays
    states = [{name: k * array for name, array in begun[0].items()} for k in (1.0, -1.0)]

    def opposite(run: int) -> training.History:
        one.model.load_state_dict(states[run])
        return training.History([{"score": 0.9 + run / 100, "epoch": 1}], 1)

    one.settings = replace(settings, runs=2)
    held = training.Sequences([np.array([1, 2]), np.array([3])], np.array([0, 1]))
    one._train_runs(opposite, held)
    assert one.history.records[0]["score"] == 0.91
    for name, array in one.model.state_dict().items():
        assert np.array_equal(array, states[1][name])


def test_two_texts_are_enough() -> None:
    one = SentimentClassifier.train(Texts(["fine film", "dull film"], ["pos", "neg"]), SMALL)
    assert one.predict(["fine"])[0].label in ("pos", "neg")
    assert one.report == {}


# ---- Explanations


@pytest.mark.parametrize("pool", ["last", "mean", "max", "mean+max"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_integrated_gradients_add_up(pool: str, bidirectional: bool) -> None:
    """With 512 points they sum to score - baseline_score within 1 % (a maximum over time has kinks); gradient x input
    is the derivative of the score along the word vectors."""
    settings = Settings(
        embedding_size=8, hidden_size=8, layers=2, epochs=4, rate=0.02, pool=pool, bidirectional=bidirectional
    )
    one = SentimentClassifier.train(invented(), settings)
    text = "the film was a good story and it was not dull"
    found = explain(one, text, "pos", steps=512)
    T = len(found.words)
    assert found.words == Tokenizer()(text)
    assert found.integrated_gradients.sum() == pytest.approx(found.score - found.baseline_score, rel=0.01, abs=1e-3)
    assert found.states.shape == (T, 8 * (1 + bidirectional))
    assert (found.gradient_norm >= 0).all()
    embedding, h = one.model.embedding, 1e-3
    assert embedding is not None
    scores = []
    for factor in (1 + h, 1 - h):
        weight = embedding.parameters["weight"]
        weight *= np.float32(factor)
        scores.append(explain(one, text, "pos", steps=1).score)
        weight /= np.float32(factor)
    assert found.gradient_x_input.sum() == pytest.approx((scores[0] - scores[1]) / (2 * h), rel=0.02, abs=5e-3)


def test_words_that_tell_the_label_have_the_largest_share(model: SentimentClassifier) -> None:
    found = explain(model, "the film was a lovely story", "pos")
    assert found.words[int(np.argmax(found.integrated_gradients))] == "lovely"
    assert explain(model, "the film was a lovely story", "neg").integrated_gradients.min() < 0


def test_pages_and_pictures(model: SentimentClassifier, tmp_path: Path) -> None:
    found = explain(model, "a <b>lovely</b> film &amp; <script>alert(1)</script> $x_1$ unheard " * 30)
    found.write(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "<script" not in page
    assert "not in the vocabulary" in page
    assert page.count("<span") == len(found.words)
    found.write(tmp_path / "a.png", "gradient x input")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# ---- The command


def write_csv(path: Path, data: Texts) -> Path:
    path.write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in zip(data.texts, data.labels, strict=True)))
    return path


def test_four_commands(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Train, evaluate, predict, plot, explain; then the same data twice gives the same file."""
    train = write_csv(tmp_path / "train.csv", invented(240))
    with train.open("a") as file:
        file.write("broken\n")
    test = write_csv(tmp_path / "test.csv", invented(50, seed=2))
    path, small = (
        tmp_path / "m.model",
        ["--epochs", "6", "--rate", "0.02", "--embedding-size", "8", "--hidden-size", "8"],
    )
    code, out, err = run("train", "--data", str(train), "--out", str(path), *small, capsys=capsys)
    assert code == 0, err
    assert "skipped 1 of 241: line 242: 1 columns instead of 2" in err
    assert "240 texts: neg 120, pos 120" in err
    assert "macro F1" in out
    first = path.read_bytes()
    assert run("train", "--data", str(train), "--out", str(path), *small, capsys=capsys)[0] == 0
    two = SentimentClassifier.load(path)
    path.write_bytes(first)
    one = SentimentClassifier.load(path)
    np.testing.assert_array_equal(one.probabilities(["a lovely film"]), two.probabilities(["a lovely film"]))

    more = ["--start", str(path), "--out", str(tmp_path / "n.model")]
    assert run("train", "--data", str(train), *more, *small, capsys=capsys)[0] == 0
    code, _, err = run("train", "--data", str(train), *more, capsys=capsys)
    assert code == 2
    assert "start: expected a model with embedding_size 64, got one with 8" in err
    code, _, err = run("train", "--data", str(train), "--start", str(train), "--out", str(path), capsys=capsys)
    assert code == 2
    assert "--start: " in err

    report = tmp_path / "r.json"
    code, out, _ = run("evaluate", "--data", str(test), "--model", str(path), "--json", str(report), capsys=capsys)
    assert code == 0
    assert f"accuracy {json.loads(report.read_text())['accuracy']:.4f}" in out

    code, out, err = run("predict", "--model", str(path), "a lovely film", "?", "an awful story", capsys=capsys)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["pos", "neg"]
    assert "text 2: skipped, there is no word in '?'" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("a lovely film\nan awful story\n"))
    code, out, _ = run("predict", "--model", str(path), "-", "--json", capsys=capsys)
    assert [json.loads(line)["label"] for line in out.splitlines()] == ["pos", "neg"]

    for name in ("plot.png", "plot.svg"):
        assert run("plot", "--model", str(path), "--out", str(tmp_path / name), capsys=capsys)[0] == 0
        assert (tmp_path / name).stat().st_size > 5000
    code, out, _ = run(
        "explain", "--model", str(path), "a lovely film", "--html", str(tmp_path / "e.html"), "--png",
        str(tmp_path / "e.png"), "--method", "gradient", capsys=capsys,
    )  # fmt: skip
    assert code == 0
    assert "lovely" in out.splitlines()[1]
    assert (tmp_path / "e.html").stat().st_size > 5000


def test_commands_say_what_to_do(tmp_path: Path, capsys: Any, model: SentimentClassifier) -> None:
    """Exit code 2 and one line."""
    path, odd = tmp_path / "m.model", tmp_path / "odd.model"
    model.save(path)
    odd.write_bytes(b"no model")
    single = write_csv(tmp_path / "one.csv", Texts(["a", "b"], ["pos", "pos"]))
    other = write_csv(tmp_path / "other.csv", Texts(["a", "b"], ["x", "y"]))
    out = ["--out", str(tmp_path / "n.model")]
    for words, message in (
        (["train", "--data", "none.csv", *out], "--data: none.csv: there is no such file or folder"),
        (["train", "--data", str(single), *out], "data: expected texts of two labels or more, got 2 of 'pos' alone"),
        (["train", "--data", str(single), "--out", "none/m"], "--out: there is no directory none"),
        (["train", "--data", str(single), "--held-out", "2", *out], "--held-out: expected a number in [0, 1], got 2"),
        (["train", "--data", str(other), "--text-column", "body", *out], "expected a column 'body' for the text"),
        (["evaluate", "--data", str(other), "--model", str(path)], "expected labels among 'neg', 'pos', got 'x', 'y'"),
        (["evaluate", "--data", str(other), "--model", "none"], "--model: none: there is no such file"),
        (["predict", "--model", str(odd), "fine"], "expected a sentiment model of fastrnn"),
        (["predict", "--model", str(path), ""], "expected a text with words in it"),
        (["explain", "--model", str(path), "fine"], "expected --html FILE or --png FILE"),
        (
            ["explain", "--model", str(path), "?", "--html", str(tmp_path / "a.html")],
            "expected a text with words in it",
        ),
        (["plot", "--model", str(path), "--out", str(tmp_path / "a.odd")], "--out:"),
    ):
        code, _, err = run(*words, capsys=capsys)
        assert code == 2, words
        assert message in err
        assert "Traceback" not in err
    assert not (tmp_path / "n.model").exists()
