"""The CUDA kernels, their own source on the host: results against the arithmetic's bounds, the order of the warps, the
exchange's accounting, the maps, the cell's bits. A GPU is not needed; what only a GPU shows (the memory model, the
instructions of device.cuh and cluster.cuh) is not tested here.
"""

from __future__ import annotations

import ctypes
from itertools import product
from typing import Any

import numpy as np
import pytest
from helpers import bounds, cuda_host
from helpers.cases import SIZES, Case, Problem, random_cases
from helpers.compare import assert_all_same_bits, assert_same_bits, assert_within, is_subnormal, ulp_error
from helpers.cuda_host import HostKernel, pointer
from helpers.kernels import Kernel, native
from helpers.recurrence import ARRAYS, Run, recurrence
from helpers.recurrence import narrow as helpers_narrow

from fastrnn._backends.cuda_call import STORAGE, Call

BLOCK = ("block_8_1", "block_8_4", "block_32_1", "block_32_4")
# name, blocks of a cluster, the largest H that a case asks of it
VARIANTS = [
    *[(name, 1, 256 if "_8_" in name else 64) for name in BLOCK],
    *[(f"cluster_{lanes}_{batch}", cluster, 129) for lanes, batch, cluster in product((16, 32), (1, 4), (2, 3, 8))],
    ("step", 1, 10_000),
]
IDS = [f"{name}x{cluster}" for name, cluster, _ in VARIANTS]


def check(kernel: HostKernel, p: Problem, what: str) -> None:
    output, h_n = kernel.forward(p)
    padded, padded_output = p.padded(), bounds.as_padded(output, p)
    assert padded_output is not None
    judged = bounds.judge_forward(padded, padded_output)
    assert_within(padded_output, judged.reference, judged.bound, f"{what}: output")
    assert_same_bits(h_n, bounds.last_states(padded, padded_output), f"{what}: h_n")
    d_z, d_h_0 = kernel.backward_z(p, output)
    padded_d_z = bounds.as_padded(d_z, p)
    assert padded_d_z is not None
    judges = bounds.judge_backward(padded, padded_output, padded_d_z)
    assert_within(padded_d_z, judges["d_z"].reference, judges["d_z"].bound, f"{what}: d_z")
    assert_within(d_h_0, judges["d_h_0"].reference, judges["d_h_0"].bound, f"{what}: d_h_0")


@pytest.mark.parametrize(("name", "cluster", "most_H"), VARIANTS, ids=IDS)
def test_every_element_is_within_the_bound_of_its_arithmetic(host: Any, name: str, cluster: int, most_H: int) -> None:
    """Forward and backward, teacher-forced: every step is judged from the kernel's own previous one."""
    dtypes = ("float32", "float64") if name == "step" else ("float32",)
    for dtype in dtypes:
        for n, case in enumerate(random_cases(20, seed=81, max_work=120_000, dtype=dtype, alpha="none")):
            if case.H <= most_H:
                p = recurrence(case)
                check(HostKernel(host, name, cluster, seed=n), p, f"{name}x{cluster} {case}")


@pytest.mark.parametrize("H", [h for h in SIZES if h > 2] + [200, 255, 256])
def test_every_width_of_a_block(host: Any, H: int) -> None:
    p = recurrence(Case(T=3, B=5, H=H, lengths="ragged", keep_mask=True, reset=True, recurrent_mask=True, seed=H))
    for name in ("block_8_1", "block_8_4") + (("block_32_1", "block_32_4") if H <= 64 else ()):
        check(HostKernel(host, name), p, f"{name}, H = {H}")


@pytest.mark.parametrize(("name", "cluster", "H"), [
    ("cluster_32_4", 8, 511), ("cluster_32_1", 16, 1000), ("cluster_16_1", 8, 700), ("cluster_16_4", 4, 512),
])  # fmt: skip
def test_wide_layers_over_clusters(host: Any, name: str, cluster: int, H: int) -> None:
    check(HostKernel(host, name, cluster, seed=3), recurrence(Case(T=3, B=3, H=H, lengths="ragged", seed=7)), name)


@pytest.mark.parametrize(("name", "cluster", "most_H"), VARIANTS, ids=IDS)
def test_the_order_of_warps_and_lanes_changes_no_bit(host: Any, name: str, cluster: int, most_H: int) -> None:
    """Between two barriers warps may run in any order: one that read what another writes there would show."""
    p = recurrence(Case(T=6, B=7, H=63, lengths="ragged", reverse=True, keep_mask=True, reset=True, seed=5))
    results = []
    for seed in range(5):
        kernel = HostKernel(host, name, cluster, seed)
        output, h_n = kernel.forward(p)
        results.append((output, h_n, *kernel.backward_z(p, output)))
    for other in results[1:]:
        assert_all_same_bits(other, results[0], name, ("output", "h_n", "d_z", "d_h_0"))


def test_rows_have_the_same_bits_in_every_batch_tile(host: Any) -> None:
    p = recurrence(Case(T=5, B=7, H=33, seed=2))
    one, four = (HostKernel(host, name).forward(p) for name in ("block_32_1", "block_32_4"))
    assert_all_same_bits(four, one, "block_32_4 against block_32_1", ("output", "h_n"))


@pytest.mark.parametrize("name", ["block_8_4", "block_32_1", "step", "mma_block_8_tf32x3"])
def test_output_may_lie_on_the_input_product(host: Any, name: str) -> None:
    p = recurrence(Case(T=5, B=6, H=31, lengths="ragged", reset=True, seed=4))
    kernel = HostKernel(host, name)
    assert_all_same_bits(kernel.forward(p, in_place=True), kernel.forward(p), name)


@pytest.mark.parametrize("name", ["block_8_4", "block_32_1", "cluster_16_4", "step"])
def test_nan_stays_in_its_row_and_nothing_is_read_beyond_a_length(host: Any, name: str) -> None:
    p = recurrence(Case(T=5, B=6, H=31, lengths="ragged", seed=9))
    assert p.lengths is not None
    assert p.d_output is not None
    kernel = HostKernel(host, name, 1 if name != "cluster_16_4" else 2)
    output, h_n = kernel.forward(p)
    d_z, d_h_0 = kernel.backward_z(p, output)
    beyond = np.arange(5)[:, None] >= p.lengths[None, :]
    x, d_output = p.x.copy(), p.d_output.copy()
    x[beyond] = d_output[beyond] = np.nan
    victim = int(np.argmax(p.lengths))
    poisoned = p.but(x=x, d_output=d_output)
    assert_all_same_bits(kernel.forward(poisoned), (output, h_n), "beyond the lengths")
    assert_all_same_bits(kernel.backward_z(poisoned, output), (d_z, d_h_0), "beyond the lengths")
    x[1, victim] = d_output[1, victim] = np.nan
    others = np.arange(6) != victim
    bad_output, bad_h_n = kernel.forward(poisoned.but(x=x))
    bad_d_z, bad_d_h_0 = kernel.backward_z(poisoned.but(d_output=d_output), output)
    assert np.isnan(bad_h_n[victim]).all()
    assert np.isnan(bad_d_h_0[victim]).all()
    assert_same_bits(bad_output[:, others], output[:, others], "output of other rows")
    assert_same_bits(bad_d_z[:, others], d_z[:, others], "d_z of other rows")


@pytest.mark.parametrize("name", ["block_8_1", "block_32_4", "cluster_32_4", "step"])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 0)])
def test_empty_extents(host: Any, name: str, shape: tuple[int, int]) -> None:
    T, B = shape
    p = recurrence(Case(T=T, B=B, H=9, seed=1))
    kernel = HostKernel(host, name, 2 if name.startswith("cluster") else 1)
    output, h_n = kernel.forward(p)
    d_z, d_h_0 = kernel.backward_z(p, output)
    if T == 0:
        assert_same_bits(h_n, p.h_0, "h_n")
        assert_same_bits(d_h_0, p.d_h_n, "d_h_0")
    elif B > 0:
        check(kernel, p, name)


def strided(a: Any) -> Any:
    """The same values, batch first with gaps between rows."""
    room = np.full((a.shape[1], a.shape[0] + 1, a.shape[2] + 3), 77, a.dtype)
    view = room[:, : a.shape[0], : a.shape[2]].swapaxes(0, 1)
    view[...] = a
    return view


@pytest.mark.parametrize("name", ["block_8_4", "step", "mma_block_8_tf32x3"])
def test_strides(host: Any, name: str) -> None:
    p = recurrence(Case(T=4, B=5, H=17, seed=3))
    kernel = HostKernel(host, name)
    output, h_n = kernel.forward(p)
    d_z, d_h_0 = kernel.backward_z(p, output)
    assert p.h_0 is not None
    assert p.d_output is not None
    other = p.but(x=strided(p.x), h_0=np.asfortranarray(p.h_0), w_hh=np.asfortranarray(p.w_hh),
                  d_output=np.asfortranarray(p.d_output))  # fmt: skip
    assert_all_same_bits(kernel.forward(other), (output, h_n), "forward")
    assert_all_same_bits(kernel.backward_z(other, strided(output)), (d_z, d_h_0), "backward")
    constant = p.but(d_output=np.broadcast_to(p.d_output[:1, :1, :1], p.d_output.shape))
    dense = p.but(d_output=np.ascontiguousarray(constant.d_output))
    assert_all_same_bits(kernel.backward_z(constant, output), kernel.backward_z(dense, output), "stride 0")


# ---- the whole backend, but for the device: cuda_products with NumPy's products and a kernel on the host


@pytest.mark.parametrize(("name", "number"), [("step", "float64"), ("block_8_4", "float32")])
def test_every_option_and_gradient_against_the_reference(host: Any, name: str, number: str) -> None:
    from fastrnn._backends import cuda_products, reference
    from fastrnn._backends.options import NEEDS, RnnOptions

    kernel, library = HostKernel(host, name), cuda_host.NumpyLibrary(number)
    for case in random_cases(40, seed=83, max_work=100_000, dtype=number, alpha="none"):
        p = case.build()
        options = RnnOptions(**p.options())
        poisoned = p.x.copy()
        if p.lengths is not None:
            poisoned[np.arange(case.T)[:, None] >= p.lengths[None, :]] = np.nan
        results = cuda_products.rnn_forward(
            library, kernel.run, poisoned, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, options
        )
        output = results[0]
        gradients = cuda_products.rnn_backward(
            library, kernel.run, p.d_output, p.d_h_n, output, poisoned, p.h_0, p.w_ih, p.w_hh, options, NEEDS
        )
        wide = p.but(**{f: getattr(p, f).astype(np.float64) for f in WIDE if getattr(p, f) is not None})
        exact = reference.rnn_forward(wide.x, wide.h_0, wide.w_ih, wide.w_hh, wide.b_ih, wide.b_hh, options)
        exact_gradients = reference.rnn_backward(
            wide.d_output, wide.d_h_n, exact[0], wide.x, wide.h_0, wide.w_ih, wide.w_hh, options, NEEDS
        )
        # Contractive weights: errors do not grow over time; 100 roundings of room
        room = 200 * np.finfo(number).eps
        names = ("output", "h_n", "d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")
        for what, got, want in zip(names, (*results, *gradients), (*exact, *exact_gradients), strict=True):
            assert got is not None
            scale = np.abs(want).max() if want.size else 0.0
            assert_within(got, want, room * scale + 1e-30, f"{what}: {case}")  # 1e-30: float32 underflows


WIDE = ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "recurrent_mask", "d_output", "d_h_n")


def test_leaky_units_are_refused_by_name(host: Any) -> None:
    from fastrnn._backends import cuda_products
    from fastrnn._backends.options import RnnOptions

    p = Case().build()
    options = RnnOptions(alpha=np.ones(p.H, np.float32))
    with pytest.raises(ValueError, match="alpha: expected None with backend 'cuda'"):
        cuda_products.rnn_forward(cuda_host.NumpyLibrary("float32"), HostKernel(host, "step").run, p.x, p.h_0, p.w_ih,
                                  p.w_hh, p.b_ih, p.b_hh, options)  # fmt: skip


# ---- the dispatch


RULES = [  # numbers, B, H, shared memory, largest cluster -> kernel, cluster
    ("float64", 1, 64, 227, 16, "step", 1),
    ("float32", 1, 64, 227, 16, "block_32_1", 1),
    ("float32", 31, 64, 227, 16, "block_32_1", 1),
    ("float32", 1, 256, 227, 16, "cluster_32_1", 4),
    ("float32", 1, 256, 227, 0, "block_8_1", 1),
    ("float32", 31, 256, 227, 16, "block_8_1", 1),
    ("float32", 1024, 256, 227, 0, "block_8_4", 1),  # sm_80
    ("float32", 1024, 256, 99, 0, "block_8_1", 1),  # sm_120
    ("float32", 32, 128, 227, 0, "mma_block_8_tf32x3", 1),
    ("float32", 264, 256, 227, 16, "mma_cluster_8_tf32x3", 4),
    ("float32", 265, 256, 227, 16, "mma_cluster_16_tf32x3", 4),
    ("float32", 100, 1024, 227, 16, "mma_cluster_8_tf32x3", 16),  # 16 rows find no room
    ("tf32", 1, 100, 227, 16, "mma_block_8_tf32", 1),
    ("tf32", 121, 512, 227, 8, "mma_cluster_16_tf32", 8),
    ("bfloat16", 32, 512, 227, 16, "mma_cluster_8_bf16", 8),
    ("bfloat16", 1, 128, 227, 0, "mma_block_8_bf16", 1),
    ("bfloat16", 57, 1024, 227, 16, "mma_cluster_16_bf16", 16),
    ("float16", 1, 1024, 227, 16, "mma_cluster_8_f16", 16),
    ("float16", 1, 1025, 227, 16, "step", 1),
    ("float32", 1, 1024, 227, 16, "cluster_32_1", 16),
    ("float32", 1, 1024, 227, 8, "step", 1),  # no cluster of 16, and 8 cannot hold w_hh
    ("float32", 20, 768, 227, 8, "cluster_16_4", 8),
    ("float32", 64, 512, 164, 0, "step", 1),  # sm_80
    ("float32", 1, 2048, 227, 16, "step", 1),
]


@pytest.mark.parametrize("rule", RULES, ids=[str(r[:5]) for r in RULES])
def test_the_rules_ask_what_the_device_grants(host: Any, rule: tuple[Any, ...]) -> None:
    numbers, B, H, shared, most, kernel, cluster = rule
    dtype, tf32 = ("float32", 1) if numbers == "tf32" else (numbers, 0)
    call, got = Call(5, B, H, dtype, relu=False, reverse=False), ctypes.c_int()
    table = call.table.ctypes.data_as(ctypes.c_void_p)
    name = host.choose_kernel(table, ctypes.c_longlong(shared * 1024), most, tf32, ctypes.byref(got))
    assert (name.decode(), got.value) == (kernel, cluster)
    (blocks, threads, used, _), why = cuda_host.plan(host, kernel, call, cluster, shared * 1024)
    assert why == ""
    assert blocks % cluster == 0
    assert 0 < threads <= 256
    assert used <= shared * 1024


def test_a_plan_says_why_there_is_none(host: Any) -> None:
    def why(dtype: str, H: int, name: str, cluster: int = 1) -> str:
        return cuda_host.plan(host, name, Call(1, 1, H, dtype, relu=False, reverse=False), cluster)[1]

    assert why("float64", 8, "block_8_1") == "float64 is computed by the kernel 'step' alone"
    assert why("float32", 257, "block_8_1") == "too many hidden units for the threads of its blocks"
    assert why("float32", 1024, "cluster_16_4", 8) == (
        "w_hh does not fit into the registers and the shared memory of its blocks"
    )
    assert why("float32", 8, "mma_block_8_f16") == "its tensor core instruction is for another dtype"
    assert why("bfloat16", 129, "mma_block_8_bf16") == "too many hidden units for the threads of its blocks"


# ---- 16-bit storage


@pytest.mark.parametrize("storage", list(bounds.UNIT_ROUNDOFF))
@pytest.mark.parametrize("name", ["block_8_4", "block_32_1", "cluster_16_1", "step"])
def test_16_bit_storage_sums_in_float32(host: Any, storage: str, name: str) -> None:
    """The state is rounded once a step, d_z once where it is stored: what is left is float32 arithmetic."""
    p = recurrence(Case(T=6, B=5, H=33, lengths="ragged", reset=True, recurrent_mask=True, keep_mask=True, seed=12))
    run = Run(HostKernel(host, name, 3 if name.startswith("cluster") else 1), name, storage, p)
    run.check(storage)
    p64 = run.p.but(**{field: getattr(run.p, field).astype(np.float64) for field in (*ARRAYS, "w_ih")})
    want, u = Kernel("numpy").backward(p64, run.wide(run.tape).astype(np.float64)), bounds.UNIT_ROUNDOFF[storage]
    for got, reference, what in ((run.d_z, want.d_x, "d_z"), (run.d_h_0, want.d_h_0, "d_h_0")):
        assert reference is not None
        room = 1.001 * u * np.abs(reference) + 2.0**-25 + 64 * 2.0**-24 * np.abs(reference).max()
        assert_within(run.wide(got), reference, room, f"{name} {storage}: {what}")


def test_16_bit_conversions(host: Any) -> None:
    """The kernels' own, against NumPy's and the tests'."""

    def narrow(a: Any, storage: str) -> Any:
        out = np.empty(a.shape, np.uint16)
        host.round_to(pointer(a), pointer(out), ctypes.c_longlong(a.size), ctypes.c_longlong(STORAGE[storage]))
        return out

    def widen(a: Any, storage: str) -> Any:
        out = np.empty(a.shape, np.float32)
        host.widen_from(pointer(a), pointer(out), ctypes.c_longlong(a.size), ctypes.c_longlong(STORAGE[storage]))
        return out

    every = np.arange(65536, dtype=np.uint16)
    halves = every.view(np.float16).astype(np.float32)
    assert_same_bits(widen(every, "float16"), halves, "from float16")
    assert_same_bits(widen(every, "bfloat16"), (every.astype(np.uint32) << 16).view(np.float32), "from bfloat16")
    rng = np.random.default_rng(0)
    some = rng.integers(0, 2**32, 300_000, dtype=np.uint32).view(np.float32)
    finite = np.sort(halves[np.isfinite(halves)].astype(np.float64))
    middles = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)  # exact: ties go to even
    around = [np.nextafter(middles, np.float32(side * np.inf)) for side in (-1, 1)]
    edges = np.array([65504, 65519.996, 65520, 65536, 1e10, np.inf, -np.inf, np.nan, 2.0**-25, 0.0, -0.0], np.float32)
    for values in (some, halves, middles, *around, edges):
        with np.errstate(over="ignore"):
            want = values.astype(np.float16)
        values = np.ascontiguousarray(values)
        got = narrow(values, "float16").view(np.float16)
        assert_same_bits(got.astype(np.float32), want.astype(np.float32), "to float16")
        got = narrow(values, "bfloat16")
        assert np.array_equal(np.isnan(widen(got, "bfloat16")), np.isnan(values))
        with np.errstate(invalid="ignore"):
            ok = ~np.isnan(values)
            low = values[ok].view(np.uint32)
            carry = (low & 0xFFFF).astype(np.int64) + ((low >> 16) & 1) > 0x8000
        assert np.array_equal(got[ok], ((low >> 16) + carry).astype(np.uint16)), "to bfloat16"
        assert np.array_equal(got[ok], helpers_narrow(values, "bfloat16")[ok])


# ---- the cell and the maps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh(host: Any, dtype: str) -> None:
    """The operations of csrc/cpu/tanh.inl: its bits, and 2 ULP."""
    if dtype == "float32":
        x = np.arange(0, 2**32, 1021, dtype=np.uint32).view(np.float32)
    else:
        rng = np.random.default_rng(1)
        x = np.concatenate(
            [rng.standard_normal(400_000) * 10.0 ** rng.integers(-8, 2, 400_000), [0.0, -0.0, np.inf, -np.inf, np.nan]]
        )
    y = np.empty_like(x)
    getattr(host, "tanh_float" if dtype == "float32" else "tanh_double")(
        pointer(x), pointer(y), ctypes.c_longlong(x.size)
    )
    number = ~np.isnan(x)
    wide = np.tanh(np.where(number, x, 0).astype(bounds.wider(dtype)))
    assert np.isnan(y[~number]).all()
    assert ulp_error(y[number], wide[number]).max() <= 2
    module = native()
    if not isinstance(module, ImportError) and ("v3", True, True) in module.isas():
        ours = np.empty_like(x)
        module.tanh(x, ours, isa="v3")
        normal = ~is_subnormal(x)  # subnormal ones stay on the GPU, and count as 0 in csrc/cpu
        assert_same_bits(y[normal], ours[normal], "against csrc/cpu")


@pytest.mark.parametrize(("lanes", "batch"), list(product((8, 16, 32), (1, 2, 4))))
def test_every_sum_has_its_owners(host: Any, lanes: int, batch: int) -> None:
    """Units and batch rows of a warp: each belongs to one lane of each replica."""
    owners: dict[tuple[int, int, int], int] = {}
    out = (ctypes.c_int * 4)()
    for lane in range(32):
        host.owner_of(lanes, batch, lane, out)
        unit, replica, first, last = out
        for row in range(first, last + 1):
            owners[unit, row, replica] = owners.get((unit, row, replica), 0) + 1
    replicas = max(1, lanes // 8 // batch)
    assert owners == dict.fromkeys(product(range(256 // lanes), range(batch), range(replicas)), 1)
