"""The helpers' own tests: comparers see planted errors, cases cover what they promise, and the judges of promises 2
and 3 reject every one of a set of broken kernels (and accept the sound one)."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import oracle
from helpers.cases import (
    BROADCASTS,
    GRADIENTS,
    LAYOUTS,
    SIZES,
    Case,
    Problem,
    misaligned,
    pack,
    random_cases,
    sizes_of,
    unpack,
)
from helpers.checks import adjoint_gap, check_backward, check_forward, complex_step_errors
from helpers.compare import assert_same_bits, assert_within, normalised_error, ulp_error, ulp_size
from helpers.kernels import Gradients, Kernel

F32 = np.float32


@pytest.fixture(autouse=True)
def _fixed_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these cases must show does not depend on FASTRNN_SEED."""
    monkeypatch.setattr("helpers.cases.SEED", 0)


# ---- Comparers


@pytest.mark.parametrize(
    ("a", "b"), [(0.0, -0.0), (1.0, np.nextafter(F32(1), F32(2))), (np.nan, 1.0), (np.inf, -np.inf), (0.0, 1e-45)]
)
def test_same_bits_sees_every_difference(a: float, b: float) -> None:
    x, y = np.array([1, a, 2], F32), np.array([1, b, 2], F32)
    assert_same_bits(x, x.copy(), "equal")
    with pytest.raises(AssertionError, match="1 of 3 elements"):
        assert_same_bits(x, y, "planted")


def test_same_bits_takes_nans_as_equal_but_not_dtype_or_shape() -> None:
    assert_same_bits(np.array([np.nan], F32), np.array([-np.nan], F32), "nan")
    with pytest.raises(AssertionError, match="dtype"):
        assert_same_bits(np.zeros(2, F32), np.zeros(2), "dtype")
    with pytest.raises(AssertionError, match="shape"):
        assert_same_bits(np.zeros(2, F32), np.zeros((2, 1), F32), "shape")
    with pytest.raises(AssertionError, match="None"):
        assert_same_bits(None, np.zeros(2, F32), "none")


def test_within_sees_one_bad_element_and_nan() -> None:
    want = np.ones((3, 4))
    got = want.copy()
    got[1, 2] += 2e-6
    assert_within(got, want, 3e-6, "inside")
    with pytest.raises(AssertionError, match=r"1 of 12 .*\(1, 2\)"):
        assert_within(got, want, 1e-6, "planted")
    got[2, 3] = np.nan
    with pytest.raises(AssertionError, match=r"\(2, 3\)"):
        assert_within(got, want, 3e-6, "nan")


def test_normalised_error_of_bad_values() -> None:
    assert normalised_error(np.array([1.0, np.nan]), np.array([1.0, 1.0])) == np.inf
    assert normalised_error(np.zeros(3), np.zeros(2)) == np.inf
    assert normalised_error(np.array([1e-30]), np.zeros(1)) == np.inf
    assert normalised_error(np.zeros(1), np.zeros(1)) == 0
    assert normalised_error(np.array([1.0, 4.4]), np.array([1.0, 4.0])) == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ulp_size_at_binade_boundaries(dtype: str) -> None:
    info = np.finfo(dtype)
    wide = np.float64 if dtype == "float32" else np.longdouble
    values = np.array([1, 1.5, 2, 3, 0.5, info.smallest_normal, info.smallest_subnormal, 0], dtype)
    sizes = ulp_size(values.astype(wide), dtype)
    assert (sizes == np.spacing(values).astype(wide)).all()
    below_two = wide(2) - wide(info.eps) / 8  # rounds to 2 in dtype, yet belongs to the binade below
    assert ulp_size(np.array([below_two]), dtype)[0] == wide(info.eps)
    assert ulp_error(np.array([2], dtype), np.array([2 - wide(info.eps)]))[0] == 1


# ---- Cases


@pytest.mark.parametrize("layout", [*LAYOUTS, *BROADCASTS])
def test_layouts_keep_the_values(layout: str) -> None:
    case = Case(T=3, B=4, I=5, layout=layout)
    p = case.build()
    assert np.array_equal(p.x, np.ascontiguousarray(p.x))
    assert np.array_equal(p.x, case.build().x)
    if layout != "contiguous":
        assert p.x.strides != np.ascontiguousarray(p.x).strides
    if layout in LAYOUTS:
        assert np.array_equal(p.x, replace(case, layout="contiguous").build().x)


def test_pack_and_unpack() -> None:
    lengths = np.array([4, 3, 3, 1])
    sizes = sizes_of(lengths)
    assert sizes.tolist() == [4, 3, 3, 1]
    padded = np.arange(4 * 4 * 2.0).reshape(4, 4, 2)
    packed = pack(padded, sizes)
    assert packed.shape == (11, 2)
    back = unpack(packed, sizes, fill=-1.0)
    valid = np.arange(4)[:, None] < lengths
    assert np.array_equal(back[valid], padded[valid])
    assert (back[~valid] == -1).all()


def test_misaligned_starts_where_it_says() -> None:
    for offset in (0, 4, 60):
        assert misaligned(np.arange(5, dtype=F32), offset).ctypes.data % 64 == offset


def test_random_cases_cover_sizes_and_options() -> None:
    cases = random_cases(60, seed=0)
    assert cases == random_cases(60, seed=0)
    assert cases != random_cases(60, seed=1)
    for dimension in "TBIH":
        assert {getattr(c, dimension) for c in cases} >= set(SIZES[:-2])
    for option in ("lengths", "bias", "d_output", "layout", "nonlinearity"):
        assert len({getattr(c, option) for c in cases}) >= 2
    for flag in ("reverse", "reset", "recurrent_mask", "keep_mask", "h_0", "d_h_n"):
        assert {getattr(c, flag) for c in cases} == {True, False}
    assert len({c.id + str(c.seed) for c in cases}) == 60
    ragged = Case(T=9, B=5, lengths="ragged").build().lengths
    assert ragged is not None
    assert ragged.min() == 0
    assert ragged.max() == 9


def test_repro_names_the_case() -> None:
    case = Case(T=2, B=3, I=4, H=5, reverse=True, seed=7)
    text = case.repro("backward", Kernel("cpp", "v3"))
    assert text.startswith("fastrnn check --op backward --backend cpp --isa v3 --T 2 --B 3 --I 4 --H 5 --dtype float32")
    assert eval(text.splitlines()[1]) == case


# ---- Judges: broken kernels, made from the sound NumPy reference


def _round_to_half(a: Any) -> Any:
    """What a kernel in reduced precision (10 mantissa bits) would see."""
    return a.astype(np.float16).astype(a.dtype)


def _shift(a: Any, axis: int = 0) -> Any:
    return np.roll(a, 1, axis=axis)


def _no_tail(a: Any) -> Any:
    b = a.copy()
    b[..., -1] = 0
    return b


Change = Callable[[Problem], Problem]
FORWARD_INPUTS: dict[str, Change] = {
    "drops b_ih": lambda p: p.but(b_ih=None),
    "drops b_hh": lambda p: p.but(b_hh=None),
    "drops h_0": lambda p: p.but(h_0=None),
    "forgets reverse": lambda p: p.but(reverse=not p.reverse),
    "forgets lengths": lambda p: p.but(lengths=None),
    "forgets reset": lambda p: p.but(reset=None),
    "forgets the recurrent mask": lambda p: p.but(recurrent_mask=None),
    "forgets keep_mask": lambda p: p.but(keep_mask=None),
    "wrong activation": lambda p: p.but(nonlinearity="relu" if p.nonlinearity == "tanh" else "tanh"),
    "transposes w_hh": lambda p: p.but(w_hh=p.w_hh.T.copy()),
    "reads x one step late": lambda p: p.but(x=_shift(p.x)),
    "misses the last input": lambda p: p.but(x=_no_tail(p.x)),
    "rounds x": lambda p: p.but(x=_round_to_half(p.x)),
    "rounds w_hh": lambda p: p.but(w_hh=_round_to_half(p.w_hh)),
}
FORWARD_OUTPUTS: dict[str, Callable[[Any, Any], Any]] = {
    "misses the last lane": lambda o, h: (_no_tail(o), h),
    "tanh 4 ulp off": lambda o, h: (o * F32(1 + 5e-7), h * F32(1 + 5e-7)),
    "h_n of another row": lambda o, h: (o, _shift(h)),
    "h_n of an earlier step": lambda o, h: (o, o[0 if len(o) == 1 else -2]),
    "junk beyond lengths": lambda o, h: (np.where(o == 0, F32(1e-30), o), h),
    "one element unwritten": lambda o, h: (np.where(np.arange(o.size).reshape(o.shape) == o.size // 2, np.nan, o), h),
}
BACKWARD_INPUTS: dict[str, Change] = {
    name: change
    for name, change in FORWARD_INPUTS.items()
    if name not in ("drops b_ih", "drops b_hh")  # backward does not see them
}
BACKWARD_INPUTS |= {
    "drops d_h_n": lambda p: p.but(d_h_n=None),
    "drops d_output": lambda p: p.but(d_output=None),
    "adds d_output one step late": lambda p: p.but(d_output=_shift(p.d_output)),
}
BACKWARD_TAPES: dict[str, Callable[[Any], Any]] = {
    "tanh' of the step before": _shift,
    "rounds the tape": _round_to_half,
    "relu' counts zeros": lambda o: np.where(o == 0, F32(1e-30), o),
}
BACKWARD_OUTPUTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    f"{name}: {fault}": lambda g, name=name, change=change: {**g, name: change(g[name])}
    for name in GRADIENTS
    for fault, change in {"misses the last lane": _no_tail, "10 ulp off": lambda a: a * F32(1 + 2e-5)}.items()
}

CASES = [
    Case(T=5, B=4, I=9, H=17, lengths="ragged", seed=1),
    Case(T=5, B=4, I=9, H=17, nonlinearity="relu", reset=True, recurrent_mask=True, keep_mask=True, seed=2),
]


class Mutant:
    """A kernel with one fault, around the sound one."""

    backend, isa, tanh_ulps, is_native = "numpy", None, 2.0, False

    def __init__(
        self, inputs: Any = None, outputs: Any = None, b_inputs: Any = None, tape: Any = None, b_outputs: Any = None
    ):
        self.sound = Kernel("numpy")
        self.inputs, self.outputs, self.b_inputs, self.tape, self.b_outputs = inputs, outputs, b_inputs, tape, b_outputs

    def forward(self, p: Problem, **how: Any) -> Any:
        output, h_n = self.sound.forward(self.inputs(p) if self.inputs else p)
        return self.outputs(output, h_n) if self.outputs else (output, h_n)

    def backward(self, p: Problem, output: Any, **how: Any) -> Any:
        needs = how.get("needs", ("x", "h_0", "w_ih", "w_hh", "b"))
        p = self.b_inputs(p) if self.b_inputs else p
        g = self.sound.backward(p, self.tape(output) if self.tape else output, needs=needs)
        changed = {name: value for name, value in vars(g).items() if value is not None}
        return Gradients(**{**vars(g), **(self.b_outputs(changed) if self.b_outputs and len(changed) == 5 else {})})


def _caught(check: Callable[[Any, Case], None], mutant: Any) -> bool:
    for case in CASES:
        try:
            check(mutant, case)
        except AssertionError:
            return True
    return False


def test_judges_accept_the_sound_kernel() -> None:
    for case in CASES:
        check_forward(Mutant(), case)
        check_backward(Mutant(), case)


@pytest.mark.parametrize("fault", FORWARD_INPUTS)
def test_forward_judge_rejects_inputs(fault: str) -> None:
    assert _caught(check_forward, Mutant(inputs=FORWARD_INPUTS[fault]))


@pytest.mark.parametrize("fault", FORWARD_OUTPUTS)
def test_forward_judge_rejects_outputs(fault: str) -> None:
    assert _caught(check_forward, Mutant(outputs=FORWARD_OUTPUTS[fault]))


@pytest.mark.parametrize("fault", BACKWARD_INPUTS)
def test_backward_judge_rejects_inputs(fault: str) -> None:
    assert _caught(check_backward, Mutant(b_inputs=BACKWARD_INPUTS[fault]))


@pytest.mark.parametrize("fault", BACKWARD_TAPES)
def test_backward_judge_rejects_tapes(fault: str) -> None:
    assert _caught(check_backward, Mutant(tape=BACKWARD_TAPES[fault]))


@pytest.mark.parametrize("fault", BACKWARD_OUTPUTS)
def test_backward_judge_rejects_outputs(fault: str) -> None:
    assert _caught(check_backward, Mutant(b_outputs=BACKWARD_OUTPUTS[fault]))


# A zero of relu that no rounding made has no derivative to compare with: the element-wise judge alone sees that fault.
ANALYTIC = [fault for fault in (*BACKWARD_INPUTS, *BACKWARD_TAPES) if fault != "relu' counts zeros"]


@pytest.mark.parametrize("fault", ANALYTIC)
def test_complex_step_and_adjoint_reject(fault: str) -> None:
    mutant = Mutant(b_inputs=BACKWARD_INPUTS.get(fault), tape=BACKWARD_TAPES.get(fault))
    cases = [replace(c, T=3, B=3, I=3, H=4, dtype="float64") for c in CASES]
    assert any(max(complex_step_errors(mutant, c).values()) > 1e-13 for c in cases)
    assert any(adjoint_gap(mutant, c) > 10 * 2.0**-52 for c in cases)


def test_oracle_stops_at_lengths_and_starts_reverse_at_the_end() -> None:
    p = Case(T=4, B=2, I=2, H=3, dtype="float64").build()
    p = p.but(lengths=np.array([4, 2]))
    output, h_n = oracle.forward(p)
    short, short_n = oracle.forward(p.but(x=p.x[:2, 1:], h_0=p.h_0[1:], lengths=None))
    assert np.array_equal(output[:2, 1:], short)
    assert np.array_equal(h_n[1:], short_n)
    assert not output[2:, 1].any()
    back, back_n = oracle.forward(p.but(reverse=True))
    flipped, flipped_n = oracle.forward(p.but(x=p.x[1::-1, 1:], h_0=p.h_0[1:], lengths=None))
    assert np.array_equal(back[1::-1, 1:], flipped)
    assert np.array_equal(back_n[1:], flipped_n)


# ---- The session guards of conftest.py

GUARDED = """
import sys, pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--noconftest", "-p", "conftest", *sys.argv[1:]]))
"""


def _run_suite(tmp_path: Path, body: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A session of its own on the conftest of this folder."""
    import os

    (tmp_path / "test_one.py").write_text(body)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r})\n" + GUARDED
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTRNN_EXPECT")}
    return subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**clean, **environment}, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_session_fails_when_an_expected_backend_did_not_run(tmp_path: Path) -> None:
    uses = "def test_a(backend):\n    assert backend\n"
    idle = "def test_a():\n    pass\n"
    fails = "def test_a(backend):\n    assert backend != 'numpy'\n"
    expect = {"FASTRNN_EXPECT_BACKENDS": "numpy"}
    assert _run_suite(tmp_path, uses, expect).returncode == 0
    assert _run_suite(tmp_path, idle, {}).returncode == 0
    result = _run_suite(tmp_path, idle, expect)
    assert result.returncode == 1
    assert "expected backend:numpy" in result.stdout
    assert _run_suite(tmp_path, fails, expect).returncode == 1
    assert _run_suite(tmp_path, uses, {"FASTRNN_EXPECT_ISAS": "sve9"}).returncode == 1


def test_kernel_list_is_json_friendly() -> None:
    from helpers.kernels import known_kernels

    assert json.loads(json.dumps(known_kernels()))["numpy"] == ""
