"""fastrnn.torch between forward and backward: converted models, hooks of saved tensors that return something else, and
upstream gradients of other classes. What does not fit is refused by name; before, kernels read beyond the memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from helpers import torch_node
from helpers.processes import output_of


@pytest.fixture(params=["python", "node"])
def node(request: Any, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_node.use(monkeypatch, request.param == "node")


def layer_and_output(torch: Any, cell: bool, **options: Any) -> tuple[Any, Any, Any]:
    """A layer of 5 and 7, its input, and its output or state."""
    import fastrnn.torch as ft

    layer = (ft.RNNCell if cell else ft.RNN)(5, 7, **options)
    x = torch.randn(*(() if cell else (4,)), 3, 5, requires_grad=True)
    made = layer(x)
    return layer, x, made if cell else made[0]


# ---- models that change


def to_half(model: Any) -> None:
    model.half()


def to_double(model: Any) -> None:
    model.double()


def there_and_back(model: Any) -> None:
    model.half().float()


def set_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0


CHANGES: list[Callable[[Any], None]] = [to_half, to_double, there_and_back, set_data]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "bias": False}, {"alpha": 0.5}])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_layer_converted_before_backward_raises(
    torch: Any, node: None, options: dict[str, Any], change: Callable[[Any], None], create_graph: bool
) -> None:
    """... also to the dtype it had: gradients for other weights than forward's would be wrong."""
    layer, x, output = layer_and_output(torch, False, **options)
    change(layer)
    with pytest.raises(RuntimeError, match=r"^w_ih: expected the memory that it had in forward, got another: call"):
        torch.autograd.grad(output.sum(), x, create_graph=create_graph)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{}, {"nonlinearity": "relu", "bias": False}, {"alpha": 0.5}])
def test_a_cell_converted_before_backward_raises(
    torch: Any, node: None, options: dict[str, Any], change: Callable[[Any], None]
) -> None:
    cell, _, state = layer_and_output(torch, True, **options)
    change(cell)
    with pytest.raises(RuntimeError, match=r"^w_ih: expected"):
        state.sum().backward()


def test_other_changes_do_no_harm(torch: Any, node: None) -> None:
    """New Parameter objects, memory that is freed and filled again (FSDP), a pass after the change."""
    layer, x, output = layer_and_output(torch, False)
    want = torch.autograd.grad(output.sum(), [x, *layer.parameters()], retain_graph=True)
    leaves = [x, *layer.parameters()]
    storage = layer.weight_hh_l0.untyped_storage()
    kept, size = layer.weight_hh_l0.detach().clone(), storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    layer.weight_hh_l0.data.copy_(kept)  # .data: counts no modification
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, torch.nn.Parameter(parameter.detach().clone().zero_()))
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), leaves), want))
    layer.double()
    x = x.detach().double().requires_grad_()
    layer(x)[0].sum().backward()
    assert x.grad is not None


# ---- hooks of saved tensors


def copied(t: Any) -> Any:
    """A Parameter where it was one, as torch.save and torch.load make it."""
    return copy.deepcopy(t.detach() if not t.is_leaf else t)


def halved(t: Any) -> Any:
    return t.half()


def doubled(t: Any) -> Any:
    return t.double()


def one_in_half(t: Any) -> Any:
    return t.bfloat16() if tuple(t.shape) == (7, 7) else t


def cut(t: Any) -> Any:
    return t[:1]


def cut_output(t: Any) -> Any:
    return t[:1] if t.dim() == 3 and t.shape[-1] != 5 else t


def flattened(t: Any) -> Any:
    return t.flatten()


def flattened_output(t: Any) -> Any:
    return t.flatten() if t.dim() == 3 and t.shape[-1] != 5 else t


def without_memory(t: Any) -> Any:
    return t.to("meta")


HOOKS = [halved, doubled, one_in_half, cut, cut_output, flattened, flattened_output, without_memory]


@pytest.mark.parametrize("pack", HOOKS)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"alpha": 0.5}])
@pytest.mark.parametrize("edited", [False, True])
def test_a_hook_that_returns_something_else_raises(
    torch: Any, node: None, options: dict[str, Any], pack: Callable[[Any], Any], edited: bool
) -> None:
    """Another dtype, shape or device, of all saved tensors or of one; also where the output is computed again."""
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _, _, output = layer_and_output(torch, False, **options)
    if edited and pack in (cut_output, flattened_output):  # of which no use is made then
        return
    if edited:
        output.detach().zero_()
    with pytest.raises(RuntimeError, match=r"^(x|w_ih|w_hh|output): expected .* in backward, as in forward, got "):
        output.sum().backward()


@pytest.mark.parametrize("pack", [halved, doubled, one_in_half, cut, flattened, without_memory])
def test_a_hook_of_a_cell_that_returns_something_else_raises(
    torch: Any, node: None, pack: Callable[[Any], Any]
) -> None:
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _, _, state = layer_and_output(torch, True)
    with pytest.raises(RuntimeError, match=r"expected .* got "):
        state.sum().backward()


def test_a_hook_that_cuts_all_alike_raises(torch: Any, node: None) -> None:
    """Fewer steps of x and of the output fit each other, but not what forward saw."""
    import fastrnn.torch as ft

    layer, x = ft.RNN(5, 7), torch.randn(4, 3, 5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t[:1] if t.dim() == 3 else t, lambda t: t):
        _, h_n = layer(x)
    with pytest.raises(RuntimeError, match=r"^x: expected "):
        h_n.sum().backward()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hooks_that_give_back_the_values_are_welcome(torch: Any, node: None, dtype: str) -> None:
    """Copies, other strides: the bits of backward without hooks."""
    import fastrnn.torch as ft

    layer = ft.RNN(5, 7, dtype=getattr(torch, dtype))
    x = torch.randn(4, 3, 5, dtype=getattr(torch, dtype), requires_grad=True)
    leaves = [x, *layer.parameters()]
    want = torch.autograd.grad(layer(x)[0].sum(), leaves)
    for pack in (lambda t: t, lambda t: t.clone(), copied, lambda t: t.mT.contiguous().mT if t.dim() > 1 else t):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output, _ = layer(x)
        assert all(map(torch.equal, torch.autograd.grad(output.sum(), leaves), want))


def test_the_native_calls_look_at_dtype_and_shape(torch: Any) -> None:
    """None, as for all that is not dense, instead of memory of another size."""
    from fastrnn.torch import dispatch

    functions = dispatch.backend()
    if not hasattr(functions, "forward_tensors"):
        pytest.skip("only the backend cpp has them")
    T, B, I, H = 4, 3, 5, 7
    x, h_0, w_ih, w_hh, b = (torch.randn(s) for s in ((T, B, I), (1, B, H), (H, I), (H, H), (H,)))
    forward = {"x": x, "h_0": h_0, "w_ih": w_ih, "w_hh": w_hh, "b_ih": b, "b_hh": b}
    output, h_n = torch.randn(T, B, H), torch.randn(1, B, H)
    backward = {"d_output": output, "d_h_n": h_n, "output": output, "x": x, "h_0": h_0, "w_ih": w_ih, "w_hh": w_hh}
    needs = (True,) * 5

    def run(given: dict[str, Any]) -> Any:
        if "output" in given:
            return functions.backward_tensors(*given.values(), T, B, I, H, False, *needs, False, False, 1)
        return functions.forward_tensors(*given.values(), T, B, I, H, False, False, False, 1)

    for given in (forward, backward):
        assert run(given) is not None
        for name, value in given.items():
            for other in (value.half(), value.double(), value.int()):
                assert run(given | {name: other}) is None
            if given is backward:
                for other in (value[:-1], value.flatten(), value[..., :-1].contiguous(), value[None, None, None]):
                    assert run(given | {name: other}) is None


# ---- gradients of other classes


@pytest.mark.parametrize("kind", ["layer", "two directions", "cell", "ensemble"])
def test_gradients_that_wrap_tensors(torch: Any, node: None, kind: str) -> None:
    """As through torch.nn.RNN: each of the wrapped ones gets what it gets alone, in the same class."""
    from torch.testing._internal.two_tensor import TwoTensor

    import fastrnn.torch as ft

    double = {"dtype": torch.float64}
    layer = {
        "layer": lambda: ft.RNN(5, 7, **double),
        "two directions": lambda: ft.RNN(5, 7, num_layers=2, bidirectional=True, **double),
        "cell": lambda: ft.RNNCell(5, 7, **double),
        "ensemble": lambda: ft.RNNEnsemble(2, 5, 7, **double),
    }[kind]()
    x = torch.randn(*(() if kind == "cell" else (4,)), 3, 5, requires_grad=True, **double)
    made = layer(x)
    output = made if kind == "cell" else made[0]
    leaves = [x, *layer.parameters()]
    first, second = torch.randn_like(output), torch.randn_like(output)
    found = torch.autograd.grad(output, leaves, TwoTensor(first, second), retain_graph=True)
    for at, d in enumerate((first, second)):
        for got, want in zip(found, torch.autograd.grad(output, leaves, d, retain_graph=True), strict=True):
            assert type(got) is TwoTensor
            assert not got.requires_grad
            torch.testing.assert_close((got.a, got.b)[at], want, rtol=1e-12, atol=1e-12)


def test_a_subclass_with_memory_is_taken_as_it_is(torch: Any, node: None) -> None:
    layer, x, output = layer_and_output(torch, False)

    class Own(torch.Tensor):
        pass

    d = torch.randn_like(output)
    want = torch.autograd.grad(output, [x, *layer.parameters()], d, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(output, [x, *layer.parameters()], d.as_subclass(Own)), want))


# ---- the first import


def test_imported_where_another_device_is_the_default(torch: Any) -> None:
    code = (
        "import torch\n"
        "with torch.device('meta'):\n"
        "    import fastrnn.torch as ft\n"
        "layer = ft.RNN(5, 7)\n"
        "x = torch.randn(4, 3, 5, requires_grad=True)\n"
        "layer(x)[0].sum().backward()\n"
        "ft.RNNCell(5, 7)(x[0]).sum().backward()\n"
        "print(x.grad.isfinite().all().item())\n"
    )
    assert output_of(code, FASTRNN_TORCH_NODE="0").strip() == "True"


@pytest.mark.parametrize("cell", [False, True])
def test_parameters_can_be_swapped_after_backward(torch: Any, node: None, cell: bool) -> None:
    """Of which torch allows no weak references, while the output is still there."""
    layer, _, output = layer_and_output(torch, cell)
    output.sum().backward()
    layer.zero_grad()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert layer.double() is layer
    assert output.dtype is torch.float32
