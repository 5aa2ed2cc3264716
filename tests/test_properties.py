"""Properties of any implementation, over drawn problems: what must not matter does not matter. Splitting in time,
permuting the batch, junk in the padding, reversing, resetting, packing, truncating, memory layout; linearity of BPTT.

Each property runs a problem in another form and brings the results back into the first one's shape. There all of them
must lie within the bounds of the first problem (helpers/bounds.py), on every backend. On cpp, which promises it, what
belongs to a row (output, h_n, d_x, d_h_0) is moreover the same bits; so are d_w and d_b for the same T, B and lengths.

Profile `ci` (the default) draws 200 derandomised examples of each; for 20,000 random ones (some hours):
HYPOTHESIS_PROFILE=nightly pytest --timeout=14400 tests/test_properties.py
"""

from dataclasses import replace
from typing import Any

import numpy as np
from helpers import oracle
from helpers.cases import LAYOUTS, Case, Problem, pack, rows_of, sizes_of, steps_of, unpack, with_layout
from helpers.checks import check_results
from helpers.compare import assert_same_bits
from helpers.kernels import Kernel, d_z_of
from hypothesis import given
from hypothesis import strategies as st

Results = dict[str, Any]  # output, h_n, d_z and the gradients, by name

SIZE = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33]))
PROBLEMS = st.builds(
    Case,
    T=st.one_of(st.integers(1, 9), st.sampled_from([31, 33, 65])),  # 65: several blocks of the d_w sum, for B > 4
    B=st.integers(1, 9),
    I=SIZE,
    H=SIZE,
    dtype=st.sampled_from(["float32", "float64"]),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    bias=st.sampled_from(["both", "none", "ih", "hh"]),
    h_0=st.booleans(),
    lengths=st.sampled_from(["none", "full", "ragged"]),
    reverse=st.booleans(),
    reset=st.booleans(),
    recurrent_mask=st.booleans(),
    keep_mask=st.booleans(),
    alpha=st.sampled_from(["none", "none", "one", "unit"]),
    d_output=st.sampled_from(["random", "random", "constant", "none"]),
    d_h_n=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
ROW_AXIS = {"output": 1, "h_n": 0, "d_z": 1, "d_x": 1, "d_h_0": 0}  # of what belongs to a row
IN_TIME = ("output", "d_z", "d_x")
SUMS = ("d_w_ih", "d_w_hh", "d_b", "d_alpha")  # over all rows and steps; the last one of leaky units


def kernel_of(backend: str) -> Kernel:
    """cpp: on the active instruction set; the others are test_determinism.py's business."""
    return Kernel(backend)


def run(backend: str, p: Problem, tape: Any = None) -> Results:
    """All results; `tape` goes into BPTT instead of the output."""
    kernel = kernel_of(backend)
    output, h_n = kernel.forward(p)
    tape = output if tape is None else tape(output)
    return {"output": output, "h_n": h_n, "d_z": d_z_of(kernel, p, tape), **vars(kernel.backward(p, tape))}


def assert_agree(backend: str, p: Problem, got: Results, want: Results, same: tuple[str, ...] = ()) -> None:
    """`got` are results of p (padded): within its bounds; on cpp the bits of `want`, by row and of the sums in `same`.
    The sign of a zero is free."""
    kernel = kernel_of(backend)
    check_results(p, got["output"], got, f"{backend}, brought back", kernel.tanh_ulps)
    for name in (*ROW_AXIS, *same):
        if kernel.is_native and name in got:
            assert_same_bits(np.ascontiguousarray(got[name]) + 0, np.ascontiguousarray(want[name]) + 0, name)


def lengths_of(p: Problem) -> Any:
    return np.full(p.B, p.x.shape[0], np.int64) if p.lengths is None else p.lengths


def in_sequence(earlier: Results, later: Results, reverse: bool) -> Results:
    """The results of two parts, in the order of processing, as those of the whole."""
    parts = (later, earlier) if reverse else (earlier, later)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in IN_TIME}
    sums = {name: earlier[name] + later[name] for name in SUMS if name in earlier}
    return {**joined, **sums, "h_n": later["h_n"], "d_h_0": earlier["d_h_0"]}


def run_in_sequence(backend: str, earlier: Problem, later: Problem) -> Results:
    """h_n of the first part into h_0 of the second, d_h_0 of the second into d_h_n of the first."""
    _, between = kernel_of(backend).forward(earlier)
    second = run(backend, later.but(h_0=between))
    first = run(backend, earlier.but(d_h_n=second["d_h_0"]))
    return in_sequence(first, second, earlier.reverse)


@given(case=PROBLEMS, cut=st.integers(0, 65))
def test_a_sequence_may_be_split_anywhere(backend: str, case: Case, cut: int) -> None:
    p = case.build()
    cut = min(cut, case.T)
    lengths = lengths_of(p)
    early = steps_of(p, slice(0, cut), p.h_0, p.d_h_n).but(lengths=np.minimum(lengths, cut))
    late = steps_of(p, slice(cut, None), p.h_0, p.d_h_n).but(lengths=np.maximum(lengths - cut, 0))
    got = run_in_sequence(backend, *((late, early) if case.reverse else (early, late)))
    assert_agree(backend, p, got, run(backend, p))


@given(case=PROBLEMS, seed=st.integers(0, 1000))
def test_the_batch_may_be_permuted(backend: str, case: Case, seed: int) -> None:
    p = case.build()
    order = np.random.default_rng(seed).permutation(case.B)
    got = run(backend, rows_of(p, order))
    got |= {name: np.take(got[name], np.argsort(order), axis=axis) for name, axis in ROW_AXIS.items()}
    assert_agree(backend, p, got, run(backend, p))


@given(case=PROBLEMS)
def test_a_row_of_a_ragged_batch_equals_its_own_truncated_sequence(backend: str, case: Case) -> None:
    """Every row alone, cut to its length; the sums over the batch are those of the rows, added up."""
    p = replace(case, lengths="ragged").build()
    want = run(backend, p)
    got = {name: np.zeros_like(value) for name, value in want.items()}
    for b, length in enumerate(lengths_of(p)):
        row = rows_of(p, np.array([b]))
        alone = run(backend, steps_of(row, slice(0, int(length)), row.h_0, row.d_h_n).but(lengths=None))
        for name in IN_TIME:
            got[name][:length, b] = alone[name][:, 0]
        for name in ("h_n", "d_h_0"):
            got[name][b] = alone[name][0]
        for name in set(SUMS) & alone.keys():
            got[name] += alone[name]
    assert_agree(backend, p, got, want)


@given(case=PROBLEMS, extra=st.integers(1, 5), junk=st.sampled_from([np.nan, np.inf, -1e30, 0.0]))
def test_padding_may_hold_anything(backend: str, case: Case, extra: int, junk: float) -> None:
    """More time steps of junk behind every row, more rows of junk beside them, junk in the tape there."""
    p = case.build()
    T, B = case.T, case.B
    lengths = np.concatenate([lengths_of(p), np.zeros(extra, np.int64)])

    def grow(a: Any, axes: str, fill: Any) -> Any:
        if a is None:
            return None
        room = [(0, extra) if axis in "TB" else (0, 0) for axis in axes]
        return np.pad(a, room, constant_values=fill)

    with np.errstate(all="ignore"):
        q = p.but(
            x=grow(p.x, "TBI", junk), h_0=grow(p.h_0, "BH", 0), lengths=lengths, reset=grow(p.reset, "TB", True),
            recurrent_mask=grow(p.recurrent_mask, "BH", 1), keep_mask=grow(p.keep_mask, "TBH", True),
            d_output=grow(p.d_output, "TBH", junk), d_h_n=grow(p.d_h_n, "BH", 0),
        )  # fmt: skip
    beyond = ~oracle.valid_rows(q)[..., None]
    got = run(backend, q, tape=lambda output: np.where(beyond, output.dtype.type(junk), output))
    for name in IN_TIME:
        assert not got[name][T:].any(), name
        assert not got[name][:, B:].any(), name
        got[name] = got[name][:T, :B]
    for name in ("h_n", "d_h_0"):
        assert not got[name][B:].any(), name
        got[name] = got[name][:B]
    assert_agree(backend, p, got, run(backend, p))


@given(case=PROBLEMS)
def test_reversing_twice_is_the_identity(backend: str, case: Case) -> None:
    """Each row flipped within its own length, and reverse switched: everything flipped, nothing else changed."""
    p = case.build()
    T, B = case.T, case.B
    at = np.arange(T)[:, None]
    length = lengths_of(p)[None, :]
    source = np.where(at < length, length - 1 - at, at)
    columns = np.broadcast_to(np.arange(B), (T, B))

    def flip(a: Any) -> Any:
        return None if a is None else a[source, columns]

    flipped = {name: flip(getattr(p, name)) for name in ("x", "reset", "keep_mask", "d_output")}
    got = run(backend, p.but(reverse=not case.reverse, **flipped))
    got |= {name: flip(got[name]) for name in IN_TIME}
    assert_agree(backend, p, got, run(backend, p), same=SUMS)


@given(case=PROBLEMS, at=st.integers(0, 64))
def test_a_reset_equals_a_restart(backend: str, case: Case, at: int) -> None:
    """All rows reset at one step: h_0 = 0 from there on, and no gradient goes across."""
    p = replace(case, reset=True, lengths="none").build()
    at = min(at, case.T - 1)
    p.reset[at] = True
    cut = at + 1 if case.reverse else at  # in time: the reset step belongs to the later part
    early, late = slice(0, cut), slice(cut, None)
    if case.reverse:
        early, late = late, early
    before = run(backend, steps_of(p, early, p.h_0, None))
    reset = p.reset.copy()
    reset[at] = False
    restart = steps_of(p.but(reset=reset), late, None, p.d_h_n)  # h_0 = 0 in place of the reset
    got = in_sequence(before, run(backend, restart), case.reverse)
    if early == slice(0, 0) or early == slice(case.T, None):
        assert not got["d_h_0"].any()
    assert_agree(backend, p, got, run(backend, p))


@given(case=PROBLEMS)
def test_packed_equals_padded(backend: str, case: Case) -> None:
    p = case.build()
    lengths = np.sort(np.maximum(lengths_of(p), 1))[::-1].copy()
    lengths[0] = case.T
    p = p.but(lengths=lengths)
    sizes = sizes_of(lengths)
    names = ("x", "reset", "keep_mask", "d_output")
    packed = {name: None if getattr(p, name) is None else pack(getattr(p, name), sizes) for name in names}
    got = run(backend, p.but(lengths=None, batch_sizes=sizes, **packed))
    got |= {name: unpack(got[name], sizes) for name in IN_TIME}
    assert_agree(backend, p, got, run(backend, p), same=SUMS)


@given(case=PROBLEMS, data=st.data())
def test_memory_layout_does_not_matter(backend: str, case: Case, data: st.DataObject) -> None:
    """Strides of any kind, negative and transposed among them, another for each array and for the tape."""
    p = case.build()

    def layout_of(array: Any) -> str:
        return data.draw(st.sampled_from([w for w in LAYOUTS if array.ndim > 1 or w != "batch_first"]))

    names = ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh", "alpha", "recurrent_mask", "reset", "keep_mask", "d_output",
             "d_h_n")  # fmt: skip
    arrays = {name: getattr(p, name) for name in names if getattr(p, name) is not None}
    laid = {name: with_layout(array, layout_of(array)) for name, array in arrays.items()}
    tape = layout_of(p.x)
    got = run(backend, p.but(**laid), tape=lambda output: with_layout(output, tape))
    assert_agree(backend, p, got, run(backend, p), same=SUMS)


@given(case=PROBLEMS, a=st.floats(-2, 2), b=st.floats(-2, 2), seed=st.integers(0, 1000))
def test_backward_is_linear_in_the_upstream_gradient(backend: str, case: Case, a: float, b: float, seed: int) -> None:
    """In float64: the gradients of a u + b v are a times those of u plus b times those of v."""
    p = replace(case, dtype="float64", d_output="random", d_h_n=True).build()
    kernel = kernel_of(backend)
    output, _ = kernel.forward(p)
    rng = np.random.default_rng(seed)
    v = p.but(d_output=rng.standard_normal(output.shape), d_h_n=rng.standard_normal((case.B, case.H)))
    mixed = p.but(d_output=a * p.d_output + b * v.d_output, d_h_n=a * p.d_h_n + b * v.d_h_n)
    parts = [vars(kernel.backward(each, output)) for each in (mixed, p, v)]
    for name in parts[0]:
        got, of_u, of_v = (part[name] for part in parts)
        size = float(max(np.abs(of_u).max(), np.abs(of_v).max()))
        assert np.abs(got - (a * of_u + b * of_v)).max() <= 1e-12 * size, name


@given(case=PROBLEMS)
def test_the_gradient_of_a_sum_over_time_is_the_sum_of_gradients(backend: str, case: Case) -> None:
    """In float64: one BPTT for each step's d_output and one for d_h_n add up to BPTT of all; and a step's gradient
    reaches no step that is processed later: exactly 0 there."""
    p = replace(case, dtype="float64", T=min(case.T, 9), d_output="random", d_h_n=True).build()
    kernel = kernel_of(backend)
    output, _ = kernel.forward(p)
    parts = [kernel.backward(p.but(d_output=None), output)]
    for t in range(p.x.shape[0]):
        d_output = np.zeros_like(p.d_output)
        d_output[t] = p.d_output[t]
        parts.append(kernel.backward(p.but(d_output=d_output, d_h_n=None), output))
        later = slice(0, t) if case.reverse else slice(t + 1, None)
        assert not parts[-1].d_x[later].any(), f"d_x of steps processed after {t}"
    for name, got in vars(kernel.backward(p, output)).items():
        want = np.array([getattr(part, name) for part in parts])
        assert (np.abs(got - want.sum(axis=0)) <= 1e-12 * np.abs(want).max()).all(), name


@given(case=PROBLEMS)
def test_without_recurrence_every_step_is_a_layer(backend: str, case: Case) -> None:
    """w_hh = 0: time and batch are interchangeable rows of a feed-forward layer; nothing reaches back to h_0."""
    p = replace(case, lengths="none", keep_mask=False, alpha="none", d_h_n=False).build()
    p = p.but(w_hh=np.zeros_like(p.w_hh))
    T, B = case.T, case.B

    def flat(a: Any) -> Any:
        return None if a is None else a.reshape(1, T * B, -1)

    q = p.but(x=flat(p.x), h_0=None, d_output=flat(p.d_output), reset=None, recurrent_mask=None, reverse=False)
    got, want = run(backend, q), run(backend, p)
    assert not want["d_h_0"].any()
    got = {name: got[name].reshape(T, B, -1) for name in IN_TIME} | {name: got[name] for name in ("d_w_ih", "d_b")}
    assert_agree(backend, p, got, want)
