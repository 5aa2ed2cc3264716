"""Two models trained with torch.nn.RNN and with fastrnn.torch.RNN from the same seeds: losses side by side, and times.

    python benchmarks/torch_training.py --imdb imdb_train.tsv.gz             # both tasks, 60 steps each
    python benchmarks/torch_training.py --imdb imdb_train.tsv.gz --task language --steps 300 --threads 2

The file is tab-separated, gzipped or not, its first line names the columns, among them "label" (pos or neg) and "text".

language   next word; two layers with dropout, hidden state carried over, BPTT through 35 steps, clipping, SGD
sentiment  label of a review; packed sequences of up to 200 words, the last state, clipping, Adam

The two arms take turns on each batch. A third, torch.nn.RNN in float64 and not timed, shows what rounding does to the
losses: fastrnn's may depart from it three times as far as torch's. Exit code 1 where they depart further.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

WORDS = 2000  # the most frequent ones; the rest is one word
ARMS = ("torch", "fastrnn", "float64")


class Task(NamedTuple):
    """model(RNN class) -> module; loss(module, batch); one optimizer; batches without end."""

    model: Callable[[Any], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    clip: float
    batches: Iterator[Any]


class Language(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(WORDS, 96), kind(96, 128, 2, dropout=0.2)
        self.drop, self.head, self.state = nn.Dropout(0.2), nn.Linear(128, WORDS), None

    def forward(self, words: Tensor) -> Tensor:
        output, state = self.rnn(self.drop(self.embedding(words)), self.state)
        self.state = state.detach()
        return self.head(self.drop(output))


class Sentiment(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(WORDS, 64), kind(64, 128), nn.Linear(128, 2)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(words), lengths, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


def read(path: Path, limit: int) -> tuple[list[list[int]], list[int]]:
    """Word numbers and labels of the first reviews of each kind, in turns."""
    csv.field_size_limit(1 << 24)
    found: dict[str, list[list[str]]] = {"neg": [], "pos": []}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            kind = found.get(row["label"])
            if kind is not None and len(kind) < limit:
                kind.append(re.findall(r"[a-z']+", row["text"].replace("<br />", " ").lower()))
    if not found["neg"] or not found["pos"]:
        raise SystemExit(f"{path}: expected rows with the labels neg and pos")
    texts = [text for both in zip(found["neg"], found["pos"], strict=False) for text in both]
    numbers = {word: i + 1 for i, (word, _) in enumerate(Counter(w for t in texts for w in t).most_common(WORDS - 1))}
    return [[numbers.get(word, 0) for word in text] for text in texts], [0, 1] * (len(texts) // 2)


def language(texts: list[list[int]], _: list[int]) -> Task:
    T, B = 35, 20
    stream = torch.tensor([word for text in texts for word in text])
    columns = stream[: len(stream) // B * B].reshape(B, -1).T  # (time, B)

    def batches() -> Iterator[Any]:
        while True:
            for at in range(0, len(columns) - T - 1, T):
                yield columns[at : at + T], columns[at + 1 : at + T + 1]

    def loss(model: Any, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    return Task(Language, loss, lambda p: torch.optim.SGD(p, lr=2.0), 0.25, batches())


def sentiment(texts: list[list[int]], labels: list[int]) -> Task:
    T, B = 200, 32

    def batches() -> Iterator[Any]:
        generator = np.random.default_rng(0)
        while True:
            rows = generator.choice(len(texts), B, replace=False)
            chosen = [texts[row][:T] or [0] for row in rows]
            words = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in chosen])
            yield words, torch.tensor([len(text) for text in chosen]), torch.tensor([labels[row] for row in rows])

    return Task(
        Sentiment, lambda model, batch: cross_entropy(model(*batch[:2]), batch[2]),
        lambda p: torch.optim.Adam(p, lr=2e-3), 1.0, batches(),
    )  # fmt: skip


def train(name: str, task: Task, steps: int, seed: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Losses and seconds of each arm, step by step; a step's seed is the same for all arms."""
    models, optimizers = {}, {}
    for arm in ARMS:
        torch.manual_seed(seed)
        models[arm] = task.model(fastrnn.torch.RNN if arm == "fastrnn" else nn.RNN)
        if arm == "float64":
            models[arm].double()
        optimizers[arm] = task.optimizer(models[arm].parameters())
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for step in track(range(steps), name, console=Console(stderr=True)):
        batch = next(task.batches)
        for arm in (*ARMS[:2][:: (-1) ** step], "float64"):
            torch.manual_seed(seed + step)
            begin = time.perf_counter()
            optimizers[arm].zero_grad()
            loss = task.loss(models[arm], batch)
            loss.backward()
            clip_grad_norm_(models[arm].parameters(), task.clip)
            optimizers[arm].step()
            seconds[arm].append(time.perf_counter() - begin)
            losses[arm].append(loss.item())
    return losses, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imdb", type=Path, required=True, metavar="FILE")
    parser.add_argument("--task", choices=("language", "sentiment"), help="default: both")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reviews", type=int, default=1000, help="of each label; default 1000")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts, labels = read(options.imdb, options.reviews)

    table = Table(title=f"{options.steps} steps, {options.threads} thread(s), torch {torch.__version__}")
    for column in (
        "task",
        "torch ms",
        "fastrnn ms",
        "x",
        "first loss",
        "torch",
        "fastrnn",
        "apart",
        "torch off",
        "off",
    ):
        table.add_column(column, justify="left" if column == "task" else "right")
    right = True
    for name, make in (("language", language), ("sentiment", sentiment)):
        if options.task not in (None, name):
            continue
        losses, seconds = train(name, make(texts, labels), options.steps, options.seed)
        ms = {arm: 1e3 * float(np.median(seconds[arm])) for arm in ARMS}
        ratio = float(np.median(np.divide(seconds["torch"], seconds["fastrnn"])))
        curve = {arm: np.array(losses[arm]) for arm in ARMS}
        off = {arm: float(np.abs(curve[arm] - curve["float64"]).max()) for arm in ARMS}
        apart = float(np.abs(curve["fastrnn"] - curve["torch"]).max())
        last = {arm: float(curve[arm][-10:].mean()) for arm in ARMS}
        right &= off["fastrnn"] <= max(3 * off["torch"], 1e-5)
        table.add_row(
            name, f"{ms['torch']:.1f}", f"{ms['fastrnn']:.1f}", f"{ratio:.2f}", f"{curve['torch'][0]:.4f}",
            f"{last['torch']:.4f}", f"{last['fastrnn']:.4f}", f"{apart:.1e}", f"{off['torch']:.1e}",
            f"{off['fastrnn']:.1e}",
        )  # fmt: skip
    Console(width=110).print(table)
    print(
        "ms: median step, all of it; x: torch's time over fastrnn's; torch, fastrnn: mean loss of the last ten steps;"
    )
    print("apart: largest difference of the two losses; off: largest difference from float64's.")
    if not right:
        print("fastrnn's losses depart from float64's more than three times as far as torch's", file=sys.stderr)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
