// One call of a kernel from Python: the GIL is released where it pays, Ctrl-C is polled, errors become exceptions.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <thread>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

#include "cpu/float_environment.h"
#include "cpu/passes.h"
#include "rnn.h"

namespace fastrnn {

namespace py = pybind11;

// Ends a call early when Python has a signal to handle. Only Python's main thread handles signals.
class PythonSignals {
public:
  PythonSignals() : control_(PyThread_get_thread_ident() == main_thread ? &PythonSignals::check : nullptr, this) {}
  PythonSignals(const PythonSignals&) = delete;
  CallControl& control() { return control_; }
  static void remember_main_thread() {  // which need not be this one
    main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  }

private:
  static bool check(void* self) {
    py::gil_scoped_acquire gil;
    const FloatEnvironment environment(static_cast<PythonSignals*>(self)->callers_);  // handlers are the caller's code
    return PyErr_CheckSignals() != 0;
  }
  inline static std::atomic<unsigned long> main_thread{0};  // written at import and in the child of a fork
  const FloatState callers_ = float_state();
  CallControl control_;
};

// While Python exits, taking the GIL back ends a daemon thread, before 3.14 by unwinding: destructors would give up
// references without the GIL. The thread waits for the process to end instead, as 3.14 has it.
inline void take_gil(PyThreadState* state) {
#if defined(__GLIBCXX__)
  try {
    PyEval_RestoreThread(state);
  } catch (const abi::__forced_unwind&) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
#else
  PyEval_RestoreThread(state);
#endif
}

// Not py::gil_scoped_release: the unwinding must not start in a destructor.
inline void without_gil(void (*run)(void*), void* of) {
  PyThreadState* const state = PyEval_SaveThread();
  try {
    run(of);
  } catch (const std::exception&) {
    take_gil(state);
    throw;
  }
  take_gil(state);
}

template <class Run>
void without_gil(Run run) {
  without_gil([](void* of) { (*static_cast<Run*>(of))(); }, &run);
}

template <class Run>
void call(double flops, Run run) {
  PythonSignals signals;
  if (flops < 1e5) {  // a few microseconds: shorter than handing the GIL over
    run(signals.control());
  } else {
    without_gil([&] { run(signals.control()); });
  }
  if (PyErr_Occurred()) {
    throw py::error_already_set();
  }
  if (signals.control().lost()) {
    throw std::runtime_error(
        "this process was forked by a signal handler in the middle of the call, whose threads it does not have");
  }
}

inline double flops_of(const Shape& n) {
  return 2.0 * static_cast<double>(n.T) * static_cast<double>(n.B) * static_cast<double>(n.H) *
         static_cast<double>(n.I + n.H);
}

}  // namespace fastrnn
