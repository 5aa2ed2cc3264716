"""Training on the package's own layers: NumPy in, the fused kernels underneath, no deep-learning framework.

    model = SequenceModel(fastrnn.RNN(28, 128, seed=0), Linear(128, 10, seed=0), pool="last")
    history = fit(model, Sequences(x, labels), softmax_cross_entropy, Adam(2e-3), epochs=20, clip_norm=1.0)
    logits = model(x)

Each part works alone: losses return (loss, gradient), optimizers update dicts of arrays, layers follow fastrnn.RNN.
With device="cuda" for RNN, Linear and Embedding the arrays are CuPy's; fit and predict take NumPy's in any case.
"""

from . import optimizers
from .checkpoint import load_arrays, save_arrays
from .data import Batch, Sequences, batches, stream
from .fit import History, accuracy, fit, predict
from .initializers import initialize
from .layers import Embedding, Linear, pool
from .losses import binary_cross_entropy, mean_squared_error, softmax_cross_entropy
from .model import SequenceModel
from .optimizers import SGD, Adam, AdamW, RMSprop, clip_by_global_norm, clip_by_value

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Batch",
    "Embedding",
    "History",
    "Linear",
    "RMSprop",
    "SequenceModel",
    "Sequences",
    "accuracy",
    "batches",
    "binary_cross_entropy",
    "clip_by_global_norm",
    "clip_by_value",
    "fit",
    "initialize",
    "load_arrays",
    "mean_squared_error",
    "optimizers",
    "pool",
    "predict",
    "save_arrays",
    "softmax_cross_entropy",
    "stream",
]
