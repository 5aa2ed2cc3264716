"""The registry of backends in this process: what cannot be imported is remembered with its reason, refused by name, and
passed over by "auto" with one warning. test_api_consistency.py shows the same of whole processes.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from fastrnn import _backends


@pytest.fixture(name="hide")
def _hide(monkeypatch: Any) -> Callable[..., None]:
    """hide("cpp"): from here on its file cannot be imported; nothing was asked for before."""

    def hide(*names: str) -> None:
        files = {f"{_backends.__name__}.{file}" for (_, name), file in _backends._FILES.items() if name in names}
        imported = _backends.import_module

        def import_module(name: str) -> Any:
            if name in files:
                raise ImportError(f"no {name}")
            return imported(name)

        monkeypatch.setattr(_backends, "_loaded", {})
        monkeypatch.setattr(_backends, "import_module", import_module)
        monkeypatch.delenv("FASTRNN_BACKEND", raising=False)
        monkeypatch.setattr(_backends, "_chosen", {})

    return hide


def test_what_cannot_be_imported_is_remembered_with_its_reason(hide: Callable[..., None]) -> None:
    hide("cpp", "numpy")
    known = {record.name: record for record in _backends.backends()}
    assert not known["cpp"].available
    assert known["cpp"].reason == f"no fastrnn._backends.cpp; {_backends._GET['cpp']}"
    assert known["numpy"].reason == "no fastrnn._backends.reference", "where there is nothing to get"
    assert _backends._load("cpu", "cpp") is known["cpp"], "asked once"


def test_a_backend_asked_for_by_name_runs_or_raises(hide: Callable[..., None], monkeypatch: Any) -> None:
    hide("cpp")
    assert _backends.get("numpy").__name__ == "fastrnn._backends.reference"  # type: ignore[attr-defined]
    for argument, name in (("backend", "cpp"), ("FASTRNN_BACKEND", "auto")):
        monkeypatch.setenv("FASTRNN_BACKEND", "cpp")
        with pytest.raises(RuntimeError, match=f"^{argument}: expected an available backend, got 'cpp': no fastrnn"):
            _backends.get(name)
    monkeypatch.setenv("FASTRNN_BACKEND", "numpy")
    assert _backends.get("auto").__name__ == "fastrnn._backends.reference"  # type: ignore[attr-defined]
    monkeypatch.setenv("FASTRNN_BACKEND", "no")
    _backends._chosen.clear()
    for argument, name in (("backend", "nothing"), ("FASTRNN_BACKEND", "auto")):
        with pytest.raises(ValueError, match=f"^{argument}: expected 'auto' or one of 'cpp', 'numba', 'numpy' for"):
            _backends.get(name)
    with pytest.raises(TypeError, match=r"^backend: expected str, got NoneType"):
        _backends.get(None)  # type: ignore[arg-type]


def test_auto_takes_the_next_with_one_warning(hide: Callable[..., None]) -> None:
    hide("cpp", "numba")
    words = r"^fastrnn runs on the slower backend 'numpy' \('cpp' is not available: no fast.*; 'numba' is not available"
    with pytest.warns(RuntimeWarning, match=words):
        assert _backends.get("auto").__name__ == "fastrnn._backends.reference"  # type: ignore[attr-defined]


def test_a_device_without_any_backend_is_an_error(hide: Callable[..., None]) -> None:
    hide(*(name for device, name in _backends._FILES if device == "cuda"))
    with pytest.raises(RuntimeError, match=r"^backend: expected an available one for device 'cuda', got none: "):
        _backends.get("auto", "cuda")


def test_auto_says_nothing_where_the_fastest_runs(hide: Callable[..., None]) -> None:
    hide()
    if _backends._load("cpu", "cpp").available:
        assert _backends.get("auto").__name__ == "fastrnn._backends.cpp"  # type: ignore[attr-defined]


def test_cupy_without_a_driver_is_said_without_importing_it(hide: Callable[..., None], monkeypatch: Any) -> None:
    hide()
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(_backends, "find_spec", lambda name: object())
    monkeypatch.setattr(_backends, "_has_driver", _backends._has_driver.__wrapped__)

    def missing(name: str) -> None:
        raise OSError(name)

    for load, reason in ((missing, "no CUDA driver on this machine"), (lambda name: None, None)):
        monkeypatch.setattr(_backends.ctypes, "CDLL", load)
        record = _backends._look("cuda", "cupy")
        assert (record.available, record.reason) == (reason is None, reason)
