"""Next-step prediction of the JSB Chorales (Boulanger-Lewandowski et al. 2012) with a tanh RNN and `fit`.

    python benchmarks/jsb_chorales.py --data JSB_Chorales.txt.gz --seeds 0,1,2

Prints the negative log-likelihood of the test pieces, summed over the 88 notes and averaged over the predicted steps
(from each piece's second on). The epoch is chosen on the validation pieces. Published for vanilla RNNs: 8.71
(Boulanger-Lewandowski et al.) to 9.10. The file: split<TAB>step;step;... a line; a step is its active notes,
comma-separated.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.training import (
    Adam,
    Linear,
    SequenceModel,
    Sequences,
    binary_cross_entropy,
    fit,
    initialize,
    optimizers,
    predict,
)

NOTES = 88


def read(path: Path) -> dict[str, list[np.ndarray]]:
    """Piano rolls (T, 88) by split."""
    rolls: dict[str, list[np.ndarray]] = {}
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
        for line in file:
            split, steps = line.rstrip("\n").split("\t")
            roll = np.zeros((steps.count(";") + 1, NOTES), np.float32)
            for t, notes in enumerate(steps.split(";")):
                roll[t, [int(note) for note in notes.split(",") if note]] = 1
            rolls.setdefault(split, []).append(roll)
    return rolls


def next_step(rolls: list[np.ndarray]) -> Sequences:
    """x_t -> x_{t+1}."""
    return Sequences([roll[:-1] for roll in rolls], [roll[1:] for roll in rolls], every_step=True)


def nll(model: SequenceModel, data: Sequences) -> float:
    """Summed over the notes, averaged over the steps of all pieces."""
    outputs, targets = np.concatenate(predict(model, data)), np.concatenate(list(data.targets))
    return NOTES * binary_cross_entropy(outputs, targets)[0]


def run(rolls: dict[str, list[np.ndarray]], args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Trains once; the figures."""
    rnn = fastrnn.RNN(NOTES, args.hidden, seed=seed)
    initialize(rnn, "orthogonal", gain=args.gain, seed=seed)
    model = SequenceModel(
        rnn, Linear(args.hidden, NOTES, seed=seed), dropout=args.dropout, token_dropout=args.input_dropout
    )
    train, valid, test = (next_step(rolls[split]) for split in ("train", "valid", "test"))
    start = time.perf_counter()
    history = fit(
        model, train, binary_cross_entropy, Adam(args.rate), epochs=args.epochs, batch_size=args.batch,
        validation=valid, patience=args.patience, schedule=optimizers.cosine, clip_norm=1.0, l2=args.l2, seed=seed,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return {
        "seed": seed, "epochs": len(history), "best": history.best or 0, "seconds": seconds, "train": nll(model, train),
        "valid": nll(model, valid), "test": float("nan") if args.no_test else nll(model, test),
    }  # fmt: skip


def main() -> None:
    """Prints a line for each seed, and the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--input-dropout", type=float, default=0.0)
    parser.add_argument("--gain", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--l2", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--patience", type=int, default=20)
    parser.add_argument("--no-test", action="store_true", help="for choosing the settings: validation only")
    args = parser.parse_args()
    rolls = read(args.data)
    rows = []
    for seed in args.seeds.split(","):
        rows.append(run(rolls, args, int(seed)))
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    print(f"mean of {len(rows)} seeds: valid {np.mean([r['valid'] for r in rows]):.3f}", end="")
    print("" if args.no_test else f"  test {np.mean([r['test'] for r in rows]):.3f}")


if __name__ == "__main__":
    main()
