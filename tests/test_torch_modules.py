"""PyTorch's own samples for RNN and RNNCell (ModuleInfo), inputs and errors, on ours, as its test_modules.py has it."""

from __future__ import annotations

import copy
import io
import os
import pickle
import warnings
from typing import Any

import pytest
from helpers.compare import normalised_error
from helpers.torch_layers import outcome

KINDS = ("RNN", "RNNCell")
TRAINING = pytest.mark.parametrize("training", [False, True])
KIND = pytest.mark.parametrize("kind", KINDS)
DTYPE = pytest.mark.parametrize("of", ["float32", "float64"])
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture
def common(torch: Any) -> Any:
    """torch.testing._internal.common_modules, which comes with torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if os.environ.get("FASTRNN_EXPECT_TORCH") == "1":
            from torch.testing._internal import common_modules
        else:
            pytest.importorskip("expecttest")
            common_modules = pytest.importorskip("torch.testing._internal.common_modules")
    return common_modules


def info_of(torch: Any, common: Any, kind: str) -> Any:
    (info,) = [info for info in common.module_db if info.module_cls is getattr(torch.nn, kind)]
    return info


def samples(torch: Any, common: Any, kind: str, dtype: Any, training: bool, grad: bool = False) -> list[Any]:
    info = info_of(torch, common, kind)
    more = {"with_packed_sequence": True} if kind == "RNN" else {}
    torch.manual_seed(0)
    made = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=grad, training=training, **more)
    assert len(made) == (64 if kind == "RNN" else 3)
    return list(made)


def pair(torch: Any, kind: str, sample: Any, training: bool, **how: Any) -> tuple[Any, Any]:
    """Ours and torch's, drawn from one seed."""
    import fastrnn

    made, given = [], sample.constructor_input
    for where in (fastrnn.torch, torch.nn):
        torch.manual_seed(1)
        made.append(getattr(where, kind)(*given.args, **given.kwargs, **how).train(training))
    return made[0], made[1]


def flat(result: Any) -> list[Any]:
    """The tensors of a result."""
    parts = result if type(result) is tuple else (result,)
    return [part if hasattr(part, "dim") else part.data for part in parts]


def call(module: Any, sample: Any) -> list[Any]:
    return flat(module(*sample.forward_input.args, **sample.forward_input.kwargs))


def assert_equal(got: list[Any], want: list[Any], tolerance: float) -> None:
    for g, w in zip(got, want, strict=True):
        assert (g.shape, g.stride(), g.dtype) == (w.shape, w.stride(), w.dtype)
        assert normalised_error(g.detach().numpy(), w.detach().numpy()) <= tolerance


@KIND
@DTYPE
@TRAINING
def test_forward(torch: Any, common: Any, kind: str, of: str, training: bool) -> None:
    """As torch's module, and as the reference function of the sample."""
    dtype = getattr(torch, of)
    for sample in samples(torch, common, kind, dtype, training):
        ours, stock = pair(torch, kind, sample, training, dtype=dtype)
        got = call(ours, sample)
        assert_equal(got, call(stock, sample), TOLERANCE[of])
        given = sample.forward_input
        if hasattr(given.args[0], "dim"):  # the reference takes no PackedSequence
            want = sample.reference_fn(ours, *given.args, **given.kwargs)
            assert_equal([g.contiguous() for g in got], [w.contiguous() for w in flat(want)], TOLERANCE[of])


@KIND
@DTYPE
def test_gradients(torch: Any, common: Any, kind: str, of: str) -> None:
    """Of inputs and parameters for random upstream gradients, as torch's; gradcheck of the first four samples."""
    dtype = getattr(torch, of)
    for i, sample in enumerate(samples(torch, common, kind, dtype, True, grad=True)):
        modules, made = pair(torch, kind, sample, True, dtype=dtype), []
        tensors = [t for t in flat(sample.forward_input.args) if t.requires_grad]
        assert tensors
        for module in modules:
            results = call(module, sample)
            torch.manual_seed(2)
            upstream = [torch.randn_like(t) for t in results]
            made.append(torch.autograd.grad(results, [*tensors, *module.parameters()], upstream))
        for got, want in zip(*made, strict=True):
            assert normalised_error(got.numpy(), want.numpy()) <= TOLERANCE[of]
        if of == "float64" and i < 4:
            args, ours = sample.forward_input.args, modules[0]
            if hasattr(args[0], "dim"):
                assert torch.autograd.gradcheck(lambda *a, m=ours: flat(m(*a)), args, check_batched_grad=False)


@KIND
@TRAINING
def test_non_contiguous_inputs(torch: Any, common: Any, kind: str, training: bool) -> None:
    """The same bits, forward and backward."""
    for sample in samples(torch, common, kind, torch.float64, training, grad=True):
        ours, _ = pair(torch, kind, sample, training, dtype=torch.float64)
        args = sample.forward_input.args
        if not hasattr(args[0], "dim"):
            continue
        made = []
        for change in (lambda t: t, lambda t: torch.stack([t, t], -1)[..., 0]):
            leaves = [a.detach().clone().requires_grad_() for a in args]
            results = flat(ours(*map(change, leaves)))
            made.append(
                [*results, *torch.autograd.grad(sum(r.sin().sum() for r in results), [*leaves, *ours.parameters()])]
            )
        assert all(map(torch.equal, *made))


@KIND
def test_factory_arguments(torch: Any, common: Any, kind: str) -> None:
    """device, dtype, and default dtype and device, as torch's."""
    sample = samples(torch, common, kind, torch.float32, True)[0]
    for how in (
        {},
        {"dtype": torch.float64},
        {"device": "meta"},
        {"device": torch.device("meta"), "dtype": torch.float16},
    ):
        for ours, stock in zip(*(m.parameters() for m in pair(torch, kind, sample, True, **how)), strict=True):
            assert (ours.dtype, ours.device, ours.shape) == (stock.dtype, stock.device, stock.shape)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            p = next(pair(torch, kind, sample, True)[0].parameters())
        assert (p.dtype, p.device.type) == (torch.float64, "meta")
    finally:
        torch.set_default_dtype(before)


@KIND
def test_repr_pickle_save_and_deepcopy(torch: Any, common: Any, kind: str) -> None:
    for sample in samples(torch, common, kind, torch.float32, False):
        ours, stock = pair(torch, kind, sample, False)
        assert repr(ours) == repr(stock)
        assert str(ours) == str(stock)
        want = call(ours, sample)
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        for other in (pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False), copy.deepcopy(ours)):
            assert all(map(torch.equal, call(other, sample), want))


@KIND
@pytest.mark.parametrize("swap", [False, True])
def test_to_and_to_empty(torch: Any, common: Any, kind: str, swap: bool) -> None:
    """There and back, with parameters set or swapped: as many stay the objects they are as of torch's."""
    sample = samples(torch, common, kind, torch.float64, False)[0]
    ours, stock = pair(torch, kind, sample, False)
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        kept = []
        for module in (ours, stock):
            before = [id(p) for p in module.parameters()]
            module.to(torch.float64)
            kept.append([id(p) for p in module.parameters()] == before)
        assert kept[0] == kept[1]
        assert_equal(call(ours, sample), call(stock, sample), 1e-12)
        state = copy.deepcopy(ours.state_dict())
        ours.to("meta")
        ours.to_empty(device="cpu")
        with torch.no_grad():
            for name, p in ours.named_parameters():
                p.copy_(state[name])
        assert_equal(call(ours, sample), call(stock, sample), 1e-12)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@KIND
@DTYPE
@TRAINING
def test_errors(torch: Any, common: Any, kind: str, of: str, training: bool) -> None:
    """The type and pattern that torch demands, and torch's own words."""
    import fastrnn

    info = info_of(torch, common, kind)
    cases = info.module_error_inputs_func(
        info, device="cpu", dtype=getattr(torch, of), requires_grad=False, training=training
    )
    assert len(cases) == (6 if kind == "RNNCell" else len(cases)) > 5
    for case in cases:
        given = case.module_error_input
        found = []
        for where in (fastrnn.torch, torch.nn):

            def run(where: Any = where, given: Any = given, case: Any = case) -> Any:
                how = given.constructor_input
                module = getattr(where, kind)(*how.args, **how.kwargs)
                if case.error_on is common.ModuleErrorEnum.FORWARD_ERROR:
                    return module(*given.forward_input.args, **given.forward_input.kwargs)
                return module

            if where is fastrnn.torch:
                with pytest.raises(case.error_type, match=case.error_regex):
                    run()
            found.append(outcome(run))
        assert found[0] == found[1]
