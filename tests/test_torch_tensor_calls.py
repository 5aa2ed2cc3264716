"""The native module's calls on torch tensors: the bits of the calls on NumPy's views; None for what is not dense."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


def functions(torch: Any) -> Any:
    from fastrnn.torch import dispatch

    found = dispatch.backend()
    if not hasattr(found, "forward_tensors"):
        pytest.skip("only the backend cpp has them")
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize(
    ("T", "B", "I", "H"), [(1, 1, 1, 1), (1, 3, 17, 33), (7, 1, 9, 31), (3, 0, 4, 7), (20, 65, 63, 129)]
)
@pytest.mark.parametrize("case", ["all", "no bias, no hx", "only d_h_n", "frozen matrices"])
def test_same_bits_as_through_numpy(
    torch: Any,
    monkeypatch: pytest.MonkeyPatch,
    T: int,
    B: int,
    I: int,
    H: int,
    case: str,
    nonlinearity: str,
    dtype: str,
) -> None:
    from fastrnn.torch import RNN, dispatch

    real = functions(torch)
    torch.manual_seed(T + B)
    kind = getattr(torch, dtype)
    layer = RNN(I, H, nonlinearity=nonlinearity, bias=case != "no bias, no hx", dtype=kind)
    x = torch.randn(T, B, I, dtype=kind, requires_grad=True)
    hx = None if case == "no bias, no hx" else torch.randn(1, B, H, dtype=kind, requires_grad=True)
    if case == "frozen matrices":
        layer.weight_ih_l0.requires_grad_(False)
        layer.weight_hh_l0.requires_grad_(False)
    leaves = [t for t in (x, hx, *layer.parameters()) if t is not None and t.requires_grad]
    upstream = torch.randn(T, B, H, dtype=kind), torch.randn(1, B, H, dtype=kind)

    def results() -> list[Any]:
        output, h_n = layer(x, hx)
        outputs, given = ([h_n], upstream[1:]) if case == "only d_h_n" else ([output, h_n], upstream)
        return [output, h_n, *torch.autograd.grad(outputs, leaves, given)]

    calls = []
    spied = {
        name: lambda *a, name=name: calls.append(name) or getattr(real, name)(*a)
        for name in ("forward_tensors", "backward_tensors")
    }
    monkeypatch.setattr(dispatch, "backend", lambda *_: SimpleNamespace(**spied))
    got = results()
    assert calls == ["forward_tensors", "backward_tensors"]
    through_numpy = SimpleNamespace(rnn_forward=real.rnn_forward, rnn_backward=real.rnn_backward)
    monkeypatch.setattr(dispatch, "backend", lambda *_: through_numpy)
    want = results()
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.stride() == b.stride() or a.numel() == 0
        assert torch.equal(a, b)


def test_what_is_not_dense_is_left_to_numpy(torch: Any) -> None:
    """Each argument in turn strided, lazily negated, misaligned, zeros without memory: no call is made."""
    call = functions(torch).forward_tensors
    T, B, I, H = 3, 2, 5, 7
    shapes = {"x": (T, B, I), "h_0": (B, H), "w_ih": (H, I), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,)}
    dense = {name: torch.randn(shape) for name, shape in shapes.items()}
    assert call(*dense.values(), T, B, I, H, False, False, False, 1) is not None
    for name, shape in shapes.items():
        bytes_ = np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)
        odd = torch.from_numpy(bytes_[1:].view(np.float32).reshape(shape))
        absent = torch._efficientzerotensor(shape)
        for other in (torch.randn(*shape, 2)[..., 0], torch._neg_view(dense[name]), odd, absent):
            assert call(*(dense | {name: other}).values(), T, B, I, H, False, False, False, 1) is None


def test_errors_of_a_tensor_reach_the_caller(torch: Any) -> None:
    call = functions(torch).forward_tensors
    w = torch.zeros(1, 1)
    with pytest.raises(AttributeError):
        call(object(), None, w, w, None, None, 1, 1, 1, 1, False, False, False, 1)
    with pytest.raises(RuntimeError):
        call(
            torch.empty(1, 1, 1, device="meta").to_sparse(), None, w, w, None, None, 1, 1, 1, 1, False, False, False, 1
        )


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=["one call", "through NumPy"])
def test_a_gradient_of_zeros_without_memory(torch: Any, options: dict[str, Any]) -> None:
    """As torch's forward mode and derivatives of zero make them: the bits of zeros."""
    from fastrnn.torch import RNN

    layer, x = RNN(5, 7, **options), torch.randn(3, 2, 5, requires_grad=True)
    output, h_n = layer(x)
    d_h_n, found = torch.randn_like(h_n), []
    for zeros in (torch.zeros, torch._efficientzerotensor):
        upstream = [zeros(output.shape), d_h_n]
        found.append(torch.autograd.grad([output, h_n], [x, *layer.parameters()], upstream, retain_graph=True))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
