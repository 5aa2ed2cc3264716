"""alpha through rnn_forward, rnn_backward, RNN and RNNCell: what is accepted and refused, the same bits as the kernels,
gradients against complex-step derivatives, training, state_dict and frozen.
"""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from helpers import oracle
from helpers.bad_inputs import refuse
from helpers.cases import NEEDS, Case, Problem
from helpers.compare import assert_all_same_bits, assert_same_bits, normalised_error
from helpers.kernels import Kernel, native

import fastrnn

T, B, I, H = 6, 3, 4, 5


def call(p: Any, backend: str, **changed: Any) -> tuple[Any, Any]:
    """(output, h_n) and the gradients, through the public functions."""
    options = {**p.options(), "backend": backend, **changed}
    output, h_n = fastrnn.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, **options)
    arguments = (p.d_output, p.d_h_n, output, p.x, p.h_0, p.w_ih, p.w_hh)
    needs = (*NEEDS, "alpha")
    return (output, h_n), fastrnn.rnn_backward(*arguments, b_ih=p.b_ih, b_hh=p.b_hh, needs=needs, **options)


def test_public_functions_are_the_kernels(backend: str, dtype: str) -> None:
    p = Case(T=T, B=B, I=I, H=H, dtype=dtype, lengths="ragged", reset=True, alpha="unit").build()
    kernel = Kernel(backend, native().active_isa() if backend == "cpp" else None)
    results, gradients = call(p, backend)
    assert_all_same_bits(results, kernel.forward(p), "forward")
    assert len(gradients) == 5
    want = kernel.backward(p, results[0])
    assert_all_same_bits((*gradients, gradients.d_alpha), want, "backward")
    few = fastrnn.rnn_backward(
        p.d_output, None, results[0], p.x, p.h_0, p.w_ih, p.w_hh, b_ih=None, b_hh=None, backend=backend, **p.options()
    )
    assert few.d_alpha is None
    assert few.d_b is not None


def test_a_number_stands_for_all_units(backend: str, dtype: str) -> None:
    """A Python or NumPy number; 1 is the plain recurrence; views of any stride are taken as they are."""
    p = Case(T=T, B=B, I=I, H=H, dtype=dtype, alpha="unit").build()
    for number in (0.25, np.float64(0.25), np.float32(0.25)):
        want = call(p, backend, alpha=np.full(H, 0.25, dtype))
        got = call(p, backend, alpha=number)
        assert_all_same_bits((*got[0], *got[1], got[1].d_alpha), (*want[0], *want[1], want[1].d_alpha), str(number))
    results, _ = call(p, backend, alpha=1)
    plain = fastrnn.rnn_forward(p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh, backend=backend)
    assert_all_same_bits([r + 0 for r in results], [r + 0 for r in plain], "alpha = 1")
    strided, _ = call(p, backend, alpha=np.repeat(p.alpha, 3)[::3])
    assert_all_same_bits(strided, call(p, backend)[0], "strided")


@pytest.mark.parametrize("empty", ["T", "B", "I"])
def test_nothing_to_do(backend: str, dtype: str, empty: str) -> None:
    """T, B or I of 0: the gradient of alpha is 0 but for I = 0, where there are states."""
    size = {"T": T, "B": B, "I": I, empty: 0}
    p = Case(H=H, dtype=dtype, alpha="unit", **size).build()
    (output, h_n), gradients = call(p, backend)
    assert output.shape == (size["T"], size["B"], H)
    assert gradients.d_alpha.shape == (H,)
    assert gradients.d_alpha.any() == (empty == "I")
    if empty == "T":
        assert_same_bits(h_n, p.h_0, "h_n")
        assert_same_bits(gradients.d_h_0, p.d_h_n, "d_h_0")


def test_torch_tensors_come_back_as_tensors(torch: Any) -> None:
    p = Case(T=T, B=B, I=I, H=H, alpha="unit").build()
    x, *others = (torch.from_numpy(a) for a in (p.x, p.h_0, p.w_ih, p.w_hh, p.b_ih, p.b_hh))
    alpha = torch.from_numpy(p.alpha)
    output, _ = fastrnn.rnn_forward(x, *others, alpha=alpha)
    biases = {"b_ih": others[3], "b_hh": others[4]}
    g = fastrnn.rnn_backward(output, None, output, x, *others[:3], alpha=alpha, **biases, needs=("alpha",))
    assert isinstance(g.d_alpha, torch.Tensor)
    assert g.d_x is None


BAD: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "NaN": (float("nan"), ValueError, ("finite", "nan")),
    "infinite": (np.array([1, 1, np.inf, 1, 1], np.float32), ValueError, ("finite", "inf")),
    "too large for float32": (1e300, ValueError, ("finite", "inf")),
    "an int too large for any float": (-(10**400), ValueError, ("finite", "-inf")),
    "str": ("0.1", TypeError, ("str",)),
    "bool": (True, TypeError, ("bool",)),
    "list": ([0.1] * H, TypeError, ("list",)),
    "complex": (0.1j, TypeError, ("complex",)),
    "dtype": (np.ones(H), TypeError, ("float32", "float64")),
    "shape": (np.ones(H + 1, np.float32), ValueError, ("(5,)", "(6,)")),
    "(1, H)": (np.ones((1, H), np.float32), ValueError, ("(5,)", "(1, 5)")),
}


def test_gradients_keep_d_alpha() -> None:
    gradients = fastrnn.RnnGradients(*[np.zeros(1)] * 5).with_alpha(np.ones(3))
    for other in (copy.copy(gradients), pickle.loads(pickle.dumps(gradients)), gradients._replace(d_x=None)):
        assert other.d_alpha is not None
        assert other.d_alpha.all()
    assert gradients._replace(d_alpha=None).d_alpha is None


@pytest.mark.parametrize("what", BAD)
def test_bad_alpha_is_refused(what: str) -> None:
    alpha, error, words = BAD[what]
    p = Case(T=T, B=B, I=I, H=H).build()
    weights = {"x": p.x, "h_0": None, "w_ih": p.w_ih, "w_hh": p.w_hh, "alpha": alpha}
    refuse(fastrnn.rnn_forward, error, "alpha", *words, **weights)
    output = np.zeros((T, B, H), np.float32)
    upstream = {"d_output": output, "d_h_n": None, "output": output, "b_ih": None, "b_hh": None}
    refuse(fastrnn.rnn_backward, error, "alpha", *words, **weights, **upstream)
    for kind in (fastrnn.RNN, fastrnn.RNNCell):
        refuse(kind, error, "alpha", *words, input_size=I, hidden_size=H, alpha=alpha)


def test_what_alpha_demands_is_said() -> None:
    """The biases, which BPTT reads; values in (0, 1] in a layer; needs with "alpha" only beside alpha."""
    p = Case(T=T, B=B, I=I, H=H).build()
    output = np.zeros((T, B, H), np.float32)
    arguments = {"d_output": output, "d_h_n": None, "output": output, "x": p.x, "h_0": None, "w_ih": p.w_ih}
    arguments["w_hh"] = p.w_hh
    refuse(fastrnn.rnn_backward, TypeError, "b_ih", "alpha", **arguments, alpha=0.5, b_hh=None)
    refuse(fastrnn.rnn_backward, TypeError, "b_hh", "alpha", **arguments, alpha=0.5, b_ih=None)
    refuse(fastrnn.rnn_backward, ValueError, "b_ih", "(5,)", **arguments, alpha=0.5, b_ih=p.b_ih[1:], b_hh=None)
    refuse(fastrnn.rnn_backward, ValueError, "needs", "'alpha'", **arguments, needs=("alpha",))
    for value in (0, -0.1, 1.5, np.array([0.5, 0.5, 0.5, 0.5, 0], np.float32)):
        for kind in (fastrnn.RNN, fastrnn.RNNCell):
            refuse(kind, ValueError, "alpha", "(0, 1]", input_size=I, hidden_size=H, alpha=value)
    refuse(fastrnn.RNN, ValueError, "train_alpha", input_size=I, hidden_size=H, train_alpha=True)
    refuse(fastrnn.RNN, TypeError, "train_alpha", input_size=I, hidden_size=H, alpha=0.5, train_alpha=1)
    out = np.zeros((T, B, H), np.float32)
    with pytest.raises(ValueError, match="out: expected memory of its own, got memory that overlaps alpha"):
        fastrnn.rnn_forward(p.x, None, p.w_ih, p.w_hh, alpha=out[0, 0], out=out)


@pytest.mark.skipif(isinstance(native(), ImportError), reason="no native module")
def test_the_native_module_refuses_what_the_functions_would() -> None:
    p = Case(T=T, B=B, I=I, H=H, alpha="unit").build()
    output, h_n = np.zeros((T, B, H), np.float32), np.zeros((B, H), np.float32)
    forward = (p.x, None, p.w_ih, p.w_hh, None, None, output, h_n)
    with pytest.raises(ValueError, match="alpha"):
        native().rnn_forward(*forward, alpha=p.alpha[1:])
    with pytest.raises(TypeError, match="alpha"):
        native().rnn_forward(*forward, alpha=p.alpha.astype(np.float64))
    backward = (output, None, output, p.x, None, p.w_ih, p.w_hh, None, None, None, None, None)
    with pytest.raises(ValueError, match="d_alpha"):
        native().rnn_backward(*backward, d_alpha=np.zeros(H, np.float32))
    with pytest.raises(ValueError, match="d_alpha"):
        native().rnn_backward(*backward, alpha=p.alpha, d_alpha=np.zeros(H + 1, np.float32))


def loss_of(rnn: Any, x: Any, h_0: Any, lengths: Any, up: Any, up_n: Any) -> Any:
    """<up, output> + <up_n, h_n> by the plain loop, in the dtype of what the layer's parameters and alpha hold."""
    states, D = [], 1 + rnn.bidirectional
    for layer in range(rnn.num_layers):
        outputs = []
        for way in range(D):
            names = rnn._names[layer * D + way]
            w_ih, w_hh, *b = (rnn.held[name] for name in names)
            p = Problem(x, h_0[layer * D + way], w_ih, w_hh, *b, rnn.nonlinearity, way == 1, lengths)
            p = p.but(alpha=rnn.held["alpha"])
            output, h_n = oracle.forward(p, np.complex128)
            outputs.append(output)
            states.append(h_n)
        x = np.concatenate(outputs, -1)
    return (up * x).sum() + (up_n * np.stack(states)).sum()


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_layers_and_directions_share_alpha_and_add_its_gradient(backend: str, nonlinearity: str) -> None:
    """Two layers, two directions, ragged: every gradient against complex steps of the plain loop, to 1e-12."""
    rng = np.random.default_rng(0)
    alpha = rng.uniform(0.05, 1, H)
    settings = {"num_layers": 2, "bidirectional": True, "dtype": "float64", "seed": 0, "nonlinearity": nonlinearity}
    rnn: Any = fastrnn.RNN(I, H, **settings, backend=backend, alpha=alpha, train_alpha=True)
    x, h_0, lengths = rng.standard_normal((T, B, I)), rng.standard_normal((4, B, H)), np.array([T, 0, 3])
    up, up_n = rng.standard_normal((T, B, 2 * H)), rng.standard_normal((4, B, H))
    output, h_n, backward = rnn.forward_train(x, h_0, lengths)
    d_x, d_h_0 = backward(up, up_n)
    assert list(rnn.grads)[-1] == "alpha"
    rnn.held = {name: value.astype(complex) for name, value in rnn.parameters.items()}
    value = loss_of(rnn, x, h_0, lengths, up, up_n)
    assert abs(value - (up * output).sum() - (up_n * h_n).sum()) <= 1e-12 * abs(value)
    for name, gradient in rnn.grads.items():
        direction = rng.standard_normal(gradient.shape)
        rnn.held[name] += 1e-150j * direction
        want = loss_of(rnn, x, h_0, lengths, up, up_n).imag / 1e-150
        rnn.held[name] = rnn.held[name].real.astype(complex)
        assert abs(want - (gradient * direction).sum()) <= 1e-12 * np.abs(gradient * direction).sum(), name
    step = 1e-150j * rng.standard_normal(x.shape)
    want = loss_of(rnn, x + step, h_0, lengths, up, up_n).imag / 1e-150
    assert abs(want - (d_x * step.imag).sum() / 1e-150) <= 1e-12 * max(1, abs(want))
    assert d_h_0.shape == h_0.shape


def test_fixed_alpha_is_no_parameter(backend: str) -> None:
    """dt / tau: not in parameters, grads and state_dict; all else is as where it is trained."""
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    fixed = fastrnn.RNN(I, H, seed=0, backend=backend, alpha=0.1)
    plain = fastrnn.RNN(I, H, seed=0, backend=backend)
    trained = fastrnn.RNN(I, H, seed=0, backend=backend, alpha=0.1, train_alpha=True)
    assert list(fixed.parameters) == list(plain.parameters) == list(fixed.grads) == list(trained.parameters)[:-1]
    assert fixed.alpha is not None
    assert (fixed.alpha == np.float32(0.1)).all()
    assert plain.alpha is None
    assert (repr(fixed), repr(plain)) == ("RNN(4, 5, alpha=0.1)", "RNN(4, 5)")
    assert repr(trained) == "RNN(4, 5, alpha=0.1, train_alpha=True)"
    results = []
    for rnn in (fixed, trained):
        output, h_n, backward = rnn.forward_train(x)
        results.append((output, h_n, *backward(output)))
        assert_all_same_bits((output, h_n), rnn(x), "inference")
        with rnn.frozen():
            assert_all_same_bits((output, h_n), rnn(x), "frozen")
    assert_all_same_bits(*results, "trained")
    for name, gradient in fixed.grads.items():
        assert_same_bits(gradient, trained.grads[name], name)
    assert trained.grads["alpha"].any()
    assert not np.array_equal(plain(x)[0], fixed(x)[0])
    fixed.alpha[:] = 1
    assert_all_same_bits([a + 0 for a in fixed(x)], [a + 0 for a in plain(x)], "alpha = 1")


def test_trained_alpha_is_a_parameter_like_any_other() -> None:
    rnn = fastrnn.RNN(I, H, seed=0, alpha=np.linspace(0.1, 1, H, dtype=np.float32), train_alpha=True)
    other = copy.deepcopy(rnn)
    other.parameters["alpha"] = np.full(H, 0.5, np.float32)
    assert (other.alpha == 0.5).all()
    assert rnn.alpha is not None
    assert rnn.alpha[0] == np.float32(0.1)
    other.load_state_dict(rnn.state_dict())
    assert_same_bits(other.alpha, rnn.alpha, "alpha")
    with rnn.frozen(), pytest.raises(ValueError, match="read-only"):
        rnn.alpha[0] = 1
    rnn.zero_grad()
    assert not rnn.grads["alpha"].any()


def test_a_cell_steps_as_the_layer_does(backend: str, dtype: str) -> None:
    """Forward and backward, batched and single; the gradient of alpha adds up over the steps."""
    alpha = np.linspace(0.1, 1, H).astype(dtype)
    rng = np.random.default_rng(0)
    settings: dict[str, Any] = {"dtype": dtype, "backend": backend, "seed": 0, "alpha": alpha, "train_alpha": True}
    rnn, cell = fastrnn.RNN(I, H, **settings), fastrnn.RNNCell(I, H, **settings)
    assert repr(cell) == "RNNCell(4, 5, alpha=(H), train_alpha=True)"
    x, h_0, up = (rng.standard_normal(shape).astype(dtype) for shape in ((T, B, I), (1, B, H), (T, B, H)))
    output, h_n, backward = rnn.forward_train(x, h_0)
    d_x, d_h_0 = backward(up)
    eps = float(np.finfo(dtype).eps)
    h, backs = h_0[0], []
    for t in range(T):
        assert normalised_error(cell(x[t], h), output[t]) <= 10 * eps
        h, back = cell.forward_train(x[t], h)
        backs.append(back)
    d_h = np.zeros_like(h)
    for t in reversed(range(T)):
        d_x_t, d_h = backs[t](d_h + up[t])
        assert normalised_error(d_x_t, d_x[t]) <= 100 * eps
    assert normalised_error(h, h_n[0]) <= 10 * eps
    assert normalised_error(d_h, d_h_0[0]) <= 100 * eps
    for name, gradient in cell.grads.items():
        assert normalised_error(gradient, rnn.grads[name if name == "alpha" else f"{name}_l0"]) <= 100 * eps, name
    assert_same_bits(cell(x[0, 0], h_0[0, 0]), cell(x[0, :1], h_0[0, :1])[0], "single")


def test_fit_trains_alpha() -> None:
    """A leak that is wrong at first: the target is the output of a layer with another one."""
    from fastrnn.training import Adam, Linear, SequenceModel

    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 8, I)).astype(np.float32)
    teacher = fastrnn.RNN(I, H, seed=0, alpha=0.2)
    target, _ = teacher(x)
    pupil = fastrnn.RNN(I, H, seed=0, alpha=0.8, train_alpha=True)
    model = SequenceModel(pupil, Linear(H, 1, seed=0))
    assert "rnn.alpha" in model.parameters
    optimizer = Adam(0.02)
    for _ in range(200):
        pupil.zero_grad()
        output, _, backward = pupil.forward_train(x)
        backward((output - target) / output.size)
        optimizer.step({"alpha": pupil.parameters["alpha"]}, {"alpha": pupil.grads["alpha"]})
    assert pupil.alpha is not None
    assert np.abs(pupil.alpha - 0.2).max() < 0.01
