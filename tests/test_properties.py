"""Properties of any implementation, over drawn problems: splitting in time, permuting the batch, junk in the padding,
reversing, resetting, packing, linearity of BPTT. On cpp they hold to the bit; on other backends to a few roundings.

Profile `ci` (the default) draws 200 derandomised examples of each; for 20,000 random ones (about half an hour):
HYPOTHESIS_PROFILE=nightly pytest --timeout=3600 tests/test_properties.py
"""

from typing import Any

import numpy as np
from helpers.cases import GRADIENTS, Case, Problem, pack, sizes_of
from helpers.compare import assert_same_bits, normalised_error
from helpers.kernels import Kernel
from hypothesis import given
from hypothesis import strategies as st

SIZE = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33]))
PROBLEMS = st.builds(
    Case,
    T=st.integers(1, 9),
    B=st.integers(1, 9),
    I=SIZE,
    H=SIZE,
    dtype=st.sampled_from(["float32", "float64"]),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    bias=st.sampled_from(["both", "none", "ih"]),
    h_0=st.booleans(),
    lengths=st.sampled_from(["none", "ragged"]),
    reverse=st.booleans(),
    reset=st.booleans(),
    recurrent_mask=st.booleans(),
    keep_mask=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
# Everything below runs on the active kernels of each backend; instruction sets are test_determinism.py's business.
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def agree(backend: str, got: Any, want: Any, what: str) -> None:
    """To the bit on cpp, to 100 eps of the largest element elsewhere (BLAS adds in another order for another shape)."""
    if backend == "cpp":
        assert_same_bits(np.ascontiguousarray(got) + 0, np.ascontiguousarray(want) + 0, what)  # + 0: any sign of zero
    else:
        assert normalised_error(got, want) <= 100 * EPS[str(got.dtype)], what


def close(got: Any, want: Any, what: str, scale: float | None = None) -> None:
    """Sums over rows in another order: 200 eps of the largest element, on every backend."""
    tolerance = 200 * EPS[str(got.dtype)]
    size = max(float(np.abs(want).max(initial=0)), scale or 0)
    assert np.abs(got - want).max(initial=0) <= tolerance * size, what


def kernel_of(backend: str) -> Kernel:
    return Kernel(backend)  # cpp: isa None, the active one


def full_lengths(p: Problem) -> Any:
    return np.full(p.B, p.x.shape[0], np.int64) if p.lengths is None else p.lengths


def run(backend: str, p: Problem) -> dict[str, Any]:
    kernel = kernel_of(backend)
    output, h_n = kernel.forward(p)
    return {"output": output, "h_n": h_n, **vars(kernel.backward(p, output))}


@given(case=PROBLEMS, cut=st.integers(0, 9))
def test_a_sequence_may_be_split_anywhere(backend: str, case: Case, cut: int) -> None:
    """h_n of the first part into h_0 of the second, d_h_0 of the second into d_h_n of the first; d_w add up."""
    p = case.build()
    cut = min(cut, case.T)
    whole = run(backend, p)
    lengths = full_lengths(p)

    def part(times: slice, part_lengths: Any, **states: Any) -> Problem:
        names = ("x", "reset", "keep_mask", "d_output")
        changed = {n: None if getattr(p, n) is None else getattr(p, n)[times] for n in names}
        return p.but(lengths=part_lengths, **changed, **states)

    kernel = kernel_of(backend)
    early = part(slice(0, cut), np.minimum(lengths, cut))
    late = part(slice(cut, None), np.maximum(lengths - cut, 0))
    if case.reverse:
        early, late = late, early
    first, first_n = kernel.forward(early)
    late = late.but(h_0=first_n)
    second, second_n = kernel.forward(late)
    joined = np.concatenate([second, first] if case.reverse else [first, second])
    agree(backend, joined, whole["output"], "output")
    agree(backend, second_n, whole["h_n"], "h_n")
    g2 = kernel.backward(late, second)
    g1 = kernel.backward(early.but(d_h_n=g2.d_h_0), first)
    d_x = np.concatenate([g2.d_x, g1.d_x] if case.reverse else [g1.d_x, g2.d_x])
    agree(backend, d_x, whole["d_x"], "d_x")
    agree(backend, g1.d_h_0, whole["d_h_0"], "d_h_0")
    for name in GRADIENTS[2:]:
        a, b = getattr(g1, name), getattr(g2, name)
        close(a + b, whole[name], name, float(np.abs(a).max(initial=0) + np.abs(b).max(initial=0)))


@given(case=PROBLEMS, seed=st.integers(0, 1000))
def test_the_batch_may_be_permuted(backend: str, case: Case, seed: int) -> None:
    p = case.build()
    order = np.random.default_rng(seed).permutation(case.B)
    first = {n: getattr(p, n) for n in ("h_0", "lengths", "recurrent_mask", "d_h_n")}
    second = {n: getattr(p, n) for n in ("x", "reset", "keep_mask", "d_output")}
    moved = {n: None if a is None else a[order] for n, a in first.items()}
    moved |= {n: None if a is None else a[:, order] for n, a in second.items()}
    got, want = run(backend, p.but(**moved)), run(backend, p)
    for name in ("h_n", "d_h_0"):
        agree(backend, got[name], want[name][order], name)
    for name in ("output", "d_x"):
        agree(backend, got[name], want[name][:, order], name)
    for name in GRADIENTS[2:]:
        close(got[name], want[name], name, _row_scale(want))


def _row_scale(results: dict[str, Any]) -> float:
    """A size for sums over rows that may cancel."""
    return max(1.0, float(np.abs(results["d_x"]).max(initial=0)))


@given(case=PROBLEMS, extra=st.integers(1, 5), junk=st.sampled_from([np.nan, np.inf, -1e30, 0.0]))
def test_padding_may_hold_anything(backend: str, case: Case, extra: int, junk: float) -> None:
    """More time steps of junk behind every row, more rows of junk beside them: the old rows keep their results."""
    p = case.build()
    T, B = case.T, case.B
    lengths = np.concatenate([full_lengths(p), np.zeros(extra, np.int64)])
    want = run(backend, p)

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
    got = run(backend, q)
    for name in ("h_n", "d_h_0"):
        agree(backend, got[name][:B], want[name], name)
        assert not got[name][B:].any(), name
    for name in ("output", "d_x"):
        agree(backend, got[name][:T, :B], want[name], name)
        assert not got[name][T:].any(), name
        assert not got[name][:, B:].any(), name
    for name in GRADIENTS[2:]:
        close(got[name], want[name], name, _row_scale(want))


@given(case=PROBLEMS)
def test_reversing_twice_is_the_identity(backend: str, case: Case) -> None:
    """Each row flipped within its own length, and reverse switched: everything flipped, nothing else changed."""
    p = case.build()
    T, B = case.T, case.B
    at = np.arange(T)[:, None]
    length = full_lengths(p)[None, :]
    source = np.where(at < length, length - 1 - at, at)
    columns = np.broadcast_to(np.arange(B), (T, B))

    def flip(a: Any) -> Any:
        return None if a is None else a[source, columns]

    names = ("x", "reset", "keep_mask", "d_output")
    flipped = p.but(reverse=not case.reverse, **{n: flip(getattr(p, n)) for n in names})
    got, want = run(backend, flipped), run(backend, p)
    for name in ("h_n", "d_h_0"):
        agree(backend, got[name], want[name], name)
    for name in ("output", "d_x"):
        agree(backend, flip(got[name]), want[name], name)
    for name in GRADIENTS[2:]:
        close(got[name], want[name], name, _row_scale(want))


@given(case=PROBLEMS, at=st.integers(0, 8))
def test_a_reset_equals_a_restart(backend: str, case: Case, at: int) -> None:
    """All rows reset at one step: from there on the run of the rest from h_0 = 0, and no gradient goes across."""
    p = case.build().but(lengths=None, reverse=False)
    at = min(at, case.T - 1)
    reset = np.zeros((case.T, case.B), bool)
    reset[at] = True
    p = p.but(reset=reset)
    rest = p.but(
        x=p.x[at:], h_0=None, reset=None, keep_mask=None if p.keep_mask is None else p.keep_mask[at:],
        d_output=p.d_output[at:],
    )  # fmt: skip
    got, want = run(backend, p), run(backend, rest)
    agree(backend, got["output"][at:], want["output"], "output")
    agree(backend, got["h_n"], want["h_n"], "h_n")
    agree(backend, got["d_x"][at:], want["d_x"], "d_x")
    if at == 0:
        assert not got["d_h_0"].any()
    else:
        before = p.but(
            x=p.x[:at], reset=None, keep_mask=None if p.keep_mask is None else p.keep_mask[:at],
            d_output=p.d_output[:at], d_h_n=None,
        )  # fmt: skip
        earlier = run(backend, before)
        agree(backend, got["d_x"][:at], earlier["d_x"], "d_x before the reset")
        agree(backend, got["d_h_0"], earlier["d_h_0"], "d_h_0")


@given(case=PROBLEMS)
def test_packed_equals_padded(backend: str, case: Case) -> None:
    p = case.build()
    lengths = np.sort(np.maximum(full_lengths(p), 1))[::-1].copy()
    lengths[0] = case.T
    p = p.but(lengths=lengths)
    sizes = sizes_of(lengths)
    packed = {
        n: None if getattr(p, n) is None else pack(getattr(p, n), sizes)
        for n in ("x", "reset", "keep_mask", "d_output")
    }
    got, want = run(backend, p.but(lengths=None, batch_sizes=sizes, **packed)), run(backend, p)
    for name in ("h_n", "d_h_0"):
        agree(backend, got[name], want[name], name)
    for name in ("output", "d_x"):
        agree(backend, got[name], pack(want[name], sizes), name)
    for name in GRADIENTS[2:]:
        close(got[name], want[name], name, _row_scale(want))


@given(case=PROBLEMS, a=st.floats(-2, 2), b=st.floats(-2, 2), seed=st.integers(0, 1000))
def test_backward_is_linear_in_the_upstream_gradient(backend: str, case: Case, a: float, b: float, seed: int) -> None:
    """In float64: the gradients of a u + b v are a times those of u plus b times those of v."""
    from dataclasses import replace

    p = replace(case, dtype="float64").build()
    kernel = kernel_of(backend)
    output, _ = kernel.forward(p)
    rng = np.random.default_rng(seed)
    v = p.but(d_output=rng.standard_normal(output.shape), d_h_n=rng.standard_normal((case.B, case.H)))
    mixed = p.but(d_output=a * p.d_output + b * v.d_output, d_h_n=a * p.d_h_n + b * v.d_h_n)
    parts = zip(kernel.backward(mixed, output), kernel.backward(p, output), kernel.backward(v, output), strict=True)
    for name, (got, of_u, of_v) in zip(GRADIENTS, parts, strict=True):
        size = float(max(np.abs(of_u).max(), np.abs(of_v).max()))
        assert np.abs(got - (a * of_u + b * of_v)).max() <= 1e-12 * size, name


@given(case=PROBLEMS)
def test_without_recurrence_every_step_is_a_layer(backend: str, case: Case) -> None:
    """w_hh = 0: the batch and time axes are interchangeable rows of a feed-forward layer."""
    p = case.build().but(lengths=None, reset=None, keep_mask=None, recurrent_mask=None, reverse=False)
    p = p.but(w_hh=np.zeros_like(p.w_hh))
    T, B = case.T, case.B
    flat = p.but(x=p.x.reshape(1, T * B, -1), h_0=None, d_output=p.d_output.reshape(1, T * B, -1), d_h_n=None)
    p = p.but(d_h_n=None)
    got, want = run(backend, p), run(backend, flat)
    agree(backend, got["output"].reshape(1, T * B, -1), want["output"], "output")
    agree(backend, got["d_x"].reshape(1, T * B, -1), want["d_x"], "d_x")
    assert not got["d_h_0"].any()
