"""Promise 6: wrong kind, rank, shape, dtype, device, layout: an exact exception class and a message
"<argument>: expected <what>, got <what>". Strides of any kind are right or refused, never wrong; empty is
legal.
"""

from typing import Any

import numpy as np
import pytest
from helpers import oracle
from helpers.bad_inputs import KINDS, refuse
from helpers.cases import LAYOUTS, Case, misaligned, with_layout
from helpers.compare import assert_all_same_bits, normalised_error
from helpers.processes import output_of

import fastrnn

T, B, I, H = 3, 2, 4, 5
F32 = np.float32


def forward_arguments() -> dict[str, Any]:
    p = Case(T=T, B=B, I=I, H=H).build()
    return {name: getattr(p, name) for name in ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh")}


def backward_arguments() -> dict[str, Any]:
    a = forward_arguments()
    output, _ = fastrnn.rnn_forward(**a, backend="numpy")
    p = Case(T=T, B=B, I=I, H=H).build()
    rest = {name: a[name] for name in ("x", "h_0", "w_ih", "w_hh")}
    return {"d_output": p.d_output, "d_h_n": p.d_h_n, "output": output, **rest}


FORWARD_ARRAYS = ("x", "h_0", "w_ih", "w_hh", "b_ih", "b_hh")
BACKWARD_ARRAYS = ("d_output", "d_h_n", "output", "x", "h_0", "w_ih", "w_hh")


def _blamed(name: str, kind: str) -> str:
    """Sizes are read off x (T, B, I) and w_ih (H): where these differ from the rest, the rest is named."""
    if kind == "one more along the first axis":
        return {"w_ih": "(w_ih|w_hh)", "x": "(x|output|d_output)"}.get(name, name)
    if kind == "one less along the last axis":
        return {"x": "(x|w_ih)"}.get(name, name)
    return name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORWARD_ARRAYS)
def test_forward_refuses(backend: str, name: str, kind: str) -> None:
    change, error, words = KINDS[kind]
    if name == "x" and kind == "one more along the first axis":
        pytest.skip("another T is legal")
    arguments = forward_arguments()
    arguments[name] = change(arguments[name])
    refuse(fastrnn.rnn_forward, error, _blamed(name, kind), *words, **arguments, backend=backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BACKWARD_ARRAYS)
def test_backward_refuses(backend: str, name: str, kind: str) -> None:
    change, error, words = KINDS[kind]
    arguments = backward_arguments()
    arguments[name] = change(arguments[name])
    refuse(fastrnn.rnn_backward, error, _blamed(name, kind), *words, **arguments, backend=backend)


@pytest.mark.parametrize("name", ["h_0", "w_ih", "w_hh"])
def test_np_matrix_is_refused(name: str) -> None:
    arguments = forward_arguments()
    arguments[name] = arguments[name].view(np.matrix)
    refuse(fastrnn.rnn_forward, TypeError, name, "matrix", **arguments)


@pytest.mark.parametrize("name", FORWARD_ARRAYS[1:])
def test_mixed_dtypes_are_refused_by_name(name: str) -> None:
    arguments = forward_arguments()
    arguments[name] = arguments[name].astype(np.float64)
    refuse(fastrnn.rnn_forward, TypeError, name, "float32", "float64", **arguments)


@pytest.mark.parametrize("name", ["x", "w_hh"])
def test_none_is_refused_where_it_means_nothing(name: str) -> None:
    refuse(fastrnn.rnn_forward, TypeError, name, "None", **{**forward_arguments(), name: None})
    refuse(fastrnn.rnn_backward, TypeError, name, "None", **{**backward_arguments(), name: None})


def test_without_w_ih_x_is_as_wide_as_the_state() -> None:
    for arguments, function in (
        (forward_arguments(), fastrnn.rnn_forward),
        (backward_arguments(), fastrnn.rnn_backward),
    ):
        a = {**arguments, "w_ih": None}
        refuse(function, ValueError, "x", "H = 5", "w_ih is None", "(3, 2, 4)", **a)
        a["x"] = np.zeros((3, 2, 5), F32)
        refuse(function, ValueError, "w_hh", "(5, 5)", "(5, 6)", **{**a, "w_hh": np.zeros((5, 6), F32)})
        refuse(function, TypeError, "w_hh", "None", **{**a, "w_hh": None})
        refuse(function, ValueError, "w_hh", "H", "(0, 0)", **{**a, "w_hh": np.zeros((0, 0), F32)})


def test_expected_and_got_shapes_are_both_named() -> None:
    a = forward_arguments()
    refuse(fastrnn.rnn_forward, ValueError, "w_hh", "(5, 5)", "(5, 6)", **{**a, "w_hh": np.zeros((5, 6), F32)})
    refuse(fastrnn.rnn_forward, ValueError, "h_0", "(2, 5)", "(1, 5)", **{**a, "h_0": np.zeros((1, 5), F32)})
    refuse(fastrnn.rnn_forward, ValueError, "b_ih", "(5,)", "(1,)", **{**a, "b_ih": np.zeros(1, F32)})
    refuse(fastrnn.rnn_forward, ValueError, "w_ih", "(5, 4)", "(5, 3)", **{**a, "w_ih": np.zeros((5, 3), F32)})
    b = backward_arguments()
    wrong = np.zeros((3, 1, 5), F32)  # no broadcasting
    refuse(fastrnn.rnn_backward, ValueError, "d_output", "(3, 2, 5)", "(3, 1, 5)", **{**b, "d_output": wrong})
    refuse(fastrnn.rnn_backward, ValueError, "output", "(3, 2, 5)", "(3, 1, 5)", **{**b, "output": wrong})


def test_no_hidden_units_is_refused() -> None:
    zero = {"h_0": np.zeros((B, 0), F32), "w_ih": np.zeros((0, I), F32), "w_hh": np.zeros((0, 0), F32)}
    refuse(fastrnn.rnn_forward, ValueError, "w_ih", "H", "(0, 4)", x=np.zeros((T, B, I), F32), **zero)


# ---- Options


OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str, tuple[str, ...]]] = {
    "nonlinearity unknown": ({"nonlinearity": "gelu"}, ValueError, "nonlinearity", ("'tanh'", "'relu'", "'gelu'")),
    "nonlinearity None": ({"nonlinearity": None}, TypeError, "nonlinearity", ("str", "None")),
    "reverse 1": ({"reverse": 1}, TypeError, "reverse", ("bool", "int")),
    "backend unknown": ({"backend": "cudnn"}, ValueError, "backend", ("'numpy'", "'cpp'", "'cudnn'")),
    "backend 3": ({"backend": 3}, TypeError, "backend", ("str", "int")),
    "lengths list": ({"lengths": [1, 2]}, TypeError, "lengths", ("list",)),
    "lengths float": ({"lengths": np.array([1.0, 2.0])}, TypeError, "lengths", ("int32", "int64", "float64")),
    "lengths uint64": ({"lengths": np.array([1, 2], np.uint64)}, TypeError, "lengths", ("int64", "uint64")),
    "lengths bool": ({"lengths": np.array([True, False])}, TypeError, "lengths", ("int64", "bool")),
    "lengths byte-swapped": ({"lengths": np.array([1, 2], ">i8")}, TypeError, "lengths", ()),
    "lengths too many": ({"lengths": np.array([1, 2, 3])}, ValueError, "lengths", ("(2,)", "(3,)")),
    "lengths rank 2": ({"lengths": np.array([[1, 2]])}, ValueError, "lengths", ("(1, 2)",)),
    "lengths negative": ({"lengths": np.array([1, -1])}, ValueError, "lengths", ("0..3", "-1")),
    "lengths over T": ({"lengths": np.array([4, 1], np.int32)}, ValueError, "lengths", ("0..3", "4")),
    "reset float": ({"reset": np.zeros((T, B))}, TypeError, "reset", ("bool", "float64")),
    "reset shape": ({"reset": np.zeros((B, T), bool)}, ValueError, "reset", ("(3, 2)", "(2, 3)")),
    "recurrent_mask bool": (
        {"recurrent_mask": np.ones((B, H), bool)},
        TypeError,
        "recurrent_mask",
        ("float32", "bool"),
    ),
    "recurrent_mask (H)": ({"recurrent_mask": np.ones(H, F32)}, ValueError, "recurrent_mask", ("(2, 5)", "(5,)")),
    "keep_mask float": ({"keep_mask": np.ones((T, B, H), F32)}, TypeError, "keep_mask", ("bool", "float32")),
    "keep_mask (B, H)": ({"keep_mask": np.ones((B, H), bool)}, ValueError, "keep_mask", ("(3, 2, 5)", "(2, 5)")),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options_are_refused(what: str) -> None:
    options, error, name, words = OPTIONS[what]
    refuse(fastrnn.rnn_forward, error, name, *words, **forward_arguments(), **options)
    refuse(fastrnn.rnn_backward, error, name, *words, **backward_arguments(), **options)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="length"):
        fastrnn.rnn_forward(**forward_arguments(), length=np.array([1, 2]))


@pytest.mark.parametrize(
    ("needs", "error"), [(("w",), ValueError), ("x", TypeError), (None, TypeError), (("x", "d_x"), ValueError)]
)
def test_needs_are_refused(needs: Any, error: type[Exception]) -> None:
    refuse(fastrnn.rnn_backward, error, "needs", **backward_arguments(), needs=needs)


PACKED: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "rising": (np.array([2, 3, 1]), ValueError, ("rise", "2", "3")),
    "zero": (np.array([4, 2, 0]), ValueError, ("positive", "0")),
    "negative": (np.array([7, -1]), ValueError, ("positive", "-1")),
    "sum too small": (np.array([3, 2]), ValueError, ("6", "5")),
    "sum too large": (np.array([3, 3, 3]), ValueError, ("6", "9")),
    "overflowing sum": (np.array([2**62, 2**62, 2**62, 2**62]), ValueError, ("6",)),
    "rank 2": (np.array([[3, 2, 1]]), ValueError, ("(1, 3)",)),
    "float": (np.array([3.0, 2.0, 1.0]), TypeError, ("int64", "float64")),
    "list": ([3, 2, 1], TypeError, ("list",)),
    "empty with rows": (np.zeros(0, np.int64), ValueError, ("6", "0")),
}


@pytest.mark.parametrize("what", PACKED)
def test_batch_sizes_are_refused(what: str) -> None:
    sizes, error, words = PACKED[what]
    arguments = {**forward_arguments(), "x": np.zeros((6, I), F32), "h_0": None}
    refuse(fastrnn.rnn_forward, error, "batch_sizes", *words, **arguments, batch_sizes=sizes)


def test_packed_rows_refuse_what_belongs_to_padded_ones() -> None:
    sizes = np.array([3, 2, 1])
    a = {**forward_arguments(), "h_0": None}
    packed = {**a, "x": np.zeros((6, I), F32)}
    refuse(fastrnn.rnn_forward, ValueError, "x", "2 dimensions", "(3, 2, 4)", **a, batch_sizes=sizes)
    lengths = np.array([3, 2, 1])
    refuse(fastrnn.rnn_forward, ValueError, "lengths", "None", **packed, batch_sizes=sizes, lengths=lengths)
    refuse(fastrnn.rnn_forward, ValueError, "x", "3 dimensions", "(6, 4)", **packed)
    h_0 = np.zeros((2, H), F32)
    refuse(fastrnn.rnn_forward, ValueError, "h_0", "(3, 5)", "(2, 5)", **{**packed, "h_0": h_0}, batch_sizes=sizes)
    reset = np.zeros((3, 3), bool)
    refuse(fastrnn.rnn_forward, ValueError, "reset", "(6,)", "(3, 3)", **packed, batch_sizes=sizes, reset=reset)


# ---- out


def _overlapping(a: dict[str, Any], name: str) -> Any:
    """An out that shares one element with an input."""
    source = a[name]
    room = np.zeros(source.size + T * B * H - 1, F32)
    a[name] = room[: source.size].reshape(source.shape)
    return room[source.size - 1 :].reshape(T, B, H)


@pytest.mark.parametrize("name", FORWARD_ARRAYS)
def test_out_may_not_overlap_an_input(backend: str, name: str) -> None:
    arguments = forward_arguments()
    out = _overlapping(arguments, name)
    refuse(fastrnn.rnn_forward, ValueError, "out", "overlap", name, **arguments, out=out, backend=backend)


def test_out_beside_an_input_in_one_buffer_is_fine(backend: str) -> None:
    """Interleaved memory that shares no byte: the two halves of a bidirectional output, x beside output."""
    arguments = forward_arguments()
    want, _ = fastrnn.rnn_forward(**arguments, backend=backend)
    room = np.zeros((T, B, I + H), F32)
    room[..., :I] = arguments["x"]
    arguments["x"] = room[..., :I]
    got, _ = fastrnn.rnn_forward(**arguments, backend=backend, out=room[..., I:])
    assert np.array_equal(got, want)
    assert np.shares_memory(got, room)


def test_out_of_wrong_make_is_refused(backend: str) -> None:
    a = {**forward_arguments(), "backend": backend}
    read_only = np.zeros((T, B, H), F32)
    read_only.flags.writeable = False
    refuse(fastrnn.rnn_forward, ValueError, "out", "writable", **a, out=read_only)
    refuse(fastrnn.rnn_forward, ValueError, "out", "(3, 2, 5)", "(3, 2, 4)", **a, out=np.zeros((T, B, H - 1), F32))
    refuse(fastrnn.rnn_forward, ValueError, "out", "(3, 2, 5)", "(2, 3, 5)", **a, out=np.zeros((B, T, H), F32))
    refuse(fastrnn.rnn_forward, TypeError, "out", "float32", "float64", **a, out=np.zeros((T, B, H)))
    refuse(fastrnn.rnn_forward, TypeError, "out", "list", **a, out=[[[0.0] * H] * B] * T)
    refuse(fastrnn.rnn_forward, ValueError, "out", "last axis", **a, out=np.zeros((T, B, 2 * H), F32)[..., ::2])
    refuse(fastrnn.rnn_forward, ValueError, "out", "last axis", **a, out=np.zeros((H, B, T), F32).T)
    off = misaligned(np.zeros(T * B * H * 4, np.uint8), 2).view(F32).reshape(T, B, H)
    refuse(fastrnn.rnn_forward, ValueError, "out", "aligned", **a, out=off)


@pytest.mark.parametrize("strides", [(0, 20, 4), (40, 0, 4), (4, 40, 4), (20, 8, 4), (0, 0, 4)], ids=str)
def test_out_whose_elements_share_memory_is_refused(backend: str, strides: tuple[int, ...]) -> None:
    out = np.lib.stride_tricks.as_strided(np.zeros(1000, F32), (T, B, H), strides)
    refuse(fastrnn.rnn_forward, ValueError, "out", "strides", **forward_arguments(), out=out, backend=backend)


@pytest.mark.parametrize("layout", ["batch_first", "outer_strided", "negative_time"])
def test_out_of_any_outer_strides_is_right(backend: str, layout: str) -> None:
    """out is what comes back, its neighbours in memory stay untouched."""
    arguments = forward_arguments()
    want, _ = fastrnn.rnn_forward(**arguments, backend=backend)
    out = with_layout(np.full((T, B, H), np.nan, F32), layout)
    base = out
    while base.base is not None:
        base = base.base
    got, _ = fastrnn.rnn_forward(**arguments, backend=backend, out=out)
    assert got is out
    assert np.array_equal(got, want)
    written = np.zeros(base.shape, bool)
    mirror = np.lib.stride_tricks.as_strided  # the same view of a buffer of flags
    offset = out.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    flags = written.reshape(-1)[offset // 4 :]
    mirror(flags, out.shape, [s // 4 for s in out.strides])[...] = True
    assert (base[~written] == 77).all()


# ---- Alignment and strides


@pytest.mark.parametrize("offset", range(1, 64))
def test_every_misalignment_is_right_or_refused(backend: str, offset: int) -> None:
    """Data off its element size is refused by name; off a vector only it gives the same bits."""
    a = forward_arguments()
    want = fastrnn.rnn_forward(**a, backend=backend)
    for name in FORWARD_ARRAYS:
        raw = misaligned(np.frombuffer(a[name].tobytes(), np.uint8), offset)
        moved = raw.view(F32).reshape(a[name].shape)
        if offset % 4:
            refuse(fastrnn.rnn_forward, ValueError, name, "aligned", "copy", **{**a, name: moved}, backend=backend)
        else:
            assert_all_same_bits(fastrnn.rnn_forward(**{**a, name: moved}, backend=backend), want, name)


def test_strides_off_the_element_size_are_refused(backend: str) -> None:
    """A float field of a packed record: 5 bytes from one element to the next."""
    record = np.zeros((T, B, I), np.dtype([("flag", "i1"), ("value", "f4")]))
    field = record["value"]
    assert field.strides[-1] == 5
    refuse(fastrnn.rnn_forward, ValueError, "x", "aligned", **{**forward_arguments(), "x": field}, backend=backend)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BACKWARD_ARRAYS + ("b_ih", "b_hh"))
def test_every_stride_of_every_argument_is_right(backend: str, dtype: str, name: str, layout: str) -> None:
    p = Case(T=T, B=B, I=I, H=H, dtype=dtype).build()
    forward = {n: getattr(p, n) for n in FORWARD_ARRAYS}
    output, h_n = fastrnn.rnn_forward(**forward, backend=backend)
    backward = {"d_output": p.d_output, "d_h_n": p.d_h_n, "output": output}
    backward |= {n: forward[n] for n in ("x", "h_0", "w_ih", "w_hh")}
    want = fastrnn.rnn_backward(**backward, backend=backend)
    eps = 30 * float(np.finfo(dtype).eps)
    if layout == "batch_first" and name in ("b_ih", "b_hh"):
        return
    if name in forward:
        got = fastrnn.rnn_forward(**{**forward, name: with_layout(forward[name], layout)}, backend=backend)
        for g, w in zip(got, (output, h_n), strict=True):
            assert normalised_error(g, w) <= eps
    if name in backward:
        moved = with_layout(backward[name], layout)
        for g, w in zip(fastrnn.rnn_backward(**{**backward, name: moved}, backend=backend), want, strict=True):
            assert normalised_error(g, w) <= eps


def test_read_only_inputs_are_fine(backend: str) -> None:
    a = forward_arguments()
    for array in a.values():
        array.flags.writeable = False
    fastrnn.rnn_forward(**a, backend=backend)


def test_a_memmap_is_an_array(backend: str, tmp_path: Any) -> None:
    a = forward_arguments()
    want = fastrnn.rnn_forward(**a, backend=backend)
    stored = np.memmap(tmp_path / "x", F32, "w+", shape=(T, B, I))
    stored[...] = a["x"]
    assert_all_same_bits(fastrnn.rnn_forward(**{**a, "x": stored}, backend=backend), want, "memmap")


@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 0, 4), (3, 2, 0), (0, 0, 0)], ids=str)
def test_empty_is_legal(backend: str, dtype: str, shape: tuple[int, int, int]) -> None:
    p = Case(*shape, H=H, dtype=dtype).build()
    forward = {name: getattr(p, name) for name in FORWARD_ARRAYS}
    output, h_n = fastrnn.rnn_forward(**forward, backend=backend)
    want, want_n = oracle.forward(p)
    assert normalised_error(output, want) <= 1e-6
    assert normalised_error(h_n, want_n) <= 1e-6
    backward = {name: forward[name] for name in ("x", "h_0", "w_ih", "w_hh")}
    g = fastrnn.rnn_backward(p.d_output, p.d_h_n, output, **backward, backend=backend)
    assert [a.shape for a in g] == [shape, (shape[1], H), (H, shape[2]), (H, H), (H,)]
    lengths = np.zeros(shape[1], np.int32)
    output, h_n = fastrnn.rnn_forward(**forward, backend=backend, lengths=lengths)
    assert not output.any()
    assert np.array_equal(h_n, p.h_0)


def test_no_packed_rows_is_legal(backend: str) -> None:
    a = {**forward_arguments(), "x": np.zeros((0, I), F32), "h_0": None}
    output, h_n = fastrnn.rnn_forward(**a, backend=backend, batch_sizes=np.zeros(0, np.int64))
    assert output.shape == (0, H)
    assert h_n.shape == (0, H)


# ---- Torch tensors


def test_torch_tensors_are_shared_or_refused(backend: str, torch: Any) -> None:
    a = forward_arguments()
    want = fastrnn.rnn_forward(**a, backend=backend)
    tensors = {name: torch.from_numpy(array) for name, array in a.items()}
    for got, w in zip(fastrnn.rnn_forward(**tensors, backend=backend), want, strict=True):
        assert isinstance(got, torch.Tensor)
        assert np.array_equal(got.numpy(), w)
    out = torch.zeros(T, B, H)
    got, _ = fastrnn.rnn_forward(**tensors, backend=backend, out=out)
    assert got is out
    assert np.array_equal(out.numpy(), want[0])
    for name in FORWARD_ARRAYS:
        needs = {**tensors, name: tensors[name].clone().requires_grad_()}
        refuse(fastrnn.rnn_forward, TypeError, name, "fastrnn.torch", **needs, backend=backend)
        for wrong in (torch.bfloat16, torch.int32):
            refuse(fastrnn.rnn_forward, TypeError, name, **{**tensors, name: tensors[name].to(wrong)})
        meta = {**tensors, name: tensors[name].to("meta")}
        refuse(fastrnn.rnn_forward, TypeError, name, "cpu", "meta", **meta)


# ---- The native module trusts Python, but not with memory

NATIVE = """
import numpy as np
from fastrnn import _fastrnn_cpu as native
f = np.float32
good = dict(x=np.zeros((3, 2, 4), f), h_0=None, w_ih=np.zeros((5, 4), f), w_hh=np.zeros((5, 5), f),
            b_ih=None, b_hh=None, output=np.zeros((3, 2, 5), f), h_n=np.zeros((2, 5), f))
bad = [("threads", 0), ("threads", -1), ("x", np.zeros((3, 2, 5), f)), ("x", np.zeros((3, 4), f)),
       ("x", np.zeros((3, 2, 4))), ("h_0", np.zeros((3, 5), f)), ("w_ih", np.zeros((4, 4), f)),
       ("w_hh", np.zeros((5, 4), f)), ("b_ih", np.zeros(4, f)),
       ("output", np.zeros((3, 2, 4), f)), ("output", np.zeros((3, 2, 10), f)[..., ::2]), ("h_n", np.zeros((1, 5), f)),
       ("lengths", np.array([4, 0])), ("lengths", np.array([-1, 0])), ("lengths", np.array([1])),
       ("batch_sizes", np.array([2, 2, 2])), ("reset", np.zeros((3, 1), bool)), ("recurrent_mask", np.zeros((1, 5), f)),
       ("keep_mask", np.zeros((3, 2, 4), bool)), ("isa", "sse9")]
read_only = np.zeros((3, 2, 5), f); read_only.flags.writeable = False
bad.append(("output", read_only))
native.rnn_forward(*good.values())
for name, value in bad:
    arguments = dict(good)
    options = {} if name in good else {name: value}
    arguments.update({name: value} if name in good else {})
    try:
        native.rnn_forward(*arguments.values(), **options)
    except (ValueError, TypeError, RuntimeError):
        pass
    else:
        print(name, getattr(value, "shape", value), end="; ")
"""


def test_the_native_module_checks_sizes_itself() -> None:
    """Called past the validation, it still refuses what would leave an array's memory. In a process: it might crash."""
    from helpers.kernels import native

    if isinstance(native(), ImportError):
        pytest.skip(f"cpp: {native()}")
    assert output_of(NATIVE) == "", "accepted"


# ---- The rare branches of the validation


def test_an_empty_out_is_taken_as_it_is(backend: str) -> None:
    w_ih, w_hh = np.ones((5, 4), np.float32), np.ones((5, 5), np.float32)
    out = np.empty((0, 2, 5), np.float32)
    output, h_n = fastrnn.rnn_forward(np.empty((0, 2, 4), np.float32), None, w_ih, w_hh, backend=backend, out=out)
    assert output is out
    assert not h_n.any()


@pytest.mark.parametrize("name", ["d_output", "d_h_n"])
def test_one_upstream_gradient_of_none_stands_for_zeros(backend: str, name: str) -> None:
    a = {**backward_arguments(), "backend": backend}
    want = fastrnn.rnn_backward(**{**a, name: np.zeros_like(a[name])})
    for g, w in zip(fastrnn.rnn_backward(**{**a, name: None}), want, strict=True):
        assert np.array_equal(g, w)


def test_an_out_with_axes_of_one_may_have_any_strides_there(backend: str) -> None:
    a = {**forward_arguments(), "backend": backend}
    a["x"], a["h_0"] = a["x"][:1, :1], a["h_0"][:1]
    out = np.lib.stride_tricks.as_strided(np.zeros(H, F32), (1, 1, H), (0, 0, 4))
    output, _ = fastrnn.rnn_forward(**a, out=out)
    assert np.array_equal(output, fastrnn.rnn_forward(**a)[0])


def test_an_overlap_that_is_too_hard_to_exclude_is_refused(monkeypatch: Any) -> None:
    """numpy.shares_memory gives up after a bounded amount of work: in doubt, out is refused."""
    memory = np.zeros(400, np.float32)
    x, out = memory[:24].reshape(3, 2, 4), memory[10:40].reshape(3, 2, 5)

    def too_hard(*_: Any, **__: Any) -> bool:
        raise RuntimeError  # TooHardError is one

    monkeypatch.setattr(np, "shares_memory", too_hard)
    w_ih, w_hh = np.ones((5, 4), np.float32), np.ones((5, 5), np.float32)
    with pytest.raises(ValueError, match="out: expected memory of its own, got memory that overlaps x"):
        fastrnn.rnn_forward(x, None, w_ih, w_hh, out=out)


def test_a_dtype_of_none_is_refused() -> None:
    refuse(fastrnn.RNN, TypeError, "dtype", input_size=4, hidden_size=5, dtype=None)
