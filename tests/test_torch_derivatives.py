"""fastrnn.torch.RNN to any order: double backward, forward mode, torch.func's transforms, vmap; in float64."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.compare import normalised_error
from helpers.torch_layers import inputs, leaves_of, scalar, twins

BOUND = 1e-12
DEEP = {"num_layers": 2, "bidirectional": True}


@pytest.fixture(autouse=True)
def own_route(torch: Any) -> Iterator[None]:
    """torch.nn.RNN computes nothing here: the RuntimeWarning that says so is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.func.jvp's own jit.script
        yield


def assert_same(got: Any, want: Any, bound: float = BOUND) -> None:
    got, want = leaves_of(got), leaves_of(want)
    assert len(got) == len(want) > 0
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert w.abs().max() > 0
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= bound


def both(torch: Any, compute: Any, bound: float = BOUND, **options: Any) -> None:
    """compute(layer, x, hx) is the same for ours and torch.nn.RNN."""
    made = []
    for layer in twins(torch, 3, 5, dtype=torch.float64, **options):
        x, hx, _ = inputs(torch, layer, "batched", 4, 3)
        made.append(compute(layer, x.detach(), hx.detach()))
    assert_same(*made, bound)


def parameters(layer: Any) -> dict[str, Any]:
    return {name: p.detach() for name, p in layer.named_parameters()}


def call(layer: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
    from torch.func import functional_call

    return functional_call(layer, weights, args, kwargs)


# ---- Against finite differences


@pytest.mark.parametrize("kind", ["plain", "lengths", "reset", "lengths and reset", "packed"])
@pytest.mark.parametrize(
    "options", [{}, {"nonlinearity": "relu"}, {"bias": False}, {**DEEP, "batch_first": True}], ids=str
)
def test_gradcheck_and_gradgradcheck(torch: Any, options: dict[str, Any], kind: str) -> None:
    """Of input, hx and every parameter, in reverse and forward mode, forward over reverse, and with batched gradients:
    torch's own checks against finite differences."""
    from torch.nn.utils.rnn import PackedSequence

    ours, _ = twins(torch, 3, 2, dtype=torch.float64, **options)
    x, hx, _ = inputs(torch, ours, "batched", 3, 3)
    how: dict[str, Any] = {}
    if "lengths" in kind:
        how["lengths"] = torch.tensor([2, 3, 0])
    if "reset" in kind:
        how["reset"] = torch.tensor([[True, False, True], [False, True, False], [False, True, True]])

    def run(x: Any, hx: Any, *weights: Any) -> Any:
        named = dict(zip(dict(ours.named_parameters()), weights, strict=True))
        if kind != "packed":
            return call(ours, named, x, hx, **how)
        order, back = torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])
        output, h_n = call(ours, named, PackedSequence(x.flatten(0, 1)[:6], torch.tensor([3, 2, 1]), order, back), hx)
        return output.data, h_n

    leaves = (x, hx, *ours.parameters())
    batched = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(
        run, leaves, fast_mode=True, check_forward_ad=True, check_batched_forward_grad=True, **batched
    )
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, check_fwd_over_rev=True, **batched)


def test_every_element_of_the_second_derivative(torch: Any) -> None:
    """The gradgradcheck that computes each Jacobian element by element."""
    ours, _ = twins(torch, 2, 2, bidirectional=True, dtype=torch.float64)
    x, hx, _ = inputs(torch, ours, "batched", 3, 1)
    names = list(dict(ours.named_parameters()))
    assert torch.autograd.gradgradcheck(
        lambda x, hx, *w: call(ours, dict(zip(names, w, strict=True)), x, hx), (x, hx, *ours.parameters())
    )


# ---- create_graph


@pytest.mark.parametrize("edit", [False, True])
def test_double_backward(torch: Any, edit: bool) -> None:
    """A gradient penalty, also where the output was modified in place before."""

    def compute(layer: Any, x: Any, hx: Any) -> Any:
        x.requires_grad_()
        output, h_n = layer(x, hx)
        loss = scalar((output.mul_(2) if edit else output, h_n))
        leaves = [x, *layer.parameters()]
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return first, torch.autograd.grad(sum((g**2).sum() for g in first), leaves)

    both(torch, compute, **DEEP)


def test_third_derivative(torch: Any) -> None:
    def compute(layer: Any, x: Any, hx: Any) -> Any:
        x.requires_grad_()
        (first,) = torch.autograd.grad(scalar(layer(x, hx)), x, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), x, create_graph=True)
        return torch.autograd.grad((second**3).sum(), [x, layer.weight_hh_l0])

    both(torch, compute, bidirectional=True)


def test_saturated_units_have_finite_second_derivatives(torch: Any) -> None:
    """h = 1 and f' = 0 exactly: nothing is divided by f'."""

    def compute(layer: Any, x: Any, hx: Any) -> Any:
        x[0, 0] = 1e6
        x.requires_grad_()
        (first,) = torch.autograd.grad(scalar(layer(x, hx)), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), [x, layer.weight_hh_l0])

    both(torch, compute)


def test_what_lies_beyond_lengths_is_never_read(torch: Any) -> None:
    """Second derivatives, and tangents, are finite and the same though NaN lies beyond each row's end."""
    ours, _ = twins(torch, 3, 5, bidirectional=True, dtype=torch.float64)
    x, hx, _ = inputs(torch, ours, "batched", 4, 3)
    lengths = torch.tensor([2, 4, 0])
    inside = (torch.arange(4)[:, None] < lengths)[..., None]
    made = []
    for filling in (0.5, float("nan")):
        given = torch.where(inside, x.detach(), filling).requires_grad_()
        output, h_n = ours(given, hx, lengths=lengths)
        first = torch.autograd.grad(scalar((output, h_n)), [given, *ours.parameters()], create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), [given, hx, *ours.parameters()])
        tangent = torch.func.jvp(
            lambda w, given=given: call(ours, w, given, hx, lengths=lengths),
            (parameters(ours),),
            ({name: p.cos() for name, p in parameters(ours).items()},),
        )[1]
        made.append([*first, *second, *tangent])
    assert all(map(torch.equal, *made))
    assert all(bool(g.isfinite().all()) for g in made[0])


# ---- torch.func


COMPOSED = [
    "grad",
    "jacrev",
    "jacfwd",
    "hessian",
    "reverse over reverse",
    "forward over forward",
    "reverse over forward",
]


@pytest.mark.parametrize("options", [DEEP, {"nonlinearity": "relu"}], ids=str)
@pytest.mark.parametrize("way", COMPOSED)
def test_transforms(torch: Any, way: str, options: dict[str, Any]) -> None:
    """Every composition gives what torch.autograd gives for torch.nn.RNN."""
    from torch import func
    from torch.autograd import functional

    ours, stock = twins(torch, 3, 5, dtype=torch.float64, **options)
    x, hx, _ = inputs(torch, ours, "batched", 4, 3)
    x, hx, weights = x.detach(), hx.detach(), parameters(ours)

    def loss(x: Any) -> Any:
        return scalar(call(ours, weights, x, hx))

    if way == "grad":
        got = func.grad(lambda w, x, hx: scalar(call(ours, w, x, hx)), argnums=(0, 1, 2))(weights, x, hx)
        leaves = [*stock.parameters(), x.requires_grad_(), hx.requires_grad_()]
        assert_same(got, torch.autograd.grad(scalar(stock(x, hx)), leaves))
    elif way.startswith("jac"):
        want = functional.jacobian(lambda x: stock(x, hx), x)
        assert_same(getattr(func, way)(lambda x: call(ours, weights, x, hx))(x), want)
    else:
        reverse, forward = func.jacrev, func.jacfwd
        compose = {
            "hessian": func.hessian,
            "reverse over reverse": lambda f: reverse(reverse(f)),
            "forward over forward": lambda f: forward(forward(f)),
            "reverse over forward": lambda f: reverse(forward(f)),
        }[way]
        assert_same(compose(loss)(x), functional.hessian(lambda x: scalar(stock(x, hx)), x))


def test_jvp_of_everything_at_once(torch: Any) -> None:
    def compute(layer: Any, x: Any, hx: Any) -> Any:
        primals = (parameters(layer), x, hx)
        dots = ({name: p.sin() for name, p in primals[0].items()}, x.cos(), hx.sin())
        return torch.func.jvp(lambda *p: call(layer, *p), primals, dots)

    both(torch, compute, **DEEP)


def test_dual_tensors(torch: Any) -> None:
    """Outside torch.func: tangents, reverse mode through them, forward over reverse, and dual upstream gradients."""
    from torch.autograd import forward_ad

    def compute(layer: Any, x: Any, hx: Any) -> Any:
        x.requires_grad_()
        outside = layer(x, hx)[0]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, x.detach().cos())
            output, h_n = layer(dual, hx)
            tangents = [forward_ad.unpack_dual(each).tangent for each in (output, h_n)]
            through = torch.autograd.grad(scalar(tangents), [x, *layer.parameters()], retain_graph=True)
            over = torch.autograd.grad(scalar((output, h_n)), [dual, *layer.parameters()])
            upstream = forward_ad.make_dual(outside.detach(), outside.detach().cos())
            late = torch.autograd.grad(outside, [x, *layer.parameters()], upstream)
            return tangents, through, [forward_ad.unpack_dual(g).tangent for g in (*over, *late)]

    both(torch, compute, **DEEP)


def test_in_place_edits_under_a_transform(torch: Any) -> None:
    def compute(layer: Any, x: Any, hx: Any) -> Any:
        return torch.func.grad(lambda x: layer(x, hx)[0].mul_(2).pow(2).sum())(x)

    both(torch, compute, **DEEP)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_batched_gradients(torch: Any, strategy: str) -> None:
    """torch.autograd.grad(is_grads_batched=True) and torch.autograd.functional(vectorize=True)."""
    from torch.autograd import functional

    def compute(layer: Any, x: Any, hx: Any) -> Any:
        upstream = torch.randn(2, 4, 3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        batched = torch.autograd.grad(layer(x, hx)[0], list(layer.parameters()), upstream, is_grads_batched=True)
        fast = {"vectorize": True, "strategy": strategy}
        over = {"vectorize": True, "outer_jacobian_strategy": strategy}
        return (
            batched,
            functional.jacobian(lambda x: layer(x, hx), x, **fast),
            functional.hessian(lambda x: scalar(layer(x, hx)), x, **over),
        )

    both(torch, compute, bidirectional=True)


# ---- vmap


def stacked(results: Any, dim: int = 0) -> Any:
    import torch

    return tuple(torch.stack(each, dim) for each in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["plain", "lengths", "reset", "packed"])
@pytest.mark.parametrize(("in_dim", "out_dim"), [(0, 0), (2, 1), (-1, -1)])
def test_vmap_over_the_input_is_one_call_with_the_same_bits(
    torch: Any, monkeypatch: pytest.MonkeyPatch, kind: str, in_dim: int, out_dim: int
) -> None:
    """The mapped dimension goes into the batch: each layer and direction runs once."""
    from fastrnn.torch import autograd

    ours, _ = twins(torch, 3, 5, **DEEP)
    hx, xs = torch.randn(4, 3, 5), torch.randn(6, 4, 3, 3)
    how: dict[str, Any] = {}
    if kind == "lengths":
        how["lengths"] = torch.tensor([4, 0, 2])
    elif kind == "reset":
        how["reset"] = torch.rand(4, 3) < 0.5

    def run(x: Any) -> Any:
        if kind != "packed":
            return ours(x, hx, **how)
        output, h_n = ours(torch.nn.utils.rnn.PackedSequence(x.reshape(12, 3)[:6], torch.tensor([3, 2, 1])), hx)
        return output.data, h_n

    want = stacked([run(x) for x in xs], out_dim)
    calls, real = [], autograd.rnn_layer
    monkeypatch.setattr(autograd, "rnn_layer", lambda *args: calls.append(1) or real(*args))
    got = torch.func.vmap(run, in_dim, out_dim)(xs.movedim(0, in_dim))
    assert len(calls) == 2
    assert all(map(torch.equal, got, want))


def test_ensembles(torch: Any) -> None:
    """vmap over the weights, and over both; its gradients; the second derivative too."""
    from torch import func

    layers = [twins(torch, 3, 5, seed=seed, dtype=torch.float64, **DEEP) for seed in range(3)]
    ours, xs = layers[0][0], torch.randn(3, 4, 2, 3, dtype=torch.float64)
    weights = {
        name: torch.stack([dict(m.named_parameters())[name] for m, _ in layers]).detach() for name in parameters(ours)
    }
    for dims in ((0, None), (0, 0)):
        one = dims[1] is None
        got = func.vmap(lambda w, x: call(ours, w, x), dims)(weights, xs[0] if one else xs)
        assert_same(got, stacked([stock(xs[0] if one else x) for (_, stock), x in zip(layers, xs, strict=True)]))
    got = func.vmap(func.grad(lambda w, x: scalar(call(ours, w, x))))(weights, xs)
    for (_, stock), x, i in zip(layers, xs, range(3), strict=True):
        want = torch.autograd.grad(scalar(stock(x)), list(stock.parameters()))
        assert_same([g[i] for g in got.values()], want)

    def penalty(weights: Any) -> Any:
        inner = func.vmap(func.grad(lambda w, x: scalar(call(ours, w, x)), argnums=1))(weights, xs)
        return (inner**2).sum()

    got = func.grad(penalty)(weights)
    for (_, stock), x, i in zip(layers, xs, range(3), strict=True):
        x = x.clone().requires_grad_()
        (inner,) = torch.autograd.grad(scalar(stock(x)), x, create_graph=True)
        want = torch.autograd.grad((inner**2).sum(), list(stock.parameters()), allow_unused=True)
        assert_same([g[i] for g, w in zip(got.values(), want, strict=True) if w is not None], want)


@pytest.mark.parametrize("single", [False, True])
def test_per_sample_gradients(torch: Any, single: bool) -> None:
    from torch import func

    ours, stock = twins(torch, 3, 5, dtype=torch.float64, **DEEP)
    x, hx, _ = inputs(torch, ours, "batched", 4, 3)
    x, hx = x.detach(), hx.detach()

    def loss(weights: Any, x: Any, hx: Any) -> Any:
        return scalar(call(ours, weights, x, hx) if single else call(ours, weights, x[:, None], hx[:, None]))

    got = func.vmap(func.grad(loss), in_dims=(None, 1, 1))(parameters(ours), x, hx)
    for b in range(3):
        row = slice(b, b + 1)
        want = torch.autograd.grad(scalar(stock(x[:, row], hx[:, row])), list(stock.parameters()))
        assert_same([g[b] for g in got.values()], want)


def test_vmap_inside_and_outside(torch: Any) -> None:
    """Nested vmap, vmap of Hessian-vector products, and torch.autograd around a vmap."""
    from torch import func

    def compute(layer: Any, x: Any, hx: Any) -> Any:
        ours = not isinstance(layer, torch.nn.RNN)
        vs = torch.stack([x.cos(), x.sin()])
        hvp = lambda v: func.jvp(func.grad(lambda x: scalar(layer(x, hx))), (x,), (v,))[1]  # noqa: E731
        products = func.vmap(hvp)(vs) if ours else torch.stack([hvp(v) for v in vs])
        vs = torch.stack([vs, 2 * vs]).requires_grad_()
        run = lambda x: layer(x, hx)  # noqa: E731
        results = func.vmap(func.vmap(run))(vs) if ours else stacked([stacked([run(v) for v in each]) for each in vs])
        first = torch.autograd.grad(scalar(results), [vs, *layer.parameters()], create_graph=True)
        return products, first, torch.autograd.grad(sum((g**2).sum() for g in first), [vs, *layer.parameters()])

    both(torch, compute, **DEEP)


def test_dropout_in_a_vmap_needs_its_randomness(torch: Any) -> None:
    ours, _ = twins(torch, 3, 5, num_layers=2, dropout=0.5)
    xs = torch.randn(1, 4, 3, 3).expand(6, 4, 3, 3)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda x: ours(x)[0])(xs)
    same = torch.func.vmap(lambda x: ours(x)[0], randomness="same")(xs)
    assert bool((same == same[0]).all())
    assert not bool((torch.func.vmap(lambda x: ours(x)[0], randomness="different")(xs) == same[0]).all())


def test_functionalize_runs_on_torch_and_says_so(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastrnn.torch.dispatch as dispatch

    monkeypatch.setattr(dispatch, "_warned", set())
    ours, stock = twins(torch, 3, 5)
    x = torch.randn(4, 3, 3)
    with pytest.warns(RuntimeWarning, match="functionalize"):
        got = torch.func.functionalize(lambda x: ours(x)[0])(x)
    assert normalised_error(got.detach().numpy(), stock(x)[0].detach().numpy()) <= 1e-6


def test_the_cell(torch: Any) -> None:
    """Second order, forward mode, per-sample gradients and ensembles of fastrnn.torch.RNNCell; torch.fx."""
    from torch import func

    import fastrnn

    made = []
    for kind in (fastrnn.torch.RNNCell, torch.nn.RNNCell):
        torch.manual_seed(2)
        cell = kind(3, 5, dtype=torch.float64)
        x, h = torch.randn(2, 3, 4, 3, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
        weights = parameters(cell)

        def steps(weights: Any, x: Any, h: Any, cell: Any = cell) -> Any:
            for x_t in x:
                h = call(cell, weights, x_t, h)
            return (h**3).sum()

        ours = kind is fastrnn.torch.RNNCell
        hessian = func.hessian(steps, argnums=1)(weights, x[0], h[0])
        mapped = func.vmap(func.grad(steps), (None, 0, 0)) if ours else None
        each = mapped(weights, x, h) if ours else stacked_dicts([func.grad(steps)(weights, x[i], h[i]) for i in (0, 1)])
        made.append((hessian, each))
    assert_same(*made)
    cell = fastrnn.torch.RNNCell(3, 5)
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(cell))
    assert torch.equal(traced(x[0, 0].float()), cell(x[0, 0].float()))


def stacked_dicts(results: Any) -> Any:
    import torch

    return {name: torch.stack([each[name] for each in results]) for name in results[0]}
