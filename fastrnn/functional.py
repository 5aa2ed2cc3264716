"""rnn_forward and rnn_backward: check the arguments, choose the backend, one call."""

from __future__ import annotations

from collections.abc import Collection
from types import EllipsisType

from . import _backends, _validate
from ._backends.options import NEEDS, Array, RnnGradients, RnnOptions
from ._validate import exact, like


def rnn_forward(
    x: Array,
    h_0: Array | None,
    w_ih: Array | None,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Array | None = None,
    reverse: bool = False,
    batch_sizes: Array | None = None,
    reset: Array | None = None,
    recurrent_mask: Array | None = None,
    keep_mask: Array | None = None,
    alpha: float | Array | None = None,
    backend: str = "auto",
    out: Array | None = None,
) -> tuple[Array, Array]:
    """One direction of one layer of the Elman RNN (Elman 1990, "Finding structure in time"): (output, h_n).

        h_t = tanh(w_ih x_t + b_ih + b_hh + w_hh h_{t-1})        or relu(...)

    or with leaky units h_t = (1 - alpha) h_{t-1} + alpha tanh(...) (Jaeger et al. 2007, "Optimization and applications
    of echo state networks with leaky-integrator neurons"): a continuous-time RNN in steps of dt, alpha = dt / tau.

    T is time, B the batch, I the input size, H the hidden size. All float arrays are of one dtype, float32 or float64,
    and of any strides; T, B and I may be 0. Torch CPU tensors that require no grad are taken without a copy; CuPy
    arrays, all of them on one device then (lengths and batch_sizes may be NumPy's), are computed with there, on CuPy's
    current stream. Results are of the kind that x is.

    Arguments:
        x: (T, B, I), or packed rows (N, I) where batch_sizes is given.
        h_0: (B, H), the state before each row's first step; None for zeros.
        w_ih, w_hh: (H, I), (H, H). w_ih=None: x is w_ih x_t already, (T, B, H) or (N, H): rows of a table of tokens, or
            a product made elsewhere. Not for CuPy arrays.
        b_ih, b_hh: (H), each may be None.
        nonlinearity: "tanh" or "relu".
        lengths: (B) int32 or int64 in 0..T. Row b ends after lengths[b] steps: its output is 0 from there on, and x
            there is never read.
        reverse: each row is walked from its last step to its first; output[t] is the state after step t.
        batch_sizes: (T) int32 or int64, positive, never rising, N in sum: the rows of each step in packed x, as in
            torch's PackedSequence. output is (N, H) then, and reset and keep_mask start with N instead of T, B.
        reset: (T, B) bool. True: the state that enters step t is 0.
        recurrent_mask: (B, H), multiplies the state that enters w_hh (recurrent dropout, one mask for all steps).
        keep_mask: (T, B, H) bool. True: the unit keeps its previous state (zoneout).
        alpha: a number or (H), finite; None for 1, which gives the same for a finite h_0. The formula holds outside
            (0, 1] too: 0 is a unit that never changes. recurrent_mask does not act on the state that leaks.
        backend: "auto" (the fastest available, or FASTRNN_BACKEND), "cpp", "numba" or "numpy"; "cuda" or "cupy" for
            CuPy arrays.
        out: (T, B, H) array that becomes the output. Writable, its last axis contiguous, in memory of its own.

    Returns:
        output (T, B, H), which is all that rnn_backward needs beside the arguments, and h_n (B, H), each row's state
        after its own last step (h_0 for a row of length 0).

    Raises:
        TypeError: a wrong kind of argument, dtype, byte order or device; a torch tensor that requires grad.
        ValueError: a wrong rank, shape or value; misaligned data; an unusable out; an unknown backend.
        RuntimeError: the backend asked for cannot run here.
        MemoryError: before anything was written.

    Numerics: with "cpp", per dtype and instruction set, the row b of both results is the same bits whatever T, B, the
    number of threads, alignment and strides; with "numba" and "numpy", the same call gives the same bits on the same
    machine. NaN and infinities stay in their row. relu(NaN) is NaN. With "cpp" subnormal numbers count as 0, as
    operands and as results; the others keep them, which costs much time on some CPUs.

    Memory: the results; masks that are not C-contiguous are copied; "cpp" and "numba" take a workspace of the size of
    the weights and of a few time steps. What "cpp" takes of it, results too, it keeps for its next calls when it is
    freed, up to FASTRNN_KEPT_MIB, 128. The first call on "numba" compiles, or reads what was compiled from disk.
    """
    given = x
    x, h_0, w_ih, w_hh, batch_sizes, B = _validate.problem(x, h_0, w_ih, w_hh, batch_sizes)
    dtype, H = x.dtype, w_hh.shape[0]
    home = _validate.gpu(x)
    if b_ih is not None:
        b_ih = exact("b_ih", b_ih, dtype, (H,), "H", home)
    if b_hh is not None:
        b_hh = exact("b_hh", b_hh, dtype, (H,), "H", home)
    masks = reset, recurrent_mask, keep_mask
    options = _validate.options(x, B, H, nonlinearity, reverse, lengths, batch_sizes, *masks, alpha)
    run = _backends.get(backend, _validate.device(home)).rnn_forward
    if out is None:
        output, h_n = run(x, h_0, w_ih, w_hh, b_ih, b_hh, options)
        return (output, h_n) if given is x else (like(given, output), like(given, h_n))
    inputs = {"x": x, "h_0": h_0, "w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh}
    inputs.update({name: getattr(options, name) for name in ("reset", "recurrent_mask", "keep_mask", "alpha")})
    dims = "TBH" if batch_sizes is None else "NH"
    target = _validate.writable(out, dtype, (*x.shape[:-1], H), dims, inputs)
    _, h_n = run(x, h_0, w_ih, w_hh, b_ih, b_hh, options, target)
    return out, like(given, h_n)


def rnn_backward(
    d_output: Array | None,
    d_h_n: Array | None,
    output: Array,
    x: Array,
    h_0: Array | None,
    w_ih: Array | None,
    w_hh: Array,
    *,
    nonlinearity: str = "tanh",
    lengths: Array | None = None,
    reverse: bool = False,
    batch_sizes: Array | None = None,
    reset: Array | None = None,
    recurrent_mask: Array | None = None,
    keep_mask: Array | None = None,
    alpha: float | Array | None = None,
    b_ih: Array | EllipsisType | None = ...,
    b_hh: Array | EllipsisType | None = ...,
    backend: str = "auto",
    needs: Collection[str] = NEEDS,
) -> RnnGradients:
    """The gradients of rnn_forward by back-propagation through time (Werbos 1990).

    Takes the arguments of that call again, its output, and the gradient of a scalar loss with respect to its results.
    Dtypes, strides, kinds of arrays, errors and the other options are as for rnn_forward.

    Arguments:
        d_output: (T, B, H) or packed (N, H), of any strides, 0 among them; None for zeros. Never read beyond a row's
            length.
        d_h_n: (B, H); None for zeros. One of the two must be given.
        output: (T, B, H), what rnn_forward returned, unmodified.
        b_ih, b_hh: as in rnn_forward; must be given with alpha, and are read with it alone.
        needs: the names of the gradients to compute, among "x", "h_0", "w_ih", "w_hh", "b" and, with alpha, "alpha".
            Where w_ih is None, d_x is the gradient of w_ih x_t, and d_w_ih None.

    Returns:
        A named tuple d_x, d_h_0, d_w_ih, d_w_hh, d_b of new arrays, shaped as what they belong to; None where not
        needed. d_b is the gradient of b_ih and of b_hh alike; d_h_0 is given for h_0=None too; d_x is exactly 0 beyond
        a row's length. Its attribute d_alpha, no element of the tuple, is (H), also for one number alpha, of which
        d_alpha.sum() is the gradient.

    Raises what rnn_forward raises, and TypeError for alpha without b_ih and b_hh.

    Numerics: tanh' = 1 - h^2; relu' = 0 where h <= 0, else 1 (where h is NaN too, as PyTorch has it). With "cpp", per
    dtype and instruction set, a row of d_x and d_h_0 is the same bits whatever T, B, the number of threads, alignment
    and strides; d_w_ih, d_w_hh, d_b and d_alpha are so for given (T, B, lengths). With "numba" and "numpy", the same
    call gives the same bits on the same machine. Float64 gradients are within 1e-13 of complex-step derivatives,
    relative to each array's largest element; where most units saturate the relative error is eps / (1 - h^2), as for
    every BPTT that keeps only the output. Subnormal numbers: as in rnn_forward.

    With alpha, tanh' and relu' are those of the activation a_t. (h_t - (1 - alpha) h_{t-1}) / alpha would give it only
    to eps |h| / alpha, and lose which units of relu are active; so a_t is computed again from x and output, all rows of
    some steps at once, with "cpp" to the bits of rnn_forward. Its cost is that of one forward pass in large products.

    Memory: the results, and with "cpp" and "numba" a workspace of the size of the weights and of a chunk of time steps;
    kept for the next calls as in rnn_forward.
    """
    if d_output is None and d_h_n is None:
        raise ValueError("d_output: expected an array where d_h_n is None, got None for both")
    given = x
    x, h_0, w_ih, w_hh, batch_sizes, B = _validate.problem(x, h_0, w_ih, w_hh, batch_sizes)
    dtype, H = x.dtype, w_hh.shape[0]
    shape, dims = (*x.shape[:-1], H), "TBH" if batch_sizes is None else "NH"
    home = _validate.gpu(x)
    output = exact("output", output, dtype, shape, dims, home)
    if d_output is not None:
        d_output = exact("d_output", d_output, dtype, shape, dims, home)
    if d_h_n is not None:
        d_h_n = exact("d_h_n", d_h_n, dtype, (B, H), "BH", home)
    masks = reset, recurrent_mask, keep_mask
    options = _validate.options(x, B, H, nonlinearity, reverse, lengths, batch_sizes, *masks, alpha)
    needs = _validate.check_needs(needs, alpha is not None)
    b_ih, b_hh = _bias("b_ih", b_ih, options), _bias("b_hh", b_hh, options)
    run = _backends.get(backend, _validate.device(home)).rnn_backward
    gradients = run(d_output, d_h_n, output, x, h_0, w_ih, w_hh, options, needs, b_ih, b_hh)
    if given is x:
        return gradients
    return RnnGradients(*[like(given, d) for d in gradients]).with_alpha(like(given, gradients.d_alpha))


def _bias(name: str, b: Array | EllipsisType | None, options: RnnOptions) -> Array | None:
    if options.alpha is None:
        return None
    if b is ...:
        raise TypeError(f"{name}: expected that of rnn_forward, None included, where alpha is given, got nothing")
    return None if b is None else exact(name, b, options.alpha.dtype, options.alpha.shape, "H")
