"""Arrays of the wrong kind, and how a refusal reads: the same through every entrance of the package."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def refuse(run: Callable[..., Any], error: type[Exception], name: str, *words: str, **arguments: Any) -> str:
    """The call raises exactly this class, names the argument, and says each of the words."""
    with pytest.raises(error) as caught:
        run(**arguments)
    assert type(caught.value) is error, f"{type(caught.value).__name__} instead of {error.__name__}: {caught.value}"
    text = str(caught.value)
    assert re.match(rf"{name}: expected .*, got ", text), text
    for word in words:
        assert word in text, f"{word!r} is missing in: {text}"
    return text


def _off_by_one_byte(array: Any) -> Any:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    raw[...] = array
    return raw


KINDS: dict[str, tuple[Callable[[Any], Any], type[Exception], tuple[str, ...]]] = {
    "list": (lambda a: a.tolist(), TypeError, ("list",)),
    "tuple": (lambda a: tuple(a), TypeError, ("tuple",)),
    "float": (lambda a: 1.0, TypeError, ("float",)),
    "str": (lambda a: "x", TypeError, ("str",)),
    "object dtype": (lambda a: a.astype(object), TypeError, ("dtype", "object")),
    "float16": (lambda a: a.astype(np.float16), TypeError, ("float32", "float16")),
    "int64": (lambda a: a.astype(np.int64), TypeError, ("float32", "int64")),
    "bool": (lambda a: a > 0, TypeError, ("float32", "bool")),
    "complex64": (lambda a: a.astype(np.complex64), TypeError, ("float32", "complex64")),
    "longdouble": (lambda a: a.astype(np.longdouble), TypeError, ("float32", str(np.dtype(np.longdouble)))),
    "byte-swapped": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError, ("byte order",)),
    "misaligned": (_off_by_one_byte, ValueError, ("aligned", "copy")),
    "masked": (lambda a: np.ma.masked_array(a), TypeError, ("MaskedArray",)),
    "one dimension more": (lambda a: a[None], ValueError, ("(1, ",)),
    "one dimension less": (lambda a: np.asarray(a[0]), ValueError, ("shape",)),
    "one more along the first axis": (lambda a: np.concatenate([a, a[:1]]), ValueError, ("shape",)),
    "one less along the last axis": (lambda a: a[..., :-1], ValueError, ("shape",)),
}
