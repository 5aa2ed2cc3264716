"""What RNN and RNNCell share: parameters and their gradients, state_dict, frozen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from . import _backends, _validate
from ._backends.options import Array, RnnOptions
from ._device import moved, placed
from ._validate import exact

Weights: TypeAlias = tuple[Array, Array, Array | None, Array | None]  # w_ih, w_hh, b_ih, b_hh

_freezing = threading.Lock()
_T = TypeVar("_T")


class Parameters(MutableMapping[str, Array]):
    """A layer's parameters by name. The names are fixed; an array may be replaced by one of its shape and dtype."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def __getitem__(self, name: str) -> Array:
        return self._layer._arrays[name]

    def __setitem__(self, name: str, value: Array) -> None:
        arrays = self._layer._arrays
        if name not in arrays:
            raise KeyError(f"parameters: expected one of {list(arrays)}, got {name!r}")
        if self._layer._frozen is not None:
            raise ValueError(f"{name}: expected a layer that is not frozen, got an assignment inside frozen()")
        arrays[name] = exact(name, value, arrays[name].dtype, arrays[name].shape, home=self._layer._home)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"parameters: expected the names to stay, got the deletion of {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._layer._arrays)

    def __len__(self) -> int:
        return len(self._layer._arrays)

    def __repr__(self) -> str:
        return repr(self._layer._arrays)


class IncompatibleKeys(NamedTuple):
    """What load_state_dict(strict=False) passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


@dataclass
class _Frozen:
    depth: int
    thaw: list[Array]  # the arrays to make writable again
    packed: list[Any]  # by layer and direction


class Layer:
    """The base of RNN and RNNCell, which call _create for each direction of each layer."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nonlinearity: str,
        bias: bool,
        dtype: Any,
        device: str,
        backend: str,
        seed: Any,
        alpha: Any,
        train_alpha: bool,
    ) -> None:
        self.input_size = _validate.integer("input_size", input_size, at_least=0)
        self.hidden_size = _validate.integer("hidden_size", hidden_size, at_least=1)
        _validate.check_nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity
        self.bias = _validate.boolean("bias", bias)
        self.dtype = _validate.float_dtype("dtype", dtype)
        self.device = _validate.device_name(device)
        _backends.get(backend, self.device)
        self.backend = backend
        self.grads: dict[str, Array] = {}
        self._arrays: dict[str, Array] = {}
        self._names: list[tuple[str, ...]] = []  # by layer and direction
        self._frozen: _Frozen | None = None
        self._rng = np.random.default_rng(seed)
        # the array module; an array on the parameters' device, None for the CPU
        self._xp: Any = np if device == "cpu" else import_module("cupy")
        self._home: Any = None if device == "cpu" else self._xp.empty(1)
        if alpha is not None and device != "cpu":
            raise ValueError("alpha: expected None with device 'cuda', whose backends have no leaky units, got values")
        self._alpha = None if alpha is None else _validate.proper_leak(alpha, self.dtype, self.hidden_size)
        self.train_alpha = _validate.boolean("train_alpha", train_alpha)
        if train_alpha and self._alpha is None:
            raise ValueError("train_alpha: expected False where alpha is None, got True")

    def _create(self, input_size: int, suffix: str = "") -> None:
        """Adds the parameters of one direction of one layer, uniform in +-1 / sqrt(H)."""
        H = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (H, input_size), "weight_hh": (H, H)}
        if self.bias:
            shapes |= {"bias_ih": (H,), "bias_hh": (H,)}
        for name, shape in shapes.items():
            drawn = self._rng.uniform(-(H**-0.5), H**-0.5, shape).astype(self.dtype)
            self._arrays[name + suffix] = drawn if self.device == "cpu" else self._xp.asarray(drawn)
            self.grads[name + suffix] = self._xp.zeros(shape, self.dtype)
        self._names.append(tuple(name + suffix for name in shapes))

    def _create_alpha(self) -> None:
        """Adds alpha to the parameters where it is to be trained; after the others."""
        if self.train_alpha and self._alpha is not None:
            self._arrays["alpha"], self.grads["alpha"] = self._alpha, np.zeros_like(self._alpha)

    @property
    def alpha(self) -> Array | None:
        """(H), of all layers and directions; may be written in place. None: units that do not leak."""
        return self._arrays.get("alpha", self._alpha)

    def _leaky(self, options: RnnOptions) -> RnnOptions:
        alpha = self.alpha
        return options if alpha is None else replace(options, alpha=alpha)

    @property
    def parameters(self) -> Parameters:
        """Name -> array, with torch's names. Arrays may be written in place, or replaced (same shape and dtype)."""
        return Parameters(self)

    @placed
    def zero_grad(self) -> None:
        """Sets every array of grads to zero, in place."""
        for gradient in self.grads.values():
            gradient[...] = 0

    @placed
    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters, under torch's names."""
        return {name: array.copy() for name, array in self._arrays.items()}

    @placed
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copies values into the parameters, in place; a torch module's state_dict does too.

        Values are arrays or tensors of any floating dtype; they are converted. Returns the keys that strict=False
        passed over. Raises KeyError for missing or unexpected keys when strict, TypeError for a value that is no
        floating array, ValueError for a wrong shape and for read-only parameters; nothing has been changed then.
        """
        return load_into(self._arrays, state_dict, strict)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside `with layer.frozen():` packed weights are kept between calls, and the parameters are read-only.

        Calls give the same bits as outside. May be nested and entered by several threads at once. Writing through
        another view of a parameter's memory goes unnoticed. On a GPU nothing is packed, and CuPy has no read-only
        arrays.
        """
        with _freezing:
            if self._frozen is None:
                self._frozen = self._freeze()
            self._frozen.depth += 1
            frozen = self._frozen
        try:
            yield
        finally:
            with _freezing:
                frozen.depth -= 1
                if frozen.depth == 0:
                    self._frozen = None
                    _set_writable(frozen.thaw, True)

    def _freeze(self) -> _Frozen:
        thaw = [array for array in self._arrays.values() if self._home is None and array.flags.writeable]
        _set_writable(thaw, False)
        try:
            pack = _backends.get(self.backend, self.device).pack_weights
            return _Frozen(0, thaw, [pack(*self._weights(k)[:2]) for k in range(len(self._names))])
        except BaseException:
            _set_writable(thaw, True)
            raise

    def __getstate__(self) -> dict[str, Any]:
        # a copy is not frozen: its arrays are writable, also where pickle takes the flag over
        arrays = {name: array.copy() for name, array in self._arrays.items()} if self._frozen else self._arrays
        return {**self.__dict__, "_arrays": arrays, "_frozen": None, "_xp": self._xp.__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {"_home": None, "_xp": "numpy", **state}  # older pickles have neither
        self.__dict__.update(state, _xp=import_module(state["_xp"]))

    def _placed(self, function: Callable[..., _T], *args: Any) -> _T:
        """function(*args), where new arrays are made where the parameters are."""
        if self._home is None:
            return function(*args)
        with self._home.device:
            return function(*args)

    def _weights(self, k: int) -> Weights:
        w_ih, w_hh, *biases = [self._arrays[name] for name in self._names[k]]
        b_ih, b_hh = biases or (None, None)
        return w_ih, w_hh, b_ih, b_hh

    def _packed(self, k: int) -> Any:
        frozen = self._frozen  # read once: another thread may leave frozen()
        return None if frozen is None else frozen.packed[k]

    def _needs(self) -> tuple[str, ...]:
        needs = ("x", "h_0", "w_ih", "w_hh", "b") if self.bias else ("x", "h_0", "w_ih", "w_hh")
        return (*needs, "alpha") if self.train_alpha else needs

    def _accumulate(self, k: int, d_w_ih: Any, d_w_hh: Any, d_b: Any, d_alpha: Any) -> None:
        for name, gradient in zip(self._names[k], (d_w_ih, d_w_hh, d_b, d_b), strict=False):
            self.grads[name] += gradient
        if self.train_alpha:
            self.grads["alpha"] += d_alpha

    def _describe(self, *shown: str) -> str:
        words = [str(self.input_size), str(self.hidden_size), *shown]
        if self.nonlinearity != "tanh":
            words.append(f"nonlinearity={self.nonlinearity}")
        if (alpha := self.alpha) is not None:
            words.append(f"alpha={alpha[0]:.4g}" if (alpha == alpha[0]).all() else "alpha=(H)")
        if self.train_alpha:
            words.append("train_alpha=True")
        return f"{type(self).__name__}({', '.join(words)})"


def load_into(arrays: Mapping[str, Array], state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
    """What load_state_dict does: copies values into the arrays of these names, in place; all of them or none."""
    missing = [name for name in arrays if name not in state_dict]
    unexpected = [name for name in state_dict if name not in arrays]
    if strict and (missing or unexpected):
        raise KeyError(
            f"state_dict: expected the keys {list(arrays)}, got missing keys {missing} and unexpected keys {unexpected}"
        )
    values = {name: _loadable(name, state_dict[name]) for name in arrays if name in state_dict}
    wrong = []
    for name, value in values.items():
        array = arrays[name]
        if value.shape != array.shape:
            wrong.append(f"{name}: expected shape {array.shape}, got {value.shape}")
        elif not getattr(array.flags, "writeable", True):
            wrong.append(f"{name}: expected a writable parameter, got a read-only one, as inside frozen()")
    if wrong:
        raise ValueError("; ".join(wrong))
    held = [array for array in arrays.values() if isinstance(array, np.ndarray)]
    for name, value in values.items():  # one layer's weights may go to another
        if any(np.may_share_memory(value, array) for array in held):
            values[name] = value.copy()
    for name, value in values.items():
        if (home := _validate.gpu(arrays[name])) is None:
            np.copyto(arrays[name], value, casting="same_kind")
        else:
            arrays[name][...] = moved(value.astype(arrays[name].dtype), home)
    return IncompatibleKeys(missing, unexpected)


def _loadable(name: str, value: Any) -> Array:
    """value as an array of any floating dtype; a torch tensor may require grad and live on any device."""
    if hasattr(value, "detach"):
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating array or tensor, got {value.dtype}")
        value = value.detach().cpu().double().numpy()  # double: NumPy has no bfloat16
    elif _validate.gpu(value) is not None:
        value = value.get()
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray) or value.dtype.kind != "f":
        masked = isinstance(value, np.ma.MaskedArray)
        kind = value.dtype if isinstance(value, np.ndarray) and not masked else type(value).__name__
        raise TypeError(f"{name}: expected a floating array or tensor, got {kind}")
    return value


def _set_writable(arrays: list[Array], writable: bool) -> None:
    for array in arrays:
        array.flags.writeable = writable
