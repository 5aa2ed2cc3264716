"""Why a model says what it says: the share of each word, the hidden states, the gradient through time."""

from __future__ import annotations

import base64
import copy
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _validate
from .._backends.options import Array
from ..training import SequenceModel
from .classifier import SentimentClassifier

METHODS = ("integrated gradients", "gradient x input")


@dataclass(frozen=True)
class Explanation:
    """What explain found for one text; T words, H units.

    score is the logit of label minus the mean of the others'. gradient_x_input and integrated_gradients (T) are each
    word's share; gradient_norm (T) is |d score / d word vector|, last_gradient_norm (T) the same from the
    last state alone: where it falls to 0, that state has forgotten. states (T, D * H) are those of the top layer.
    """

    text: str
    words: list[str]
    known: list[bool]
    label: str
    probabilities: dict[str, float]
    score: float
    baseline_score: float
    gradient_x_input: Array
    integrated_gradients: Array
    gradient_norm: Array
    last_gradient_norm: Array
    states: Array

    def html(self, method: str = METHODS[0]) -> str:
        """A page of its own: the words coloured by their share, the two pictures; needs matplotlib."""
        shares = self.shares(method)
        top = float(np.abs(shares).max(initial=0)) or 1.0
        spans = []
        for word, share, known in zip(self.words, shares, self.known, strict=True):
            color = "0,140,90" if share > 0 else "205,60,50"
            style = f"background:rgba({color},{0.85 * abs(share) / top:.2f})" + ("" if known else ";opacity:.5")
            note = "" if known else ", not in the vocabulary"
            spans.append(f'<span style="{style}" title="{share:+.3f}{note}">{html.escape(word)}</span>')
        rows = "".join(
            f"<tr><td>{html.escape(label)}</td><td>{value:.1%}</td></tr>" for label, value in self.probabilities.items()
        )
        picture = io.BytesIO()
        self.figure(method).savefig(picture, format="png", dpi=110)
        image = base64.b64encode(picture.getvalue()).decode()
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>fastrnn sentiment</title>'
            "<style>body{font:16px/1.7 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
            "span{padding:.1em .15em;border-radius:.2em}td{padding-right:1.5em}img{max-width:100%}</style>"
            f"<h1>{html.escape(self.label)}</h1><table>{rows}</table>"
            f"<p>{' '.join(spans)}</p><p><small>Green speaks for {html.escape(self.label)}, red against it: "
            f"{html.escape(method)}; score {self.score:+.2f}, {self.baseline_score:+.2f} without any word.</small></p>"
            f'<img alt="hidden states and gradients" src="data:image/png;base64,{image}"></html>\n'
        )

    def figure(self, method: str = METHODS[0]) -> Any:
        """A matplotlib Figure: the shares, the hidden states and the gradient's norm, word by word."""
        from matplotlib.figure import Figure

        T, shares = len(self.words), self.shares(method)
        figure = Figure(figsize=(min(max(6.0, 0.28 * T), 60), 8), layout="constrained")
        bars, heat, norms = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 1))
        places = np.arange(T)
        bars.bar(places, shares, color=np.where(shares > 0, "#008c5a", "#cd3c32"))
        bars.set_title(f"{self.label}: {method}", loc="left", parse_math=False)
        order = np.argsort(-np.abs(self.states).max(axis=0), kind="stable")[:64]
        image = heat.imshow(self.states[:, order].T, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
        figure.colorbar(image, ax=heat, label="state", pad=0.01)
        heat.set(ylabel="unit")
        heat.set_title("hidden states, the most active units first", loc="left")
        norms.plot(places, self.gradient_norm, label="of the score", color="#00798c")
        norms.plot(places, self.last_gradient_norm, label="through the last state alone", color="#edae49")
        norms.set(yscale="symlog" if not (self.gradient_norm > 0).all() else "log")
        norms.set_title("norm of the gradient at each word", loc="left")
        norms.legend(frameon=False)
        shown = places if T <= 120 else places[:: T // 120 + 1]
        norms.set_xticks(shown, [self.words[i] for i in shown], rotation=90, fontsize="small", parse_math=False)
        return figure

    def shares(self, method: str) -> Array:
        """(T) of one of METHODS; ValueError for another."""
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(map(repr, METHODS))}, got {method!r}")
        return self.integrated_gradients if method == METHODS[0] else self.gradient_x_input

    def write(self, path: Any, method: str = METHODS[0], format: str | None = None) -> None:
        """Writes a page or a picture, under this very name.

        format: "html" or one of matplotlib's; by default what the path's ending names. ValueError for another one.
        """
        path = Path(path)
        format = path.suffix[1:].lower() if format is None else format
        if format in ("html", "htm"):
            path.write_text(self.html(method), encoding="utf-8")
            return
        figure = self.figure(method)
        if format not in figure.canvas.get_supported_filetypes():
            raise ValueError(f"{path}: expected the format 'html' or one of matplotlib's, as 'png', got {format!r}")
        figure.savefig(path, format=format, dpi=150)


def explain(model: SentimentClassifier, text: str, label: str | None = None, *, steps: int = 64) -> Explanation:
    """How each word moves the score of label (default: the predicted one).

    Gradient x input: <d score / d x_t, x_t> for the word vectors x_t. Integrated gradients (Sundararajan, Taly and Yan
    2017): the same with the gradient averaged along the straight line from zero vectors, by the midpoint rule with
    `steps` points; they add up to score - baseline_score but for the rule's error. No dropout. Computed on the CPU.

    Raises ValueError for a text without words, an unknown label and steps below 1. Memory: steps times the model's for
    this text.
    """
    steps = _validate.integer("steps", steps, at_least=1)
    model = model.on("cpu")
    prediction = model.predict([text])[0]
    label = prediction.label if label is None else label
    if label not in model.labels:
        raise ValueError(f"label: expected one of {', '.join(map(repr, model.labels))}, got {label!r}")
    plain = _without_dropout(model.model)
    (tokens,) = model.encode([text])
    words = model.tokenizer(text)
    if len(words) > len(tokens):
        head = len(tokens) // 4
        words = words[:head] + words[len(words) - (len(tokens) - head) :]
    embedding = model.model.embedding
    assert embedding is not None
    x = embedding(tokens)[:, None]  # (T, 1, E)
    K = len(model.labels)
    direction = np.full(K, -1 / (K - 1), np.float32)
    direction[model.labels.index(label)] = 1

    shares = ((np.arange(steps) + 0.5) / steps).astype(x.dtype)
    path = np.concatenate([x * shares[:, None], x], axis=1)  # (T, steps + 1, E)
    y, _, backward = plain.forward_train(path)
    d_path, _ = backward(np.broadcast_to(direction, y.shape).copy())
    assert d_path is not None
    d_x = d_path[:, -1]
    output, h_n, backward_rnn = plain.rnn.forward_train(x)
    d_last, _ = backward_rnn(None, np.full_like(h_n, (h_n.shape[0] * h_n.shape[2]) ** -0.5))
    return Explanation(
        text=text,
        words=words,
        known=[word in model.vocabulary for word in words],
        label=label,
        probabilities=prediction.probabilities,
        score=float(y[-1] @ direction),
        baseline_score=float(plain(np.zeros_like(x))[0] @ direction),
        gradient_x_input=(d_x * x[:, 0]).sum(axis=-1),
        integrated_gradients=(d_path[:, :-1].mean(axis=1) * x[:, 0]).sum(axis=-1),
        gradient_norm=np.linalg.norm(d_x, axis=-1),
        last_gradient_norm=np.linalg.norm(d_last[:, 0], axis=-1),
        states=output[:, 0],
    )


def _without_dropout(model: SequenceModel) -> SequenceModel:
    """The model on word vectors, with gradients of its own."""
    rnn = copy.deepcopy(model.rnn)
    rnn.dropout = 0.0
    return SequenceModel(rnn, copy.deepcopy(model.readout), pool=model.pool)
