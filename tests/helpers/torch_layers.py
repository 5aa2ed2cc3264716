"""fastrnn.torch beside torch.nn: twins with the same parameters, run alike, and what comes out compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cases import SEED
from .compare import normalised_error


def twins(torch: Any, *args: Any, seed: int = 0, **kwargs: Any) -> tuple[Any, Any]:
    """A fastrnn.torch.RNN and a torch.nn.RNN, drawn from the same seed."""
    import fastrnn

    made = []
    for layer in (fastrnn.torch.RNN, torch.nn.RNN):
        torch.manual_seed(SEED + seed)
        made.append(layer(*args, **kwargs))
    return made[0], made[1]


def inputs(torch: Any, layer: Any, kind: str, T: int, B: int, seed: int = 0) -> tuple[Any, Any, list[Any]]:
    """input (a tensor or PackedSequence), hx, and the leaves to differentiate. kind: batched, single, packed_sorted,
    packed."""
    from torch.nn.utils.rnn import pack_padded_sequence

    generator = torch.Generator().manual_seed(SEED + seed)
    dtype = layer.weight_ih_l0.dtype

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).to(dtype)  # the same values in float32 and float64

    states = layer.num_layers * (2 if layer.bidirectional else 1)
    hx = normal(states, B, layer.hidden_size) if kind != "single" else normal(states, layer.hidden_size)
    hx = (0.5 * hx).requires_grad_()
    if kind == "single":
        x = normal(T, layer.input_size).requires_grad_()
        return x, hx, [x, hx]
    x = (normal(B, T, layer.input_size) if layer.batch_first else normal(T, B, layer.input_size)).requires_grad_()
    if kind == "batched":
        return x, hx, [x, hx]
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    if kind == "packed_sorted":
        lengths = lengths.sort(descending=True).values
    packed = pack_padded_sequence(x, lengths, layer.batch_first, enforce_sorted=kind == "packed_sorted")
    return packed, hx, [x, hx]


def results(torch: Any, layer: Any, kind: str, T: int, B: int, seed: int = 0, hx: bool = True) -> dict[str, Any]:
    """output, h_n and the gradient of every leaf and parameter, for random upstream gradients of both, as arrays."""
    x, state, leaves = inputs(torch, layer, kind, T, B, seed)
    if not hx:
        state, leaves = None, leaves[:1]
    torch.manual_seed(SEED + 77)  # dropout
    output, h_n = layer(x, state)
    data = output.data if kind.startswith("packed") else output
    generator = torch.Generator().manual_seed(SEED + seed + 1)
    upstream = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in (data, h_n)]
    parameters = dict(layer.named_parameters())
    gradients = torch.autograd.grad((data, h_n), [*leaves, *parameters.values()], upstream)
    names = ["output", "h_n", "d_x", "d_hx"][: 2 + len(leaves)] + [f"d_{name}" for name in parameters]
    return {name: t.detach().numpy() for name, t in zip(names, (data, h_n, *gradients), strict=True)}


def assert_close(got: dict[str, Any], want: dict[str, Any], bound: float, what: str = "") -> None:
    """The same names, and each array within the normalised bound."""
    assert list(got) == list(want)
    errors = {name: normalised_error(np.asarray(got[name]), np.asarray(want[name])) for name in want}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= bound, f"{what} {worst}: normalised error {errors[worst]:.2e} against torch.nn.RNN"


def name_of(options: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items()) or "plain"


def cell_twins(torch: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """A fastrnn.torch.RNNCell and a torch.nn.RNNCell, drawn from the same seed."""
    import fastrnn

    made = []
    for cell in (fastrnn.torch.RNNCell, torch.nn.RNNCell):
        torch.manual_seed(SEED)
        made.append(cell(*args, **kwargs))
    return made[0], made[1]


def cell_results(
    torch: Any, cell: Any, B: int | None, seed: int = 0, hx: bool = True, grad: bool = True
) -> dict[str, Any]:
    """The state for random input and hx (one row for B = None), and the gradient of all for a random one of it."""
    generator = torch.Generator().manual_seed(SEED + seed)
    dtype, rows = cell.weight_ih.dtype, () if B is None else (B,)

    def normal(n: int) -> Any:
        return torch.randn(*rows, n, generator=generator).to(dtype)

    x, h, upstream = normal(cell.input_size), normal(cell.hidden_size), normal(cell.hidden_size)
    leaves = [x.requires_grad_(grad), h.requires_grad_(grad)][: 1 + hx]
    state = cell(*leaves)
    found = {"state": state.detach().numpy()}
    if grad:
        parameters = dict(cell.named_parameters())
        gradients = torch.autograd.grad(state, [*leaves, *parameters.values()], upstream)
        names = [*("d_x", "d_hx")[: 1 + hx], *(f"d_{name}" for name in parameters)]
        found |= {name: d.numpy() for name, d in zip(names, gradients, strict=True)}
    return found


def outcome(call: Any) -> tuple[str, str]:
    """Type and text of what is raised or warned of; or repr of what is returned."""
    try:
        return "", repr(call())
    except Exception as error:
        return type(error).__name__, str(error)


def leaves_of(value: Any) -> list[Any]:
    """The tensors in nested results."""
    import torch.utils._pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(value) if leaf is not None]


def scalar(results: Any) -> Any:
    """Of output and h_n, with a derivative of each."""
    return (results[0] ** 2).sum() + (results[1] ** 3).sum()
