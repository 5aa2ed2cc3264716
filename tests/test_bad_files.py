"""Promise 6, files: what fastrnn reads from disk (`compare --data x.npy`) is read without pickle; a file that is cut,
damaged or made with malice is refused with an error that names the option, and nothing in it is ever executed.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

_learning = pytest.importorskip("fastrnn.cli._learning", exc_type=ImportError)
from fastrnn.cli._common import UsageError  # noqa: E402

GOOD = np.random.default_rng(0).standard_normal((5, 6, 2)).astype(np.float32)


def npy(array: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def with_header(text: str) -> bytes:
    """An .npy of version 1 with this header and a little data."""
    padded = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(64)


def refuse(folder: Path, content: bytes) -> str:
    path = folder / "x.npy"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^--data: expected ") as caught:
        _learning.sequences(path, 0)
    return str(caught.value)


def read_or_refuse(path: Path) -> None:
    """Also what tests/fuzz.py runs."""
    try:
        task = _learning.sequences(path, 0)
    except UsageError as error:
        assert str(error).startswith("--data: expected ")  # noqa: PT017
    else:
        assert np.isfinite(task.x).all()


class Trap:
    """Unpickled, it raises what no reader would."""

    def __reduce__(self) -> Any:
        return exec, ("raise BaseException('executed')",)


FILES = {
    "empty": b"",
    "the magic alone": b"\x93NUMPY",
    "a future version": b"\x93NUMPY\x09\x00" + bytes(100),
    "cut in the header": npy(GOOD)[:40],
    "cut in the data": npy(GOOD)[:-1],
    "a pickle": pickle.dumps(Trap()),
    "an object array": npy(np.array([[[Trap()]]], dtype=object), allow_pickle=True),
    "an archive": b"PK\x03\x04" + bytes(100),
    "text": b"1,2,3\n",
    "code for a header": with_header("__import__('os').abort()"),
    "a header that never closes": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (((((((("),
    "a deep header": with_header("{'descr': " + "[" * 3000 + "]" * 3000 + ", 'fortran_order': False, 'shape': (2,)}"),
    "more elements than memory": with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, 1, 1)}}"),
    "overflowing extents": with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40}, {2**40}, 1)}}"),
    "negative extents": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2, 2)}"),
    "two dimensions": npy(GOOD[0]),
    "complex": npy(GOOD + 0j),
    "text for numbers": npy(GOOD.astype(str)),
    "records": npy(np.zeros((5, 6, 2), [("a", "f4")])),
    "dates": npy(np.zeros((5, 6, 2), "M8[s]")),
    "one step": npy(GOOD[:1]),
    "no row": npy(GOOD[:, :0]),
    "NaN": npy(np.where(GOOD > 0, GOOD, np.nan)),
    "numbers whose squares overflow": npy(GOOD.astype(np.float64) * 1e300),
}


@pytest.mark.parametrize("what", FILES)
def test_a_bad_file_is_refused(what: str, tmp_path: Path) -> None:
    refuse(tmp_path, FILES[what])


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no.npy", tmp_path):
        with pytest.raises(UsageError, match=r"^--data: "):
            _learning.sequences(path, 0)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "f2", "u1", ">i8"])
def test_every_real_dtype_and_byte_order_is_read(dtype: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy((GOOD * 20 + 100).astype(dtype)))
    task = _learning.sequences(tmp_path / "x.npy", 0)
    assert task.x.shape == (4, 4, 2)
    assert np.isfinite(task.x).all()


@hypothesis.given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory: Any, data: Any) -> None:
    """Bytes of a right file changed, cut out, doubled: a task of finite numbers, or UsageError, and nothing else."""
    content = bytearray(npy(GOOD))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content)))
        end = at + data.draw(st.integers(0, 9))
        content[at:end] = data.draw(st.binary(max_size=9))
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(content)
    read_or_refuse(path)
