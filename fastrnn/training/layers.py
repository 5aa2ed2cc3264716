"""What stands around the recurrence: Linear, Embedding, dropout, pooling over time.

All of them follow fastrnn.RNN: a call is inference, forward_train also returns backward, which adds to grads. With
device="cuda", CuPy's current device, parameters, gradients and data are CuPy arrays there; an array of the other kind
raises TypeError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from .. import _validate
from .._backends.options import Array
from .._device import check_kind, check_range, home_on, module_of, moved, on, placed
from .._gathered import Gathered, stable_order, sum_segments
from .._parameters import IncompatibleKeys, load_into
from .._validate import gpu
from ._native import max_over_time

POOLINGS = ("last", "mean", "max", "mean+max")


class Module:
    """Parameters and their gradients by name, with state_dict as in fastrnn.RNN."""

    device, _home = "cpu", cast(Any, None)  # of modules that were pickled before they had one

    def __init__(self, device: str) -> None:
        self._home = home_on(device)
        self.device = device
        self.parameters: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}

    def _add(self, name: str, value: Array) -> None:
        """Adds a parameter with these values, drawn on the host."""
        array = moved(value, self._home)
        self.parameters[name], self.grads[name] = array, module_of(array).zeros_like(array)

    @placed
    def zero_grad(self) -> None:
        """Sets every array of grads to zero, in place."""
        for gradient in self.grads.values():
            gradient[...] = 0

    @placed
    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters."""
        return {name: array.copy() for name, array in self.parameters.items()}

    @placed
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copies values into the parameters, in place; errors are those of fastrnn.RNN.load_state_dict."""
        return load_into(self.parameters, state_dict, strict)


class Linear(Module):
    """The readout y = x weight^T + bias: torch.nn.Linear for NumPy arrays, or CuPy's with device="cuda".

    Parameters: weight (K, I) and bias (K), uniform in +-1 / sqrt(I), of a seed the same on every device. x is (..., I),
    y (..., K), of one dtype. device: as fastrnn.RNN's; RuntimeError for "cuda" where no GPU can be used.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: Any = None,
    ) -> None:
        super().__init__(device)
        self.input_size = _validate.integer("input_size", input_size, at_least=1)
        self.output_size = _validate.integer("output_size", output_size, at_least=1)
        self.dtype = _validate.float_dtype("dtype", dtype)
        rng, bound = np.random.default_rng(seed), self.input_size**-0.5
        self._add("weight", rng.uniform(-bound, bound, (output_size, input_size)).astype(self.dtype))
        if _validate.boolean("bias", bias):
            self._add("bias", rng.uniform(-bound, bound, output_size).astype(self.dtype))

    @placed
    def __call__(self, x: Array) -> Array:
        """y (..., K). Raises TypeError for another dtype or device, ValueError for another input size."""
        shape = (*getattr(x, "shape", ())[:-1], self.input_size)
        x = _validate.exact("x", x, self.dtype, shape, ["...", "I"], self._home)
        y = x @ self.parameters["weight"].T
        if "bias" in self.parameters:
            y += self.parameters["bias"]
        return y

    def forward_train(self, x: Array) -> tuple[Array, Callable[[Array], Array]]:
        """y, backward; backward(d_y) adds to grads and returns d_x. It holds x."""
        y = self(x)

        def backward(d_y: Array) -> Array:
            d_y = _validate.exact("d_y", d_y, self.dtype, y.shape, home=self._home)
            flat = d_y.reshape(-1, self.output_size)
            self.grads["weight"] += flat.T @ x.reshape(-1, self.input_size)
            if "bias" in self.grads:
                self.grads["bias"] += flat.sum(axis=0)
            d_x: Array = d_y @ self.parameters["weight"]
            return d_x

        return y, on(self._home, backward)


class Embedding(Module):
    """A table of vectors, one for each token: x = weight[tokens], weight (V, E), normal with deviation `scale`.

    tokens are int32 or int64 in 0..V-1, of any shape; x is (*tokens.shape, E). The gradient is summed token by token in
    the order in which the tokens lie (sorted, stable): the same bits in every run, on a GPU too. trainable=False keeps
    the vectors. device, and the values drawn: as for Linear.
    """

    def __init__(
        self,
        size: int,
        dimension: int,
        *,
        scale: float = 0.1,
        trainable: bool = True,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: Any = None,
    ) -> None:
        super().__init__(device)
        self.size = _validate.integer("size", size, at_least=1)
        self.dimension = _validate.integer("dimension", dimension, at_least=1)
        self.trainable = _validate.boolean("trainable", trainable)
        self.dtype = _validate.float_dtype("dtype", dtype)
        weight = np.random.default_rng(seed).standard_normal((size, dimension)) * scale
        self._add("weight", weight.astype(self.dtype))
        self._touched: list[Array] = []  # rows of grads that are not zero

    @placed
    def __call__(self, tokens: Array) -> Array:
        """x. Raises TypeError for tokens that are not int32 or int64 or on another device, ValueError for one outside
        0..V-1: on a GPU, that is waited for."""
        return cast(Array, self.parameters["weight"].take(self._checked(tokens), axis=0))

    def _checked(self, tokens: Array) -> Array:
        check_kind("tokens", tokens, self._home)
        if (self._home is None and not isinstance(tokens, np.ndarray)) or tokens.dtype not in (np.int32, np.int64):
            raise TypeError(f"tokens: expected an int32 or int64 array, got {getattr(tokens, 'dtype', type(tokens))}")
        check_range("tokens", "", tokens, self.size)
        return tokens

    def forward_train(self, tokens: Array) -> tuple[Array, Callable[[Array], None]]:
        """x, backward; backward(d_x) adds to grads. It holds tokens."""
        x = self(tokens)

        def backward(d_x: Array) -> None:
            d_x = _validate.exact("d_x", d_x, self.dtype, x.shape, home=self._home)
            if self.trainable and tokens.size:
                self._add_rows(*sum_by_token(tokens.reshape(-1), d_x.reshape(-1, self.dimension), self.size))

        return x, on(self._home, backward)

    def gather(self, tokens: Array, kept: Array | None = None) -> tuple[Gathered, Callable[[Array], None]]:
        """x (T, B, E) as rows of a table of the tokens that occur, ascending; 0 where kept (T, B) bool is False. On the
        CPU.

        backward(d_table) adds to grads. Errors as of a call. Memory: the table, and 9 V bytes for a moment.
        """
        tokens = self._checked(tokens)
        seen = np.zeros(self.size, np.bool_)
        seen[tokens if kept is None else tokens[kept]] = True
        found = np.flatnonzero(seen)
        number = np.empty(self.size, np.int64)
        number[found] = np.arange(len(found))
        place = number[tokens]
        if kept is not None:
            place[~kept] = len(found)

        def backward(d_table: Array) -> None:
            if self.trainable:
                self._add_rows(found, d_table)

        return Gathered(self.parameters["weight"][found], place), backward

    def _add_rows(self, rows: Array, sums: Array) -> None:
        self.grads["weight"][rows] += sums
        self._touched.append(rows)

    @placed
    def zero_grad(self) -> None:
        """Sets grads to zero: only the rows that backward has written."""
        for rows in self._touched:
            self.grads["weight"][rows] = 0
        self._touched.clear()


def sum_by_token(tokens: Array, d_x: Array, size: int) -> tuple[Array, Array]:
    """Of tokens in 0..size-1 those that occur, ascending, and for each the sum of its rows of d_x (N, E), in order."""
    order, xp = stable_order(tokens, size), module_of(tokens)
    ordered = tokens[order]
    begins = xp.ones(len(tokens) + 1, np.bool_)  # and the end
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:-1])
    bounds = xp.flatnonzero(begins)
    return ordered[bounds[:-1]], sum_segments(d_x, order, bounds)


def draw_mask(shape: tuple[int, ...], probability: float, dtype: Any, rng: np.random.Generator) -> Array:
    """What dropout multiplies by: 0 with this probability, else 1 / (1 - probability) (Srivastava et al. 2014).

    Drawn on the host, a NumPy array: the same masks on every device.
    """
    kept = rng.random(shape, dtype=np.float32) >= probability
    return np.asarray(kept * np.dtype(dtype).type(1 / (1 - probability) if probability < 1 else 0))


@placed
def pool(
    kind: str, output: Array, h_n: Array, lengths: Array | None, directions: int = 1
) -> tuple[Array, Callable[[Array], tuple[Array | None, Array | None]]]:
    """(B, P) of output (T, B, D * H) and h_n (L * D, B, H), and backward(d_pooled) -> d_output, d_h_n.

    "last": the state of the top layer after each row's own last step, both directions side by side, P = D * H; of a row
    without steps that is its initial state, 0 where no h_0 was given. "mean" and "max": over each row's own steps,
    P = D * H, 0 for a row without steps; "mean+max": both, P = 2 * D * H. Where several steps hold the maximum, the
    first takes the gradient. Unknown kind: ValueError.

    All arrays are NumPy's or CuPy's on one device, else TypeError; lengths (B) may be NumPy's in any case.
    """
    if kind not in POOLINGS:
        raise ValueError(f"pool: expected one of {', '.join(map(repr, POOLINGS))}, got {kind!r}")
    xp, home = module_of(output), gpu(output)
    check_kind("h_n", h_n, home)
    T, B, P = output.shape
    if kind == "last":
        top = h_n[-directions:]
        pooled = xp.ascontiguousarray(top.swapaxes(0, 1)).reshape(B, P)

        def backward_last(d_pooled: Array) -> tuple[Array | None, Array | None]:
            check_kind("d_pooled", d_pooled, home)
            d_h_n = xp.zeros_like(h_n)
            d_h_n[-directions:] = d_pooled.reshape(B, directions, -1).swapaxes(0, 1)
            return None, d_h_n

        return pooled, on(home, backward_last)

    if lengths is not None and (home is None or gpu(lengths) is not None):
        check_kind("lengths", lengths, home)
    steps = xp.full(B, T, np.int64) if lengths is None else xp.asarray(lengths, np.int64)
    share = (1 / np.maximum(steps, 1)).astype(output.dtype)[:, None]
    parts = []
    if "mean" in kind:
        parts.append(output.sum(axis=0) * share)  # output is 0 beyond a row's length
    if "max" in kind:
        top, at = max_over_time(output, steps)
        parts.append(top)
        rows, columns = xp.arange(B)[:, None], xp.arange(P)

    def backward(d_pooled: Array) -> tuple[Array | None, Array | None]:
        check_kind("d_pooled", d_pooled, home)
        shape = (T, B, P)
        if kind == "mean":
            return xp.broadcast_to(d_pooled * share, shape), None
        d_output = xp.zeros(shape, output.dtype)
        if kind == "mean+max":
            d_output += d_pooled[:, :P] * share
        if T:
            d_output[at, rows, columns] += xp.where(steps[:, None] > 0, d_pooled[:, -P:], output.dtype.type(0))
        return d_output, None

    return (parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=1)), on(home, backward)
