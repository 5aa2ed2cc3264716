"""Cases: sizes that miss every vector and tile width, options in random combination, and arrays in awkward memory.

A Case is a few words; build() turns it into a Problem (arrays). h_0, d_output and d_h_n are random by default: zeros
would hide the t = 0 term of d_w_hh. FASTRNN_SEED shifts every seed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SEED = int(os.environ.get("FASTRNN_SEED", "0"))
SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129)
DTYPES = ("float32", "float64")
LAYOUTS = ("contiguous", "batch_first", "inner_strided", "outer_strided", "negative_time", "negative_all", "fortran")
BROADCASTS = ("zero_time", "zero_batch", "zero_input")  # stride 0 along one axis of x
GRADIENTS = ("d_x", "d_h_0", "d_w_ih", "d_w_hh", "d_b")
NEEDS = ("x", "h_0", "w_ih", "w_hh", "b")


@dataclass
class Problem:
    """The arguments of rnn_forward and rnn_backward, by their public names; x is (N, I) when batch_sizes is given."""

    x: Array
    h_0: Array | None
    w_ih: Array
    w_hh: Array
    b_ih: Array | None = None
    b_hh: Array | None = None
    nonlinearity: str = "tanh"
    reverse: bool = False
    lengths: Array | None = None
    batch_sizes: Array | None = None
    reset: Array | None = None
    recurrent_mask: Array | None = None
    keep_mask: Array | None = None
    alpha: Array | None = None
    d_output: Array | None = None
    d_h_n: Array | None = None

    @property
    def B(self) -> int:  # noqa: N802
        return int(self.x.shape[1]) if self.batch_sizes is None else int(self.batch_sizes[0])

    @property
    def H(self) -> int:  # noqa: N802
        return int(self.w_hh.shape[0])

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (*self.x.shape[:-1], self.H)

    def options(self) -> dict[str, Any]:
        """The run-time options shared by forward and backward, as keywords."""
        names = ("nonlinearity", "reverse", "lengths", "batch_sizes", "reset", "recurrent_mask", "keep_mask", "alpha")
        return {name: getattr(self, name) for name in names}

    def but(self, **changed: Any) -> Problem:
        return replace(self, **changed)

    def padded(self) -> Problem:
        """The same problem without packing: lengths instead of batch_sizes."""
        if self.batch_sizes is None:
            return self
        sizes = self.batch_sizes
        lengths = np.array([(sizes > b).sum() for b in range(self.B)], np.int64)
        unpacked = {
            name: None if getattr(self, name) is None else unpack(getattr(self, name), sizes)
            for name in ("x", "reset", "keep_mask", "d_output")
        }
        return self.but(lengths=lengths, batch_sizes=None, **unpacked)


def pack(padded: Array, batch_sizes: Array) -> Array:
    """(T, B, ...) -> (N, ...): the first batch_sizes[t] rows of every step, one step after the other."""
    return np.concatenate([padded[t, : int(n)] for t, n in enumerate(batch_sizes)])


def unpack(packed: Array, batch_sizes: Array, fill: Any = 0) -> Array:
    padded = np.full((len(batch_sizes), int(batch_sizes[0]), *packed.shape[1:]), fill, packed.dtype)
    start = 0
    for t, n in enumerate(batch_sizes):
        padded[t, :n] = packed[start : start + int(n)]
        start += int(n)
    return padded


def sizes_of(lengths: Array) -> Array:
    """lengths (falling, positive) -> batch_sizes."""
    return np.array([(lengths > t).sum() for t in range(int(lengths.max()))], np.int64)


def rows_of(p: Problem, chosen: Any) -> Problem:
    """The problem of some batch rows alone (padded)."""

    def of(array: Array | None, axis: int) -> Array | None:
        return None if array is None else np.ascontiguousarray(np.take(array, chosen, axis=axis))

    return p.but(
        x=of(p.x, 1), h_0=of(p.h_0, 0), lengths=of(p.lengths, 0), reset=of(p.reset, 1), keep_mask=of(p.keep_mask, 1),
        recurrent_mask=of(p.recurrent_mask, 0), d_output=of(p.d_output, 1), d_h_n=of(p.d_h_n, 0),
    )  # fmt: skip


def steps_of(p: Problem, times: slice, h_0: Array | None, d_h_n: Array | None) -> Problem:
    """The problem of some time steps alone (padded); lengths stay as they are."""

    def of(array: Array | None) -> Array | None:
        return None if array is None else array[times]

    changed = {name: of(getattr(p, name)) for name in ("x", "reset", "keep_mask", "d_output")}
    return p.but(h_0=h_0, d_h_n=d_h_n, **changed)


def with_layout(array: Array, layout: str) -> Array:
    """Equal values in other memory. The array is (T, B, K); the zero_* layouts need values constant along the axis."""
    a = np.ascontiguousarray(array)
    if layout == "batch_first":
        return np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1)
    if layout == "fortran":
        return np.asfortranarray(a)
    if layout.startswith("zero_"):
        axis = {"zero_time": 0, "zero_batch": a.ndim - 2, "zero_input": a.ndim - 1}[layout]
        return np.broadcast_to(a[(slice(None),) * axis + (slice(0, 1),)], a.shape)
    steps = {
        "contiguous": (1, 1, 1),
        "inner_strided": (1, 1, 2),
        "outer_strided": (3, 2, 1),
        "negative_time": (-1, 1, 1),
        "negative_all": (-2, -1, -3),
    }[layout][-a.ndim :]
    room = np.full([max(n, 1) * abs(s) for n, s in zip(a.shape, steps, strict=True)], 77, a.dtype)
    view = room[tuple(slice(None, n * abs(s), abs(s)) for n, s in zip(a.shape, steps, strict=True))]
    view = view[tuple(slice(None, None, -1 if s < 0 else 1) for s in steps)]
    view[...] = a
    return view


def misaligned(array: Array, byte_offset: int) -> Array:
    """A copy whose data starts byte_offset bytes behind a 64-byte boundary."""
    raw = np.zeros(array.nbytes + 128, np.uint8)
    start = (-raw.ctypes.data) % 64 + byte_offset
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


@dataclass(frozen=True)
class Case:
    T: int = 5
    B: int = 3
    I: int = 7
    H: int = 9
    dtype: str = "float32"
    nonlinearity: str = "tanh"
    bias: str = "both"  # both, ih, hh, none
    h_0: bool = True
    lengths: str = "none"  # none, full, ragged (zeros among them), packed
    reverse: bool = False
    reset: bool = False
    recurrent_mask: bool = False
    keep_mask: bool = False
    alpha: str = "none"  # none, one (number for all units), unit (a number each)
    layout: str = "contiguous"
    d_output: str = "random"  # random, none, constant (stride 0 everywhere)
    d_h_n: bool = True
    gain: float = 0.9  # spectral norm of w_hh
    seed: int = field(default=0)

    @property
    def id(self) -> str:
        words = [f"T{self.T}-B{self.B}-I{self.I}-H{self.H}"]
        for f in fields(self)[4:-2]:
            value = getattr(self, f.name)
            if value != f.default:
                words.append(f"{'' if value is True else 'no_' if value is False else ''}" + _word(f.name, value))
        return "-".join(words)

    def repro(self, op: str, kernel: Any) -> str:
        """What a failing test prints: the command that runs its like (the very arrays, where the command can say all
        of it: x contiguous and padded, both upstream gradients), and the exact case."""
        words = f"fastrnn check --op {op} --backend {kernel.backend}" + (f" --isa {kernel.isa}" if kernel.isa else "")
        words += f" {' '.join(self.arguments())}"
        exact = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{words}\n  Case({exact})"

    def arguments(self) -> list[str]:
        """The arguments of `fastrnn check` for this case."""
        size = f"--T {self.T} --B {self.B} --I {self.I} --H {self.H} --dtype {self.dtype}"
        words = f"{size} --nonlinearity {self.nonlinearity} --bias {self.bias} --gain {self.gain!r} --seed {self.seed}"
        flags = [f"--{name.replace('_', '-')}" for name in _FLAGS if getattr(self, name)]
        flags += ["--no-h-0"] if not self.h_0 else []
        flags += ["--lengths"] if self.lengths in ("ragged", "packed") else []
        return words.split() + flags

    def build(self) -> Problem:
        rng = np.random.default_rng([SEED, self.seed, self.T, self.B, self.I, self.H])
        T, B, I, H = self.T, self.B, self.I, self.H
        dtype = np.dtype(self.dtype)

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape).astype(dtype)

        w_hh = rng.standard_normal((H, H))
        w_hh *= self.gain / (np.linalg.norm(w_hh, 2) if H <= 600 else 2 * np.sqrt(H))  # what the norm tends to
        x = normal(T, B, I)
        if self.layout.startswith("zero_"):
            x = np.array(with_layout(x, self.layout))  # make the values constant along the axis
        d_output: Array | None = normal(T, B, H)
        if self.d_output == "none":
            d_output = None
        elif self.d_output == "constant":
            d_output = np.broadcast_to(normal(1), (T, B, H))
        p = Problem(
            x=x,
            h_0=np.clip(normal(B, H), -2, 2) if self.h_0 else None,
            w_ih=(rng.standard_normal((H, I)) / np.sqrt(max(I, 1))).astype(dtype),
            w_hh=w_hh.astype(dtype),
            b_ih=normal(H) * dtype.type(0.5) if self.bias in ("both", "ih") else None,
            b_hh=normal(H) * dtype.type(0.5) if self.bias in ("both", "hh") else None,
            nonlinearity=self.nonlinearity,
            reverse=self.reverse,
            lengths=self._draw_lengths(rng),
            reset=rng.random((T, B)) < 0.25 if self.reset else None,
            recurrent_mask=((rng.random((B, H)) < 0.8) / 0.8).astype(dtype) if self.recurrent_mask else None,
            keep_mask=rng.random((T, B, H)) < 0.3 if self.keep_mask else None,
            d_output=d_output,
            d_h_n=normal(B, H) if self.d_h_n else None,
        )
        if self.alpha != "none":  # from 1 / 512 to 1; 1 among them
            alpha = np.minimum(2.0 ** rng.uniform(-9, 1, H), 1).astype(dtype)
            p = p.but(alpha=alpha if self.alpha == "unit" else np.broadcast_to(alpha[0], (H,)))
        if self.lengths == "packed":
            p = to_packed(p)
        return p.but(x=with_layout(p.x, self.layout))

    def _draw_lengths(self, rng: np.random.Generator) -> Array | None:
        if self.lengths == "none":
            return None
        if self.lengths == "full":
            return np.full(self.B, self.T, np.int64)
        low = 1 if self.lengths == "packed" else 0
        lengths = rng.integers(low, self.T + 1, self.B).astype(np.int64)
        if self.lengths == "packed":
            lengths = np.sort(lengths)[::-1].copy()
            lengths[0] = self.T
        elif self.B > 1:
            lengths[rng.permutation(self.B)[:2]] = (0, self.T)
        return lengths


# Rows so wide that a kernel looks at the clock between the rows of a step (csrc/cpu/split.h), and that it packs the
# weights in slices (pack_parallel.h); on one thread, which takes all rows. Rows of length 1 and 2.
WIDE = Case(T=2, B=128, I=9, H=2000, lengths="packed", seed=6)

_FLAGS = ("reverse", "reset", "recurrent_mask", "keep_mask")


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name
    return value if name in ("dtype", "nonlinearity", "layout") else f"{name}_{value}"


def to_packed(p: Problem) -> Problem:
    """A padded problem with falling positive lengths, packed."""
    assert p.lengths is not None
    sizes = sizes_of(p.lengths)
    packed = {
        name: None if getattr(p, name) is None else pack(getattr(p, name), sizes)
        for name in ("x", "reset", "keep_mask", "d_output")
    }
    return p.but(lengths=None, batch_sizes=sizes, **packed)


def random_cases(count: int, seed: int, max_work: int = 3_000_000, **fixed: Any) -> list[Case]:
    """Cases with random sizes and options (seeded); the first ones have single options, so a failure names its cause.

    max_work bounds T B H (I + H). Sizes come from SIZES: large ones in one dimension at a time when work is short.
    """
    rng = np.random.default_rng([SEED, seed])
    singles: list[dict[str, Any]] = [
        {},
        {"nonlinearity": "relu"},
        {"bias": "none"},
        {"lengths": "ragged"},
        {"reverse": True},
        {"reset": True},
        {"recurrent_mask": True},
        {"keep_mask": True},
        {"lengths": "packed"},
        {"layout": "batch_first"},
        {"h_0": False},
        {"lengths": "ragged", "reverse": True},
    ]
    cases = []
    while len(cases) < count:
        options = dict(singles[len(cases)]) if len(cases) < len(singles) else _random_options(rng)
        options.update(fixed)
        cases.append(Case(**_random_sizes(rng, max_work, options), **options, seed=int(rng.integers(1 << 30))))
    return cases


def _random_options(rng: np.random.Generator) -> dict[str, Any]:
    def flag(p: float) -> bool:
        return bool(rng.random() < p)

    def choose(*values: str) -> str:
        return str(rng.choice(values))

    return {
        "nonlinearity": choose("tanh", "tanh", "relu"),
        "bias": choose("both", "both", "none", "ih", "hh"),
        "h_0": flag(0.8),
        "lengths": choose("none", "full", "ragged", "ragged", "packed"),
        "reverse": flag(0.5),
        "reset": flag(0.3),
        "recurrent_mask": flag(0.3),
        "keep_mask": flag(0.3),
        "layout": choose("contiguous", *LAYOUTS, *BROADCASTS),
        "d_output": choose("random", "random", "random", "none", "constant"),
        "d_h_n": flag(0.7),
    }


def _random_sizes(rng: np.random.Generator, max_work: int, fixed: dict[str, Any]) -> dict[str, int]:
    while True:
        T, B, I, H = (int(n) for n in rng.choice(SIZES, 4))
        if fixed.get("lengths") in ("ragged", "packed"):
            T, B = max(T, 2), max(B, 2)
        work = T * B * H * (I + H)
        if work <= max_work:
            sizes = {"T": T, "B": B, "I": I, "H": H}
            return {k: v for k, v in sizes.items() if k not in fixed}
