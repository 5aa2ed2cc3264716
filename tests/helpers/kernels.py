"""The kernels under test: the NumPy reference, and the native module on each instruction set, driven alike.

Outputs are handed over full of NaN, so an element that a kernel forgets is seen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .cases import GRADIENTS, NEEDS, Problem

Array = np.ndarray[Any, Any]
ISA_NAMES = ("v4", "v3", "v2", "generic")
FILES = {"cpp": "cpp", "numba": "numba_cpu", "numpy": "reference"}  # backend -> file of fastrnn/_backends


@lru_cache(maxsize=1)
def native() -> Any:
    """The native module, or the ImportError that it raises."""
    try:
        return importlib.import_module("fastrnn._fastrnn_cpu")
    except ImportError as error:
        return error


@lru_cache(maxsize=1)
def known_kernels() -> dict[str, str]:
    """Every kernel id -> "" or the reason why it cannot run here."""
    import fastrnn

    known = {}
    for record in fastrnn.backends():
        if record.device != "cpu":
            continue
        if record.name != "cpp":
            known[record.name] = "" if record.available else str(record.reason)
            continue
        module = native()
        if isinstance(module, ImportError):
            known.update({f"cpp:{name}": str(module) for name in ISA_NAMES})
            continue
        for name, compiled, supported in module.isas():
            reason = "" if supported else "this CPU lacks it"
            known[f"cpp:{name}"] = reason if compiled else "not compiled for this platform"
    return known


def _nans(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.full(shape, np.nan, dtype)


NewArray = Callable[[tuple[int, ...], Any], Array]


@dataclass(frozen=True)
class Gradients:
    d_x: Array | None
    d_h_0: Array | None
    d_w_ih: Array | None
    d_w_hh: Array | None
    d_b: Array | None

    def __iter__(self) -> Any:
        return iter(vars(self).values())


@dataclass(frozen=True)
class LeakyGradients(Gradients):
    d_alpha: Array | None


@dataclass(frozen=True)
class Kernel:
    backend: str
    isa: str | None = None

    @property
    def id(self) -> str:
        return self.backend if self.isa is None else f"{self.backend}:{self.isa}"

    @property
    def is_native(self) -> bool:
        return self.backend == "cpp"

    @property
    def has_own_tanh(self) -> bool:
        return self.backend in ("cpp", "numba")

    @property
    def keeps_subnormals(self) -> bool:
        """The C++ kernels count them as 0."""
        return not self.is_native

    @property
    def torch_ratio(self) -> float:
        """How many times PyTorch's RMS error ours may be: 1.2 is room for noise (two RMS values over a few thousand
        correlated samples). Without FMAs each product rounds too, while PyTorch has them on this machine: 1.35. The
        NumPy backend adds in the order of NumPy's BLAS, which is not ours to choose: 2. So does Numba's where it uses
        BLAS, and its own loops have no FMAs."""
        if not self.is_native:
            return 2.0
        return 1.35 if self.isa in ("v2", "generic") else 1.2

    @property
    def tanh_ulps(self) -> float:
        """Promise 1 for our own; NumPy documents 4 for its own."""
        return 2.0 if self.has_own_tanh else 4.0

    def forward(
        self,
        p: Problem,
        *,
        threads: int | None = None,
        tuning: dict[str, int] | None = None,
        new: NewArray = _nans,
        **native_only: Any,
    ) -> Any:
        """output, h_n. native_only: output (an array to fill) and packed (weights), for cpp, where `new` makes the
        arrays to fill."""
        if not self.is_native:
            module, options = _python_backend(self.backend, p)
            return module.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, options)
        output = native_only.pop("output", None)
        if output is None:
            output = new(p.output_shape, p.w_hh.dtype)
        h_n = new((p.B, p.H), p.w_hh.dtype)
        native().rnn_forward(
            p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, output, h_n,
            isa=self.isa, threads=_threads(threads), tuning=tuning, **native_only, **_native_options(p),
        )  # fmt: skip
        return output, h_n

    def backward(
        self,
        p: Problem,
        output: Array,
        *,
        needs: tuple[str, ...] = (*NEEDS, "alpha"),
        threads: int | None = None,
        tuning: dict[str, int] | None = None,
        new: NewArray = _nans,
    ) -> Gradients:
        if not self.is_native:
            module, options = _python_backend(self.backend, p)
            arguments = (p.d_output, p.d_h_n, output, p.x, p.h_0, p.w_ih, p.w_hh, options, needs, p.b_ih, p.b_hh)
            g = module.rnn_backward(*arguments)
            five = (getattr(g, name) for name in GRADIENTS)
            return Gradients(*five) if p.alpha is None else LeakyGradients(*five, g.d_alpha)
        w_ih_shape = None if p.w_ih is None else p.w_ih.shape
        pairs = zip(NEEDS, (p.x.shape, (p.B, p.H), w_ih_shape, p.w_hh.shape, (p.H,)), strict=True)
        wanted = [None if shape is None or need not in needs else new(shape, p.w_hh.dtype) for need, shape in pairs]
        leak: dict[str, Any] = {}
        if p.alpha is not None:
            d_alpha = new((p.H,), p.w_hh.dtype) if "alpha" in needs else None
            leak = {"b_ih": p.b_ih, "b_hh": p.b_hh, "d_alpha": d_alpha}
        native().rnn_backward(
            p.d_output, p.d_h_n, output, p.x, p.h_0, p.w_ih, p.w_hh, *wanted,
            isa=self.isa, threads=_threads(threads), tuning=tuning, **leak, **_native_options(p),
        )  # fmt: skip
        return LeakyGradients(*wanted, leak["d_alpha"]) if leak else Gradients(*wanted)

    def tanh(self, x: Array) -> Array:
        out = _nans(x.shape, x.dtype)
        if self.backend == "numba":
            _numba_tanh()(x, out)
            return out
        native().tanh(x, out, isa=self.isa)
        return out


@lru_cache(maxsize=1)
def _numba_tanh() -> Any:
    """The tanh of the numba kernels in a loop of its own."""
    import numba

    tanh = importlib.import_module("fastrnn._backends.numba_kernels")._tanh

    @numba.njit(error_model="numpy")
    def loop(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = tanh(x[i])

    return loop


def _threads(given: int | None) -> int:
    if given is not None:
        return given
    import fastrnn

    return fastrnn.get_num_threads()


def _python_backend(name: str, p: Problem) -> tuple[Any, Any]:
    from fastrnn._backends import get
    from fastrnn._backends.options import RnnOptions

    return get(name), RnnOptions(**p.options())


def _native_options(p: Problem) -> dict[str, Any]:
    """The options as the native module takes them: masks C-contiguous."""
    options = p.options()
    for name in ("reset", "recurrent_mask", "keep_mask"):
        if options[name] is not None:
            options[name] = np.ascontiguousarray(options[name])
    options["relu"] = options.pop("nonlinearity") == "relu"
    return options


def d_z_of(kernel: Kernel, p: Problem, output: Array, **how: Any) -> Array:
    """The kernel's own gradient at the activation's argument: d_x where w_ih is the identity (each sum is exact). Where
    BPTT computes the activations again, for alpha, x and w_ih stay, and inputs of 0 are added."""
    H = p.H
    x, w_ih = np.zeros((*p.x.shape[:-1], H), p.x.dtype), np.eye(H, dtype=p.x.dtype)
    if p.alpha is not None:
        x, w_ih = np.concatenate([p.x, x], axis=-1), np.concatenate([p.w_ih, w_ih], axis=1)
    d_x = kernel.backward(p.but(x=x, w_ih=w_ih), output, needs=("x",), **how).d_x
    assert d_x is not None
    return d_x[..., -H:]
