"""Times on a GPU by CUDA events: fastrnn.torch.RNN and the `cupy` backend against torch.nn.RNN, a compiled loop and
FlashRNN, with the names of the kernels that ran."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

SHAPES = [(1, 1024, 256), (1, 1024, 1024), (32, 512, 512), (64, 512, 1024), (128, 256, 2048), (1024, 128, 256)]
PRECISIONS = ("ieee", "tf32", "bf16", "f16")
SETS = 4  # of inputs, in turns: what one call leaves in the cache does not serve the next


class Arm(NamedTuple):
    """forward() and training() of one implementation in one precision, over the inputs of set k."""

    name: str
    forward: Callable[[int], Any]
    training: Callable[[int], Any] | None
    context: Callable[[], Any]
    error: Callable[[], float]  # of output, the largest against float64


def time_of(torch: Any, run: Callable[[int], Any], rounds: int = 30, seconds: float = 4.0) -> dict[str, float]:
    """Milliseconds of a call, median and fastest, after a warm-up."""
    for k in range(SETS):
        run(k)
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < rounds and sum(times) < 1000 * seconds:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(len(times) % SETS)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return {"median_ms": float(np.median(times)), "fastest_ms": min(times), "calls": len(times)}


def kernel_names(torch: Any, run: Callable[[int], Any]) -> list[str]:
    """Of one call, the longest first."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run(0)
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)
    return [f"{event.count} x {event.key[:90]}" for event in events[:6]]


@contextmanager
def precision(torch: Any, name: str) -> Iterator[None]:
    """The arithmetic of float32 in cuDNN's RNN, in matrix products, and in our recurrence."""
    allowed = "tf32" if name == "tf32" else "ieee"
    backends = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before, ours = [backend.fp32_precision for backend in backends], os.environ.get("FASTRNN_TF32")
    os.environ["FASTRNN_TF32"] = str(int(name == "tf32"))
    for backend in backends:
        backend.fp32_precision = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
        if ours is None:
            del os.environ["FASTRNN_TF32"]
        else:
            os.environ["FASTRNN_TF32"] = ours


def arms(torch: Any, shape: tuple[int, int, int], name: str) -> Iterator[Arm]:
    """Whatever can run this shape in this precision."""
    import fastrnn.torch as ours

    B, T, H = shape
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}.get(name, torch.float32)
    make = {"device": "cuda", "dtype": dtype}
    inputs = [torch.randn(T, B, H, **make).requires_grad_() for _ in range(SETS)]
    upstream = torch.randn(T, B, H, **make)

    def of_layer(label: str, layer: Any, call: Callable[[Any], Any]) -> Arm:
        def forward(k: int) -> Any:
            with torch.no_grad():
                return call(inputs[k])

        def training(k: int) -> None:
            call(inputs[k])[0].backward(upstream)
            inputs[k].grad = None
            layer.zero_grad(set_to_none=True)

        def error() -> float:
            return float((forward(0)[0].double() - truth).abs().max())

        return Arm(label, forward, training, lambda: precision(torch, name), error)

    torch.manual_seed(0)
    stock = torch.nn.RNN(H, H, **make)
    with torch.no_grad():
        truth = copy.deepcopy(stock).double()(inputs[0].double())[0]
    yield of_layer("torch.nn.RNN", stock, stock)
    layer = ours.RNN(H, H, **make)
    layer.load_state_dict(stock.state_dict())
    yield of_layer("fastrnn.torch.RNN", layer, layer)
    w_ih, w_hh, b_ih, b_hh = stock._flat_weights

    def loop(x: Any) -> Any:
        z, h, states = x @ w_ih.T + (b_ih + b_hh), torch.zeros(B, H, **make), []
        for z_t in z.unbind():
            h = torch.tanh(z_t + h @ w_hh.T)
            states.append(h)
        return torch.stack(states), h

    if T <= 128:  # unrolled: more takes too long to compile
        yield of_layer("torch.compile", stock, torch.compile(loop, mode="max-autotune-no-cudagraphs"))
    if name == "bf16" and importlib.util.find_spec("flashrnn") is not None:
        yield of_layer("flashrnn", stock, _flashrnn(torch, stock, B, H, dtype))


def _flashrnn(torch: Any, stock: Any, B: int, H: int, dtype: Any) -> Callable[[Any], Any]:
    """The recurrence of FlashRNN with one head; not run yet (see its requirements on CUDA's version)."""
    from flashrnn import flashrnn

    w_ih, w_hh, b_ih, b_hh = stock._flat_weights

    def call(x: Any) -> Any:
        z = (x @ w_ih.T).transpose(0, 1).reshape(B, x.shape[0], 1, 1, H)
        states, last = flashrnn(z, w_hh.reshape(1, 1, H, H), (b_ih + b_hh).reshape(1, 1, H), function="elman",
                                backend="cuda", dtype=str(dtype).removeprefix("torch."))  # fmt: skip
        return states[0].transpose(0, 1).reshape(x.shape[0], B, H), last

    return call


def measure(torch: Any, shape: tuple[int, int, int], name: str) -> dict[str, Any]:
    """Every arm; an arm that fails says why. Errors against float64 stand beside the times."""
    found: dict[str, Any] = {}
    for arm in arms(torch, shape, name):
        with arm.context():
            try:
                entry: dict[str, Any] = {
                    "forward": time_of(torch, arm.forward),
                    "kernels": kernel_names(torch, arm.forward),
                    "error": arm.error(),
                }
                if arm.training is not None:
                    entry["training"] = time_of(torch, arm.training)
                entry["megabytes"] = torch.cuda.max_memory_allocated() / 1e6
            except (RuntimeError, TypeError, ImportError) as error:
                entry = {"error": f"{type(error).__name__}: {error}"[:500]}
        found[arm.name] = entry
        torch.cuda.reset_peak_memory_stats()
    return {"arms": found}


def ratios(entries: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Rows of the table: shape and precision, milliseconds of stock and ours, how many times as fast."""
    rows = []
    for key, entry in entries.items():
        arms_ = entry.get("arms", {})
        stock, ours = arms_.get("torch.nn.RNN", {}), arms_.get("fastrnn.torch.RNN", {})
        for what in ("forward", "training"):
            if what in stock and what in ours:
                a, b = stock[what]["median_ms"], ours[what]["median_ms"]
                rows.append((key, what, f"{a:.3f}", f"{b:.3f}", f"{a / b:.2f}"))
    return rows
