"""Coverage-guided fuzzing with Atheris (`pip install atheris`): the branches of fastrnn's Python, and where the native
module was built for it the branches of the binding, steer what is tried next. A crash or a wrong exception ends the run
and leaves the input in a file, which the same command takes again.

    python tests/fuzz.py forward -runs=100000     # the rest are libFuzzer's options
    python tests/fuzz.py file -max_total_time=60

Targets: forward, backward, small (the native module, past the validation), state (load_state_dict), file (the bytes of
an .npy for `compare --data`). For the branches of the binding, with Clang:

    CC=clang CXX=clang++ CXXFLAGS="-fsanitize=fuzzer-no-link" pip install .
    LD_PRELOAD=$(python -c "import atheris; print(atheris.path())")/libfuzzer.so python tests/fuzz.py forward
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent))
with atheris.instrument_imports(include=["fastrnn", "numpy.lib"]):
    import test_bad_files as files
    import test_bad_layer_inputs as layers
    import test_native_fuzz as natives


def read_file(content: bytes) -> None:
    path = Path(tempfile.gettempdir()) / f"fastrnn-fuzz-{os.getpid()}.npy"
    path.write_bytes(content)
    files.read_or_refuse(path)


TARGETS: dict[str, Callable[[bytes], object]] = {
    "forward": natives.test_forward_raises_or_computes.hypothesis.fuzz_one_input,
    "backward": natives.test_backward_raises_or_computes.hypothesis.fuzz_one_input,
    "small": natives.test_the_smaller_functions_raise_or_compute.hypothesis.fuzz_one_input,
    "state": layers.test_any_state_is_loaded_or_refused.hypothesis.fuzz_one_input,
    "file": read_file,
}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python {sys.argv[0]} {{{','.join(TARGETS)}}} [libFuzzer's options]")
    target = TARGETS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as corpus:
        if target is read_file:
            for name, content in {"good": files.npy(files.GOOD), **files.FILES}.items():
                (Path(corpus) / name.replace(" ", "_")).write_bytes(content)
        atheris.Setup([*sys.argv, corpus], target)
        atheris.Fuzz()
