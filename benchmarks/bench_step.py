"""One step at a time, as in streaming: the cells, beside the functions and layers called with T = 1.

x (B, I), h (B, H) -> h'. `RNNCell frozen` keeps its weights packed. Of --shapes T is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import fastrnn
from fastrnn._speed import arms
from fastrnn._speed.arms import Arm, Maker, Problem
from fastrnn._speed.shapes import STEPS, Shape

SHAPES = STEPS
CELLS = ("fastrnn.RNNCell", "fastrnn.RNNCell frozen", "fastrnn.torch.RNNCell", "torch.nn.RNNCell")
ARMS = (*CELLS, *arms.known_arms())


def bench_step(run: Callable[..., None], shape: Shape, arm: str) -> None:
    run(shape._replace(T=1), arm, "forward", make_step)


def make_step(name: str) -> Maker:
    """arms.maker, and the cells."""
    if name not in CELLS:
        return arms.maker(name)
    if name.startswith("fastrnn.RNNCell"):
        return lambda p: numpy_cell(name, p)
    torch = arms.torch_module()
    if name == "torch.nn.RNNCell":
        return lambda p: torch_cell(name, torch.nn.RNNCell, p)
    arms.maker(arms.FASTRNN_TORCH)  # says why where it is absent
    cell = getattr(import_module("fastrnn.torch"), "RNNCell", None)
    if cell is None:
        raise arms.UnavailableError("this version of fastrnn.torch has no RNNCell")
    return lambda p: torch_cell(name, cell, p)


def numpy_cell(name: str, p: Problem) -> Arm:
    cell = fastrnn.RNNCell(p.shape.I, p.shape.H, dtype=p.x.dtype)
    cell.load_state_dict({"weight_ih": p.w_ih, "weight_hh": p.w_hh, "bias_ih": p.b_ih, "bias_hh": p.b_hh})
    frozen = ExitStack()
    if name.endswith("frozen"):
        frozen.enter_context(cell.frozen())
    return step_arm(name, cell, p.x[0], p.h_0, frozen)


def torch_cell(name: str, cell_class: Any, p: Problem) -> Arm:
    torch = arms.torch_module()
    t = {key: torch.from_numpy(array) for key, array in p.arrays.items()}
    cell = cell_class(p.shape.I, p.shape.H, dtype=t["x"].dtype).requires_grad_(False)
    cell.load_state_dict({"weight_ih": t["w_ih"], "weight_hh": t["w_hh"], "bias_ih": t["b_ih"], "bias_hh": t["b_hh"]})
    return step_arm(name, cell, t["x"][0], t["h_0"])


def step_arm(name: str, cell: Any, x: Any, h: Any, held: Any = None) -> Arm:
    """held: what has to live as long as the arm."""

    def forward(held: Any = held) -> Any:
        h_next = cell(x, h)
        return h_next[None], h_next

    return Arm(name, forward, training=forward)
