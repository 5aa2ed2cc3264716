"""`fastrnn info`: what runs on this machine and why; the text that a bug report needs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import sysconfig
from importlib import import_module
from typing import Any

import numpy as np

import fastrnn

from .. import _backends as _registry
from .. import _threads
from .._speed import limits

_FEATURES = (
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "bmi2",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "amx_tile",
)
_ENVIRONMENT = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info", help="what runs on this machine and why: for bug reports", description=__doc__
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--probe", action="store_true", help="measure multiply-add peak and read bandwidth: a second")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints what collect() finds."""
    facts = collect()
    if args.probe:
        facts["probe"] = _probe(facts["threads"]["number"] or 1)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        lines = _lines(name, value)
        for i, line in enumerate(lines):
            print(f"{name.replace('_', ' ') if i == 0 else '':<16}{line}")
    return 0


def collect() -> dict[str, Any]:
    """All facts, ready for JSON."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {
        "fastrnn": fastrnn.__version__,
        "location": os.path.dirname(os.path.abspath(fastrnn.__file__)),
        "python": f"{platform.python_version()} {platform.python_implementation()}{'' if gil else ', free-threaded'}",
        "numpy": f"{np.__version__}, BLAS {_blas()}",
        "platform": f"{platform.platform()} ({sysconfig.get_platform()})",
        "cpu": _cpu(),
        "instruction_set": _instruction_set(),
        "threads": _thread_count(),
        "backends": _backends(),
        "torch_node": _torch_node(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("FASTRNN_") or name in _ENVIRONMENT
        },
    }


def _lines(name: str, value: Any) -> list[str]:
    if name == "backends":
        rows = [
            f"{b['name']:<8}{b['device']:<6}{'available' if b['available'] else 'no: ' + b['reason']}"
            for b in value["list"]
        ]
        on_gpu = value.get("auto_on_cuda")
        auto = f"auto takes {value['auto']}" + (f", on a GPU {on_gpu}" if on_gpu else "")
        return [f"{auto} ({value['why']})", *rows]
    if name == "torch_node":
        if value["available"]:
            return [value["path"]]
        return [value["reason"] + (f"; to compile it: {value['command']}" if value["command"] else "")]
    if name == "instruction_set":
        rows = [f"{isa['name']:<8}{_ability(isa)}" for isa in value["list"]]
        return [f"{value['active']} ({value['why']})", *rows]
    if name == "cpu":
        return [value["model"], " ".join(value["features"])] if value["features"] else [value["model"]]
    if name == "threads":
        return [f"{value['number']} ({value['why']})"]
    if name == "probe":
        return [value["why"]] if "why" in value else [f"{key:<18}{text}" for key, text in _probe_lines(value)]
    if name == "environment":
        return [f"{key}={text}" for key, text in value.items()] or ["nothing set"]
    return [str(value)]


def _ability(isa: dict[str, Any]) -> str:
    if not isa["compiled"]:
        return "not compiled for this platform"
    return "supported" if isa["supported"] else "this CPU lacks it"


def _instruction_set() -> dict[str, Any]:
    try:
        native = import_module("fastrnn._fastrnn_cpu")
    except ImportError as error:
        return {"active": None, "why": f"the native module is missing: {error}", "list": []}
    isas = [{"name": name, "compiled": compiled, "supported": supported} for name, compiled, supported in native.isas()]
    forced = os.environ.get("FASTRNN_ISA")
    try:
        return {
            "active": native.active_isa(),
            "why": "FASTRNN_ISA" if forced else "the best this CPU supports",
            "list": isas,
        }
    except RuntimeError as error:
        return {"active": None, "why": str(error), "list": isas}


def _probe(threads: int) -> dict[str, Any]:
    """The figures, or why there are none."""
    try:
        return limits.probe(threads) or {"why": "needs the native module"}
    except RuntimeError as error:  # an impossible FASTRNN_ISA, threads that the system refuses
        return {"why": str(error)}


def _probe_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("FMA peak " + dtype, rates, "GFLOP/s") for dtype, rates in found["fma_peak_gflops"].items()]
    rows += [("reads of " + size, rates, "GB/s") for size, rates in found["read_bandwidth_gb_s"].items()]
    return [
        (name, ", ".join(f"{rate:.0f} {unit} on {n} thread{'s' * (n != '1')}" for n, rate in rates.items()))
        for name, rates, unit in rows
    ]


def _thread_count() -> dict[str, Any]:
    try:
        number = fastrnn.get_num_threads()
    except ValueError as error:
        return {"number": None, "why": str(error)}
    if "FASTRNN_NUM_THREADS" in os.environ:
        return {"number": number, "why": "FASTRNN_NUM_THREADS"}
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _threads._cgroup_cpus()
    why = f"{allowed} of {os.cpu_count()} CPUs allowed" + (f", cgroup quota of {quota}" if quota else "")
    return {"number": number, "why": why}


def _backends() -> dict[str, Any]:
    backends = [_registry._load(b.device, b.name) for b in fastrnn.backends()]  # numba is imported here, not looked for
    rows = [{"name": b.name, "device": b.device, "available": b.available, "reason": b.reason} for b in backends]
    found: dict[str, Any] = {
        "auto": next((b.name for b in backends if b.available and b.device == "cpu"), None),
        "why": "the fastest available",
        "auto_on_cuda": next((b.name for b in backends if b.available and b.device == "cuda"), None),
    }
    forced = os.environ.get("FASTRNN_BACKEND", "auto")
    if forced != "auto":
        try:
            _registry.get("auto", next((b.device for b in backends if b.name == forced), "cpu"))
            found = {"auto": forced, "why": "FASTRNN_BACKEND"}
        except (ValueError, RuntimeError) as error:
            found = {"auto": None, "why": str(error)}
    return {**found, "list": rows}


def _torch_node() -> dict[str, Any]:
    """Whether short recorded calls of fastrnn.torch are made by C++."""
    found: dict[str, Any] = {"available": False, "reason": "PyTorch is not installed", "path": None, "command": None}
    try:
        node = import_module("fastrnn.torch.node")
        switch = node.switch()
        path, why_not = node.state()
    except ImportError:
        return found
    except (ValueError, OSError, RuntimeError) as error:
        return {**found, "reason": str(error)}
    reason = why_not or ("FASTRNN_TORCH_NODE=0" if switch == "0" else None)
    return {"available": reason is None, "reason": reason, "path": str(path), "command": node.COMMAND}


def _cpu() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        found = {key.strip(): text.strip() for key, text in fields.items()}
        model, flags = found.get("model name", model), set(found.get("flags", found.get("Features", "")).split())
    except OSError:
        pass
    return {"model": model, "features": [name for name in _FEATURES if name in flags] or sorted(flags)}


def _blas() -> str:
    try:
        found: Any = np.show_config(mode="dicts")  # NumPy 1.25 and newer
        blas = found["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    except (TypeError, KeyError):
        return "unknown"
