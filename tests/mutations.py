"""Shows that the suite has teeth. Builds the kernels with faults in them (csrc/cpu/faults.h), runs tests with none of
the faults active, which must pass, and once more with each, which must fail; prints which test caught what.

    python tests/mutations.py                     # all faults
    python tests/mutations.py tail_lane_lost      # some of them
    python tests/mutations.py --tests properties  # with these test files, for instance to see what one of them sees
    python tests/mutations.py --list

Exit code 0: every fault was caught. Tests run on the instruction set that is active.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import site
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
PACKAGE = REPOSITORY / "build" / "faults" / "site"  # an installation of its own, beside the one that is in use

# The test that must see a fault: the promise that it breaks. A fault that is not in this table is an error.
CAUGHT_BY = {
    "forward_error::test_one_step_bound": """
        bias_dropped x_of_the_step_before x_strided_last_element reset_ignored zoneout_of_the_masked_state
        h_n_at_the_last_step h_n_of_an_empty_row output_not_cleared tail_lane_lost""",
    "projected::test_x_takes_the_place_of_its_product": "projected_last_unit_lost",
    "forward_error::test_one_step_bound_at_every_size": "short_call_block_repeated",
    "forward_error::test_one_step_bound_large": "sum_block_skipped panel_missed_descending",
    "forward_error::test_one_step_bound_of_wide_rows": "pack_slice_repeated row_slice_missed",
    "subnormals::test_a_subnormal_number_counts_as_zero": "subnormals_kept",
    "forward_error::test_a_long_sum_errs_as_its_blocks_do": "sum_in_one_chain",
    "tanh": "tanh_formula_stretched tanh_sign_lost",
    "gradients::test_every_element_within_bound": """
        slope_of_the_step_before plain_step_tail_lost slope_of_tanh_for_relu d_output_beyond_the_length d_h_n_dropped
        d_h_0_of_an_empty_row d_x_not_cleared lengths_ignored_in_backward reverse_ignored_in_backward
        reset_ignored_in_backward reset_ignored_in_d_w_hh recurrent_mask_ignored_in_backward
        recurrent_mask_ignored_in_d_w_hh keep_mask_gradient_dropped keep_mask_ignored_in_d_sum d_w_hh_without_step_0
        d_w_hh_of_the_step_itself d_w_block_skipped d_w_chain_skipped carry_of_another_row""",
    "leaky::test_one_step_bound": "leak_tail_lost",
    "leaky::test_every_gradient_within_bound": """
        leak_gradient_dropped slope_of_the_leaky_state recurrent_mask_ignored_in_activations d_alpha_without_the_state
        keep_mask_ignored_in_d_alpha""",
    "leaky::test_bounds_in_every_layout": "x_strided_last_element_in_backward",
    "gradients::test_every_element_within_bound_large": "narrow_units_missed",
    "gradients::test_every_element_within_bound_of_wide_rows": "row_slice_missed_in_backward",
    "gradients::test_stride_zero_upstream_gradients": "d_output_of_stride_0_dropped",
    "gradients::test_float32_error_is_no_worse_than_torch": "d_b_block_rounding_dropped",
    "determinism::test_threads_do_not_change_bits": """
        thread_block_missed unit_slice_missed unit_slice_missed_in_backward d_w_panel_missed d_w_blocks_by_threads""",
    "determinism::test_the_time_range_does_not_change_a_step": "tiles_beyond_a_run_missed",
    "ensemble::test_each_model_has_the_bits_of_its_own_call": "model_missed",
    "torch_recompute::test_sums_that_go_on_are_those_of_one_call": "sums_begin_again",
    "determinism::test_the_batch_does_not_change_a_row": "sum_order_by_rows narrow_last_terms_lost",
    "determinism::test_alignment_does_not_change_bits": "sum_order_by_alignment",
    "guard_pages::test_nothing_is_touched_beside_an_array": "whole_vector_read whole_vector_written",
    "guard_pages::test_nothing_is_touched_beside_weights_that_are_packed_for_good": "whole_panel_read",
    "allocation_failures": "refused_memory_leaks written_before_memory_is_there",
    "kept_memory::test_what_is_kept": "kept_memory_taken_twice",  # in a process of its own, which may crash
    "kept_memory": "kept_memory_without_end",
    "float_environment": "float_environment_of_the_caller",
    "nan": "reset_multiplies_in_backward",
    "determinism::test_kept_packed_weights_give_the_same_bits": "packed_weights_stale",
    "threads::test_a_worker_that_was_woken_may_run_where_it_could_before": "worker_stays_off_a_cpu",
    "training_gradients::test_native_adam_gives_the_bits_of_python": """
        adam_last_element_missed adam_block_missed adam_decay_dropped adam_mean_of_the_step_before""",
    "training_gradients::test_embedding_gradient_equals_the_plain_sum": "segment_last_row_missed segment_block_missed",
    "training_gradients::test_native_sums_start_from_zero": "segment_not_cleared",
    "training_gradients::test_native_maximum_gives_the_bits_of_python": """
        maximum_takes_the_last_of_equals maximum_without_the_last_step maximum_ignores_nan maximum_of_no_steps""",
}


def build() -> None:
    """The fault build, into PACKAGE. With the build tools at hand, a second run compiles only what has changed."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(PACKAGE)]
    if importlib.util.find_spec("scikit_build_core") and importlib.util.find_spec("pybind11"):
        command += ["--no-build-isolation"]
    command += ["-Ccmake.define.FASTRNN_FAULTS=ON", f"-Cbuild-dir={PACKAGE.parent / 'objects'}", str(REPOSITORY)]
    subprocess.run(command, check=True, env={**os.environ, "FASTRNN_NATIVE": "1"})


def python(*words: str, fault: str | None = None) -> subprocess.CompletedProcess[str]:
    """Python on the fault build, outside the source folder; -S leaves out .pth files, which hook editable installs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTRNN_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), *site.getsitepackages()])
    environment["HYPOTHESIS_PROFILE"] = "mutations"
    nameless = ("test_training", "test_kept_memory")  # files whose tests name no backend
    if not all(any(name in word for name in nameless) for word in words if word.startswith(str(TESTS))):
        environment["FASTRNN_EXPECT_BACKENDS"] = "cpp"
    if fault:
        environment["FASTRNN_FAULT"] = fault
    command = [sys.executable, "-S", *words]
    return subprocess.run(command, cwd=PACKAGE, env=environment, capture_output=True, text=True, check=False)


def facts() -> tuple[dict[str, str], list[str]]:
    """The faults that are built in, with what each does, and the kernels to leave out: all but the active one."""
    code = "import json, fastrnn, fastrnn._fastrnn_cpu as m; "
    code += "print(json.dumps([m.faults, m.active_isa(), m.isas(), [b.name for b in fastrnn.backends()]]))"
    result = python("-c", code)
    if result.returncode:
        raise RuntimeError(f"the fault build does not load: {result.stderr}")
    unknown = python("-c", "import fastrnn._fastrnn_cpu", fault="unknown")
    if "FASTRNN_FAULT: expected one of" not in unknown.stderr:
        raise RuntimeError(f"an unknown fault is not refused: {unknown.stderr}")
    faults, active, isas, backends = json.loads(result.stdout)
    others = [f"cpp:{name}" for name, _, _ in isas if name != active]
    return faults, others + [name for name in backends if name != "cpp"]


def run(tests: list[str], others: list[str], fault: str | None = None) -> tuple[str | None, float, str]:
    """The first test that failed, or None; seconds; what pytest printed."""
    paths = [f"{TESTS}/test_{file}.py{colons}{name}" for file, colons, name in (test.partition("::") for test in tests)]
    chosen = f"not ({' or '.join(others)})"
    options = ["-x", "-q", "--tb=short", "-rf", "-p", "no:cacheprovider", "-k", chosen]
    begin = time.perf_counter()
    result = python(
        "-m", "pytest", f"--rootdir={REPOSITORY}", f"-c{REPOSITORY}/pyproject.toml", *options, *paths, fault=fault
    )
    text = result.stdout + result.stderr
    failed = re.search(r"^FAILED \S*?tests/test_(\S+)", text, re.MULTILINE)
    if result.returncode == -signal.SIGSEGV and all(test.startswith("guard_pages") for test in tests):
        return f"{tests[0]}: SIGSEGV", time.perf_counter() - begin, text  # what a guard page is there for
    # Another crash, or no test at all, is no catch: exit code 1 is pytest's word for failed tests.
    if result.returncode not in (0, 1) or bool(failed) != bool(result.returncode):
        raise RuntimeError(f"{fault or 'no fault'}: pytest left with {result.returncode}\n{text}")
    return failed[1] if failed else None, time.perf_counter() - begin, text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="default: all")
    parser.add_argument("--list", action="store_true", help="build, say what faults there are, and leave")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="default: for each fault the test in CAUGHT_BY")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: the CPUs)")
    arguments = parser.parse_args()

    begin = time.perf_counter()
    build()
    known, others = facts()
    if arguments.list:
        print("\n".join(f"{name:36} {what}" for name, what in known.items()))
        return 0
    test_of = {fault: test for test, faults in CAUGHT_BY.items() for fault in faults.split()}
    if set(test_of) != set(known):
        parser.error(f"CAUGHT_BY and csrc/cpu/faults.h differ in {', '.join(sorted(set(test_of) ^ set(known)))}")
    if unknown := set(arguments.faults) - set(known):
        parser.error(f"expected faults of --list, got {', '.join(sorted(unknown))}")
    print(f"{time.perf_counter() - begin:6.1f} s  fault build", flush=True)

    faults = arguments.faults or list(known)
    tests_of = {fault: arguments.tests or [test_of[fault]] for fault in faults}
    everything = list(dict.fromkeys(test for tests in tests_of.values() for test in tests))
    survivors = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        sound = pool.submit(run, everything, others)
        runs = {fault: pool.submit(run, tests_of[fault], others, fault) for fault in faults}
        for fault, future in {"no fault": sound, **runs}.items():
            caught_by, seconds, text = future.result()
            print(f"{seconds:6.1f} s  {fault:36} {caught_by or 'passed'}", flush=True)
            if future is sound and caught_by:
                print(text)
            if (future is sound) == bool(caught_by):
                survivors.append(fault)
    print(f"{len(faults)} faults, {time.perf_counter() - begin:.0f} s in all")
    for fault in survivors:
        print("FAILED without a fault" if fault == "no fault" else f"SURVIVED: {fault}: {known[fault]}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
