"""checkpoint_every, RNN.reduce and truncated_bptt: the bits of plain BPTT, in less memory."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from helpers.cases import DTYPES
from helpers.compare import normalised_error
from helpers.processes import output_of
from helpers.torch_layers import name_of

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 3, "nonlinearity": "relu", "bias": False},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "recurrent_dropout": 0.3, "input_dropout": 0.3},
    {"num_layers": 2, "batch_first": True, "input_dropout": 0.3, "recurrent_dropout": 0.3},
)
T, B = 700, 3  # of blocks of 86 steps: chunks of 1, 2 and all blocks, the first one shorter
HOW = ("plain", "lengths", "reset", "both")


def made(torch: Any, seed: int = 0, dtype: Any = None, **kwargs: Any) -> Any:
    import fastrnn

    torch.manual_seed(seed)
    return fastrnn.torch.RNN(3, 9, dtype=dtype, **kwargs)


def keywords(torch: Any, layer: Any, how: str) -> dict[str, Any]:
    found = {}
    if how in ("lengths", "both"):
        found["lengths"] = torch.tensor([0, 650, 330])  # the longest row is shorter than T
    if how in ("reset", "both"):
        reset = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.01
        found["reset"] = reset.T if layer.batch_first else reset
    return found


def given(torch: Any, layer: Any) -> tuple[Any, Any, list[Any]]:
    """x, hx, and the leaves to differentiate."""
    generator = torch.Generator().manual_seed(2)
    shape = (B, T, 3) if layer.batch_first else (T, B, 3)
    dtype, states = layer.weight_ih_l0.dtype, layer.num_layers * (1 + layer.bidirectional)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    hx = torch.randn(states, B, 9, generator=generator).to(dtype).requires_grad_()
    return x, hx, [x, hx, *layer.parameters()]


def results(torch: Any, run: Any, layer: Any, every: Any, how: dict[str, Any]) -> list[Any]:
    """output, h_n and all gradients, for random ones of both."""
    x, hx, leaves = given(torch, layer)
    torch.manual_seed(4)
    found = list(run(x, hx, **how, **({} if every is None else {"checkpoint_every": every})))
    generator = torch.Generator().manual_seed(3)
    upstream = [torch.randn(each.shape, generator=generator).to(each.dtype) for each in found]
    return found + list(torch.autograd.grad(found, leaves, upstream))


# ---- the kernels go on with sums


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("how", ["plain", "lengths", "reset", "masks", "alpha"])
def test_sums_that_go_on_are_those_of_one_call(backend: str, dtype: Any, reverse: bool, how: str) -> None:
    """Chunks of blocks of the canonical sum: the same bits with cpp; to rounding (1e-12, 1e-5) with the others."""
    from fastrnn._backends import get
    from fastrnn._backends.options import NEEDS, RnnOptions
    from fastrnn._recompute import Masks, Recompute, chunk_steps

    rng, (T, B, I, H) = np.random.default_rng(0), (550, 3, 5, 17)
    normal = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    x, h_0, d, d_h_n = normal(T, B, I), normal(B, H), normal(T, B, H), normal(B, H)
    w = [0.2 * normal(*shape) for shape in ((H, I), (H, H), (H,), (H,))]
    options: dict[str, Any] = {}
    if how == "lengths":
        options["lengths"] = np.array([540, 0, 99])
    elif how == "reset":
        options["reset"] = rng.random((T, B)) < 0.02
    elif how == "masks":
        options["recurrent_mask"] = (rng.random((B, H)) < 0.8).astype(dtype)
    elif how == "alpha":
        options["alpha"] = rng.uniform(0.1, 1, H).astype(dtype)
    functions, o = get(backend), RnnOptions(reverse=reverse, **options)
    output, h_n = functions.rnn_forward(x, h_0, *w, o)
    needs = (*NEEDS, "alpha") if how == "alpha" else NEEDS
    want = functions.rnn_backward(d, d_h_n, output, x, h_0, *w[:2], o, needs, *w[2:])

    mask, alpha = options.pop("recurrent_mask", None), options.pop("alpha", None)
    masks = Masks(recurrent=None if mask is None else mask[None])
    steps = chunk_steps(100, T, B)
    assert steps == 172
    walk = Recompute(functions, steps, x, [h_0], [[*w, alpha]], RnnOptions(reverse=reverse, **options), masks)
    found, d_x = np.zeros_like(output), np.zeros_like(x)
    (last,) = walk.forward(lambda chunk, h: found.__setitem__(walk.at(chunk), h))
    (d_h_0,), (sums,) = walk.backward(lambda chunk, h: d[walk.at(chunk)], [d_h_n], {*needs[2:]}, d_x)
    pairs = [(found, output), (last, h_n), *zip((d_x, d_h_0, *sums[:3]), want, strict=True)]
    if how == "alpha":
        pairs.append((sums.d_alpha, want.d_alpha))
    for at, (got, exact) in enumerate(pairs):
        if backend == "cpp":
            assert np.array_equal(got, exact), at
        assert normalised_error(got, exact) <= (1e-12 if dtype == np.float64 else 1e-5), at


def test_chunks_are_whole_blocks() -> None:
    from fastrnn._recompute import chunk_steps

    wanted = {
        ("auto", 100_000, 1): 512, ("auto", 1_000_000, 1): 1024, ("auto", 100, 1): 256, ("auto", 10_000, 256): 100,
        (1, 99, 300): 1, (100, 99, 32): 104, (9, 0, 0): 256, (256, 9, 1): 256, (257, 9, 1): 512,
    }  # fmt: skip
    assert {key: chunk_steps(*key) for key in wanted} == wanted


# ---- checkpoint_every


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_recomputation_changes_no_bit(torch: Any, options: dict[str, Any], how: str) -> None:
    layer = made(torch, **options)
    arguments = keywords(torch, layer, how)
    want = results(torch, layer, layer, None, arguments)
    for every in ("auto", 1, 100, T + 99):
        got = results(torch, layer, layer, every, arguments)
        assert all(map(torch.equal, got, want)), every
    layer.zoneout = 0.25
    layer.eval()
    want, got = (results(torch, layer, layer, every, arguments) for every in (None, "auto"))
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("options", [{"dropout": 0.4, "num_layers": 2}, {"zoneout": 0.3, "bidirectional": True}])
def test_masks_of_chunks_are_drawn_again(torch: Any, options: dict[str, Any]) -> None:
    """Against finite differences of the same seed, in float64: backward sees the masks of forward. A seed repeats them,
    and they act."""
    layer = made(torch, dtype=torch.float64, **options)
    x, hx, _ = given(torch, layer)
    kinds = [layer, copy.deepcopy(layer).eval()]
    kinds[1].zoneout = 0.0

    def run(x: Any, hx: Any, kind: Any = layer) -> Any:
        torch.manual_seed(5)
        output, h_n = kind(x, hx, checkpoint_every=100)
        return output.sin().sum() + h_n.cos().sum()

    assert run(x, hx) == run(x, hx)
    assert run(x, hx) != run(x, hx, kinds[1])
    directions = [torch.randn_like(each) for each in (x, hx)]
    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(run(x, hx), (x, hx)), directions, strict=True))
    step = 1e-6
    with torch.no_grad():
        ends = [run(x + s * step * directions[0], hx + s * step * directions[1]) for s in (1, -1)]
    assert abs((ends[0] - ends[1]) / (2 * step) - slope) <= 1e-7 * abs(slope) + 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_recomputation_compiles_whole(torch: Any, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    layer = made(torch, **options)
    for how in ("plain", "both"):
        arguments = keywords(torch, layer, how)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        want, got = (results(torch, run, layer, "auto", arguments) for run in (layer, compiled))
        assert all(map(torch.equal, got, want)), how


def test_halves_and_one_sequence_are_recomputed(torch: Any) -> None:
    layer = made(torch, dtype=torch.bfloat16, num_layers=2)
    want, got = (results(torch, layer, layer, every, {}) for every in (None, "auto"))
    assert all(map(torch.equal, got, want))
    x = torch.randn(T, 3, dtype=torch.bfloat16)
    assert all(map(torch.equal, layer(x, checkpoint_every=9), layer(x)))


def test_what_recomputation_refuses(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.utils.rnn import pack_sequence

    import fastrnn.torch.dispatch as dispatch

    layer, x = made(torch), torch.randn(4, 2, 3)
    for every, error, words in (
        (0, ValueError, "at least 1, got 0"), ("sqrt", ValueError, "None, 'auto' or an int, got 'sqrt'"),
        (1.5, TypeError, "int, got float"), (True, TypeError, "int, got bool"),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^checkpoint_every: expected {words}$"):
            layer(x, checkpoint_every=every)
        with pytest.raises(error, match=f"^checkpoint_every: expected {words}$"):
            layer.reduce(None, x, checkpoint_every=every)
    with pytest.raises(ValueError, match=r"^checkpoint_every: expected None beside a PackedSequence"):
        layer(pack_sequence([x[:, 0]]), checkpoint_every="auto")
    with pytest.raises(ValueError, match=r"^return_all_layers: expected False beside checkpoint_every, got True$"):
        layer(x, checkpoint_every="auto", return_all_layers=True)
    with pytest.raises(NotImplementedError, match=r"^checkpoint_every: expected None in forward mode"):
        torch.func.grad(lambda x: layer(x, checkpoint_every="auto")[0].sum())(x)
    output, _ = layer(x.requires_grad_(), checkpoint_every="auto")
    with pytest.raises(
        RuntimeError, match=r"^checkpoint_every: expected first derivatives alone, got create_graph=True$"
    ):
        torch.autograd.grad(output.sin().sum(), x, create_graph=True)
    monkeypatch.setattr(dispatch, "backend", lambda *_: "where nothing is fast")
    with pytest.raises(NotImplementedError, match=r"^checkpoint_every: expected None where torch.nn.RNN computes"):
        layer(x, checkpoint_every="auto")


# ---- reduce


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("options", [o for o in OPTIONS if "bidirectional" not in o], ids=name_of)
def test_reduce_has_the_gradients_of_the_whole_output(torch: Any, options: dict[str, Any], how: str) -> None:
    """Bit for bit those of x, hx and the layer; to rounding those of what function reads, and the total: a sum over
    chunks."""
    layer, factor = made(torch, **options), torch.randn(9, requires_grad=True)
    arguments = keywords(torch, layer, how)
    target = torch.randn(B, T, 9) if layer.batch_first else torch.randn(T, B, 9)
    last = 650 if "lengths" in arguments else T

    def loss(output: Any, begin: int, end: int) -> Any:
        steps = (slice(None), slice(begin, end)) if layer.batch_first else slice(begin, end)
        return (factor * output - target[steps]).pow(2).sum()  # no product, whose bits depend on the number of rows

    found = []
    for reduced in (False, True):
        x, hx, leaves = given(torch, layer)
        torch.manual_seed(4)
        if reduced:
            total, h_n = layer.reduce(loss, x, hx, checkpoint_every=100, **arguments)
        else:
            output, h_n = layer(x, hx, **arguments)
            total = loss(output[:, :last] if layer.batch_first else output[:last], 0, last)
        wanted = [*leaves, factor]
        found.append([h_n, *torch.autograd.grad(total + h_n.sin().sum(), wanted), total])
    for at, (want, got) in enumerate(zip(*found, strict=True)):
        assert at > len(leaves) or torch.equal(got, want), at
        assert normalised_error(got.detach().numpy(), want.detach().numpy()) <= 1e-5, at


def test_reduce_of_h_n_alone_and_of_values_of_any_shape(torch: Any) -> None:
    layer = made(torch, dtype=torch.float64)
    x, hx, leaves = given(torch, layer)
    total, h_n = layer.reduce(None, x, hx)
    assert total is None
    want = torch.autograd.grad(layer(x, hx)[1].sin().sum(), leaves)
    assert all(map(torch.equal, torch.autograd.grad(h_n.sin().sum(), leaves), want))
    total, _ = layer.reduce(lambda output, begin, end: output.sum((0, 1)), x[:, 0], hx[:, 0], checkpoint_every=300)
    assert total.shape == ()
    total, _ = layer.reduce(lambda output, begin, end: output.sum(0), x, hx, checkpoint_every=100)
    assert normalised_error(total.detach().numpy(), layer(x, hx)[0].sum(0).detach().numpy()) <= 1e-12
    assert layer.reduce(lambda output, begin, end: torch.ones(()) * (end - begin), x)[0] == T
    with torch.no_grad():
        assert not layer.reduce(lambda output, begin, end: output.sum(), x)[0].requires_grad


def test_reduce_draws_again_what_its_function_drew(torch: Any) -> None:
    """Dropout of the output, in float64: the gradient is that of the values (finite differences), and the stream of
    random numbers goes on as if nothing had been drawn again."""
    layer = made(torch, dtype=torch.float64)
    x, hx, _ = given(torch, layer)

    def run(x: Any) -> Any:
        torch.manual_seed(5)
        drop = torch.nn.functional.dropout
        return layer.reduce(lambda output, b, e: drop(output, 0.5).sin().sum(), x, hx, checkpoint_every=100)[0]

    total = run(x)
    after = torch.get_rng_state()
    (d_x,) = torch.autograd.grad(total, x)
    assert torch.equal(torch.get_rng_state(), after)
    direction = torch.randn_like(x)
    with torch.no_grad():
        slope = (run(x + 1e-6 * direction) - run(x - 1e-6 * direction)) / 2e-6
    assert abs(slope - (d_x * direction).sum()) <= 1e-6 * abs(slope) + 1e-7


@pytest.mark.parametrize("name", ["lengths", "reset"])
def test_reduce_keeps_lengths_and_reset_of_its_own(torch: Any, name: str) -> None:
    """Edited before backward they change nothing, as for forward."""
    layer, x = made(torch), torch.randn(T, B, 3)
    found = []
    for edit in (False, True):
        arguments = {name: keywords(torch, layer, "both")[name]}
        total, _ = layer.reduce(lambda output, b, e: (output**2).sum(), x, checkpoint_every=100, **arguments)
        if edit:
            arguments[name].fill_(1)
        found.append(torch.autograd.grad(total, list(layer.parameters())))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_function_may_edit_its_chunk(torch: Any, batch_first: bool, dtype: str) -> None:
    """Behind autograd's back, and in place as an output of forward: the gradients are those of its values. What
    autograd itself needs of the chunk it misses, as it does of an output."""
    layer = made(torch, batch_first=batch_first, dtype=getattr(torch, dtype), num_layers=2)

    def square(output: Any, begin: int, end: int) -> Any:
        return (output * output.detach().clone()).sum()

    def zeroed(output: Any, begin: int, end: int) -> Any:
        value = square(output, begin, end)
        output.detach().zero_()
        return value

    def zeroed_as_array(output: Any, begin: int, end: int) -> Any:
        value = square(output, begin, end)
        output.data.zero_()
        return value

    def in_place(output: Any, begin: int, end: int) -> Any:
        return output.mul_(2).sum()

    def late(output: Any, begin: int, end: int) -> Any:
        value = output.pow(2).sum()
        output.mul_(2)
        return value

    def gradients(function: Any) -> list[Any]:
        x, hx, leaves = given(torch, layer)
        total, h_n = layer.reduce(function, x, hx, checkpoint_every=100)
        return [total, h_n, *torch.autograd.grad(total + h_n.sum(), leaves)]

    want = gradients(square)
    assert all(map(torch.equal, gradients(zeroed), want))
    assert all(map(torch.equal, gradients(zeroed_as_array), want))
    assert all(map(torch.equal, gradients(in_place), gradients(lambda output, b, e: (output * 2).sum())))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(late)


def test_reduce_of_rows_without_steps_calls_function_once(torch: Any) -> None:
    """On a chunk of no steps: total is a tensor, and what function reads beside the chunk gets its gradient."""
    for batch_first in (False, True):
        layer, w, seen = made(torch, batch_first=batch_first), torch.ones(9, requires_grad=True), []

        def function(output: Any, begin: int, end: int, w: Any = w, seen: list[Any] = seen) -> Any:
            seen.append((tuple(output.shape), begin, end))
            return (torch.nn.functional.dropout(output) * w).sum() + w.pow(2).sum()

        x, hx, leaves = given(torch, layer)
        total, h_n = layer.reduce(function, x, hx, lengths=torch.zeros(B, dtype=torch.int64))
        assert total == 9
        assert torch.equal(h_n, hx)
        d_x, d_hx, *others = torch.autograd.grad(total + h_n.sum(), [*leaves, w])
        assert torch.equal(others.pop(), 2 * w)
        assert torch.equal(d_hx, torch.ones_like(hx))
        assert not any(d.any() for d in (d_x, *others))
        assert seen == [((B, 0, 9) if batch_first else (0, B, 9), 0, 0)] * 2
    total, _ = layer.reduce(lambda output, b, e: output.sum(), x, lengths=torch.zeros(B, dtype=torch.int64))
    assert total == 0
    assert not any(d.any() for d in torch.autograd.grad(total, list(layer.parameters())))
    assert layer.reduce(None, x, lengths=torch.zeros(B, dtype=torch.int64))[0] is None


def test_reduce_reads_mode_as_torch_does(torch: Any) -> None:
    """torch.nn.RNN computes by layer.mode: another nonlinearity later changes nothing, another mode does."""
    layer, x = made(torch), torch.randn(T, B, 3)
    want = layer.reduce(lambda output, b, e: output.sum(), x)[0]
    layer.nonlinearity = "relu"
    assert torch.equal(layer.reduce(lambda output, b, e: output.sum(), x)[0], want)
    layer.mode = "RNN_RELU"
    got = layer.reduce(lambda output, b, e: output.sum(), x)[0]
    assert torch.equal(got, made(torch, nonlinearity="relu").reduce(lambda output, b, e: output.sum(), x)[0])
    assert not torch.equal(got, want)
    layer.mode = "RNN_SINE"
    with pytest.raises(AssertionError, match="mode must be RNN_TANH or RNN_RELU, got RNN_SINE"):
        layer.reduce(None, x)


def test_what_reduce_refuses(torch: Any) -> None:
    from torch.nn.utils.rnn import pack_sequence

    layer, x = made(torch), torch.randn(600, 1, 3)
    with pytest.raises(ValueError, match=r"^RNN.reduce: expected a layer of one direction, got bidirectional=True$"):
        made(torch, bidirectional=True).reduce(None, x)
    with pytest.raises(TypeError, match=r"^input: expected torch.Tensor, got PackedSequence$"):
        layer.reduce(None, pack_sequence([x[:, 0]]))
    with pytest.raises(TypeError, match=r"^function: expected it to return torch.Tensor, got float$"):
        layer.reduce(lambda output, begin, end: 1.0, x)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        layer.reduce(None, x[..., :2])
    factors = [torch.ones(9, requires_grad=True) for _ in range(600)]
    total, _ = layer.reduce(lambda output, begin, end: (output * factors[begin]).sum(), x)
    with pytest.raises(RuntimeError, match=r"^function: expected the same tensors .* got another, of shape \(9,\)$"):
        total.backward()
    total, _ = layer.reduce(lambda output, begin, end: output.sum(), x.requires_grad_())
    with pytest.raises(RuntimeError, match=r"^RNN.reduce: expected first derivatives alone, got create_graph=True$"):
        torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises(Exception, match="expected eager mode, got compiled code"):
        torch.compile(lambda x: layer.reduce(None, x), fullgraph=True, backend="eager")(x)


MEMORY = """
import resource, torch, fastrnn.torch
torch.set_num_threads(1)
T, H = 100_000, 128
layer, x = fastrnn.torch.RNN(1, H), torch.randn(T, 1, 1)
head = torch.nn.Linear(H, 1)
loss = lambda output, begin, end: (head(output) - x[begin:end]).pow(2).sum()
layer.reduce(loss, x[:2000])[0].backward()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
layer.reduce(loss, x)[0].backward()
print(peak() - before)
"""


@pytest.mark.skipif("sys.platform != 'linux'")
def test_training_over_100000_steps_takes_the_memory_of_few_states(torch: Any) -> None:
    """T = 100,000, B = 1, H = 128: the output alone would be 50,000 KiB; at most 5,000 more than a short call."""
    assert int(output_of(MEMORY)) <= 5_000


# ---- truncated BPTT


def test_truncated_bptt_carries_the_detached_state(torch: Any) -> None:
    """Together the pieces are one forward pass, to the bit; the gradient of each ends at its start."""
    import fastrnn

    for layer in (made(torch, batch_first=True), torch.nn.LSTM(3, 9)):
        x = torch.randn(2, 70, 3) if getattr(layer, "batch_first", False) else torch.randn(70, 2, 3)
        time = 1 if layer.batch_first else 0
        pieces = list(fastrnn.torch.truncated_bptt(layer, x, steps=32))
        assert [output.shape[time] for output, _ in pieces] == [32, 32, 6]
        whole, h_n = layer(x)
        assert torch.allclose(torch.cat([output for output, _ in pieces], time), whole, atol=1e-6)
        again = list(fastrnn.torch.truncated_bptt(layer, x.split(32, time)))
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(pieces, again, strict=True))
        (d_w,) = torch.autograd.grad(pieces[1][0].sum(), layer.weight_hh_l0)
        state = pieces[0][1]
        state = tuple(h.detach() for h in state) if isinstance(state, tuple) else state.detach()
        alone, _ = layer(x.split(32, time)[1], state)
        assert torch.equal(d_w, torch.autograd.grad(alone.sum(), layer.weight_hh_l0)[0])


def test_truncated_bptt_trains_and_learns_its_first_state(torch: Any) -> None:
    """Weights may change between pieces; hx is not detached. Bad steps raise at once."""
    import fastrnn

    layer = made(torch)
    hx = torch.zeros(1, 1, 9, requires_grad=True)
    optimizer = torch.optim.SGD([*layer.parameters(), hx], 0.1)
    for output, _ in fastrnn.torch.truncated_bptt(layer, torch.randn(90, 1, 3), hx, steps=30):
        optimizer.zero_grad()
        output.pow(2).sum().backward()
        optimizer.step()
    assert hx.abs().sum() > 0
    for stream, steps, error, words in (
        (torch.randn(9, 1, 3), None, TypeError, "int, got None"), (torch.randn(9, 1, 3), 0, ValueError, "at least 1"),
        ([torch.randn(9, 1, 3)], 3, TypeError, "None where stream is an iterable of pieces, got a value"),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^steps: expected {words}"):
            fastrnn.torch.truncated_bptt(layer, stream, steps=steps)
