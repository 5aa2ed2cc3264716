"""RNN and RNNCell: torch.nn.RNN's parameters, results and gradients (float64, 1e-12 normalised) in every constellation
of layers, directions, layout and lengths; dropout; the life of a backward function; state_dict; frozen.
"""

import copy
import itertools
import pickle
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from helpers.compare import assert_all_same_bits, assert_same_bits, normalised_error

import fastrnn

CONSTELLATIONS = [
    {"num_layers": layers, "bidirectional": both, "batch_first": first, "nonlinearity": act, "bias": bias}
    for layers, both, first, act, bias in [
        (1, False, False, "tanh", True),
        (1, True, False, "tanh", False),
        (2, False, True, "relu", True),
        (2, True, False, "tanh", True),
        (3, True, True, "tanh", False),
    ]
]
IDS = ["-".join(str(v) for v in c.values()) for c in CONSTELLATIONS]


def data(layer: Any, T: int = 6, B: int = 4, seed: int = 0, unbatched: bool = False) -> dict[str, Any]:
    """x, h_0 and the upstream gradients, in the layer's layout and dtype."""
    rng = np.random.default_rng(seed)
    D = 2 if layer.bidirectional else 1
    lead = (T,) if unbatched else (B, T) if layer.batch_first else (T, B)
    states = (layer.num_layers * D, layer.hidden_size) if unbatched else (layer.num_layers * D, B, layer.hidden_size)
    shapes = {
        "x": (*lead, layer.input_size),
        "h_0": states,
        "d_output": (*lead, D * layer.hidden_size),
        "d_h_n": states,
    }
    return {name: rng.standard_normal(shape).astype(layer.dtype) for name, shape in shapes.items()}


def train(layer: Any, d: dict[str, Any], lengths: Any = None) -> dict[str, Any]:
    """One forward and backward: all results, and copies of the gradients."""
    layer.zero_grad()
    output, h_n, backward = layer.forward_train(d["x"], d["h_0"], lengths)
    output, h_n = output.copy(), h_n.copy()
    d_x, d_h_0 = backward(d["d_output"], d["d_h_n"])
    grads = {name: g.copy() for name, g in layer.grads.items()}
    return {"output": output, "h_n": h_n, "d_x": d_x, "d_h_0": d_h_0, **grads}


def torch_train(torch: Any, layer: Any, d: dict[str, Any], lengths: Any = None, **options: Any) -> dict[str, Any]:
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    stock = torch.nn.RNN(layer.input_size, layer.hidden_size, **options, dtype=torch.float64)
    stock.load_state_dict({name: torch.from_numpy(value) for name, value in layer.state_dict().items()})
    x = torch.from_numpy(d["x"].copy()).requires_grad_()
    h_0 = torch.from_numpy(d["h_0"].copy()).requires_grad_()
    if lengths is None:
        output, h_n = stock(x, h_0)
    else:
        first = options["batch_first"]
        packed = pack_padded_sequence(x, torch.from_numpy(lengths), batch_first=first, enforce_sorted=False)
        output, h_n = stock(packed, h_0)
        total = x.shape[1 if first else 0]
        output, _ = pad_packed_sequence(output, batch_first=first, total_length=total)
    torch.autograd.backward((output, h_n), (torch.from_numpy(d["d_output"]), torch.from_numpy(d["d_h_n"])))
    run = {"output": output.detach(), "h_n": h_n.detach(), "d_x": x.grad, "d_h_0": h_0.grad}
    run.update({name: p.grad for name, p in stock.named_parameters()})
    return {name: value.numpy() for name, value in run.items()}


# ---- Against PyTorch


@pytest.mark.parametrize("lengths", [None, (6, 2, 5, 1)], ids=["full", "lengths"])
@pytest.mark.parametrize("options", CONSTELLATIONS, ids=IDS)
def test_equals_torch(backend: str, torch: Any, options: dict[str, Any], lengths: tuple[int, ...] | None) -> None:
    layer = fastrnn.RNN(5, 7, **options, dtype="float64", backend=backend, seed=0)
    d = data(layer)
    given = None if lengths is None else np.array(lengths)
    want = torch_train(torch, layer, d, given, **options)
    got = train(layer, d, given)
    assert set(got) == set(want)
    for name, value in want.items():
        assert normalised_error(got[name], value) <= 1e-12, name
    output, h_n = layer(d["x"], d["h_0"], given)
    assert_same_bits(output, got["output"], "inference against training")
    assert_same_bits(h_n, got["h_n"], "inference against training")


def test_unbatched_equals_torch(backend: str, torch: Any) -> None:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    layer = fastrnn.RNN(5, 7, **options, dtype="float64", backend=backend, seed=0)
    d = data(layer, unbatched=True)
    got, want = train(layer, d), torch_train(torch, layer, d, **options)
    for name, value in want.items():
        assert normalised_error(got[name], value) <= 1e-12, name


@pytest.mark.parametrize("options", CONSTELLATIONS, ids=IDS)
def test_state_dict_is_torchs(torch: Any, options: dict[str, Any]) -> None:
    """Names in order, shapes; and a torch module's own state_dict loads, of any floating dtype."""
    layer = fastrnn.RNN(5, 7, **options, seed=0)
    stock = torch.nn.RNN(5, 7, **options, dtype=torch.float64)
    assert [(n, a.shape) for n, a in layer.state_dict().items()] == [
        (n, tuple(a.shape)) for n, a in stock.state_dict().items()
    ]
    layer.load_state_dict(stock.state_dict())
    for name, value in stock.state_dict().items():
        assert_same_bits(layer.parameters[name], value.numpy().astype(np.float32), name)
    stock.load_state_dict({n: torch.from_numpy(a) for n, a in layer.state_dict().items()})


def test_torch_tensors_in_torch_tensors_out(backend: str, torch: Any) -> None:
    layer = fastrnn.RNN(5, 7, num_layers=2, bidirectional=True, backend=backend, seed=0)
    d = data(layer)
    want = train(layer, d)
    t = {name: torch.from_numpy(value) for name, value in d.items()}
    layer.zero_grad()
    output, h_n, backward = layer.forward_train(t["x"], t["h_0"])
    d_x, d_h_0 = backward(t["d_output"], t["d_h_n"])
    for name, value in {"output": output, "h_n": h_n, "d_x": d_x, "d_h_0": d_h_0}.items():
        assert isinstance(value, torch.Tensor), name
        assert_same_bits(value.numpy(), want[name], name)


# ---- Gradients on our own feet


@pytest.mark.parametrize("lengths", [None, (4, 0, 3)], ids=["full", "lengths"])
def test_two_bidirectional_layers_against_differences(backend: str, lengths: tuple[int, ...] | None) -> None:
    """Central differences of the loss in float64, step 1e-5, are good to about 1e-9; all tensors, random directions."""
    layer = fastrnn.RNN(3, 4, num_layers=2, bidirectional=True, dtype="float64", backend=backend, seed=1)
    d = data(layer, T=4, B=3)
    given = None if lengths is None else np.array(lengths)
    valid = np.ones((4, 3, 1)) if given is None else (np.arange(4)[:, None] < given)[..., None]
    run = train(layer, d, given)
    gradients = {"x": run["d_x"], "h_0": run["d_h_0"], **{n: run[n] for n in layer.parameters}}
    start = {"x": d["x"], "h_0": d["h_0"], **layer.state_dict()}

    def loss(values: dict[str, Any]) -> float:
        layer.load_state_dict({n: values[n] for n in layer.parameters})
        output, h_n = layer(values["x"], values["h_0"], given)
        return float((output * d["d_output"] * valid).sum() + (h_n * d["d_h_n"]).sum())

    rng = np.random.default_rng(2)
    for name, gradient in gradients.items():
        for _ in range(3):
            v = rng.standard_normal(gradient.shape)
            step = 1e-5
            difference = loss({**start, name: start[name] + step * v}) - loss({**start, name: start[name] - step * v})
            expected = float((gradient * v).sum())
            assert abs(difference / (2 * step) - expected) <= 1e-7 * max(1, abs(expected)), name


def test_cell_chain_equals_the_layer(backend: str, dtype: str) -> None:
    layer = fastrnn.RNN(5, 7, dtype=dtype, backend=backend, seed=0)
    cell = fastrnn.RNNCell(5, 7, dtype=dtype, backend=backend, seed=1)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    d = data(layer)
    output, h_n = layer(d["x"], d["h_0"])
    h = d["h_0"][0]
    for t in range(6):
        h = cell(d["x"][t], h)
        if backend == "cpp":
            assert_same_bits(h, output[t].copy(), f"step {t}")
        assert normalised_error(h, output[t]) <= 1e-6
    assert normalised_error(h, h_n[0]) <= 1e-6


def test_a_short_step_has_the_bits_of_a_long_one(backend: str, dtype: str) -> None:
    """cpp takes short steps by a shorter way through the binding: for any strides, for one row, packed or not."""
    if backend != "cpp":
        pytest.skip(f"{backend} has one way for all steps")
    for act, H in itertools.product(("tanh", "relu"), (1, 7, 65)):
        cell = fastrnn.RNNCell(9, H, nonlinearity=act, dtype=dtype, backend=backend, seed=0)
        rng, B = np.random.default_rng(H), 2_000_000 // (2 * H * (9 + H)) + 1  # together too long for it
        x, h = rng.standard_normal((B, 9)).astype(dtype), rng.standard_normal((B, H)).astype(dtype)
        whole, from_zero = cell(x, h), cell(x)
        wide, reverse = np.repeat(x[-3:], 2, axis=1)[:, ::2], h[-3:][:, ::-1].copy()[:, ::-1]
        with cell.frozen() if H == 7 else nullcontext():
            assert_same_bits(cell(wide, reverse), whole[-3:].copy(), "strides")
            assert_same_bits(cell(x[-1], h[-1]), whole[-1].copy(), "one row")
            assert_same_bits(cell(x[-1]), from_zero[-1].copy(), "one row from zero")
            assert_same_bits(cell(x[-1:]), from_zero[-1:].copy(), "from zero")


def test_cell_equals_torch(backend: str, torch: Any) -> None:
    for bias, act in itertools.product((True, False), ("tanh", "relu")):
        cell = fastrnn.RNNCell(5, 7, bias=bias, nonlinearity=act, dtype="float64", backend=backend, seed=0)
        stock = torch.nn.RNNCell(5, 7, bias=bias, nonlinearity=act, dtype=torch.float64)
        stock.load_state_dict({n: torch.from_numpy(a) for n, a in cell.state_dict().items()})
        x, h = np.random.default_rng(0).standard_normal((2, 4, 7))
        x = x[:, :5]
        with torch.no_grad():
            want = stock(torch.from_numpy(x.copy()), torch.from_numpy(h))
            single = stock(torch.from_numpy(x[0].copy()))
        assert normalised_error(cell(x, h), want.numpy()) <= 1e-14
        assert normalised_error(cell(x[0]), single.numpy()) <= 1e-14, "one row without a batch, h None"


# ---- Backward's life


def test_backward_twice_raises_and_adds_nothing(backend: str) -> None:
    layer = fastrnn.RNN(5, 7, backend=backend, seed=0)
    d = data(layer)
    _, _, backward = layer.forward_train(d["x"], d["h_0"])
    backward(d["d_output"])
    once = {name: g.copy() for name, g in layer.grads.items()}
    with pytest.raises(RuntimeError, match="backward"):
        backward(d["d_output"])
    for name, g in layer.grads.items():
        assert_same_bits(g, once[name], name)


def test_wrong_arguments_do_not_use_backward_up(backend: str) -> None:
    layer = fastrnn.RNN(5, 7, backend=backend, seed=0)
    d = data(layer)
    _, _, backward = layer.forward_train(d["x"], d["h_0"])
    with pytest.raises(ValueError, match=r"^d_output: expected"):
        backward(d["d_output"][1:])
    with pytest.raises(ValueError, match=r"^d_h_n: expected"):
        backward(d["d_output"], d["d_h_n"][0])
    assert not any(g.any() for g in layer.grads.values())
    backward(d["d_output"], d["d_h_n"])
    assert all(g.any() for g in layer.grads.values())


def test_gradients_accumulate_until_zeroed(backend: str) -> None:
    layer = fastrnn.RNN(5, 7, num_layers=2, backend=backend, seed=0)
    d = data(layer)
    once = train(layer, d)
    held = dict(layer.grads)
    _, _, backward = layer.forward_train(d["x"], d["h_0"])
    backward(d["d_output"], d["d_h_n"])
    for name, g in layer.grads.items():
        assert g is held[name], "grads are added to in place"
        assert_same_bits(g, once[name] + once[name], name)
    layer.zero_grad()
    assert not any(g.any() for g in layer.grads.values())


def test_two_forwards_before_two_backwards(backend: str) -> None:
    """Each backward belongs to its own call, in any order."""
    layer = fastrnn.RNN(5, 7, backend=backend, seed=0)
    a, b = data(layer, seed=1), data(layer, T=3, B=2, seed=2)
    wants = [train(layer, a), train(layer, b)]
    _, _, first = layer.forward_train(a["x"], a["h_0"])
    _, _, second = layer.forward_train(b["x"], b["h_0"])
    assert_same_bits(second(b["d_output"], b["d_h_n"])[0], wants[1]["d_x"], "second")
    assert_same_bits(first(a["d_output"], a["d_h_n"])[0], wants[0]["d_x"], "first")


def test_upstream_gradients_are_optional_and_untouched(backend: str) -> None:
    layer = fastrnn.RNN(5, 7, num_layers=2, dropout=0.5, bidirectional=True, backend=backend, seed=0)
    d = data(layer)
    before = {name: value.copy() for name, value in d.items()}
    _, _, backward = layer.forward_train(d["x"], d["h_0"])
    backward(d["d_output"])
    _, _, backward = layer.forward_train(d["x"])
    d_x, d_h_0 = backward(None, d["d_h_n"])
    assert d_x.shape == d["x"].shape
    assert d_h_0.shape == d["h_0"].shape
    for name, value in before.items():
        assert_same_bits(d[name], value, name)


# ---- Dropout


def test_dropout_zeroes_and_scales_between_layers_only() -> None:
    """p = 1 cuts the layers apart: the second sees zeros; p = 0.5 zeroes half and doubles the rest; inference none."""
    layer = fastrnn.RNN(5, 64, num_layers=2, dropout=1.0, seed=0)
    d = data(layer)
    zero = layer.forward_train(np.zeros_like(d["x"]))[0]
    for value in (d["x"], 2 * d["x"]):
        assert_same_bits(layer.forward_train(value)[0], zero, "the top layer sees zeros whatever x is")
    assert np.abs(layer(d["x"])[0] - layer(2 * d["x"])[0]).max() > 1e-3

    half = fastrnn.RNN(5, 64, num_layers=2, dropout=0.5, seed=0)
    output, h_n = half(d["x"])
    trained, trained_n, _ = half.forward_train(d["x"])
    assert np.abs(output - trained).max() > 1e-3
    assert_same_bits(trained_n[0], h_n[0], "h_n of the lower layer is undropped")
    assert_same_bits(half(d["x"])[0], output, "inference draws nothing")


def test_dropout_rate_and_scale() -> None:
    """The gradient through identity-like top layers shows the mask: zeros in a share p, 1 / (1 - p) elsewhere."""
    H = 64
    layer = fastrnn.RNN(H, H, num_layers=2, nonlinearity="relu", bias=False, dropout=0.25, seed=3)
    eye, zero = np.eye(H, dtype=np.float32), np.zeros((H, H), np.float32)
    layer.load_state_dict({"weight_ih_l0": eye, "weight_hh_l0": zero, "weight_ih_l1": eye, "weight_hh_l1": zero})
    x = np.ones((50, 20, H), np.float32)
    output, _, backward = layer.forward_train(x)
    values = np.unique(output)
    assert values.tolist() == [0, np.float32(1 / 0.75)]
    share = (output == 0).mean()
    assert abs(share - 0.25) < 0.01  # 64,000 draws: 5.8 standard deviations
    d_x, _ = backward(np.ones_like(output))
    assert_same_bits(d_x, output, "the gradient takes the same mask")


def test_dropout_follows_the_seed_and_not_the_layout() -> None:
    def run(seed: int, batch_first: bool = False) -> Any:
        layer = fastrnn.RNN(5, 16, num_layers=3, dropout=0.5, batch_first=batch_first, seed=seed)
        x = np.random.default_rng(0).standard_normal((6, 4, 5)).astype(np.float32)
        first = layer.forward_train(x.swapaxes(0, 1) if batch_first else x)[0]
        second = layer.forward_train(x.swapaxes(0, 1) if batch_first else x)[0]
        assert not np.array_equal(first, second), "each call draws anew"
        return first.swapaxes(0, 1) if batch_first else first

    assert_same_bits(run(7), run(7), "same seed")
    assert not np.array_equal(run(7), run(8))
    assert_same_bits(run(7), run(7, batch_first=True).copy(), "time-major draw")


def test_dropout_gradient_equals_differences() -> None:
    """The backward takes the forward's own masks: the same generator state gives the same loss to differentiate."""
    layer = fastrnn.RNN(3, 6, num_layers=2, dropout=0.5, dtype="float64", seed=5)
    d = data(layer, T=4, B=3)
    rng_state = copy.deepcopy(layer)
    output, h_n, backward = layer.forward_train(d["x"], d["h_0"])
    d_x, _ = backward(d["d_output"], d["d_h_n"])
    v = np.random.default_rng(1).standard_normal(d["x"].shape)

    def loss(x: Any) -> float:
        output, h_n, _ = copy.deepcopy(rng_state).forward_train(x, d["h_0"])
        return float((output * d["d_output"]).sum() + (h_n * d["d_h_n"]).sum())

    difference = (loss(d["x"] + 1e-5 * v) - loss(d["x"] - 1e-5 * v)) / 2e-5
    assert abs(difference - (d_x * v).sum()) <= 1e-7 * max(1, abs(difference))
    assert loss(d["x"]) == float((output * d["d_output"]).sum() + (h_n * d["d_h_n"]).sum())


def test_useless_dropout_warns() -> None:
    with pytest.warns(UserWarning, match="dropout"):
        fastrnn.RNN(2, 3, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.RNN(2, 3, num_layers=2, dropout=0.5)


# ---- Parameters


def test_initial_parameters_follow_the_seed() -> None:
    """Uniform in +-1 / sqrt(H); the same seed, the same bits; float32 rounds what float64 draws."""
    a, b, c = (fastrnn.RNN(5, 100, seed=s).state_dict() for s in (1, 1, 2))
    assert_all_same_bits(a.values(), b.values(), "same seed")
    assert not np.array_equal(a["weight_hh_l0"], c["weight_hh_l0"])
    weights = a["weight_hh_l0"]
    assert weights.dtype == np.float32
    assert np.abs(weights).max() <= 0.1
    assert np.abs(weights).max() > 0.0999
    assert abs(weights.mean()) < 0.003  # 10,000 draws of deviation 0.058: 5 standard deviations


def test_state_dict_round_trip_and_independence() -> None:
    layer = fastrnn.RNN(5, 7, num_layers=2, bidirectional=True, seed=0)
    state = layer.state_dict()
    other = fastrnn.RNN(5, 7, num_layers=2, bidirectional=True, seed=1)
    other.load_state_dict(state)
    state["weight_ih_l0"][...] = 0
    assert layer.parameters["weight_ih_l0"].any(), "state_dict copies"
    assert other.parameters["weight_ih_l0"].any(), "load_state_dict copies"
    d = data(layer)
    assert_all_same_bits(layer(d["x"]), other(d["x"]), "loaded")
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_all_same_bits(again(d["x"]), layer(d["x"]), "copied")
        assert not np.shares_memory(again.parameters["weight_ih_l0"], layer.parameters["weight_ih_l0"])


def test_load_state_dict_swaps_the_directions_of_one_layer() -> None:
    """Each value is what it was before the call, though it lies in an array that the call writes."""
    rnn = fastrnn.RNN(3, 5, bidirectional=True, seed=0)
    before, own = rnn.state_dict(), rnn.parameters
    other = {name: name[: -len("_reverse")] if name.endswith("_reverse") else f"{name}_reverse" for name in own}
    rnn.load_state_dict({name: own[other[name]] for name in own})
    for name in own:
        assert_same_bits(own[name], before[other[name]], name)


def test_load_state_dict_refuses_and_changes_nothing() -> None:
    layer = fastrnn.RNN(5, 7, seed=0)
    good = layer.state_dict()
    other = fastrnn.RNN(5, 7, seed=1).state_dict()
    wrong = [
        ({k: v for k, v in other.items() if k != "bias_hh_l0"}, KeyError, "bias_hh_l0"),
        ({**other, "extra": other["bias_hh_l0"]}, KeyError, "extra"),
        (
            {**other, "bias_hh_l0": np.zeros(8, np.float32)},
            ValueError,
            r"bias_hh_l0: expected shape \(7,\), got \(8,\)",
        ),
        ({**other, "bias_hh_l0": [0.0] * 7}, TypeError, "bias_hh_l0"),
        ({**other, "bias_hh_l0": np.zeros(7, np.int64)}, TypeError, "bias_hh_l0"),
    ]
    for state, error, message in wrong:
        with pytest.raises(error, match=message):
            layer.load_state_dict(state)
        assert_all_same_bits(layer.state_dict().values(), good.values(), "unchanged")
    passed = layer.load_state_dict({"weight_ih_l0": other["weight_ih_l0"], "extra": 0}, strict=False)
    assert set(passed.missing_keys) == {"weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
    assert list(passed.unexpected_keys) == ["extra"]
    assert_same_bits(layer.parameters["weight_ih_l0"], other["weight_ih_l0"], "loaded")


def test_parameters_change_results_at_once(backend: str) -> None:
    """Weights are read afresh in every call: in-place writes and replacements count."""
    layer = fastrnn.RNN(5, 7, backend=backend, seed=0)
    d = data(layer)
    before = layer(d["x"])[0].copy()
    layer.parameters["weight_hh_l0"][...] *= 2
    changed = layer(d["x"])[0].copy()
    assert np.abs(changed - before).max() > 1e-4
    layer.parameters["weight_hh_l0"] = layer.parameters["weight_hh_l0"] / 2
    assert_same_bits(layer(d["x"])[0], before, "put back")
    with pytest.raises(ValueError, match="weight_hh_l0"):
        layer.parameters["weight_hh_l0"] = np.zeros((7, 8), np.float32)
    with pytest.raises(KeyError, match="nothing"):
        layer.parameters["nothing"] = np.zeros((7, 7), np.float32)


# ---- frozen


@pytest.mark.parametrize("options", CONSTELLATIONS, ids=IDS)
def test_frozen_gives_the_same_bits(backend: str, dtype: str, options: dict[str, Any]) -> None:
    layer = fastrnn.RNN(33, 65, **options, dtype=dtype, backend=backend, seed=0)
    d = data(layer)
    want, trained = layer(d["x"], d["h_0"]), train(layer, d)
    with layer.frozen():
        for _ in range(2):
            assert_all_same_bits(layer(d["x"], d["h_0"]), want, "frozen")
        assert_all_same_bits(train(layer, d).values(), trained.values(), "training while frozen")


def test_frozen_parameters_are_read_only(backend: str) -> None:
    layer = fastrnn.RNN(5, 7, backend=backend, seed=0)
    with layer.frozen(), layer.frozen():
        with pytest.raises(ValueError, match="read-only"):
            layer.parameters["weight_ih_l0"][0, 0] = 1
        with pytest.raises(ValueError, match="frozen"):
            layer.load_state_dict(layer.state_dict())
        with pytest.raises(ValueError, match="frozen"):
            layer.parameters["weight_ih_l0"] = layer.state_dict()["weight_ih_l0"]
    layer.parameters["weight_ih_l0"][...] = 0
    d = data(layer)
    zero_input, _ = layer(np.zeros_like(d["x"]), d["h_0"])
    assert_same_bits(layer(d["x"], d["h_0"])[0] + 0, zero_input + 0, "the new weights count after frozen()")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_copy_of_a_frozen_layer_is_not_frozen(protocol: int) -> None:
    rnn = fastrnn.RNN(3, 5, seed=0)
    with rnn.frozen():
        copy = pickle.loads(pickle.dumps(rnn, protocol))
        assert not rnn.parameters["weight_hh_l0"].flags.writeable
    copy.load_state_dict(rnn.state_dict())
    copy.parameters["weight_hh_l0"][...] = 0


def test_frozen_survives_an_exception_inside() -> None:
    layer = fastrnn.RNN(5, 7, seed=0)
    with pytest.raises(ZeroDivisionError), layer.frozen():
        raise ZeroDivisionError
    layer.parameters["weight_ih_l0"][0, 0] = 1


def test_frozen_cell(backend: str, dtype: str) -> None:
    cell = fastrnn.RNNCell(33, 65, dtype=dtype, backend=backend, seed=0)
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal((3, 33)).astype(dtype), rng.standard_normal((3, 65)).astype(dtype)
    want = cell(x, h)
    with cell.frozen():
        assert_same_bits(cell(x, h), want, "frozen")


@pytest.mark.parametrize("shape", [(0, 4), (6, 0), (0, 0)], ids=str)
def test_empty_batches_and_sequences(backend: str, shape: tuple[int, int]) -> None:
    T, B = shape
    layer = fastrnn.RNN(5, 7, num_layers=2, bidirectional=True, backend=backend, seed=0)
    d = data(layer, T=T, B=B)
    run = train(layer, d)
    assert run["output"].shape == (T, B, 14)
    assert run["h_n"].shape == (4, B, 7)
    assert run["d_x"].shape == (T, B, 5)
    if T == 0:
        assert_same_bits(run["h_n"], d["h_0"], "h_n is h_0")
        assert_same_bits(run["d_h_0"], d["d_h_n"], "d_h_0 is d_h_n")
    assert not any(run[name].any() for name in layer.parameters)
