"""RNN: torch.nn.RNN, computed by fastrnn."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from .. import _validate
from .._backends.options import Array, RnnOptions
from . import autograd, derivatives, dispatch, leak, operators, reduce, stack
from .stack import Rates

_NAMES = dispatch.NONLINEARITIES
_MODES = {name: mode for mode, name in _NAMES.items()}
_OPTIONS = {
    (mode, bidirectional): tuple(RnnOptions(name, reverse) for reverse in (False, True)[: 1 + bidirectional])
    for mode, name in _NAMES.items()
    for bidirectional in (False, True)
}


def _rate(name: str) -> tuple[Any, Any]:
    """Getter and setter of one of Rates, of which a layer has an instance where one of them is not 0."""

    def read(layer: RNN) -> float:
        return 0.0 if layer._rates is None else cast(float, getattr(layer._rates, name))

    def write(layer: RNN, value: float) -> None:
        rates = (layer._rates or Rates())._replace(**{name: _validate.probability(name, value)})
        layer._rates = rates if any(rates) else None

    return read, write


class RNN(RNNBase):
    """torch.nn.RNN, computed by fastrnn: its arguments, parameters, initial values, state_dict, results and errors.

        h_t = tanh(w_ih x_t + b_ih + b_hh + w_hh h_{t-1})        or relu(...)

    T is time, B the batch, I = input_size, H = hidden_size, L = num_layers, D = 2 if bidirectional, else 1.

    RNN(input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, *, recurrent_dropout=0.0, input_dropout=0.0, zoneout=0.0, alpha=None).
    Seeded, it draws the initial values, and in training the dropout, that torch.nn.RNN draws. It derives from
    torch.nn.RNNBase; isinstance(layer, torch.nn.RNN) is False.

    What torch.nn.RNN has not; first probabilities in [0, 1], attributes that may be changed later:
        recurrent_dropout: in training one mask (B, H) for each layer and direction zeroes units of the state that
            enters w_hh, the same ones at all steps of a sequence, and divides the others by 1 - recurrent_dropout; one
            mask for all steps is what Gal & Ghahramani, "A theoretically grounded application of dropout in recurrent
            neural networks" (2016), derive.
        input_dropout: in training one mask (B, I) for each layer does the same to its input at all steps (their
            variational dropout), after dropout.
        zoneout: in training each unit at each step keeps its previous state with this probability (Krueger et al.,
            "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2016); in eval mode the state is the
            expected one, h_t = zoneout h_{t-1} + (1 - zoneout) tanh(...). h_0 is kept as any state is.
    The masks come from torch's generator (torch.manual_seed repeats them), are held for backward, and are drawn anew in
    each call. That of zoneout takes T * B * H bytes a direction.

        alpha: leaky units, h_t = (1 - alpha) h_{t-1} + alpha tanh(...), in all layers and directions: the
            continuous-time RNN of computational neuroscience (alpha = dt / tau), the leaking rate of reservoir
            computing. A number in (0, 1], which reset_parameters puts back, as leaving the meta device does; a tensor,
            () or (H), which becomes a buffer; or a torch.nn.Parameter, which is trained and may leave (0, 1]: the
            formula goes on, or a parametrization keeps it there. Results and gradients are those of fastrnn.rnn_forward
            and rnn_backward; the output is all that is kept, and backward computes the activations again: a training
            step takes about 1.4 times as long as a plain one.

    float32, float64, bfloat16 and float16, and what autocast makes of them, run on fastrnn's kernels. The
    two halves are computed in float32 from end to end: only the results, and the gradients in the dtype of their
    tensor, are rounded. For other dtypes and devices, inside torch.jit.trace and torch.func.functionalize, and
    where no backend of fastrnn is fast, torch.nn.RNN's own operators compute, which a RuntimeWarning says once for each
    reason. FASTRNN_DISABLE=1 makes it so always, without a warning; it is read once, as FASTRNN_BACKEND is.

    Numerics: those of fastrnn.rnn_forward and rnn_backward. With "cpp" a row of output, h_n and of the gradients of
    input and hx is the same bits whatever the batch around it and the number of threads, which is
    torch.get_num_threads().

    Derivatives: of any order, in reverse and forward mode, under torch.func's transforms and in batches, all of them
    computed by fastrnn's kernels; the first order in reverse mode by one. vmap over the input goes into the batch, to
    the same bits; over the weights all models go into one call, as those of RNNEnsemble, but for alpha and where masks
    are drawn (one after the other). Where vmap maps over lengths or reset, the steps are torch's own operators, some
    ten a step, instead of a kernel (in compiled code: NotImplementedError).

    Edits in place: the input, hx and all weights, biases too, must not be modified before backward (RuntimeError).
    That is stricter than torch.nn.RNN, which goes on where the gradients asked for do not need the tensor: a bias, or
    the input where weight_hh alone requires grad. The output may be modified; with batch_first it is a view, of which
    output.detach_() raises, as it does not of torch.nn.RNN's. A change of its values behind autograd's back
    (output.data, output.numpy()) is not noticed. Nor may parameters get other memory before backward (Module.half(),
    Module.to(), parameter.data = ...): RuntimeError, where torch.nn.RNN goes on with the old values.

    Memory: output, which is also all that backward needs of the forward pass (in compiled code that records, a copy of
    it, since the output may be modified); parameters and input are read where they are (halves: copies in float32, kept
    for backward). resize_ cannot enlarge results, except those of plain calls by the compiled node (`fastrnn
    torch-node`). Memory of large results is kept for the next ones (FASTRNN_KEPT_MIB).

    torch.compile(fullgraph=True), with dynamic shapes too, torch.export and make_fx take the layer as the operator
    fastrnn::rnn_forward; torch.fx.symbolic_trace keeps it whole; torch.onnx.export makes ONNX's RNN of it. In compiled
    code forward mode and torch.func.grad raise, and so does the second derivative of compiled code, which AOTAutograd
    has not; torch.jit.script raises.
    """

    __signature__ = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
            for name, default in {
                "input_size": inspect.Parameter.empty,
                "hidden_size": inspect.Parameter.empty,
                "num_layers": 1,
                "nonlinearity": "tanh",
                "bias": True,
                "batch_first": False,
                "dropout": 0.0,
                "bidirectional": False,
                "device": None,
                "dtype": None,
            }.items()
        ]
        + [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=0.0) for name in Rates._fields]
        + [inspect.Parameter("alpha", inspect.Parameter.KEYWORD_ONLY, default=None)]
    )
    _rates: Rates | None = None  # of the class: for layers pickled or made by torch before there were any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        rates = {name: kwargs.pop(name) for name in Rates._fields if name in kwargs}
        alpha = kwargs.pop("alpha", None)
        args, rest = args[:3], args[3:]
        self.nonlinearity = rest[0] if rest else kwargs.pop("nonlinearity", "tanh")
        mode = _MODES.get(self.nonlinearity)
        if mode is None:
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(mode, *args, *rest[1:], **kwargs)
        for name, rate in rates.items():
            setattr(self, name, rate)
        leak.register(self, alpha, cast(Tensor, self.weight_hh_l0))

    def reset_parameters(self) -> None:
        """Draws the parameters anew, as torch.nn.RNN does; alpha is the constructor's number again, if it was one."""
        super().reset_parameters()
        leak.refill(self)

    def _apply(self, fn: Any, recurse: bool = True) -> RNN:
        return cast(RNN, leak.applied(self, super()._apply, fn, recurse))

    recurrent_dropout = property(*_rate("recurrent_dropout"))
    input_dropout = property(*_rate("input_dropout"))
    zoneout = property(*_rate("zoneout"))

    def extra_repr(self) -> str:
        rates = {} if self._rates is None else self._rates.named
        own = "".join(f", {name}={rate}" for name, rate in rates.items())
        return f"{super().extra_repr()}{own}{leak.shown(self)}"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_all_layers: bool = False,
        checkpoint_every: int | Literal["auto"] | None = None,
    ) -> Any:
        """output, h_n, as torch.nn.RNN gives them; output, h_n, layers with return_all_layers.

        Arguments:
            input: (T, B, I), (B, T, I) if batch_first, one sequence (T, I), or a PackedSequence; any strides.
            hx: (L * D, B, H), or (L * D, H) for one sequence; None for zeros.
            lengths: (B) int32 or int64 in 0..T, in any order, on any device: row b ends after lengths[b] steps. Its
                output is 0 from there on, h_n its state at its own end (hx for length 0), the reverse direction starts
                there, and the input beyond is never read.
            reset: (T, B) bool, (B, T) if batch_first, (T) for one sequence, on any device. True: the state that enters
                step t is 0, in each layer and direction.
            return_all_layers: True also returns every layer's states.
            checkpoint_every: backward computes the states again, one more forward pass, in chunks of so many steps
                (rounded up to a multiple of 256 / B, so that no bit of the gradients changes with "cpp"), or of sqrt(T)
                with "auto". Kept for backward are the input and the states at the chunks' ends, not the output, nor
                what is between layers (with two directions that is). An output that is held, and its gradient, take
                their memory all the same: reduce holds neither. dropout and zoneout draw other masks than without it.

        Returns:
            output (T, B, D * H), a view (B, T, D * H) if batch_first, (T, D * H), or a PackedSequence; h_n (L * D, B,
            H) or (L * D, H); layers, a tuple of L, each as output and before dropout: the last is output itself.

        Raises what torch.nn.RNN raises for input and hx. For lengths and reset: TypeError for a wrong kind or dtype,
        ValueError for a wrong shape or value, and beside a PackedSequence. NotImplementedError where torch.nn.RNN
        computes, which has neither, nor the probabilities above, nor return_all_layers and checkpoint_every; the last
        has no second derivative and no forward mode, and is refused beside a PackedSequence and return_all_layers.
        """
        if torch.compiler.is_compiling():
            return operators.run(self, input, hx, lengths, reset, return_all_layers, checkpoint_every)
        return self._run(input, hx, lengths, reset, return_all_layers, checkpoint_every)

    def reduce(
        self,
        function: Callable[[Tensor, int, int], Tensor] | None,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        checkpoint_every: int | Literal["auto"] = "auto",
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """total, h_n: the sum of what function makes of the output, chunk by chunk, without ever holding the output.

            total, h_n = rnn.reduce(lambda h, begin, end: loss(decoder(h), target[begin:end]), x)
            total.backward()

        Training over T steps takes the memory of the input, of the states in front of each chunk and of one chunk:
        2 sqrt(T) states with "auto", where BPTT holds T. backward computes each chunk's states and function again: one
        more forward pass. With "cpp" the gradients are the bits of those of forward for the same gradient of output.

        Arguments:
            function: of a chunk of the output, (n, B, H), (B, n, H) if batch_first, (n, H) for one sequence, and of
                begin and end, its steps; returns a tensor, of one shape for all chunks. Gradients go to all that it
                reads and that requires grad, which is what it reads for the first chunk (RuntimeError in backward for
                another). What it draws from torch's generator on the CPU it draws again. The chunk is a copy, which it
                may edit. None: total is None, and h_n is what the loss is made of.
            input, hx, lengths, reset: as for forward, but no PackedSequence.
            checkpoint_every: the steps of a chunk, as for forward. The first chunk is the shorter one; with lengths
                function sees steps up to the end of the longest row: where all lengths are 0, one chunk of no steps.

        Raises as forward; ValueError for two directions; NotImplementedError in compiled code, in forward mode, under
        torch.func's transforms, and where torch.nn.RNN computes; RuntimeError for a second derivative.
        """
        return reduce.reduce(self, function, input, hx, checkpoint_every, lengths, reset)

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        return_all_layers: bool,
        checkpoint_every: Any,
    ) -> Any:
        own = _settings(self.__dict__)
        mode, _, _, L, _, batch_first, _, bidirectional, _, parameters, names = own
        packed = input if isinstance(input, PackedSequence) else None
        x: Any = input if packed is None else packed.data
        if isinstance(x, Proxy):
            how = {"return_all_layers": return_all_layers or None, "checkpoint_every": checkpoint_every}
            return operators.as_leaf(self, x, hx, lengths=lengths, reset=reset, **how)
        cpu = getattr(x, "is_cpu", True)
        functions = dispatch.backend() if cpu else dispatch.backend(dispatch.kind(x))
        why = functions if isinstance(functions, str) else dispatch.surroundings()
        transformed = dispatch.transformed()
        if why is None and not cpu:
            more = self.__dict__.get("_rates") or checkpoint_every is not None or leak.of(self, RNN) is not None
            why = dispatch.unfit(transformed, bool(more))
        if why is not None:
            return self._run_stock(input, hx, lengths, reset, return_all_layers, checkpoint_every, why)
        if checkpoint_every is not None or (transformed and dispatch.watched()):
            return operators.run(self, input, hx, lengths, reset, return_all_layers, checkpoint_every)
        try:
            weights = list(map(parameters.__getitem__, names))
        except KeyError:  # a parametrization or the like makes them, as often as torch.nn.RNN has them made
            self._update_flat_weights()
            weights = self._flat_weights
        accepted, result = dispatch.eager_arithmetic(getattr(x, "dtype", None), "cpu" if cpu else dispatch.kind(x))
        alpha = leak.of(self, RNN)
        if not _fits(own, x, packed, hx, weights, alpha, accepted):  # torch.nn.RNN says what is wrong, or takes it
            why = dispatch.about([x, hx, *weights, alpha])
            return self._run_stock(input, hx, lengths, reset, return_all_layers, None, why)
        if alpha is not None:
            weights = leak.beside(weights, L * (1 + bool(bidirectional)), alpha)

        half = result in dispatch.HALVES
        if half:
            x, hx, weights = x.float(), hx if hx is None else hx.float(), [w.float() for w in weights]
        options = _OPTIONS[mode, bool(bidirectional)]
        single = packed is None and x.dim() == 2
        if packed is not None:
            for name, value in (("lengths", lengths), ("reset", reset)):
                if value is not None:
                    raise ValueError(f"{name}: expected None beside a PackedSequence, got {type(value).__name__}")
            sizes = _validate.packed_sizes(packed.batch_sizes, cast(Array, x))
            options = tuple([RnnOptions(o.nonlinearity, o.reverse, batch_sizes=sizes) for o in options])
            hx = hx if hx is None else self.permute_hidden(hx, packed.sorted_indices)
        else:
            if single:
                x, hx = x.unsqueeze(1), hx if hx is None else hx.unsqueeze(1)
            elif batch_first:
                x = x.transpose(0, 1)
            if lengths is not None or reset is not None:
                dims = "T" if single else "BT" if batch_first else "TB"
                ends = None if lengths is None else _lengths(lengths, x, single)
                restarts = None if reset is None else _reset(reset, x, dims)
                options = tuple([RnnOptions(o.nonlinearity, o.reverse, ends, reset=restarts) for o in options])

        outputs, h_n = _run_layers(own, x, hx, options, weights, transformed, self.__dict__.get("_rates"))
        if half:
            outputs, h_n = [output.to(result) for output in outputs], h_n.to(result)
        made: list[Any] = outputs if return_all_layers else outputs[-1:]
        if packed is not None:
            made = [PackedSequence(output, *packed[1:]) for output in made]
            h_n = self.permute_hidden(h_n, packed.unsorted_indices)
        elif single:
            made, h_n = [output.squeeze(1) for output in made], h_n.squeeze(1)
        elif batch_first:
            made = [output.transpose(0, 1) for output in made]
        return (made[-1], h_n, tuple(made)) if return_all_layers else (made[0], h_n)

    def _run_stock(
        self, input: Any, hx: Any, lengths: Any, reset: Any, all_layers: bool, every: Any, why: str
    ) -> tuple[Any, Tensor]:
        """torch.nn.RNN's forward, which raises its own errors before anything is said of speed."""
        result = cast("tuple[Any, Tensor]", torch.nn.RNN.forward(cast(torch.nn.RNN, self), input, hx))
        stack.refuse_beside_stock(self, lengths, reset, all_layers, every, why or "FASTRNN_DISABLE=1")
        dispatch.say_once(why)
        return result


# What one call reads of the layer, at once: a single attribute of a torch.nn.Module takes long to read.
_settings = itemgetter(
    *("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"),
    *("training", "_parameters", "_flat_weights_names"),
)


def _fits(
    own: tuple[Any, ...],
    x: Any,
    packed: PackedSequence | None,
    hx: Any,
    weights: list[Any],
    alpha: Any,
    accepted: tuple[torch.dtype, ...],
) -> bool:
    """True where the kernels can take it all: a few cheap comparisons."""
    plain = dispatch.PLAIN
    if type(x) not in plain or x.dtype not in accepted or x.layout is not torch.strided:
        return False
    cpu = x.is_cpu
    mode, I, H, L, bias, batch_first, _, bidirectional, *_ = own
    shape, D = x.shape, 2 if bidirectional else 1
    single = len(shape) == 2
    time = 1 if batch_first and not single else 0
    if not (single or (len(shape) == 3 and packed is None)):
        return False
    if shape[-1] != I or shape[time] == 0 or mode not in _NAMES:
        return False
    if hx is not None:
        states = [L * D, H]
        if not single:
            states.insert(1, shape[1 - time])
        elif packed is not None and len(packed.batch_sizes):
            states.insert(1, int(packed.batch_sizes[0]))
        if (
            type(hx) not in plain
            or hx.dtype not in accepted
            or not (hx.is_cpu if cpu else hx.device == x.device)
            or hx.layout is not torch.strided
            or list(hx.shape) != states
        ):
            return False
    shapes = _shapes(I, H, L, D, bool(bias))
    if len(weights) != len(shapes):
        return False
    for w, wanted in zip(weights, shapes, strict=True):
        if type(w) not in plain or w.dtype not in accepted or w.shape != wanted:
            return False
        if not (w.is_cpu if cpu else w.device == x.device):
            return False
    return alpha is None or leak.fits(alpha, H, accepted, plain)


@lru_cache
def _shapes(I: int, H: int, L: int, D: int, bias: bool) -> list[torch.Size]:
    """Of the weights, of each layer and direction in turn."""
    shapes = [((H, D * H if layer else I), (H, H), *[(H,), (H,)] * bias) for layer in range(L) for _ in range(D)]
    return [torch.Size(shape) for one in shapes for shape in one]


def _run_layers(
    own: tuple[Any, ...],
    x: Tensor,
    hx: Tensor | None,
    options: tuple[RnnOptions, ...],
    weights: list[Tensor],
    transformed: bool,
    rates: Rates | None,
) -> tuple[list[Tensor], Tensor]:
    """Each layer's output (T, B, D * H) or (N, D * H), h_n."""
    differentiate = torch.is_grad_enabled() and (
        x.requires_grad or (hx is not None and hx.requires_grad) or any(w.requires_grad for w in weights)
    )
    run = derivatives.rnn_layer if transformed else autograd.recorded if differentiate else autograd.unrecorded
    _, _, _, L, _, _, dropout, _, training, _, _ = own
    rates = rates if rates is None else rates.acting(training)
    if L == 1 and rates is None:
        output, h_n = run(x, hx, options, *weights)
        return [output], h_n

    def compute(
        x: Tensor, h_0: Tensor | None, weights: Sequence[Tensor], recurrent: Tensor | None, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        own = stack.masked(options, recurrent, keep, arrays=not transformed)
        return run(x, h_0, own, *weights)

    sizes = options[0].batch_sizes
    B = x.shape[1] if sizes is None else int(sizes[0]) if len(sizes) else 0
    rows = None if sizes is None else torch.as_tensor(sizes)
    plan = stack.Plan(L, len(options), dropout if training else 0.0, rates, training, B, rows)
    return stack.run(compute, plan, x, hx, weights)


def _lengths(value: Any, x: Tensor, single: bool) -> Any:
    """An array; a tensor where vmap maps over it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"lengths: expected torch.Tensor, got {type(value).__name__}")
    if single:
        raise ValueError(f"lengths: expected None for one sequence (T, I), got shape {tuple(value.shape)}")
    T, B = x.shape[:2]
    if dispatch.mapped(value):
        if tuple(value.shape) != (B,):
            raise ValueError(f"lengths: expected shape (B,) = ({B},), got {tuple(value.shape)}")
        every = dispatch.unwrapped(value)
        with torch._C._DisableFuncTorch():
            _validate.sequence_lengths(every.detach().cpu().reshape(-1), T, every.numel())
        return value.to(x.device)
    with torch._C._DisableFuncTorch():  # a transform would wrap what detach and numpy return
        return _validate.sequence_lengths(value.detach().cpu(), T, B)


def _reset(value: Any, x: Tensor, dims: str) -> Any:
    """A copy (T, B), C-contiguous: backward sees what forward saw; a tensor where vmap maps over it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"reset: expected torch.Tensor, got {type(value).__name__}")
    T, B = x.shape[:2]
    shape = {"T": (T,), "TB": (T, B), "BT": (B, T)}[dims]
    if dispatch.mapped(value):
        if value.dtype is not torch.bool:
            raise TypeError(f"reset: expected dtype bool, got {str(value.dtype).removeprefix('torch.')}")
        if tuple(value.shape) != shape:
            raise ValueError(f"reset: expected shape ({', '.join(dims)}) = {shape}, got {tuple(value.shape)}")
        return value.t().clone() if dims == "BT" else value.reshape(T, B).clone()
    with torch._C._DisableFuncTorch():
        array = _validate.exact("reset", value.detach().cpu(), _validate.BOOL, shape, dims)
    return np.array(array.T if dims == "BT" else array.reshape(T, B), order="C")
