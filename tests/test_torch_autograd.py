"""Gradients of fastrnn.torch.RNN: gradcheck, what is needed and no more, in-place edits, life time, transforms."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import pytest
from helpers.compare import normalised_error
from helpers.torch_layers import assert_close, inputs, results, twins


@pytest.fixture
def warned(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reason why torch.nn.RNN may compute has been said: it is not what these tests are about."""
    import fastrnn.torch.dispatch as dispatch

    class All(set[str]):
        def __contains__(self, _: object) -> bool:
            return True

    monkeypatch.setattr(dispatch, "_warned", All())


# ---- values


@pytest.mark.parametrize(
    ("kind", "options", "extra"),
    [
        ("batched", {}, None),
        ("batched", {"num_layers": 2, "bidirectional": True, "batch_first": True}, None),
        ("batched", {"bias": False}, None),
        ("single", {"num_layers": 2}, None),
        ("packed", {"bidirectional": True}, None),
        ("batched", {"bidirectional": True, "num_layers": 2}, "lengths"),
        ("batched", {"bidirectional": True, "batch_first": True}, "reset"),
    ],
)
def test_gradcheck(torch: Any, kind: str, options: dict[str, Any], extra: str | None) -> None:
    """Every element of every Jacobian, of output and h_n, in float64 (fast_mode=False)."""
    ours, _ = twins(torch, 3, 2, dtype=torch.float64, **options)
    x, hx, leaves = inputs(torch, ours, kind, 3, 2)
    how: dict[str, Any] = {}
    if extra == "lengths":
        how["lengths"] = torch.tensor([1, 3])
    elif extra == "reset":
        how["reset"] = torch.tensor([[False, True, False], [True, False, True]])

    def call(given: Any, state: Any, *_: Any) -> Any:
        if kind == "packed":
            given = torch.nn.utils.rnn.pack_padded_sequence(given, torch.tensor([2, 3]), enforce_sorted=False)
        output, h_n = ours(given, state, **how)
        return (output.data if kind == "packed" else output), h_n

    assert torch.autograd.gradcheck(call, (*leaves, *ours.parameters()), fast_mode=False)


def test_upstream_gradients_of_any_strides(torch: Any) -> None:
    """Expanded, transposed, only one of the two: as for a plain copy, and never modified."""
    ours, _ = twins(torch, 5, 7)
    x, hx, _ = inputs(torch, ours, "batched", 6, 4)
    for upstream in (
        torch.randn(1, 1, 7).expand(6, 4, 7),
        torch.randn(7, 4, 6).permute(2, 1, 0),
        torch.randn(6, 4, 14)[..., ::2],
    ):
        before = upstream.clone()
        got, want = (torch.autograd.grad(ours(x, hx)[0], [x, hx, *ours.parameters()], u) for u in (upstream, before))
        assert all(map(torch.equal, got, want))
        assert torch.equal(upstream, before)


# ---- what is needed


def test_only_what_is_needed_is_computed(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen weight's gradient is None, and not asked of the backend; nothing where nothing is needed."""
    import fastrnn.torch.dispatch as dispatch
    from fastrnn import _backends

    real, asked = _backends.get("auto"), []

    class Spy:
        rnn_forward = staticmethod(real.rnn_forward)

        @staticmethod
        def rnn_backward(*args: Any) -> Any:
            asked.append(set(args[8]))
            return real.rnn_backward(*args)

    monkeypatch.setattr(dispatch, "backend", lambda: Spy)
    ours, _ = twins(torch, 5, 7)
    x = torch.randn(6, 4, 5)
    flags = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b", "bias_hh_l0": "b"}
    for frozen in flags:
        ours.zero_grad()
        ours.requires_grad_(True)
        getattr(ours, frozen).requires_grad_(False)
        ours(x)[0].sum().backward()
        assert [n for n, p in ours.named_parameters() if p.grad is None] == [frozen]
    wanted = {"w_ih", "w_hh", "b"}
    assert asked == [wanted - {"w_ih"}, wanted - {"w_hh"}, wanted, wanted]
    ours.requires_grad_(False)
    asked.clear()
    assert not ours(x)[0].requires_grad
    ours(x.requires_grad_())[1].sum().backward()
    assert asked == [{"x"}]
    ours.requires_grad_(True)
    with torch.no_grad():
        assert not ours(x)[0].requires_grad
    with torch.inference_mode():
        assert ours(x)[0].is_inference()


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_loss_on_one_state_gives_torchs_zeros(torch: Any, row: int) -> None:
    """Gradients through one state of h_n: zeros, not None, for the layers and directions it does not depend on."""
    ours, stock = twins(torch, 5, 7, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    for layer in (ours, stock):
        layer(x)[1][row].pow(2).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert normalised_error(p.grad.numpy(), q.grad.numpy()) <= 1e-12, name
    assert not ours.weight_hh_l1_reverse.grad.any()


# ---- twice, in place


def test_backward_twice(torch: Any) -> None:
    """Raises as with torch.nn.RNN; with retain_graph the gradients are the same bits again."""
    ours, _ = twins(torch, 5, 7, 2)
    loss = ours(torch.randn(6, 4, 5))[0].pow(2).sum()
    first = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(ours.parameters()))
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("modified", ["weight_ih_l0", "weight_hh_l0", "input", "hx"])
def test_arguments_modified_in_place_raise(torch: Any, modified: str) -> None:
    for layer in twins(torch, 5, 7):
        x, hx, _ = inputs(torch, layer, "batched", 6, 4)
        given = {"input": (x * 1).clone(), "hx": (hx * 1).clone(), **dict(layer.named_parameters())}
        loss = layer(given["input"], given["hx"])[0].sum()
        with torch.no_grad():
            given[modified].add_(1)
        with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
            loss.backward()


def _edit_output(output: Any, h_n: Any) -> Any:
    output.add_(1.5)
    return output.pow(2).sum() + h_n.sum()


def _edit_a_view(output: Any, h_n: Any) -> Any:
    output[-1].mul_(3)
    return output.pow(2).sum() + h_n.pow(2).sum()


def _edit_by_hand(output: Any, h_n: Any) -> Any:
    loss = output.sum() + h_n.pow(2).sum()
    output.detach().zero_()
    return loss


def _edit_states(output: Any, h_n: Any) -> Any:
    h_n[0].mul_(2)
    h_n.add_(1)
    return output.sum() + h_n.pow(2).sum()


@pytest.mark.parametrize("edit", [_edit_output, _edit_a_view, _edit_by_hand, _edit_states])
@pytest.mark.parametrize("kind", ["batched", "single", "packed"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
def test_results_may_be_modified_in_place(torch: Any, options: dict[str, Any], kind: str, edit: Any) -> None:
    """Before backward, as with torch.nn.RNN: float64, <= 1e-12."""
    gradients = []
    for layer in twins(torch, 5, 7, dtype=torch.float64, **options):
        x, hx, leaves = inputs(torch, layer, kind, 6, 4)
        output, h_n = layer(x, hx)
        loss = edit(output.data if kind == "packed" else output, h_n)
        gradients.append(torch.autograd.grad(loss, [*leaves, *layer.parameters()]))
    for got, want in zip(*gradients, strict=True):
        assert normalised_error(got.numpy(), want.numpy()) <= 1e-12


def test_recomputation_gives_the_same_bits(torch: Any) -> None:
    """... and happens only where the output was modified."""
    import fastrnn.torch.dispatch as dispatch

    ours, _ = twins(torch, 33, 65, bidirectional=True)
    x, hx, leaves = inputs(torch, ours, "batched", 31, 9)
    upstream = torch.randn(31, 9, 130)
    real, made = dispatch.backend(), []

    class Spy:
        rnn_backward, empty = staticmethod(real.rnn_backward), staticmethod(real.empty)

        @staticmethod
        def rnn_forward(*args: Any, **options: Any) -> Any:
            made.append(1)
            return real.rnn_forward(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "backend", lambda: Spy)
        plain = torch.autograd.grad(ours(x, hx)[0], [*leaves, *ours.parameters()], upstream)
        assert len(made) == 2
        output, _ = ours(x, hx)
        output.add_(1)
        edited = torch.autograd.grad(output, [*leaves, *ours.parameters()], upstream)
        assert len(made) == 6
    assert all(map(torch.equal, plain, edited))


# ---- life time


def test_no_reference_cycles(torch: Any, no_collector: None) -> None:
    """The graph and the output's memory go with the last reference, with and without backward."""
    ours, _ = twins(torch, 5, 7, 2, bidirectional=True)
    for backward in (False, True):
        x = torch.randn(6, 4, 5).requires_grad_()
        output, h_n = ours(x)
        node, memory = weakref.ref(output.grad_fn), weakref.ref(output.untyped_storage())
        if backward:
            (output.sum() + h_n.sum()).backward()
        alive = weakref.ref(x)
        del output, h_n, x
        assert node() is None
        assert memory() is None
        assert alive() is None


def test_hooks_of_saved_tensors_see_all_and_may_free_it(torch: Any, no_collector: None) -> None:
    """The tape goes through torch.autograd.graph.saved_tensors_hooks: offloading and checkpoints save its memory."""
    ours, stock = twins(torch, 5, 7, 2, dtype=torch.float64)
    packed = []

    def pack(tensor: Any) -> Any:
        packed.append(tuple(tensor.shape))
        return tensor.numpy(force=True).copy()

    x, hx, leaves = inputs(torch, ours, "batched", 6, 4)
    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        output, _ = ours(x, hx)
    tape = weakref.ref(output.untyped_storage())
    loss = output.sum()
    del output
    assert packed.count((6, 4, 7)) == 3  # two tapes, and the first as the second layer's input
    assert tape() is None
    got = torch.autograd.grad(loss, [*leaves, *ours.parameters()])
    want = torch.autograd.grad(stock(x, hx)[0].sum(), [*leaves, *stock.parameters()])
    for g, w in zip(got, want, strict=True):
        assert normalised_error(g.numpy(), w.numpy()) <= 1e-12


@pytest.mark.parametrize("edit", [False, True])
def test_checkpoint(torch: Any, edit: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    gradients = []
    for layer, through in zip(twins(torch, 5, 7, 2, dropout=0.5, dtype=torch.float64), (True, False), strict=True):
        x, hx, leaves = inputs(torch, layer, "batched", 6, 4)

        def run(a: Any, b: Any, layer: Any = layer) -> Any:
            output, h_n = layer(a, b)
            return (output.mul_(2) if edit else output).pow(2).sum() + h_n.sum()

        torch.manual_seed(9)
        loss = checkpoint(run, x, hx, use_reentrant=False) if through else run(x, hx)
        gradients.append(torch.autograd.grad(loss, [*leaves, *layer.parameters()]))
    for got, want in zip(*gradients, strict=True):
        assert normalised_error(got.numpy(), want.numpy()) <= 1e-12


def test_anomaly_mode(torch: Any) -> None:
    ours, stock = twins(torch, 5, 7, dtype=torch.float64)
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        assert_close(results(torch, ours, "batched", 6, 4), results(torch, stock, "batched", 6, 4), 1e-12)


def test_concurrent_threads(torch: Any) -> None:
    """Eight Python threads, forward and backward at once: each gets its bits."""
    from concurrent.futures import ThreadPoolExecutor

    ours, _ = twins(torch, 5, 7, 2)
    xs = [torch.randn(6, 4, 5) for _ in range(8)]

    def run(x: Any) -> Any:
        return torch.autograd.grad(ours(x)[0].pow(2).sum(), list(ours.parameters()))

    want = [run(x) for x in xs]
    with ThreadPoolExecutor(8) as pool:
        got = [list(pool.map(run, xs)) for _ in range(10)]
    for one in got:
        for g, w in zip(one, want, strict=True):
            assert all(map(torch.equal, g, w))


# ---- torch.jit.trace


def test_jit_trace(torch: Any, warned: None) -> None:
    ours, _ = twins(torch, 5, 7)
    x = torch.randn(6, 4, 5)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), warnings.catch_warnings():
            for category in (DeprecationWarning, torch.jit.TracerWarning):
                warnings.simplefilter("ignore", category)
            traced = torch.jit.trace(ours, (x,), check_trace=False)
            assert normalised_error(traced(2 * x)[0].detach().numpy(), ours(2 * x)[0].detach().numpy()) <= 1e-6
