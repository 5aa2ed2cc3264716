"""RNN and RNNCell: layers x directions, dropout; one backend call for each layer and direction."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np

from . import _backends, _validate
from ._backends.options import Array, RnnGradients, RnnOptions, empty
from ._parameters import Layer, Weights
from ._validate import exact, floats, like

Backward: TypeAlias = Callable[..., tuple[Array, Array]]
_T = TypeVar("_T")

# the axes of x, as the caller has them -> those of output, of the states
_OUTPUT_DIMS = {"TBI": ("T", "B", "D * H"), "BTI": ("B", "T", "D * H"), "TI": ("T", "D * H")}
_STATE_DIMS = {"TBI": ("L * D", "B", "H"), "BTI": ("L * D", "B", "H"), "TI": ("L * D", "H")}


class _Call(NamedTuple):
    """The checked arguments of one call of RNN."""

    dims: str  # the caller's axes: "TBI", "BTI" or "TI"
    x: Array  # (T, B, I), a view
    h_0: Array | None  # (layers * directions, B, H)
    options: list[RnnOptions]  # by direction


class _Pass(NamedTuple):
    """What BPTT needs of one layer."""

    x: Array
    output: Array  # before dropout
    noise: Array | None  # what dropout multiplied the output by
    weights: list[Weights]  # by direction


class RNN(Layer):
    """A tanh or relu RNN of one or more layers (Elman 1990): torch.nn.RNN for NumPy arrays.

        h_t = tanh(w_ih x_t + b_ih + b_hh + w_hh h_{t-1})        or relu(...)

    T is time, B the batch, I = input_size, H = hidden_size, L = num_layers, D = 2 if bidirectional, else 1.

    Arguments:
        nonlinearity: "tanh" or "relu".
        bias: False leaves b_ih and b_hh out.
        batch_first: x and output are (B, T, .) instead of (T, B, .), as views: nothing is copied. States are not.
        dropout: the probability with which forward_train zeroes an element between two layers; the others are divided
            by 1 - dropout. Drawn from the seeded generator, time-major whatever batch_first is.
        bidirectional: a second set of weights walks each row from its end to its start; output holds both, the
            forward one first.
        dtype: float32 or float64, that of all arrays.
        device: "cpu".
        backend: "auto", "cpp", "numba" or "numpy".
        seed: what numpy.random.default_rng takes. It draws the parameters, uniform in +-1 / sqrt(H), and dropout.

    Attributes:
        parameters: name -> array, with torch's names and shapes: for each layer k and direction weight_ih_l{k}
            (H, I), or (H, D * H) above the first layer; weight_hh_l{k} (H, H); bias_ih_l{k}, bias_hh_l{k} (H); with
            "_reverse" appended for the second direction.
        grads: name -> array, to which backward adds.

    The arguments above but sizes and dtype are attributes too. Raises TypeError for an argument of the wrong kind,
    ValueError for a wrong value, RuntimeError for a backend that cannot run here; warns when dropout has no effect.
    Calls from several threads at once are safe, except that backward adds to grads without a lock.

    Numerics: those of fastrnn.rnn_forward and rnn_backward. With "cpp" a row's output is the same bits whatever the
    batch around it and the number of threads.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        device: str = "cpu",
        backend: str = "auto",
        seed: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, nonlinearity, bias, dtype, device, backend, seed)
        self.num_layers = _validate.integer("num_layers", num_layers, at_least=1)
        self.batch_first = _validate.boolean("batch_first", batch_first)
        self.dropout = _validate.probability("dropout", dropout)
        self.bidirectional = _validate.boolean("bidirectional", bidirectional)
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                f"dropout acts between layers: dropout={self.dropout} has no effect with num_layers=1",
                UserWarning,
                stacklevel=2,
            )
        directions = ("", "_reverse") if bidirectional else ("",)
        for layer in range(self.num_layers):
            for direction in directions:
                I = self.input_size if layer == 0 else len(directions) * self.hidden_size
                self._create(I, f"_l{layer}{direction}")

    def __call__(self, x: Array, h_0: Array | None = None, lengths: Array | None = None) -> tuple[Array, Array]:
        """Inference: output, h_n. Keeps nothing and applies no dropout.

        Arguments:
            x: (T, B, I), (B, T, I) if batch_first, or one sequence (T, I); any strides.
            h_0: (L * D, B, H), or (L * D, H) for one sequence; None for zeros.
            lengths: (B) int32 or int64 in 0..T: row b ends after lengths[b] steps, and output is 0 from there on.

        Returns:
            output (T, B, D * H), or in x's layout (B, T, D * H), a view then, or (T, D * H); h_n (L * D, B, H) or
            (L * D, H), each row's state after its own last step. Torch tensors for a torch tensor x.

        Raises TypeError and ValueError as rnn_forward does. Memory: the outputs of two layers.
        """
        call = self._checked(x, h_0, lengths)
        output, h_n = self._forward(call, None)
        return like(x, _callers(output, call.dims)), like(x, _callers_states(h_n, call.dims))

    def forward_train(
        self, x: Array, h_0: Array | None = None, lengths: Array | None = None
    ) -> tuple[Array, Array, Backward]:
        """output, h_n, backward: as a call, but with dropout, and ready for BPTT (Werbos 1990).

        `d_x, d_h_0 = backward(d_output, d_h_n=None)` takes the gradient of a scalar loss with respect to output and
        h_n, in their shapes, of any strides; one of the two may be None. It adds to grads and returns the gradients of
        x and h_0 (also for h_0=None), in their shapes. Nothing is added unless all of it succeeds. A second call raises
        RuntimeError; wrong arguments raise TypeError or ValueError and do not count as a call.

        backward holds x, every layer's output and the arrays of the parameters, and notices no modification of them.
        Memory: the outputs of all layers, and as much again for each dropout.
        """
        call = self._checked(x, h_0, lengths)
        tape: list[_Pass] = []
        output, h_n = self._forward(call, tape)
        output, h_n = _callers(output, call.dims), _callers_states(h_n, call.dims)
        dims, output_shape, h_n_shape = call.dims, output.shape, h_n.shape
        held = [(x, call, tape)]

        def backward(d_output: Array | None, d_h_n: Array | None = None) -> tuple[Array, Array]:
            if d_output is None and d_h_n is None:
                raise ValueError("d_output: expected an array where d_h_n is None, got None for both")
            if d_output is not None:
                d_output = exact("d_output", d_output, self.dtype, output_shape, _OUTPUT_DIMS[dims])
                d_output = _time_major(d_output, dims)
            if d_h_n is not None:
                d_h_n = exact("d_h_n", d_h_n, self.dtype, h_n_shape, _STATE_DIMS[dims])
                d_h_n = _batched(d_h_n, dims)
            given, call, tape = _take(held)
            d_x, d_h_0 = self._backward(call, tape, d_output, d_h_n)
            return like(given, _callers(d_x, dims)), like(given, _callers_states(d_h_0, dims))

        return like(x, output), like(x, h_n), backward

    def _checked(self, x: Array, h_0: Array | None, lengths: Array | None) -> _Call:
        dims = "TI" if getattr(x, "ndim", 3) == 2 else "BTI" if self.batch_first else "TBI"
        x = floats("x", x, dims, self.dtype)
        if x.shape[-1] != self.input_size:
            raise ValueError(f"x: expected input size I = {self.input_size}, got shape {x.shape}")
        x = _time_major(x, dims)
        B, H, D = x.shape[1], self.hidden_size, 1 + self.bidirectional
        if h_0 is not None:
            shape = (self.num_layers * D, H) if dims == "TI" else (self.num_layers * D, B, H)
            h_0 = _batched(exact("h_0", h_0, self.dtype, shape, _STATE_DIMS[dims]), dims)
        if lengths is not None and dims == "TI":
            raise ValueError("lengths: expected None for one sequence x (T, I), got an array")
        directions = (False, True)[:D]
        options = [_validate.options(x, B, H, self.nonlinearity, reverse, lengths) for reverse in directions]
        return _Call(dims, x, h_0, options)

    def _forward(self, call: _Call, tape: list[_Pass] | None) -> tuple[Array, Array]:
        """output (T, B, D * H), h_n; with a tape, dropout acts and the pass through each layer is appended."""
        run = _backends.get(self.backend, self.device).rnn_forward
        x, H, D = call.x, self.hidden_size, len(call.options)
        states = []
        for layer in range(self.num_layers):
            output = empty((*x.shape[:2], D * H), self.dtype)
            weights = [self._weights(layer * D + way) for way in range(D)]
            for way, options in enumerate(call.options):
                k = layer * D + way
                h_0 = None if call.h_0 is None else call.h_0[k]
                half = output if D == 1 else output[..., way * H : (way + 1) * H]
                states.append(run(x, h_0, *weights[way], options, half, self._packed(k))[1])
            noise = None
            if tape is not None:
                if self.dropout > 0 and layer < self.num_layers - 1:
                    noise = self._draw_noise(output.shape)
                tape.append(_Pass(x, output, noise, weights))
            x = output if noise is None else output * noise
        return output, states[0][None] if len(states) == 1 else np.stack(states)

    def _backward(
        self, call: _Call, tape: list[_Pass], d_output: Array | None, d_h_n: Array | None
    ) -> tuple[Array, Array]:
        """d_x (T, B, I), d_h_0; empties the tape on its way, and adds to grads at the end."""
        run = _backends.get(self.backend, self.device).rnn_backward
        H, D, needs = self.hidden_size, len(call.options), self._needs()
        gradients: dict[int, RnnGradients] = {}
        for layer in reversed(range(self.num_layers)):
            x, output, noise, weights = tape.pop()
            if d_output is not None and noise is not None:
                d_output *= noise
            d_x: list[Array] = []
            for way, options in enumerate(call.options):
                k = layer * D + way
                half = np.s_[..., way * H : (way + 1) * H]
                gradient = run(
                    None if d_output is None else d_output[half],
                    None if d_h_n is None else d_h_n[k],
                    output[half],
                    x,
                    None if call.h_0 is None else call.h_0[k],
                    *weights[way][:2],
                    options,
                    needs,
                )
                d_x.append(cast(Array, gradient.d_x))
                gradients[k] = gradient._replace(d_x=None)
            d_output = d_x[0] if D == 1 else np.add(d_x[0], d_x[1], out=d_x[0])
        for k, gradient in gradients.items():
            self._accumulate(k, gradient)
        return cast(Array, d_output), np.stack([cast(Array, gradients[k].d_h_0) for k in sorted(gradients)])

    def _draw_noise(self, shape: tuple[int, ...]) -> Array:
        """0 with the probability dropout, else 1 / (1 - dropout)."""
        scale = self.dtype.type(1 / (1 - self.dropout) if self.dropout < 1 else 0)
        return np.asarray((self._rng.random(shape, self.dtype) >= self.dropout) * scale)

    def __repr__(self) -> str:
        shown = []
        if self.num_layers != 1:
            shown.append(f"num_layers={self.num_layers}")
        if not self.bias:
            shown.append("bias=False")
        if self.batch_first:
            shown.append("batch_first=True")
        if self.dropout:
            shown.append(f"dropout={self.dropout}")
        if self.bidirectional:
            shown.append("bidirectional=True")
        return self._describe(*shown)


class RNNCell(Layer):
    """One step of a tanh or relu RNN, for streaming: torch.nn.RNNCell for NumPy arrays.

        h' = tanh(w_ih x + b_ih + b_hh + w_hh h)        or relu(...)

    Arguments, attributes, errors and numerics are those of RNN; the parameters are weight_ih (H, I), weight_hh (H, H),
    bias_ih (H) and bias_hh (H). Inside `with cell.frozen():` a step takes the least time.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: Any = "float32",
        device: str = "cpu",
        backend: str = "auto",
        seed: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, nonlinearity, bias, dtype, device, backend, seed)
        self._create(self.input_size)

    def __call__(self, x: Array, h: Array | None = None) -> Array:
        """The next state, (B, H) for x (B, I) and h (B, H), or (H) for x (I) and h (H); h=None stands for zeros.

        Raises TypeError and ValueError as rnn_forward does. Keeps nothing.
        """
        given, (x, h, options) = x, self._checked(x, h)
        run = _backends.get(self.backend, self.device).rnn_forward
        _, h_n = run(x, h, *self._weights(0), options, None, self._packed(0))
        return cast(Array, like(given, h_n if given.ndim == 2 else h_n[0]))

    def forward_train(self, x: Array, h: Array | None = None) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
        """The next state, and backward: `d_x, d_h = backward(d_h_next)` adds to grads.

        A second call of backward raises RuntimeError. Shapes are those of the call. backward holds x, h, the next
        state and the arrays of the parameters, and notices no modification of them.
        """
        given, (x, h, options) = x, self._checked(x, h)
        weights = self._weights(0)
        run = _backends.get(self.backend, self.device).rnn_forward
        output, _ = run(x, h, *weights, options, None, self._packed(0))
        single = given.ndim == 1
        held = [(given, x, h, output)]

        def backward(d_h_next: Array) -> tuple[Array, Array]:
            shape = (self.hidden_size,) if single else output_shape
            d_h_next = exact("d_h_next", d_h_next, self.dtype, shape, "H" if single else "BH")
            given, x, h, output = _take(held)
            run = _backends.get(self.backend, self.device).rnn_backward
            d_h_n = d_h_next[None] if single else d_h_next
            gradients = run(None, d_h_n, output, x, h, *weights[:2], options, self._needs())
            self._accumulate(0, gradients)
            d_x, d_h = cast(Array, gradients.d_x)[0], cast(Array, gradients.d_h_0)
            return like(given, d_x[0] if single else d_x), like(given, d_h[0] if single else d_h)

        output_shape = output.shape[1:]
        return like(given, output[0, 0] if single else output[0]), backward

    def _checked(self, x: Array, h: Array | None) -> tuple[Array, Array | None, RnnOptions]:
        """x (1, B, I), h (B, H), options."""
        single = getattr(x, "ndim", 2) == 1
        x = floats("x", x, "I" if single else "BI", self.dtype)
        if x.shape[-1] != self.input_size:
            raise ValueError(f"x: expected input size I = {self.input_size}, got shape {x.shape}")
        H = self.hidden_size
        if h is not None:
            shape, dims = ((H,), "H") if single else ((x.shape[0], H), "BH")
            h = exact("h", h, self.dtype, shape, dims)
        if single:
            x, h = x[None], None if h is None else h[None]
        return x[None], h, _validate.options(x, len(x), H, self.nonlinearity, reverse=False)

    def __repr__(self) -> str:
        return self._describe() if self.bias else self._describe("bias=False")


def _time_major(array: Array, dims: str) -> Array:
    """A view (T, B, .) of an array in the caller's axes; its own inverse but for "TI"."""
    if dims == "TI":
        return array[:, None]
    return array.swapaxes(0, 1) if dims == "BTI" else array


def _callers(array: Array, dims: str) -> Array:
    """The inverse of _time_major."""
    return array[:, 0] if dims == "TI" else _time_major(array, dims)


def _batched(states: Array, dims: str) -> Array:
    return states[:, None] if dims == "TI" else states


def _callers_states(states: Array, dims: str) -> Array:
    return states[:, 0] if dims == "TI" else states


def _take(held: list[_T]) -> _T:
    """What backward needs, the first time."""
    try:
        return held.pop()
    except IndexError:
        raise RuntimeError("backward: expected one call for each forward_train, got a second one") from None
