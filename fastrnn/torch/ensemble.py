"""RNNEnsemble: many RNNs of one shape as one layer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _validate
from .._backends.options import RnnOptions
from . import autograd, derivatives, dispatch, layer, operators
from .layer import RNN

_SETTINGS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")


class RNNEnsemble(torch.nn.Module):
    """M = num_models independent fastrnn.torch.RNN of one shape, computed, forward and BPTT, in one call a layer.

        h_t[m] = tanh(w_ih[m] x_t + b_ih[m] + b_hh[m] + w_hh[m] h_{t-1}[m])        or relu(...)

    T is time, B the batch, I = input_size, H = hidden_size, L = num_layers, D = 2 if bidirectional, else 1.

    Arguments:
        num_models: M.
        The others: those of torch.nn.RNN, for every model alike.

    Parameters: torch.nn.RNN's names, (M, ...) each, as torch.func.stack_module_state stacks them. Seeded, model m is
    drawn as the m-th of M torch.nn.RNN made one after the other. model(m) takes one out, from_models puts some in.

    Numerics: with "cpp" the outputs and gradients of each model are, to the bit, those of fastrnn.torch.RNN with its
    parameters, whatever the number of threads, which is torch.get_num_threads(); threads take whole models. The
    gradient of an input or hx that all models share is torch's sum of theirs. Dropout is drawn for all models at once,
    each layer (M, T, B, D * H): one mask for each model.

    dtypes on the CPU, derivatives of any order, torch.func, torch.compile(fullgraph=True), and what torch.nn.RNN's
    operators compute, one model after the other and with a RuntimeWarning: as for fastrnn.torch.RNN. Other devices than
    the CPU are among the latter.

    Memory: output, which is also all that backward needs of the forward pass; a shared input is not repeated.
    """

    def __init__(
        self,
        num_models: int,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_models = _validate.integer("num_models", num_models, at_least=1)
        self.nonlinearity = nonlinearity
        settings = input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional
        one = RNN(*settings, device="meta", dtype=dtype)  # says what is wrong, draws nothing
        for name in _SETTINGS:
            setattr(self, name, getattr(one, name))
        for name, weight in one.named_parameters():
            empty = torch.empty((num_models, *weight.shape), device=device, dtype=weight.dtype)
            self.register_parameter(name, Parameter(empty))
        self.reset_parameters()

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool

    def reset_parameters(self) -> None:
        """Draws the parameters anew, uniform in +-1 / sqrt(H), one model after the other."""
        bound = 1 / math.sqrt(self.hidden_size)
        with torch.no_grad():
            for m in range(self.num_models):
                for weight in self._weights():
                    weight[m].uniform_(-bound, bound)

    def extra_repr(self) -> str:
        return f"{self.num_models}, {self._one().extra_repr()}"

    @classmethod
    def from_models(cls, models: Sequence[RNN | torch.nn.RNN]) -> RNNEnsemble:
        """The ensemble of these layers, with copies of their parameters; in training mode if the first one is.

        Raises TypeError where one is neither a fastrnn.torch.RNN nor a torch.nn.RNN, ValueError where there is none, or
        one differs from the first in shape, settings, dtype or device, or has alpha, recurrent_dropout, input_dropout
        or zoneout.
        """
        models = list(models)
        if not models:
            raise ValueError("models: expected at least one RNN, got none")
        for at, one in enumerate(models):
            if not isinstance(one, (RNN, torch.nn.RNN)):
                raise TypeError(f"models[{at}]: expected fastrnn.torch.RNN or torch.nn.RNN, got {type(one).__name__}")
            if any(getattr(one, name, None) is not None for name in ("_rates", "alpha")):
                raise ValueError(f"models[{at}]: expected no alpha, and no dropout but that between layers, got {one}")
            if (got := _kind(one)) != (want := _kind(models[0])):
                raise ValueError(f"models[{at}]: expected {want}, as models[0], got {got}")
        first = models[0]
        settings = {name: getattr(first, name) for name in _SETTINGS}
        settings["nonlinearity"] = dispatch.NONLINEARITIES[first.mode]
        made = cls(len(models), **settings, device="meta")
        made.train(first.training)
        for name, _ in list(made.named_parameters()):
            weights = [getattr(one, name) for one in models]
            stacked = torch.stack([weight.detach() for weight in weights])
            made.register_parameter(name, Parameter(stacked, weights[0].requires_grad))
        return made

    def model(self, m: int) -> RNN:
        """Model m, counted from the end if negative, with copies of its parameters. Raises TypeError unless m is an
        integer, IndexError where there is no such model."""
        at = operator.index(m)
        if not -self.num_models <= at < self.num_models:
            raise IndexError(f"m: expected {-self.num_models} to {self.num_models - 1}, got {at}")
        one = self._one()
        one.train(self.training)
        for name, _ in list(one.named_parameters()):
            weight = getattr(self, name)
            setattr(one, name, Parameter(weight[at].detach().clone(), weight.requires_grad))
        return one

    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, lengths: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """output, h_n of all models.

        Arguments:
            input: (T, B, I) for all models, or (M, T, B, I) for each its own; (B, T, I) or (M, B, T, I) if batch_first;
                T > 0; any strides.
            hx: (L * D, B, H) for all models, or (M, L * D, B, H); None for zeros.
            lengths, reset: as fastrnn.torch.RNN's, for all models.

        Returns output (M, T, B, D * H), a view (M, B, T, D * H) if batch_first, and h_n (M, L * D, B, H).

        Raises TypeError for a wrong kind or dtype, or another device than the parameters', or parameters of several
        dtypes; ValueError for a wrong shape or value; NotImplementedError for lengths and reset where torch.nn.RNN
        computes.
        """
        weights = self._weights()
        self._check(input, hx, weights)
        given = [input, *weights] if hx is None else [input, hx, *weights]
        why = self._why_stock(given)
        if why is not None:
            return self._run_stock(input, hx, weights, lengths, reset, why)
        x, h_0 = input, hx
        _, result = dispatch.arithmetic(x.dtype)
        if half := result in dispatch.HALVES:
            x, h_0, weights = x.float(), h_0 if h_0 is None else h_0.float(), [w.float() for w in weights]
        x = x.transpose(-3, -2) if self.batch_first else x
        x = self._of_each(x)
        h_0s: Sequence[Tensor | None] = [None] * self.num_layers
        if h_0 is not None:
            h_0s = torch.split(self._of_each(h_0), 2 if self.bidirectional else 1, 1)
        run, recorded = self._function([x, *weights] if h_0 is None else [x, h_0, *weights], lengths, reset)
        each, states = len(weights) // self.num_layers, []
        for at, state in enumerate(h_0s):
            if at and self.dropout and self.training:
                x = torch.dropout(x, self.dropout, True)
            x, h_n = run(x, state, weights[at * each : (at + 1) * each])
            states.append(h_n)
        h_n = states[0] if len(states) == 1 else torch.cat(states, 1)
        if recorded and not half and torch.is_grad_enabled() and x.requires_grad:
            x = x.clone()  # who edits it does not edit what is saved for backward
        if half:
            x, h_n = x.to(result), h_n.to(result)
        return x.transpose(1, 2) if self.batch_first else x, h_n

    def _one(self) -> RNN:
        """A model without memory."""
        return RNN(**{name: getattr(self, name) for name in ("nonlinearity", *_SETTINGS)}, device="meta")

    def _weights(self) -> list[Any]:
        """In the order of torch.nn.RNN, also where a parametrization or the like makes them."""
        return [getattr(self, name) for name in self._names()]

    def _names(self) -> list[str]:
        ends = [f"l{at}{way}" for at in range(self.num_layers) for way in ("", "_reverse")[: 1 + self.bidirectional]]
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        return [f"{kind}_{end}" for end in ends for kind in kinds]

    def _of_each(self, value: Tensor) -> Tensor:
        """(M, ...): of what has three axes, the same for all models."""
        return value if value.dim() == 4 else value.expand(self.num_models, *value.shape)

    def _check(self, input: Any, hx: Any, weights: list[Any]) -> None:
        weight, (accepted, _) = weights[0], dispatch.arithmetic(getattr(input, "dtype", None))
        M, H, D, each = self.num_models, self.hidden_size, 2 if self.bidirectional else 1, 4 if self.bias else 2
        for at, own in enumerate(weights):
            if own.dtype is not weight.dtype and not (own.dtype in accepted and weight.dtype in accepted):
                names = self._names()
                raise TypeError(f"{names[at]}: expected {weight.dtype}, as {names[0]}, got {own.dtype}")
            if own.device != weight.device:
                names = self._names()
                raise TypeError(f"{names[at]}: expected device {weight.device}, as {names[0]}, got {own.device}")
            width = [self.input_size if at < each * D else D * H] if at % each == 0 else [H] if at % each == 1 else []
            if tuple(own.shape) != (shape := (M, H, *width)):
                raise ValueError(f"{self._names()[at]}: expected shape {shape}, got {tuple(own.shape)}")
        for name, value in (("input", input), ("hx", hx)):
            if value is None and name == "hx":
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}: expected torch.Tensor, got {type(value).__name__}")
            if value.dtype is not weight.dtype and not (value.dtype in accepted and weight.dtype in accepted):
                raise TypeError(f"{name}: expected {weight.dtype}, as the parameters, got {value.dtype}")
            if value.device != weight.device:
                raise TypeError(f"{name}: expected device {weight.device}, as the parameters, got {value.device}")
        shape = tuple(input.shape)
        if len(shape) not in (3, 4) or shape[-1] != self.input_size or (len(shape) == 4 and shape[0] != M):
            rows = "B, T" if self.batch_first else "T, B"
            want = f"({rows}, I) or (M, {rows}, I) with M = {M}, I = {self.input_size}"
            raise ValueError(f"input: expected shape {want}, got {shape}")
        T, B = (shape[-2], shape[-3]) if self.batch_first else (shape[-3], shape[-2])
        if T == 0:
            raise ValueError(f"input: expected at least one time step, got shape {shape}")
        states = (self.num_layers * (2 if self.bidirectional else 1), B, self.hidden_size)
        if hx is not None and tuple(hx.shape) not in (states, (M, *states)):
            raise ValueError(f"hx: expected shape {states} or {(M, *states)}, got {tuple(hx.shape)}")

    def _why_stock(self, given: list[Any]) -> str | None:
        """Why torch.nn.RNN's operators compute, "" where that was asked for; None: they don't."""
        x = given[0]
        if torch.compiler.is_compiling():
            fits = x.device.type == "cpu" and x.dtype in dispatch.FLOATS and not operators.stock_computes()
            return None if fits else ""
        if not x.is_cpu:
            return dispatch.about(given)
        functions = dispatch.backend()
        why = functions if isinstance(functions, str) else dispatch.surroundings()
        plain = dispatch.PLAIN
        if why is None and not all(
            type(t) in plain and t.dtype in dispatch.FLOATS and t.layout is torch.strided for t in given
        ):
            why = dispatch.about(given)
        return why

    def _run_stock(
        self, input: Tensor, hx: Tensor | None, weights: list[Tensor], lengths: Any, reset: Any, why: str
    ) -> tuple[Tensor, Tensor]:
        for name, value in (("lengths", lengths), ("reset", reset)):
            if value is not None:
                raise NotImplementedError(
                    f"{name}: expected None where torch.nn.RNN computes ({why or 'FASTRNN_DISABLE=1'}), got "
                    f"{type(value).__name__}"
                )
        if not torch.compiler.is_compiling():
            dispatch.say_once(why, "RNNEnsemble")
        x = self._of_each(input)
        D, B = 2 if self.bidirectional else 1, x.shape[1 if self.batch_first else 2]
        if hx is None:
            hx = x.new_zeros(self.num_layers * D, B, self.hidden_size)
        h_0 = self._of_each(hx)
        run = cast(Any, torch._VF).rnn_tanh if self.nonlinearity == "tanh" else cast(Any, torch._VF).rnn_relu
        how = bool(self.bias), self.num_layers, self.dropout, self.training, bool(self.bidirectional), self.batch_first
        made = [run(x[m], h_0[m], [w[m] for w in weights], *how) for m in range(self.num_models)]
        return torch.stack([output for output, _ in made]), torch.stack([h_n for _, h_n in made])

    def _function(
        self, given: list[Any], lengths: Any, reset: Any
    ) -> tuple[Callable[[Tensor, Tensor | None, list[Tensor]], tuple[Tensor, Tensor]], bool]:
        """What computes one layer: x (M, T, B, I), h_0 (M, D, B, H) or None, weights -> output, h_n. And whether it is
        an operator of torch's."""
        compiled = torch.compiler.is_compiling()
        transformed = not compiled and dispatch.transformed()
        D = 2 if self.bidirectional else 1
        if compiled or (transformed and dispatch.watched()):
            restarts = reset.transpose(0, 1) if reset is not None and self.batch_first else reset
            how = self.nonlinearity, D == 2, lengths, None, restarts
            return lambda x, h_0, weights: torch.ops.fastrnn.rnn_forward(x, h_0, weights, *how), True
        x = given[0][0]
        ends = None if lengths is None else layer._lengths(lengths, x, False)
        dims = "BT" if self.batch_first else "TB"
        starts = None if reset is None else layer._reset(reset, x, dims)
        options = tuple([RnnOptions(self.nonlinearity, way, ends, reset=starts) for way in (False, True)[:D]])
        differentiate = torch.is_grad_enabled() and any(t.requires_grad for t in given)
        run = derivatives.rnn_layer if transformed else autograd.apply if differentiate else autograd.rnn_layer
        return lambda x, h_0, weights: run(x, h_0, options, *weights), False


def _kind(one: Any) -> str:
    weight, name = one.weight_ih_l0, dispatch.NONLINEARITIES.get(one.mode, one.mode)
    return f"{name} RNN({one.extra_repr()}) of {weight.dtype} on {weight.device}"
