"""vmap over lengths and reset of fastrnn.torch.RNN, and reset of RNNCell, against one call, or one step, at a time."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.compare import normalised_error
from helpers.torch_layers import name_of

pytestmark = pytest.mark.usefixtures("own_route")

T, B, I, H, V = 5, 3, 4, 6, 3
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"nonlinearity": "relu", "bias": False, "alpha": 0.4},
)


def made(torch: Any, **options: Any) -> tuple[Any, Any, Any, Any]:
    """A layer; V inputs, lengths and resets, as it takes them."""
    import fastrnn

    torch.manual_seed(0)
    layer = fastrnn.torch.RNN(I, H, dtype=torch.float64, **options)
    shape = (B, T) if layer.batch_first else (T, B)
    x = torch.randn(V, *shape, I, dtype=torch.float64)
    lengths = torch.tensor([[5, 0, 2], [1, 4, 3], [0, 0, 5]])
    return layer, x, lengths, torch.rand(V, *shape) < 0.3


def close(torch: Any, got: Any, want: Any) -> None:
    assert len(got) == len(want)
    for at, (g, w) in enumerate(zip(got, want, strict=True)):
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= 1e-12, at


@pytest.mark.parametrize("which", ["lengths", "reset", "both"])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_vmap_over_lengths_and_reset_is_one_call_after_the_other(
    torch: Any, options: dict[str, Any], which: str
) -> None:
    """Values, gradients of everything through vmap, and gradients of each model inside it; the input mapped or not."""
    layer, x, lengths, reset = made(torch, **options)
    hx = torch.randn(V, layer.num_layers * (1 + layer.bidirectional), B, H, dtype=torch.float64)
    at = (0 if which != "reset" else None, 0 if which != "lengths" else None)
    given = (lengths if at[0] == 0 else lengths[1], reset if at[1] == 0 else reset[1])
    parameters = dict(layer.named_parameters())

    def run(own: Any, x: Any, hx: Any, lengths: Any, reset: Any) -> Any:
        return torch.func.functional_call(layer, own, (x, hx), {"lengths": lengths, "reset": reset})

    def each(v: int) -> tuple[Any, Any]:
        return tuple(value[v] if dim == 0 else value for value, dim in zip(given, at, strict=True))

    for shared in (False, True):
        data = x[0].clone().requires_grad_() if shared else x.clone().requires_grad_()
        state = hx.clone().requires_grad_()
        dims = (None, None if shared else 0, 0, *at)
        ones = [run(parameters, data if shared else data[v], state[v], *each(v)) for v in range(V)]
        want = [torch.stack(values) for values in zip(*ones, strict=True)]
        got = list(torch.vmap(run, dims)(parameters, data, state, *given))
        upstream = [torch.randn_like(value) for value in want]
        wanted = [data, state, *parameters.values()]
        for results in (got, want):
            results += torch.autograd.grad(results, wanted, upstream)
        close(torch, got, want)

        def loss(*args: Any, weights: Any = upstream) -> Any:
            output, h_n = run(*args)
            return (output * weights[0][0]).sum() + (h_n * weights[1][0]).sin().sum()

        inner = torch.vmap(torch.func.grad(loss, (0, 1, 2)), dims)(parameters, data, state, *given)
        singles = [
            torch.func.grad(loss, (0, 1, 2))(parameters, data if shared else data[v], state[v], *each(v))
            for v in range(V)
        ]
        stacked = [
            torch.stack(values) for values in zip(*[torch.utils._pytree.tree_leaves(s) for s in singles], strict=True)
        ]
        close(torch, torch.utils._pytree.tree_leaves(inner), stacked)


def test_vmap_inside_vmap_over_lengths(torch: Any) -> None:
    layer, x, lengths, reset = made(torch)
    run = lambda x, lengths, reset: layer(x, lengths=lengths, reset=reset)  # noqa: E731
    got = torch.vmap(torch.vmap(run, (None, 0, None)), (0, None, 0))(x, lengths, reset)
    for v in range(V):
        for n in range(V):
            close(torch, [each[v, n] for each in got], layer(x[v], lengths=lengths[n], reset=reset[v]))


def test_bad_mapped_arguments(torch: Any) -> None:
    layer, x, lengths, reset = made(torch)
    for name, value, error, words in (
        ("lengths", lengths[:, :2], ValueError, r"lengths: expected shape \(B,\) = \(3,\), got \(2,\)"),
        ("lengths", lengths + 1, ValueError, r"lengths: expected values in 0..T = 0..5, got 6 at index 0"),
        ("lengths", lengths.double(), TypeError, "lengths: expected dtype int32 or int64, got float64"),
        ("reset", reset[:, :4], ValueError, r"reset: expected shape \(T, B\) = \(5, 3\), got \(4, 3\)"),
        ("reset", reset.int(), TypeError, "reset: expected dtype bool, got int32"),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{words}$"):
            torch.vmap(lambda x, value, name=name: layer(x, **{name: value}))(x, value)


# ---- RNNCell


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("options", [{}, {"nonlinearity": "relu", "bias": False}, {"alpha": 0.4}], ids=name_of)
def test_cell_restarts_rows(torch: Any, options: dict[str, Any], single: bool) -> None:
    """A loop that resets rows is the layer with the same reset, and its gradients: <= 1e-12. A state that is not finite
    does not come through."""
    import fastrnn

    layer, x, _, reset = made(torch, **options)
    x, reset = (x[0][:, 0], reset[0][:, 0]) if single else (x[0], reset[0])
    cell = fastrnn.torch.RNNCell(I, H, dtype=torch.float64, **options)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    hx = torch.randn(x.shape[1:-1] + (H,), dtype=torch.float64)
    results = []
    for module in (cell, layer):
        data, state = x.clone().requires_grad_(), hx.clone().requires_grad_()
        if module is layer:
            output, h_n = layer(data, state[None], reset=reset)
        else:
            h, states = state, []
            for t in range(T):
                h = cell(data[t], h, reset=reset[t])
                states.append(h)
            output, h_n = torch.stack(states), h[None]
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in (output, h_n)]
        wanted = [data, state, *module.parameters()]
        results.append([output, h_n, *torch.autograd.grad((output, h_n), wanted, upstream)])
    close(torch, *results)
    every = torch.ones(reset[0].shape, dtype=torch.bool)
    state = torch.full_like(hx, float("nan")).requires_grad_()
    new = cell(x[0], state, reset=every)
    assert torch.equal(new, cell(x[0]))
    assert torch.equal(torch.autograd.grad(new.sum(), state)[0], torch.zeros_like(hx))
    assert torch.equal(cell(x[0], reset=every), cell(x[0]))


def test_cell_reset_under_transforms_and_compiled(torch: Any) -> None:
    import fastrnn

    torch.manual_seed(0)
    cell, x, h = fastrnn.torch.RNNCell(I, H), torch.randn(V, B, I), torch.randn(V, B, H)
    reset = torch.rand(V, B) < 0.5
    want = torch.stack([cell(x[v], h[v], reset=reset[v]) for v in range(V)])
    assert torch.equal(torch.vmap(lambda x, h, r: cell(x, h, reset=r))(x, h, reset), want)
    compiled = torch.compile(lambda x, h, r: cell(x, h, reset=r), fullgraph=True, backend="eager")
    assert normalised_error(compiled(x[0], h[0], reset[0]).detach().numpy(), want[0].detach().numpy()) <= 1e-5
    half = fastrnn.torch.RNNCell(I, H, dtype=torch.bfloat16)
    assert torch.equal(half(x[0].bfloat16(), h[0].bfloat16(), reset=torch.ones(B).bool()), half(x[0].bfloat16()))


def test_bad_reset_of_a_cell(torch: Any) -> None:
    import fastrnn

    cell, x, h = fastrnn.torch.RNNCell(I, H), torch.randn(B, I), torch.randn(B, H)
    for value, error, words in (
        ([True] * B, TypeError, "torch.Tensor, got list"), (torch.ones(B), TypeError, "torch.bool, got torch.float32"),
        (torch.ones(B, 1).bool(), ValueError, r"shape \(B,\) = \(3,\), got \(3, 1\)"),
        (torch.ones(()).bool(), ValueError, r"shape \(B,\) = \(3,\), got \(\)"),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^reset: expected {words}$"):
            cell(x, h, reset=value)
    with pytest.raises(ValueError, match=r"^reset: expected shape \(\) = \(\), got \(1,\)$"):
        cell(x[0], h[0], reset=torch.ones(1).bool())
