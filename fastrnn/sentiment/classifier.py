"""SentimentClassifier: tokens -> embedding -> RNN -> pooled state -> softmax, in one file when saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from .. import _validate
from .._backends.options import Array
from .._device import moved
from .._validate import gpu
from ..layer import RNN
from ..training import (
    Adam,
    Embedding,
    History,
    Linear,
    SequenceModel,
    Sequences,
    fit,
    initialize,
    load_arrays,
    optimizers,
    predict,
    save_arrays,
    softmax_cross_entropy,
)
from ..training.layers import POOLINGS
from .data import Texts, hold_out
from .text import RULES, Tokenizer, Vocabulary, clip_length, load_vectors

_KIND = "sentiment model"
_FEW = 1000  # texts: below, a word needs to occur only once to enter the vocabulary
_OLDER = {"runs": 1, "token_rules": 1}  # settings that files lack which were made before there were such
_SIZES = ("embedding_size", "hidden_size", "layers", "vocabulary_size", "longest", "batch_size", "epochs", "runs")
_LEAST = {**dict.fromkeys(_SIZES, 1), "seed": 0, "token_rules": 1}  # of the integers among the settings
_SHARES = ("dropout", "token_dropout", "balance", "held_out")
_SWITCHES = ("bidirectional", "stop_words", "keep_negations")


@dataclass(frozen=True)
class Settings:
    """Everything that train can be told; the defaults were chosen on held-out parts of training data alone."""

    embedding_size: int = 64
    hidden_size: int = 64
    layers: int = 1
    bidirectional: bool = False
    pool: str = "mean+max"
    vocabulary_size: int = 20_000
    longest: int = 400  # tokens of a text that are read: the first quarter and the rest from its end
    stop_words: bool = False  # True: they are removed
    keep_negations: bool = True  # where stop words are removed
    dropout: float = 0.5  # of the pooled state
    token_dropout: float = 0.4  # of whole words
    rate: float = 1e-3
    batch_size: int = 32
    epochs: int = 5
    patience: int | None = None
    clip_norm: float = 1.0
    balance: float = 0.0  # class weights (N / (K count))^balance: 1 counts all classes alike
    runs: int = 1  # trainings from the same parameters, with other batches and dropout, whose results are averaged
    held_out: float = 0.1  # the share of the training texts on which the best epoch is chosen
    seed: int = 0
    token_rules: int = RULES[-1]  # of the tokenizer; a model keeps those it was trained with

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {  # Python's own numbers, which JSON holds, for NumPy's
            **{name: _validate.integer(name, getattr(self, name), at_least=low) for name, low in _LEAST.items()},
            **{name: _validate.probability(name, getattr(self, name)) for name in _SHARES},
            **{name: _validate.boolean(name, getattr(self, name)) for name in _SWITCHES},
            **{name: _above_0(name, getattr(self, name)) for name in ("rate", "clip_norm")},
        }
        if self.patience is not None:
            checked["patience"] = _validate.integer("patience", self.patience, at_least=0)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.token_rules not in RULES:
            raise ValueError(f"token_rules: expected one of {', '.join(map(str, RULES))}, got {self.token_rules}")
        if self.pool not in POOLINGS:
            raise ValueError(f"pool: expected one of {', '.join(map(repr, POOLINGS))}, got {self.pool!r}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: expected a share between 0 and 1, got {self.held_out}")


class Prediction(NamedTuple):
    """A label and the probability of every label."""

    label: str
    probabilities: dict[str, float]


class SentimentClassifier:
    """A trained model: labels, tokenizer, vocabulary, SequenceModel, and the history of its training.

    Made by train or load, on device "cpu" or "cuda". A saved file does not depend on it.
    """

    def __init__(self, settings: Settings, labels: Sequence[str], vocabulary: Vocabulary, device: str = "cpu") -> None:
        s = settings
        self.settings, self.labels, self.vocabulary = settings, list(labels), vocabulary
        self.tokenizer = _tokenizer(s)
        seeds = np.random.SeedSequence(s.seed).spawn(4)
        dropout = s.dropout / 2 if s.layers > 1 else 0.0
        rnn = RNN(
            s.embedding_size, s.hidden_size, s.layers, bidirectional=s.bidirectional, dropout=dropout, device=device,
            seed=seeds[0],
        )  # fmt: skip
        initialize(rnn, "orthogonal", seed=seeds[1])
        width = s.hidden_size * (1 + s.bidirectional) * (2 if s.pool == "mean+max" else 1)
        self.model = SequenceModel(
            rnn,
            Linear(width, len(self.labels), device=device, seed=seeds[2]),
            embedding=Embedding(len(vocabulary), s.embedding_size, device=device, seed=seeds[3]),
            pool=s.pool,
            dropout=s.dropout,
            token_dropout=s.token_dropout,
        )
        self.history = History()
        self.report: dict[str, Any] = {}  # evaluate on the held-out part

    @classmethod
    def train(
        cls,
        data: Texts,
        settings: Settings | None = None,
        *,
        validation: Texts | None = None,
        vectors: Any = None,
        start: SentimentClassifier | None = None,
        checkpoint: Any = None,
        progress: bool = False,
        device: str = "cpu",
    ) -> SentimentClassifier:
        """A model of these texts.

        The epoch with the highest mean of accuracy and macro F1 on validation is kept, by default on a share
        `held_out` of data that takes no other part. vectors: a file of pretrained vectors (load_vectors); checkpoint
        and progress: as for fit. device: as for fastrnn.RNN.
        start: a trained model to go on from, of any labels: its words come before those that only data has, and its
        vectors and RNN are where training begins; the readout is new.
        With settings.runs > 1 the parameters are the mean of the runs' (a "model soup", Wortsman et al. 2022: for runs
        that begin at a trained model), unless the best run has a higher score on validation; history is that run's.
        Raises ValueError for data of fewer than two labels, for validation without a text or with a label that data
        lacks, and for a start whose sizes are not those of settings.
        """
        settings = Settings() if settings is None else settings
        _check_any("data", data)
        if len(set(data.labels)) < 2:
            raise ValueError(f"data: expected texts of two labels or more, got {len(data)} of {data.labels[0]!r} alone")
        labels = sorted(set(data.labels))
        if validation is None:
            data, held = hold_out(data, settings.held_out, settings.seed)
        else:
            held = validation
            _check_any("validation", held)
        held_targets = _numbers("validation", held.labels, labels)
        tokenizer = _tokenizer(settings)
        tokens = [tokenizer(text) for text in data.texts]
        at_least = 2 if len(tokens) >= _FEW else 1
        vocabulary = Vocabulary.build(tokens, settings.vocabulary_size, at_least)
        if start is not None:
            _same_sizes(start.settings, settings)
            vocabulary = Vocabulary(
                [*start.vocabulary.words, *(w for w in vocabulary.words if w not in start.vocabulary)]
            )
        one = cls(settings, labels, vocabulary, device)
        if start is not None:
            one._begin_with(start)
        if vectors is not None and one.model.embedding is not None:
            weight = moved(one.model.embedding.parameters["weight"], None)
            load_vectors(vectors, vocabulary, weight)
            one.model.embedding.load_state_dict({"weight": weight})
        x = [clip_length(vocabulary.numbers(words), settings.longest) for words in tokens]
        counts = Counter(data.labels)
        weights = np.array([len(data) / (len(labels) * counts[label]) for label in labels]) ** settings.balance

        def loss(y: Array, targets: Array) -> tuple[float, Array]:
            return softmax_cross_entropy(y, targets, class_weights=weights)

        loss.__qualname__ = f"softmax_cross_entropy, balance {settings.balance}"  # by which a checkpoint knows it
        chosen_on = Sequences(one.encode(held.texts), held_targets) if len(held) else None
        sequences = Sequences(x, _numbers("data", data.labels, labels))

        def train_once(run: int) -> History:
            return fit(
                one.model,
                sequences,
                loss,
                Adam(settings.rate),
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                validation=chosen_on,
                score=_score if chosen_on else None,
                patience=settings.patience if chosen_on else None,
                schedule=optimizers.linear,
                clip_norm=settings.clip_norm,
                seed=settings.seed + (run << 32),
                checkpoint=f"{checkpoint}.run{run + 1}" if checkpoint is not None and run else checkpoint,
                progress=progress,
            )

        one._train_runs(train_once, chosen_on)
        if len(held):
            one.report = one.evaluate(held)
        return one

    def _train_runs(self, train_once: Callable[[int], History], validation: Sequences | None) -> None:
        """The mean of the parameters of settings.runs trainings, or the best one's where that has a higher score."""
        if self.settings.runs == 1:
            self.history = train_once(0)
            return
        begin = self._host_state()
        found = []
        for run in range(self.settings.runs):
            self.model.load_state_dict(begin)
            found.append((train_once(run), self._host_state()))
        mean = {name: np.mean([state[name] for _, state in found], 0, np.float64) for name in begin}
        self.model.load_state_dict({name: array.astype(begin[name].dtype) for name, array in mean.items()})
        if validation is None:
            self.history = found[0][0]
            return
        scores = [max(history["score"]) for history, _ in found]
        best = int(np.argmax(scores))
        self.history = found[best][0]
        if scores[best] > _score(np.asarray(predict(self.model, validation)), np.asarray(validation.targets)):
            self.model.load_state_dict(found[best][1])

    def _host_state(self) -> dict[str, Array]:
        return {name: moved(array, None) for name, array in self.model.state_dict().items()}

    def _begin_with(self, start: SentimentClassifier) -> None:
        for name, array in start._host_state().items():
            if not name.startswith("readout"):
                own = self.model.parameters[name]
                own[: len(array)] = moved(array, gpu(own))  # words of the start are the first rows

    def on(self, device: str) -> SentimentClassifier:
        """The same model on this device: itself, or one that shares nothing that training changes."""
        if device == self.model.rnn.device:
            return self
        one = SentimentClassifier(self.settings, self.labels, self.vocabulary, device)
        one.model.load_state_dict(self.model.state_dict())
        one.history, one.report = self.history, self.report
        return one

    def encode(self, texts: Iterable[str]) -> list[Array]:
        """Each text as (T) int32, at most `longest` of them."""
        return [clip_length(self.vocabulary.numbers(self.tokenizer(text)), self.settings.longest) for text in texts]

    def probabilities(self, texts: Sequence[str]) -> Array:
        """(N, K) float64, K in the order of labels; texts without a word get what the bias says."""
        if isinstance(texts, str):
            raise TypeError("texts: expected a list of str, got str")
        if len(texts) == 0:
            return np.zeros((0, len(self.labels)))
        x = self.encode(texts)
        logits = np.asarray(predict(self.model, Sequences(x, np.zeros(len(x)))), np.float64)
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exp / exp.sum(axis=1, keepdims=True))

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The most probable label of each text. Raises ValueError for a text without words."""
        for number, text in enumerate(texts):
            if not self.tokenizer(text):
                raise ValueError(f"texts[{number}]: expected a text with words in it, got {text[:40]!r}")
        return [
            Prediction(self.labels[int(row.argmax())], dict(zip(self.labels, map(float, row), strict=True)))
            for row in self.probabilities(texts)
        ]

    def evaluate(self, data: Texts) -> dict[str, Any]:
        """accuracy, macro averages, precision, recall and F1 of each label, the confusion matrix (rows: the truth).

        All by scikit-learn. Raises ValueError for labels that the model does not know.
        """
        from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

        _check_any("data", data)
        truth = _numbers("data", data.labels, self.labels)
        found = self.probabilities(data.texts).argmax(axis=1)
        numbers = list(range(len(self.labels)))
        columns = precision_recall_fscore_support(truth, found, labels=numbers, zero_division=0.0)
        names = ("precision", "recall", "f1", "texts")
        per_label = [dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)]
        return {
            "texts": len(data),
            "accuracy": float(accuracy_score(truth, found)),
            **{f"macro_{name}": float(np.mean([row[name] for row in per_label])) for name in names[:3]},
            "labels": dict(zip(self.labels, per_label, strict=True)),
            "confusion": confusion_matrix(truth, found, labels=numbers).tolist(),
        }

    # ---- One file

    def save(self, path: Any) -> None:
        """Writes all of it: safetensors, with labels, vocabulary, settings and history as JSON inside."""
        description = {
            "kind": _KIND,
            "version": 1,
            "labels": self.labels,
            "words": self.vocabulary.words,
            "settings": asdict(self.settings),
            "history": self.history.records,
            "best": self.history.best,
            "report": self.report,
        }
        save_arrays(path, self.model.state_dict(), description)

    @classmethod
    def load(cls, path: Any, device: str = "cpu") -> SentimentClassifier:
        """What save wrote. FileNotFoundError; ValueError for any other file: nothing in it is executed. device: as for
        fastrnn.RNN."""
        _validate.device_name(device)
        arrays, found = load_arrays(path, _KIND)
        with _damaged(path):
            if found["version"] != 1:
                raise ValueError(f"version {found['version']!r} instead of 1")
            labels, words = found["labels"], found["words"]
            if not all(isinstance(word, str) for word in [*labels, *words]) or len(set(labels)) < max(2, len(labels)):
                raise ValueError("labels or words that are not different texts")
            given = {**_OLDER, **found["settings"]}
            settings = Settings(**{f.name: given[f.name] for f in fields(Settings)})
            _check_sizes(arrays, settings, len(words), len(labels))
            vocabulary = Vocabulary(words)
        one = cls(settings, labels, vocabulary, device)
        with _damaged(path):
            one.model.load_state_dict(arrays)
            one.history = History(list(found["history"]), found["best"])
            one.report = dict(found["report"])
        return one


@contextmanager
def _damaged(path: Any) -> Iterator[None]:
    """ValueError that names the file where its parts do not fit together."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a sentiment model of fastrnn, got a damaged one: {error}") from None


def _tokenizer(s: Settings) -> Tokenizer:
    return Tokenizer(stop_words=s.stop_words, keep_negations=s.keep_negations, rules=s.token_rules)


def _above_0(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number above 0, got {type(value).__name__}")
    if not 0 < value < np.inf:
        raise ValueError(f"{name}: expected a number above 0, got {value}")
    return float(value)


def _check_any(name: str, data: Texts) -> None:
    if len(data) == 0:
        raise ValueError(f"{name}: expected labelled texts, got none; {data.report() or 'the file is empty'}")


def _numbers(name: str, labels: Sequence[str], known: Sequence[str]) -> Array:
    """(N) int64, each label's place among the known ones."""
    unknown = sorted(set(labels) - set(known))
    if unknown:
        wanted, got = ", ".join(map(repr, known)), ", ".join(map(repr, unknown[:5]))
        raise ValueError(f"{name}: expected labels among {wanted}, got {got}")
    number = {label: k for k, label in enumerate(known)}
    return np.array([number[label] for label in labels], np.int64)


def _score(logits: Array, targets: Array) -> float:
    """The mean of evaluate's accuracy and macro F1: neither a rare label nor the common ones are forgotten."""
    from sklearn.metrics import accuracy_score, f1_score

    found, labels = logits.argmax(axis=1), range(logits.shape[1])
    f1 = f1_score(targets, found, labels=labels, average="macro", zero_division=0.0)
    return 0.5 * float(accuracy_score(targets, found) + f1)


def _same_sizes(start: Settings, settings: Settings) -> None:
    for name in ("embedding_size", "hidden_size", "layers", "bidirectional"):
        got, expected = getattr(start, name), getattr(settings, name)
        if got != expected:
            raise ValueError(f"start: expected a model with {name} {expected}, got one with {got}")


def _check_sizes(arrays: dict[str, Array], s: Settings, words: int, labels: int) -> None:
    """Before anything is allocated: a file that names sizes it does not hold is refused."""
    wanted = {"embedding.weight": (words, s.embedding_size), "rnn.weight_hh_l0": (s.hidden_size, s.hidden_size)}
    for name, shape in wanted.items():
        if name not in arrays or arrays[name].shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {arrays[name].shape if name in arrays else 'none'}")
    if f"rnn.weight_hh_l{s.layers - 1}" not in arrays or arrays["readout.weight"].shape[0] != labels:
        raise ValueError("fewer arrays than the settings say")
