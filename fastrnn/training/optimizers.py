"""Optimizers over dicts of arrays, clipping, schedules.

`optimizer.step(parameters, grads)` updates every array of parameters in place, with torch.optim's formulas and names
of arguments, but `rate` for its lr. State is kept by name, on the device of its parameter: state_dict and
load_state_dict save and restore it. Arrays are NumPy's or CuPy's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from .._backends.options import Array
from .._device import beside, check_kind, module_of, moved, numbers
from .._validate import gpu
from ._native import adam

Schedule: TypeAlias = Callable[[float], float]

_CHUNK = 1 << 14  # elements updated at a time: all that a step touches stays in the L2 cache


class Optimizer:
    """The base: state by name, steps counted, weight decay (decoupled from the gradient in AdamW alone)."""

    slots: tuple[str, ...] = ()

    def __init__(self, rate: float, weight_decay: float = 0.0) -> None:
        self.rate, self.weight_decay = _positive("rate", rate), _at_least_0("weight_decay", weight_decay)
        self.steps = 0
        self.state: dict[str, dict[str, Array]] = {}  # parameter -> slot -> array
        self._loaded: set[str] = set()  # parameters whose state may lie on another device

    def __repr__(self) -> str:
        """The class and its numbers; by this fit tells whether a checkpoint's optimizer was another."""
        hidden = ("steps", "state", "slots")
        shown = [f"{key}={value!r}" for key, value in vars(self).items() if key not in hidden and key[0] != "_"]
        return f"{type(self).__name__}({', '.join(shown)})"

    def step(self, parameters: Mapping[str, Array], grads: Mapping[str, Array], factor: float = 1.0) -> None:
        """One step at the rate `rate * factor`, of parameters on one device. Raises KeyError where a gradient is
        missing, ValueError for a shape or dtype, also of its state, TypeError for a gradient that is not
        beside its parameter; nothing has been changed then."""
        for name, p in parameters.items():
            if type(p) is not np.ndarray or type(grads[name]) is not np.ndarray:
                check_kind(f"grads[{name!r}]", grads[name], gpu(p))
            _like(f"grads[{name!r}]", grads[name], p)
            for slot, array in self.state.get(name, {}).items():
                _like(f"state[{name!r}][{slot!r}]", array, p)
        self.steps += 1
        with beside(_home(parameters)):
            for name, p in parameters.items():
                if name not in self.state:
                    self.state[name] = {slot: module_of(p).zeros_like(p) for slot in self.slots}
                elif name in self._loaded:
                    self._loaded.remove(name)
                    self.state[name] = {slot: moved(array, gpu(p)) for slot, array in self.state[name].items()}
                self._whole(self.rate * factor, p, grads[name], *self.state[name].values())

    def _whole(self, rate: float, *arrays: Array) -> None:
        for part in _chunks(*arrays):
            self._update(rate, *part)

    def _update(self, rate: float, p: Array, grad: Array, *state: Array) -> None:
        raise NotImplementedError

    def _decayed(self, p: Array, grad: Array) -> Array:
        return grad + p.dtype.type(self.weight_decay) * p if self.weight_decay else grad

    def state_dict(self) -> dict[str, Array]:
        """Copies: "steps", and "<parameter>/<slot>" for each array, of its kind."""
        arrays = {f"{name}/{slot}": a.copy() for name, state in self.state.items() for slot, a in state.items()}
        return {"steps": np.asarray(self.steps, np.int64), **arrays}

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Takes what state_dict gave, on any device. Raises ValueError where that is another optimizer's, as its arrays
        tell, or has no count of steps; nothing has been changed then. The next step checks shapes and dtypes."""
        steps = np.asarray(moved(state_dict.get("steps"), None))
        if steps.shape != () or steps.dtype.kind not in "iu" or steps < 0:
            raise ValueError(f"state_dict: expected 'steps', a number of steps, got {state_dict.get('steps')!r}")
        state: dict[str, dict[str, Array]] = {}
        for key, array in state_dict.items():
            if key != "steps":
                name, _, slot = key.rpartition("/")
                state.setdefault(name, {})[slot] = module_of(array).array(array)
        for name, found in state.items():
            if sorted(found) != sorted(self.slots):
                raise ValueError(f"state_dict: expected {sorted(self.slots)} for {name}, got {sorted(found)}")
        if self.slots and steps and not state:
            raise ValueError(
                f"state_dict: expected {sorted(self.slots)} for each parameter, got none after {steps} steps"
            )
        self.state = {name: {slot: found[slot] for slot in self.slots} for name, found in state.items()}
        self._loaded, self.steps = set(self.state), int(steps)


class SGD(Optimizer):
    """Gradient descent: v = momentum v + g; p -= rate v, or with nesterov p -= rate (g + momentum v)."""

    def __init__(
        self, rate: float = 0.01, momentum: float = 0.0, *, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        super().__init__(rate, weight_decay)
        self.momentum, self.nesterov = _fraction("momentum", momentum), bool(nesterov)
        if nesterov and not momentum:
            raise ValueError("nesterov: expected a momentum above 0, got 0")
        self.slots = ("velocity",) if momentum else ()

    def _update(self, rate: float, p: Array, grad: Array, *state: Array) -> None:
        grad, real = self._decayed(p, grad), p.dtype.type
        if state:
            (velocity,) = state
            velocity *= real(self.momentum)
            velocity += grad
            grad = grad + real(self.momentum) * velocity if self.nesterov else velocity
        p -= real(rate) * grad


class RMSprop(Optimizer):
    """s = alpha s + (1 - alpha) g^2; p -= rate g / (sqrt(s) + eps), or momentum on that (Tieleman, Hinton 2012)."""

    def __init__(
        self,
        rate: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(rate, weight_decay)
        self.alpha, self.eps, self.momentum = _fraction("alpha", alpha), float(eps), _fraction("momentum", momentum)
        self.slots = ("square", "velocity") if momentum else ("square",)

    def _update(self, rate: float, p: Array, grad: Array, *state: Array) -> None:
        grad, real = self._decayed(p, grad), p.dtype.type
        square = state[0]
        square *= real(self.alpha)
        square += real(1 - self.alpha) * grad * grad
        step = np.sqrt(square)
        step += real(self.eps)
        np.divide(grad, step, out=step)
        if self.momentum:
            state[1][...] = real(self.momentum) * state[1] + step
            step = state[1]
        p -= real(rate) * step


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015): p -= rate m' / (sqrt(s') + eps), m' and s' the bias-corrected moments of the gradient.

    weight_decay, by default 0, adds weight_decay p to the gradient; AdamW has it decoupled. On the C++ module subnormal
    numbers count as 0: moments of a parameter without gradients fade to 0 and cost no time on the way.
    """

    slots = ("mean", "square")
    decoupled, usual_decay = False, 0.0

    def __init__(
        self,
        rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        weight_decay: float | None = None,
    ) -> None:
        super().__init__(rate, self.usual_decay if weight_decay is None else weight_decay)
        self.betas = _fraction("betas", betas[0]), _fraction("betas", betas[1])
        self.eps = float(eps)

    def _whole(self, rate: float, *arrays: Array) -> None:
        p, grad, mean, square = arrays
        (b1, b2), decay = self.betas, self.weight_decay
        if not adam(
            p, mean, square, grad, betas=self.betas, rate=rate / (1 - b1**self.steps), eps=self.eps,
            correction=1 / np.sqrt(1 - b2**self.steps), decay=0.0 if self.decoupled else decay,
            keep=1 - rate * decay if self.decoupled else 1.0,
        ):  # fmt: skip
            super()._whole(rate, *arrays)

    def _update(self, rate: float, p: Array, grad: Array, *state: Array) -> None:
        (mean, square), (b1, b2), real = state, self.betas, p.dtype.type
        if self.decoupled:
            p *= real(1 - rate * self.weight_decay)
        else:
            grad = self._decayed(p, grad)
        work = grad - mean
        work *= real(1 - b1)
        mean += work
        square *= real(b2)
        np.multiply(grad, grad, out=work)
        work *= real(1 - b2)
        square += work
        np.sqrt(square, out=work)
        work *= real(1 / np.sqrt(1 - b2**self.steps))
        work += real(self.eps)
        np.divide(mean, work, out=work)
        work *= real(rate / (1 - b1**self.steps))
        p -= work


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019), by default 0.01: p -= rate weight_decay p besides."""

    decoupled, usual_decay = True, 0.01


def _chunks(*arrays: Array) -> Iterator[list[Array]]:
    """Views of all arrays, a cache's worth of elements at a time; on a GPU the arrays."""
    first = arrays[0]
    if first.size <= _CHUNK or gpu(first) is not None or not all(array.flags.c_contiguous for array in arrays):
        yield list(arrays)
        return
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, first.size, _CHUNK):
        yield [array[start : start + _CHUNK] for array in flat]


# ---- Clipping


def global_norm(grads: Mapping[str, Array]) -> float:
    """The Euclidean norm of all gradients together, summed in blocks as NumPy's dot does. A GPU is waited for once.

    Where the squares overflow, it is computed again from the gradients divided by their largest element.
    """
    with beside(_home(grads)):
        norm = _norm(grads.values())
        if np.isfinite(norm):
            return norm
        largest = max(numbers(*[np.abs(g).max() for g in grads.values() if g.size]))
        return largest * _norm(g / g.dtype.type(largest) for g in grads.values()) if np.isfinite(largest) else norm


def _norm(grads: Iterable[Array]) -> float:
    return float(np.sqrt(sum(numbers(*[module_of(g).vdot(g, g) for g in grads]))))


def clip_by_global_norm(grads: Mapping[str, Array], limit: float) -> float:
    """Scales all gradients, in place, so that their norm is at most limit; returns the norm from before.

    (Pascanu, Mikolov and Bengio 2013.) A norm that is not finite scales nothing: look at what is returned.
    """
    norm = global_norm(grads)
    if np.isfinite(norm) and norm > _positive("limit", limit):
        with beside(_home(grads)):
            for gradient in grads.values():
                gradient *= gradient.dtype.type(limit / norm)
    return norm


def clip_by_value(grads: Mapping[str, Array], limit: float) -> None:
    """Clips every element to +-limit, in place."""
    _positive("limit", limit)
    with beside(_home(grads)):
        for gradient in grads.values():
            gradient.clip(-limit, limit, out=gradient)


def _like(name: str, array: Array, p: Array) -> None:
    if array.shape != p.shape or array.dtype != p.dtype:
        raise ValueError(f"{name}: expected {p.dtype} {p.shape}, got {array.dtype} {array.shape}")


def _home(arrays: Mapping[str, Array]) -> Any:
    """Of arrays on one device."""
    return gpu(next(iter(arrays.values()), None))


# ---- Schedules: what multiplies the rate, by the share of the training that is done, 0..1


def constant(progress: float) -> float:
    """1."""
    return 1.0


def linear(progress: float) -> float:
    """From 1 to 0."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov and Hutter 2017)."""
    return float(0.5 + 0.5 * np.cos(np.pi * progress))


def exponential(last: float) -> Schedule:
    """From 1 to last, by a constant factor a step."""
    _positive("last", last)
    return lambda progress: float(last**progress)


def steps(at: Mapping[float, float]) -> Schedule:
    """steps({0.5: 0.1, 0.8: 0.01}): 1 at first, 0.1 from the middle on, 0.01 for the last fifth."""
    points = sorted(at.items())

    def schedule(progress: float) -> float:
        return next((factor for point, factor in reversed(points) if progress >= point), 1.0)

    return schedule


def warm_up(share: float, then: Schedule = constant) -> Schedule:
    """Rises from 0 to 1 over this share of the training, then follows `then` over the rest."""
    share = _fraction("share", share)

    def schedule(progress: float) -> float:
        return progress / share if progress < share else then((progress - share) / (1 - share))

    return schedule


def _positive(name: str, value: float) -> float:
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name}: expected a number above 0, got {value}")
    return float(value)


def _at_least_0(name: str, value: float) -> float:
    if not (value >= 0 and np.isfinite(value)):
        raise ValueError(f"{name}: expected a number of at least 0, got {value}")
    return float(value)


def _fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
    return float(value)
