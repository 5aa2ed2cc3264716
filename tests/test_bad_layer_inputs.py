"""Promise 6 through the layers: every argument of RNN and RNNCell, of their backward and of load_state_dict is refused
as the functions refuse it, by its name; views of any strides give the bits of a copy.
"""

from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.bad_inputs import KINDS, refuse
from helpers.cases import LAYOUTS, with_layout
from helpers.compare import assert_all_same_bits

import fastrnn

T, B, I, H = 3, 2, 4, 5
F32 = np.float32

LAYER: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "input_size float": ({"input_size": 4.0}, TypeError, "input_size"),
    "input_size bool": ({"input_size": True}, TypeError, "input_size"),
    "input_size negative": ({"input_size": -1}, ValueError, "input_size"),
    "hidden_size zero": ({"hidden_size": 0}, ValueError, "hidden_size"),
    "hidden_size str": ({"hidden_size": "5"}, TypeError, "hidden_size"),
    "num_layers zero": ({"num_layers": 0}, ValueError, "num_layers"),
    "num_layers bool": ({"num_layers": True}, TypeError, "num_layers"),
    "nonlinearity": ({"nonlinearity": "gelu"}, ValueError, "nonlinearity"),
    "bias": ({"bias": 1}, TypeError, "bias"),
    "batch_first": ({"batch_first": "no"}, TypeError, "batch_first"),
    "dropout over 1": ({"dropout": 1.5, "num_layers": 2}, ValueError, "dropout"),
    "dropout NaN": ({"dropout": float("nan"), "num_layers": 2}, ValueError, "dropout"),
    "dropout bool": ({"dropout": True, "num_layers": 2}, TypeError, "dropout"),
    "bidirectional": ({"bidirectional": None}, TypeError, "bidirectional"),
    "dtype float16": ({"dtype": "float16"}, TypeError, "dtype"),
    "dtype nonsense": ({"dtype": "floaty"}, TypeError, "dtype"),
    "backend": ({"backend": "cudnn"}, ValueError, "backend"),
}


@pytest.mark.parametrize("what", LAYER)
def test_layer_arguments_are_refused(what: str) -> None:
    change, error, name = LAYER[what]
    refuse(fastrnn.RNN, error, name, **{"input_size": 4, "hidden_size": 5, **change})
    if name in ("input_size", "hidden_size", "nonlinearity", "bias", "dtype", "backend"):
        refuse(fastrnn.RNNCell, error, name, **{"input_size": 4, "hidden_size": 5, **change})


def test_layer_device_is_refused() -> None:
    for kind in (fastrnn.RNN, fastrnn.RNNCell):
        with pytest.raises(ValueError, match=r"^device: expected 'cpu' or 'cuda', got 'xpu'"):
            kind(4, 5, device="xpu")


def test_layer_inputs_are_refused() -> None:
    rnn = fastrnn.RNN(I, H, num_layers=2, bidirectional=True)
    x = np.zeros((T, B, I), F32)
    for run in (rnn, rnn.forward_train):
        refuse(run, ValueError, "x", "4", "(3, 2, 5)", x=np.zeros((T, B, 5), F32))
        refuse(run, ValueError, "x", "(4,)", x=np.zeros(4, F32))
        refuse(run, ValueError, "x", x=np.zeros((1, T, B, I), F32))
        refuse(run, TypeError, "x", "float32", "float64", x=x.astype(float))
        refuse(run, TypeError, "x", "list", x=x.tolist())
        refuse(run, TypeError, "x", "None", x=None)
        refuse(run, ValueError, "h_0", "(4, 2, 5)", "(2, 2, 5)", x=x, h_0=np.zeros((2, B, H), F32))
        refuse(run, ValueError, "h_0", "(4, 5)", "(4, 2, 5)", x=x[:, 0], h_0=np.zeros((4, B, H), F32))
        refuse(run, ValueError, "lengths", "0..3", "4", x=x, lengths=np.array([4, 1]))
        refuse(run, TypeError, "lengths", "list", x=x, lengths=[3, 1])
        refuse(run, ValueError, "lengths", x=x[:, 0], lengths=np.array([3]))
    first = fastrnn.RNN(I, H, batch_first=True)
    refuse(first, ValueError, "lengths", "(2,)", "(3,)", x=np.zeros((B, T, I), F32), lengths=np.array([3, 1, 2]))


def test_cell_inputs_are_refused() -> None:
    cell = fastrnn.RNNCell(I, H)
    x = np.zeros((B, I), F32)
    for run in (cell, cell.forward_train):
        refuse(run, ValueError, "x", "4", "(2, 5)", x=np.zeros((B, 5), F32))
        refuse(run, ValueError, "x", x=np.zeros((T, B, I), F32))
        refuse(run, TypeError, "x", "float64", x=x.astype(float))
        refuse(run, ValueError, "h", "(2, 5)", "(1, 5)", x=x, h=np.zeros((1, H), F32))
        refuse(run, ValueError, "h", "(5,)", "(2, 5)", x=x[0], h=np.zeros((B, H), F32))


@pytest.mark.parametrize("value", [0, -1, 4097, 2**31, 10**400, 1.0, "2", None, True])
def test_thread_numbers_are_refused(value: Any) -> None:
    error = ValueError if type(value) is int else TypeError
    before = fastrnn.get_num_threads()
    refuse(fastrnn.set_num_threads, error, "n", n=value)
    with pytest.raises(error), fastrnn.threads(value):
        pass
    assert fastrnn.get_num_threads() == before


# ---- The whole table, through the calls of the layers


def entrances() -> dict[str, tuple[str, Callable[[Any], Any], Any]]:
    """name -> (argument, call, a right value of it)"""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(F32)

    rnn = fastrnn.RNN(I, H, num_layers=2, bidirectional=True, seed=0)
    first = fastrnn.RNN(I, H, batch_first=True, seed=0)
    cell = fastrnn.RNNCell(I, H, seed=0)
    x, row, one = normal(T, B, I), normal(B, I), normal(T, I)
    return {
        "RNN, x": ("x", lambda a: rnn(a), x),
        "RNN, h_0": ("h_0", lambda a: rnn(x, a), normal(4, B, H)),
        "RNN, x batch_first": ("x", lambda a: first(a), normal(B, T, I)),
        "RNN, h_0 of one sequence": ("h_0", lambda a: rnn(one, a), normal(4, H)),
        "forward_train, x": ("x", lambda a: rnn.forward_train(a)[:2], x),
        "forward_train, h_0": ("h_0", lambda a: rnn.forward_train(x, a)[:2], normal(4, B, H)),
        "backward, d_output": ("d_output", lambda a: rnn.forward_train(x)[2](a), normal(T, B, 2 * H)),
        "backward, d_h_n": ("d_h_n", lambda a: rnn.forward_train(x)[2](None, a), normal(4, B, H)),
        "cell, x": ("x", lambda a: [cell(a)], row),
        "cell, h": ("h", lambda a: [cell(row, a)], normal(B, H)),
        "cell, forward_train, x": ("x", lambda a: [cell.forward_train(a)[0]], row),
        "cell, forward_train, h": ("h", lambda a: [cell.forward_train(row, a)[0]], normal(B, H)),
        "cell, backward": ("d_h_next", lambda a: cell.forward_train(row)[1](a), normal(B, H)),
    }


ENTRANCES = tuple(entrances())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ENTRANCES)
def test_the_layers_refuse(where: str, kind: str) -> None:
    name, call, right = entrances()[where]
    change, error, words = KINDS[kind]
    if name == "x" and kind == "one more along the first axis":
        pytest.skip("another T or B is legal")
    if name == "x" and kind == "one dimension less":
        pytest.skip("one sequence, or one row, is legal")
    refuse(lambda a: call(a), error, name, *words, a=change(right))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", ENTRANCES)
def test_every_stride_gives_the_bits_of_a_copy(where: str, layout: str) -> None:
    _, call, right = entrances()[where]
    if layout == "batch_first" and right.ndim < 3:
        return
    want = call(right)
    assert_all_same_bits(list(call(with_layout(right, layout))), list(want), where)


def test_x_of_no_kind_of_rank_is_refused() -> None:
    for rank in (0, 1, 4, 5):
        refuse(fastrnn.RNN(I, H), ValueError, "x", "dimensions", x=np.zeros((1,) * rank, F32))
    for rank in (0, 3, 4):
        refuse(fastrnn.RNNCell(I, H), ValueError, "x", "dimensions", x=np.zeros((1,) * rank, F32))


# ---- load_state_dict


@pytest.mark.parametrize("name", ["weight_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("kind", ["list", "float", "str", "object dtype", "int64", "bool", "complex64"])
def test_a_state_of_the_wrong_kind_is_refused_and_changes_nothing(name: str, kind: str) -> None:
    rnn = fastrnn.RNN(I, H, seed=0)
    before = rnn.state_dict()
    state = fastrnn.RNN(I, H, seed=1).state_dict()
    state[name] = KINDS[kind][0](state[name])
    refuse(rnn.load_state_dict, TypeError, name, "floating", state_dict=state)
    assert_all_same_bits(list(rnn.state_dict().values()), list(before.values()), "parameters")


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64"])
def test_a_tensor_that_is_not_floating_is_refused(torch: Any, dtype: str) -> None:
    rnn = fastrnn.RNN(I, H, seed=0)
    state = {**rnn.state_dict(), "bias_ih_l0": torch.ones(H, dtype=getattr(torch, dtype))}
    refuse(rnn.load_state_dict, TypeError, "bias_ih_l0", "floating", dtype, state_dict=state)


def test_a_masked_array_is_no_state() -> None:
    rnn = fastrnn.RNN(I, H, seed=0)
    state = {**rnn.state_dict(), "bias_ih_l0": np.ma.masked_array(np.ones(H, F32), np.arange(H) < 2)}
    refuse(rnn.load_state_dict, TypeError, "bias_ih_l0", "floating", "MaskedArray", state_dict=state)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("one ")])
def test_a_state_of_the_wrong_shape_is_refused_and_changes_nothing(kind: str) -> None:
    rnn = fastrnn.RNN(I, H, seed=0)
    before = rnn.state_dict()
    state = fastrnn.RNN(I, H, seed=1).state_dict()
    state["weight_hh_l0"] = KINDS[kind][0](state["weight_hh_l0"])
    refuse(rnn.load_state_dict, ValueError, "weight_hh_l0", "shape", state_dict=state)
    assert_all_same_bits(list(rnn.state_dict().values()), list(before.values()), "parameters")


def test_keys_that_do_not_fit_are_refused_by_name() -> None:
    rnn = fastrnn.RNN(I, H)
    for wrong in ({}, {**rnn.state_dict(), "weight_ih_l1": np.zeros((H, H), F32)}):
        with pytest.raises(KeyError, match=r"state_dict: expected the keys .* missing keys .* unexpected keys"):
            rnn.load_state_dict(wrong)


CELL_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
values = st.one_of(
    st.none(), st.floats(), st.text(max_size=3), st.binary(max_size=3), st.lists(st.floats(), max_size=3),
    st.builds(
        lambda shape, dtype: np.ones(shape, dtype),
        st.lists(st.sampled_from([0, 1, I, H, H + 1]), max_size=3),
        st.sampled_from(["f2", "f4", ">f4", "f8", "g", "c8", "i4", "?", "O", "U1", "M8[s]", "V4"]),
    ),
    st.sampled_from(CELL_NAMES).map(lambda name: fastrnn.RNNCell(I, H, seed=1).state_dict()[name]),
)  # fmt: skip


@hypothesis.given(
    st.dictionaries(st.sampled_from(["weight_ih", "weight_hh", "bias_ih", "bias_hh"]), values), st.booleans()
)
def test_any_state_is_loaded_or_refused(changes: dict[str, Any], strict: bool) -> None:
    """Some entries replaced by whatever there is: all of the state is loaded, or nothing and the entry is named."""
    cell, state = fastrnn.RNNCell(I, H, seed=0), {**fastrnn.RNNCell(I, H, seed=1).state_dict(), **changes}
    before = cell.state_dict()
    try:
        cell.load_state_dict(state, strict)
    except (TypeError, ValueError) as error:
        assert any(str(error).startswith(f"{name}: expected ") for name in changes)  # noqa: PT017
        assert_all_same_bits(list(cell.state_dict().values()), list(before.values()), "a refused state")
    else:
        for name, array in cell.state_dict().items():
            assert np.array_equal(array, np.asarray(state[name]).astype(F32), equal_nan=True)


# ---- The rare branches of the layers


def test_no_gradient_at_all_is_refused_and_is_no_call() -> None:
    x = np.ones((T, B, I), F32)
    output, h_n, backward = fastrnn.RNN(I, H, seed=0).forward_train(x)
    refuse(backward, ValueError, "d_output", "None for both", d_output=None)
    assert backward(output, h_n)[0].shape == x.shape
    w_ih, w_hh = np.ones((H, I), F32), np.ones((H, H), F32)
    refuse(lambda d: fastrnn.rnn_backward(d, d, output, x, None, w_ih, w_hh), ValueError, "d_output", "None", d=None)


def test_parameters_keep_their_names() -> None:
    rnn = fastrnn.RNN(I, H, seed=0)
    with pytest.raises(TypeError, match=r"^parameters: expected the names to stay, got the deletion of 'bias_ih_l0'"):
        del rnn.parameters["bias_ih_l0"]
    assert len(rnn.parameters) == len(list(rnn.parameters)) == 4
    assert "bias_ih_l0" in repr(rnn.parameters)


def test_a_layer_shows_the_arguments_that_differ_from_the_defaults() -> None:
    rnn = fastrnn.RNN(4, 5, 2, "relu", bias=False, batch_first=True, dropout=0.5, bidirectional=True)
    words = "4, 5, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True, nonlinearity=relu"
    assert repr(rnn) == f"RNN({words})"
    assert repr(fastrnn.RNN(4, 5)) == "RNN(4, 5)"
    assert repr(fastrnn.RNNCell(4, 5, bias=False)) == "RNNCell(4, 5, bias=False)"
    assert repr(fastrnn.RNNCell(4, 5, nonlinearity="relu")) == "RNNCell(4, 5, nonlinearity=relu)"


def test_frozen_that_fails_leaves_the_parameters_writable(monkeypatch: Any) -> None:
    from fastrnn import _backends

    rnn = fastrnn.RNN(I, H, backend="numpy", seed=0)

    def refuses(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(_backends.get("numpy"), "pack_weights", refuses)
    with pytest.raises(MemoryError), rnn.frozen():
        pass
    assert all(array.flags.writeable for array in rnn.parameters.values())


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cgroup": "0::/a/b", "cpu.max": "max 100000"}, None),
        ({"cgroup": "0::/a/b", "a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"}, 1),
        ({"cgroup": "0::/a/b", "a/b/cpu.max": "50000 100000"}, 1),
        ({"cgroup": "0::/", "cpu.max": "400000 100000"}, 4),
        ({"cgroup": "3:cpu,cpuacct:/a", "cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3),
        ({"cgroup": "3:cpu:/a", "cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ({"cgroup": "4:memory:/a", "a/cpu.max": "100000 100000"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_tightest_quota_of_the_cgroups_limits_the_threads(tmp_path: Any, files: Any, cpus: int | None) -> None:
    from fastrnn._threads import _cgroup_cpus

    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    assert _cgroup_cpus(str(tmp_path / "cgroup"), str(tmp_path)) == cpus
