"""Many small models at once: fastrnn.torch.RNNEnsemble and vmap over weights beside loops over the models.

    python benchmarks/ensemble.py                                        # M 32, B 8, T 50, I 64, H 64 on one thread
    python benchmarks/ensemble.py --threads 2 --shapes 8x50x16x32 --models 100

The arms take turns in one process, after a check that all give the same numbers:

ensemble  RNNEnsemble.from_models(models), every model its own input
vmap      torch.func.vmap over functional_call and the stacked weights of one fastrnn.torch.RNN
fastrnn   a Python loop over M fastrnn.torch.RNN
torch     a Python loop over M torch.nn.RNN

x: times as long as `ensemble` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastrnn._speed import shapes
from fastrnn._speed.timing import interleave
from fastrnn.torch import RNN, RNNEnsemble


def arms(shape: shapes.Shape, M: int) -> tuple[dict[str, Callable[[Tensor], Tensor]], dict[str, list[Tensor]]]:
    """x (M, T, B, I) -> output (M, T, B, H) of each arm, and each arm's parameters."""
    torch.manual_seed(0)
    stock = [nn.RNN(shape.I, shape.H) for _ in range(M)]
    ours = [RNN(shape.I, shape.H) for _ in range(M)]
    for one, other in zip(ours, stock, strict=True):
        one.load_state_dict(other.state_dict())
    ensemble = RNNEnsemble.from_models(ours)
    weights = {name: w.detach().clone().requires_grad_() for name, w in torch.func.stack_module_state(ours)[0].items()}

    def loop(models: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.stack([model(one)[0] for model, one in zip(models, x, strict=True)])

    def one(weights: dict[str, Tensor], x: Tensor) -> Any:
        return torch.func.functional_call(ours[0], weights, (x,))[0]

    calls = {
        "ensemble": lambda x: ensemble(x)[0],
        "vmap": lambda x: torch.func.vmap(one)(weights, x),
        "fastrnn": loop(ours),
        "torch": loop(stock),
    }
    parameters = {
        "ensemble": list(ensemble.parameters()),
        "vmap": list(weights.values()),
        "fastrnn": [w for model in ours for w in model.parameters()],
        "torch": [w for model in stock for w in model.parameters()],
    }
    return calls, parameters


def forward(call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return call(x)

    return run


def training(
    call: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor, d_output: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(call(x), [x, *parameters], d_output)


def check(results: dict[str, Tensor]) -> None:
    """The same values, to rounding."""
    wanted = results["torch"]
    for name, got in results.items():
        if not float((got - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max()):
            raise SystemExit(f"{name} differs from torch.nn.RNN: nothing was timed")


def measure(shape: shapes.Shape, M: int, seconds: float) -> dict[str, dict[str, float]]:
    """Median seconds of each arm, forward and training."""
    x = torch.randn(M, shape.T, shape.B, shape.I, requires_grad=True)
    d_output = torch.randn(M, shape.T, shape.B, shape.H)
    calls, parameters = arms(shape, M)
    passes: dict[str, dict[str, Callable[[], Any]]] = {
        "forward": {name: forward(call, x) for name, call in calls.items()},
        "training": {name: training(call, parameters[name], x, d_output) for name, call in calls.items()},
    }
    check({name: run() for name, run in passes["forward"].items()})
    check({name: run()[0] for name, run in passes["training"].items()})
    found = {}
    for name, runs in passes.items():
        times = interleave(runs, budget=seconds, min_rounds=5, max_rounds=200, spins=tuple(runs))
        found[name] = {arm: spread.median for arm, spread in times.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="8x50x64x64", help="of each model, BxTxIxH; default 8x50x64x64")
    parser.add_argument("--models", type=int, default=32, help="M; default 32")
    parser.add_argument("--threads", type=int, default=1, help="torch.set_num_threads; default 1")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each shape and pass; default 3")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(title=f"{options.models} models, float32, {options.threads} threads", box=None)
    names = ("ensemble", "vmap", "fastrnn", "torch")
    for column in ("shape", "pass", names[0], *(f for name in names[1:] for f in (name, "x"))):
        table.add_column(column, justify="left" if column in ("shape", "pass") else "right", no_wrap=True)
    for shape in shapes.parse(options.shapes):
        for name, t in measure(shape, options.models, options.seconds).items():
            ms = {arm: f"{1e3 * value:.3g} ms" for arm, value in t.items()}
            others = [cell for arm in names[1:] for cell in (ms[arm], f"{t[arm] / t['ensemble']:.2f}")]
            table.add_row(str(shape), name, ms["ensemble"], *others)
    Console().print(table)


if __name__ == "__main__":
    main()
