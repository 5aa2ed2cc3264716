"""fastrnn.torch.RNN is torch.nn.RNN: parameters, results, dropout, layouts, lengths and reset, plumbing."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from helpers.compare import normalised_error, rms
from helpers.processes import output_of, run_python
from helpers.torch_layers import assert_close, inputs, name_of, results, twins

KINDS = ("batched", "single", "packed_sorted", "packed")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"nonlinearity": "relu", "bias": False},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 3, "bidirectional": True, "bias": False},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.4, "batch_first": True},
    {"num_layers": 3, "dropout": 0.5, "nonlinearity": "relu"},
    {"num_layers": 2, "dropout": 1.0},
)


@pytest.fixture
def on_backend(backend: str, torch: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """fastrnn.torch computes on this backend."""
    import fastrnn.torch.dispatch as dispatch
    from fastrnn import _backends

    monkeypatch.setattr(dispatch, "backend", lambda: _backends.get(backend))
    return backend


@pytest.fixture
def fresh_warnings(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if nothing had been warned of yet."""
    import fastrnn.torch.dispatch as dispatch

    monkeypatch.setattr(dispatch, "_warned", set())
    return dispatch


# ---- results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_equals_torch(on_backend: str, torch: Any, options: dict[str, Any], kind: str) -> None:
    """Output, h_n and every gradient in float64 <= 1e-12 normalised; dropout draws the same elements."""
    ours, stock = twins(torch, 5, 7, dtype=torch.float64, **options)
    for seed, hx in ((1, True), (2, False)):
        got = results(torch, ours, kind, 6, 4, seed, hx)
        assert_close(got, results(torch, stock, kind, 6, 4, seed, hx), 1e-12, f"seed {seed}")


@pytest.mark.parametrize(
    ("T", "B", "I", "H"), [(1, 1, 1, 1), (1, 3, 9, 17), (33, 1, 8, 63), (7, 0, 5, 9), (9, 17, 3, 31)]
)
@pytest.mark.parametrize("options", OPTIONS[:5], ids=name_of)
def test_equals_torch_at_odd_sizes(torch: Any, options: dict[str, Any], T: int, B: int, I: int, H: int) -> None:
    ours, stock = twins(torch, I, H, dtype=torch.float64, **options)
    assert_close(results(torch, ours, "batched", T, B), results(torch, stock, "batched", T, B), 1e-12)
    for layer in (ours, stock):
        x, hx, _ = inputs(torch, layer, "batched", T, B)
        with torch.no_grad():
            output, h_n = layer(x, hx)
        if layer is ours:
            want = output, h_n
    assert normalised_error(want[0].numpy(), output.numpy()) <= 1e-13
    assert normalised_error(want[1].numpy(), h_n.numpy()) <= 1e-13


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=name_of)
def test_float32_error_is_no_worse_than_torch(torch: Any, options: dict[str, Any]) -> None:
    """RMS error of every result against float64, over four seeds: together at most 1.35 times torch.nn.RNN's (1.2 for
    noise, the rest where an instruction set has no FMA)."""
    ratios = []
    for seed in range(4):
        ours, stock = twins(torch, 33, 65, seed=seed, **options)
        exact = results(torch, copy.deepcopy(stock).double(), "batched", 31, 9, seed)
        got, theirs = (results(torch, layer, "batched", 31, 9, seed) for layer in (ours, stock))
        ratios.append([rms(got[name] - exact[name]) / rms(theirs[name] - exact[name]) for name in exact])
    assert np.sqrt(np.mean(np.square(ratios))) <= 1.35, ratios


@pytest.mark.parametrize("options", OPTIONS[2:], ids=name_of)
def test_a_seed_gives_torchs_parameters_dropout_and_stream(torch: Any, options: dict[str, Any]) -> None:
    """Bit for bit: initial values, what torch.rand gives after them, and after a forward pass in training."""
    after = []
    ours, stock = twins(torch, 5, 7, **options)
    for (name, p), (stock_name, q) in zip(ours.named_parameters(), stock.named_parameters(), strict=True):
        assert name == stock_name
        assert torch.equal(p, q), name
    for layer in (ours, stock):
        torch.manual_seed(3)
        type(layer)(5, 7, **options)
        after.append(torch.rand(5))
        layer(torch.randn(6, 4, 5))
        after.append(torch.rand(5))
    assert torch.equal(after[0], after[2])
    assert torch.equal(after[1], after[3])


@pytest.mark.parametrize("first", [False, True])
def test_dropout_zeroes_the_same_elements(torch: Any, first: bool) -> None:
    """Seen through a second layer that passes on what it gets: relu, w_ih = 1, w_hh = 0. Only while training; h_n is
    not dropped; layer.dropout may change."""
    ours, stock = twins(torch, 5, 7, 2, nonlinearity="relu", bias=False, batch_first=first, dropout=0.5)
    seen = []
    for layer in (ours, stock):
        with torch.no_grad():
            layer.weight_ih_l1.copy_(torch.eye(7))
            layer.weight_hh_l1.zero_()
            layer.weight_hh_l0.zero_()
            layer.weight_ih_l0.abs_()
        x = torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(0)) + 0.1
        for probability, training in ((0.5, True), (0.9, True), (1.0, True), (0.0, True), (0.5, False)):
            layer.dropout = probability
            torch.manual_seed(5)
            output, h_n = layer.train(training)(x)
            assert bool((h_n[0] > 0).all())
            seen.append((output > 0).numpy())
    for got, want in zip(seen[:5], seen[5:], strict=True):
        assert (got == want).all()
    assert not seen[2].any()
    assert 0.3 < seen[0].mean() < 0.7
    assert seen[3].all()
    assert seen[4].all()


@pytest.mark.parametrize("options", OPTIONS[:6], ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_are_torchs(torch: Any, options: dict[str, Any], kind: str) -> None:
    """Types, shapes and strides of output and h_n; h_n contiguous, in its own memory; packed indices passed on."""
    for grad in (False, True):
        made = []
        for layer in twins(torch, 5, 7, **options):
            x, hx, _ = inputs(torch, layer, kind, 6, 4)
            with torch.set_grad_enabled(grad):
                output, h_n = layer(x, hx)
            if kind.startswith("packed"):
                assert output.batch_sizes is x.batch_sizes
                assert output.sorted_indices is x.sorted_indices
                assert output.unsorted_indices is x.unsorted_indices
                output = output.data
            assert h_n.is_contiguous()
            assert output.untyped_storage().data_ptr() != h_n.untyped_storage().data_ptr()
            made.append((output.shape, output.stride(), h_n.shape, h_n.stride(), output.requires_grad, output.dtype))
        assert made[0] == made[1]


def test_inputs_of_any_strides(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transposed, expanded, sliced, negated lazily, misaligned: the bits of a plain copy, and nothing is modified.
    Misaligned data alone is copied: a backend never sees any."""
    import fastrnn.torch.dispatch as dispatch
    from fastrnn import _backends

    class Spy:
        @staticmethod
        def rnn_forward(*args: Any, **options: Any) -> Any:
            assert all(a.flags.aligned for a in args[:6])
            return _backends.get("auto").rnn_forward(*args, **options)

    monkeypatch.setattr(dispatch, "backend", lambda: Spy)
    ours, _ = twins(torch, 5, 7)
    base = torch.randn(6, 4, 10)
    odd = np.zeros(6 * 4 * 5 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(6, 4, 5)
    odd[...] = base[..., :5]
    views = [
        base[..., ::2], base.permute(2, 1, 0)[:6, :, :5], base[:1, :, :5].expand(6, 4, 5), torch.from_numpy(odd),
        torch.imag(torch.complex(base, base)[..., :5].conj()),
    ]  # fmt: skip
    for x in views:
        hx = x[0, :, :1].expand(4, 7)[None]
        before = x.clone(), hx.clone()
        output, h_n = ours(x, hx)
        want = ours(x.clone().contiguous(), hx.clone().contiguous())
        assert torch.equal(output, want[0])
        assert torch.equal(h_n, want[1])
        assert torch.equal(x, before[0])
        assert torch.equal(hx, before[1])


def test_nothing_is_copied(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend reads input, hx and parameters where they are, and results and gradients are its very arrays."""
    import fastrnn.torch.dispatch as dispatch
    from fastrnn import _backends

    real, seen = _backends.get("auto"), {}

    class Spy:
        @staticmethod
        def rnn_forward(*args: Any, **options: Any) -> Any:
            seen["forward"] = [a.ctypes.data for a in args[:6]]
            output, h_n = real.rnn_forward(*args, **options)
            seen["results"] = [output.ctypes.data, h_n.ctypes.data]
            return output, h_n

        @staticmethod
        def rnn_backward(*args: Any) -> Any:
            seen["backward"] = [a.ctypes.data for a in args[:7]]
            gradients = real.rnn_backward(*args)
            seen["gradients"] = [g.ctypes.data for g in gradients]
            return gradients

    monkeypatch.setattr(dispatch, "backend", lambda: Spy)
    ours, _ = twins(torch, 5, 7, batch_first=True)
    x, hx, _ = inputs(torch, ours, "batched", 6, 4)
    weights = list(ours.parameters())
    output, h_n = ours(x, hx)
    upstream = [torch.randn_like(output), torch.randn_like(h_n)]
    assert seen["forward"] == [t.data_ptr() for t in (x, hx, *weights)]
    assert seen["results"] == [output.data_ptr(), h_n.data_ptr()]
    torch.autograd.backward((output, h_n), upstream)
    assert seen["backward"] == [t.data_ptr() for t in (*upstream, output, x, hx, *weights[:2])]
    grads = [t.grad.data_ptr() for t in (x, hx, *weights[:3])]
    assert seen["gradients"][2:] == grads[2:] or seen["gradients"][2:4] == grads[2:4]
    assert weights[3].grad.data_ptr() != weights[2].grad.data_ptr()


# ---- lengths and reset


@pytest.mark.parametrize("options", OPTIONS[:6], ids=name_of)
@pytest.mark.parametrize("integer", ["int32", "int64"])
def test_lengths_equal_packing(on_backend: str, torch: Any, options: dict[str, Any], integer: str) -> None:
    """Positive lengths in any order: what PackedSequence gives, gradients too (<= 1e-12); NaN beyond is not read."""
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    T, B = 6, 5
    ours, stock = twins(torch, 5, 7, dtype=torch.float64, **{**options, "dropout": 0.0})
    lengths = torch.tensor([3, 6, 1, 6, 2])
    first = ours.batch_first
    beyond = torch.arange(T)[:, None] >= lengths
    x, hx, _ = inputs(torch, ours, "batched", T, B)
    mask = (beyond.T if first else beyond)[..., None]
    packed, _ = stock(pack_padded_sequence(x, lengths, first, enforce_sorted=False), hx)
    packed = stock(pack_padded_sequence(x, lengths, first, enforce_sorted=False), hx)
    want = pad_packed_sequence(packed[0], first)[0], packed[1]
    got = ours(x.masked_fill(mask, float("nan")), hx, lengths=lengths.to(getattr(torch, integer)))
    upstream = [torch.randn_like(t) for t in want]
    gradients = []
    for layer, made in ((ours, got), (stock, want)):
        gradients.append(torch.autograd.grad(made, [x, hx, *layer.parameters()], upstream))
    for g, w in zip((*got, *gradients[0]), (*want, *gradients[1]), strict=True):
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= 1e-12
    assert not got[0].masked_select(mask).any()


def test_rows_of_length_zero(torch: Any) -> None:
    """h_n is hx, the output 0, the gradient of hx that of h_n, that of the input 0; nothing else is touched."""
    ours, _ = twins(torch, 5, 7, bidirectional=True)
    x, hx, _ = inputs(torch, ours, "batched", 6, 4)
    lengths = torch.tensor([0, 6, 0, 2])
    output, h_n = ours(x, hx, lengths=lengths)
    assert torch.equal(h_n[:, lengths == 0], hx[:, lengths == 0])
    assert not output[:, lengths == 0].any()
    assert torch.equal(output[:, 1], ours(x[:, 1:2].contiguous(), hx[:, 1:2].contiguous())[0][:, 0])
    upstream = torch.randn_like(h_n)
    d_x, d_hx = torch.autograd.grad(h_n, (x, hx), upstream)
    assert torch.equal(d_hx[:, lengths == 0], upstream[:, lengths == 0])
    assert not d_x[:, lengths == 0].any()
    assert not d_x[2:, 3].any()


@pytest.mark.parametrize("first", [False, True])
def test_reset_equals_a_restart(on_backend: str, torch: Any, first: bool) -> None:
    """Output, and the gradients of it, of two sequences one after the other (<= 1e-12); a later change is not seen."""
    ours, stock = twins(torch, 5, 7, 2, batch_first=first, dtype=torch.float64)
    x, hx, _ = inputs(torch, ours, "batched", 6, 4)
    reset = torch.zeros(6, 4, dtype=torch.bool)
    reset[2] = True
    reset = reset.T.contiguous() if first else reset
    output, h_n = ours(x, hx, reset=reset)
    reset.fill_(True)
    parts = x.split([2, 4], 1 if first else 0)
    want = torch.cat([stock(parts[0], hx)[0], stock(parts[1])[0]], 1 if first else 0)
    upstream = torch.randn_like(want)
    got_d, want_d = (
        torch.autograd.grad(o, [x, hx, *layer.parameters()], upstream) for o, layer in ((output, ours), (want, stock))
    )
    for g, w in zip((output, h_n, *got_d), (want, stock(parts[1])[1], *want_d), strict=True):
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= 1e-12


def test_reset_of_one_sequence(torch: Any) -> None:
    ours, _ = twins(torch, 5, 7)
    x, hx, _ = inputs(torch, ours, "single", 6, 1)
    reset = torch.tensor([False, False, True, False, False, False])
    assert torch.equal(ours(x, hx, reset=reset)[0][2:], ours(x[2:].clone())[0])


# ---- a module among modules


def test_fastrnn_torch_is_imported_when_it_is_asked_for(torch: Any) -> None:
    code = "import sys, fastrnn; a = 'torch' in sys.modules; fastrnn.torch.RNN(2, 3); print(a, 'torch' in sys.modules)"
    assert output_of(code) == "False True"
    assert output_of("import fastrnn.torch; from fastrnn.torch import RNN; print(fastrnn.torch.RNN is RNN)") == "True"


def test_without_torch_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['torch'] = None; import fastrnn; fastrnn.torch"
    result = run_python(code)
    assert "ImportError: fastrnn.torch: expected PyTorch to be installed: pip install 'fastrnn[torch]'" in result.stderr


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_attributes_repr_and_state_dict_are_torchs(torch: Any, options: dict[str, Any]) -> None:
    ours, stock = twins(torch, 5, 7, **options)
    assert repr(ours) == repr(stock)
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert [p.shape for p in ours.parameters()] == [p.shape for p in stock.parameters()]
    for name in ("mode", "nonlinearity", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"):
        assert getattr(ours, name) == getattr(stock, name)
    for name in ("bidirectional", "proj_size", "_all_weights", "_flat_weights_names", "__constants__"):
        assert getattr(ours, name) == getattr(stock, name)
    assert isinstance(ours, torch.nn.RNNBase)
    assert not isinstance(ours, torch.nn.RNN)
    for a, b in ((ours, stock), (stock, ours)):
        with torch.no_grad():
            for p in a.parameters():
                p.uniform_(-0.1, 0.1)
        b.load_state_dict(a.state_dict(), strict=True, assign=True)
        assert_close(results(torch, ours.eval(), "batched", 5, 3), results(torch, stock.eval(), "batched", 5, 3), 1e-5)


def test_the_signature_is_visible(torch: Any) -> None:
    import inspect

    import fastrnn

    documented = "(input_size, hidden_size, num_layers=1, nonlinearity='tanh', bias=True, batch_first=False, "
    documented += (
        "dropout=0.0, bidirectional=False, device=None, dtype=None, *, recurrent_dropout=0.0, input_dropout=0.0, "
    )
    documented += "zoneout=0.0, alpha=None)"
    assert str(inspect.signature(fastrnn.torch.RNN)) == documented
    skipped = torch.nn.utils.skip_init(fastrnn.torch.RNN, 5, 7)
    assert skipped.weight_ih_l0.device.type == "cpu"


def _through_torch_save(torch: Any, layer: Any) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "old_state"])
def test_copies_are_equal_and_independent(torch: Any, how: str) -> None:
    ours, _ = twins(torch, 5, 7, 2, bidirectional=True)
    x = torch.randn(6, 4, 5)
    want = ours(x)[0].detach().clone()
    if how == "deepcopy":
        other = copy.deepcopy(ours)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(ours))
    elif how == "torch.save":
        other = _through_torch_save(torch, ours)
    else:
        state = ours.__getstate__()
        del state["proj_size"]
        other = type(ours).__new__(type(ours))
        other.__setstate__(copy.deepcopy(state))
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
    assert torch.equal(other(x)[0], want)
    assert not ours(x)[0].any()


def test_double_and_back_and_meta(torch: Any) -> None:
    ours, stock = twins(torch, 5, 7)
    for layer in (ours, stock):
        layer.double()
    assert_close(results(torch, ours, "batched", 5, 3), results(torch, stock, "batched", 5, 3), 1e-12)
    empty = copy.deepcopy(ours).to("meta").to_empty(device="cpu")
    empty.load_state_dict(ours.state_dict())
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    assert torch.equal(empty(x)[0], ours(x)[0])
    ours.float()
    assert ours(x.float())[0].dtype == torch.float32


def _adapt(torch: Any, layer: Any, how: str) -> None:
    from torch.nn.utils import parametrizations, prune

    torch.manual_seed(11)
    if how == "weight_norm":
        parametrizations.weight_norm(layer, "weight_hh_l0")
    elif how == "orthogonal":
        parametrizations.orthogonal(layer, "weight_hh_l0")
    elif how == "spectral_norm":
        parametrizations.spectral_norm(layer, "weight_hh_l0")
    elif how == "legacy_weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.nn.utils.weight_norm(layer, "weight_hh_l0")
    elif how == "prune":
        prune.l1_unstructured(layer, "weight_ih_l0", 0.5)
    elif how == "tied":
        layer.weight_hh_l0_reverse = layer.weight_hh_l0
    elif how == "frozen":
        layer.weight_ih_l0.requires_grad_(False)
    elif how == "transposed":
        layer.weight_hh_l0.data = layer.weight_hh_l0.data.T


@pytest.mark.parametrize(
    "how", ["weight_norm", "orthogonal", "spectral_norm", "legacy_weight_norm", "prune", "tied", "frozen", "transposed"]
)
def test_weights_that_others_make(torch: Any, how: str) -> None:
    """Twice: the second time after a step, so that no weight is stale."""
    ours, stock = twins(torch, 5, 7, bidirectional=True, dtype=torch.float64)
    made: list[dict[str, Any]] = []
    for layer in (ours, stock):
        _adapt(torch, layer, how)
        torch.manual_seed(5)
        x, got = torch.randn(6, 4, 5, dtype=torch.float64), {}
        for step in range(2):
            layer.zero_grad()
            output, h_n = layer(x)
            (output.pow(2).sum() + h_n.sum()).backward()
            got[f"output {step}"] = output.detach().numpy()
            for name, p in layer.named_parameters():
                assert (p.grad is None) == (not p.requires_grad)
                if p.grad is not None:
                    got[f"{name} {step}"] = p.grad.numpy().copy()
                    p.data.add_(p.grad, alpha=-0.01)
        made.append(got)
    assert_close(made[0], made[1], 1e-10)
    assert len(list(ours.parameters())) == (7 if how == "tied" else 9 if how == "weight_norm" or "legacy" in how else 8)


def test_functional_call_and_hooks(torch: Any) -> None:
    ours, stock = twins(torch, 5, 7, dtype=torch.float64)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    other = {name: torch.randn_like(p) / 3 for name, p in ours.named_parameters()}
    before = ours(x)[0]
    got, want = (torch.func.functional_call(layer, other, (x,))[0] for layer in (ours, stock))
    assert normalised_error(got.numpy(), want.numpy()) <= 1e-13
    assert torch.equal(ours(x)[0], before)
    calls = []
    ours.register_forward_pre_hook(lambda *_: calls.append("pre"))
    ours.register_forward_hook(lambda *_: calls.append("forward"))
    ours.register_full_backward_hook(lambda *_: calls.append("backward"))
    ours.weight_hh_l0.register_hook(lambda g: calls.append("weight") or 2 * g)
    output, _ = ours(x.requires_grad_())
    output.register_hook(lambda _: calls.append("output"))
    output.retain_grad()
    output.sum().backward()
    assert sorted(calls) == ["backward", "forward", "output", "pre", "weight"]
    assert output.grad is not None
    stock(x)[0].sum().backward()
    assert normalised_error(ours.weight_hh_l0.grad.numpy(), 2 * stock.weight_hh_l0.grad.numpy()) <= 1e-12


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_are_torchs(torch: Any, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Forward and backward, whatever fastrnn.set_num_threads says, which stays as it was."""
    import fastrnn
    import fastrnn.torch.dispatch as dispatch
    from fastrnn import _backends

    real, seen = _backends.get("auto"), []

    class Spy:
        @staticmethod
        def rnn_forward(*args: Any, **options: Any) -> Any:
            seen.append(fastrnn.get_num_threads())
            return real.rnn_forward(*args, **options)

        @staticmethod
        def rnn_backward(*args: Any) -> Any:
            seen.append(fastrnn.get_num_threads())
            return real.rnn_backward(*args)

    monkeypatch.setattr(dispatch, "backend", lambda: Spy)
    before = torch.get_num_threads(), fastrnn.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with fastrnn.threads(7):
            ours, _ = twins(torch, 5, 7)
            ours(torch.randn(6, 4, 5))[0].sum().backward()
            assert fastrnn.get_num_threads() == 7
    finally:
        torch.set_num_threads(before[0])
    assert seen == [threads, threads]
    assert fastrnn.get_num_threads() == before[1]


# ---- where torch.nn.RNN computes


def test_other_dtypes_and_devices_run_on_torch_and_say_so_once(torch: Any, fresh_warnings: Any) -> None:
    cases = {
        "for tensors of torch.complex64": {"dtype": torch.complex64},
        "for tensors on device meta": {"device": "meta"},
    }
    for words, how in cases.items():
        ours, stock = twins(torch, 5, 7, **how)
        x = torch.randn(6, 4, 5).to(**how)
        with pytest.warns(RuntimeWarning, match=f"computes {words}. FASTRNN_DISABLE=1"):
            got = ours(x)
        want = stock(x)
        ours(x)  # an error if it warned again
        for g, w in zip(got, want, strict=True):
            assert g.dtype == w.dtype
            assert g.device == w.device
            if g.device.type == "cpu":
                assert torch.equal(g, w)
        match = rf"^lengths: expected None where torch.nn.RNN computes \({words}"
        with pytest.raises(NotImplementedError, match=match):
            ours(x, lengths=torch.tensor([1, 2, 3, 4]))


def test_disable_runs_on_torch_without_a_word(torch: Any) -> None:
    code = """
import warnings, torch, fastrnn
warnings.simplefilter("error")
layer = fastrnn.torch.RNN(5, 7)
output, _ = layer(torch.randn(6, 4, 5))
print(type(output.grad_fn).__name__)
"""
    assert "Rnn" not in output_of(code, FASTRNN_DISABLE="1")
    assert output_of(code, FASTRNN_DISABLE="0") == "RnnLayerBackward"
    result = run_python(code, FASTRNN_DISABLE="yes")
    assert "ValueError: FASTRNN_DISABLE: expected 0 or 1, got 'yes'" in result.stderr


def test_without_a_fast_backend_torch_computes_and_says_so(torch: Any) -> None:
    code = """
import sys, warnings, torch, fastrnn
from fastrnn import _backends
for name in {n for d, n in _backends._FILES if d == "cpu" and n != "numpy"}:
    sys.modules["fastrnn._backends." + _backends._FILES["cpu", name]] = None
layer = fastrnn.torch.RNN(5, 7)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    output = [layer(torch.randn(6, 4, 5))[0] for _ in range(2)][1]
print(type(output.grad_fn).__name__, len(caught), caught[0].message)
"""
    words = output_of(code).split(maxsplit=2)
    assert words[0] != "RnnLayerBackward"
    assert words[1] == "1"
    assert "computes where no fast backend is available ('cpp' is not available: " in words[2]
    chosen = output_of(
        code.split("with warnings")[0] + "print(type(layer(torch.ones(6, 4, 5))[0].grad_fn).__name__)",
        FASTRNN_BACKEND="numpy",
    )
    assert chosen == "RnnLayerBackward"


# ---- a model


def test_a_model_on_digits_learns_alike(torch: Any) -> None:
    """Two layers on the rows of handwritten digits, Adam, 60 steps in float32: the losses depart from those of a
    float64 run at most three times as far as torch.nn.RNN's do, and fall below a third."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.from_numpy(digits.images[:600] / 16).float()
    target = torch.from_numpy(digits.target[:600]).long()
    curves = {}
    for name, dtype in (("ours", torch.float32), ("stock", torch.float32), ("exact", torch.float64)):
        rnn = twins(torch, 8, 32, 2, batch_first=True)[name != "ours"]
        torch.manual_seed(1)
        model = torch.nn.ModuleList([rnn, torch.nn.Linear(32, 10)]).to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for step in range(60):
            rows = slice(100 * (step % 6), 100 * (step % 6 + 1))
            loss = torch.nn.functional.cross_entropy(model[1](model[0](x[rows].to(dtype))[1][-1]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves[name] = np.array(losses)
    ours, stock = (np.abs(curves[name] - curves["exact"]).max() for name in ("ours", "stock"))
    assert ours <= max(3 * stock, 1e-5), (ours, stock)
    assert curves["ours"][-6:].mean() < curves["ours"][0] / 3
