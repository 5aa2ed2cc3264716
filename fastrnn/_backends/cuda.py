"""The `cuda` backend: the kernels of csrc/cuda, through the native module _fastrnn_cuda, on CuPy arrays or torch CUDA
tensors; the large products are CuPy's or torch's.

Everything is enqueued on the caller's current stream and nothing waits for it: with arrays that are there already, a
call can be captured in a CUDA graph (not with lengths or packed rows, which are copied to the device).

Numerics: float32 and float64 as given; float16 and bfloat16 (torch) are summed in float32, the state is rounded once a
step. Tensor cores multiply float16 and bfloat16, and float32 from 32 rows on, there as the sum of three products of
tf32 ("tf32x3": each to 2^-21 of itself; an infinite weight or state gives NaN in its row). FASTRNN_TF32=1 in the
environment allows one product of tf32 (2^-10) in the recurrence of float32; the products outside it are the library's,
by its own settings. tanh to 2 ULP. No float atomics: the recurrence gives the same bits in every run, the products
where their library does.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

import numpy as np

from . import cuda_products
from .cuda_call import FIELDS, Call
from .options import NEEDS, Array, RnnGradients, RnnOptions

native: Any = import_module("fastrnn._fastrnn_cuda")


def _require_device() -> None:
    """Raises ImportError where no GPU can be used; makes no CUDA context."""
    try:
        count = native.device_count()
    except native.CudaError as error:  # no driver, an old one, no device
        raise ImportError(f"no CUDA device: {error}") from None
    if not count:
        raise ImportError("no CUDA device is visible")


_require_device()
if native.call_fields != len(FIELDS):
    raise ImportError(f"_fastrnn_cuda is of another version: a call of {native.call_fields} fields, not {len(FIELDS)}")

_forced: ContextVar[tuple[str, int] | None] = ContextVar("fastrnn_cuda_kernel", default=None)


@contextmanager
def forced_kernel(name: str, cluster: int = 1) -> Iterator[None]:
    """All calls in this context take the kernel `name` (one of native.kernels), over clusters of `cluster` blocks.

    A call that the kernel cannot do raises ValueError with the reason.
    """
    token = _forced.set((name, cluster))
    try:
        yield
    finally:
        _forced.reset(token)


def chosen_kernel(call: Call, backward: bool, device: int) -> tuple[str, int]:
    """The kernel and the blocks of a cluster that a call takes: as forced, else by the rules of csrc/cuda/plan.h."""
    forced = _forced.get()
    if forced is not None:
        return forced
    name, cluster = native.choose(call.table, backward, device, os.environ.get("FASTRNN_TF32") == "1")
    return str(name), int(cluster)


class _CupyLibrary:
    def __init__(self, like: Any) -> None:
        self.xp: Any = import_module("cupy")
        self.like, self.number, self.dtype = like, int(like.device.id), str(like.dtype)

    def device(self) -> AbstractContextManager[Any]:
        return self.xp.cuda.Device(self.number)  # type: ignore[no-any-return]

    def stream(self) -> int:
        return int(self.xp.cuda.get_current_stream().ptr)

    def empty(self, shape: tuple[int, ...]) -> Any:
        return self.xp.empty(shape, self.like.dtype)

    def bytes(self, count: int) -> Any:
        return self.xp.empty(count, self.xp.uint8)

    def on_device(self, array: Array) -> Any:
        return self.xp.asarray(array)

    def contiguous(self, array: Any) -> Any:
        return self.xp.ascontiguousarray(array)

    def product(self, a: Any, b: Any, out: Any = None) -> Any:
        return self.xp.matmul(a, b, out=out)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        zero = self.like.dtype.type(0)
        return self.xp.where(condition, zero if isinstance(a, int) else a, zero if isinstance(b, int) else b)

    def sum_rows(self, a: Any) -> Any:
        return a.sum(axis=0)


class _TorchLibrary:
    def __init__(self, like: Any) -> None:
        self.torch: Any = import_module("torch")
        self.like, self.number = like, int(like.device.index)
        self.dtype = str(like.dtype).removeprefix("torch.")

    def device(self) -> AbstractContextManager[Any]:
        return self.torch.no_grad()  # type: ignore[no-any-return]

    def stream(self) -> int:
        return int(self.torch.cuda.current_stream(self.like.device).cuda_stream)

    def empty(self, shape: tuple[int, ...]) -> Any:
        return self.like.new_empty(shape)

    def bytes(self, count: int) -> Any:
        return self.like.new_empty(count, dtype=self.torch.uint8)

    def on_device(self, array: Array) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.like.device)

    def contiguous(self, array: Any) -> Any:
        return array.contiguous()

    def product(self, a: Any, b: Any, out: Any = None) -> Any:
        return self.torch.matmul(a, b, out=out)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        zero = self.like.new_zeros(())
        return self.torch.where(condition, zero if isinstance(a, int) else a, zero if isinstance(b, int) else b)

    def sum_rows(self, a: Any) -> Any:
        return a.sum(0)


def _library(x: Any) -> _CupyLibrary | _TorchLibrary:
    return _TorchLibrary(x) if hasattr(x, "data_ptr") else _CupyLibrary(x)


def _launcher(library: _CupyLibrary | _TorchLibrary) -> cuda_products.Launch:
    def launch(call: Call, backward: bool) -> None:
        kernel, cluster = chosen_kernel(call, backward, library.number)
        count = native.workspace_bytes(kernel, call.table)
        if count:  # goes back to the library's pool when this returns, for work behind this on the same stream
            workspace = library.bytes(count)
            call.arrays.append(workspace)
            call.set(workspace=workspace.data_ptr() if hasattr(workspace, "data_ptr") else workspace.data.ptr)
        native.launch(kernel, cluster, call.table, backward, library.number, library.stream())

    return launch


# ---- The functions of a backend


def pack_weights(w_ih: Array, w_hh: Array) -> None:
    """The kernels and products read the weights as they are."""


def rnn_forward(
    x: Array,
    h_0: Array | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    options: RnnOptions,
    out: Array | None = None,
    packed: Any = None,
) -> tuple[Array, Array]:
    """output (T, B, H), zero beyond a row's length, and h_n (B, H), each row's state after its own last step.

    Memory: the results, (T, B, H) once more where out is given, a copy of x if not C-contiguous; with the kernel "step"
    3 B H numbers. Raises ValueError for alpha, which these kernels do not have.
    """
    library = _library(x)
    with library.device():
        return cuda_products.rnn_forward(library, _launcher(library), x, h_0, w_ih, w_hh, b_ih, b_hh, options, out)


def rnn_backward(
    d_output: Array | None,
    d_h_n: Array | None,
    output: Array,
    x: Array,
    h_0: Array | None,
    w_ih: Array,
    w_hh: Array,
    options: RnnOptions,
    needs: Collection[str] = NEEDS,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
) -> RnnGradients:
    """Gradients by BPTT; d_x is exactly 0 beyond a row's length.

    Memory: the results, d_z (T, B, H), the transpose of w_hh, copies of what is not C-contiguous; x once more where
    lengths are given; (T, B, H) for the states where reset, recurrent_mask or packed rows are given.
    """
    library = _library(x)
    with library.device():
        return cuda_products.rnn_backward(
            library, _launcher(library), d_output, d_h_n, output, x, h_0, w_ih, w_hh, options, needs
        )
