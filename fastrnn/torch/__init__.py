"""fastrnn for PyTorch: RNN and RNNCell in place of torch.nn's, with their parameters, results, errors and gradients;
accelerate puts them into a model that is there already.

Reachable as fastrnn.torch after `import fastrnn`, which does not import PyTorch: the first use of fastrnn.torch does.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastrnn.torch: expected PyTorch to be installed: pip install 'fastrnn[torch]'") from error

from .accelerate import Report, accelerate, restore
from .cell import RNNCell
from .ensemble import RNNEnsemble
from .layer import RNN
from .reduce import truncated_bptt

__all__ = ["RNN", "RNNCell", "RNNEnsemble", "Report", "accelerate", "restore", "truncated_bptt"]
