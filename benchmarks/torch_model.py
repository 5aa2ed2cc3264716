"""The layer inside a model of PyTorch's: Linear -> RNN -> Linear, where torch's own threads share the cores with ours.

    python benchmarks/torch_model.py                                     # two threads, shapes `quick` and three larger
    python benchmarks/torch_model.py --threads 1 --shapes 32x128x256x256 --seconds 5

After an operator of torch's its worker threads spin for some milliseconds on the other cores, just when the recurrence
begins. The arms take turns in one process, after a check that both models give the same numbers:

torch, fastrnn   the whole model, with torch.nn.RNN and with fastrnn.torch.RNN
linear           the model without the recurrence
alone            fastrnn.torch.RNN by itself, after a pause

x: times as long as the model takes with torch.nn.RNN; share: what the recurrence adds to `linear`, over `alone`: near 1
where the neighbours cost nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fastrnn
from fastrnn._speed import shapes
from fastrnn._speed.timing import interleave

SHAPES = "quick,32x128x256x256,64x100x512x512,256x64x256x256"


class Model(nn.Module):
    """Without `kind` the recurrence is left out; its output is then `stand_in`."""

    def __init__(self, kind: Any, shape: shapes.Shape, stand_in: Tensor) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(shape.I, shape.I), nn.Linear(shape.H, shape.I)
        self.rnn = None if kind is None else kind(shape.I, shape.H)
        self.stand_in = stand_in

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if self.rnn is None:
            return self.last(self.stand_in) + 0 * x.sum()
        return self.last(self.rnn(x)[0])


def forward(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return model(x)

    return run


def training(model: nn.Module, x: Tensor, d_output: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        output = model(x)
        output.backward(d_output)
        return output

    return run


class Alone(nn.Module):
    """The layer's output; the pause lets the threads of whoever ran before fall asleep."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def check(stock: nn.Module, ours: nn.Module, x: Tensor, d_output: Tensor) -> None:
    """The same output and gradients, to rounding in sums over T B terms."""
    results = []
    for model in (stock, ours):
        output = training(model, x, d_output)()
        results.append([output.detach(), *[p.grad for p in model.parameters()]])
    for expected, got in zip(*results, strict=True):
        off = float((got - expected).abs().max() / expected.abs().max())
        if not off <= 1e-4:
            raise SystemExit(f"the models differ by {off:.1e} of the largest element: nothing was timed")


def measure(shape: shapes.Shape, seconds: float) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    x, d_output = torch.randn(shape.T, shape.B, shape.I), torch.randn(shape.T, shape.B, shape.I)
    d_states, stand_in = torch.randn(shape.T, shape.B, shape.H), torch.randn(shape.T, shape.B, shape.H)
    stock, ours = Model(nn.RNN, shape, stand_in), Model(fastrnn.torch.RNN, shape, stand_in)
    ours.load_state_dict(stock.state_dict())
    check(stock, ours, x, d_output)
    linear, alone = Model(None, shape, stand_in.requires_grad_()), Alone(ours.rnn)
    found = {}
    for name, call in {
        "forward": lambda model, d: forward(model, x),
        "training": lambda model, d: training(model, x.requires_grad_(model is alone), d),
    }.items():
        arms = {"torch": stock, "fastrnn": ours, "linear": linear, "alone": alone}
        calls = {arm: call(model, d_states if model is alone else d_output) for arm, model in arms.items()}
        times = interleave(calls, budget=seconds, min_rounds=5, max_rounds=200, spins=tuple(calls))
        found[name] = {arm: spread.median for arm, spread in times.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES, help=f"{', '.join(shapes.SETS)} or BxTxIxH; default: {SHAPES}")
    parser.add_argument("--threads", type=int, default=2, help="torch.set_num_threads; default 2")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each shape and pass; default 1")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(title=f"Linear -> RNN -> Linear, float32, {options.threads} threads", box=None)
    for column in ("shape", "pass", "fastrnn", "x", "torch", "linear", "alone", "share"):
        table.add_column(column, justify="left" if column in ("shape", "pass") else "right", no_wrap=True)
    ratios: dict[str, list[float]] = {}
    for shape in track(shapes.parse(options.shapes), "timing", transient=True):
        for name, t in measure(shape, options.seconds).items():
            ratio, share = t["torch"] / t["fastrnn"], (t["fastrnn"] - t["linear"]) / t["alone"]
            ratios.setdefault(name, []).append(ratio)
            ms = {arm: f"{1e3 * value:.3g} ms" for arm, value in t.items()}
            row = (ms["fastrnn"], f"{ratio:.2f}", ms["torch"], ms["linear"], ms["alone"], f"{share:.2f}")
            table.add_row(str(shape), name, *row)
    console = Console()
    console.print(table)
    for name, values in ratios.items():
        console.print(f"{name}: geometric mean {np.exp(np.mean(np.log(values))):.2f} x", highlight=False)


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s")
