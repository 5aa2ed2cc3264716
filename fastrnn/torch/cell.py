"""RNNCell: torch.nn.RNNCell, computed by fastrnn."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.modules.rnn import RNNCellBase

from .._backends.options import NONLINEARITIES, RnnOptions
from . import autograd, derivatives, dispatch, operators


@lru_cache
def _options(nonlinearity: str, B: int) -> tuple[RnnOptions]:
    """One packed step of B rows: then neither input nor state needs an axis of time, and the state is no view, which
    detach_() would refuse."""
    return (RnnOptions(nonlinearity, batch_sizes=np.array([B] if B else [], np.int64)),)


class RNNCell(RNNCellBase):
    """torch.nn.RNNCell, computed by fastrnn: its arguments, parameters, initial values, state_dict, results and errors.

        h' = tanh(weight_ih x + bias_ih + bias_hh + weight_hh h)        or relu(...)

    It derives from torch.nn.RNNCellBase; isinstance(cell, torch.nn.RNNCell) is False. B is the batch, I = input_size,
    H = hidden_size.

    Arguments:
        input_size, hidden_size: I and H.
        bias: False leaves out bias_ih and bias_hh.
        nonlinearity: "tanh" or "relu"; the attribute may be changed later, as torch.nn.RNNCell's.
        device, dtype: of the parameters. float32, float64, bfloat16 and float16 on the CPU, and what autocast makes of
            them, run on fastrnn's kernels, the latter two computed in float32; for others, and in compiled code,
            torch.nn.RNNCell's own operators compute, as they do for fastrnn.torch.RNN, and with the same words.

    As torch.nn.RNNCell's, the constructor checks nothing.

    Numerics, derivatives, edits in place and threads: those of one step of fastrnn.torch.RNN, to the bit. The new state
    is also what backward keeps of the forward pass: a loop holds each state once.
    """

    __constants__ = torch.nn.RNNCell.__constants__
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The state after one step, as torch.nn.RNNCell gives it.

        Arguments:
            input: (B, I), or (I) for one row; any strides.
            hx: (B, H), or (H) for one row; None for zeros. It is not broadcast.

        Returns (B, H) or (H). Raises what torch.nn.RNNCell raises.
        """
        if torch.compiler.is_compiling():
            return torch.nn.RNNCell.forward(cast(torch.nn.RNNCell, self), input, hx)
        own = self.__dict__
        if isinstance(cast(Any, input), Proxy):
            return cast(Tensor, operators.as_leaf(self, input, hx))
        functions = dispatch.backend() if getattr(input, "is_cpu", True) else dispatch.backend(input.device.type)
        why = functions if isinstance(functions, str) else dispatch.surroundings()
        if why is not None:
            return self._run_stock(input, hx, why)
        transformed = dispatch.transformed()
        if transformed and dispatch.watched():  # as in compiled code
            return torch.nn.RNNCell.forward(cast(torch.nn.RNNCell, self), input, hx)
        parameters = own["_parameters"]
        try:
            weights = [parameters["weight_ih"], parameters["weight_hh"], parameters["bias_ih"], parameters["bias_hh"]]
        except KeyError:  # a parametrization or the like makes them
            weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        if weights[3] is None and weights[2] is None:
            del weights[2:]
        accepted, result = dispatch.arithmetic(getattr(input, "dtype", None))
        nonlinearity = own["nonlinearity"]
        if nonlinearity not in NONLINEARITIES or not _fits(
            input, hx, weights, accepted
        ):  # torch says what is wrong, or takes it
            return self._run_stock(input, hx, dispatch.about([input, hx, *weights]))

        differentiate = torch.is_grad_enabled() and (
            input.requires_grad or (hx is not None and hx.requires_grad) or any(w.requires_grad for w in weights)
        )
        half = result in dispatch.HALVES
        if not (differentiate or half or transformed):
            state = _state(functions, input, hx, nonlinearity, *weights)
            if state is not None:
                return state

        x, h = input, hx
        if half:
            x, h, weights = x.float(), h if h is None else h.float(), [w.float() for w in weights]
        single = input.dim() == 1
        if single:
            x, h = x.unsqueeze(0), h if h is None else h.unsqueeze(0)
        if h is not None:
            h = h.unsqueeze(0)  # one layer
        run = derivatives.rnn_layer if transformed else autograd.apply if differentiate else autograd.rnn_layer
        state, _ = run(x, h, _options(nonlinearity, x.shape[0]), *weights)
        if half:
            state = state.to(result)
        return state.squeeze(0) if single else state

    def _run_stock(self, input: Any, hx: Any, why: str) -> Tensor:
        """torch.nn.RNNCell's forward, which raises its own errors before anything is said of speed."""
        state = torch.nn.RNNCell.forward(cast(torch.nn.RNNCell, self), input, hx)
        dispatch.say_once(why, "RNNCell")
        return state


def _state(
    functions: Any,
    input: Tensor,
    hx: Tensor | None,
    nonlinearity: str,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor | None:
    """The state after one step by a call that takes dense tensors as they are; None: not possible."""
    run = getattr(functions, "forward_tensors", None)
    if run is None:
        return None
    *rows, I = input.shape
    B, H = rows[0] if rows else 1, w_hh.shape[0]
    relu, wide = nonlinearity == "relu", input.dtype is torch.float64
    arrays = run(input, hx, w_ih, w_hh, b_ih, b_hh, 1, B, I, H, wide, relu, False, torch.get_num_threads())
    if arrays is None:
        return None
    state = torch.from_numpy(arrays[1][0])
    return state if rows else state.squeeze(0)


def _fits(x: Any, hx: Any, weights: list[Any], accepted: tuple[torch.dtype, ...]) -> bool:
    """True where the kernels can take it all. As for torch.nn.RNNCell, the weights say what the sizes are."""
    plain = dispatch.PLAIN
    for tensor in (x, *weights) if hx is None else (x, hx, *weights):
        if type(tensor) not in plain or tensor.dtype not in accepted or not tensor.is_cpu:
            return False
    if x.layout is not torch.strided or (hx is not None and hx.layout is not torch.strided):
        return False
    shape = weights[0].shape
    if len(shape) != 2 or shape[0] == 0:
        return False
    H, I = shape
    rows = x.shape[:-1]
    return (
        len(rows) < 2
        and len(x.shape) > 0
        and x.shape[-1] == I
        and (hx is None or hx.shape == (*rows, H))
        and weights[1].shape == (H, H)
        and all(b.shape == (H,) for b in weights[2:])
    )
