"""The arms: ways to compute one problem. The backends of this package, torch.nn.RNN and fastrnn.torch.RNN; other
libraries are in peers/.

forward: x, h_0 and the weights -> output, h_n, keeping nothing. training: the same, and from d_output and d_h_n the
gradients of x, h_0 and all weights, anew in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

import fastrnn

from .._backends.options import Array
from .shapes import Shape

TORCH = "torch.nn.RNN"
FASTRNN_TORCH = "fastrnn.torch.RNN"
OPS = ("forward", "training")
RESULTS = ("output", "h_n", "d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")


@dataclass(frozen=True)
class Problem:
    """One layer, one direction; arrays as rnn_forward and rnn_backward take them."""

    shape: Shape
    x: Array
    h_0: Array
    w_ih: Array
    w_hh: Array
    b_ih: Array
    b_hh: Array
    d_output: Array
    d_h_n: Array

    @classmethod
    def draw(cls, shape: Shape, dtype: str = "float32", seed: int = 0) -> Problem:
        """Normal sequences, states and gradients; weights that keep the states in tanh's curve and stable.

        All values are float32's, in float64 too: problems of both dtypes are the same.
        """
        B, T, I, H = shape
        rng = np.random.default_rng([seed, *shape])

        def normal(*sizes: int, scale: float = 1.0) -> Array:
            drawn = rng.standard_normal(sizes, np.float32)
            drawn *= np.float32(scale)
            return drawn.astype(dtype, copy=False)

        return cls(
            shape, normal(T, B, I), normal(B, H, scale=0.5), normal(H, I, scale=I**-0.5),
            normal(H, H, scale=0.5 * H**-0.5), normal(H, scale=0.1), normal(H, scale=0.1),
            normal(T, B, H), normal(B, H),
        )  # fmt: skip

    @property
    def arrays(self) -> dict[str, Array]:
        return {name: value for name, value in vars(self).items() if name != "shape"}

    def copy(self) -> Problem:
        return Problem(self.shape, **{name: array.copy() for name, array in self.arrays.items()})

    def astype(self, dtype: str) -> Problem:
        return Problem(self.shape, **{name: array.astype(dtype) for name, array in self.arrays.items()})


@dataclass(frozen=True)
class Arm:
    """training returns what RESULTS names, forward the first two, as arrays or what np.asarray takes; or what `unpack`
    makes that of, off the clock.
    """

    name: str
    forward: Callable[[], Any]
    training: Callable[[], Any] | None  # None: it has no gradients
    spins: bool = False  # leaves threads that keep a core busy for some milliseconds after a call
    unpack: Callable[[Any], Any] = tuple
    held: int = 0  # bytes that a training step needs and that were allocated before it

    @property
    def ops(self) -> tuple[str, ...]:
        return OPS if self.training else OPS[:1]

    def results(self, op: str) -> Any:
        return self.unpack(getattr(self, op)())


Maker = Callable[[Problem], Arm]


class UnavailableError(Exception):
    """The arm cannot run here; says how to get it."""


class ArmError(RuntimeError):
    """Another library's failure, in the process that runs it; the others go on without it."""


def backend_arm(backend: str, p: Problem) -> Arm:
    """rnn_forward and rnn_backward of one backend."""
    weights = (p.w_ih, p.w_hh)

    def forward() -> Any:
        return fastrnn.rnn_forward(p.x, p.h_0, *weights, p.b_ih, p.b_hh, backend=backend)

    def training() -> Any:
        output, h_n = forward()
        gradients = fastrnn.rnn_backward(p.d_output, p.d_h_n, output, p.x, p.h_0, *weights, backend=backend)
        return (output, h_n, *gradients)

    return Arm(backend, forward, training, spins=backend in ("numpy", "numba"))  # NumPy's BLAS


def torch_arm(name: str, p: Problem) -> Arm:
    """torch.nn.RNN or fastrnn.torch.RNN; the gradients through torch.autograd.grad."""
    torch = torch_module()
    t = {key: torch.from_numpy(array) for key, array in p.arrays.items()}
    layer = _torch_layer(name)(p.shape.I, p.shape.H, dtype=t["x"].dtype)
    parameters = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    values = (t["w_ih"], t["w_hh"], t["b_ih"], t["b_hh"])
    layer.load_state_dict(dict(zip(parameters, values, strict=True)))
    x, h_0 = t["x"].clone().requires_grad_(), t["h_0"][None].clone().requires_grad_()
    leaves = [x, h_0, *(getattr(layer, parameter) for parameter in parameters)]
    upstream = (t["d_output"], t["d_h_n"][None])

    def forward() -> Any:
        with torch.no_grad():
            output, h_n = layer(x, h_0)
        return output, h_n[0]

    def training() -> Any:
        output, h_n = layer(x, h_0)
        d_x, d_h_0, d_w_ih, d_w_hh, d_b, _ = torch.autograd.grad((output, h_n), leaves, upstream)
        return output.detach(), h_n[0].detach(), d_x, d_h_0[0], d_w_ih, d_w_hh, d_b

    return Arm(name, forward, training, spins=True)


def maker(name: str) -> Maker:
    """The maker of the arm `name`: a backend's name, TORCH or FASTRNN_TORCH. Raises UnavailableError."""
    if name in (TORCH, FASTRNN_TORCH):
        _torch_layer(name)
        return lambda p: torch_arm(name, p)
    for backend in fastrnn.backends():
        if backend.name == name and backend.device == "cpu":
            if not backend.available:
                raise UnavailableError(backend.reason)
            return lambda p: backend_arm(name, p)
    raise UnavailableError(f"there is no CPU backend {name!r}")


def known_arms() -> list[str]:
    """Every arm this module makes, the fastest backend first, available or not."""
    return [b.name for b in fastrnn.backends() if b.device == "cpu"] + [FASTRNN_TORCH, TORCH]


@contextmanager
def equal_threads(threads: int) -> Iterator[None]:
    """Every arm gets this number of threads: the package's own, NumPy's BLAS and torch."""
    with ExitStack() as stack:
        stack.enter_context(fastrnn.threads(threads))
        stack.enter_context(import_module("threadpoolctl").threadpool_limits(threads, "blas"))
        try:
            torch = torch_module()
        except UnavailableError:
            pass
        else:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        yield


def torch_module() -> Any:
    """torch. Raises UnavailableError."""
    try:
        return import_module("torch")
    except ImportError as error:
        raise UnavailableError(f"PyTorch is not installed ({error}): pip install torch") from error


def _torch_layer(name: str) -> Any:
    torch = torch_module()
    if name == TORCH:
        return torch.nn.RNN
    try:
        return import_module("fastrnn.torch").RNN
    except ModuleNotFoundError as error:
        if error.name != "fastrnn.torch":
            raise
        raise UnavailableError("this version of fastrnn has no fastrnn.torch") from error
