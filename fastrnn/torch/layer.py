"""RNN: torch.nn.RNN, computed by fastrnn."""

from __future__ import annotations

import inspect
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from .. import _validate
from .._backends.options import Array, RnnOptions
from . import autograd, derivatives, dispatch, operators

_MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
_NAMES = {mode: name for name, mode in _MODES.items()}
_OPTIONS = {
    (mode, bidirectional): tuple(RnnOptions(name, reverse) for reverse in (False, True)[: 1 + bidirectional])
    for mode, name in _NAMES.items()
    for bidirectional in (False, True)
}


class RNN(RNNBase):
    """torch.nn.RNN, computed by fastrnn: its arguments, parameters, initial values, state_dict, results and errors.

        h_t = tanh(w_ih x_t + b_ih + b_hh + w_hh h_{t-1})        or relu(...)

    T is time, B the batch, I = input_size, H = hidden_size, L = num_layers, D = 2 if bidirectional, else 1.

    RNN(input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None). Seeded, it draws the initial values, and in training the dropout,
    that torch.nn.RNN draws. It derives from torch.nn.RNNBase; isinstance(layer, torch.nn.RNN) is False.

    float32, float64, bfloat16 and float16 on the CPU, and what autocast makes of them, run on fastrnn's kernels. The
    two halves are computed in float32 from end to end: only the results, and the gradients in the dtype of their
    tensor, are rounded. For other dtypes and devices, inside torch.jit.trace and torch.func.functionalize, and
    where no backend of fastrnn is fast, torch.nn.RNN's own operators compute, which a RuntimeWarning says once for each
    reason. FASTRNN_DISABLE=1 makes it so always, without a warning; it is read once, as FASTRNN_BACKEND is.

    Numerics: those of fastrnn.rnn_forward and rnn_backward. With "cpp" a row of output, h_n and of the gradients of
    input and hx is the same bits whatever the batch around it and the number of threads, which is
    torch.get_num_threads().

    Derivatives: of any order, in reverse and forward mode, under torch.func's transforms and in batches, all of them
    computed by fastrnn's kernels; the first order in reverse mode by one. vmap over the input goes into the batch, to
    the same bits; over the weights it runs one layer after the other; lengths and reset cannot be mapped. The input,
    hx and the weights must not be modified in place before backward (RuntimeError, as with torch.nn.RNN); the output
    may be. A change of its values behind autograd's back (output.data, output.numpy()) is not noticed.

    Memory: output, which is also all that backward needs of the forward pass; parameters and input are read where they
    are (halves: copies in float32, kept for backward). Results lie in memory of NumPy's, which resize_ cannot enlarge.

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
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        args, rest = args[:3], args[3:]
        self.nonlinearity = rest[0] if rest else kwargs.pop("nonlinearity", "tanh")
        mode = _MODES.get(self.nonlinearity)
        if mode is None:
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(mode, *args, *rest[1:], **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """output, h_n, as torch.nn.RNN gives them.

        Arguments:
            input: (T, B, I), (B, T, I) if batch_first, one sequence (T, I), or a PackedSequence; any strides.
            hx: (L * D, B, H), or (L * D, H) for one sequence; None for zeros.
            lengths: (B) int32 or int64 in 0..T, in any order, on any device: row b ends after lengths[b] steps. Its
                output is 0 from there on, h_n its state at its own end (hx for length 0), the reverse direction starts
                there, and the input beyond is never read.
            reset: (T, B) bool, (B, T) if batch_first, (T) for one sequence, on any device. True: the state that enters
                step t is 0, in each layer and direction.

        Returns:
            output (T, B, D * H), a view (B, T, D * H) if batch_first, (T, D * H), or a PackedSequence; h_n (L * D, B,
            H) or (L * D, H).

        Raises what torch.nn.RNN raises for input and hx. For lengths and reset: TypeError for a wrong kind or dtype,
        ValueError for a wrong shape or value, and beside a PackedSequence; NotImplementedError where torch.nn.RNN
        computes, which has neither.
        """
        if torch.compiler.is_compiling():
            return operators.run(self, input, hx, lengths, reset)
        return self._run(input, hx, lengths, reset)

    def _run(
        self, input: Tensor | PackedSequence, hx: Tensor | None, lengths: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        own = _Settings(*_settings(self.__dict__))
        packed = input if isinstance(input, PackedSequence) else None
        x: Any = input if packed is None else packed.data
        if isinstance(x, Proxy):
            return cast("tuple[Tensor, Tensor]", operators.as_leaf(self, x, hx, lengths=lengths, reset=reset))
        functions = dispatch.backend() if getattr(x, "is_cpu", True) else dispatch.backend(x.device.type)
        why = functions if isinstance(functions, str) else dispatch.surroundings()
        if why is not None:
            return self._run_stock(input, hx, lengths, reset, why)
        transformed = dispatch.transformed()
        if transformed and dispatch.watched():
            return operators.run(self, input, hx, lengths, reset)
        try:
            weights = [own.parameters[name] for name in own.names]
        except KeyError:  # a parametrization or the like makes them, as often as torch.nn.RNN has them made
            self._update_flat_weights()
            weights = self._flat_weights
        accepted, result = dispatch.arithmetic(getattr(x, "dtype", None))
        if not _fits(own, x, packed, hx, weights, accepted):  # torch.nn.RNN says what is wrong, or takes it
            return self._run_stock(input, hx, lengths, reset, dispatch.about([x, hx, *weights]))

        half = result in dispatch.HALVES
        if half:
            x, hx, weights = x.float(), hx if hx is None else hx.float(), [w.float() for w in weights]
        options = _OPTIONS[own.mode, bool(own.bidirectional)]
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
            elif own.batch_first:
                x = x.transpose(0, 1)
            if lengths is not None or reset is not None:
                dims = "T" if single else "BT" if own.batch_first else "TB"
                ends = None if lengths is None else _lengths(lengths, x, single)
                restarts = None if reset is None else _reset(reset, x, dims)
                options = tuple([RnnOptions(o.nonlinearity, o.reverse, ends, reset=restarts) for o in options])

        output, h_n = _run_layers(own, x, hx, options, weights, transformed)
        if half:
            output, h_n = output.to(result), h_n.to(result)
        if packed is not None:
            rows = PackedSequence(output, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
            return rows, self.permute_hidden(h_n, packed.unsorted_indices)
        if single:
            return output.squeeze(1), h_n.squeeze(1)
        return output.transpose(0, 1) if own.batch_first else output, h_n

    def _run_stock(self, input: Any, hx: Any, lengths: Any, reset: Any, why: str) -> tuple[Any, Tensor]:
        """torch.nn.RNN's forward, which raises its own errors before anything is said of speed."""
        result = cast("tuple[Any, Tensor]", torch.nn.RNN.forward(cast(torch.nn.RNN, self), input, hx))
        for name, value in (("lengths", lengths), ("reset", reset)):
            if value is not None:
                raise NotImplementedError(
                    f"{name}: expected None where torch.nn.RNN computes ({why or 'FASTRNN_DISABLE=1'}), got "
                    f"{type(value).__name__}"
                )
        dispatch.say_once(why)
        return result


class _Settings(NamedTuple):
    """What one call reads of the layer, at once: a single attribute of a torch.nn.Module takes long to read."""

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    training: bool
    parameters: dict[str, Any]
    names: list[str]


_settings = itemgetter(*_Settings._fields[:-2], "_parameters", "_flat_weights_names")


def _fits(
    own: _Settings,
    x: Any,
    packed: PackedSequence | None,
    hx: Any,
    weights: list[Any],
    accepted: tuple[torch.dtype, ...],
) -> bool:
    """True where the kernels can take it all: a few cheap comparisons."""
    plain = dispatch.PLAIN
    if type(x) not in plain or x.dtype not in accepted or not x.is_cpu or x.layout is not torch.strided:
        return False
    _, I, H, L, bias, batch_first, _, bidirectional, *_ = own
    shape, D = x.shape, 2 if bidirectional else 1
    time, states = 0, [L * D, H]
    if len(shape) == 3 and packed is None:
        time = 1 if batch_first else 0
        states.insert(1, shape[1 - time])
    elif len(shape) != 2:
        return False
    elif packed is not None and len(packed.batch_sizes):
        states.insert(1, int(packed.batch_sizes[0]))
    if shape[-1] != I or shape[time] == 0 or own.mode not in _NAMES:
        return False
    if hx is not None and not (
        type(hx) in plain
        and hx.dtype in accepted
        and hx.is_cpu
        and hx.layout is torch.strided
        and list(hx.shape) == states
    ):
        return False
    shapes = _shapes(I, H, L, D, bool(bias))
    if len(weights) != len(shapes):
        return False
    for w, wanted in zip(weights, shapes, strict=True):
        if type(w) not in plain or w.dtype not in accepted or w.shape != wanted or not w.is_cpu:
            return False
    return True


@lru_cache
def _shapes(I: int, H: int, L: int, D: int, bias: bool) -> list[torch.Size]:
    """Of the weights, of each layer and direction in turn."""
    shapes = [((H, D * H if layer else I), (H, H), *[(H,), (H,)] * bias) for layer in range(L) for _ in range(D)]
    return [torch.Size(shape) for one in shapes for shape in one]


def _run_layers(
    own: _Settings,
    x: Tensor,
    hx: Tensor | None,
    options: tuple[RnnOptions, ...],
    weights: list[Tensor],
    transformed: bool,
) -> tuple[Tensor, Tensor]:
    """output (T, B, D * H) or (N, D * H), h_n. As torch.nn.RNN's, what passes between layers is contiguous and
    time-major, so that a seed draws the same dropout."""
    differentiate = torch.is_grad_enabled() and (
        x.requires_grad or (hx is not None and hx.requires_grad) or any(w.requires_grad for w in weights)
    )
    run = derivatives.rnn_layer if transformed else autograd.apply if differentiate else autograd.rnn_layer
    L = own.num_layers
    if L == 1:
        return run(x, hx, options, *weights)
    h_0s = [None] * L if hx is None else torch.split(hx, len(options))
    dropout, each = own.dropout if own.training else 0.0, len(weights) // L
    states = []
    for layer in range(L):
        if dropout and layer:
            x = torch.dropout(x, dropout, True)
        x, h_n = run(x, h_0s[layer], options, *weights[layer * each : (layer + 1) * each])
        states.append(h_n)
    return x, torch.cat(states)


def _lengths(value: Any, x: Tensor, single: bool) -> Array:
    if not isinstance(value, Tensor):
        raise TypeError(f"lengths: expected torch.Tensor, got {type(value).__name__}")
    if single:
        raise ValueError(f"lengths: expected None for one sequence (T, I), got shape {tuple(value.shape)}")
    with torch._C._DisableFuncTorch():  # a transform would wrap what detach and numpy return
        return _validate.sequence_lengths(value.detach().cpu(), x.shape[0], x.shape[1])


def _reset(value: Any, x: Tensor, dims: str) -> Array:
    """A copy (T, B), C-contiguous: backward sees what forward saw."""
    if not isinstance(value, Tensor):
        raise TypeError(f"reset: expected torch.Tensor, got {type(value).__name__}")
    T, B = x.shape[:2]
    shape = {"T": (T,), "TB": (T, B), "BT": (B, T)}[dims]
    with torch._C._DisableFuncTorch():
        array = _validate.exact("reset", value.detach().cpu(), _validate.BOOL, shape, dims)
    return np.array(array.T if dims == "BT" else array.reshape(T, B), order="C")
