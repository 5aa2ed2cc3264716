"""The device of the stand-in for CuPy: an H200's limits, kernels compiled by the host's compiler."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

current = threading.local()
waits = 0


class Device:
    def __init__(self, number: int | None = None) -> None:
        self.id = getattr(current, "number", 0) if number is None else number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        self._before, current.number = getattr(current, "number", 0), self.id
        return self

    def __exit__(self, *_: object) -> None:
        current.number = self._before

    def use(self) -> None:
        current.number = self.id


class MemoryPointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class Stream:
    null: Any = None
    ptr = 0


class ExternalStream:
    used: list[int] = []  # noqa: RUF012

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        self.ptr = ptr

    def __enter__(self) -> ExternalStream:
        ExternalStream.used.append(self.ptr)
        return self

    def __exit__(self, *_: object) -> None:
        pass


class CUDARuntimeError(RuntimeError):
    pass


class runtime:  # noqa: N801
    cudaDevAttrMultiProcessorCount = 0  # noqa: N815
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 1  # noqa: N815
    cudaDevAttrCooperativeLaunch = 2  # noqa: N815

    @staticmethod
    def getDeviceCount() -> int:  # noqa: N802
        count = int(os.environ.get("FAKE_CUDA_DEVICES", "1"))
        if count < 0:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
        return count

    @staticmethod
    def deviceGetAttribute(attribute: int, number: int) -> int:  # noqa: N802
        return (132, 227 << 10, 1)[attribute]


class driver:  # noqa: N801
    @staticmethod
    def occupancyMaxActiveBlocksPerMultiprocessor(kernel: int, threads: int, shared: int) -> int:  # noqa: N802
        return 1


class Kernel:
    kernel = MemoryPointer(0)

    def __init__(self, code: str, options: tuple[str, ...], name: str, together: bool) -> None:
        from helpers import cuda_on_host

        start = code.index("// The recurrence as one kernel a step")  # what precedes is for the device alone
        self.library = cuda_on_host.compile_text(code[start:], options, name)
        self.together = together
        self.name, self.max_dynamic_shared_size_bytes = name, 48 << 10

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: Any, shared_mem: int = 0) -> None:
        from helpers import cuda_on_host

        assert block == (256,)
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        assert all(isinstance(a, np.generic) or a.device == Device() for a in arguments)
        given = [a if isinstance(a, np.generic) else a._array for a in arguments]
        cuda_on_host.run(self.library, self.name, grid[0], shared_mem, self.together, given)
