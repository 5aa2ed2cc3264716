"""The GPU gate: all that has to hold on a GPU, in one command.

    python benchmarks/gpu_gate.py                          # every stage that has not finished yet; goes on where it was
    python benchmarks/gpu_gate.py --stages timings,report --out results
    python benchmarks/gpu_gate.py --fresh                  # from the start

The native kernels' random delays are a build of their own; with it, the races once more, into another folder:

    FASTRNN_CUDA=ON pip install -Ccmake.define.FASTRNN_CUDA_DELAYS=ON .
    python benchmarks/gpu_gate.py --stages environment,build,races --out results-with-delays

Stages: environment, build, primitives (what barriers cost), correctness (every kernel, dtype and odd shape against
float64, on guarded and poisoned memory), races (hundreds of repeats, bit for bit, other work beside them, random delays
inside the kernels), training (fastrnn.training against the CPU), sanitizer (compute-sanitizer where it is), timings
(CUDA events, against torch.nn.RNN in four precisions), report. Each takes less than ten minutes, runs in a process of
its own and leaves OUT/STAGE.json; correctness, races, training and timings keep a line for each check, and a stage that
ran out of time goes on in the next call.

Exit code: 0 all stages passed; 1 something failed; 2 something is not finished yet; 3 there is no GPU to run on.
The tests' helpers are used: run it in a checkout of the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from gpu import checks, subjects, timings, training  # noqa: E402

LIMIT = 570.0  # seconds of a stage
PACKAGES = (
    "fastrnn",
    "numpy",
    "torch",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "flashrnn",
)
CODES = {"passed": 0, "failed": 1, "unfinished": 2, "no device": 3}


class NoDeviceError(RuntimeError):
    """There is nothing to run on."""


def cupy() -> Any:
    """CuPy, where it has a device."""
    try:
        module = import_module("cupy")
        count = module.cuda.runtime.getDeviceCount()
    except (ImportError, RuntimeError) as error:
        raise NoDeviceError(str(error)) from None
    if not count:
        raise NoDeviceError("no CUDA device is visible")
    return module


# ---- The stages: each returns what it found, with a status


def environment(out: Path) -> dict[str, Any]:
    """What the machine is; reading it needs no GPU."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    commands = {
        "commit": ["git", "-C", str(HERE), "rev-parse", "HEAD"],
        "changed": ["git", "-C", str(HERE), "status", "--porcelain"],
        "nvcc": ["nvcc", "--version"],
        "nvidia-smi": ["nvidia-smi", "--format=csv", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm"],
    }
    for name, command in commands.items():
        found = (
            subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which(command[0]) else None
        )
        facts[name] = None if found is None else found.stdout.strip()
    try:
        module = cupy()
    except NoDeviceError as error:
        return {"status": "no device", "reason": str(error), **facts}
    properties = module.cuda.runtime.getDeviceProperties(0)
    facts["device"] = {
        key: value.decode() if isinstance(value, bytes) else value
        for key, value in properties.items()
        if isinstance(value, (int, bytes)) and key not in ("uuid", "luid")
    }
    facts["CUPY_TF32"] = os.environ.get("CUPY_TF32")
    return {"status": "passed", **facts}


def build(out: Path) -> dict[str, Any]:
    """Which backends there are: at least one of the GPU's has to be. delays: of the native kernels."""
    import fastrnn
    from fastrnn import _backends

    cupy()
    records = [_backends._load(b.device, b.name) for b in fastrnn.backends()]
    found = {b.name: b.reason or "available" for b in records}
    gpu = [b.name for b in records if b.device == "cuda" and b.available]
    delays = any(getattr(getattr(b.functions, "native", None), "delays", False) for b in records)
    return {"status": "passed" if gpu else "failed", "backends": found, "delays": delays}


def primitives(out: Path) -> dict[str, Any]:
    """Nanoseconds of what a step waits for."""
    module = cupy()
    code, result = (HERE / "gpu" / "primitives.cu").read_text(), {}
    blocks = module.cuda.runtime.deviceGetAttribute(module.cuda.runtime.cudaDevAttrMultiProcessorCount, 0)

    def seconds(kernel: Any, grid: int, times: int, *more: Any) -> float:
        start, stop, best = module.cuda.Event(), module.cuda.Event(), float("inf")
        for _ in range(5):
            for array in more:
                array.fill(0)
            start.record()
            kernel((grid,), (256,), (module.int32(times), *more))
            stop.record()
            stop.synchronize()
            best = min(best, module.cuda.get_elapsed_time(start, stop) / 1e3)
        return best

    def each(name: str, grid: int, *more: Any, cluster: int = 1) -> None:
        together = name == "grid_barrier"
        options = ("-std=c++17", *((f"-DCLUSTER={cluster}",) if cluster > 1 else ()))
        try:
            raw = module.RawModule(code=code, options=options, enable_cooperative_groups=together).get_function(name)
            few, many = (seconds(raw, grid, times, *more) for times in (1000, 11000))
            value: Any = (many - few) / 10000 * 1e9
        except Exception as error:  # a device without clusters, a cluster that does not fit: a finding
            value = f"{type(error).__name__}: {error}"[:300]
        result[f"{name} {cluster}" if cluster > 1 else name] = value

    each("block_barrier", 1)
    each("grid_barrier", blocks, module.zeros(1, module.uint32))
    for cluster in (2, 4, 8):
        each("cluster_barrier", cluster, cluster=cluster)
        each("async_exchange", cluster, cluster=cluster)
    return {"status": "passed" if isinstance(result["block_barrier"], float) else "failed", "nanoseconds": result}


def gpu_subjects(delays: bool = False) -> Callable[[Any], Iterator[Any]]:
    """case -> every way of every backend that is there."""
    module = cupy()
    import numpy as np

    from fastrnn import _backends

    native = _backends._load("cuda", "cuda").functions
    backend: Any = _backends._load("cuda", "cupy").functions
    device = None if backend is None else backend.CupyDevice(0, ("-DFASTRNN_DELAYS",) if delays else ())

    def of(case: Any) -> Iterator[Any]:
        if device is not None:
            yield from subjects.cupy_subjects(device, case.H, case.B, np.dtype(case.dtype).itemsize)
        if native is not None:
            yield from subjects.native_subjects(native, module)

    return of


def gpu_recurrences() -> Iterator[Any]:
    """Every kernel of the native module alone, in every storage type."""
    module = cupy()
    from fastrnn import _backends

    native: Any = _backends._load("cuda", "cuda").functions
    if native is not None:

        def make(name: str, cluster: int) -> Any:
            return subjects.NativeKernel(native.native, module, name, cluster)

        yield from subjects.recurrences(native.native.kernels, make)


def _journal(out: Path, name: str, items: Iterator[Any], seconds: float = LIMIT) -> dict[str, Any]:
    journal = checks.Journal(out / f"{name}.jsonl")
    finished = journal.work(items, seconds)
    found = journal.summary()
    status = "failed" if found["failed"] else "passed" if finished else "unfinished"
    return {"status": status, **found}


def correctness(out: Path) -> dict[str, Any]:
    """Every kernel on every case."""

    def items() -> Iterator[Any]:
        yield from checks.correctness(gpu_subjects())
        yield from checks.recurrence_correctness(gpu_recurrences)

    return _journal(out, "correctness", items())


def races(out: Path) -> dict[str, Any]:
    """Plain repeats with other work beside them, then repeats with delays inside the kernels."""
    module = cupy()
    stream, hog = module.cuda.Stream(non_blocking=True), module.ones(1 << 26, module.float32)

    def disturb() -> None:
        with stream:
            for _ in range(3):
                hog[1:] = hog[:-1]

    def items() -> Iterator[Any]:
        for key, run in checks.races(gpu_subjects(), disturb=disturb):
            yield f"beside a hog: {key}", run
        for key, run in checks.recurrence_races(gpu_recurrences, disturb=disturb):
            yield f"beside a hog: {key}", run
        for key, run in checks.races(gpu_subjects(delays=True), repeats=40):
            yield f"with delays: {key}", run

    return _journal(out, "races", items())


def train(out: Path) -> dict[str, Any]:
    """Losses, poolings, the gradient of an embedding, whole trainings."""
    return _journal(out, "training", training.checks(cupy()))


def sanitizer(out: Path) -> dict[str, Any]:
    """compute-sanitizer's tools over a few small cases."""
    cupy()
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"status": "passed", "skipped": "compute-sanitizer is not on this machine"}
    result, status = {}, "passed"
    for name in ("memcheck", "initcheck", "synccheck", "racecheck"):
        command = [
            tool,
            "--tool",
            name,
            "--error-exitcode",
            "9",
            sys.executable,
            __file__,
            "--stage",
            "tiny",
            "--out",
            str(out),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT / 4, check=False)
            result[name] = {"code": done.returncode, "end": (done.stdout + done.stderr)[-1500:]}
            status = "failed" if done.returncode == 9 else status
        except subprocess.TimeoutExpired:
            result[name] = {"code": None, "end": "took too long"}
    return {"status": status, "tools": result}


def tiny(out: Path) -> dict[str, Any]:
    """What compute-sanitizer watches; not a stage of its own."""
    of = gpu_subjects()
    for case in checks.cases(quick=True)[:12]:
        for subject in of(case):
            checks.judge(subject, case)
        if case.dtype == "float32":
            for one in gpu_recurrences():
                checks.judge_recurrence(one, case)
    return {"status": "passed"}


def time_arms(out: Path) -> dict[str, Any]:
    """Every shape in every precision."""
    cupy()
    torch = import_module("torch")
    if not torch.cuda.is_available():
        raise NoDeviceError("torch sees no CUDA device")

    def items() -> Iterator[Any]:
        for shape in timings.SHAPES:
            for name in timings.PRECISIONS:
                yield "x".join(map(str, shape)) + " " + name, lambda s=shape, n=name: timings.measure(torch, s, n)

    return _journal(out, "timings", items())


def report(out: Path) -> dict[str, Any]:
    """The table."""
    stages = {name: read(out, name) for name in STAGES if name != "report"}
    lines = [f"{name:<13}{(found or {}).get('status', 'not run')}" for name, found in stages.items()]
    for name in ("correctness", "races", "training"):
        found = stages[name] or {}
        if "checks" in found:
            lines.append(f"{name}: {found['checks']} checks, {found['refused']} refused, {found['failed']} failed")
            lines += [f"  {failure['key']}: {failure['error']}" for failure in found["failures"][:5]]
    journal = checks.Journal(out / "timings.jsonl")
    if journal.done:
        lines.append(f"{'B x T x H':<22}{'':<10}{'stock ms':>10}{'ours ms':>10}{'ratio':>8}")
        lines += [
            f"{key:<22}{what:<10}{a:>10}{b:>10}{ratio:>8}" for key, what, a, b, ratio in timings.ratios(journal.done)
        ]
    statuses = [(found or {}).get("status", "unfinished") for found in stages.values()]
    worst = next((s for s in ("failed", "no device", "unfinished") if s in statuses), "passed")
    return {"status": worst, "table": lines}


STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "environment": environment,
    "build": build,
    "primitives": primitives,
    "correctness": correctness,
    "races": races,
    "training": train,
    "sanitizer": sanitizer,
    "timings": time_arms,
    "report": report,
}


def read(out: Path, name: str) -> dict[str, Any] | None:
    """What a stage left, if anything."""
    path = out / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def run_stage(name: str, out: Path) -> dict[str, Any]:
    """In this process; what it found is written at once."""
    start = time.monotonic()
    try:
        found = {**STAGES, "tiny": tiny}[name](out)
    except NoDeviceError as error:
        found = {"status": "no device", "reason": str(error)}
    found["seconds"] = round(time.monotonic() - start, 1)
    (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the stages that are asked for and not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu", help="folder of the results")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of them, by commas")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run left")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # the process of one stage
    args = parser.parse_args(arguments)
    names = args.stages.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        parser.error(f"--stages: expected some of {', '.join(STAGES)}, got {unknown[0]!r}")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage:
        return CODES[run_stage(args.stage, args.out)["status"]]
    if args.fresh:
        for name in names:
            for path in (args.out / f"{name}.json", args.out / f"{name}.jsonl"):
                path.unlink(missing_ok=True)
    statuses = []
    for name in names:
        found = read(args.out, name)
        if found is None or found["status"] != "passed" or name in ("environment", "report"):
            (args.out / f"{name}.json").unlink(missing_ok=True)
            command = [sys.executable, __file__, "--stage", name, "--out", str(args.out)]
            try:
                subprocess.run(command, timeout=LIMIT + 25, check=False)
            except subprocess.TimeoutExpired:
                print(f"{name}: stopped after {LIMIT + 25:.0f} s", flush=True)
            found = read(args.out, name) or {"status": "failed", "reason": "the process ended without a result"}
        statuses.append(found["status"])
        if name != "report":
            reason = f": {found['reason']}" if "reason" in found else ""
            print(f"{name:<13}{found['status']}{reason} ({found.get('seconds', 0)} s)", flush=True)
        else:
            print("\n".join(found["table"]))
    return max(
        (CODES[s] for s in statuses if s in ("failed",)), default=max(map(CODES.__getitem__, statuses), default=0)
    )


if __name__ == "__main__":
    raise SystemExit(main())
