"""Accuracy and macro F1 of `fastrnn sentiment train` over several seeds, on data the user names.

    python benchmarks/sentiment_seeds.py --train imdb_train.tsv.gz --test imdb_test.tsv.gz --seeds 0,1,2
    python benchmarks/sentiment_seeds.py --train sst3_train.tsv.gz --valid sst3_dev.tsv.gz --test sst3_test.tsv.gz \
        --start imdb128.model --set embedding_size=128 --set dropout=0.2 --set batch_size=16 --set balance=0.5 \
        --set runs=3

The defaults are those of the command; --set changes one. The epoch is chosen on --valid, or on a held-out part of the
training texts; without --test the figures are those of that part, for choosing settings.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.sentiment import SentimentClassifier, Settings, Texts, read


def settings_of(changes: list[str]) -> Settings:
    """Settings() with name=value changed."""
    usual, found = Settings(), {}
    for change in changes:
        name, _, value = change.partition("=")
        kind = type(getattr(usual, name))
        found[name] = value == "True" if kind is bool else kind(value)
    return replace(usual, **found)


def run(
    train: Texts, valid: Texts | None, test: Texts | None, settings: Settings, start: SentimentClassifier | None
) -> dict[str, Any]:
    """One seed's figures."""
    wall, cpu = time.perf_counter(), time.process_time()
    model = SentimentClassifier.train(train, settings, validation=valid, start=start)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    held = model.report
    report = model.evaluate(test) if test else held
    return {
        "seed": settings.seed, "best epoch": model.history.best, "held-out accuracy": held["accuracy"],
        "held-out F1": held["macro_f1"], "accuracy": report["accuracy"], "macro F1": report["macro_f1"],
        "wall s": wall, "CPU s": cpu,
    }  # fmt: skip


def main() -> None:
    """Prints a line for each seed, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--valid", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--start", type=Path, help="a model of `fastrnn sentiment train` to go on from")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of Settings")
    args = parser.parse_args()
    train = read(args.train, "train")
    valid, test = (read(path) if path else None for path in (args.valid, args.test))
    start = SentimentClassifier.load(args.start) if args.start else None
    rows = []
    for seed in args.seeds.split(","):
        rows.append(run(train, valid, test, replace(settings_of(args.set), seed=int(seed)), start))
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    means = {
        name: np.mean([row[name] for row in rows]) for name in ("held-out accuracy", "accuracy", "macro F1", "wall s")
    }
    print(f"mean of {len(rows)}: " + "  ".join(f"{name} {value:.4f}" for name, value in means.items()))


if __name__ == "__main__":
    main()
