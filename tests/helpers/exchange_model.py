"""The exchange of the cluster kernels (csrc/cuda/persistent.cuh, mma.cuh, cluster.cuh) as state machines.

C blocks of W warps hand v_i to all blocks in every step. A warp waits for v_i, reads it, and sends its share of v_{i+1}
to every block; sends arrive in any order, as one write that counts its bytes at the receiver's mbarrier. Warp 0 of a
block arms the barrier for step i + 2 when it has seen step i complete. Where there are slices (tensor cores), a warp
reads half of v_i, leaves its sums for its neighbour, passes a barrier of its block and takes what was left for it
before it sends: one place for each. explore() walks through all interleavings of a small cluster, walk() through a
random one of a larger one; they raise ExchangeError where one of them

    reads what is not the whole of v_i, or not the sums of step i, overwrites what a warp has yet to read or to take,
    reaches a barrier that is not set up or a block that has left, arms a barrier twice, receives bytes of a step before
    its barrier is armed, gets stuck, or ends with bytes still counted.

Mutation names what a wrong kernel would do; each has to be found.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

TILE = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "tile.cuh"


class ExchangeError(AssertionError):
    """An interleaving that must not be."""


class Mutation(Enum):
    NONE = "the kernel as it is"
    SINGLE_BUFFER = "one buffer and one barrier for all steps"
    EARLY_SEND = "a warp sends v_{i+1} before it has read v_i"
    EARLY_ARM = "the barrier of step i + 2 is armed before step i is complete"
    LATE_ARM = "the barrier of step i + 2 is armed after v_{i+1} was sent"
    SURPLUS_SEND = "v_T is sent too, for which nobody waits, and a block leaves without the last barrier"
    NO_END = "a block leaves without the last barrier of the cluster"  # not wrong: see the test
    NO_BEGIN = "no barrier of the cluster after the barriers are set up"
    NO_FENCE = "no fence behind mbarrier.init: other blocks may see the barrier late"
    NO_RELEASE = "the bytes are counted before the value is there"
    FEW_BYTES = "the padded rows of one warp are not expected"
    SILENT_WARP = "a warp with padded units alone sends nothing"
    WRONG_PARITY = "the parity of i instead of that of i / 2"
    NO_WAIT = "a warp does not wait in the last step"
    NO_SYNC = "no barrier of the block between the sums that are left and those that are taken"
    SEND_BEFORE_TAKE = "a warp sends v_{i+1} before it has taken the sums left for step i"


def phase_arithmetic(source: str) -> tuple[Callable[[int], int], Callable[[int], int]]:
    """buffer_of and parity_of, out of the text of tile.cuh."""
    found = []
    for name in ("buffer_of", "parity_of"):
        match = re.search(rf"{name}\(int64 i\) {{ return static_cast<\w+>\(([^;{{}}]*)\); }}", source)
        if match is None or not re.fullmatch(r"[i0-9 ()&>]+", match.group(1)):
            raise ValueError(f"{name}: expected an expression in i, got {match and match.group(1)!r}")
        found.append(eval(f"lambda i: {match.group(1)}"))
    return found[0], found[1]


class Barrier(NamedTuple):
    """An mbarrier for one arrival. A phase is complete when nobody has to arrive and no byte is missing."""

    phase: int = 0
    pending: int = 0
    missing: int = 0
    set_up: bool = False
    seen: bool = False  # by the other blocks

    def settled(self) -> Barrier:
        done = self.set_up and self.pending == 0 and self.missing == 0
        return Barrier(self.phase + 1, 1, 0, True, self.seen) if done else self


class Slot(NamedTuple):
    """A sender's share of one buffer: the step of its value (-1: zeros, -2: nothing), the warps that have read it."""

    step: int = -2
    readers: frozenset[int] = frozenset()


class State(NamedTuple):
    at: tuple[int, ...]  # each warp's place in its program
    barriers: tuple[tuple[Barrier, Barrier], ...]  # by block
    slots: tuple[tuple[Slot, ...], ...]  # by block: (2, senders)
    flying: frozenset[tuple[str, int, int, int]]  # what, sender, block, step
    met: tuple[int, int]  # how many warps have come to the first and the last barrier of the cluster
    left: tuple[int, ...] = ()  # for each warp: the step of the sums that its neighbour has left, -1: none
    synced: tuple[int, ...] = ()  # by block: how many warps have come to its barrier


@dataclass(frozen=True)
class Model:
    C: int
    W: int
    T: int
    mutation: Mutation = Mutation.NONE
    buffer_of: Callable[[int], int] = lambda i: i & 1
    parity_of: Callable[[int], int] = lambda i: (i >> 1) & 1
    slices: bool = False

    @property
    def senders(self) -> int:
        return self.C * self.W

    def program(self, warp: int) -> list[tuple[Any, ...]]:
        """What one warp does, in order."""
        m, first, ops = self.mutation, warp % self.W == 0, []
        ops.append(("zero",))
        if first:
            ops.append(("set up",))
            ops += [("arm", i) for i in range(min(2, self.T))]
        if m is not Mutation.NO_BEGIN:
            ops += [("come", 0), ("meet", 0)]
        elif not first:
            ops.append(("own barrier",))
        if self.T:
            ops.append(("send", 0))
        for i in range(self.T):
            arm = [("arm", i + 2)] if first and i + 2 < self.T else []
            send = [("send", i + 1)] if i + 1 < self.T or m is Mutation.SURPLUS_SEND else []
            wait = [] if m is Mutation.NO_WAIT and i == self.T - 1 else [("wait", i)]
            read: list[tuple[Any, ...]] = [("read", i, half) for half in (0, 1)]
            if self.slices:
                sync = [] if m is Mutation.NO_SYNC else [("come to sync",), ("sync", i)]
                take = [("take", i)]
                read = [("read", i, warp % 2), ("leave", i), *sync, *([] if m is Mutation.SEND_BEFORE_TAKE else take)]
                send = [*send, *take] if m is Mutation.SEND_BEFORE_TAKE else send
            if m is Mutation.EARLY_ARM:
                ops += [*arm, *wait, *read, *send]
            elif m is Mutation.LATE_ARM:
                ops += [*wait, *read, *send, *arm]
            elif m is Mutation.EARLY_SEND:
                ops += [*wait, *arm, *send, *read]
            else:
                ops += [*wait, *arm, *read, *send]
        if m not in (Mutation.NO_END, Mutation.SURPLUS_SEND):
            ops += [("come", 1), ("meet", 1)]
        return ops

    def start(self) -> State:
        slots = tuple((Slot(),) * (2 * self.senders) for _ in range(self.C))
        none = (-1,) * self.senders
        return State(
            (0,) * self.senders, ((Barrier(), Barrier()),) * self.C, slots, frozenset(), (0, 0), none, (0,) * self.C
        )

    @property
    def readers(self) -> int:
        """Of a block, of each share."""
        return self.W // 2 if self.slices else self.W

    def bytes_of_step(self) -> int:
        return self.senders - (self.mutation is Mutation.FEW_BYTES)

    def place(self, i: int) -> int:
        return 0 if self.mutation is Mutation.SINGLE_BUFFER else self.buffer_of(i)

    # ---- One step of one of the machines

    def moves(self, state: State, programs: list[list[tuple[Any, ...]]]) -> Iterator[State]:
        """Every state that may come next."""
        for warp, at in enumerate(state.at):
            if at < len(programs[warp]):
                after = self.act(state, warp, programs[warp][at])
                if after is not None:
                    yield after._replace(at=(*after.at[:warp], at + 1, *after.at[warp + 1 :]))
        for message in state.flying:
            after = self.arrive(state._replace(flying=state.flying - {message}), programs, *message)
            if after is not None:
                yield after

    def act(self, state: State, warp: int, op: tuple[Any, ...]) -> State | None:
        """What the warp does; None: it has to wait."""
        block, own = warp // self.W, warp % self.W
        if op[0] == "zero":
            slots = list(state.slots[block])
            for s in range(own, len(slots), self.W):
                slots[s] = Slot(-1)
            return self._with_slots(state, block, slots)
        if op[0] == "set up":
            seen = self.mutation is not Mutation.NO_FENCE
            made = tuple(b._replace(pending=1, set_up=True, seen=seen) for b in state.barriers[block])
            after = self._with_barriers(state, block, made)
            if seen:
                return after
            late = frozenset(("seen", warp, block, buffer) for buffer in (0, 1))
            return after._replace(flying=after.flying | late)
        if op[0] == "arm":
            i, barriers = op[1], list(state.barriers[block])
            barrier = barriers[self.place(i)]
            if barrier.pending < 1:
                raise ExchangeError(f"the barrier of step {i} is armed twice")
            barriers[self.place(i)] = barrier._replace(
                pending=barrier.pending - 1, missing=barrier.missing + self.bytes_of_step()
            ).settled()
            return self._with_barriers(state, block, tuple(barriers))
        if op[0] == "own barrier":
            return state if all(b.set_up for b in state.barriers[block]) else None
        if op[0] == "come":
            met = list(state.met)
            met[op[1]] += 1
            return state._replace(met=(met[0], met[1]))
        if op[0] == "meet":
            return state if state.met[op[1]] == self.senders else None
        if op[0] == "send":
            if self.mutation is Mutation.SILENT_WARP and warp == self.senders - 1:
                return state
            kinds = ("value", "bytes") if self.mutation is Mutation.NO_RELEASE else ("both",)
            sent = {(kind, warp, to, op[1]) for kind in kinds for to in range(self.C)}
            return state._replace(flying=state.flying | sent)
        if op[0] == "wait":
            i = op[1]
            parity = i & 1 if self.mutation is Mutation.WRONG_PARITY else self.parity_of(i)
            return state if state.barriers[block][self.place(i)].phase & 1 != parity else None
        if op[0] == "come to sync":
            return state._replace(synced=_with(state.synced, block, state.synced[block] + 1))
        if op[0] == "sync":
            return state if state.synced[block] >= (op[1] + 1) * self.W else None
        if op[0] == "leave":
            if state.left[warp ^ 1] != -1:
                raise ExchangeError(
                    f"warp {warp} overwrites the sums of step {state.left[warp ^ 1]} before they are taken"
                )
            return state._replace(left=_with(state.left, warp ^ 1, op[1]))
        if op[0] == "take":
            if state.left[warp] != op[1]:
                raise ExchangeError(f"warp {warp} takes the sums of step {state.left[warp]} for those of step {op[1]}")
            return state._replace(left=_with(state.left, warp, -1))
        assert op[0] == "read"
        i, half, slots = op[1], op[2], list(state.slots[block])
        for sender in range(half, self.senders, 2):
            s = self.place(i) * self.senders + sender
            if slots[s].step != i:
                raise ExchangeError(f"warp {warp} reads v_{slots[s].step} of warp {sender} instead of v_{i}")
            slots[s] = slots[s]._replace(readers=slots[s].readers | {own})
        return self._with_slots(state, block, slots)

    def arrive(self, state: State, programs: Any, kind: str, sender: int, block: int, i: int) -> State | None:
        """Something that was under way gets where it goes."""
        if kind == "seen":
            barriers = list(state.barriers[block])
            barriers[i] = barriers[i]._replace(seen=True)
            return self._with_barriers(state, block, tuple(barriers))
        here = range(block * self.W, (block + 1) * self.W)
        if all(state.at[w] == len(programs[w]) for w in here):
            raise ExchangeError(f"v_{i} of warp {sender} reaches block {block}, which has left")
        if kind in ("both", "value"):
            slots, s = list(state.slots[block]), self.place(i) * self.senders + sender
            if slots[s].step == -2:
                raise ExchangeError(f"v_{i} of warp {sender} will be overwritten by zeros")
            if slots[s].step >= 0 and len(slots[s].readers) < self.readers:
                raise ExchangeError(
                    f"v_{slots[s].step} of warp {sender} is overwritten in block {block} before all have read it"
                )
            slots[s] = Slot(i)
            state = self._with_slots(state, block, slots)
        if kind in ("both", "bytes"):
            barriers = list(state.barriers[block])
            barrier = barriers[self.place(i)]
            if not (barrier.set_up and (barrier.seen or sender // self.W == block)):
                raise ExchangeError(f"v_{i} of warp {sender} reaches block {block} before its barrier is set up")
            barrier = barrier._replace(missing=barrier.missing - 1)
            if barrier.missing < 0:
                raise ExchangeError(f"v_{i} of warp {sender} reaches block {block} before step {i} is armed")
            barriers[self.place(i)] = barrier.settled()
            state = self._with_barriers(state, block, tuple(barriers))
        return state

    def check_end(self, state: State, programs: list[list[tuple[Any, ...]]]) -> None:
        """No machine can move: it has to be because all is done."""
        stuck = [w for w, at in enumerate(state.at) if at < len(programs[w])]
        if stuck:
            raise ExchangeError(
                f"warps {stuck} wait for ever, the first one at {programs[stuck[0]][state.at[stuck[0]]]}"
            )
        for block, pair in enumerate(state.barriers):
            for barrier in pair:
                if barrier.missing or barrier.pending != 1:
                    raise ExchangeError(f"block {block} ends with a barrier that still counts: {barrier}")

    @staticmethod
    def _with_slots(state: State, block: int, slots: list[Slot]) -> State:
        return state._replace(slots=(*state.slots[:block], tuple(slots), *state.slots[block + 1 :]))

    @staticmethod
    def _with_barriers(state: State, block: int, pair: Any) -> State:
        return state._replace(barriers=(*state.barriers[:block], pair, *state.barriers[block + 1 :]))


def _with(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*values[:at], value, *values[at + 1 :])


def explore(model: Model) -> int:
    """Walks through every interleaving; returns the number of states."""
    programs = [model.program(warp) for warp in range(model.senders)]
    start = model.start()
    known, left = {start}, [start]
    while left:
        state = left.pop()
        ended = True
        for after in model.moves(state, programs):
            ended = False
            if after not in known:
                known.add(after)
                left.append(after)
        if ended:
            model.check_end(state, programs)
    return len(known)


def walk(model: Model, seed: int) -> None:
    """One interleaving, drawn at random; some walks favour one warp, so that it runs ahead as far as it can."""
    programs = [model.program(warp) for warp in range(model.senders)]
    draw, state = random.Random(seed), model.start()
    while True:
        after = list(model.moves(state, programs))
        if not after:
            break
        state = after[0] if seed % 3 == 0 and draw.random() < 0.7 else draw.choice(after)
    model.check_end(state, programs)


def with_arithmetic(model: Model, source: str) -> Model:
    """The model with the kernel's own phase arithmetic."""
    buffer_of, parity_of = phase_arithmetic(source)
    return replace(model, buffer_of=buffer_of, parity_of=parity_of)
