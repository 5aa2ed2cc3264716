"""The compiled node of fastrnn.torch: how it is compiled, found, refused and switched off; in processes of their own,
Ctrl-C and memory that is not there.
"""

from __future__ import annotations

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import torch_node
from helpers.processes import output_of, run_python

SHOW = """
import torch, fastrnn.torch
grad_fn = fastrnn.torch.RNN(5, 7)(torch.ones(2, 3, 5))[0].grad_fn
print(isinstance(grad_fn, torch.autograd.function.BackwardCFunction))
"""


@pytest.fixture
def cache(torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """XDG_CACHE_HOME/fastrnn of a user who has not compiled anything."""
    torch_node.library()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastrnn"


@pytest.fixture
def installed(cache: Path) -> Path:
    """The node, where fastrnn.torch looks for it."""
    from fastrnn.torch import node

    path = node.library()
    cache.mkdir(mode=0o700)
    path.write_bytes(torch_node.library().read_bytes())
    path.chmod(0o700)
    return path


def command(*words: str) -> str:
    return f"import sys; from fastrnn import cli; sys.exit(cli.main({list(words)!r}))"


def test_it_is_used_where_it_is_found(installed: Path) -> None:
    """FASTRNN_TORCH_NODE=0: it is not; another backend than cpp has none."""
    assert output_of(SHOW) == "False"
    assert output_of(SHOW, FASTRNN_TORCH_NODE="1") == "False"
    assert output_of(SHOW, FASTRNN_TORCH_NODE="0") == "True"
    assert output_of(SHOW, FASTRNN_BACKEND="numpy") == "True"


def test_without_it_python_records(cache: Path) -> None:
    """In silence; with FASTRNN_TORCH_NODE=1 it is an error that names the command."""
    result = run_python(SHOW)
    assert (result.stdout, result.stderr) == ("True\n", "")
    words = "RuntimeError: FASTRNN_TORCH_NODE=1, but there is no node (not compiled); to compile it: fastrnn torch-node"
    assert words in run_python(SHOW, FASTRNN_TORCH_NODE="1").stderr
    assert (
        "ValueError: FASTRNN_TORCH_NODE: expected 0 or 1, got 'yes'"
        in run_python(SHOW, FASTRNN_TORCH_NODE="yes").stderr
    )


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_what_others_may_write_to_is_not_loaded(installed: Path) -> None:
    from fastrnn import _compiled

    for path in (installed, installed.parent):
        path.chmod(0o770)
        assert output_of(SHOW) == "True"
        words = f"there is no node (others may write to {path})"
        assert words in run_python(SHOW, FASTRNN_TORCH_NODE="1").stderr
        path.chmod(0o700)
    installed.parent.chmod(0o777)
    with pytest.raises(_compiled.CompileError, match="others may write to"):
        _compiled.build(["true"], installed)


def test_a_library_of_another_user_is_not_loaded(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.torch import node

    assert node.state() == (installed, None)
    monkeypatch.setattr(os, "getuid", lambda: installed.stat().st_uid + 1)
    assert node.state() == (installed, f"{installed.parent} belongs to another user")


def test_a_broken_library_is_not_used(installed: Path) -> None:
    installed.write_bytes(b"not a library")
    assert output_of(SHOW) == "True"
    assert "there is no node (" in run_python(SHOW, FASTRNN_TORCH_NODE="1").stderr


def test_calls_of_another_version_are_refused(torch: Any) -> None:
    from helpers import torch_calls

    from fastrnn.torch import dispatch, node

    module = torch_node.compiled()
    real = torch_calls.of(dispatch.backend().torch_calls)
    other = torch_calls.Calls(1, real.forward, real.backward, real.take, real.give)
    with pytest.raises(ImportError, match="has version 1 of torch_calls, this was compiled for 2"):
        module.start(torch_calls.capsule(other), node.backward)
    with pytest.raises(TypeError, match="expected 2 arguments"):
        module.start()


def test_the_name_says_what_it_fits(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another PyTorch, another source: another file."""
    from fastrnn.torch import node

    names = {node.library().name}
    for change in (
        lambda: monkeypatch.setattr(torch, "__version__", "9"),
        lambda: monkeypatch.setattr(node, "_SOURCES", ("rnn_calls.h",)),
    ):
        node._name.cache_clear()
        change()
        names.add(node.library().name)
    node._name.cache_clear()
    assert len(names) == 3


# ---- compiling


@pytest.mark.slow
def test_the_command(cache: Path) -> None:
    """It compiles, in a folder for the user alone; a second time there is nothing to do; info tells."""
    before = output_of(command("info"), timeout=120)
    assert "not compiled; to compile it: fastrnn torch-node" in before
    assert output_of(command("torch-node"), timeout=300).startswith("compiled in ")
    (path,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert output_of(command("torch-node"), timeout=120) == f"compiled already: {path}"
    assert str(path) in output_of(command("info"), timeout=120)
    assert output_of(SHOW, FASTRNN_TORCH_NODE="1") == "False"


def test_a_compiler_that_fails_is_quoted(cache: Path, tmp_path: Path) -> None:
    """... with what to do; nothing is left behind."""
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'error: no such header' >&2\nexit 3\n")
    compiler.chmod(0o700)
    for name, words in ((compiler, "error: no such header"), (tmp_path / "none", "none: No such file or directory")):
        result = run_python(command("torch-node"), timeout=120, CXX=str(name))
        assert result.returncode == 2
        assert words in result.stderr
        assert "CXX may name" in result.stderr
    assert list(cache.iterdir()) == []


def test_the_command_needs_the_backend_cpp(cache: Path) -> None:
    result = run_python(command("torch-node"), timeout=120, FASTRNN_BACKEND="numpy")
    assert result.returncode == 2
    assert "the node calls the backend cpp" in result.stderr
    assert not cache.exists()


def test_two_builds_at_once(torch: Any, tmp_path: Path) -> None:
    """Each finds a whole library there, and no other file."""
    from fastrnn import _compiled

    path = tmp_path / "folder" / "made.so"
    code = (
        "import sys, time; f = open(sys.argv[2], 'wb'); f.write(b'a' * 999); f.flush(); time.sleep(0.2); f.write(b'a')"
    )

    def build(_: int) -> int:
        _compiled.build([sys.executable, "-c", code], path)
        return path.stat().st_size

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(build, range(4))) == {1000}
    assert list(path.parent.iterdir()) == [path]


# ---- in a process of its own


HEAD = """
import torch, fastrnn.torch
from fastrnn.torch import node, dispatch
if {on}:
    node._chosen["node"] = node.load("{path}", dispatch.backend().torch_calls)
else:
    node._chosen["node"] = None
"""


def head(on: bool) -> str:
    return HEAD.format(on=on, path=torch_node.library())


CTRL_C = """
import functools, os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
layer = fastrnn.torch.RNN(900, 900)
x = torch.randn(1000, 1, 900)
def timed(run):
    start = time.perf_counter()
    try:
        run()
    except KeyboardInterrupt:
        return time.perf_counter() - start, True
    return time.perf_counter() - start, False
loss = lambda: layer(x)[0].sum()
loss().backward()
compiled = node._chosen["node"]  # called by partial, which sees results beside an exception
forward = loss if compiled is None else functools.partial(compiled.layer, False, x, None, *layer.parameters())
for make in (lambda: forward, lambda: loss().backward):
    run = make()
    whole, _ = timed(run)
    for attempt in range(20):
        run = make()
        timer = threading.Timer(whole / 5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        seconds, ended = timed(run)
        try:
            timer.join()
        except KeyboardInterrupt:
            pass
        if ended and seconds < 0.7 * whole: break
    else:
        raise AssertionError(f"{seconds} of {whole}")
print("interrupted")
"""


@pytest.mark.parametrize("on", [False, True], ids=["python", "node"])
def test_ctrl_c(torch: Any, on: bool) -> None:
    assert output_of(head(on) + CTRL_C, timeout=300) == "interrupted"


MEMORY = """
import resource
layer = fastrnn.torch.RNN(2, 30)
x = torch.randn(32000, 1, 2, requires_grad=True)
output, _ = layer(x)
d = torch.ones_like(output)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
kept = []
for run in (lambda: layer(x), lambda: torch.autograd.grad(output, [x], d, retain_graph=True)):
    try:
        for _ in range(1000): kept.append(run())
    except MemoryError as error:
        print("MemoryError")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
del kept
print(torch.autograd.grad(output, [x], d)[0].shape == x.shape)
"""


@pytest.mark.parametrize("on", [False, True], ids=["python", "node"])
def test_memory_that_is_not_there(torch: Any, on: bool) -> None:
    """MemoryError, as by Python; the next call is right."""
    assert output_of(head(on) + MEMORY).split() == ["MemoryError", "MemoryError", "True"]
