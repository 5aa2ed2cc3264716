"""A cell compiled by torch.compile, in a Python loop; the input projection is one product ahead of it.

Compiled anew for each problem: the cell is one product by the BLAS and one fused addition and tanh.
"""

from __future__ import annotations

from typing import Any

import torch

from ..arms import Arm, Problem


def _step(projected: Any, h: Any, w_hh: Any) -> Any:
    return torch.tanh(torch.addmm(projected, h, w_hh.T))


_cell = torch.compile(_step, dynamic=False, fullgraph=True)


def make(name: str, p: Problem, threads: int) -> Arm:
    torch.compiler.reset()  # else each shape adds to its count of compiled variants, up to a limit
    t = {key: torch.from_numpy(array) for key, array in p.arrays.items()}
    bias = t["b_ih"] + t["b_hh"]
    leaves = [leaf.detach().requires_grad_() for leaf in (t["x"], t["h_0"], t["w_ih"], t["w_hh"], bias)]

    def run(steps: int) -> Any:
        x, h, w_ih, w_hh, b = leaves
        output = []
        for projected in torch.nn.functional.linear(x[:steps], w_ih, b).unbind():
            h = _cell(projected, h, w_hh)
            output.append(h)
        return torch.stack(output), h

    def forward(steps: int = p.shape.T) -> Any:
        with torch.no_grad():
            return run(steps)

    def training(steps: int = p.shape.T) -> Any:
        output, h_n = run(steps)
        return (output, h_n, *torch.autograd.grad((output, h_n), leaves, (t["d_output"][:steps], t["d_h_n"])))

    forward(2)  # compiles now
    training(2)
    return Arm(name, forward, training, spins=True, unpack=lambda results: [r.detach().numpy() for r in results])
