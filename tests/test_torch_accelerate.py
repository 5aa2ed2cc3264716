"""accelerate swaps the layers of a model in place and says what it left; restore undoes exactly that."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
from helpers.processes import output_of, run_python


@pytest.fixture
def t(torch: Any) -> Any:
    import fastrnn.torch

    return fastrnn.torch


def model_of(torch: Any) -> Any:
    """Plain, nested, in lists, under two names, of both kinds; beside an LSTM and a Linear."""
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.RNN(5, 7, 2, dropout=0.3, batch_first=True)
            self.alias = self.encoder
            self.cells = torch.nn.ModuleList([torch.nn.RNNCell(7, 7), torch.nn.RNNCell(7, 7, nonlinearity="relu")])
            self.head = torch.nn.Sequential(torch.nn.RNN(7, 3, bidirectional=True))
            self.lstm = torch.nn.LSTM(6, 2)

        def forward(self, x: Any) -> Any:
            x, h = self.encoder(x)
            step = self.cells[1](self.cells[0](h[0]))
            return self.lstm(self.head(x + step[:, None])[0])[0]

    return Model()


SWAPPED = ["encoder", "cells.0", "cells.1", "head.0"]


def state_of(model: Any) -> list[Any]:
    """All that a module is: class, attributes and the identity of every object in its dictionaries."""
    return [
        (name, id(module), type(module), {
            key: {k: id(v) for k, v in value.items()} if isinstance(value, dict) else
            [id(v) for v in value] if isinstance(value, list) else value
            for key, value in vars(module).items() if key != "_flat_weight_refs"
        })
        for name, module in model.named_modules(remove_duplicate=False)
    ]  # fmt: skip


def test_swaps_and_restores(torch: Any, t: Any) -> None:
    """Exact types, the same objects, equal results; after restore everything is as it was."""
    model = model_of(torch)
    before, x = state_of(model), torch.randn(4, 6, 5)
    model.eval()
    want = model(x)
    model.train()
    report = t.accelerate(model)
    assert list(report.swapped) == SWAPPED
    assert report.left == {}
    assert [type(module) for module in report.swapped.values()] == [t.RNN, t.RNNCell, t.RNNCell, t.RNN]
    assert model.alias is model.encoder is report.swapped["encoder"]
    assert type(model.lstm) is torch.nn.LSTM
    assert all(module.training for module in model.modules())
    assert torch.allclose(model.eval()(x), want, atol=1e-5)
    assert not torch.equal(
        model.encoder(x)[0], torch.nn.RNN.forward(model.encoder, x)[0]
    )  # other roundings: our kernels
    model.train()
    assert t.accelerate(model).swapped == {}
    report = t.restore(model)
    assert report.action == "restore"
    assert list(report.swapped) == SWAPPED
    assert state_of(model) == before
    assert t.restore(model).swapped == {}


def test_trains_as_before(torch: Any, t: Any) -> None:
    """An optimizer with state, hooks and gradients from before the swap go on; in the middle of training, and back."""
    losses = []
    for swap in (False, True):
        model, calls = model_of(torch).double(), []
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        model.encoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for step in range(6):
            if swap and step == 2:
                t.accelerate(model)
            if swap and step == 4:
                t.restore(model)
            torch.manual_seed(step)
            loss = model(torch.randn(4, 6, 5, dtype=torch.float64)).pow(2).sum()
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert len(calls) == 6
    assert losses[6:] == pytest.approx(losses[:6], rel=1e-10)
    assert losses[5] < losses[0]


@pytest.mark.parametrize("kind", ["RNN", "RNNCell"])
def test_the_model_itself_may_be_the_layer(torch: Any, t: Any, kind: str) -> None:
    layer = getattr(torch.nn, kind)(5, 7)
    reference = weakref.ref(layer)
    assert list(t.accelerate(layer).swapped) == [""]
    assert reference() is layer
    assert type(layer) is getattr(t, kind)
    assert "(the model)" in str(t.restore(layer))
    assert type(layer) is getattr(torch.nn, kind)


def test_made_as_fastrnns_they_stay(torch: Any, t: Any) -> None:
    model = torch.nn.Sequential(t.RNN(5, 7), torch.nn.RNN(7, 3))
    assert list(t.accelerate(model).swapped) == ["1"]
    assert list(t.restore(model).swapped) == ["1"]
    assert [type(layer) for layer in model] == [t.RNN, torch.nn.RNN]


def left_models(torch: Any) -> dict[str, tuple[Any, str]]:
    class Own(torch.nn.RNN):
        pass

    parametrized = torch.nn.RNN(5, 7)
    torch.nn.utils.parametrizations.orthogonal(parametrized, "weight_hh_l0")
    replaced = torch.nn.RNN(5, 7)
    replaced.forward = lambda x: x  # type: ignore[assignment]
    words = "parametrized: remove the parametrizations first; afterwards they may be registered again"
    return {
        "subclass": (Own(5, 7), "Own is a subclass of torch.nn.RNN"),
        "parametrized": (parametrized, words),
        "replaced": (replaced, "its forward was replaced"),
        "complex": (torch.nn.RNN(5, 7, dtype=torch.complex64), "its parameters are of torch.complex64"),
        "complex cell": (torch.nn.RNNCell(5, 7, dtype=torch.complex64), "its parameters are of torch.complex64"),
    }


def test_what_is_left_is_said(torch: Any, t: Any) -> None:
    cases = left_models(torch)
    model = torch.nn.ModuleDict({name: layer for name, (layer, _) in cases.items()})
    model["lstm"], model["gru"], model["fine"] = torch.nn.LSTM(5, 7), torch.nn.GRUCell(5, 7), torch.nn.RNN(5, 7)
    classes = [type(module) for name, module in model.items() if name != "fine"]
    report = t.accelerate(model)
    assert report.left == {name: why for name, (_, why) in cases.items()}
    assert list(report.swapped) == ["fine"]
    assert [type(module) for name, module in model.items() if name != "fine"] == classes
    assert repr(report) == str(report)
    assert str(report).splitlines()[:3] == [
        "accelerate: 1 swapped, 5 left",
        "  swapped  fine          RNN(5, 7)",
        "  left     subclass      Own is a subclass of torch.nn.RNN",
    ]
    assert t.restore(model).left == {}


@pytest.mark.parametrize("how", ["buffer", "parameter", "attribute", "module"])
@pytest.mark.parametrize("kind", ["RNN", "RNNCell"])
def test_a_layer_with_an_alpha_of_its_own_is_left(torch: Any, t: Any, kind: str, how: str) -> None:
    layer, x = getattr(torch.nn, kind)(3, 4), torch.randn(5, 3)
    want, value = layer(x)[0], torch.tensor(0.5)
    if how == "buffer":
        layer.register_buffer("alpha", value)
    else:
        layer.alpha = {"parameter": torch.nn.Parameter(value), "attribute": 0.5, "module": torch.nn.PReLU()}[how]
    report = t.accelerate(torch.nn.Sequential(layer))
    assert (report.swapped, report.left) == ({}, {"0": f"fastrnn.torch.{kind} has another meaning for its own alpha"})
    assert type(layer) is getattr(torch.nn, kind)
    assert torch.equal(layer(x)[0], want)


@pytest.mark.parametrize("name", ["recurrent_dropout", "input_dropout", "zoneout", "_rates", "_run", "_run_stock"])
def test_a_layer_with_a_name_of_ours_is_left(torch: Any, t: Any, name: str) -> None:
    layer, cell = torch.nn.RNN(3, 4), torch.nn.RNNCell(3, 4)
    for module in (layer, cell):
        setattr(module, name, 0.25)
        module.reduce = "mean"  # hides ours, which nothing calls
    assert t.accelerate(layer).left == {"": f"fastrnn.torch.RNN has another meaning for its own {name}"}
    assert getattr(layer, name) == 0.25
    assert bool(t.accelerate(cell).left) == (name == "_run_stock")
    delattr(layer, name)
    assert list(t.accelerate(layer).swapped) == [""]
    assert layer.reduce == "mean"


def test_options_that_were_taken_away_do_not_count(torch: Any, t: Any) -> None:
    layer = torch.nn.RNN(3, 4)
    t.accelerate(layer)
    layer.alpha, layer.zoneout = torch.nn.Parameter(torch.tensor(0.5)), 0.5
    layer.alpha, layer.zoneout = None, 0.0
    for _ in range(2):
        assert list(t.restore(layer).swapped) == [""]
        assert list(t.accelerate(layer).swapped) == [""]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_and_meta_are_swapped(torch: Any, t: Any, dtype: str) -> None:
    layer = torch.nn.RNN(5, 7, dtype=getattr(torch, dtype), device="meta")
    assert list(t.accelerate(layer).swapped) == [""]


def test_parametrized_later(torch: Any, t: Any) -> None:
    """... it still is ours, restore says why it leaves it, and works once the parametrization is removed."""
    layer = torch.nn.RNN(5, 7)
    t.accelerate(layer)
    torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    assert isinstance(layer, t.RNN)
    assert t.restore(layer).left == {
        "": "parametrized: remove the parametrizations first; afterwards they may be registered again"
    }
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert list(t.restore(layer).swapped) == [""]
    assert type(layer) is torch.nn.RNN


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_can_be_restored(torch: Any, t: Any, how: str) -> None:
    model = torch.nn.Sequential(torch.nn.RNN(5, 7))
    t.accelerate(model)
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert type(other[0]) is t.RNN
    assert list(t.restore(other).swapped) == ["0"]
    assert (type(other[0]), type(model[0])) == (torch.nn.RNN, t.RNN)
    assert vars(other[0]).keys() == vars(torch.nn.RNN(5, 7)).keys()


def test_wrong_arguments_raise(torch: Any, t: Any) -> None:
    for call in (t.accelerate, t.restore):
        with pytest.raises(TypeError) as caught:
            call([torch.nn.RNN(5, 7)])
        assert str(caught.value) == "model: expected torch.nn.Module, got list"


def test_weight_norm_of_the_old_kind_and_pruning_go_along(torch: Any, t: Any) -> None:
    from torch.nn.utils import prune

    for how in ("weight_norm", "prune"):
        layer = torch.nn.RNN(5, 7, dtype=torch.float64)
        if how == "prune":
            prune.l1_unstructured(layer, "weight_hh_l0", 0.5)
        else:
            with pytest.warns(FutureWarning):
                torch.nn.utils.weight_norm(layer, "weight_hh_l0")
        x = torch.randn(6, 4, 5, dtype=torch.float64)
        want = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
        t.accelerate(layer)
        got = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
        assert all(torch.allclose(g, w, rtol=1e-10) for g, w in zip(got, want, strict=True))


CODE = """
import sys, torch, fastrnn
{hide}
print(fastrnn.torch.accelerate(torch.nn.Sequential(torch.nn.RNN(5, 7))).left["0"])
"""


def test_where_torch_computes_anyway_nothing_is_swapped(torch: Any) -> None:
    assert output_of(CODE.format(hide=""), FASTRNN_DISABLE="1") == "torch computes: FASTRNN_DISABLE=1"
    hide = """
from fastrnn import _backends
for device, name in _backends._FILES:
    if name != "numpy":
        sys.modules["fastrnn._backends." + _backends._FILES[device, name]] = None
"""
    assert "torch computes where no fast backend is available ('cpp' is not" in output_of(CODE.format(hide=hide))


def test_a_state_dict_loads_where_fastrnn_is_not(torch: Any, t: Any, tmp_path: Any) -> None:
    """An accelerated model's, in a process in which importing fastrnn fails; a restored model's pickle too."""
    model = torch.nn.Sequential(torch.nn.RNN(5, 7, 2, bidirectional=True))
    t.accelerate(model)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    t.restore(model)
    torch.save(model, tmp_path / "model.pt")
    with torch.no_grad():
        torch.save(model(torch.ones(3, 2, 5))[0], tmp_path / "output.pt")
    code = f"""
import sys
sys.modules["fastrnn"] = None
import torch
model = torch.nn.Sequential(torch.nn.RNN(5, 7, 2, bidirectional=True))
model.load_state_dict(torch.load({str(tmp_path / "state.pt")!r}, weights_only=True), strict=True)
other = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
want = torch.load({str(tmp_path / "output.pt")!r})
print(torch.equal(model(torch.ones(3, 2, 5))[0], want), torch.equal(other(torch.ones(3, 2, 5))[0], want))
"""
    result = run_python(code)
    assert result.stdout.strip() == "True True", result.stderr
