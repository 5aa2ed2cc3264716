"""The exchange between the blocks of a cluster, in all interleavings of small clusters and random ones of larger ones;
and that each way to get it wrong is found (helpers/exchange_model.py)."""

from __future__ import annotations

import pytest
from helpers.exchange_model import (
    TILE,
    ExchangeError,
    Model,
    Mutation,
    explore,
    phase_arithmetic,
    walk,
    with_arithmetic,
)

# what csrc/cuda/tile.cuh says, for a checkout without it
ARITHMETIC = """
FASTRNN_HD int buffer_of(int64 i) { return static_cast<int>(i & 1); }
FASTRNN_HD unsigned parity_of(int64 i) { return static_cast<unsigned>((i >> 1) & 1); }
"""
SOURCE = TILE.read_text() if TILE.exists() else ARITHMETIC


def model(C: int, W: int, T: int, mutation: Mutation = Mutation.NONE, slices: bool = False) -> Model:
    return with_arithmetic(Model(C, W, T, mutation, slices=slices), SOURCE)


@pytest.mark.parametrize(("C", "W", "T"), [(1, 2, 4), (2, 1, 0), (2, 1, 1), (2, 1, 2), (2, 1, 6), (3, 1, 1)])
def test_every_interleaving_is_right(C: int, W: int, T: int) -> None:
    assert explore(model(C, W, T)) > T


@pytest.mark.nightly
@pytest.mark.parametrize(("C", "W", "T"), [(2, 2, 2), (3, 1, 2), (3, 1, 3)])
def test_every_interleaving_of_larger_clusters_is_right(C: int, W: int, T: int) -> None:
    explore(model(C, W, T))


@pytest.mark.parametrize(("C", "W", "T"), [(2, 2, 6), (2, 3, 4), (3, 1, 6), (3, 2, 4)])
def test_random_interleavings_are_right(C: int, W: int, T: int) -> None:
    for seed in range(30):
        walk(model(C, W, T), seed)


@pytest.mark.parametrize(("C", "T"), [(1, 0), (1, 1), (1, 5), (2, 1)])
def test_every_interleaving_of_slices_is_right(C: int, T: int) -> None:
    """Blocks of two warps, each with half of the columns."""
    assert explore(model(C, 2, T, slices=True)) > T


@pytest.mark.parametrize(("C", "W", "T"), [(2, 2, 6), (2, 4, 4), (3, 2, 4)])
def test_random_interleavings_of_slices_are_right(C: int, W: int, T: int) -> None:
    for seed in range(30):
        walk(model(C, W, T, slices=True), seed)


@pytest.mark.parametrize("mutation", [Mutation.NO_SYNC, Mutation.SEND_BEFORE_TAKE, Mutation.SINGLE_BUFFER])
def test_what_is_wrong_with_slices_is_found(mutation: Mutation) -> None:
    with pytest.raises(ExchangeError):
        explore(model(1, 2, 5, mutation, slices=True))
    with pytest.raises(ExchangeError):
        _walks(model(2, 2, 6, mutation, slices=True))


RIGHT = (Mutation.NONE, Mutation.NO_END)
OF_SLICES = (Mutation.NO_SYNC, Mutation.SEND_BEFORE_TAKE)
WRONG = [m for m in Mutation if m not in (*RIGHT, *OF_SLICES)]


@pytest.mark.parametrize("mutation", WRONG, ids=lambda m: m.name.lower())
def test_what_is_wrong_is_found(mutation: Mutation) -> None:
    """By all interleavings of two blocks of one warp, and by random ones of two of two."""
    with pytest.raises(ExchangeError):
        explore(model(2, 1, 4, mutation))
    with pytest.raises(ExchangeError):
        _walks(model(2, 2, 6, mutation))


def _walks(one: Model) -> None:
    for seed in range(300):
        walk(one, seed)


def test_the_last_barrier_only_guards_what_is_sent_in_vain() -> None:
    """Whatever is sent to a block it waits for, so it cannot leave too early; the kernel has the barrier all the same,
    since CUDA asks that a block exists as long as others may address its memory."""
    explore(model(2, 1, 6, Mutation.NO_END))


@pytest.mark.parametrize(
    ("old", "new"), [("i & 1)", "0 & i)"), ("(i >> 1) & 1", "(i >> 2) & 1"), ("(i >> 1) & 1", "i & 1")]
)
def test_wrong_phase_arithmetic_is_found(old: str, new: str) -> None:
    """The expressions are the kernel's: those of tile.cuh, or what they would be after an edit."""
    assert old in SOURCE
    with pytest.raises(ExchangeError):
        explore(with_arithmetic(Model(2, 1, 6), SOURCE.replace(old, new, 1)))


def test_the_kernels_arithmetic_is_read() -> None:
    for source in (SOURCE, ARITHMETIC):
        buffer_of, parity_of = phase_arithmetic(source)
        assert [buffer_of(i) for i in range(6)] == [0, 1, 0, 1, 0, 1]
        assert [parity_of(i) for i in range(6)] == [0, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="buffer_of"):
        phase_arithmetic("int buffer_of(int64 i) { return f(i); }")
