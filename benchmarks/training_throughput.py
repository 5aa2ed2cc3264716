"""Training throughput of the default sentiment model, tokens a second, beside the same model in PyTorch.

    python benchmarks/training_throughput.py --threads 1
    python benchmarks/training_throughput.py --threads 2 --data imdb_train.tsv.gz

Arms: fastrnn.training; torch.nn.RNN with torch.optim.Adam; the same with Adam(fused=True). One model: the defaults of
`fastrnn sentiment train` (embedding 20,000 x 64, tanh RNN 64, mean and maximum over each text's own steps, dropout,
softmax cross-entropy, clipping, Adam). First all arms train a few steps without dropout from the same parameters, and
their losses must agree; then they take turns, a few batches each, the same ones. Batches: 32 texts of like length,
drawn like IMDB's without --data.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastrnn
from fastrnn.sentiment import SentimentClassifier, Settings, Texts, Tokenizer, Vocabulary, read
from fastrnn.sentiment.text import clip_length
from fastrnn.training import Adam, Batch, Sequences, batches, clip_by_global_norm, softmax_cross_entropy
from fastrnn.training.fit import one_blas_thread

TOLERANCE = 2e-5  # of the losses, relative, over CHECKED steps in float32; measured 1e-7 to 2e-6
CHECKED = 8


class Ours:
    """fastrnn.training, as fit calls it."""

    def __init__(self, settings: Settings, words: int) -> None:
        names = ["<unknown>", *map(str, range(1, words))]
        self.model = SentimentClassifier(settings, ["neg", "pos"], Vocabulary(names)).model
        self.optimizer = Adam(settings.rate)
        self.clip = settings.clip_norm

    def step(self, batch: Batch) -> float:
        y, _, backward = self.model.forward_train(batch.x, batch.lengths)
        loss, d_y = softmax_cross_entropy(y, batch.targets)
        backward(d_y)
        clip_by_global_norm(self.model.grads, self.clip)
        self.optimizer.step(self.model.parameters, self.model.grads)
        self.model.zero_grad()
        return loss


class Torch(torch.nn.Module):
    """The same in PyTorch, padded batches; what lies beyond a text's end is masked."""

    def __init__(self, ours: Ours, settings: Settings, fused: bool) -> None:
        super().__init__()
        parameters = {name: torch.from_numpy(array) for name, array in ours.model.state_dict().items()}
        E, H = settings.embedding_size, settings.hidden_size
        self.settings = settings
        self.embedding = torch.nn.Embedding(*parameters["embedding.weight"].shape)
        self.rnn = torch.nn.RNN(E, H)
        self.readout = torch.nn.Linear(2 * H, 2)
        self.load_state_dict(parameters)
        self.optimizer = torch.optim.Adam(self.parameters(), settings.rate, fused=fused)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        s, x = self.settings, self.embedding(tokens)
        if s.token_dropout:
            x = x * (torch.rand(tokens.shape) >= s.token_dropout)[..., None]
        output = self.rnn(x)[0]
        if lengths is None:
            pooled = torch.cat([output.mean(0), output.amax(0)], 1)
        else:
            valid = (torch.arange(len(tokens))[:, None] < lengths)[..., None]
            mean = (output * valid).sum(0) / lengths[:, None]
            pooled = torch.cat([mean, output.masked_fill(~valid, -2.0).amax(0)], 1)
        return self.readout(torch.nn.functional.dropout(pooled, s.dropout))

    def step(self, batch: Batch) -> float:
        self.optimizer.zero_grad()
        lengths = None if batch.lengths is None else torch.from_numpy(batch.lengths)
        y = self(torch.from_numpy(batch.x), lengths)
        loss = torch.nn.functional.cross_entropy(y, torch.from_numpy(batch.targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        return float(loss.detach())


def drawn(settings: Settings, texts: int) -> Sequences:
    """Lengths and word frequencies like IMDB's: log-normal, median 174, at most 400; Zipf's law."""
    r = np.random.default_rng(0)
    lengths = np.clip(r.lognormal(np.log(174), 0.6, texts), 10, settings.longest).astype(int)
    rows = [np.minimum(r.zipf(1.2, n) - 1, settings.vocabulary_size - 1).astype(np.int32) for n in lengths]
    return Sequences(rows, r.integers(0, 2, texts))


def from_file(path: Path, settings: Settings, texts: int) -> Sequences:
    """The first and the last texts of a labelled file."""
    data, tokenizer = read(path, "train"), Tokenizer()
    half = texts // 2
    data = Texts(data.texts[:half] + data.texts[-half:], data.labels[:half] + data.labels[-half:])
    tokens = [tokenizer(text) for text in data.texts]
    vocabulary = Vocabulary.build(tokens, settings.vocabulary_size, 1)
    rows = [clip_length(vocabulary.numbers(words), settings.longest) for words in tokens]
    return Sequences(rows, np.array([int(label == data.labels[0]) for label in data.labels]))


def arms_of(settings: Settings) -> dict[str, Any]:
    """All three from the same parameters."""
    ours = Ours(settings, settings.vocabulary_size)
    return {
        "fastrnn": ours,
        "torch, Adam": Torch(ours, settings, False),
        "torch, fused Adam": Torch(ours, settings, True),
    }


def check(plan: list[Batch]) -> float:
    """The largest relative distance of the arms' losses without dropout; AssertionError above TOLERANCE."""
    arms = arms_of(Settings(dropout=0.0, token_dropout=0.0))
    losses = {name: np.array([arm.step(batch) for batch in plan[:CHECKED]]) for name, arm in arms.items()}
    apart = max(float(np.max(np.abs(found / losses["fastrnn"] - 1))) for found in losses.values())
    assert apart <= TOLERANCE, f"the arms' losses differ by {apart:.1e}: {losses}"
    return apart


def main() -> None:
    """Prints the median of each arm's rounds and its ratio to fastrnn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help="labelled texts; default: drawn ones")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=8, help="of a round")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = Settings()
    texts = 3200
    data = from_file(args.data, settings, texts) if args.data else drawn(settings, texts)
    chosen = batches(data.lengths, settings.batch_size, np.random.default_rng(0))
    plan = [data.batch(rows) for rows in chosen]
    with fastrnn.threads(args.threads), one_blas_thread():
        print(f"threads {args.threads}; losses of {CHECKED} steps agree within {check(plan):.1e}")
        arms = arms_of(settings)
        rates: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(-1, args.rounds):  # one round to warm up
            part = [plan[(turn * args.batches + i) % len(plan)] for i in range(args.batches)]
            tokens = sum(int(b.x.size if b.lengths is None else b.lengths.sum()) for b in part)
            for name, arm in arms.items():
                time.sleep(0.02)  # threads of the arm before go to sleep
                start = time.perf_counter()
                for batch in part:
                    arm.step(batch)
                if turn >= 0:
                    rates[name].append(tokens / (time.perf_counter() - start))
    for name, found in rates.items():
        ratio = np.median(np.array(rates["fastrnn"]) / np.array(found))
        print(
            f"{name:18s} {np.median(found):9,.0f} tokens/s (best {max(found):9,.0f})  fastrnn is {ratio:.1f} x as fast"
        )


if __name__ == "__main__":
    main()
