"""fastrnn.torch.RNN under torch.compile, torch.export, make_fx, torch.fx and torch.onnx; the operators behind it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.compare import normalised_error
from helpers.torch_layers import inputs, twins

DEEP = {"num_layers": 2, "bidirectional": True}
LENGTHS = [4, 0, 2]


@pytest.fixture(autouse=True)
def own_route(torch: Any) -> Iterator[None]:
    """Nothing compiled before plays a part; a warning that torch.nn.RNN computes is an error, torch's own are not."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="fastrnn.torch")
        yield
    torch._dynamo.reset()


def model(torch: Any, layer: Any) -> Any:
    """op -> RNN -> op."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.before = torch.nn.Linear(3, 3)
            self.rnn = layer
            self.after = torch.nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 2)

        def forward(self, x: Any, hx: Any = None, **kwargs: Any) -> Any:
            output, h_n = self.rnn(self.before(x).tanh(), hx, **kwargs)
            return self.after(output + 1).tanh(), h_n

    return Model().to(layer.weight_ih_l0.dtype)


def everything(torch: Any, run: Any, made: Any, x: Any, **kwargs: Any) -> list[Any]:
    """output, h_n, and the gradients of x and of every parameter."""
    x = x.detach().requires_grad_()
    output, h_n = run(x, **kwargs)
    loss = output.pow(2).sum() + h_n.pow(3).sum()
    return [output, h_n, *torch.autograd.grad(loss, [x, *made.parameters()])]


# ---- torch.compile


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, None),
        ({**DEEP, "batch_first": True}, "hx"),
        ({"nonlinearity": "relu", "bidirectional": True}, "lengths and reset"),
        ({"dropout": 0.5, "num_layers": 2}, None),
    ],
)
def test_compiled_whole_it_gives_the_bits_of_eager(torch: Any, options: dict[str, Any], how: str | None) -> None:
    """fullgraph=True: outputs and gradients of op -> RNN -> op, in float32, in training and in inference."""
    made = model(torch, twins(torch, 3, 5, **options)[0])
    x, kwargs = torch.randn(4, 3, 3), {}
    if how == "hx":
        kwargs["hx"] = torch.randn(4, 4, 5)
    elif how:
        kwargs = {"lengths": torch.tensor(LENGTHS), "reset": torch.rand(4, 3) < 0.5}
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    results = []
    for run in (made, compiled):
        torch.manual_seed(3)
        results.append(everything(torch, run, made, x, **kwargs))
    assert all(map(torch.equal, *results))
    made.eval()
    with torch.no_grad():
        assert all(map(torch.equal, compiled(x, **kwargs), made(x, **kwargs)))


@pytest.mark.slow
def test_dynamic_shapes_compile_once(torch: Any) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    made = model(torch, twins(torch, 3, 5, **DEEP)[0])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(made, fullgraph=True, backend=counter)
    for T, B in ((6, 4), (7, 3), (11, 2)):
        x = torch.randn(T, B, 3)
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 1)
        assert all(map(torch.equal, compiled(x), made(x)))
    assert counter.frame_count == 1


@pytest.mark.slow
def test_packed_unbatched_and_halves_compile(torch: Any) -> None:
    ours = twins(torch, 3, 5)[0]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    packed, _, _ = inputs(torch, ours, "packed", 4, 3)
    got, want = compiled(packed), ours(packed)
    assert torch.equal(got[0].data, want[0].data)
    assert torch.equal(got[1], want[1])
    x = torch.randn(4, 3)
    assert all(map(torch.equal, compiled(x), ours(x)))
    with torch.autocast("cpu"):
        assert all(map(torch.equal, compiled(x), ours(x)))
    half = twins(torch, 3, 5, dtype=torch.bfloat16)[0]
    x = x.bfloat16()
    assert all(map(torch.equal, torch.compile(half, fullgraph=True, backend="aot_eager")(x), half(x)))


@pytest.mark.slow
def test_inductor(torch: Any) -> None:
    """What it makes of the ops around the layer may round differently."""
    made = model(torch, twins(torch, 3, 5)[0])
    x = torch.randn(4, 3, 3)
    got = everything(torch, torch.compile(made, fullgraph=True), made, x)
    for g, w in zip(got, everything(torch, made, made, x), strict=True):
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= 1e-5


@pytest.mark.parametrize("kind", ["RNN", "batch_first", "two layers", "all layers", "ensemble"])
@pytest.mark.parametrize("watched", ["aot_eager", "FlopCounterMode"])
def test_the_output_may_be_edited_in_place(torch: Any, kind: str, watched: str) -> None:
    """The bits of eager, which computes the output again; without gradients nothing is copied."""
    from torch.utils.flop_counter import FlopCounterMode

    import fastrnn.torch as ft

    options = {"batch_first": {"batch_first": True}, "two layers": DEEP, "all layers": {"num_layers": 2}}.get(kind, {})
    layer = ft.RNNEnsemble(2, 3, 5) if kind == "ensemble" else ft.RNN(3, 5, **options)
    how = {"return_all_layers": True} if kind == "all layers" else {}
    x = torch.randn(4, 3, 3, requires_grad=True)

    def run(x: Any) -> Any:
        return torch.nn.functional.relu(layer(x, **how)[0].mul_(2), inplace=True)

    def found(run: Any) -> Any:
        x.grad = None
        layer.zero_grad()
        output = run(x)
        output.pow(2).sum().backward()
        return [output, x.grad, *[p.grad for p in layer.parameters()]]

    want = found(run)
    if watched == "FlopCounterMode":
        with FlopCounterMode(display=False):
            got = found(run)
    else:
        got = found(torch.compile(run, fullgraph=True, backend=watched))
    assert all(map(torch.equal, got, want))


def test_nothing_is_copied_without_gradients(torch: Any) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    layer, x = twins(torch, 3, 5)[0], torch.randn(4, 3, 3)
    with torch.no_grad():
        graph = make_fx(lambda x: layer(x)[0])(x).graph
    assert not [node for node in graph.nodes if "clone" in str(node.target)]


def test_what_cannot_be_compiled_raises(torch: Any) -> None:
    """Forward mode and torch.func.grad inside of compiled code, double backward, torch.jit.script: by name."""
    from torch import func

    ours = twins(torch, 3, 5)[0]
    x = torch.randn(4, 3, 3)
    whole = {"fullgraph": True, "backend": "aot_eager"}
    with pytest.raises(Exception, match="expected no forward mode, which the layer itself has"):
        torch.compile(lambda x: func.jvp(lambda x: ours(x)[0], (x,), (x,)), **whole)(x)
    with pytest.raises(Exception, match="setup_context"):
        torch.compile(func.grad(lambda x: ours(x)[0].sum()), **whole)(x)
    x.requires_grad_()
    (first,) = torch.autograd.grad(torch.compile(ours, **whole)(x)[0].pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.sum().backward()
    with pytest.raises(Exception, match="keyword-only arguments"):
        torch.jit.script(ours)


def test_vmap_inside_of_compiled_code(torch: Any) -> None:
    ours = twins(torch, 3, 5, **DEEP)[0]
    xs = torch.randn(2, 4, 3, 3)
    run = torch.func.vmap(lambda x: ours(x))
    assert all(map(torch.equal, torch.compile(run, fullgraph=True, backend="aot_eager")(xs), run(xs)))


# ---- torch.export, make_fx, torch.fx, FlopCounterMode, ONNX


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_shapes(torch: Any, strict: bool) -> None:
    made = model(torch, twins(torch, 3, 5, **DEEP)[0])
    sizes = {"x": {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}}
    exported = torch.export.export(made, (torch.randn(4, 3, 3),), dynamic_shapes=sizes, strict=strict)
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called.count("fastrnn.rnn_forward.default") == 2
    x = torch.randn(9, 2, 3)
    assert all(map(torch.equal, exported.module()(x), made(x)))


def test_exported_it_still_differentiates_twice(torch: Any) -> None:
    made = model(torch, twins(torch, 3, 5, dtype=torch.float64, **DEEP)[0])
    x = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for run in (made, torch.export.export(made, (x.detach(),)).module()):
        leaves = [x, *run.parameters()]
        output, h_n = run(x)
        first = torch.autograd.grad(output.pow(2).sum() + h_n.pow(3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves, allow_unused=True)
        results.append([*first, *second])
    for want, got in zip(*results, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            assert normalised_error(got.detach().numpy(), want.detach().numpy()) <= 1e-12


def test_make_fx_records_the_operators(torch: Any) -> None:
    from torch import func
    from torch.fx.experimental.proxy_tensor import make_fx

    ours = twins(torch, 3, 5, **DEEP)[0]
    x = torch.randn(2, 4, 3, 3)
    for run in (
        lambda x: ours(x[0])[0],
        func.grad(lambda x: ours(x[0])[0].pow(2).sum()),
        func.vmap(lambda x: ours(x)[0]),
    ):
        traced = make_fx(run)(x)
        assert any("fastrnn.rnn_forward" in str(node.target) for node in traced.graph.nodes)
        assert torch.equal(traced(2 * x), run(2 * x))
    if hasattr(func, "linearize"):
        _, tangent = func.linearize(lambda x: ours(x)[0], x[0])
        assert torch.equal(tangent(x[1]), func.jvp(lambda x: ours(x)[0], (x[0],), (x[1],))[1])


def test_symbolic_trace_keeps_the_layer_whole(torch: Any) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.after = twins(torch, 3, 5)[0], torch.nn.Linear(5, 2)

        def forward(self, x: Any, hx: Any, lengths: Any) -> Any:
            output, h_n = self.rnn(x, hx, lengths=lengths)
            return self.after(output), h_n

    made = Model()
    traced = torch.fx.symbolic_trace(made)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["rnn", "after"]
    given = torch.randn(4, 3, 3), torch.randn(1, 3, 5), torch.tensor(LENGTHS)
    assert all(map(torch.equal, traced(*given), made(*given)))


def test_flops_are_torchs(torch: Any) -> None:
    """Forward exactly; backward, each product of each step, of which torch leaves out the first step's."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for layer in twins(torch, 4, 6, **DEEP):
        with FlopCounterMode(display=False) as forward:
            output, _ = layer(torch.randn(5, 3, 4, requires_grad=True))
        with FlopCounterMode(display=False) as backward:
            output.sum().backward()
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    (forward, backward), (want, _) = counts
    assert forward == want == 4 * 5 * 3 * 6 * (4 + 6) + 4 * 5 * 3 * 6 * (12 + 6)
    assert backward == 2 * forward


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_has_rnn_nodes(
    torch: Any, onnx: Any, onnxruntime: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, dynamo: bool
) -> None:
    """One for each layer, from both of torch's exporters."""
    import fastrnn.torch.dispatch as dispatch

    made = model(torch, twins(torch, 3, 5, **DEEP)[0]).eval()
    x, path = torch.randn(4, 3, 3), str(tmp_path / "model.onnx")
    if not dynamo:
        monkeypatch.setattr(dispatch, "_warned", {("RNN", "inside torch.jit.trace")})
    torch.onnx.export(made, (x,), path, dynamo=dynamo)
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    assert [node.op_type for node in graph.graph.node].count("RNN") == 2
    session = onnxruntime.InferenceSession(path)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for g, w in zip(got, made(x), strict=True):
        assert normalised_error(g, w.detach().numpy()) <= 1e-6


# ---- The operators themselves


def arguments(torch: Any, name: str, kind: str) -> tuple[Any, ...]:
    D = 1 if kind == "plain" else 2
    layer = twins(torch, 3, 5, bidirectional=D == 2, dtype=torch.float64)[0]
    weights, how = [p.detach().requires_grad_() for p in layer.parameters()], [None, None, None]
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    if kind == "lengths and reset":
        how = [torch.tensor(LENGTHS), None, torch.rand(4, 3) < 0.5]
    elif kind == "packed":
        x, how = x.flatten(0, 1)[:6], [None, torch.tensor([3, 2, 1]), None]
    h_0 = None if kind == "plain" else torch.randn(D, 3, 5, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    way = "tanh", D == 2, *how
    if name == "rnn_forward":
        return x, h_0, weights, *way
    output, h_n = (each.detach().requires_grad_() for each in torch.ops.fastrnn.rnn_forward(x, h_0, weights, *way))
    u, u_n = (torch.randn_like(each).requires_grad_() for each in (output, h_n))
    if name == "rnn_backward":
        return u, u_n, output, x, h_0, weights, [True, h_0 is not None] + [True] * len(weights), *way
    h, u = (each[..., :5].detach().requires_grad_() for each in (output, u))
    return u, u_n[0].detach().requires_grad_(), h, weights[1], *way


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "lengths and reset", "packed"])
@pytest.mark.parametrize("name", ["rnn_forward", "rnn_backward", "rnn_adjoint"])
def test_opcheck(torch: Any, name: str, kind: str) -> None:
    """Schema, registration of the derivative, fake kernel, and the derivative traced with dynamic shapes."""
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    given = arguments(torch, name, kind)
    torch.library.opcheck(getattr(torch.ops.fastrnn, name), given, test_utils=tests)


@pytest.mark.parametrize("name", ["rnn_forward", "rnn_backward", "rnn_adjoint"])
def test_vmap_of_the_operators(torch: Any, name: str) -> None:
    given = arguments(torch, name, "lengths and reset")
    operator = getattr(torch.ops.fastrnn, name)
    with torch.no_grad():
        for at in (0, 2, 3):  # the input or what comes from above; h or the weights; the input or w_hh
            if isinstance(given[at], (list, str)):
                continue
            mapped = torch.stack([given[at], given[at].sin()])
            run = lambda value, at=at: tuple(operator(*given[:at], value, *given[at + 1 :]))  # noqa: E731
            want = [torch.stack(each) for each in zip(*map(run, mapped), strict=True)]
            assert all(map(torch.equal, torch.func.vmap(run)(mapped), want))


def test_operators_refuse_what_does_not_fit(torch: Any) -> None:
    x, h_0, weights, *way = arguments(torch, "rnn_forward", "lengths and reset")
    forward = torch.ops.fastrnn.rnn_forward
    for wrong, kind, message in (
        ((x.float(), h_0, weights, *way), TypeError, r"weights\[0\]: expected torch.float32"),
        ((x.long(), h_0, weights, *way), TypeError, "x: expected torch.float32 or torch.float64, got torch.int64"),
        ((x[..., :2], h_0, weights, *way), ValueError, r"weights\[0\]: expected shape \(5, 2\), got \(5, 3\)"),
        ((x, h_0[:, :2], weights, *way), ValueError, r"h_0: expected shape \(2, 3, 5\), got \(2, 2, 5\)"),
        (
            (x, h_0, weights[:3], *way),
            ValueError,
            "weights: expected w_ih, w_hh and maybe b_ih, b_hh, and maybe alpha, of 2 directions",
        ),
        ((x[0], h_0, weights, *way), ValueError, r"x: expected \(T, B, I\)"),
        ((x, h_0, weights, "sine", *way[1:]), ValueError, "nonlinearity: expected 'tanh' or 'relu', got 'sine'"),
        ((x, h_0, weights, *way[:2], way[2] + 9, *way[3:]), ValueError, r"lengths: expected values in 0..T"),
    ):
        with pytest.raises(kind, match=message), torch.no_grad():
            forward(*wrong)


def test_forward_mode_of_an_operator_raises(torch: Any) -> None:
    """torch would say zero."""
    from torch.autograd import forward_ad

    x, h_0, weights, *way = arguments(torch, "rnn_forward", "lengths and reset")
    for given in (weights, [w.detach() for w in weights]):
        run = lambda x, given=given: torch.ops.fastrnn.rnn_forward(x, None, given, *way)[0]  # noqa: E731
        with pytest.raises(NotImplementedError, match="forward mode"):
            torch.func.jvp(run, (x.detach(),), (x.detach(),))
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward"):
            run(forward_ad.make_dual(x.detach(), x.detach()))
