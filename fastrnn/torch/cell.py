"""RNNCell: torch.nn.RNNCell, computed by fastrnn."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.fx import Proxy
from torch.nn.modules.rnn import RNNCellBase

from .._backends.options import NONLINEARITIES, RnnOptions
from . import autograd, derivatives, dispatch, leak, node, operators


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
        device, dtype: of the parameters. float32, float64, bfloat16 and float16, and what autocast makes of
            them, run on fastrnn's kernels, the latter two computed in float32; for others, and in compiled code,
            torch.nn.RNNCell's own operators compute, as they do for fastrnn.torch.RNN, and with the same words.
        alpha: leaky units, h' = (1 - alpha) h + alpha tanh(...): as for fastrnn.torch.RNN.

    As torch.nn.RNNCell's, the constructor checks nothing but alpha.

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
        *,
        alpha: float | Tensor | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity
        leak.register(self, alpha, self.weight_hh)

    def reset_parameters(self) -> None:
        """Draws the parameters anew, as torch.nn.RNNCell does; alpha as fastrnn.torch.RNN's."""
        super().reset_parameters()
        leak.refill(self)

    def _apply(self, fn: Any, recurse: bool = True) -> RNNCell:
        return cast(RNNCell, leak.applied(self, super()._apply, fn, recurse))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}{leak.shown(self)}"

    def forward(self, input: Tensor, hx: Tensor | None = None, *, reset: Tensor | None = None) -> Tensor:
        """The state after one step, as torch.nn.RNNCell gives it.

        Arguments:
            input: (B, I), or (I) for one row; any strides.
            hx: (B, H), or (H) for one row; None for zeros. It is not broadcast.
            reset: (B) bool, () for one row, on any device. True: the row's state that enters the step is 0, whatever hx
                holds, and its gradient is 0. vmap may map over it.

        Returns (B, H) or (H). Raises what torch.nn.RNNCell raises; for reset TypeError for a wrong kind or dtype,
        ValueError for a wrong shape.
        """
        if isinstance(cast(Any, input), Proxy):
            return cast(Tensor, operators.as_leaf(self, input, hx, reset=reset))
        if reset is not None:
            hx = _restarted(input, hx, reset)
        if torch.compiler.is_compiling():
            return self._of_torch(input, hx)
        own = self.__dict__
        cpu = getattr(input, "is_cpu", True)
        functions = dispatch.backend() if cpu else dispatch.backend(dispatch.kind(input))
        why = functions if isinstance(functions, str) else dispatch.surroundings()
        if why is not None:
            return self._run_stock(input, hx, why)
        transformed = dispatch.transformed()
        if not cpu and (why := dispatch.unfit(transformed, leak.of(self, RNNCell) is not None)):
            return self._run_stock(input, hx, why)
        if transformed and dispatch.watched():  # as in compiled code
            return self._of_torch(input, hx)
        parameters = own["_parameters"]
        try:
            weights = [parameters["weight_ih"], parameters["weight_hh"], parameters["bias_ih"], parameters["bias_hh"]]
        except KeyError:  # a parametrization or the like makes them
            weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        if weights[3] is None and weights[2] is None:
            del weights[2:]
        accepted, result = dispatch.eager_arithmetic(
            getattr(input, "dtype", None), "cpu" if cpu else dispatch.kind(input)
        )
        nonlinearity = own["nonlinearity"]
        alpha = leak.of(self, RNNCell)
        if nonlinearity not in NONLINEARITIES or not _fits(
            input, hx, weights, alpha, accepted
        ):  # torch says what is wrong, or takes it
            return self._run_stock(input, hx, dispatch.about([input, hx, *weights, alpha]))
        if alpha is not None:
            weights = leak.beside(weights, 1, alpha)

        half = result in dispatch.HALVES
        plain = alpha is None and not (half or transformed)
        if plain and (compiled := node.of(functions)) is not None:
            made = compiled.step(nonlinearity == "relu", input, hx, *weights)
            if made is not None:
                return cast(Tensor, made)
        differentiate = torch.is_grad_enabled() and (
            input.requires_grad or (hx is not None and hx.requires_grad) or any(w.requires_grad for w in weights)
        )
        if plain and not differentiate:
            state = _state(functions, input, hx, nonlinearity, *weights)
            if state is not None:
                return state

        if plain and differentiate and cpu and input.dim() == 2:
            return cast(Tensor, _record(input, hx, nonlinearity, *weights))

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
        state = self._of_torch(input, hx)
        dispatch.say_once(why, "RNNCell")
        return state

    def _of_torch(self, input: Any, hx: Any) -> Tensor:
        new = torch.nn.RNNCell.forward(cast(torch.nn.RNNCell, self), input, hx)
        alpha: Tensor | None = getattr(self, "alpha", None)
        if alpha is None:
            return new
        return alpha * new if hx is None else (1 - alpha) * hx + alpha * new


def _restarted(input: Any, hx: Any, reset: Any) -> Any:
    """hx with 0 in the rows that start anew, even where it is not finite."""
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset: expected torch.Tensor, got {type(reset).__name__}")
    if reset.dtype is not torch.bool:
        raise TypeError(f"reset: expected torch.bool, got {reset.dtype}")
    if not isinstance(input, Tensor) or input.dim() not in (1, 2):  # torch.nn.RNNCell says what is wrong
        return hx
    rows = input.shape[:-1]
    if reset.shape != rows:
        raise ValueError(
            f"reset: expected shape {'(B,)' if len(rows) else '()'} = {tuple(rows)}, got {tuple(reset.shape)}"
        )
    if not isinstance(hx, Tensor) or hx.shape[:-1] != rows:
        return hx
    return torch.where(reset.to(hx.device).unsqueeze(-1), 0, hx)


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


class Step(Function):
    """autograd.RnnLayer for one step of rows (B, I) and (B, H): without the axis of h_0, whose views take as long as
    the step, and without a second result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor | None, nonlinearity: str, *weights: Tensor) -> Tensor:
        state = _state(dispatch.backend(), x, h, nonlinearity, *weights)
        if state is None:
            state, _ = autograd.rnn_layer(x, _time(h), _options(nonlinearity, x.shape[0]), *weights)
        ctx.nonlinearity = nonlinearity
        autograd.keep(ctx, x, h, weights, state)
        return state

    @staticmethod
    def backward(ctx: Any, d_state: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *weights, state = ctx.saved_tensors
        autograd.check_kept(ctx, x, weights)
        options, needed = _options(ctx.nonlinearity, x.shape[0]), ctx.needs_input_grad
        if ctx.witness._version == ctx.version and not (
            torch.is_grad_enabled()
            or dispatch.transformed()
            or torch.compiler.is_compiling()
            or torch._C._functorch.is_legacy_batchedtensor(d_state)
        ):
            found = autograd.gradients_of_tensors(needed, options[0], None, d_state, state, x, h, *weights[:2])
            if found is not None:
                return found
        kept = SimpleNamespace(
            saved_tensors=(x, _time(h), *weights, state),
            witness=ctx.witness,
            version=ctx.version,
            options=options,
            needs_input_grad=needed,
        )
        d_x, d_h, *others = autograd.RnnLayer.backward(kept, d_state, None)
        return d_x, None if d_h is None else d_h.squeeze(0), *others


_record = cast(Any, super(Function, Step)).apply


def _time(h: Tensor | None) -> Tensor | None:
    return None if h is None else h.unsqueeze(0)


def _fits(x: Any, hx: Any, weights: list[Any], alpha: Any, accepted: tuple[torch.dtype, ...]) -> bool:
    """True where the kernels can take it all. As for torch.nn.RNNCell, the weights say what the sizes are."""
    plain, cpu, first = dispatch.PLAIN, getattr(x, "is_cpu", True), weights[0]
    if type(x) not in plain or type(first) not in plain or x.layout is not torch.strided:
        return False
    shape, sizes = x.shape, first.shape
    if len(sizes) != 2 or sizes[0] == 0 or not 0 < len(shape) < 3 or shape[-1] != sizes[1]:
        return False
    H = sizes[0]
    given = zip((x, *weights), (shape, sizes, (H, H), (H,), (H,)), strict=False)
    for tensor, wanted in given if hx is None else (*given, (hx, (*shape[:-1], H))):
        if type(tensor) not in plain or tensor.dtype not in accepted or tensor.shape != wanted:
            return False
        if not (tensor.is_cpu if cpu else tensor.device == x.device):
            return False
    if hx is not None and hx.layout is not torch.strided:
        return False
    return alpha is None or leak.fits(alpha, H, accepted, plain)
