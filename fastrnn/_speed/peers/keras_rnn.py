"""Keras 3's SimpleRNN on its JAX or torch backend. Batch-first, as it takes its input: transposed off the clock.

JAX: stateless_call under jit, compiled ahead. torch: as it stands, gradients by torch.autograd.grad.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ..arms import Arm, Problem


def make(name: str, p: Problem, threads: int) -> Arm:
    layer = keras.layers.SimpleRNN(p.shape.H, return_sequences=True, return_state=True, dtype=p.x.dtype.name)
    if name == "keras-jax":
        return _jax(name, p, layer)
    return _torch(name, p, layer)


def _batch_first(array: Any) -> Any:
    return np.ascontiguousarray(array.swapaxes(0, 1))


def _weights(p: Problem) -> list[Any]:
    return [np.ascontiguousarray(p.w_ih.T), np.ascontiguousarray(p.w_hh.T), p.b_ih + p.b_hh]


def _unpack(results: Any) -> list[Any]:
    arrays = [np.asarray(array) for array in results]
    if len(arrays) == 2:
        return [arrays[0].swapaxes(0, 1), arrays[1]]
    output, h_n, d_x, d_h_0, d_kernel, d_recurrent, d_bias = arrays
    return [output.swapaxes(0, 1), h_n, d_x.swapaxes(0, 1), d_h_0, d_kernel.T, d_recurrent.T, d_bias]


def _jax(name: str, p: Problem, layer: Any) -> Arm:
    import jax
    import jax.numpy as jnp

    from .jax_scan import compiled

    jax.config.update("jax_enable_x64", p.x.dtype == "float64")
    x, h_0, *weights = map(jnp.asarray, (_batch_first(p.x), p.h_0, *_weights(p)))
    upstream = (jnp.asarray(_batch_first(p.d_output)), jnp.asarray(p.d_h_n))
    layer.build(x.shape)
    state = [variable.value for variable in layer.non_trainable_variables]

    def run(x: Any, h_0: Any, *weights: Any) -> Any:
        (output, h_n), _ = layer.stateless_call(weights, state, x, initial_state=h_0, training=True)
        return output, h_n

    def with_gradients(x: Any, h_0: Any, weights: Any, upstream: Any) -> Any:
        results, pull = jax.vjp(run, x, h_0, *weights)
        return (*results, *pull(upstream))

    forward, training = compiled(run, x, h_0, *weights), compiled(with_gradients, x, h_0, tuple(weights), upstream)
    return Arm(name, forward, training, spins=True, unpack=_unpack)


def _torch(name: str, p: Problem, layer: Any) -> Arm:
    import torch

    x, h_0, d_output, d_h_n = map(torch.from_numpy, (_batch_first(p.x), p.h_0, _batch_first(p.d_output), p.d_h_n))
    x, h_0 = x.requires_grad_(), h_0.detach().requires_grad_()
    layer.build(x.shape)
    layer.set_weights(_weights(p))
    leaves = [x, h_0, *(variable.value for variable in layer.trainable_variables)]

    def forward() -> Any:
        with torch.no_grad():
            return layer(x, initial_state=h_0, training=False)

    def training() -> Any:
        output, h_n = layer(x, initial_state=h_0, training=True)
        return (output, h_n, *torch.autograd.grad((output, h_n), leaves, (d_output, d_h_n)))

    return Arm(name, forward, training, spins=True, unpack=lambda results: _unpack([r.detach() for r in results]))
