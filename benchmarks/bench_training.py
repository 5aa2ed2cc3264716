"""Forward and BPTT, as in a training step: from d_output and d_h_n the gradients of x, h_0 and all weights."""

from __future__ import annotations

from collections.abc import Callable

from fastrnn._speed.shapes import Shape


def bench_training(run: Callable[..., None], shape: Shape, arm: str) -> None:
    run(shape, arm, "training")
