"""A cell compiled by torch.compile, in a Python loop; the input projection is one product ahead of it.

Compiled once for all sizes (dynamic=True): the cell is one product by the BLAS and one fused addition and tanh.
"""

from __future__ import annotations

from typing import Any

import torch

from ..arms import Arm, Problem


def _step(projected: Any, h: Any, w_hh: Any) -> Any:
    return torch.tanh(torch.addmm(projected, h, w_hh.T))


_cell = torch.compile(_step, dynamic=True, fullgraph=True)


def make(name: str, p: Problem, threads: int) -> Arm:
    t = {key: torch.from_numpy(array) for key, array in p.arrays.items()}
    bias = t["b_ih"] + t["b_hh"]
    leaves = [leaf.detach().requires_grad_() for leaf in (t["x"], t["h_0"], t["w_ih"], t["w_hh"], bias)]
    upstream = (t["d_output"], t["d_h_n"])

    def run() -> Any:
        x, h, w_ih, w_hh, b = leaves
        output = []
        for projected in torch.nn.functional.linear(x, w_ih, b).unbind():
            h = _cell(projected, h, w_hh)
            output.append(h)
        return torch.stack(output), h

    def forward() -> Any:
        with torch.no_grad():
            return run()

    def training() -> Any:
        output, h_n = run()
        return (output, h_n, *torch.autograd.grad((output, h_n), leaves, upstream))

    x, h_0, w_ih, w_hh, b = leaves
    projected = torch.nn.functional.linear(x[0], w_ih, b)
    with torch.no_grad():  # compiles now, for both operations
        _cell(projected, h_0, w_hh)
    torch.autograd.grad(_cell(projected, h_0, w_hh).sum(), (h_0, w_hh))
    return Arm(name, forward, training, spins=True, unpack=lambda results: [r.detach().numpy() for r in results])
