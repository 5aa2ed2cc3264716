"""fastrnn.torch on a GPU, tensors whose elements are not simply in memory, negated lazily or zeros without any: both
backends get them settled. Through the stand-ins of test_cupy_routing.py."""

from __future__ import annotations

from test_cupy_routing import NATIVE, TORCH, needs_compiler, run

LAZY = """
def lazy(t):
    return torch._neg_view(-t)
x, hx = torch.randn(6, 3, 5, dtype=torch.float64), torch.randn(1, 3, 9, dtype=torch.float64)
d_output, d_h_n = torch.randn(6, 3, 9, dtype=torch.float64), torch.randn(1, 3, 9, dtype=torch.float64)
ours, stock = twins()
assert lazy(x).is_neg() and torch.equal(lazy(x), x)
values = stock(x, hx)
nothing = torch._efficientzerotensor(d_output.shape, dtype=x.dtype)
above = [[lazy(d_output), lazy(d_h_n)], [nothing, lazy(d_h_n)]]
plain = [[d_output, d_h_n], [torch.zeros_like(d_output), d_h_n]]
wanted = [torch.autograd.grad(values, list(stock.parameters()), d, retain_graph=True) for d in plain]
"""


@needs_compiler
def test_cupy_gets_settled_tensors(torch: object) -> None:
    code = (
        TORCH
        + LAZY
        + """
pretend()
for d, want in zip(above, wanted, strict=True):
    made = ours(lazy(x), lazy(hx))
    found = torch.autograd.grad(made, list(ours.parameters()), d)
    for got, right in zip([*made, *found], [*values, *want], strict=True):
        assert (got - right).abs().max() <= 1e-12 * right.abs().max()
print("settled")
"""
    )
    assert run(code).strip() == "settled"


@needs_compiler
def test_the_native_backend_gets_settled_tensors(torch: object) -> None:
    """It takes their addresses, so no flag may say that the elements are others."""
    code = (
        TORCH
        + LAZY
        + NATIVE
        + """
def check(*tensors):
    assert not any(t is not None and (t.is_neg() or t._is_zerotensor()) for t in tensors)
class Native:
    @staticmethod
    def rnn_forward(x, h_0, w_ih, w_hh, b_ih, b_hh, options, out=None, packed=None):
        check(x, h_0, w_ih, w_hh, b_ih, b_hh)
        return forward(x, h_0, w_ih, w_hh, b_ih, b_hh, out)
    @staticmethod
    def rnn_backward(d_output, d_h_n, output, x, h_0, w_ih, w_hh, options, needs):
        check(d_output, d_h_n, output, x, h_0, w_ih, w_hh)
        print("backward")
        return zeros(x, h_0, w_ih, w_hh)
registry._loaded["cuda", "cuda"] = registry.Backend("cuda", "cuda", True, functions=Native)
pretend()
for d in above:
    made = ours(lazy(x), lazy(hx))
    for got, right in zip(made, values):
        assert (got - right).abs().max() <= 1e-12
    torch.autograd.grad(made, list(ours.parameters()), d)
ours(lazy(x), lazy(hx))[1].sum().backward()  # None for the output's
"""
    )
    assert run(code).split() == ["backward"] * 3
