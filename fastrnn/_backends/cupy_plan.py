"""Which of its three ways the `cupy` backend takes for a problem on a device, and the sizes its kernels compile for.

The figures are estimates by multiplications, barriers and launches; they have not been measured on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

WAYS = ("block", "grid", "steps")
THREADS = 256
STEP_SECONDS = 25e-6  # two launches by Python
BARRIER_SECONDS = 1e-6  # among the blocks of a group
BLOCK_SECONDS = 0.3e-6  # two barriers of a block, tanh, the exchange in shared memory
RATE = 80e9  # multiply-adds a second of one multiprocessor, in float32
DEVICE_RATE = 60e9  # the same in a product of the library, which keeps all of them busy

_UNITS = {32: (8, 1), 64: (4, 1), 128: (4, 2), 256: (2, 2)}  # units of a block -> threads that share a sum, units each


class Limits(NamedTuple):
    """What the device offers one block, and how many blocks run at once."""

    multiprocessors: int
    shared_bytes: int
    cooperative: bool


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that csrc/cuda/nvrtc/rnn_persistent.cuh compiles for."""

    HP: int
    UNITS: int
    SLICES: int
    PER: int
    REG: int
    ROWS: int
    itemsize: int

    @property
    def group(self) -> int:
        """Blocks that share a layer."""
        return self.HP // self.UNITS

    @property
    def shared_bytes(self) -> int:
        """Of one block: in, partial, state, weights."""
        left = self.HP // self.SLICES - self.REG
        per_row = 2 * self.HP + (self.SLICES + 1) * self.UNITS
        return self.itemsize * (self.ROWS * per_row + left * self.PER * THREADS)

    def macros(self) -> tuple[str, ...]:
        """As options of the compiler."""
        names = ("HP", "UNITS", "SLICES", "PER", "REG", "ROWS")
        return (*(f"-D{name}={getattr(self, name)}" for name in names), f"-DTHREADS={THREADS}")


class Choice(NamedTuple):
    """way: one of WAYS; the sizes and the number of blocks of a persistent kernel."""

    way: str
    sizes: Sizes | None = None
    blocks: int = 0


def sizes(H: int, units: int, rows: int, itemsize: int) -> Sizes:
    """For blocks of so many units: as much of w_hh in registers as leaves room for the sums."""
    slices, per = _UNITS[units]
    HP = -(-H // units) * units
    words, vector, columns = itemsize // 4, 16 // itemsize, HP // slices
    room = (112 if rows <= 4 else 80) // (per * words) // vector * vector
    return Sizes(HP, units, slices, per, min(columns, room), rows, itemsize)


def candidates(H: int, B: int, itemsize: int, limits: Limits) -> list[Choice]:
    """Every persistent kernel that can run this layer here."""
    found = []
    for units in _UNITS:
        for rows in (1, 2, 4, 8):
            it = sizes(H, units, rows, itemsize)
            if it.shared_bytes > limits.shared_bytes or it.group > limits.multiprocessors or rows >= 2 * max(B, 1):
                continue
            tiles = -(-B // rows)
            if it.group == 1:
                if units == 32 or units < 2 * H:
                    found.append(Choice("block", it, tiles))
            elif limits.cooperative:
                found.append(Choice("grid", it, it.group * min(tiles, limits.multiprocessors // it.group)))
    return found


def seconds(choice: Choice, H: int, B: int, itemsize: int, limits: Limits) -> float:
    """The estimated time of one step."""
    slower = 1 if itemsize == 4 else 2
    if choice.sizes is None:
        return STEP_SECONDS + slower * B * H * H / (DEVICE_RATE * limits.multiprocessors)
    it = choice.sizes
    at_once = limits.multiprocessors if it.group == 1 else choice.blocks // it.group
    turns = -(-B // (it.ROWS * at_once))
    latency = BLOCK_SECONDS if it.group == 1 else BLOCK_SECONDS + BARRIER_SECONDS
    from_shared = (it.HP // it.SLICES - it.REG) * it.PER * THREADS * itemsize / 200e9  # weights read every step
    return turns * (latency + from_shared + slower * it.ROWS * it.UNITS * it.HP / RATE)


def choose(H: int, B: int, itemsize: int, limits: Limits) -> Choice:
    """The way with the least estimated time."""
    found = [*candidates(H, B, itemsize, limits), Choice("steps")]
    return min(found, key=lambda choice: seconds(choice, H, B, itemsize, limits))
