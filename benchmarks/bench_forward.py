"""Inference: x, h_0 and the weights -> output, h_n."""

from __future__ import annotations

from collections.abc import Callable

from fastrnn._speed.shapes import Shape


def bench_forward(run: Callable[..., None], shape: Shape, arm: str) -> None:
    run(shape, arm, "forward")
