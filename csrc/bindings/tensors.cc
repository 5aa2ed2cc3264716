#include "bindings/tensors.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>

#include "bindings/new_array.h"
#include "bindings/python_call.h"
#include "cpu/dispatch.h"
#include "cpu/kept_memory.h"
#include "cpu/passes.h"
#include "cpu/workspace.h"
#include "torch/rnn_calls.h"

namespace fastrnn {
namespace {

// The names of torch.Tensor's methods, made once
struct Names {
  PyObject *is_contiguous = PyUnicode_InternFromString("is_contiguous"), *is_neg = PyUnicode_InternFromString("is_neg"),
           *data_ptr = PyUnicode_InternFromString("data_ptr"), *numel = PyUnicode_InternFromString("numel"),
           *dtype = PyUnicode_InternFromString("dtype"), *shape = PyUnicode_InternFromString("shape");
};

const Names& names() {
  static const Names made;
  return made;
}

py::object ask(PyObject* tensor, PyObject* method) {
  auto result = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, method));
  if (!result) throw py::error_already_set();
  return result;
}

py::object get(PyObject* tensor, PyObject* attribute) {
  auto result = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, attribute));
  if (!result) throw py::error_already_set();
  return result;
}

// torch.float32 or torch.float64, of which there is one object each
template <class T>
PyObject* dtype() {
  static PyObject* const made =
      py::object(py::module_::import("torch").attr(sizeof(T) == 8 ? "float64" : "float32")).release().ptr();
  return made;
}

// Where the elements of a dense tensor of T are; null for None. fits is cleared where the memory is not simply that.
template <class T>
const T* address(const py::object& tensor, bool& fits) {
  if (tensor.is_none()) return nullptr;
  const bool dense = ask(tensor.ptr(), names().is_contiguous).ptr() == Py_True;
  const bool negated = ask(tensor.ptr(), names().is_neg).ptr() == Py_True;
  const auto at = static_cast<std::uintptr_t>(PyLong_AsSize_t(ask(tensor.ptr(), names().data_ptr).ptr()));
  // torch's zeros without memory have elements and no address
  const bool absent = at == 0 && PyLong_AsSize_t(ask(tensor.ptr(), names().numel).ptr()) != 0;
  if (PyErr_Occurred()) throw py::error_already_set();
  const bool same = get(tensor.ptr(), names().dtype).ptr() == dtype<T>();
  fits = fits && same && dense && !negated && !absent && at % alignof(T) == 0;
  return reinterpret_cast<const T*>(at);  // null where the tensor has no elements
}

// The same of a tensor that nobody looked at since it was saved: fits is also cleared where its sizes are others. Axes
// in front that have one element may lack.
template <class T>
const T* address(const py::object& tensor, std::initializer_list<index> sizes, bool& fits) {
  const py::object shape = get(tensor.ptr(), names().shape);
  if (!PyTuple_Check(shape.ptr())) throw py::type_error("shape: expected a tuple");
  const auto given = static_cast<std::size_t>(PyTuple_GET_SIZE(shape.ptr()));
  fits = fits && given <= sizes.size();
  for (std::size_t k = 1; fits && k <= sizes.size(); ++k) {
    const index want = *(sizes.end() - k);
    fits = want == (k > given ? 1 : PyLong_AsSsize_t(PyTuple_GET_ITEM(shape.ptr(), given - k)));
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return address<T>(tensor, fits);
}

template <class T>
py::array_t<T> array(std::initializer_list<index> shape) {
  return new_array<T>(shape.begin(), static_cast<int>(shape.size()));
}

template <class T>
const T* some(const T* data) {  // given, but empty: never read, and not "not given"
  static const T nothing{};
  return data ? data : &nothing;
}

Shape shape_of(const FastrnnProblem& p) { return {p.T, p.B, p.I, p.H}; }

template <class T>
void run_forward(const FastrnnForward& given) {
  const auto in = [](const void* data) { return static_cast<const T*>(data); };
  const Shape n = shape_of(given.problem);
  ForwardProblem<T> p;
  p.shape = n;
  p.x = {in(given.x), n.B * n.I, n.I};
  p.h_0 = {in(given.h_0), n.H};
  p.w_ih = {in(given.w_ih), n.I};
  p.w_hh = {in(given.w_hh), n.H};
  p.b_ih = {in(given.b_ih)};
  p.b_hh = {in(given.b_hh)};
  p.output = {static_cast<T*>(given.output), n.B * n.H, n.H};
  p.h_n = {static_cast<T*>(given.h_n), n.H};
  p.options.relu = given.problem.relu != 0;
  p.options.reverse = given.problem.reverse != 0;
  const InstructionSet& set = choose_instruction_set(nullptr);
  const int threads = given.problem.threads;
  call(flops_of(n), [&](CallControl& control) { rnn_forward<T>(p, set, nullptr, threads, control); });
}

template <class T>
void run_backward(const FastrnnBackward& given) {
  const auto in = [](const void* data) { return static_cast<const T*>(data); };
  const auto out = [](void* data) { return static_cast<T*>(data); };
  const Shape n = shape_of(given.problem);
  const ptrdiff_t* const along = given.d_output_strides;
  BackwardProblem<T> p;
  p.shape = n;
  p.d_output = {in(given.d_output), along[0], along[1], along[2]};
  p.d_h_n = {in(given.d_h_n), given.d_h_n_strides[0], given.d_h_n_strides[1]};
  p.output = {in(given.output), n.B * n.H, n.H};
  p.x = {in(given.x), n.B * n.I, n.I};
  p.h_0 = {in(given.h_0), n.H};
  p.w_ih = {in(given.w_ih), n.I};
  p.w_hh = {in(given.w_hh), n.H};
  p.d_x = {out(given.d_x), n.B * n.I, n.I};
  p.d_h_0 = {out(given.d_h_0), n.H};
  p.d_w_ih = {out(given.d_w_ih), n.I};
  p.d_w_hh = {out(given.d_w_hh), n.H};
  p.d_b = {out(given.d_b)};
  p.options.relu = given.problem.relu != 0;
  p.options.reverse = given.problem.reverse != 0;
  const InstructionSet& set = choose_instruction_set(nullptr);
  const int threads = given.problem.threads;
  call(2 * flops_of(n), [&](CallControl& control) { rnn_backward<T>(p, set, threads, control); });
}

// ---- for Python

template <class T>
py::object forward(const py::object& x, const py::object& h_0, const std::array<py::object, 4>& w,
                   const FastrnnProblem& n) {
  bool fits = true;
  FastrnnForward p{};
  p.problem = n;
  p.x = some(address<T>(x, fits));
  p.h_0 = h_0.is_none() ? nullptr : some(address<T>(h_0, fits));
  p.w_ih = some(address<T>(w[0], fits));
  p.w_hh = address<T>(w[1], fits);
  p.b_ih = address<T>(w[2], fits);
  p.b_hh = address<T>(w[3], fits);
  if (!fits) return py::none();
  auto output = array<T>({n.T, n.B, n.H}), h_n = array<T>({1, n.B, n.H});
  p.output = output.mutable_data();
  p.h_n = h_n.mutable_data();
  run_forward<T>(p);
  return py::make_tuple(std::move(output), std::move(h_n));
}

struct Needs {
  bool x, h_0, w_ih, w_hh, b;
};

template <class T>
py::object backward(const py::object& d_output, const py::object& d_h_n, const py::object& output, const py::object& x,
                    const py::object& h_0, const py::object& w_ih, const py::object& w_hh, const FastrnnProblem& n,
                    Needs needs) {
  bool fits = true;
  FastrnnBackward p{};
  p.problem = n;
  p.d_output = d_output.is_none() ? nullptr : some(address<T>(d_output, {n.T, n.B, n.H}, fits));
  p.d_output_strides[0] = n.B * n.H;
  p.d_output_strides[1] = p.d_h_n_strides[0] = n.H;
  p.d_output_strides[2] = p.d_h_n_strides[1] = 1;
  p.d_h_n = d_h_n.is_none() ? nullptr : some(address<T>(d_h_n, {1, n.B, n.H}, fits));
  p.output = some(address<T>(output, {n.T, n.B, n.H}, fits));
  p.x = some(address<T>(x, {n.T, n.B, n.I}, fits));
  p.h_0 = h_0.is_none() ? nullptr : some(address<T>(h_0, {1, n.B, n.H}, fits));
  p.w_ih = some(address<T>(w_ih, {n.H, n.I}, fits));
  p.w_hh = address<T>(w_hh, {n.H, n.H}, fits);
  if (!fits) return py::none();
  std::array<py::object, 5> results{py::none(), py::none(), py::none(), py::none(), py::none()};
  const auto make = [&](std::size_t k, std::initializer_list<index> shape) {
    auto made = array<T>(shape);
    T* const data = made.mutable_data();
    results[k] = std::move(made);
    return data;
  };
  if (needs.x) p.d_x = make(0, {n.T, n.B, n.I});
  if (needs.h_0) p.d_h_0 = make(1, {1, n.B, n.H});
  if (needs.w_ih) p.d_w_ih = make(2, {n.H, n.I});
  if (needs.w_hh) p.d_w_hh = make(3, {n.H, n.H});
  if (needs.b) p.d_b = make(4, {n.H});
  run_backward<T>(p);
  return py::make_tuple(results[0], results[1], results[2], results[3], results[4]);
}

// ---- for C

template <class Run>
int guarded(Run run) {
  try {
    run();
    return 0;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return -1;
}

int forward_call(const FastrnnForward* p) {
  return guarded([&] { p->problem.wide ? run_forward<double>(*p) : run_forward<float>(*p); });
}

int backward_call(const FastrnnBackward* p) {
  return guarded([&] { p->problem.wide ? run_backward<double>(*p) : run_backward<float>(*p); });
}

void* take_call(std::size_t bytes, int explain) {
  void* block = nullptr;
  const auto take = [&] { block = take_memory(bytes); };
  if (explain) {
    guarded([&] {
      take();
      if (!block) throw OutOfMemory(std::to_string(bytes));
    });
    return block;
  }
  try {
    take();
  } catch (...) {  // FASTRNN_KEPT_MIB is no number
  }
  return block;
}

FastrnnTorchCalls calls{FASTRNN_TORCH_CALLS_VERSION, &forward_call, &backward_call, &take_call, &give_memory};

}  // namespace

void bind_tensors(py::module_& m) {
  m.def("forward_tensors", [](const py::object& x, const py::object& h_0, const py::object& w_ih,
                              const py::object& w_hh, const py::object& b_ih, const py::object& b_hh, index T, index B,
                              index I, index H, bool wide, bool relu, bool reverse, int threads) {
    const std::array<py::object, 4> w{w_ih, w_hh, b_ih, b_hh};
    const FastrnnProblem n{T, B, I, H, wide, relu, reverse, threads};
    return wide ? forward<double>(x, h_0, w, n) : forward<float>(x, h_0, w, n);
  });
  m.def("backward_tensors",
        [](const py::object& d_output, const py::object& d_h_n, const py::object& output, const py::object& x,
           const py::object& h_0, const py::object& w_ih, const py::object& w_hh, index T, index B, index I, index H,
           bool wide, bool need_x, bool need_h_0, bool need_w_ih, bool need_w_hh, bool need_b, bool relu, bool reverse,
           int threads) {
          const FastrnnProblem n{T, B, I, H, wide, relu, reverse, threads};
          const Needs needs{need_x, need_h_0, need_w_ih, need_w_hh, need_b};
          return wide ? backward<double>(d_output, d_h_n, output, x, h_0, w_ih, w_hh, n, needs)
                      : backward<float>(d_output, d_h_n, output, x, h_0, w_ih, w_hh, n, needs);
        });
  m.attr("torch_calls") = py::capsule(&calls, FASTRNN_TORCH_CALLS);
}

}  // namespace fastrnn
