"""Errors of fastrnn.torch.RNN: those of torch.nn.RNN, type and text; and those of lengths and reset, which it lacks."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.torch_layers import outcome, twins

CONSTRUCTOR: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    ((4, 6), {"proj_size": 0}),
    ((4, 6, 1, "tanh", True, False, 0.0, False, 7), {}),
    ((4, 6), {"nonlinearity": "sigmoid"}),
    ((4, 6, 1, "gelu"), {}),
    ((4, 6, 1, "tanh"), {"nonlinearity": "relu"}),
    ((4, 6), {"foo": 1}),
    ((4,), {}),
    ((), {}),
    ((), {"hidden_size": 6}),
    ((4, 6), {"dropout": -0.1}),
    ((4, 6), {"dropout": 1.1}),
    ((4, 6), {"dropout": True}),
    ((4, 6), {"dropout": "a"}),
    ((4, 6), {"dropout": 0.5}),
    ((4, 6), {"bias": 1}),
    ((4, 6), {"batch_first": 1}),
    ((4.0, 6), {}),
    ((4, 6.0), {}),
    ((0, 6), {}),
    ((4, 0), {}),
    ((4, -1), {}),
    ((4, 6, 0), {}),
    ((4, 6, 2.0), {}),
    ((4, 6), {"dtype": "int32"}),
    ((True, 6), {}),
    ((4, 6), {"bidirectional": 1}),
    ((4, 6, 2, "relu", False, True, 0.5, True), {}),
)


@pytest.mark.parametrize("case", range(len(CONSTRUCTOR)))
def test_the_constructors_errors_are_torchs(torch: Any, case: int) -> None:
    """The warning about dropout, an error here, among them."""
    import fastrnn

    args, kwargs = CONSTRUCTOR[case]
    if "dtype" in kwargs:
        kwargs = {"dtype": getattr(torch, kwargs["dtype"])}
    got, want = (outcome(lambda layer=layer: layer(*args, **kwargs)) for layer in (fastrnn.torch.RNN, torch.nn.RNN))
    assert got == want


def forward_cases(torch: Any) -> dict[str, Any]:
    from torch.nn.utils.rnn import PackedSequence

    def normal(*shape: int, dtype: Any = torch.float32) -> Any:
        return torch.randn(shape, dtype=dtype)

    def packed(data: Any, sizes: list[int]) -> Any:
        return PackedSequence(data, torch.tensor(sizes, dtype=torch.int64))

    return {
        "1-D": (normal(4),),
        "4-D": (normal(1, 5, 3, 4),),
        "0-D": (normal(),),
        "2-D input, 3-D hx": (normal(5, 4), normal(2, 3, 6)),
        "3-D input, 2-D hx": (normal(5, 3, 4), normal(2, 6)),
        "dtype": (normal(5, 3, 4, dtype=torch.float64),),
        "dtype bfloat16": (normal(5, 3, 4, dtype=torch.bfloat16),),
        "dtype int": (torch.ones(5, 3, 4, dtype=torch.int64),),
        "features": (normal(5, 3, 9),),
        "features of one sequence": (normal(5, 9),),
        "hx batch": (normal(5, 3, 4), normal(2, 9, 6)),
        "hx layers": (normal(5, 3, 4), normal(3, 3, 6)),
        "hx hidden": (normal(5, 3, 4), normal(2, 3, 7)),
        "hx of one sequence": (normal(5, 4), normal(2, 7)),
        "hx dtype": (normal(5, 3, 4), normal(2, 3, 6, dtype=torch.float64)),
        "T = 0": (normal(0, 3, 4),),
        "T = 0 with hx": (normal(0, 3, 4), normal(2, 3, 6)),
        "T = 0 of one sequence": (normal(0, 4),),
        "packed 3-D": (packed(normal(3, 3, 4), [3]),),
        "packed features": (packed(normal(3, 9), [2, 1]),),
        "packed without steps": (packed(normal(0, 4), []),),
        "packed hx": (packed(normal(3, 4), [2, 1]), normal(2, 6)),
        "packed hx batch": (packed(normal(3, 4), [2, 1]), normal(2, 3, 6)),
        "packed dtype": (packed(normal(3, 4, dtype=torch.float64), [2, 1]),),
        "list": ([[[1.0] * 4]],),
        "None": (None,),
        "tuple hx": (normal(5, 3, 4), (normal(2, 3, 6),)),
        "sparse": (normal(5, 3, 4).to_sparse(),),
        "no input": (),
    }


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_forwards_errors_are_torchs(torch: Any, first: bool, grad: bool) -> None:
    layers = twins(torch, 4, 6, 2, batch_first=first)
    for name, args in forward_cases(torch).items():
        with torch.set_grad_enabled(grad):
            got, want = (outcome(lambda layer=layer, args=args: layer(*args)) for layer in layers)
        if name == "no input":
            assert got[0] == want[0] == "TypeError"
            continue
        if first and name.startswith("T = 0") and "one" not in name:  # these are N = 0 then
            continue
        assert want[0], name
        assert got == want, name


def test_weights_of_a_wrong_kind_raise_torchs_errors(torch: Any) -> None:
    def cut(layer: Any) -> None:
        layer.weight_hh_l0.data = torch.randn(6, 5)

    def cut_bias(layer: Any) -> None:
        layer.bias_ih_l0.data = torch.randn(3)

    def lose(layer: Any) -> None:
        layer.bias_hh_l0 = None

    def mix(layer: Any) -> None:
        layer.weight_hh_l0.data = layer.weight_hh_l0.data.double()

    for spoil in (cut, cut_bias, lose, mix):
        found = []
        for layer in twins(torch, 4, 6):
            spoil(layer)
            found.append(outcome(lambda layer=layer: layer(torch.ones(5, 3, 4))))
        assert found[0] == found[1], spoil.__name__
        assert found[0][0], spoil.__name__
    found = [
        outcome(lambda layer=layer: setattr(layer, "weight_hh_l0", torch.ones(6, 6))) for layer in twins(torch, 4, 6)
    ]
    assert found[0] == found[1]
    assert found[0][0] == "TypeError"


def test_errors_of_lengths_and_reset(torch: Any) -> None:
    import fastrnn

    ours = fastrnn.torch.RNN(4, 6)
    first = fastrnn.torch.RNN(4, 6, batch_first=True)
    x, one = torch.randn(5, 3, 4), torch.randn(5, 4)
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    three, flags = torch.tensor([1, 2, 3]), torch.zeros(5, 3, dtype=torch.bool)
    cases = [
        (ours, x, {"lengths": [1, 2, 3]}, TypeError, "lengths: expected torch.Tensor, got list"),
        (ours, x, {"lengths": three.float()}, TypeError, "lengths: expected dtype int32 or int64, got float32"),
        (ours, x, {"lengths": three[:2]}, ValueError, "lengths: expected shape (B,) = (3,), got (2,)"),
        (ours, x, {"lengths": three[None]}, ValueError, "lengths: expected 1 dimension, got shape (1, 3)"),
        (ours, x, {"lengths": three + 3}, ValueError, "lengths: expected values in 0..T = 0..5, got 6 at index 2"),
        (ours, x, {"lengths": three - 2}, ValueError, "lengths: expected values in 0..T = 0..5, got -1 at index 0"),
        (ours, one, {"lengths": three}, ValueError, "lengths: expected None for one sequence (T, I), got shape (3,)"),
        (ours, packed, {"lengths": three}, ValueError, "lengths: expected None beside a PackedSequence, got Tensor"),
        (ours, packed, {"reset": flags}, ValueError, "reset: expected None beside a PackedSequence, got Tensor"),
        (ours, x, {"reset": [True]}, TypeError, "reset: expected torch.Tensor, got list"),
        (ours, x, {"reset": flags.int()}, TypeError, "reset: expected dtype bool, got int32"),
        (ours, x, {"reset": flags.T}, ValueError, "reset: expected shape (T, B) = (5, 3), got (3, 5)"),
        (first, x, {"reset": flags.T}, ValueError, "reset: expected shape (B, T) = (5, 3), got (3, 5)"),
        (ours, one, {"reset": flags}, ValueError, "reset: expected shape (T,) = (5,), got (5, 3)"),
        (ours, torch.randn(5, 3, 9), {"lengths": three}, RuntimeError, "input.size(-1) must be equal to input_size. "
         "Expected 4, got 9"),
    ]  # fmt: skip
    for layer, given, how, kind, text in cases:
        with pytest.raises(kind) as caught:
            layer(given, **how)
        assert type(caught.value) is kind
        assert str(caught.value) == text
    with pytest.raises(TypeError):
        ours(x, None, three)  # by keyword only
