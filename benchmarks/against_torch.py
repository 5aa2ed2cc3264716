"""Forward and training (forward + BPTT) of fastrnn, of its NumPy reference and of torch.nn.RNN, side by side.

    python benchmarks/against_torch.py [--threads 1] [--dtype float32] [--rounds 15] [--shapes 16x256x256x256,...]

Every arm is checked against float64 first. Then the arms take turns, each warm; figures are medians over the rounds.
Percent is of the multiply-add peak measured between the rounds: 2 T B H (I + H) operations forward, three times that
for training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

import fastrnn
from fastrnn import _fastrnn_cpu as native
from fastrnn._backends import reference
from fastrnn._backends.options import RnnOptions

# B, T, I, H
SHAPES = [
    (1, 128, 64, 64), (1, 512, 512, 512), (3, 100, 10, 100), (8, 128, 128, 128), (16, 256, 256, 256),
    (20, 100, 40, 200), (32, 1000, 64, 64), (32, 128, 256, 256), (50, 60, 3, 300), (64, 100, 128, 128),
    (64, 100, 512, 512), (128, 50, 1024, 1024), (256, 64, 256, 256),
]  # fmt: skip
Arm = tuple[Callable[[], Any], Callable[[], Any]]  # forward, training


def fastrnn_arm(backend: str, p: dict[str, Any]) -> Arm:
    weights = (p["w_ih"], p["w_hh"], p["b_ih"], p["b_hh"])

    def forward() -> Any:
        return fastrnn.rnn_forward(p["x"], p["h_0"], *weights, backend=backend)

    def training() -> Any:
        output, _ = forward()
        return fastrnn.rnn_backward(
            p["d_output"], p["d_h_n"], output, p["x"], p["h_0"], p["w_ih"], p["w_hh"], backend=backend
        )

    return forward, training


def torch_arm(torch: Any, p: dict[str, Any]) -> Arm:
    t = {name: torch.from_numpy(array) for name, array in p.items()}
    layer = torch.nn.RNN(p["x"].shape[2], len(p["w_hh"]), dtype=t["x"].dtype)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer.load_state_dict(dict(zip(names, (t["w_ih"], t["w_hh"], t["b_ih"], t["b_hh"]), strict=True)))
    x, h_0 = t["x"].clone().requires_grad_(), t["h_0"][None].clone().requires_grad_()

    def forward() -> Any:
        with torch.no_grad():
            return layer(x, h_0)

    def training() -> Any:
        layer.zero_grad(set_to_none=True)
        x.grad = h_0.grad = None
        output, h_n = layer(x, h_0)
        torch.autograd.backward((output, h_n), (t["d_output"], t["d_h_n"][None]))
        return x.grad

    return forward, training


def problem(B: int, T: int, I: int, H: int, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {
        "x": (T, B, I), "h_0": (B, H), "w_ih": (H, I), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,),
        "d_output": (T, B, H), "d_h_n": (B, H),
    }  # fmt: skip
    p = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    for name, fan_in in (("w_ih", I), ("w_hh", 2 * H)):
        p[name] *= dtype(1 / np.sqrt(fan_in))
    return p


def check(arms: dict[str, Arm], p: dict[str, Any]) -> None:
    wide = {name: array.astype(np.float64) for name, array in p.items()}
    args = [wide[name] for name in ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh")]
    output, _ = reference.rnn_forward(*args, RnnOptions())
    gradients = reference.rnn_backward(wide["d_output"], wide["d_h_n"], output, *args[:4], RnnOptions())
    limit = 1e4 * np.finfo(p["x"].dtype).eps
    for name, (forward, training) in arms.items():
        d_x = training()
        got = (np.asarray(forward()[0]), np.asarray(d_x if name == "torch" else d_x.d_x))
        for computed, exact in zip(got, (output, gradients.d_x), strict=True):
            error = np.abs(computed - exact).max() / np.abs(exact).max()
            if not error <= limit:
                raise SystemExit(f"{name}: error {error:.1e} against float64 is beyond {limit:.1e}")


def warm_seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call, after one that is not timed; short calls are repeated for some milliseconds."""
    call()
    calls, start = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed > 3e-3:
            return elapsed / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", help="BxTxIxH, comma-separated")
    args = parser.parse_args()
    shapes = SHAPES
    if args.shapes:
        shapes = [tuple(int(n) for n in shape.split("x")) for shape in args.shapes.split(",")]  # type: ignore[misc]
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]
        print("torch is not installed: pip install torch==2.13.0")
    else:
        torch.set_num_threads(args.threads)
    try:
        from threadpoolctl import threadpool_limits  # NumPy's BLAS
    except ImportError:
        threadpool_limits = nullcontext

    print(f"{native.active_isa()}, {args.dtype}, {args.threads} thread(s); % of the multiply-add peak; x: times faster")
    print("   B    T    I    H  GFLOP/s | forward  torch   numpy | training torch   numpy")
    ratios: dict[tuple[str, int], list[float]] = {}
    with fastrnn.threads(args.threads), threadpool_limits(args.threads):
        for B, T, I, H in shapes:
            p = problem(B, T, I, H, np.dtype(args.dtype).type)
            arms = {"cpp": fastrnn_arm("cpp", p), "numpy": fastrnn_arm("numpy", p)}
            if torch:
                arms["torch"] = torch_arm(torch, p)
            check(arms, p)
            seconds: dict[tuple[str, int], list[float]] = {(name, way): [] for name in arms for way in (0, 1)}
            peaks = []
            for _ in range(args.rounds):
                peaks.append(native.fma_peak(args.dtype, args.threads, 0.01))
                for name, way in seconds:
                    seconds[name, way].append(warm_seconds(arms[name][way]))
            median = {key: float(np.median(times)) for key, times in seconds.items()}
            peak = float(np.median(peaks))
            cells = [f"{B:4d} {T:4d} {I:4d} {H:4d} {peak:8.0f} "]
            for way in (0, 1):
                percent = 100 * (1 + 2 * way) * 2e-9 * T * B * H * (I + H) / median["cpp", way] / peak
                cell = f"| {percent:5.0f} % "
                for name in ("torch", "numpy"):
                    if name in arms:
                        ratio = median[name, way] / median["cpp", way]
                        ratios.setdefault((name, way), []).append(ratio)
                        cell += f"{ratio:6.1f}x "
                    else:
                        cell += "     -  "
                cells.append(cell)
            print("".join(cells), flush=True)
    for (name, way), values in ratios.items():
        mean = float(np.exp(np.mean(np.log(values))))
        print(f"geometric mean, {('forward', 'training')[way]}: {mean:.1f} times faster than {name}")


if __name__ == "__main__":
    main()
