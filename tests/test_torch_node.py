"""The compiled node of fastrnn.torch: what a recorded call promises, by C++ as by Python, to the same bits."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from helpers import torch_calls, torch_node
from helpers.cases import SEED
from helpers.torch_layers import cell_results, results, twins


@pytest.fixture(params=["python", "node"])
def node(request: Any, torch: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the node records; all tests run both ways."""
    torch_node.use(monkeypatch, request.param == "node")
    return bool(request.param == "node")


@pytest.fixture(params=["layer", "step"])
def call(request: Any, torch: Any) -> Callable[..., Any]:
    """A module, x, h_0 and what it makes of them: output and h_n of a layer, the state of a cell."""
    import fastrnn

    def make(T: int = 4, B: int = 3, I: int = 5, H: int = 7, dtype: Any = None, **options: Any) -> Any:
        torch.manual_seed(SEED)
        layer = request.param == "layer"
        kind = fastrnn.torch.RNN if layer else fastrnn.torch.RNNCell
        module = kind(I, H, dtype=dtype, **options)
        x = torch.randn(*([T] if layer else []), B, I, dtype=dtype, requires_grad=True)
        h = torch.randn(*([1] if layer else []), B, H, dtype=dtype, requires_grad=True)
        return module, x, h, lambda x=x, h=h: module(x, h) if layer else (module(x, h),)

    return make


def both_ways(run: Callable[[], Any]) -> tuple[Any, Any]:
    """What run returns by Python and by the node."""
    made = []
    for on in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            torch_node.use(patch, on)
            made.append(run())
    return made[0], made[1]


def assert_alike(torch: Any, got: Any, want: Any) -> None:
    """The same tensors, and None at the same places."""
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            assert torch.equal(g, w)
            assert (g.dtype, g.shape) == (w.dtype, w.shape)
            assert g.numel() == 0 or g.stride() == w.stride()


# ---- the same bits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"nonlinearity": "relu"}, {"bias": False}], ids=str)
@pytest.mark.parametrize(("T", "B", "I", "H"), [(1, 1, 1, 1), (1, 3, 17, 33), (7, 2, 9, 31), (20, 65, 63, 129)])
def test_the_bits_of_python(torch: Any, T: int, B: int, I: int, H: int, options: dict[str, Any], dtype: str) -> None:
    """Output, h_n, all gradients; with hx and without; of RNN and RNNCell."""
    import fastrnn

    torch.manual_seed(SEED)
    kind = getattr(torch, dtype)
    layer = fastrnn.torch.RNN(I, H, dtype=kind, **options)
    cell = fastrnn.torch.RNNCell(I, H, dtype=kind, **options)
    for hx in (True, False):
        for run in (
            lambda hx=hx: results(torch, layer, "batched", T, B, hx=hx),
            lambda hx=hx: results(torch, layer, "single", T, B, hx=hx),
            lambda hx=hx: cell_results(torch, cell, B, hx=hx),
        ):
            want, got = both_ways(run)
            assert list(got) == list(want)
            for name in want:
                assert got[name].tobytes() == want[name].tobytes(), name
                assert got[name].shape == want[name].shape


def test_an_empty_batch(torch: Any, call: Any) -> None:
    module, x, h, run = call(B=0)
    leaves = [x, h, *module.parameters()]
    want, got = both_ways(lambda: torch.autograd.grad([made.sum() for made in run()], leaves))
    assert_alike(torch, got, want)


def test_layers_on_top_of_one_another_use_it(torch: Any) -> None:
    layers, _ = twins(torch, 5, 7, 3, dropout=0.5)
    want, got = both_ways(lambda: list(results(torch, layers, "batched", 6, 4).values()))
    assert all(g.tobytes() == w.tobytes() for g, w in zip(got, want, strict=True))


def test_what_records(torch: Any, node: bool, call: Any) -> None:
    """The node where it is on; grad_fn bears the name that it has by Python; nothing is recorded without need."""
    module, x, h, run = call()
    output = run()[0]
    assert torch_node.recorded_by_node(output) == node
    name = "RnnLayerBackward" if x.dim() == 3 else "StepBackward"
    assert type(output.grad_fn).__name__ == name
    assert repr(output).endswith(f"grad_fn=<{name}>)")
    assert output.is_leaf is False
    assert len([edge for edge, _ in output.grad_fn.next_functions if edge is not None]) == 6
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            bare = run()
        assert not bare[0].requires_grad
        assert bare[0].is_inference() == (mode is torch.inference_mode)
        assert all(map(torch.equal, bare, run()))
    with torch.inference_mode(), torch.enable_grad(), pytest.raises(RuntimeError, match="Inference tensors"):
        run()
    module.requires_grad_(False)
    assert not run(x.detach(), h.detach())[0].requires_grad


# ---- what is left to Python


@pytest.mark.parametrize("which", ["x", "h", "w_ih", "w_hh"])
@pytest.mark.parametrize("how", ["transposed", "negated", "misaligned"])
def test_what_is_not_plain_memory_is_left_to_python(torch: Any, call: Any, how: str, which: str) -> None:
    module, x, h, run = call(B=4, I=4, H=4)

    def odd(value: Any) -> Any:
        value = value.detach()
        if how == "transposed":
            return value.mT
        if how == "negated":
            return torch._neg_view(value)
        return _misaligned(torch, value)

    given = {"x": x, "h": h}
    if which in given:
        given[which] = odd(given[which]).requires_grad_()
    else:
        parameter = getattr(module, f"weight_{which[2:]}{'_l0' if x.dim() == 3 else ''}")
        parameter.data = odd(parameter)

    def derive() -> Any:
        made = run(**given)
        assert not torch_node.recorded_by_node(made[0])
        return [
            *made,
            *torch.autograd.grad([each.sin().sum() for each in made], [*given.values(), *module.parameters()]),
        ]

    want, got = both_ways(derive)
    assert_alike(torch, got, want)


def _misaligned(torch: Any, value: Any) -> Any:
    raw = bytearray(b"\0" + value.contiguous().numpy(force=True).tobytes())
    return torch.frombuffer(raw, dtype=value.dtype, offset=1).view(value.shape)


@pytest.mark.parametrize("where", ["grad", "vmap", "jvp", "mode", "mode in backward", "autocast"])
def test_transforms_and_modes(torch: Any, own_route: None, call: Any, where: str) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen[-1].extend([str(function)] if function.namespace == "fastrnn" else [])
            return function(*args, **(kwargs or {}))

    seen: list[list[str]] = []
    module, x, h, run = call()
    value = lambda x: run(x)[0].pow(2).sum()  # noqa: E731

    def derive() -> Any:
        if where == "grad":
            return [torch.func.grad(value)(x)]
        if where == "vmap":
            return [torch.vmap(torch.func.grad(value))(torch.stack([x.detach(), x.detach().sin()]))]
        if where == "jvp":
            return torch.func.jvp(value, (x.detach(),), (x.detach().sin(),))
        if where == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return torch.autograd.grad(value(x), [x, *module.parameters()])
        seen.append([])
        with Mode() if where == "mode" else nullcontext():
            loss = value(x)
        with Mode():
            return torch.autograd.grad(loss, [x, *module.parameters()])

    want, got = both_ways(derive)
    assert_alike(torch, got, want)
    assert seen[:1] == seen[1:]  # of fastrnn's operators


# ---- what comes from above


@pytest.mark.parametrize("through", ["output", "h_n", "both"])
def test_gradients_through_one_result(torch: Any, node: bool, through: str) -> None:
    ours, stock = twins(torch, 5, 7, dtype=torch.float64)
    found = []
    for layer in (ours, stock):
        torch.manual_seed(SEED)
        x, h = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((6, 4, 5), (1, 4, 7)))
        output, h_n = layer(x, h)
        loss = sum(made.sin().sum() for made, name in ((output, "output"), (h_n, "h_n")) if through in (name, "both"))
        found.append(torch.autograd.grad(loss, [x, h, *layer.parameters()]))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_any_strides_from_above(torch: Any, call: Any) -> None:
    """Expanded, transposed, negated lazily, misaligned, with gaps: the bits of the same values in order."""
    module, x, h, run = call(T=5, B=5, I=3, H=5)
    made, leaves = run(), [x, h, *module.parameters()]
    square = [torch.randn_like(each) for each in made]
    for odd in (
        [each.mT for each in square],
        [each.flip(0)[..., :1, :1].expand(each.shape) for each in square],
        [torch._neg_view(each) for each in square],
        [_misaligned(torch, each) for each in square],
        [each[..., ::2] for each in (torch.randn(*each.shape[:-1], 10) for each in square)],
    ):
        plain = [each.clone(memory_format=torch.contiguous_format).resolve_neg() for each in odd]
        want, _ = both_ways(lambda plain=plain: torch.autograd.grad(run(), leaves, plain))
        _, got = both_ways(lambda odd=odd: torch.autograd.grad(run(), leaves, odd))
        assert_alike(torch, got, want)


# ---- what is computed


def watch(torch: Any, patch: pytest.MonkeyPatch) -> list[Any]:
    """Of each call of the kernels by the node: "forward", or the names of the gradients asked for; and threads."""
    from fastrnn.torch import dispatch, node

    torch_node.use(patch, True)
    seen: list[Any] = []

    def see(p: Any) -> None:
        asked = [n for n, _ in p._fields_ if n.startswith("d_") and n[2:] in ("x", "h_0", "w_ih", "w_hh", "b")]
        names = {n[2:] for n in asked if getattr(p, n)}
        seen.append((names if asked else "forward", p.problem.threads))

    calls = torch_calls.watched(torch_calls.of(dispatch.backend().torch_calls), see)
    patch.setattr(torch_node, "_kept", calls, raising=False)  # as long as the node has it
    module = torch_node.compiled()
    module.start(torch_calls.capsule(calls), node.backward)
    return seen


@pytest.fixture
def seen(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from fastrnn.torch import dispatch, node

    yield watch(torch, monkeypatch)
    torch_node.compiled().start(dispatch.backend().torch_calls, node.backward)


def test_only_what_is_needed_is_computed(torch: Any, call: Any, seen: list[Any]) -> None:
    """Frozen parameters, inputs that require no gradient, gradients that nobody asks for."""
    module, x, h, run = call()
    suffix = "_l0" if x.dim() == 3 else ""
    names = {"x": x, "h_0": h, "w_ih": getattr(module, f"weight_ih{suffix}")}
    names |= {"w_hh": getattr(module, f"weight_hh{suffix}")}
    b_ih, b_hh = (getattr(module, f"bias_{name}{suffix}") for name in ("ih", "hh"))
    for name, leaf in names.items():
        del seen[:]
        (only,) = torch.autograd.grad(run()[0].sum(), [leaf])
        assert [asked for asked, _ in seen] == ["forward", {name}]
        leaf.requires_grad_(False)
        leaf.grad = None
        run()[0].sum().backward()
        assert seen[-1][0] == {*names, "b"} - {name}
        assert leaf.grad is None
        leaf.requires_grad_(True)
    for one, other in ((b_ih, b_hh), (b_hh, b_ih)):
        module.zero_grad()
        one.requires_grad_(False)
        run()[0].sum().backward()
        assert one.grad is None
        assert other.grad is not None
        assert seen[-1][0] == {*names, "b"}
        one.requires_grad_(True)
    b_ih.requires_grad_(False)
    b_hh.requires_grad_(False)
    run()[0].sum().backward()
    assert seen[-1][0] == set(names)


def test_threads_are_torchs(torch: Any, call: Any, seen: list[Any]) -> None:
    before = torch.get_num_threads()
    _, _, _, run = call()
    try:
        torch.set_num_threads(3)
        output = run()[0]
        torch.set_num_threads(2)
        output.sum().backward()
    finally:
        torch.set_num_threads(before)
    assert [threads for _, threads in seen] == [3, 2]


def test_the_output_is_computed_again_only_where_it_changed(torch: Any, call: Any, seen: list[Any]) -> None:
    module, x, h, run = call()
    leaves = [x, h, *module.parameters()]
    made = run()
    want = torch.autograd.grad(made[0].sum(), leaves, retain_graph=True)
    loss = made[0].sum()
    made[0].detach().zero_()
    assert_alike(torch, torch.autograd.grad(loss, leaves), want)
    assert [asked if asked == "forward" else "backward" for asked, _ in seen] == [
        *("forward", "backward", "forward", "backward")
    ]


# ---- twice, in place


def test_backward_twice(torch: Any, node: bool, call: Any) -> None:
    module, x, h, run = call()
    leaves = [x, h, *module.parameters()]
    loss = run()[0].sum()  # which saves nothing itself
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert_alike(torch, torch.autograd.grad(loss, leaves), first)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        loss.backward()


def test_results_may_be_modified_in_place(torch: Any, node: bool, call: Any) -> None:
    """The bits of the same without the edit."""
    module, x, h, run = call()
    leaves = [x, h, *module.parameters()]
    for plain, edit in (
        (lambda t: (t + 1.5).pow(2), lambda t: t.add_(1.5).pow(2)),
        (lambda t: t * 3, lambda t: t.mul_(3)),
    ):
        want = torch.autograd.grad([plain(made).sum() for made in run()], leaves)
        assert_alike(torch, torch.autograd.grad([edit(made).sum() for made in run()], leaves), want)
    made = run()
    loss = sum(each.sum() for each in made)
    want = torch.autograd.grad(loss, leaves, retain_graph=True)
    for each in made:
        each.detach().zero_()
    assert_alike(torch, torch.autograd.grad(loss, leaves), want)


def test_arguments_modified_in_place_raise(torch: Any, node: bool, call: Any) -> None:
    module, x, h, run = call()
    x, h = x.detach().clone().requires_grad_(), h.detach().clone().requires_grad_()
    weights = list(module.parameters())[:2]
    for each in (x, h, *weights):
        made = run(x, h)
        with torch.no_grad():
            each.add_(1)
        with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*is at version"):
            made[0].sum().backward()


# ---- hooks, checkpoints, life time


def test_hooks_of_saved_tensors(torch: Any, node: bool, call: Any) -> None:
    """They see x, h_0, the weights and the tape, in this order, and may free them, or return other strides."""
    module, x, h, run = call()
    leaves, packed = [x, h, *module.parameters()], []

    def pack(tensor: Any) -> Any:
        packed.append(tuple(tensor.shape))
        return tensor.detach().clone()

    def other_strides(dim: int) -> Any:  # first the weights', then those of x and the tape
        return lambda tensor: tensor.mT.contiguous().mT if tensor.dim() == dim else tensor

    want = torch.autograd.grad(run()[0].sum(), leaves)
    for back in (lambda tensor: tensor, other_strides(2), other_strides(3)):
        del packed[:]
        with torch.autograd.graph.saved_tensors_hooks(pack, back):
            made = run()
        shapes = [tuple(each.shape) for each in leaves]
        assert packed == [*shapes, tuple(made[0].shape)]
        tape, loss = weakref.ref(made[0].untyped_storage()), made[0].sum()
        del made
        gc.collect()
        assert tape() is None
        assert_alike(torch, torch.autograd.grad(loss, leaves), want)
    with torch.autograd.graph.save_on_cpu():
        assert_alike(torch, torch.autograd.grad(run()[0].sum(), leaves), want)


def test_what_hooks_raise_comes_out(torch: Any, node: bool, call: Any) -> None:
    _, _, _, run = call()

    def fail(tensor: Any) -> Any:
        raise ZeroDivisionError("so")

    with torch.autograd.graph.saved_tensors_hooks(fail, lambda t: t), pytest.raises(ZeroDivisionError, match="so"):
        run()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, fail):
        loss = run()[0].sum()
    with pytest.raises(ZeroDivisionError, match="so"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(torch: Any, node: bool, call: Any, reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    module, x, h, run = call()
    leaves = [x, h, *module.parameters()]
    for each in leaves:
        each.grad = None
    run()[0].pow(2).sum().backward()
    want = [each.grad for each in leaves]
    for each in leaves:
        each.grad = None
    checkpoint(lambda x, h: run(x, h)[0], x, h, use_reentrant=reentrant).pow(2).sum().backward()
    assert_alike(torch, [each.grad for each in leaves], want)


def test_hooks_of_tensors(torch: Any, node: bool, call: Any) -> None:
    """register_hook of a leaf and of a result, retain_grad, hooks of grad_fn, of accumulation."""
    module, x, h, run = call()
    calls = []
    made = run()
    made[0].retain_grad()
    made[0].register_hook(lambda d: 2 * d)
    x.register_hook(lambda d: calls.append("x") or 3 * d)
    made[0].grad_fn.register_prehook(lambda above: calls.append("before"))
    made[0].grad_fn.register_hook(lambda below, above: calls.append(("after", len(below), len(above))))
    h.register_post_accumulate_grad_hook(lambda each: calls.append("accumulated"))
    made[0].sum().backward()
    assert sorted(map(str, calls)) == [f"('after', 6, {len(made)})", "accumulated", "before", "x"]
    x_, h_ = x.detach().requires_grad_(), h.detach().requires_grad_()
    d_x, d_h = torch.autograd.grad(2 * run(x_, h_)[0].sum(), [x_, h_])
    assert torch.equal(x.grad, 3 * d_x)
    assert torch.equal(h.grad, d_h)
    assert torch.equal(made[0].grad, torch.full_like(made[0], 2.0))


def test_nothing_is_shared_and_nothing_is_kept(torch: Any, node: bool, call: Any, no_collector: None) -> None:
    """The two biases' gradients are two arrays; graph and memory go with the last reference."""
    module, x, h, run = call()
    for backward in (True, False):
        made = run()
        memory = [weakref.ref(each.untyped_storage()) for each in made]
        if backward:
            sum(each.sum() for each in made).backward()
            grads = [p.grad for name, p in module.named_parameters() if "bias" in name]
            assert torch.equal(*grads)
            grads[0].zero_()
            assert grads[1].any()
        made = None
        assert [each() for each in memory] == [None] * len(memory)


# ---- more derivatives


def test_second_derivatives(torch: Any, call: Any) -> None:
    """create_graph; the gradients of gradients to the bits of Python; is_grads_batched; gradgradcheck."""
    module, x, h, run = call(dtype=torch.float64)
    leaves = [x, h, *module.parameters()]

    def twice() -> Any:
        first = torch.autograd.grad([made.sin().sum() for made in run()], leaves, create_graph=True)
        assert all(each.requires_grad for each in first)
        return [*first, *torch.autograd.grad(sum(each.pow(2).sum() for each in first), leaves)]

    def edited() -> Any:
        made = run()
        loss = made[0].sum()
        made[0].detach().zero_()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(each.pow(2).sum() for each in first), leaves)]

    def batched() -> Any:
        made = run()[0]
        return torch.autograd.grad(
            made, leaves, torch.stack([made.detach(), made.detach().sin()]), is_grads_batched=True
        )

    for derive in (twice, edited, batched):
        want, got = both_ways(derive)
        assert_alike(torch, [each.detach() for each in got], [each.detach() for each in want])
    with pytest.MonkeyPatch.context() as patch:
        torch_node.use(patch, True)
        assert torch.autograd.gradcheck(lambda x, h, *_: run(x, h), leaves)
        assert torch.autograd.gradgradcheck(lambda x, h, *_: run(x, h), leaves)


def test_frozen_weights_in_second_derivatives(torch: Any, call: Any) -> None:
    module, x, h, run = call(bias=False)
    next(module.parameters()).requires_grad_(False)
    leaves = [x, next(p for p in module.parameters() if p.requires_grad)]

    def twice() -> Any:
        first = torch.autograd.grad(run()[0].sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(each.pow(2).sum() for each in first), leaves)

    want, got = both_ways(twice)
    assert_alike(torch, got, want)


def test_compiled_autograd(torch: Any, own_route: None, node: bool, call: Any) -> None:
    """Graphs of torch._dynamo.compiled_autograd hold the call, and are used again, for other values and other needs."""
    from torch._dynamo import compiled_autograd

    torch._dynamo.reset()
    module, x, h, run = call()
    for scale, frozen, edit in ((1, False, False), (2, False, False), (1, True, False), (1, False, True)):
        x = (scale * x).detach().requires_grad_(not frozen)
        leaves = [x, h, *module.parameters()]
        found = []
        for compiled in (False, True):
            for each in leaves:
                each.grad = None
            made = run(x, h)
            loss = sum((2 * each).sum() for each in made)
            if edit:
                made[0].detach().zero_()
            with compiled_autograd._enable(lambda graph: graph) if compiled else nullcontext():
                loss.backward()
            found.append([each.grad for each in leaves])
        assert_alike(torch, found[1], found[0])


# ---- the rest of a program


def test_anomaly_mode(torch: Any, node: bool, call: Any) -> None:
    """It names the call that made a NaN."""
    module, x, h, run = call()
    name = "RnnLayerBackward" if x.dim() == 3 else "StepBackward"
    with pytest.warns(UserWarning, match="Anomaly|Error detected"), torch.autograd.detect_anomaly():  # noqa: PT031
        loss = (run()[0] * float("nan")).sum()
        with pytest.raises(RuntimeError, match=f"Function '(MulBackward0|{name})' returned nan values"):
            loss.backward()
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly(check_nan=False):
        loss = run()[0].sum()
    assert torch.autograd.grad(loss, [x])[0].isfinite().all()


def test_tied_weights(torch: Any, call: Any) -> None:
    """One parameter in two places gets the sum."""
    module, x, h, run = call(I=7, H=7)
    suffix = "_l0" if x.dim() == 3 else ""
    setattr(module, f"weight_hh{suffix}", getattr(module, f"weight_ih{suffix}"))
    setattr(module, f"bias_hh{suffix}", getattr(module, f"bias_ih{suffix}"))
    assert len(list(module.parameters())) == 2
    want, got = both_ways(lambda: torch.autograd.grad(run()[0].sin().sum(), [x, *module.parameters()]))
    assert_alike(torch, got, want)
    same, _ = both_ways(lambda: torch.autograd.grad(run(x, None)[0].sum(), [x]))
    assert same[0].isfinite().all()


def test_functional_call_and_copies(torch: Any, node: bool, call: Any) -> None:
    import pickle

    module, x, h, run = call()
    other = {name: torch.randn_like(p).requires_grad_() for name, p in module.named_parameters()}
    made = torch.func.functional_call(module, other, (x, h))
    output = made[0] if isinstance(made, tuple) else made
    assert torch_node.recorded_by_node(output) == node
    assert all(each is not None for each in torch.autograd.grad(output.sum(), list(other.values())))
    assert torch.equal(copy.deepcopy(output.detach()), output)
    assert torch.equal(pickle.loads(pickle.dumps(output.detach())), output)
    stream = io.BytesIO()
    torch.save(output, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream), output)
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(output)
    twin = copy.deepcopy(module)
    assert_alike(torch, [*twin.parameters()], [*module.parameters()])


def test_threads_at_once(torch: Any, node: bool, call: Any) -> None:
    """Eight Python threads, each its bits; one graph, whose backward runs in all of them, too."""
    from concurrent.futures import ThreadPoolExecutor

    module, x, h, run = call()
    leaves = [x, h, *module.parameters()]
    want = torch.autograd.grad(run()[0].sin().sum(), leaves)
    shared = run()[0].sin().sum()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for got in pool.map(lambda _: torch.autograd.grad(run()[0].sin().sum(), leaves), range(8)):
                assert_alike(torch, got, want)
            for got in pool.map(lambda _: torch.autograd.grad(shared, leaves, retain_graph=True), range(8)):
                assert_alike(torch, got, want)
