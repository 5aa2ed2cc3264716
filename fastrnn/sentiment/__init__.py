"""Sentiment of texts, end to end: text -> tokens -> embedding -> RNN -> label.

    data = read("aclImdb", "train")                                   # folders, csv, tsv, jsonl; .gz too; any labels
    model = SentimentClassifier.train(data, progress=True)
    model.evaluate(read("aclImdb", "test"))["accuracy"]
    model.predict(["I could not stop smiling."])[0].label
    model.save("imdb.model"); SentimentClassifier.load("imdb.model")

The same from the command line: fastrnn sentiment train | evaluate | predict | plot | explain.
"""

from .classifier import Prediction, SentimentClassifier, Settings
from .data import Texts, download_imdb, hold_out, read
from .explain import Explanation, explain
from .text import Tokenizer, Vocabulary, load_vectors

__all__ = [
    "Explanation",
    "Prediction",
    "SentimentClassifier",
    "Settings",
    "Texts",
    "Tokenizer",
    "Vocabulary",
    "download_imdb",
    "explain",
    "hold_out",
    "load_vectors",
    "read",
]
