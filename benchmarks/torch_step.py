"""A training step of one call, B = T = 1: torch.nn, fastrnn.torch recorded by Python, and by the node that
`fastrnn torch-node` compiles.

    python benchmarks/torch_step.py --threads 1

RNN: the call, and the gradients of x and all parameters for random ones of output and h_n. RNNCell: the same for its
state; "no grad": the call alone, as in streaming. The arms take turns; microseconds are the median over all rounds,
x is torch.nn's time over the arm's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import fastrnn
from fastrnn.torch import dispatch, node

SIZES = (8, 64, 256)
CALLS = 50  # of an arm, until the next one's turn


def steps(kind: str, H: int) -> dict[str, Callable[[], Any]]:
    """What each arm calls, with the same values."""
    torch.manual_seed(0)
    name = "RNN" if kind == "RNN" else "RNNCell"
    stock = getattr(torch.nn, name)(H, H)
    ours = getattr(fastrnn.torch, name)(H, H)
    ours.load_state_dict(stock.state_dict())
    shape = (1, 1, H) if kind == "RNN" else (1, H)
    x, h = torch.randn(shape, requires_grad=kind != "RNNCell, no grad"), torch.randn(shape)
    above = [torch.randn(shape) for _ in range(2 if kind == "RNN" else 1)]

    def step(module: Any) -> Callable[[], Any]:
        leaves = [x, *module.parameters()]

        def train() -> Any:
            made = module(x, h)
            return torch.autograd.grad(made, leaves, above)

        @torch.no_grad()
        def run() -> Any:
            return (module(x, h),)

        return run if kind == "RNNCell, no grad" else train

    return {"torch.nn": step(stock), "Python": step(ours), "node": step(ours)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compiled = node.of(dispatch.backend())
    if compiled is None:
        print(f"no node: {node.COMMAND} compiles it")
    arms = ["torch.nn", "Python"] + ["node"] * (compiled is not None)
    print(f"{'':18}{'H':>4}" + "".join(f"{arm:>12}{'x' if arm != 'torch.nn' else '':>6}" for arm in arms))
    for kind in ("RNN", "RNNCell", "RNNCell, no grad"):
        for H in SIZES:
            calls = steps(kind, H)
            found: dict[str, list[float]] = {arm: [] for arm in arms}
            results = {}
            for turn in range(options.rounds + 2):
                for arm in arms[:: (-1) ** turn]:
                    node._chosen["node"] = compiled if arm == "node" else None
                    for _ in range(CALLS):
                        begin = time.perf_counter()
                        results[arm] = calls[arm]()
                        if turn > 1:
                            found[arm].append(time.perf_counter() - begin)
            for arm in arms:
                for got, want in zip(results[arm], results["torch.nn"], strict=True):
                    torch.testing.assert_close(got, want)
            us = {arm: 1e6 * statistics.median(found[arm]) for arm in arms}
            columns = [
                f"{us[arm]:>9.1f} us" + (f"{us['torch.nn'] / us[arm]:>6.2f}" if arm != "torch.nn" else f"{'':6}")
                for arm in arms
            ]
            print(f"{kind:18}{H:>4}" + "".join(columns))


if __name__ == "__main__":
    main()
