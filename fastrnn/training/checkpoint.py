"""Files of arrays with a JSON description: safetensors, written whole or not at all; reading executes nothing."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .._backends.options import Array
from .._device import moved

_KEY = "fastrnn"  # of the metadata that holds the description


def _safetensors() -> Any:
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.numpy import save
    except ImportError as error:
        raise ImportError(f'this needs safetensors ({error}); to get it: pip install "safetensors>=0.4.3"') from error
    return SafetensorError, safe_open, save


def save_arrays(path: Any, arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
    """Writes a safetensors file: beside its place first, then moved there, so that path is whole at every moment.

    CuPy arrays are fetched: the file does not depend on the device. description is what JSON can hold. Raises OSError
    where the folder cannot be written.
    """
    _, _, save = _safetensors()
    path = Path(path)
    data = save(
        {name: np.asarray(moved(array, None), order="C") for name, array in arrays.items()},
        {_KEY: json.dumps(description)},
    )
    temporary = path.absolute().parent / f".{path.name}.{secrets.token_hex(8)}"
    try:  # from before the file exists: an interruption between two lines leaves nothing behind
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def load_arrays(path: Any, kind: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays and the description of a file whose description says {"kind": kind}.

    Raises FileNotFoundError, and ValueError for a file of another kind, a damaged one or one that is no safetensors
    file; nothing in the file is executed.
    """
    error_type, safe_open, _ = _safetensors()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(metadata.get(_KEY, "null"))
    except (error_type, ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a {kind} of fastrnn, got a file that is damaged or another: {error}"
        ) from None
    if not isinstance(description, dict) or description.get("kind") != kind:
        found = description.get("kind") if isinstance(description, dict) else None
        raise ValueError(f"{path}: expected a {kind} of fastrnn, got {found or 'a file of other arrays'}")
    return arrays, description
