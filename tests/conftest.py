"""Fixtures and guards: the installed package is what is tested, and an expected backend that never ran is a failure.

FASTRNN_ALLOW_SOURCE=1        test the source folder all the same (PYTHONPATH, editable installs)
FASTRNN_EXPECT_BACKENDS=a,b   fail unless tests passed on each of these backends
FASTRNN_EXPECT_ISAS=v3,v2     the same for the instruction sets of cpp
FASTRNN_EXPECT_TORCH=1        tests against PyTorch fail, instead of being skipped, where it is missing
HYPOTHESIS_PROFILE=nightly    20,000 examples of each property instead of 200
FASTRNN_SEED=n                shifts every random case
"""

from __future__ import annotations

import gc
import importlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from helpers.cases import DTYPES, SEED
from helpers.kernels import Kernel, known_kernels, native

# A pure installation warns when "auto" takes the slow backend: test_api_consistency.py tests that; elsewhere, silence.
if isinstance(native(), ImportError):
    os.environ.setdefault("FASTRNN_BACKEND", "numpy")

hypothesis.settings.register_profile(
    "ci", max_examples=200, derandomize=True, deadline=None, database=None, print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
hypothesis.settings.register_profile(
    "nightly", hypothesis.settings.get_profile("ci"), max_examples=20_000, derandomize=False
)
hypothesis.settings.register_profile(  # tests/mutations.py: that an example fails is enough
    "mutations", hypothesis.settings.get_profile("ci"), phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

REPOSITORY = Path(__file__).resolve().parent.parent
_passed: Counter[str] = Counter()  # "backend:numpy", "isa:v3" -> tests passed


def pytest_configure(config: pytest.Config) -> None:
    import fastrnn

    config.addinivalue_line("markers", "native: only for the kernels of the native module")
    config.addinivalue_line("markers", "own_tanh: only for kernels with a tanh of our own: cpp and numba")

    package = Path(fastrnn.__file__).resolve().parent
    if package == REPOSITORY / "fastrnn" and os.environ.get("FASTRNN_ALLOW_SOURCE") != "1":
        raise pytest.UsageError(
            f"the source folder {package} shadows the installed package: run `pip install .`, then `pytest` (not "
            "`python -m pytest`) without PYTHONPATH; FASTRNN_ALLOW_SOURCE=1 tests the source folder all the same"
        )


def pytest_report_header(config: pytest.Config) -> list[str]:
    from importlib.metadata import PackageNotFoundError

    import fastrnn

    try:
        version = fastrnn.__version__
    except PackageNotFoundError:
        version = "(not installed)"
    lines = [f"fastrnn {version} from {Path(fastrnn.__file__).parent}, seed {SEED}"]
    for record in fastrnn.backends():
        lines.append(f"  {record.name} ({record.device}): {'available' if record.available else record.reason}")
    module = native()
    if not isinstance(module, ImportError):
        isas = ", ".join(f"{name} {'yes' if ok else 'no'}" for name, _, ok in module.isas())
        lines.append(f"  instruction sets: {isas}; threads: {fastrnn.get_num_threads()}")
        if fault := getattr(module, "active_fault", None):
            lines.append(f"  SEEDED FAULT: {fault}, {module.faults[fault]}")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`kernel`, `backend` and `dtype`: all that can run here. What cannot is skipped with its reason, once, in
    test_api_consistency.py; FASTRNN_EXPECT_* makes it a failure."""
    known = [identity for identity, reason in known_kernels().items() if not reason]
    if "kernel" in metafunc.fixturenames:
        kernels = [Kernel(*identity.split(":")) for identity in known]
        if metafunc.definition.get_closest_marker("native"):
            kernels = [kernel for kernel in kernels if kernel.is_native]
        if metafunc.definition.get_closest_marker("own_tanh"):
            kernels = [kernel for kernel in kernels if kernel.has_own_tanh]
        metafunc.parametrize("kernel", kernels, ids=[kernel.id for kernel in kernels])
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", list(dict.fromkeys(identity.partition(":")[0] for identity in known)))
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "dtype" in metafunc.fixturenames and "dtype" not in own:
        metafunc.parametrize("dtype", DTYPES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        used = getattr(item, "funcargs", {})
        if "kernel" in used:
            report.user_properties.append(("exercised", f"backend:{used['kernel'].backend}"))
            if used["kernel"].isa:
                report.user_properties.append(("exercised", f"isa:{used['kernel'].isa}"))
        if "backend" in used:
            report.user_properties.append(("exercised", f"backend:{used['backend']}"))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _passed.update(value for key, value in report.user_properties if key == "exercised")


def _missing() -> list[str]:
    wanted = [f"backend:{n.strip()}" for n in os.environ.get("FASTRNN_EXPECT_BACKENDS", "").split(",") if n.strip()]
    wanted += [f"isa:{n.strip()}" for n in os.environ.get("FASTRNN_EXPECT_ISAS", "").split(",") if n.strip()]
    return [name for name in wanted if not _passed[name]]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and not session.config.option.collectonly and _missing():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _passed:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(_passed.items()))
        terminalreporter.write_line(f"tests passed on {counts}")
    for name in _missing():
        terminalreporter.write_line(f"ERROR: expected {name}, but no test passed on it", red=True)


def _needed(name: str, package: str) -> Any:
    """The module; where it is missing the test is skipped, or fails with FASTRNN_EXPECT_TORCH=1."""
    if os.environ.get("FASTRNN_EXPECT_TORCH") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{package} is not installed", exc_type=ImportError)


@pytest.fixture
def torch() -> Any:
    """PyTorch, for comparison."""
    return _needed("torch", "PyTorch")


@pytest.fixture
def onnx(torch: Any) -> Any:
    """ONNX, beside what torch's exporter needs."""
    _needed("onnxscript", "onnxscript")
    return _needed("onnx", "ONNX")


@pytest.fixture
def onnxruntime() -> Any:
    """What runs an exported model."""
    return _needed("onnxruntime", "ONNX Runtime")


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """csrc/cuda, compiled for this machine; with sanitizers where the process has AddressSanitizer. A missing compiler
    is an error where the backend cpp has to be there."""
    from helpers import cuda_host

    if cuda_host.compiler() is None:
        expected = "cpp" in os.environ.get("FASTRNN_EXPECT_BACKENDS", "").split(",")
        (pytest.fail if expected else pytest.skip)("no C++ compiler")
    sanitize = "libasan" in os.environ.get("LD_PRELOAD", "")
    return cuda_host.load(cuda_host.build(tmp_path_factory.mktemp("cuda_host"), sanitize=sanitize))


@pytest.fixture
def own_route(torch: Any) -> Iterator[None]:
    """A warning that torch.nn.RNN computes is an error, torch's own are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="fastrnn.torch")
        yield


@pytest.fixture
def default_threads() -> Iterator[None]:
    """Puts the number of threads back."""
    import fastrnn

    before = fastrnn.get_num_threads()
    yield
    fastrnn.set_num_threads(before)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Reference counts alone free memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
