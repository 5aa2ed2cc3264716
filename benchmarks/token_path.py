"""The token path of fastrnn.training against the input product at every step, in training steps and in inference.

    python benchmarks/token_path.py --threads 1
    python benchmarks/token_path.py --threads 2 --data imdb_train.tsv.gz

Models: small vocabularies, whose tokens are drawn evenly; with --data the default sentiment model and a wider one on
texts of that file. For each: N steps and U different tokens of a batch, and the time with by_token=True and with None
(the choice by work) as a share of that with False. One process, arms in turns on the same batches, medians of ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn
from fastrnn.sentiment import Settings, Tokenizer, Vocabulary, read
from fastrnn.sentiment.text import clip_length
from fastrnn.training import (
    Adam,
    Batch,
    Embedding,
    Linear,
    SequenceModel,
    Sequences,
    batches,
    clip_by_global_norm,
    softmax_cross_entropy,
)
from fastrnn.training.fit import one_blas_thread

ARMS = {"at every step": False, "by token": True, "by work": None}


def from_file(path: Path, texts: int) -> tuple[int, list[Any]]:
    """Vocabulary size and tokens of the first and last texts, as the default sentiment model reads them."""
    settings, tokenizer = Settings(), Tokenizer()
    found = read(path, "train").texts
    words = [tokenizer(text) for text in found[: texts // 2] + found[-texts // 2 :]]
    vocabulary = Vocabulary.build(words, settings.vocabulary_size, 1)
    return len(vocabulary), [clip_length(vocabulary.numbers(each), settings.longest) for each in words]


def drawn(V: int, T: int, rows: int) -> tuple[int, list[Any]]:
    tokens = np.random.default_rng(0).integers(0, V, (rows, T)).astype(np.int32)
    return V, list(tokens)


def trainer(model: SequenceModel) -> Callable[[Batch], None]:
    optimizer = Adam(1e-3)

    def step(batch: Batch) -> None:
        y, _, backward = model.forward_train(batch.x, batch.lengths)
        backward(softmax_cross_entropy(y, batch.targets)[1])
        clip_by_global_norm(model.grads, 1.0)
        optimizer.step(model.parameters, model.grads)
        model.zero_grad()

    return step


def measure(name: str, data: tuple[int, list[Any]], E: int, H: int, B: int, rounds: int, **how: Any) -> None:
    V, rows = data
    both, train = how.get("bidirectional", False), how.get("train", True)
    sequences = Sequences(rows, np.zeros(len(rows), np.int64))
    plan = [sequences.batch(chosen) for chosen in batches(sequences.lengths, B, np.random.default_rng(0))]

    def made(by_token: bool | None) -> Callable[[Batch], Any]:
        model = SequenceModel(
            fastrnn.RNN(E, H, bidirectional=both, seed=1), Linear(2 * H * (1 + both), 2, seed=2),
            embedding=Embedding(V, E, seed=3), pool="mean+max", dropout=0.5,
            token_dropout=how.get("token_dropout", 0.0), seed=4, by_token=by_token,
        )  # fmt: skip
        return trainer(model) if train else lambda batch: model(batch.x, batch.lengths)

    arms = {arm: made(by_token) for arm, by_token in ARMS.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(-2, rounds):  # two to warm up
        batch = plan[turn % len(plan)]
        order = list(arms)
        for arm in order[turn % 3 :] + order[: turn % 3]:
            start = time.perf_counter()
            arms[arm](batch)
            if turn >= 0:
                seconds[arm].append(time.perf_counter() - start)
    base = np.array(seconds["at every step"])
    steps = np.mean([b.x.size if b.lengths is None else b.lengths.sum() for b in plan])
    different = np.mean([len(np.unique(b.x)) for b in plan])
    shares = ", ".join(f"{arm} {np.median(np.array(seconds[arm]) / base):.2f}" for arm in list(arms)[1:])
    kind = "train" if train else "infer"
    print(f"{name:22s} {kind} E {E:3d} H {H:3d} B {B:3d} N {steps:6.0f} U {different:5.0f} "
          f"{1e3 * np.median(base):7.2f} ms; {shares}", flush=True)  # fmt: skip


def main() -> None:
    """Prints one line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help="labelled texts")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    with fastrnn.threads(args.threads), one_blas_thread():
        characters = drawn(80, 100, 64 * 20)
        for E, H in ((16, 32), (64, 64), (64, 256), (128, 128), (256, 256)):
            measure("80 characters", characters, E, H, 64, args.rounds)
        measure("80 characters", characters, 128, 128, 64, args.rounds, train=False)
        if args.data:
            texts = from_file(args.data, 3200)
            measure("default sentiment", texts, 64, 64, 32, args.rounds, token_dropout=0.4)
            measure("default sentiment", texts, 64, 64, 256, args.rounds, train=False)
            wide: dict[str, Any] = {"token_dropout": 0.4, "bidirectional": True}
            measure("wide, bidirectional", texts, 128, 128, 32, args.rounds, **wide)


if __name__ == "__main__":
    main()
