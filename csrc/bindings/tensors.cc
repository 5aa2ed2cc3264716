#include "bindings/tensors.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <initializer_list>

#include "bindings/python_call.h"
#include "cpu/dispatch.h"
#include "cpu/passes.h"

namespace fastrnn {
namespace {

// The names of torch.Tensor's methods, made once
struct Names {
  PyObject *is_contiguous = PyUnicode_InternFromString("is_contiguous"), *is_neg = PyUnicode_InternFromString("is_neg"),
           *data_ptr = PyUnicode_InternFromString("data_ptr");
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

// Where the elements of a dense tensor are; null for None. layout_fits is cleared where the memory is not simply that.
template <class T>
const T* address(const py::object& tensor, bool& layout_fits) {
  if (tensor.is_none()) return nullptr;
  const bool dense = ask(tensor.ptr(), names().is_contiguous).ptr() == Py_True;
  const bool negated = ask(tensor.ptr(), names().is_neg).ptr() == Py_True;
  const auto at = static_cast<std::uintptr_t>(PyLong_AsSize_t(ask(tensor.ptr(), names().data_ptr).ptr()));
  if (PyErr_Occurred()) throw py::error_already_set();
  layout_fits = layout_fits && dense && !negated && at % alignof(T) == 0;
  return reinterpret_cast<const T*>(at);  // null where the tensor has no elements
}

template <class T>
py::array_t<T> array(std::initializer_list<index> shape) {
  return py::array_t<T>(py::array::ShapeContainer(shape.begin(), shape.end()));
}

template <class T>
const T* some(const T* data) {  // given, but empty: never read, and not "not given"
  static const T nothing{};
  return data ? data : &nothing;
}

template <class T>
py::object forward(const py::object& x, const py::object& h_0, const std::array<py::object, 4>& w, const Shape& n,
                   bool relu, bool reverse, int threads) {
  bool fits = true;
  ForwardProblem<T> p;
  p.shape = n;
  p.x = {some(address<T>(x, fits)), n.B * n.I, n.I};
  p.h_0 = {h_0.is_none() ? nullptr : some(address<T>(h_0, fits)), n.H};
  p.w_ih = {some(address<T>(w[0], fits)), n.I};
  p.w_hh = {address<T>(w[1], fits), n.H};
  p.b_ih = {address<T>(w[2], fits)};
  p.b_hh = {address<T>(w[3], fits)};
  if (!fits) return py::none();
  auto output = array<T>({n.T, n.B, n.H}), h_n = array<T>({1, n.B, n.H});
  p.output = {output.mutable_data(), n.B * n.H, n.H};
  p.h_n = {h_n.mutable_data(), n.H};
  p.options.relu = relu;
  p.options.reverse = reverse;
  const InstructionSet& set = choose_instruction_set(nullptr);
  call(flops_of(n), [&](CallControl& control) { rnn_forward<T>(p, set, nullptr, threads, control); });
  return py::make_tuple(std::move(output), std::move(h_n));
}

struct Needs {
  bool x, h_0, w_ih, w_hh, b;
};

template <class T>
py::object backward(const py::object& d_output, const py::object& d_h_n, const py::object& output, const py::object& x,
                    const py::object& h_0, const py::object& w_ih, const py::object& w_hh, const Shape& n, Needs needs,
                    bool relu, bool reverse, int threads) {
  bool fits = true;
  BackwardProblem<T> p;
  p.shape = n;
  p.d_output = {d_output.is_none() ? nullptr : some(address<T>(d_output, fits)), n.B * n.H, n.H};
  p.d_h_n = {d_h_n.is_none() ? nullptr : some(address<T>(d_h_n, fits)), n.H};
  p.output = {some(address<T>(output, fits)), n.B * n.H, n.H};
  p.x = {some(address<T>(x, fits)), n.B * n.I, n.I};
  p.h_0 = {h_0.is_none() ? nullptr : some(address<T>(h_0, fits)), n.H};
  p.w_ih = {some(address<T>(w_ih, fits)), n.I};
  p.w_hh = {address<T>(w_hh, fits), n.H};
  if (!fits) return py::none();
  std::array<py::object, 5> results{py::none(), py::none(), py::none(), py::none(), py::none()};
  const auto make = [&](std::size_t k, std::initializer_list<index> shape) {
    auto made = array<T>(shape);
    T* const data = made.mutable_data();
    results[k] = std::move(made);
    return data;
  };
  if (needs.x) p.d_x = {make(0, {n.T, n.B, n.I}), n.B * n.I, n.I};
  if (needs.h_0) p.d_h_0 = {make(1, {1, n.B, n.H}), n.H};
  if (needs.w_ih) p.d_w_ih = {make(2, {n.H, n.I}), n.I};
  if (needs.w_hh) p.d_w_hh = {make(3, {n.H, n.H}), n.H};
  if (needs.b) p.d_b = {make(4, {n.H})};
  p.options.relu = relu;
  p.options.reverse = reverse;
  const InstructionSet& set = choose_instruction_set(nullptr);
  call(2 * flops_of(n), [&](CallControl& control) { rnn_backward<T>(p, set, threads, control); });
  return py::make_tuple(results[0], results[1], results[2], results[3], results[4]);
}

}  // namespace

void define_tensor_calls(py::module_& m) {
  m.def("forward_tensors", [](const py::object& x, const py::object& h_0, const py::object& w_ih,
                              const py::object& w_hh, const py::object& b_ih, const py::object& b_hh, index T, index B,
                              index I, index H, bool wide, bool relu, bool reverse, int threads) {
    const std::array<py::object, 4> w{w_ih, w_hh, b_ih, b_hh};
    const Shape n{T, B, I, H};
    return wide ? forward<double>(x, h_0, w, n, relu, reverse, threads)
                : forward<float>(x, h_0, w, n, relu, reverse, threads);
  });
  m.def("backward_tensors",
        [](const py::object& d_output, const py::object& d_h_n, const py::object& output, const py::object& x,
           const py::object& h_0, const py::object& w_ih, const py::object& w_hh, index T, index B, index I, index H,
           bool wide, bool need_x, bool need_h_0, bool need_w_ih, bool need_w_hh, bool need_b, bool relu, bool reverse,
           int threads) {
          const Shape n{T, B, I, H};
          const Needs needs{need_x, need_h_0, need_w_ih, need_w_hh, need_b};
          return wide ? backward<double>(d_output, d_h_n, output, x, h_0, w_ih, w_hh, n, needs, relu, reverse, threads)
                      : backward<float>(d_output, d_h_n, output, x, h_0, w_ih, w_hh, n, needs, relu, reverse, threads);
        });
}

}  // namespace fastrnn
