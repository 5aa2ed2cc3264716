"""fastrnn for PyTorch: RNN in place of torch.nn.RNN, with its parameters, results, errors and gradients.

Reachable as fastrnn.torch after `import fastrnn`, which does not import PyTorch: the first use of fastrnn.torch does.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastrnn.torch: expected PyTorch to be installed: pip install 'fastrnn[torch]'") from error

from .layer import RNN

__all__ = ["RNN"]
