"""Promise 4. cpp, on every instruction set and in both dtypes: output, h_n, d_x and d_h_0 of a row are the same bits
whatever B, T, the number of threads, alignment, strides, tile and path; d_w_ih, d_w_hh and d_b are so for given
(T, B, lengths) whatever the threads, the run, alignment, strides, tile. Other backends: same call, same bits.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.cases import LAYOUTS, Case, misaligned, pack, random_cases, rows_of, sizes_of, steps_of, with_layout
from helpers.checks import run_both, same_results
from helpers.compare import assert_same_bits
from helpers.kernels import Kernel

NAMES = ("output", "h_n", "d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")
THREADS = (1, 2, 3, 4, 5, 8, 16)
# Shapes for the paths: one row, few rows (H may be split), several tiles, hoisted projection, more than one d_w block.
SHAPES = [
    Case(T=7, B=1, I=33, H=65, seed=1),
    Case(T=9, B=3, I=17, H=129, lengths="ragged", seed=2),
    Case(T=6, B=19, I=130, H=40, reverse=True, lengths="ragged", seed=3),
    Case(T=5, B=67, I=3, H=33, nonlinearity="relu", keep_mask=True, reset=True, recurrent_mask=True, seed=4),
    Case(T=8, B=31, I=63, H=100, lengths="packed", seed=5),
    Case(T=140, B=5, I=9, H=31, lengths="ragged", seed=6),
    Case(T=3, B=300, I=15, H=16, bias="none", h_0=False, seed=7),
    Case(T=2, B=101, I=65, H=131, seed=12),  # one step of it: weights that are packed on the way
    Case(T=4, B=37, I=131, H=1, seed=13),  # rows, not units, in the lanes of x's product
    Case(T=3, B=41, I=4, H=70, seed=14),  # the same in d_x's
]
SHAPE_IDS = [case.id for case in SHAPES]
# Work enough to wake 16 threads (some 50 us each), which the shapes above are not: rows to share, and a single row.
LARGE = [
    Case(T=17, B=97, I=65, H=129, lengths="ragged", recurrent_mask=True, seed=8),
    Case(T=9, B=64, I=200, H=160, lengths="packed", reverse=True, seed=9),
    Case(T=12, B=260, I=17, H=96, reset=True, keep_mask=True, nonlinearity="relu", seed=10),
    Case(T=40, B=2, I=33, H=600, seed=11),
    Case(T=9, B=40, I=2, H=520, seed=15),  # narrow x: tasks of its units
    Case(T=2, B=130, I=730, H=731, seed=16),  # large w_ih: larger groups of rows for d_x
]
LARGE_IDS = [case.id for case in LARGE]

native = pytest.mark.native


@pytest.mark.parametrize("case", SHAPES, ids=SHAPE_IDS)
def test_the_same_call_gives_the_same_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    """Every backend, ten runs, the memory allocator disturbed between them."""
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p)
    junk = []
    for run in range(10):
        junk.append(np.empty(1000 * run + 1, np.uint8))
        same_results(run_both(kernel, p), want, f"run {run}")


@native
@pytest.mark.parametrize("case", SHAPES + LARGE, ids=SHAPE_IDS + LARGE_IDS)
def test_threads_do_not_change_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    """Runs with each number of threads, some with forced row blocks or slices of units: who computes what changes."""
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p, threads=1)
    for threads in THREADS:
        for tuning in (None, None, {"row_block": 1 + threads}, {"slices": 1 + threads}):
            same_results(run_both(kernel, p, threads=threads, tuning=tuning), want, f"{threads} threads, {tuning}")


@native
@pytest.mark.parametrize("case", LARGE, ids=LARGE_IDS)
def test_tuning_and_threads_together_do_not_change_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p, threads=1)
    rng = np.random.default_rng(case.seed)
    for _ in range(6):
        tuning = {
            "hoist": int(rng.integers(0, 2)),
            "tile_rows": int(rng.integers(1, 7)),
            "row_block": int(rng.integers(1, 130)),
            "chunk_steps": int(rng.integers(1, 12)),
        }
        threads = int(rng.integers(2, 9))
        same_results(run_both(kernel, p, threads=threads, tuning=tuning), want, f"{tuning}, {threads} threads")


@native
@pytest.mark.parametrize("case", SHAPES, ids=SHAPE_IDS)
def test_tuning_does_not_change_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    """Every knob alone, and random settings of all of them together with a number of threads."""
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p, threads=1)
    settings = [{"hoist": v} for v in (0, 1)]
    settings += [{"tile_rows": v} for v in range(1, 7)]
    settings += [{"row_block": v} for v in (1, 2, 3, 7, 16, 1000)]
    settings += [{"chunk_steps": v} for v in (1, 2, 3, 5, 64)]
    settings += [{"slices": v} for v in (1, 2, 3, 16)]
    rng = np.random.default_rng(case.seed)
    for _ in range(12):
        low, high = (0, 1, 1, 1), (2, 7, 20, 12)
        values = (int(rng.integers(a, b)) for a, b in zip(low, high, strict=True))
        settings.append(dict(zip(("hoist", "tile_rows", "row_block", "chunk_steps"), values, strict=True)))
    for i, tuning in enumerate(settings):
        for threads in (1, 2 + i % 3):
            same_results(run_both(kernel, p, threads=threads, tuning=tuning), want, f"{tuning}, {threads} threads")


@native
@pytest.mark.parametrize("case", SHAPES, ids=SHAPE_IDS)
def test_alignment_does_not_change_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    """Every array at every element offset from a 64-byte boundary, each array at another one."""
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p)
    size = np.dtype(dtype).itemsize
    names = ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "recurrent_mask", "d_output", "d_h_n")
    for offset in range(64 // size):
        moved = {}
        for i, name in enumerate(names):
            array = getattr(p, name)
            moved[name] = None if array is None else misaligned(array, (offset + 3 * i) * size % 64)
        q = p.but(**moved)
        output, h_n = kernel.forward(q, output=misaligned(want[0], (offset + 5) * size % 64))
        gradients = kernel.backward(q, misaligned(output, (offset + 7) * size % 64))
        same_results((output, h_n, *gradients), want, f"offset {offset}")


@native
@pytest.mark.parametrize("case", SHAPES, ids=SHAPE_IDS)
def test_strides_do_not_change_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    """x, d_output and the tape in every layout, weights transposed and strided, output with outer strides."""
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p)
    for layout in LAYOUTS:
        q = p.but(x=with_layout(p.x, layout))
        same_results(run_both(kernel, q), want, f"x {layout}")
        q = p.but(d_output=with_layout(p.d_output, layout))
        same_results(kernel.backward(q, want[0]), want[2:], f"d_output {layout}")
        same_results(kernel.backward(p, with_layout(want[0], layout)), want[2:], f"tape {layout}")
    two = ("inner_strided", "negative_all", "fortran")
    for layout in two:
        names = ("w_ih", "w_hh", "b_ih", "b_hh", "h_0", "d_h_n")
        arrays = {n: None if getattr(p, n) is None else with_layout(getattr(p, n), layout) for n in names}
        same_results(run_both(kernel, p.but(**arrays)), want, f"weights and states {layout}")
    for layout in ("batch_first", "outer_strided", "negative_time")[p.batch_sizes is not None :]:
        output = with_layout(np.full_like(want[0], np.nan), layout)
        assert output.strides[-1] == output.itemsize
        same_results(kernel.forward(p, output=output), want[:2], f"output {layout}")


@native
@pytest.mark.parametrize("case", [c for c in SHAPES if c.lengths != "packed"], ids=lambda case: case.id)
def test_the_batch_does_not_change_a_row(kernel: Kernel, dtype: str, case: Case) -> None:
    """Rows alone, in pairs, in random subsets and orders, repeated: always the bits they have in the whole batch."""
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p)
    B = case.B
    rng = np.random.default_rng(case.seed)
    subsets = [np.array([b]) for b in sorted({0, 1 % B, B // 2, B - 1})]
    subsets += [rng.permutation(B)[: int(rng.integers(1, B + 1))] for _ in range(6)]
    subsets += [np.concatenate([np.arange(B), rng.integers(0, B, 5)]), rng.permutation(B)]
    for chosen in subsets:
        got = run_both(kernel, rows_of(p, chosen))
        for name, axis in {"output": 1, "h_n": 0, "d_x": 1, "d_h_0": 0}.items():
            i = NAMES.index(name)
            assert_same_bits(got[i], np.take(want[i], chosen, axis=axis), f"{name} of rows {chosen.tolist()}")


@native
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", [c for c in SHAPES if c.lengths == "none"], ids=lambda case: case.id)
def test_the_time_range_does_not_change_a_step(kernel: Kernel, dtype: str, case: Case, reverse: bool) -> None:
    """A part, and the two parts chained, have the bits of the whole: h forward, d_h backward."""
    p = replace(case, dtype=dtype, reverse=reverse).build()
    output, h_n, d_x, d_h_0 = run_both(kernel, p)[:4]
    for cut in sorted({1, 2, case.T // 2, case.T - 1}):
        early, late = slice(0, cut), slice(cut, case.T)
        if reverse:
            early, late = late, early
        first = steps_of(p, early, p.h_0, None)
        first_output, first_h_n = kernel.forward(first)
        second = steps_of(p, late, first_h_n, p.d_h_n)
        second_output, second_h_n = kernel.forward(second)
        same_results((first_output, second_output, second_h_n), (output[early], output[late], h_n), f"cut at {cut}")
        later = kernel.backward(second, second_output)
        earlier = kernel.backward(first.but(d_h_n=later.d_h_0), first_output)
        got = (later.d_x, earlier.d_x, earlier.d_h_0)
        same_results(got, (d_x[late], d_x[early], d_h_0), f"backward, cut at {cut}")


@native
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_equals_padded(kernel: Kernel, dtype: str, reverse: bool) -> None:
    """The two forms of a ragged batch: all seven results."""
    case = Case(T=9, B=21, I=17, H=33, dtype=dtype, reverse=reverse, reset=True, keep_mask=True, recurrent_mask=True)
    p = replace(case, lengths="packed", seed=3).build()
    got, want = run_both(kernel, p), run_both(kernel, p.padded())
    sizes = p.batch_sizes
    for i, name in enumerate(NAMES):
        assert_same_bits(got[i], pack(want[i], sizes) if name in ("output", "d_x") else want[i], name)


@native
def test_rows_in_any_order_of_length(kernel: Kernel, dtype: str) -> None:
    """The ragged order inside is nobody's business: rows sorted by length and shuffled agree."""
    case = Case(T=9, B=21, I=17, H=33, dtype=dtype, lengths="ragged", seed=8)
    p = case.build()
    assert p.lengths is not None
    order = np.argsort(-p.lengths, kind="stable")
    got, want = run_both(kernel, rows_of(p, order)), run_both(kernel, p)
    for name, axis in {"output": 1, "h_n": 0, "d_x": 1, "d_h_0": 0}.items():
        i = NAMES.index(name)
        assert_same_bits(got[i], np.take(want[i], order, axis=axis), name)


@native
@pytest.mark.parametrize("case", SHAPES, ids=SHAPE_IDS)
def test_kept_packed_weights_give_the_same_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    """The path of RNN.frozen()."""
    from helpers.kernels import native as module

    p = replace(case, dtype=dtype).build()
    want = kernel.forward(p)
    packed = module().pack_weights(p.w_ih, p.w_hh, isa=kernel.isa)
    unread = p.but(w_ih=np.full_like(p.w_ih, np.nan), w_hh=np.full_like(p.w_hh, np.nan))
    for threads in (1, 2, 3):
        same_results(kernel.forward(p, packed=packed, threads=threads), want, f"packed weights, {threads} threads")
        same_results(
            kernel.forward(unread, packed=packed, threads=threads), want, "the weights themselves are not read"
        )


@native
@pytest.mark.parametrize("case", SHAPES[:4], ids=SHAPE_IDS[:4])
def test_options_that_change_nothing_change_no_bits(kernel: Kernel, dtype: str, case: Case) -> None:
    """Full lengths, a mask of ones, no reset, nothing kept, h_0 of zeros, biases of zeros: the plain path's bits."""
    case = replace(case, dtype=dtype, lengths="none", reset=False, keep_mask=False, recurrent_mask=False, h_0=False)
    p = case.build()
    want = run_both(kernel, p)
    T, B, H = case.T, case.B, case.H
    neutral = {
        "lengths": np.full(B, T, np.int64),
        "recurrent_mask": np.ones((B, H), dtype),
        "reset": np.zeros((T, B), bool),
        "keep_mask": np.zeros((T, B, H), bool),
        "h_0": np.zeros((B, H), dtype),
    }
    for name, value in neutral.items():
        same_results(run_both(kernel, p.but(**{name: value})), want, name)
    same_results(run_both(kernel, p.but(**neutral)), want, "all of them")
    bare = run_both(kernel, p.but(b_ih=None, b_hh=None))
    zero = np.zeros(H, dtype)
    same_results(run_both(kernel, p.but(b_ih=zero, b_hh=zero)), bare, "biases of zeros")
    same_results(run_both(kernel, p.but(b_hh=None)), run_both(kernel, p.but(b_ih=p.b_ih, b_hh=zero)), "one bias")


@native
@pytest.mark.parametrize("case", random_cases(24, seed=41), ids=lambda case: case.id)
def test_random_paths(kernel: Kernel, dtype: str, case: Case) -> None:
    """Random sizes and options; threads, tuning, alignment and memory layout all drawn at once."""
    case = replace(case, dtype=dtype)
    p = case.build()
    want = run_both(kernel, p, threads=1)
    rng = np.random.default_rng(case.seed)
    for _ in range(3):
        tuning = {
            "hoist": int(rng.integers(-1, 2)),
            "tile_rows": int(rng.integers(1, 7)),
            "row_block": int(rng.integers(1, 30)),
            "chunk_steps": int(rng.integers(1, 9)),
        }
        if rng.random() < 0.3:
            tuning |= {"row_block": 0, "slices": int(rng.integers(2, 6))}
        threads = int(rng.integers(1, 9))
        layout = str(rng.choice(LAYOUTS))
        q = p.but(x=with_layout(np.array(p.x), layout), w_hh=with_layout(p.w_hh, str(rng.choice(("fortran", layout)))))
        what = f"{tuning}, {threads} threads, {layout}: {case.repro('backward', kernel)}"
        same_results(run_both(kernel, q, threads=threads, tuning=tuning), want, what)


# ---- The long versions


@native
@pytest.mark.nightly
@pytest.mark.parametrize("threads", range(1, 17))
def test_100_runs_on_every_number_of_threads(kernel: Kernel, dtype: str, threads: int) -> None:
    """1 to 16 threads, 100 runs of every shape, forward and backward; every other run with forced slices or blocks."""
    for case in SHAPES + LARGE:
        p = replace(case, dtype=dtype).build()
        want = run_both(kernel, p, threads=1)
        for run in range(100):
            tuning = (None, {"row_block": 1 + run % 40}, None, {"slices": 2 + run % 15})[run % 4]
            what = f"run {run}, {tuning}: {case.repro('backward', kernel)}"
            same_results(run_both(kernel, p, threads=threads, tuning=tuning), want, what)


@native
@pytest.mark.nightly
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", [c for c in SHAPES if c.lengths != "packed"], ids=lambda case: case.id)
def test_every_batch_size_and_position(kernel: Kernel, dtype: str, case: Case, threads: int) -> None:
    """The first n rows for every n up to the batch and beyond; every row at every position of the whole batch."""
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p)
    B = case.B
    subsets = [np.arange(n) % B for n in range(1, min(B, 150) + 20)] + [np.roll(np.arange(B), n) for n in range(B)]
    for chosen in subsets:
        got = run_both(kernel, rows_of(p, chosen), threads=threads)
        for name, axis in {"output": 1, "h_n": 0, "d_x": 1, "d_h_0": 0}.items():
            i = NAMES.index(name)
            assert_same_bits(got[i], np.take(want[i], chosen, axis=axis), f"{name} of rows {chosen.tolist()}")


@native
@pytest.mark.nightly
@pytest.mark.parametrize("case", SHAPES, ids=SHAPE_IDS)
def test_every_alignment_of_every_array(kernel: Kernel, dtype: str, case: Case) -> None:
    """Each array alone at each element offset from a 64-byte boundary; the arrays that are written, too."""
    p = replace(case, dtype=dtype).build()
    want = run_both(kernel, p)
    size = np.dtype(dtype).itemsize
    inputs = ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "recurrent_mask", "d_output", "d_h_n")
    for offset in range(0, 64, size):
        for name in (name for name in inputs if getattr(p, name) is not None):
            q = p.but(**{name: misaligned(getattr(p, name), offset)})
            same_results(run_both(kernel, q), want, f"{name} at offset {offset}")

        def new(shape: tuple[int, ...], dtype: str, offset: int = offset) -> Any:
            return misaligned(np.full(shape, np.nan, dtype), offset)

        got = kernel.forward(p, new=new)
        same_results((*got, *kernel.backward(p, got[0], new=new)), want, f"results at offset {offset}")


def test_sizes_of_packed_rows_are_what_torch_makes() -> None:
    assert sizes_of(np.array([3, 2, 2])).tolist() == [3, 3, 1]
