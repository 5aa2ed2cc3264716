"""What `fastrnn compare` trains: an RNN, a linear readout, a loss and Adam, in plain NumPy around fastrnn.RNN."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastrnn

from .._backends.options import Array


@dataclass(frozen=True)
class Task:
    """Sequences and what is to be learned from them: a class from the last state, or a value at every step."""

    name: str
    classes: int  # 0: the targets are values
    x: Array  # (T, N, I)
    targets: Array  # (N) int64, or (T, N, K)
    test_x: Array
    test_targets: Array

    @property
    def outputs(self) -> int:
        return self.classes or int(self.targets.shape[-1])

    def batch(self, rows: Array) -> tuple[Array, Array]:
        """x (T, B, I) and the targets of these sequences."""
        return self.x[:, rows], self.targets[rows] if self.classes else self.targets[:, rows]


class Adam:
    """Adam (Kingma and Ba 2015) on a dict of arrays, in place."""

    def __init__(self, parameters: dict[str, Array], rate: float) -> None:
        self.parameters, self.rate, self.steps = parameters, rate, 0
        self.means = {name: np.zeros_like(p) for name, p in parameters.items()}
        self.squares = {name: np.zeros_like(p) for name, p in parameters.items()}

    def step(self, grads: dict[str, Array]) -> None:
        self.steps += 1
        rate = self.rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for name, p in self.parameters.items():
            mean, square, grad = self.means[name], self.squares[name], grads[name]
            mean += 0.1 * (grad - mean)
            square += 0.001 * (grad * grad - square)
            p -= (rate * mean / (np.sqrt(square) + 1e-8)).astype(p.dtype)


@dataclass
class Trainer:
    """One backend's run: the same seed gives every backend the same parameters and the same batches."""

    task: Task
    backend: str
    dtype: str
    hidden: int
    rate: float
    seed: int
    seconds: float = 0.0  # in the RNN: forward_train and backward
    total_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # mean of each epoch

    def __post_init__(self) -> None:
        task, rng = self.task, np.random.default_rng(self.seed)
        # Drawn in float64 whatever the dtype, so that runs in two dtypes start alike.
        drawn = fastrnn.RNN(task.x.shape[2], self.hidden, dtype="float64", backend=self.backend, seed=self.seed)
        self.rnn = fastrnn.RNN(task.x.shape[2], self.hidden, dtype=self.dtype, backend=self.backend)
        for name, value in drawn.parameters.items():
            self.rnn.parameters[name][...] = value
        bound = 1 / np.sqrt(self.hidden)
        self.readout = {
            "weight": rng.uniform(-bound, bound, (task.outputs, self.hidden)).astype(self.dtype),
            "bias": np.zeros(task.outputs, self.dtype),
        }
        self.optimizers = Adam(dict(self.rnn.parameters), self.rate), Adam(self.readout, self.rate)

    def warm_up(self, batch: int, budget: float = 0.0) -> float:
        """The median seconds of three or more forward and backward passes; nothing is trained."""
        x = self.task.x[:, :batch].astype(self.dtype)
        seconds: list[float] = []
        while len(seconds) < 3 or sum(seconds) < budget:
            start = time.perf_counter()
            output, _, backward = self.rnn.forward_train(x)
            backward(output)
            seconds.append(time.perf_counter() - start)
        self.rnn.zero_grad()
        return float(np.median(seconds))

    def epoch(self, batches: list[Array]) -> None:
        """Trains on the batches, each an array of sequence numbers."""
        losses = []
        start = time.perf_counter()
        for rows in batches:
            x, targets = self.task.batch(rows)
            losses.append(self._step(x.astype(self.dtype), targets))
        self.total_seconds += time.perf_counter() - start
        self.losses.append(float(np.mean(losses)))

    def _step(self, x: Array, targets: Array) -> float:
        start = time.perf_counter()
        output, h_n, backward = self.rnn.forward_train(x)
        self.seconds += time.perf_counter() - start

        states = h_n[-1] if self.task.classes else output
        loss, d_y = self._loss(self._read(states), targets)
        d_states = d_y @ self.readout["weight"]
        flat = d_y.reshape(-1, d_y.shape[-1])
        grads = {"weight": flat.T @ states.reshape(-1, self.hidden), "bias": flat.sum(axis=0)}

        self.rnn.zero_grad()
        start = time.perf_counter()
        if self.task.classes:
            backward(None, d_states[None])
        else:
            backward(d_states)
        self.seconds += time.perf_counter() - start
        for optimizer, found in zip(self.optimizers, (dict(self.rnn.grads), grads), strict=True):
            optimizer.step(found)
        return loss

    def score(self) -> float:
        """On the test sequences: the share of right classes, or the mean squared error."""
        output, h_n = self.rnn(self.task.test_x.astype(self.dtype))
        if self.task.classes:
            return float(np.mean(self._read(h_n[-1]).argmax(axis=1) == self.task.test_targets))
        return float(np.mean((self._read(output) - self.task.test_targets) ** 2))

    def _read(self, states: Array) -> Any:
        return states @ self.readout["weight"].T + self.readout["bias"]

    def _loss(self, y: Array, targets: Array) -> tuple[float, Array]:
        """Mean cross-entropy of the softmax, or mean squared error; and its gradient."""
        if not self.task.classes:
            error = y - targets.astype(y.dtype)
            return float(np.mean(np.square(error, dtype=np.float64))), error * y.dtype.type(2 / error.size)
        shifted = y - y.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        total = exp.sum(axis=1, keepdims=True)
        picked = np.arange(len(y)), targets
        loss = float(np.mean((np.log(total[:, 0]) - shifted[picked]).astype(np.float64)))
        d_y = exp / total
        d_y[picked] -= 1
        return loss, d_y / y.dtype.type(len(y))
