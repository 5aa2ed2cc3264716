"""The CUDA kernels whose products tensor cores compute, their own source on the host: the host's mma takes the lanes'
words apart as PTX ISA lays them out and adds exactly. How a GPU rounds those sums is not seen here."""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

import numpy as np
import pytest
from helpers.cases import Case, Problem, random_cases
from helpers.compare import assert_all_same_bits, assert_same_bits
from helpers.cuda_host import HostKernel, pointer
from helpers.recurrence import STORAGE, Run, recurrence

from fastrnn import _backends
from fastrnn._backends.cuda_call import FIELDS, Call

PRECISIONS = tuple(STORAGE)
TILES = [("mma_block_8", 1), *[(f"mma_cluster_{rows}", cluster) for rows in (8, 16) for cluster in (2, 3, 8)]]
VARIANTS = [(f"{tile}_{precision}", cluster) for tile, cluster in TILES for precision in PRECISIONS]
ONE_OF_EACH = ["mma_block_8_f16", "mma_cluster_8_tf32x3", "mma_cluster_16_bf16", "mma_block_8_tf32"]
IDS = [f"{name}x{cluster}" for name, cluster in VARIANTS]


def run(host: Any, name: str, cluster: int, p: Problem, seed: int = 0) -> Run:
    return Run(HostKernel(host, name, cluster, seed), name, STORAGE[name.rpartition("_")[2]], p)


@pytest.mark.parametrize(("name", "cluster"), VARIANTS, ids=IDS)
def test_every_element_is_within_the_bound_of_its_arithmetic(host: Any, name: str, cluster: int) -> None:
    """Forward and backward: every step is judged from the kernel's own previous one, with all options."""
    cases = 0
    for n, case in enumerate(random_cases(14, seed=86, max_work=60_000, dtype="float32", alpha="none")):
        if case.H <= 128:
            run(host, name, cluster, recurrence(case), seed=n).check(str(case))
            cases += 1
    assert cases >= 10


@pytest.mark.parametrize("H", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 128])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_width_of_a_block(host: Any, precision: str, H: int) -> None:
    p = recurrence(Case(T=3, B=9, H=H, lengths="ragged", keep_mask=True, reset=True, recurrent_mask=True, seed=H))
    run(host, f"mma_block_8_{precision}", 1, p).check(f"H = {H}")


WIDE = [("mma_cluster_8_f16", 16, 1000), ("mma_cluster_16_bf16", 8, 511), ("mma_cluster_8_tf32x3", 16, 1023),
        ("mma_cluster_16_tf32x3", 8, 510), ("mma_cluster_8_tf32", 16, 1024), ("mma_cluster_8_bf16", 16, 1024),
        ("mma_cluster_8_tf32x3", 4, 256)]  # fmt: skip


@pytest.mark.parametrize(("name", "cluster", "H"), WIDE, ids=[f"{name}x{cluster}" for name, cluster, _ in WIDE])
def test_wide_layers_over_clusters(host: Any, name: str, cluster: int, H: int) -> None:
    """Chunks in registers and in shared memory, for both slices."""
    p = recurrence(Case(T=3, B=3, H=H, lengths="ragged", seed=7))
    run(host, name, cluster, p, seed=3).check(f"H = {H}")


@pytest.mark.parametrize(("name", "cluster"), VARIANTS, ids=IDS)
def test_the_order_of_warps_and_lanes_changes_no_bit(host: Any, name: str, cluster: int) -> None:
    """Between two barriers warps may run in any order: one that read what another writes there would show."""
    p = recurrence(Case(T=5, B=19, H=61, lengths="ragged", reverse=True, keep_mask=True, reset=True, seed=5))
    first = run(host, name, cluster, p).bits()
    for seed in (1, 2, 3):
        other = run(host, name, cluster, p, seed).bits()
        assert_all_same_bits(other, first, name, ("output", "h_n", "d_z", "d_h_0"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_have_the_same_bits_at_every_place_of_every_tile(host: Any, precision: str) -> None:
    p = recurrence(Case(T=4, B=21, H=49, seed=2))
    eight, sixteen = (run(host, f"mma_cluster_{rows}_{precision}", 2, p).bits() for rows in (8, 16))
    if precision != "tf32x3" and precision != "tf32":  # other chains of sums where there are more chunks
        assert_all_same_bits(sixteen[:2], eight[:2], "16 rows against 8", ("output", "h_n"))
    order = np.random.default_rng(0).permutation(21)
    fields = {field: getattr(p, field)[:, order] for field in ("x", "d_output")}
    fields |= {field: getattr(p, field)[order] for field in ("h_0", "d_h_n")}
    for rows, whole in ((8, eight), (16, sixteen)):
        other = run(host, f"mma_cluster_{rows}_{precision}", 2, p.but(**fields)).bits()
        permuted = (whole[0][:, order], whole[1][order], whole[2][:, order], whole[3][order])
        assert_all_same_bits(other, permuted, "permuted rows", ("output", "h_n", "d_z", "d_h_0"))


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 0)])
def test_empty_extents(host: Any, name: str, shape: tuple[int, int]) -> None:
    T, B = shape
    one = run(host, name, 2 if "cluster" in name else 1, recurrence(Case(T=T, B=B, H=9, seed=1)))
    if T == 0:
        assert_same_bits(one.h_n, one.packed.h_0, "h_n")
        assert_same_bits(one.d_h_0, one.packed.d_h_n, "d_h_0")
    elif B > 0:
        one.check("one step")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_nan_stays_in_its_row_and_nothing_is_read_beyond_a_length(host: Any, name: str) -> None:
    cluster = 2 if "cluster" in name else 1
    p = recurrence(Case(T=5, B=10, H=31, lengths="ragged", seed=9))
    assert p.lengths is not None
    assert p.d_output is not None
    clean = run(host, name, cluster, p)
    beyond = np.arange(5)[:, None] >= p.lengths[None, :]
    x, d_output = p.x.copy(), p.d_output.copy()
    x[beyond] = d_output[beyond] = np.nan
    assert_all_same_bits(run(host, name, cluster, p.but(x=x, d_output=d_output)).bits(), clean.bits(), "beyond lengths")
    victim = int(np.argmax(p.lengths))
    x[1, victim] = np.nan
    bad, others = run(host, name, cluster, p.but(x=x)), np.arange(10) != victim
    assert np.isnan(bad.wide(bad.h_n)[victim]).all()
    assert np.isnan(bad.wide(bad.d_h_0)[victim]).all()
    assert_same_bits(bad.tape[:, others], clean.tape[:, others], "output of other rows")
    assert_same_bits(bad.d_z[:, others], clean.d_z[:, others], "d_z of other rows")


def test_an_infinite_state_stays_in_its_row(host: Any) -> None:
    """Infinite as one tf32; as two, what is left of infinity is NaN."""
    p = recurrence(Case(T=2, B=3, H=20, nonlinearity="relu", seed=3))
    assert p.h_0 is not None
    h_0, w_hh = p.h_0.copy(), np.abs(p.w_hh) + np.float32(0.01)
    h_0[1, 5] = np.inf
    for name in ("mma_block_8_tf32x3", "mma_block_8_tf32"):
        output = run(host, name, 1, p.but(h_0=h_0, w_hh=w_hh)).tape
        assert np.isnan(output[:, 1]).all() if name.endswith("x3") else np.isposinf(output[:, 1]).all()
        assert np.isfinite(output[:, [0, 2]]).all()


def test_one_tf32_is_taken_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """FASTRNN_TF32=1, read at each call; the native module is a stand-in."""
    asked: list[Any] = []

    class Native:
        CudaError, call_fields = RuntimeError, len(FIELDS)
        device_count = staticmethod(lambda: 1)

        @staticmethod
        def choose(*given: Any) -> tuple[str, int]:
            asked.append(given[1:])
            return "mma_block_8_tf32" if given[-1] else "block_8_1", 1

    monkeypatch.setitem(sys.modules, "fastrnn._fastrnn_cuda", Native)
    monkeypatch.delitem(sys.modules, "fastrnn._backends.cuda", raising=False)
    cuda = importlib.import_module("fastrnn._backends.cuda")
    del sys.modules["fastrnn._backends.cuda"], _backends.cuda  # it is of the stand-in
    call = Call(1, 40, 64, "float32", relu=False, reverse=False)
    for value, kernel in ((None, "block_8_1"), ("0", "block_8_1"), ("1", "mma_block_8_tf32")):
        if value is None:
            monkeypatch.delenv("FASTRNN_TF32", raising=False)
        else:
            monkeypatch.setenv("FASTRNN_TF32", value)
        assert cuda.chosen_kernel(call, True, 2) == (kernel, 1)
    assert asked == [(True, 2, False), (True, 2, False), (True, 2, True)]


def test_two_tf32(host: Any) -> None:
    """The big part is the nearest of 11 bits, both have 11, and what is left is at most 2^-23 of the number."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 300_000, dtype=np.uint32).view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) > 2.0**-100) & (np.abs(x) < 2.0**127)]
    x = np.concatenate([x, [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan]]).astype(np.float32)
    big, rest = np.empty_like(x), np.empty_like(x)
    host.tf32_of(pointer(x), pointer(big), pointer(rest), ctypes.c_longlong(x.size))
    for part in (big, rest):
        assert not (part[~np.isnan(part)].view(np.uint32) & 0x1FFF).any()
    finite = np.isfinite(x)
    wide = x[finite].astype(np.float64)
    assert (np.abs(wide - big[finite]) <= 2.0**-11 * np.abs(wide)).all()
    assert (np.abs(wide - big[finite] - rest[finite]) <= 2.0**-23 * np.abs(wide)).all()
    assert_same_bits(big[-3:], x[-3:], "infinities and NaN")
