"""jax.lax.scan under jit, the gradients by jax.vjp in the same program; weights as (inputs, outputs), as usual in JAX.

Two ways to write it, the input projection inside the scan or as one product ahead of it: the one that is faster on the
problem is taken, for each operation. Compiled ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..arms import Arm, Problem

TRIES = 5


def _inside(x: Any, h_0: Any, w_ih: Any, w_hh: Any, b: Any) -> Any:
    def step(h: Any, x_t: Any) -> Any:
        h = jnp.tanh(x_t @ w_ih + h @ w_hh + b)
        return h, h

    h_n, output = jax.lax.scan(step, h_0, x)
    return output, h_n


def _ahead(x: Any, h_0: Any, w_ih: Any, w_hh: Any, b: Any) -> Any:
    def step(h: Any, projected: Any) -> Any:
        h = jnp.tanh(projected + h @ w_hh)
        return h, h

    h_n, output = jax.lax.scan(step, h_0, x @ w_ih + b)
    return output, h_n


def _with_gradients(way: Callable[..., Any]) -> Callable[..., Any]:
    def training(arguments: Any, upstream: Any) -> Any:
        results, pull = jax.vjp(way, *arguments)
        return (*results, *pull(upstream))

    return training


def make(name: str, p: Problem, threads: int) -> Arm:
    jax.config.update("jax_enable_x64", p.x.dtype == "float64")
    arguments = tuple(map(jnp.asarray, (p.x, p.h_0, p.w_ih.T, p.w_hh.T, p.b_ih + p.b_hh)))
    upstream = (jnp.asarray(p.d_output), jnp.asarray(p.d_h_n))
    ways = (_inside, _ahead)
    forward = _fastest([compiled(way, *arguments) for way in ways])
    training = _fastest([compiled(_with_gradients(way), arguments, upstream) for way in ways])
    return Arm(name, forward, training, spins=True, unpack=_unpack)


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def _unpack(results: Any) -> list[Any]:
    if len(results) == 2:
        return list(results)
    *others, d_w_ih, d_w_hh, d_b = results
    return [*others, d_w_ih.T, d_w_hh.T, d_b]


def _fastest(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    def seconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    for call in calls:
        call()
    rounds = [[seconds(call) for call in calls] for _ in range(TRIES)]
    least = [min(column) for column in zip(*rounds, strict=True)]
    return calls[least.index(min(least))]
