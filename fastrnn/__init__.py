"""The tanh (Elman) RNN, fused in C++, forward and back-propagation through time.

RNN and RNNCell are layers for NumPy arrays; rnn_forward and rnn_backward compute one direction of one layer.
torch.RNN is the layer for PyTorch, which is imported when fastrnn.torch is first asked for. backends() says what can
run here; set_num_threads, get_num_threads and `with threads(n):` set the CPU threads.
"""

from typing import TYPE_CHECKING, Any

from ._backends import Backend, backends
from ._backends.options import RnnGradients
from ._threads import get_num_threads, set_num_threads, threads
from .functional import rnn_backward, rnn_forward
from .layer import RNN, RNNCell

if TYPE_CHECKING:
    __version__: str

__all__ = [
    "RNN",
    "Backend",
    "RNNCell",
    "RnnGradients",
    "backends",
    "get_num_threads",
    "rnn_backward",
    "rnn_forward",
    "set_num_threads",
    "threads",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # not at import: it takes longer than all the rest

        return version("fastrnn")
    if name == "torch":
        from importlib import import_module

        return import_module(".torch", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
