"""RNN and RNNCell: layers x directions, dropout; one backend call for each layer and direction."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np

from . import _backends, _validate
from ._backends.options import Array, RnnOptions, WeightSums, empty
from ._gathered import Gathered
from ._parameters import Layer, Weights
from ._validate import exact, floats, like

if TYPE_CHECKING:  # imported where it is used: most programs never do
    from ._recompute import Masks, Recompute

Backward: TypeAlias = Callable[..., tuple[Array, Array]]
_T = TypeVar("_T")

# the axes of x, as the caller has them -> those of output, of the states
_OUTPUT_DIMS = {"TBI": ("T", "B", "D * H"), "BTI": ("B", "T", "D * H"), "TI": ("T", "D * H")}
_STATE_DIMS = {"TBI": ("L * D", "B", "H"), "BTI": ("L * D", "B", "H"), "TI": ("L * D", "H")}


class _Call(NamedTuple):
    """The checked arguments of one call of RNN."""

    given: Array  # the results are arrays of its kind
    dims: str  # the caller's axes: "TBI", "BTI" or "TI"
    x: Array | Gathered  # (T, B, I), a view
    h_0: Array | None  # (layers * directions, B, H)
    options: list[RnnOptions]  # by direction


class _Pass(NamedTuple):
    """What BPTT needs of one layer."""

    x: Array | Gathered
    inputs: list[Array]  # by direction: x, or w_ih x where that is gathered
    noise: Array | None  # what dropout and input_dropout multiplied to make x
    output: Array
    weights: list[Weights]  # by direction
    options: list[RnnOptions]  # by direction, with masks


class RNN(Layer):
    """A tanh or relu RNN of one or more layers (Elman 1990): torch.nn.RNN for NumPy arrays.

        h_t = tanh(w_ih x_t + b_ih + b_hh + w_hh h_{t-1})        or relu(...)

    or with leaky units h_t = (1 - alpha) h_{t-1} + alpha tanh(...), as in rnn_forward.

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
        device: "cpu"; or "cuda", CuPy's current device: parameters, gradients, states and data are CuPy arrays there.
        backend: "auto", "cpp", "numba" or "numpy"; "auto", "cuda" or "cupy" on a GPU.
        seed: what numpy.random.default_rng takes. It draws the parameters, uniform in +-1 / sqrt(H), and all masks.
        alpha: leaky units: a number or an array (H), in (0, 1], for all layers and directions; dt / tau of a
            continuous-time RNN, the leaking rate of an echo state network. None: units that do not leak.
        recurrent_dropout: the probability with which forward_train zeroes a unit of the state that enters w_hh, by one
            mask (B, H) for each layer and direction and all steps; the others are divided by 1 - recurrent_dropout.
        input_dropout: the same for each layer's input, by one mask (B, I) for all steps, after dropout: variational
            dropout (Gal & Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks",
            2016).
        zoneout: the probability with which a unit keeps its previous state at a step of forward_train; in inference its
            state is the expected one, h_t = zoneout h_{t-1} + (1 - zoneout) tanh(...) (Krueger et al., "Zoneout:
            regularizing RNNs by randomly preserving hidden activations", 2016).
        train_alpha: alpha is a parameter, "alpha": in parameters, grads and state_dict, trained with the others. It may
            leave (0, 1] then; the formula goes on.

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

    recurrent_dropout = input_dropout = zoneout = 0.0  # of layers that were pickled before there were any

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
        alpha: float | Array | None = None,
        train_alpha: bool = False,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float = 0.0,
    ) -> None:
        settings = dtype, device, backend, seed, alpha, train_alpha
        super().__init__(input_size, hidden_size, nonlinearity, bias, *settings)
        self.recurrent_dropout = _validate.probability("recurrent_dropout", recurrent_dropout)
        self.input_dropout = _validate.probability("input_dropout", input_dropout)
        self.zoneout = _validate.probability("zoneout", zoneout)
        if self.zoneout and device != "cpu":
            raise ValueError(
                f"zoneout: expected 0 with device 'cuda', whose backends have no leaky units, as inference needs, got "
                f"{zoneout}"
            )
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
        self._create_alpha()

    def __call__(
        self,
        x: Array,
        h_0: Array | None = None,
        lengths: Array | None = None,
        *,
        reset: Array | None = None,
        return_all_layers: bool = False,
    ) -> Any:
        """Inference: output, h_n; output, h_n, layers with return_all_layers. Keeps nothing and applies no dropout.

        Arguments:
            x: (T, B, I), (B, T, I) if batch_first, or one sequence (T, I); any strides.
            h_0: (L * D, B, H), or (L * D, H) for one sequence; None for zeros.
            lengths: (B) int32 or int64 in 0..T: row b ends after lengths[b] steps, and output is 0 from there on.
            reset: (T, B) bool, (B, T) if batch_first, (T) for one sequence. True: the state that enters step t is 0, in
                each layer and direction.
            return_all_layers: True also returns every layer's states.

        Returns:
            output (T, B, D * H), or in x's layout (B, T, D * H), a view then, or (T, D * H); h_n (L * D, B, H) or
            (L * D, H), each row's state after its own last step; layers, a tuple of L, each as output: the last is
            output itself. Torch tensors for a torch tensor x.

        Raises TypeError and ValueError as rnn_forward does. Memory: the outputs of two layers, or of all.
        """
        call = self._checked(x, h_0, lengths, reset)
        if return_all_layers is False:
            output, h_n = self._placed(self._forward, call, None)
            return like(call.given, _callers(output, call.dims)), like(call.given, _callers_states(h_n, call.dims))
        _validate.boolean("return_all_layers", return_all_layers)
        every: list[Array] = []
        output, h_n = self._placed(self._forward, call, None, every)
        layers = tuple(like(call.given, _callers(each, call.dims)) for each in every)
        return layers[-1], like(call.given, _callers_states(h_n, call.dims)), layers

    def forward_train(
        self,
        x: Array,
        h_0: Array | None = None,
        lengths: Array | None = None,
        *,
        reset: Array | None = None,
        checkpoint_every: int | Literal["auto"] | None = None,
    ) -> tuple[Array, Array, Backward]:
        """output, h_n, backward: as a call, but with all that is drawn, and ready for BPTT (Werbos 1990).

        `d_x, d_h_0 = backward(d_output, d_h_n=None)` takes the gradient of a scalar loss with respect to output and
        h_n, in their shapes, of any strides; one of the two may be None. It adds to grads and returns the gradients of
        x and h_0 (also for h_0=None), in their shapes. Nothing is added unless all of it succeeds. A second call raises
        RuntimeError; wrong arguments raise TypeError or ValueError and do not count as a call.

        backward holds x, every layer's output and the arrays of the parameters, and notices no modification of them.
        Memory: the outputs of all layers, as much again for each dropout, and T * B * H bytes for each direction with
        zoneout.

        checkpoint_every: backward computes the states again, one more forward pass, in chunks of so many steps (rounded
        up to a multiple of 256 / B, so that no bit of the gradients changes with "cpp"), or of sqrt(T) with "auto"
        (Chen et al. 2016). backward holds x and the states at the chunks' ends then, and not the output, nor what is
        between layers; with two directions that is kept. dropout and zoneout draw other masks than without it. Raises
        ValueError with device "cuda".
        """
        call = self._checked(x, h_0, lengths, reset)
        tape: list[Any] = []
        run_backward: Callable[..., tuple[Array, Array]] = self._backward
        if checkpoint_every is None:
            output, h_n = self._placed(self._forward, call, tape)
        else:
            output, h_n = self._forward_in_chunks(call, tape, checkpoint_every)
            run_backward = self._backward_in_chunks
        output, h_n = _callers(output, call.dims), _callers_states(h_n, call.dims)
        dims, output_shape, h_n_shape = call.dims, output.shape, h_n.shape
        held = [(call, tape)]  # all that backward holds, until it has run

        def backward(d_output: Array | None, d_h_n: Array | None = None) -> tuple[Array, Array]:
            if d_output is None and d_h_n is None:
                raise ValueError("d_output: expected an array where d_h_n is None, got None for both")
            if d_output is not None:
                d_output = exact("d_output", d_output, self.dtype, output_shape, _OUTPUT_DIMS[dims], self._home)
                d_output = _time_major(d_output, dims)
            if d_h_n is not None:
                d_h_n = exact("d_h_n", d_h_n, self.dtype, h_n_shape, _STATE_DIMS[dims], self._home)
                d_h_n = _batched(d_h_n, dims)
            call, tape = _take(held)
            d_x, d_h_0 = self._placed(run_backward, call, tape, d_output, d_h_n)
            return like(call.given, _callers(d_x, dims)), like(call.given, _callers_states(d_h_0, dims))

        return like(call.given, output), like(call.given, h_n), backward

    def _checked(self, x: Array | Gathered, h_0: Array | None, lengths: Array | None, reset: Array | None) -> _Call:
        given: Any = x
        dims = "TI" if getattr(x, "ndim", 3) == 2 else "BTI" if self.batch_first else "TBI"
        if isinstance(x, Gathered):  # time-major
            given = x.place
        else:
            x = floats("x", x, dims, self.dtype, self._home)
            if x.shape[-1] != self.input_size:
                raise ValueError(f"x: expected input size I = {self.input_size}, got shape {x.shape}")
            x = _time_major(x, dims)
        B, H, D = x.shape[1], self.hidden_size, 1 + self.bidirectional
        if h_0 is not None:
            shape = (self.num_layers * D, H) if dims == "TI" else (self.num_layers * D, B, H)
            h_0 = _batched(exact("h_0", h_0, self.dtype, shape, _STATE_DIMS[dims], self._home), dims)
        if lengths is not None and dims == "TI":
            raise ValueError("lengths: expected None for one sequence x (T, I), got an array")
        if reset is not None:
            named = dims.replace("I", "")
            wanted = {"TB": x.shape[:2], "BT": x.shape[1::-1], "T": x.shape[:1]}[named]
            reset = exact("reset", reset, _validate.BOOL, wanted, named, self._home)
            reset = reset.T.copy() if named == "BT" else reset.reshape(x.shape[:2]).copy()  # BPTT sees what forward saw
        like_x, kind = cast(Array, x), self.nonlinearity  # shape and dtype are asked for
        options = [_validate.options(like_x, B, H, kind, way, lengths, None, reset) for way in (False, True)[:D]]
        if self._alpha is not None:
            options = [self._leaky(each) for each in options]
        return _Call(given, dims, x, h_0, options)

    def _forward(self, call: _Call, tape: list[_Pass] | None, every: list[Array] | None = None) -> tuple[Array, Array]:
        """output (T, B, D * H), h_n; with a tape, masks are drawn and the pass through each layer is appended. Each
        layer's output is appended to every."""
        backend = _backends.get(self.backend, self.device)
        run, new = backend.rnn_forward, backend.empty if self._home is None else self._xp.empty
        x, H, D = call.x, self.hidden_size, len(call.options)
        states = []
        expected = call.options
        if tape is None and self.zoneout:
            expected = [self._expected(o) for o in expected]
        draws = tape is not None and (self.dropout or self.input_dropout or self.recurrent_dropout or self.zoneout)
        for layer in range(self.num_layers):
            noise, masked = None, expected
            if draws:
                noise = self._draw_input_noise(layer, x)
                x = x if noise is None else cast(Array, x) * noise
                masked = self._draw_masks(x, call.options)
            output = new((*x.shape[:2], D * H), self.dtype)
            weights = [self._weights(layer * D + way) for way in range(D)]
            inputs, w_ih = _inputs(x, weights)
            for way, options in enumerate(masked):
                k = layer * D + way
                h_0 = None if call.h_0 is None else call.h_0[k]
                half = output if D == 1 else output[..., way * H : (way + 1) * H]
                states.append(run(inputs[way], h_0, w_ih[way], *weights[way][1:], options, half, self._packed(k))[1])
            if tape is not None:
                tape.append(_Pass(x, inputs, noise, output, weights, masked))
            if every is not None:
                every.append(output)
            x = output
        return output, states[0][None] if len(states) == 1 else np.stack(states)

    def _backward(
        self, call: _Call, tape: list[_Pass], d_output: Array | None, d_h_n: Array | None
    ) -> tuple[Array, Array]:
        """d_x (T, B, I), of a gathered x d_table (U, I), and d_h_0; empties the tape, and adds to grads at the end."""
        run = _backends.get(self.backend, self.device).rnn_backward
        H, D, needs = self.hidden_size, len(call.options), self._needs()
        states: dict[int, Any] = {}
        sums: dict[int, tuple[Any, ...]] = {}
        for layer in reversed(range(self.num_layers)):
            x, inputs, noise, output, weights, masked = tape.pop()
            d_x: list[Array] = []
            for way, options in enumerate(masked):
                k = layer * D + way
                half = np.s_[..., way * H : (way + 1) * H]
                gradient = run(
                    None if d_output is None else d_output[half],
                    None if d_h_n is None else d_h_n[k],
                    output[half],
                    inputs[way],
                    None if call.h_0 is None else call.h_0[k],
                    None if isinstance(x, Gathered) else weights[way][0],
                    weights[way][1],
                    options,
                    needs,
                    *weights[way][2:],
                )
                d_input, d_w_ih = cast(Array, gradient.d_x), gradient.d_w_ih
                if isinstance(x, Gathered):
                    total = x.sums(d_input)
                    d_input, d_w_ih = total @ weights[way][0], total.T @ x.table
                d_x.append(d_input)
                states[k], sums[k] = gradient.d_h_0, (d_w_ih, *gradient[3:], gradient.d_alpha)
            d_output = d_x[0] if D == 1 else np.add(d_x[0], d_x[1], out=d_x[0])
            if noise is not None:
                d_output *= noise
        for k in sorted(sums):  # alpha is one for all: its gradient is summed in this order, in chunks too
            self._accumulate(k, *sums[k])
        d_h_0 = states[0][None] if len(states) == 1 else np.stack([states[k] for k in sorted(states)])
        return cast(Array, d_output), d_h_0

    def _forward_in_chunks(self, call: _Call, tape: list[Any], every: Any) -> tuple[Array, Array]:
        """_forward in training. The tape gets the first layer, the noise on its input and the walk of each direction:
        of all layers, where there is one direction; of two each needs the whole output of the layer below."""
        if self._home is not None:
            raise ValueError(f"checkpoint_every: expected None with device 'cuda', got {every!r}")
        from . import _recompute

        (T, B, _), H, L, D = call.x.shape, self.hidden_size, self.num_layers, len(call.options)
        steps, together = _recompute.chunk_steps(every, T, B), L if D == 1 else 1
        functions, x = _backends.get(self.backend, self.device), cast(Array, call.x)
        states: list[Any] = [None] * (L * D)
        for first in range(0, L, together):
            noise = self._draw_noise(x.shape, self.dropout) if self.dropout and first else None
            x = x if noise is None else x * noise
            layers, masks = range(first, first + together), self._draw_masks_of_chunks(together, x)
            output, walks = np.zeros((T, B, D * H), self.dtype), []
            for way, options in enumerate(call.options):
                own = [k * D + way for k in layers]
                h_0 = [None if call.h_0 is None else call.h_0[k] for k in own]
                weights = [(*self._weights(k), None) for k in own]
                walk = _recompute.Recompute(functions, steps, x, h_0, weights, options, masks[way])
                half = output[..., way * H : (way + 1) * H]

                def store(chunk: int, found: Array, half: Array = half, walk: Recompute = walk) -> None:
                    half[walk.at(chunk)] = found

                for k, h_n in zip(own, walk.forward(store), strict=True):
                    states[k] = h_n
                walks.append(walk)
            tape.append((first, noise, walks))
            x = output
        return x, np.stack(states)

    def _backward_in_chunks(
        self, call: _Call, tape: list[Any], d_output: Array | None, d_h_n: Array | None
    ) -> tuple[Array, Array]:
        """_backward."""
        H, D, needs = self.hidden_size, len(call.options), set(self._needs()) - {"x", "h_0"}
        d_h_0: list[Any] = [None] * (self.num_layers * D)
        sums: dict[int, WeightSums] = {}
        while tape:
            first, noise, walks = tape.pop()
            d_x: Array | None = None
            for way, walk in enumerate(walks):
                half = None if d_output is None else d_output[..., way * H : (way + 1) * H]

                def given(chunk: int, _: Array, half: Any = half, walk: Recompute = walk) -> Array | None:
                    return None if half is None else half[walk.at(chunk)]

                own, part = [k * D + way for k in range(first, first + len(walk.weights))], np.zeros_like(walk.x)
                last = [None if d_h_n is None else d_h_n[k] for k in own]
                for k, d_state, total in zip(own, *walk.backward(given, last, needs, part), strict=True):
                    d_h_0[k], sums[k] = d_state, total
                d_x = part if d_x is None else np.add(d_x, part, out=d_x)
            d_output = walks[0].unmasked(cast(Array, d_x))
            if noise is not None:
                d_output *= noise
        for k in sorted(sums):
            self._accumulate(k, *sums[k][:4])
        return cast(Array, d_output), np.stack(d_h_0)

    def _draw_masks_of_chunks(self, layers: int, x: Array) -> list[Masks]:
        """Of each direction, for so many layers that are computed together."""
        from . import _recompute

        B, H, D = x.shape[1], self.hidden_size, 1 + self.bidirectional
        inputs, recurrent = [], []
        for at in range(layers):
            if self.input_dropout:
                inputs.append(self._draw_noise((B, H if at else x.shape[-1]), self.input_dropout))
            if self.recurrent_dropout:
                recurrent.append(self._draw_noise((D, B, H), self.recurrent_dropout))
        dropout = self.dropout if layers > 1 else 0.0
        seed = int(self._rng.integers(2**62)) if dropout or self.zoneout else 0
        own = [np.stack([mask[way] for mask in recurrent]) if recurrent else None for way in range(D)]
        return [_recompute.Masks(inputs, own[way], dropout, self.zoneout, (seed, way)) for way in range(D)]

    def _draw_input_noise(self, layer: int, x: Array | Gathered) -> Array | None:
        """What multiplies the input x (T, B, I) of a layer."""
        noise = self._draw_noise(x.shape, self.dropout) if self.dropout > 0 and layer else None
        if not self.input_dropout:
            return noise
        mask = self._draw_noise(x.shape[1:], self.input_dropout)
        return mask if noise is None else noise * mask

    def _draw_masks(self, x: Array | Gathered, options: list[RnnOptions]) -> list[RnnOptions]:
        """The options of a layer's directions, with recurrent dropout and zoneout."""
        (T, B), H, D = x.shape[:2], self.hidden_size, len(options)
        if self.recurrent_dropout:
            masks = self._draw_noise((D, B, H), self.recurrent_dropout)
            options = [replace(o, recurrent_mask=mask) for o, mask in zip(options, masks, strict=True)]
        if self.zoneout:
            kept = self._here(self._random((D, T, B, H), np.dtype(np.float32)) < self.zoneout)
            options = [replace(o, keep_mask=mask) for o, mask in zip(options, kept, strict=True)]
        return options

    def _expected(self, options: RnnOptions) -> RnnOptions:
        """Zoneout in the mean: leaky units."""
        alpha = self._here(np.ones(self.hidden_size, self.dtype)) if options.alpha is None else options.alpha
        return replace(options, alpha=alpha * self.dtype.type(1 - self.zoneout))

    def _draw_noise(self, shape: tuple[int, ...], rate: float) -> Array:
        """0 with the probability rate, else 1 / (1 - rate)."""
        scale = self.dtype.type(1 / (1 - rate) if rate < 1 else 0)
        return self._here(np.asarray((self._random(shape, self.dtype) >= rate) * scale))

    def _random(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Numbers in [0, 1)."""
        return self._rng.random(dtype=dtype, out=empty(shape, dtype))

    def _here(self, array: Array) -> Array:
        """On the layer's device."""
        return array if self._home is None else cast(Array, self._xp.asarray(array))

    def __repr__(self) -> str:
        shown = []
        if self.num_layers != 1:
            shown.append(f"num_layers={self.num_layers}")
        if not self.bias:
            shown.append("bias=False")
        if self.batch_first:
            shown.append("batch_first=True")
        for name in ("dropout", "recurrent_dropout", "input_dropout", "zoneout"):
            if rate := getattr(self, name):
                shown.append(f"{name}={rate}")
        if self.bidirectional:
            shown.append("bidirectional=True")
        return self._describe(*shown)


class RNNCell(Layer):
    """One step of a tanh or relu RNN, for streaming: torch.nn.RNNCell for NumPy arrays.

        h' = tanh(w_ih x + b_ih + b_hh + w_hh h)        or relu(...)

    or with leaky units (1 - alpha) h + alpha tanh(...).

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
        alpha: float | Array | None = None,
        train_alpha: bool = False,
    ) -> None:
        settings = dtype, device, backend, seed, alpha, train_alpha
        super().__init__(input_size, hidden_size, nonlinearity, bias, *settings)
        self._create(self.input_size)
        self._create_alpha()

    def __call__(self, x: Array, h: Array | None = None) -> Array:
        """The next state, (B, H) for x (B, I) and h (B, H), or (H) for x (I) and h (H); h=None stands for zeros.

        Raises TypeError and ValueError as rnn_forward does. Keeps nothing.
        """
        functions = _backends.get(self.backend, self.device)
        weights, packed = self._weights(0), self._packed(0)
        short_step = getattr(functions, "short_step", None)
        if short_step is not None and self._alpha is None:
            found = short_step(x, h, *weights, self.nonlinearity == "relu", packed)
            if found is not None:
                return cast(Array, found)
        given, (x, h, options) = x, self._checked(x, h)
        _, h_n = functions.rnn_forward(x, h, *weights, options, None, packed)
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
            d_h_next = exact("d_h_next", d_h_next, self.dtype, shape, "H" if single else "BH", self._home)
            given, x, h, output = _take(held)
            run = _backends.get(self.backend, self.device).rnn_backward
            d_h_n = d_h_next[None] if single else d_h_next
            gradients = run(None, d_h_n, output, x, h, *weights[:2], options, self._needs(), *weights[2:])
            self._accumulate(0, *gradients[2:], gradients.d_alpha)
            d_x, d_h = cast(Array, gradients.d_x)[0], cast(Array, gradients.d_h_0)
            return like(given, d_x[0] if single else d_x), like(given, d_h[0] if single else d_h)

        output_shape = output.shape[1:]
        return like(given, output[0, 0] if single else output[0]), backward

    def _checked(self, x: Array, h: Array | None) -> tuple[Array, Array | None, RnnOptions]:
        """x (1, B, I), h (B, H), options."""
        single = getattr(x, "ndim", 2) == 1
        x = floats("x", x, "I" if single else "BI", self.dtype, self._home)
        if x.shape[-1] != self.input_size:
            raise ValueError(f"x: expected input size I = {self.input_size}, got shape {x.shape}")
        H = self.hidden_size
        if h is not None:
            shape, dims = ((H,), "H") if single else ((x.shape[0], H), "BH")
            h = exact("h", h, self.dtype, shape, dims, self._home)
        if single:
            x, h = x[None], None if h is None else h[None]
        return x[None], h, self._leaky(_validate.options(x, len(x), H, self.nonlinearity, reverse=False))

    def __repr__(self) -> str:
        return self._describe() if self.bias else self._describe("bias=False")


def _inputs(x: Array | Gathered, weights: list[Weights]) -> tuple[list[Array], list[Array | None]]:
    """x and w_ih of each direction, as the backends take them."""
    if isinstance(x, Gathered):
        return [x.product(w_ih) for w_ih, *_ in weights], [None] * len(weights)
    return [x] * len(weights), [w_ih for w_ih, *_ in weights]


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
