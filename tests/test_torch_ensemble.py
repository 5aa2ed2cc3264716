"""fastrnn.torch.RNNEnsemble, and vmap over the weights of fastrnn.torch.RNN, against a loop over models."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
from helpers.bad_inputs import refuse
from helpers.compare import normalised_error
from helpers.torch_layers import leaves_of, scalar

pytestmark = pytest.mark.usefixtures("own_route")

M, T, B, I, H = 5, 7, 3, 9, 8
BOUND = 1e-12
DEEP = {"num_layers": 2, "bidirectional": True}
OPTIONS = [{}, {"nonlinearity": "relu", "bias": False}, {**DEEP, "batch_first": True}]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the backend's functions. Skips where the backend is not cpp."""
    from fastrnn.torch import dispatch

    functions, made = dispatch.backend(), []
    if not hasattr(functions, "rnn_forward_ensemble"):
        pytest.skip("only the backend cpp has a call for many models")
    for name in [f"{way}{many}" for way in ("rnn_forward", "rnn_backward") for many in ("", "_ensemble")]:
        real = getattr(functions, name)
        monkeypatch.setattr(functions, name, lambda *a, name=name, real=real, **k: made.append(name) or real(*a, **k))
    return made


def ensemble(torch: Any, dtype: Any = None, **options: Any) -> tuple[Any, list[Any]]:
    """An RNNEnsemble, and torch.nn.RNNs drawn from the same seed."""
    from fastrnn.torch import RNNEnsemble

    dtype = dtype or torch.float64
    torch.manual_seed(3)
    ours = RNNEnsemble(M, I, H, dtype=dtype, **options)
    torch.manual_seed(3)
    return ours, [torch.nn.RNN(I, H, dtype=dtype, **options) for _ in range(M)]


def inputs(torch: Any, ours: Any, own: bool = False, hx: bool = True) -> list[Any]:
    """input and hx, of all models the same or of each its own."""
    first = (M,) if own else ()
    rows = (B, T) if ours.batch_first else (T, B)
    states = ours.num_layers * (2 if ours.bidirectional else 1)
    shapes = [(*first, *rows, I), (*first, states, B, H)][: 1 + hx]
    return [torch.randn(shape, dtype=ours.weight_ih_l0.dtype, requires_grad=True) for shape in shapes]


def results(torch: Any, run: Any, leaves: list[Any], seed: int = 0) -> list[Any]:
    """output, h_n, and the gradients of the leaves for random ones of both."""
    made = run()
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in made]
    return [*made, *torch.autograd.grad(made, leaves, upstream)]


def of_loop(torch: Any, models: list[Any], given: list[Any], **kwargs: Any) -> list[Any]:
    """The same of a loop over models, stacked."""

    def run() -> list[Any]:
        made = [model(*[t if t.dim() == 3 else t[m] for t in given], **kwargs) for m, model in enumerate(models)]
        return [torch.stack(each) for each in zip(*made, strict=True)]

    parameters = [list(model.parameters()) for model in models]
    found = results(torch, run, [*given, *[p for own in parameters for p in own]])
    count, each = 2 + len(given), len(parameters[0])
    rest = [torch.stack([found[count + m * each + k] for m in range(M)]) for k in range(each)]
    return [*found[:count], *rest]


def assert_close(got: list[Any], want: list[Any], bound: float = BOUND) -> None:
    assert len(got) == len(want) > 0
    for k, (g, w) in enumerate(zip(got, want, strict=True)):
        assert w.abs().max() > 0
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= bound, k


# ---- RNNEnsemble


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_gradients_of_a_loop(torch: Any, options: dict[str, Any], own: bool) -> None:
    """float64, against torch.nn.RNN, with the initial values of each: input and hx shared or not, hx or none."""
    ours, models = ensemble(torch, **options)
    for hx in (True, False):
        given = inputs(torch, ours, own, hx)
        got = results(torch, lambda given=given: ours(*given), [*given, *ours.parameters()])
        assert_close(got, of_loop(torch, models, given))
    assert got[0].shape == (M, *(B, T)[:: 1 if ours.batch_first else -1], H * (2 if ours.bidirectional else 1))


@pytest.mark.parametrize("how", ["plain", "lengths", "reset", "lengths and reset"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bits_of_each_model_alone(torch: Any, calls: list[str], options: dict[str, Any], how: str) -> None:
    """float32, on one thread and on several: one call a layer and direction, whose results, to the last bit, are those
    of fastrnn.torch.RNN with the model's parameters."""
    ours, _ = ensemble(torch, torch.float32, **options)
    given, kwargs = inputs(torch, ours, own=True), {}
    if "lengths" in how:
        kwargs["lengths"] = torch.tensor([4, 0, T])
    if "reset" in how:
        kwargs["reset"] = torch.rand((B, T) if ours.batch_first else (T, B)) < 0.4
    want = of_loop(torch, [ours.model(m) for m in range(M)], given, **kwargs)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            calls.clear()
            got = results(torch, lambda: ours(*given, **kwargs), [*given, *ours.parameters()])
            assert all(map(torch.equal, got, want))
            one = ours.num_layers * (2 if ours.bidirectional else 1)
            assert calls == ["rnn_forward_ensemble"] * one + ["rnn_backward_ensemble"] * one
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_models_go_in_and_come_out(torch: Any, options: dict[str, Any], dtype: str) -> None:
    """Initial values are those of torch.nn.RNNs made one after the other; model and from_models copy, draw nothing, and
    keep what is frozen; parameters are named and stacked as torch.func.stack_module_state does."""
    import fastrnn.torch as ft

    ours, models = ensemble(torch, getattr(torch, dtype), **options)
    models[0].weight_hh_l0.requires_grad_(False)
    state = torch.get_rng_state()
    there = ft.RNNEnsemble.from_models(models).eval()
    back = [there.model(m) for m in range(-M, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not there.weight_hh_l0.requires_grad
    assert there.weight_ih_l0.requires_grad
    stacked, _ = torch.func.stack_module_state([model.requires_grad_() for model in models])
    for other in (there.state_dict(), stacked):
        assert list(other) == list(ours.state_dict())
        assert all(torch.equal(other[name], value) for name, value in ours.state_dict().items())
    for model, got in zip(models, back, strict=True):
        assert type(got) is ft.RNN
        assert got.extra_repr() == model.extra_repr()
        assert (got.training, got.nonlinearity) == (False, model.nonlinearity)
        assert all(map(torch.equal, model.parameters(), got.parameters()))
        assert got.weight_hh_l0.requires_grad is False
        assert all(map(torch.equal, got._flat_weights, got.parameters()))
    with torch.no_grad():
        back[0].weight_hh_l0.zero_()
        there.weight_ih_l0.zero_()
    assert there.weight_hh_l0[0].abs().max() > 0
    assert models[0].weight_ih_l0.abs().max() > 0


def test_it_is_copied_pickled_and_shown(torch: Any) -> None:
    ours, _ = ensemble(torch, **DEEP)
    assert repr(ours) == f"RNNEnsemble({M}, {I}, {H}, num_layers=2, bidirectional=True)"
    (x,) = inputs(torch, ours, hx=False)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x)[0], ours(x)[0])
    assert ours.float()(x.float())[0].dtype is torch.float32


def test_dropout_is_drawn_for_each_model(torch: Any) -> None:
    """Between the layers, over (M, T, B, H); none in eval mode."""
    from fastrnn.torch import RNNEnsemble

    ours = RNNEnsemble(M, I, H, num_layers=2, dropout=0.5, dtype=torch.float64)
    (x,) = inputs(torch, ours, hx=False)
    first, second = (RNNEnsemble(M, n, H, dtype=torch.float64) for n in (I, H))
    for one, layer in ((first, "l0"), (second, "l1")):
        one.load_state_dict({n.replace(layer, "l0"): p for n, p in ours.state_dict().items() if n.endswith(layer)})
    between = first(x)[0]
    torch.manual_seed(5)
    got = ours(x)[0]
    torch.manual_seed(5)
    dropped = torch.dropout(between, 0.5, True)
    assert not torch.equal(dropped[0] == 0, dropped[1] == 0)
    assert torch.equal(got, second(dropped)[0])
    assert torch.equal(ours.eval()(x)[0], second(between)[0])


def test_halves_and_autocast_compute_in_float32(torch: Any) -> None:
    ours, _ = ensemble(torch, torch.bfloat16)
    given = [t.detach() for t in inputs(torch, ours)]
    got, want = ours(*given), copy.deepcopy(ours).float()(*[t.float() for t in given])
    assert all(torch.equal(g, w.bfloat16()) for g, w in zip(got, want, strict=True))
    with torch.autocast("cpu"):
        again = copy.deepcopy(ours).float()(*[t.float() for t in given])
    assert all(map(torch.equal, again, got))


def test_gradients_in_unusual_ways(torch: Any) -> None:
    """Through h_n alone; frozen parameters; an output that is modified in place before backward; twice."""
    ours, models = ensemble(torch)
    given = inputs(torch, ours)
    leaves = [*given, *ours.parameters()]
    want = of_loop(torch, models, given)

    output, h_n = ours(*given)
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (output, h_n)]
    with torch.no_grad():
        output.mul_(3)
    for _ in range(2):
        assert_close(list(torch.autograd.grad([output, h_n], leaves, upstream, retain_graph=True)), want[2:])

    through_h_n = torch.autograd.grad((ours(*given)[1] ** 2).sum(), leaves)
    loop = [(model(*given)[1] ** 2).sum() for model in models]
    assert_close(list(through_h_n[:2]), list(torch.autograd.grad(sum(loop), given)))

    ours.weight_hh_l0.requires_grad_(False)
    ours(*given)[0].sum().backward()
    assert ours.weight_hh_l0.grad is None
    assert ours.weight_ih_l0.grad is not None


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "nonlinearity": "relu", "bias": False}], ids=str)
@pytest.mark.parametrize("how", ["plain", "lengths and reset"])
def test_gradcheck_and_gradgradcheck(torch: Any, options: dict[str, Any], how: str) -> None:
    from fastrnn.torch import RNNEnsemble

    torch.manual_seed(0)
    ours = RNNEnsemble(2, 3, 2, dtype=torch.float64, **options)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(2, 2 if ours.bidirectional else 1, 2, 2, dtype=torch.float64, requires_grad=True)
    kwargs: dict[str, Any] = {}
    if how != "plain":
        kwargs = {"lengths": torch.tensor([2, 3]), "reset": torch.tensor([[0, 1], [1, 0], [0, 0]]).bool()}
    weights = {name: p.detach().requires_grad_() for name, p in ours.named_parameters()}

    def run(x: Any, hx: Any, *values: Any) -> Any:
        return torch.func.functional_call(ours, dict(zip(weights, values, strict=True)), (x, hx), kwargs)

    given = (x, hx, *weights.values())
    assert torch.autograd.gradcheck(run, given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, given, check_fwd_over_rev=True, check_batched_grad=True)


# ---- vmap over weights


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_vmap_over_weights_is_the_ensemble(torch: Any, calls: list[str], options: dict[str, Any]) -> None:
    """torch.func.functional_call over stack_module_state: the bits of RNNEnsemble, in as many calls."""
    ours, _ = ensemble(torch, torch.float32, **options)
    models = [ours.model(m) for m in range(M)]
    stacked, _ = torch.func.stack_module_state(models)
    for own in (False, True):
        given = inputs(torch, ours, own)
        want = results(torch, lambda given=given: ours(*given), [*given, *ours.parameters()])
        at, expected = 0 if own else None, list(calls)
        calls.clear()
        run = torch.func.vmap(lambda p, *a: torch.func.functional_call(models[0], p, a), (0, at, at))
        got = results(torch, lambda run=run, given=given: run(stacked, *given), [*given, *stacked.values()])
        assert calls == expected
        sums = () if own else (2, 3)  # over the models, which torch adds in another order
        assert all(torch.equal(g, w) for k, (g, w) in enumerate(zip(got, want, strict=True)) if k not in sums)
        assert_close(got, want, 1e-6)
        calls.clear()


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_transforms_of_vmap_over_weights(torch: Any, calls: list[str], options: dict[str, Any], lengths: bool) -> None:
    """Each as a loop over models gives it, in calls for all of them: vmap of grad, jvp, hessian and of vmap over the
    input; grad and jvp of vmap; the second derivative outside."""
    from torch.func import functional_call, grad, hessian, jvp, vmap

    ours, models = ensemble(torch, **options)
    ours_0 = ours.model(0)
    given = [t.detach() for t in inputs(torch, ours)]
    kwargs = {"lengths": torch.tensor([4, 0, T])} if lengths else {}
    p = {name: value.detach() for name, value in ours.named_parameters()}
    p_dot = {name: torch.randn_like(value) for name, value in p.items()}
    name = "weight_hh_l0"
    if lengths:  # which torch.nn.RNN has not: our own layer, whose derivatives other tests know
        models = [ours.model(m) for m in range(M)]

    def both(compute: Any) -> None:
        """compute(run, weights, their tangents)"""
        made = [
            compute(lambda q, model=model, x=given[0]: functional_call(model, q, (x, *given[1:]), kwargs), *own)
            for m, model in enumerate(models)
            for own in [[{n: v[m] for n, v in values.items()} for values in (p, p_dot)]]
        ]
        calls.clear()
        run = lambda q: functional_call(ours_0, q, tuple(given), kwargs)  # noqa: E731
        got = vmap(lambda q, q_dot: compute(run, q, q_dot))(p, p_dot)
        assert set(calls) <= {"rnn_forward_ensemble", "rnn_backward_ensemble"} != set()
        want = [torch.stack(each) for each in zip(*map(leaves_of, made), strict=True)]
        assert_close(leaves_of(got), want)

    both(lambda run, q, q_dot: grad(lambda q: scalar(run(q)))(q))
    both(lambda run, q, q_dot: jvp(run, (q,), (q_dot,)))
    both(lambda run, q, q_dot: jvp(grad(lambda q: scalar(run(q))), (q,), (q_dot,)))
    if options.get("nonlinearity") != "relu" and not lengths:
        both(lambda run, q, q_dot: hessian(lambda w: scalar(run({**q, name: w})))(q[name]))

    every = vmap(lambda q: functional_call(ours_0, q, tuple(given), kwargs))
    want = [torch.stack(each) for each in zip(*[
        leaves_of(grad(lambda q, model=model: scalar(functional_call(model, q, tuple(given), kwargs)))(
            {n: v[m] for n, v in p.items()}
        ))
        for m, model in enumerate(models)
    ], strict=True)]  # fmt: skip
    assert_close(leaves_of(grad(lambda p: scalar(every(p)))(p)), want)
    tangents = vmap(lambda q, q_dot: jvp(lambda q: functional_call(ours_0, q, tuple(given), kwargs), (q,), (q_dot,)))
    assert_close(leaves_of(jvp(every, (p,), (p_dot,))), leaves_of(tangents(p, p_dot)))

    xs = torch.stack([given[0], given[0].sin()])
    inner = vmap(lambda x: vmap(lambda q: functional_call(ours_0, q, (x, *given[1:]), kwargs))(p))(xs)
    outer = vmap(lambda q: vmap(lambda x: functional_call(ours_0, q, (x, *given[1:]), kwargs))(xs))(p)
    assert_close([t.transpose(0, 1) for t in inner], list(outer))


def test_vmap_over_ensembles(torch: Any) -> None:
    """Two ensembles, each of M models."""
    ours, _ = ensemble(torch)
    p = {name: torch.stack([value, value.sin()]).detach() for name, value in ours.named_parameters()}
    given = [t.detach() for t in inputs(torch, ours)]
    got = torch.func.vmap(lambda q: torch.func.functional_call(ours, q, tuple(given)))(p)
    made = [torch.func.functional_call(ours, {n: v[k] for n, v in p.items()}, tuple(given)) for k in range(2)]
    assert all(torch.equal(g, torch.stack(w)) for g, w in zip(got, zip(*made, strict=True), strict=True))


def test_packed_rows_under_vmap_over_weights(torch: Any) -> None:
    from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

    ours, models = ensemble(torch)
    x, hx = inputs(torch, ours)
    packed = pack_padded_sequence(x.detach(), torch.tensor([T, 4, 2]))
    own = [ours.model(m) for m in range(M)]
    stacked, _ = torch.func.stack_module_state(own)

    def run(q: Any, data: Any, hx: Any) -> Any:
        output, h_n = torch.func.functional_call(own[0], q, (PackedSequence(data, packed.batch_sizes), hx))
        return output.data, h_n

    got = results(torch, lambda: torch.func.vmap(run, (0, None, None))(stacked, packed.data, hx), [hx])
    made = lambda: [torch.stack(e) for e in zip(*[(o.data, h) for o, h in [m(packed, hx) for m in models]])]  # noqa: E731,B905
    assert_close(got, results(torch, made, [hx]))


# ---- torch.compile and the operators


@pytest.mark.slow
@pytest.mark.parametrize("options", [*OPTIONS, {"num_layers": 2, "dropout": 0.5}], ids=str)
def test_compiled_whole_it_gives_the_bits_of_eager(torch: Any, options: dict[str, Any]) -> None:
    """fullgraph=True: values and gradients of op -> RNNEnsemble -> op, and with lengths and reset."""
    torch._dynamo.reset()
    ours, _ = ensemble(torch, torch.float32, **options)

    def model(x: Any, hx: Any, **kwargs: Any) -> Any:
        output, h_n = ours(x.tanh(), hx, **kwargs)
        return output.sin(), h_n

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    reset = torch.rand((B, T) if ours.batch_first else (T, B)) < 0.5
    for kwargs in ({}, {"lengths": torch.tensor([4, 0, T]), "reset": reset}):
        given = inputs(torch, ours)
        made = []
        for run in (model, compiled):
            torch.manual_seed(4)
            leaves = [*given, *ours.parameters()]
            made.append(results(torch, lambda run=run, k=kwargs, given=given: run(*given, **k), leaves))
        assert all(map(torch.equal, *made))
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rnn_forward", "rnn_backward", "rnn_adjoint"])
def test_opcheck(torch: Any, name: str) -> None:
    """The operators of many models: schema, fake kernel, and the derivative traced with dynamic shapes."""
    ours, _ = ensemble(torch, bidirectional=True)
    weights = [p.detach().requires_grad_() for p in ours.parameters()]
    x, h_0 = (t.detach().requires_grad_() for t in inputs(torch, ours, own=True))
    way = "tanh", True, None, None, None
    given: tuple[Any, ...] = (x, h_0, weights, *way)
    output, h_n = (each.detach().requires_grad_() for each in torch.ops.fastrnn.rnn_forward(*given))
    u, u_n = (torch.randn_like(each).requires_grad_() for each in (output, h_n))
    if name == "rnn_backward":
        given = u, u_n, output, x, h_0, weights, [True] * 10, *way
    elif name == "rnn_adjoint":
        u, h = (each[..., :H].detach().requires_grad_() for each in (u, output))
        given = u, u_n[:, 0].detach().requires_grad_(), h, weights[1], *way
    torch.library.opcheck(getattr(torch.ops.fastrnn, name), given)


def test_flops_are_those_of_the_models(torch: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def count(run: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            output, h_n = run()
            (output.sum() + h_n.sum()).backward()
        return int(counter.get_total_flops())

    ours, _ = ensemble(torch, **DEEP)
    one, given = ours.model(0), inputs(torch, ours, own=True)
    assert count(lambda: ours(*given)) == M * count(lambda: one(*[t[0] for t in given])) > 0


# ---- Where torch.nn.RNN computes, and what is refused


def test_torch_computes_where_no_backend_can(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model after the other, said once, and without lengths and reset."""
    from fastrnn.torch import dispatch

    ours, models = ensemble(torch, **DEEP, batch_first=True)
    monkeypatch.setattr(dispatch, "backend", lambda *_: "on this machine")
    monkeypatch.setattr(dispatch, "_warned", set())
    for own in (False, True):
        given = inputs(torch, ours, own)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            got = results(torch, lambda given=given: ours(*given), [*given, *ours.parameters()])
        text = "fastrnn.torch.RNNEnsemble runs at the speed of torch.nn.RNN, which computes on this machine."
        assert [str(each.message)[: len(text)] for each in said] == [text] * (not own)
        assert_close(got, of_loop(torch, models, given))
    for name, value in (("lengths", torch.ones(B).long()), ("reset", torch.ones(B, T).bool())):
        with pytest.raises(NotImplementedError, match=rf"{name}: expected None where torch.nn.RNN computes"):
            ours(given[0].detach(), **{name: value})


def test_refuses_what_does_not_fit(torch: Any) -> None:
    from fastrnn.torch import RNN, RNNEnsemble

    ours, models = ensemble(torch, torch.float32)
    x, hx = (t.detach() for t in inputs(torch, ours))

    def call(**given: Any) -> Any:
        return ours(**({"input": x} | given))

    for name, value, error, *words in (
        ("input", x.numpy(), TypeError, "torch.Tensor", "ndarray"),
        ("input", x.double(), TypeError, "torch.float32", "torch.float64"),
        ("input", x.to("meta"), TypeError, "device cpu", "meta"),
        ("input", x[0], ValueError, f"(T, B, I) or (M, T, B, I) with M = {M}, I = {I}", f"({B}, {I})"),
        ("input", x[..., 1:], ValueError, f"({T}, {B}, {I - 1})"),
        ("input", x.expand(2, T, B, I), ValueError, f"(2, {T}, {B}, {I})"),
        ("input", x[:0], ValueError, "at least one time step"),
        ("hx", 0.0, TypeError, "torch.Tensor", "float"),
        ("hx", hx.double(), TypeError, "torch.float64"),
        ("hx", hx[0], ValueError, f"(1, {B}, {H}) or ({M}, 1, {B}, {H})", f"({B}, {H})"),
        ("hx", hx.expand(2, *hx.shape), ValueError, f"(2, 1, {B}, {H})"),
        ("lengths", [1, 2, 3], TypeError, "torch.Tensor", "list"),
        ("lengths", torch.ones(B), TypeError, "float32"),
        ("lengths", torch.ones(B + 1).long(), ValueError, f"({B + 1},)"),
        ("lengths", torch.full((B,), T + 1), ValueError, "0..T"),
        ("reset", torch.ones(B, T).bool(), ValueError, f"({B}, {T})"),
        ("reset", torch.ones(T, B), TypeError, "float32"),
    ):
        refuse(call, error, name, *words, **{name: value})

    for name, change, error, *words in (
        ("weight_hh_l0", torch.Tensor.bfloat16, TypeError, "torch.float32, as weight_ih_l0", "torch.bfloat16"),
        ("weight_hh_l0", torch.Tensor.double, TypeError, "torch.float32, as weight_ih_l0", "torch.float64"),
        ("bias_hh_l0", torch.Tensor.half, TypeError, "torch.float32, as weight_ih_l0", "torch.float16"),
        ("weight_ih_l0", lambda w: w[:, 1:], ValueError, f"shape ({M}, {H}, {I})", f"({M}, {H - 1}, {I})"),
        ("weight_hh_l0", lambda w: w[1:], ValueError, f"shape ({M}, {H}, {H})", f"({M - 1}, {H}, {H})"),
        ("bias_ih_l0", lambda w: w[..., 1:], ValueError, f"shape ({M}, {H})", f"({M}, {H - 1})"),
    ):
        spoilt, _ = ensemble(torch, torch.float32)
        parameter = getattr(spoilt, name)
        parameter.data = change(parameter.data)
        refuse(spoilt, error, name, *words, input=x)

    refuse(RNNEnsemble, TypeError, "num_models", "float", num_models=2.0, input_size=I, hidden_size=H)
    refuse(RNNEnsemble, ValueError, "num_models", "0", num_models=0, input_size=I, hidden_size=H)
    with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
        RNNEnsemble(M, I, 0)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sine'"):
        RNNEnsemble(M, I, H, nonlinearity="sine")

    refuse(RNNEnsemble.from_models, ValueError, "models", "none", models=[])
    refuse(RNNEnsemble.from_models, TypeError, r"models\[1\]", "GRU", models=[models[0], torch.nn.GRU(I, H)])
    for other in (RNN(I, H + 1), RNN(I, H, nonlinearity="relu"), RNN(I, H).double(), RNN(I, H, 2)):
        refuse(RNNEnsemble.from_models, ValueError, r"models\[1\]", f"RNN({I}, {H})", models=[models[0], other])
    for more in ({"zoneout": 0.1}, {"alpha": 0.5}):
        refuse(RNNEnsemble.from_models, ValueError, r"models\[0\]", *more, models=[RNN(I, H, **more)])
    for m in (M, -M - 1):
        refuse(ours.model, IndexError, "m", str(m), m=m)
    with pytest.raises(TypeError):
        ours.model(0.5)
