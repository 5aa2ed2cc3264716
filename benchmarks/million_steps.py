"""Back-propagation through a million steps: memory and time of RNN.reduce, of plain BPTT and of truncated BPTT.

    python benchmarks/million_steps.py                      # T = 1,000,000, H = 128, RNN.reduce
    python benchmarks/million_steps.py --how plain          # the whole output, which takes gigabytes
    python benchmarks/million_steps.py --how truncated --steps 1000

A layer and a readout learn to tell the running mean of noise, one number a step, over a window of about a hundred
steps. Each update is one pass over all of it (truncated: one for each piece). Printed for each: the loss, its seconds,
and the most memory that the process ever had beyond what it had before, the input included.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

import fastrnn.torch

Tensors = tuple[torch.Tensor, torch.Tensor]


def task(T: int) -> Tensors:
    """x and target, (T, 1, 1)."""
    x = np.random.default_rng(0).standard_normal(T).astype(np.float32)
    y, mean = np.empty_like(x), 0.0
    for t in range(T):
        mean += 0.01 * (float(x[t]) - mean)
        y[t] = 10 * mean
    return torch.from_numpy(x).view(T, 1, 1), torch.from_numpy(y).view(T, 1, 1)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def losses(
    how: str, layer: fastrnn.torch.RNN, head: torch.nn.Module, data: Tensors, steps: int
) -> Iterator[torch.Tensor]:
    """Of one pass, summed over steps, ready for backward."""
    x, y = data

    def loss(output: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        return (head(output) - y[begin:end]).pow(2).sum()

    if how == "reduce":
        total, _ = layer.reduce(loss, x, checkpoint_every=steps or "auto")
        assert total is not None
        yield total
    elif how == "plain":
        yield loss(layer(x)[0], 0, len(x))
    else:
        begin = 0
        for output, _ in fastrnn.torch.truncated_bptt(layer, x, steps=steps or 1000):
            yield loss(output, begin, begin + len(output))
            begin += len(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--how", choices=("reduce", "plain", "truncated"), default="reduce")
    parser.add_argument("--length", type=int, default=1_000_000, help="T")
    parser.add_argument("--hidden", type=int, default=128, help="H")
    parser.add_argument("--updates", type=int, default=3, help="passes over all T steps")
    parser.add_argument("--steps", type=int, default=0, help="of a chunk or piece; 0: sqrt(T), 1000 when truncated")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layer, head = fastrnn.torch.RNN(1, options.hidden), torch.nn.Linear(options.hidden, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], 1e-3)
    for total in losses(options.how, layer, head, task(2048), options.steps):
        total.backward()  # everything is loaded
    before = peak_mib()
    data = task(options.length)
    states = options.length * options.hidden * 4 / 2**20
    print(f"{options.how}: T = {options.length:,}, B = 1, H = {options.hidden}; all states together: {states:,.0f} MiB")
    for update in range(options.updates):
        start, whole = time.perf_counter(), 0.0
        for total in losses(options.how, layer, head, data, options.steps):
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            whole += total.item()
        seconds, memory = time.perf_counter() - start, peak_mib() - before
        told = f"loss {whole / options.length:.4f}, {seconds:.1f} s, peak memory + {memory:,.1f} MiB"
        print(f"  update {update + 1}: {told}")


if __name__ == "__main__":
    main()
