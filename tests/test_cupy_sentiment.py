"""fastrnn.sentiment with device="cuda", through the stand-in for CuPy (tests/helpers/fake_cupy)."""

from __future__ import annotations

import pytest
from helpers.cuda_on_host import COMPILER
from helpers.cupy_process import run

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@needs_compiler
def test_a_sentiment_model_does_not_depend_on_its_device() -> None:
    """Trained on the device with pretrained vectors, from a start and with two runs; the file is that of the CPU but
    for rounding, and is read on either; probabilities, explanation and the CLI with --device."""
    code = """
import itertools, json
from pathlib import Path
from fastrnn.cli import main
from fastrnn.sentiment import SentimentClassifier, Settings, Texts, explain
r = np.random.default_rng(0)
words = {"good": ["fine", "great", "nice"], "bad": ["dull", "awful", "poor"]}
labels = r.choice(["good", "bad"], 60).tolist()
texts = [" ".join([*r.choice(words[label], 2), *r.choice(["film", "plot", "cast"], 3)]) for label in labels]
data = Texts(texts, labels)
Path("vectors.txt").write_text("great 1 2 3 4 5\\ndull -1 -2 -3 -4 -5\\n")
settings = Settings(embedding_size=5, hidden_size=7, epochs=2, batch_size=17, runs=2, balance=0.5)
found = {}
for device in ("cpu", "cuda"):
    start = SentimentClassifier.train(data, Settings(embedding_size=5, hidden_size=7, epochs=1), vectors="vectors.txt",
                                      device=device)
    one = SentimentClassifier.train(data, settings, start=start, device=device)
    one.save(device)
    found[device] = one
plain, there = found["cpu"], found["cuda"]
assert type(there.model.parameters["readout.bias"]) is cupy.ndarray
for path, device in itertools.product(found, repeat=2):
    loaded = SentimentClassifier.load(path, device)
    assert loaded.model.rnn.device == device and loaded.settings == settings
    for name, array in loaded.model.state_dict().items():
        array = array if device == "cpu" else array.get()
        assert np.abs(array - plain.model.state_dict()[name]).max() <= 1e-5, name
    assert np.abs(loaded.probabilities(texts) - plain.probabilities(texts)).max() <= 1e-5
got, want = explain(there, texts[0]), explain(plain, texts[0])
assert np.abs(got.integrated_gradients - want.integrated_gradients).max() <= 1e-5 and got.label == want.label
lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels)]
Path("data.jsonl").write_text("\\n".join(lines))
small = ["--embedding-size", "5", "--hidden-size", "7", "--epochs", "1", "--device", "cuda"]
assert main(["sentiment", "train", "--data", "data.jsonl", "--out", "cli", *small]) == 0
assert main(["sentiment", "predict", "--model", "cli", "--device", "cuda", "--json", texts[0]]) == 0
assert main(["sentiment", "evaluate", "--data", "data.jsonl", "--split", "all", "--model", "cli"]) == 0
print("fine")
"""
    assert run(code).splitlines()[-1] == "fine"


def test_no_gpu_is_a_usage_error() -> None:
    code = """
from fastrnn.cli import main
sys.stderr = sys.stdout
data = ["--data", "none.tsv"]
for words in (["train", *data, "--out", "m"], ["predict", "--model", "m", "a"], ["evaluate", *data, "--model", "m"]):
    assert main(["sentiment", *words, "--device", "cuda"]) == 2
"""
    for line in run(code, FAKE_CUDA_DEVICES="0").splitlines():
        assert "error: --device: expected one that can be used, got 'cuda': 'cuda' is not available" in line
