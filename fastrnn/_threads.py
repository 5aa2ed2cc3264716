"""How many threads the CPU kernels use: set_num_threads, else FASTRNN_NUM_THREADS, else what this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache

from ._validate import integer

MOST = 4096

_number: int | None = None
override: ContextVar[int | None] = ContextVar("fastrnn.threads", default=None)


def set_num_threads(n: int) -> None:
    """Makes the CPU kernels of this process use up to n threads, the calling one included.

    The `cpp` backend gives the same bits for any n. Raises TypeError unless n is an int, ValueError unless it is 1 to
    4096.
    """
    global _number
    _number = integer("n", n, at_least=1, at_most=MOST)


def get_num_threads() -> int:
    """The number of threads a call made here and now may use.

    The innermost `with fastrnn.threads(n)`, else what set_num_threads set, else FASTRNN_NUM_THREADS, else the number
    of CPUs in this process's affinity mask, limited by its cgroup's CPU quota; the last two are read once. Raises
    ValueError when FASTRNN_NUM_THREADS is needed and is not an integer from 1 to 4096.
    """
    return override.get() or _number or _default()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """`with fastrnn.threads(n):` limits the calls inside to n threads, for this Python thread or asyncio task only.

    Raises TypeError unless n is an int, ValueError unless it is 1 to 4096.
    """
    token = override.set(integer("n", n, at_least=1, at_most=MOST))
    try:
        yield
    finally:
        override.reset(token)


@cache
def _default() -> int:
    text = os.environ.get("FASTRNN_NUM_THREADS")
    if text is not None:
        if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= MOST):
            raise ValueError(f"FASTRNN_NUM_THREADS: expected an integer from 1 to {MOST}, got {text!r}")
        return int(text)
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(affinity, _cgroup_cpus() or affinity, MOST)


def _cgroup_cpus(membership: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> int | None:
    """The whole CPUs of the tightest CPU quota above this process; None without a quota. cgroup v2 and v1."""
    quotas = []
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root = mount
        elif "cpu" in controllers.split(","):
            root = f"{mount}/cpu"
        else:
            continue
        names = [name for name in path.split("/") if name]
        for depth in range(len(names) + 1):  # every ancestor limits; inside a container some of them are not visible
            group = "/".join([root, *names[:depth]])
            text = (
                _read(f"{group}/cpu.max")
                or f"{_read(f'{group}/cpu.cfs_quota_us')} {_read(f'{group}/cpu.cfs_period_us')}"
            )
            with suppress(ValueError):  # "max", or no such file
                quota, period = (int(word) for word in text.split())
                if quota > 0 and period > 0:
                    quotas.append(max(1, quota // period))
    return min(quotas, default=None)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
