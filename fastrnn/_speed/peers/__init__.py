"""The other libraries: one file each, with `make(problem) -> Arm`. Imported only in the process that runs the arm.

Each gets its best setting: weights in the layout it likes and packed ahead of the clock where its API allows that, its
own axis order, compiled before it is timed, buffers kept where it takes some. Gradients it leaves in its own layout are
unpacked off the clock (Arm.unpack).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module, util

from ..arms import Maker, UnavailableError

TORCH_LINE = "pip install torch"
JAX_LINE = "pip install jax jaxlib"


@dataclass(frozen=True)
class Peer:
    file: str
    modules: tuple[str, ...]
    line: str  # gets it
    dtypes: tuple[str, ...] = ("float32", "float64")  # Keras 3.15 multiplies float64 in float32
    keras_backend: str = ""


PEERS = {
    "torch.compile": Peer("torch_loop", ("torch",), TORCH_LINE),
    "jax": Peer("jax_scan", ("jax", "jaxlib"), JAX_LINE),
    "onnxruntime": Peer("onnxruntime_rnn", ("onnxruntime", "onnx"), "pip install onnxruntime onnx", ("float32",)),
    "keras-jax": Peer(
        "keras_rnn", ("keras", "jax"), f"{JAX_LINE} keras", ("float32",), keras_backend="jax"
    ),
    "keras-torch": Peer(
        "keras_rnn", ("keras", "torch"), f"{TORCH_LINE} keras", ("float32",), keras_backend="torch"
    ),
    "onednn": Peer(
        "onednn", (), "pip install onednn-cpu-gomp==2023.2.0 onednn-devel-cpu-gomp==2023.2.0, and a C++ compiler;"
        " or Debian's libdnnl-dev", ("float32",),
    ),
}  # fmt: skip


def environment(name: str, threads: int) -> dict[str, str]:
    """What a process that runs the arm `name` needs before anything is imported: some libraries read it once only."""
    backend = PEERS[name].keras_backend if name in PEERS else ""
    xla = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={threads}"
    return {
        "JAX_PLATFORMS": "cpu",
        "NPROC": str(threads),  # XLA's pool
        "OMP_NUM_THREADS": str(threads),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla}".strip(),
        **({"KERAS_BACKEND": backend} if backend else {}),
    }


def require(name: str, dtype: str) -> None:
    """UnavailableError, with the line that gets it, unless the peer can run here in this dtype. Imports nothing."""
    peer = PEERS[name]
    if dtype not in peer.dtypes:
        raise UnavailableError(f"{name} has no {dtype}")
    absent = [module for module in peer.modules if not util.find_spec(module)]
    if absent:
        raise UnavailableError(f"{', '.join(absent)}: not installed; to get it: {peer.line}")
    if name == "onednn":
        import_module("fastrnn._speed.peers.onednn").find()


def maker(name: str, threads: int) -> Maker:
    """In the process with environment(name, threads). Raises UnavailableError."""
    peer = PEERS[name]
    try:
        make = import_module(f"{__name__}.{peer.file}").make
    except ImportError as error:
        raise UnavailableError(f"{name}: {error}; to get it: {peer.line}") from error
    return lambda p: make(name, p, threads)
