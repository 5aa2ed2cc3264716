// Python binding of cpu/ensemble.h. No arithmetic; arrays are checked so that no wrong call can reach memory.

#include "bindings/ensemble.h"

#include <pybind11/numpy.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/python_call.h"
#include "cpu/dispatch.h"
#include "cpu/ensemble.h"

namespace fastrnn {
namespace {

// An array (M, ...) of M models
template <class T>
struct Stack {
  T* data = nullptr;                  // nullptr: not given
  std::array<index, 4> strides = {};  // of the models, then of a model's own axes

  T* of(index model) const { return data ? data + model * strides[0] : nullptr; }
  Vector<T> vector(index model) const { return {of(model), strides[1]}; }
  Matrix<T> matrix(index model) const { return {of(model), strides[1], strides[2]}; }
  Sequence<T> sequence(index model) const { return {of(model), strides[1], strides[2], strides[3]}; }
};

template <class T, class Value = std::remove_const_t<T>>
Stack<T> stack(const py::object& o, const char* name, std::initializer_list<index> shape) {
  constexpr bool writes = !std::is_const_v<T>;
  const auto a = array_of<Value>(o, name, shape, writes);
  if (!a) return {};
  Stack<T> s;
  s.data = data_of<Value>(*a);
  const std::size_t axes = shape.size();
  for (std::size_t axis = 0; axis < axes; ++axis) {
    s.strides[axis] = elements<Value>(*a, static_cast<py::ssize_t>(axis), name);
  }
  if (a->size() == 0) s.strides[axes - 1] = 1;
  expect(!writes || s.strides[axes - 1] == 1, name, "a contiguous last axis");
  return s;
}

struct CallOptions {
  bool relu, reverse;
  py::object lengths, reset;
  int threads;
};

template <class T>
RnnOptions<T> options_of(const CallOptions& o, const Shape& n) {
  expect(o.threads >= 1, "threads", "at least 1");
  RnnOptions<T> r;
  r.relu = o.relu;
  r.reverse = o.reverse;
  r.rows.lengths = table<std::int64_t>(o.lengths, "lengths", {n.B});
  r.reset = reinterpret_cast<const unsigned char*>(table<bool>(o.reset, "reset", {n.T, n.B}));
  return r;
}

struct Sizes {
  index M;
  Shape n;
};

Sizes sizes_of(const py::object& x, const py::object& w_hh) {
  const auto array = [](const py::object& o, const char* name, py::ssize_t axes) {
    if (!py::isinstance<py::array>(o)) throw py::type_error(std::string(name) + ": expected a NumPy array");
    auto a = py::reinterpret_borrow<py::array>(o);
    if (a.ndim() != axes) {
      refuse(name, std::to_string(axes) + " dimensions");
    }
    return a;
  };
  const py::array x_ = array(x, "x", 4), w_hh_ = array(w_hh, "w_hh", 3);
  expect(w_hh_.shape(1) > 0, "w_hh", "at least one hidden unit");
  return {w_hh_.shape(0), {x_.shape(1), x_.shape(2), x_.shape(3), w_hh_.shape(1)}};
}

template <class T>
void forward(const py::object& x, const py::object& h_0, const py::object& w_ih, const py::object& w_hh,
             const py::object& b_ih, const py::object& b_hh, const py::object& output, const py::object& h_n,
             const CallOptions& o) {
  expect(!w_ih.is_none() && !output.is_none() && !h_n.is_none(), "w_ih, output, h_n", "arrays, got None");
  const auto [M, n] = sizes_of(x, w_hh);
  const auto xs = stack<const T>(x, "x", {M, n.T, n.B, n.I});
  const auto h_0s = stack<const T>(h_0, "h_0", {M, n.B, n.H});
  const auto w_ihs = stack<const T>(w_ih, "w_ih", {M, n.H, n.I});
  const auto w_hhs = stack<const T>(w_hh, "w_hh", {M, n.H, n.H});
  const auto b_ihs = stack<const T>(b_ih, "b_ih", {M, n.H});
  const auto b_hhs = stack<const T>(b_hh, "b_hh", {M, n.H});
  const auto outputs = stack<T>(output, "output", {M, n.T, n.B, n.H});
  const auto h_ns = stack<T>(h_n, "h_n", {M, n.B, n.H});
  std::vector<ForwardProblem<T>> models(static_cast<std::size_t>(M));
  for (index m = 0; m < M; ++m) {
    ForwardProblem<T>& p = models[static_cast<std::size_t>(m)];
    p.shape = n;
    p.x = xs.sequence(m);
    p.h_0 = h_0s.matrix(m);
    p.w_ih = w_ihs.matrix(m);
    p.w_hh = w_hhs.matrix(m);
    p.b_ih = b_ihs.vector(m);
    p.b_hh = b_hhs.vector(m);
    p.output = outputs.sequence(m);
    p.h_n = h_ns.matrix(m);
    p.options = options_of<T>(o, n);
  }
  const InstructionSet& set = choose_instruction_set(nullptr);
  call(static_cast<double>(M) * flops_of(n),
       [&](CallControl& control) { rnn_forward_ensemble<T>(models, set, o.threads, control); });
}

template <class T>
void backward(const py::object& d_output, const py::object& d_h_n, const py::object& output, const py::object& x,
              const py::object& h_0, const py::object& w_ih, const py::object& w_hh, const py::object& d_x,
              const py::object& d_h_0, const py::object& d_w_ih, const py::object& d_w_hh, const py::object& d_b,
              const CallOptions& o) {
  expect(!w_ih.is_none() && !output.is_none(), "w_ih, output", "arrays, got None");
  const auto [M, n] = sizes_of(x, w_hh);
  const auto d_outputs = stack<const T>(d_output, "d_output", {M, n.T, n.B, n.H});
  const auto d_h_ns = stack<const T>(d_h_n, "d_h_n", {M, n.B, n.H});
  const auto outputs = stack<const T>(output, "output", {M, n.T, n.B, n.H});
  const auto xs = stack<const T>(x, "x", {M, n.T, n.B, n.I});
  const auto h_0s = stack<const T>(h_0, "h_0", {M, n.B, n.H});
  const auto w_ihs = stack<const T>(w_ih, "w_ih", {M, n.H, n.I});
  const auto w_hhs = stack<const T>(w_hh, "w_hh", {M, n.H, n.H});
  const auto d_xs = stack<T>(d_x, "d_x", {M, n.T, n.B, n.I});
  const auto d_h_0s = stack<T>(d_h_0, "d_h_0", {M, n.B, n.H});
  const auto d_w_ihs = stack<T>(d_w_ih, "d_w_ih", {M, n.H, n.I});
  const auto d_w_hhs = stack<T>(d_w_hh, "d_w_hh", {M, n.H, n.H});
  const auto d_bs = stack<T>(d_b, "d_b", {M, n.H});
  std::vector<BackwardProblem<T>> models(static_cast<std::size_t>(M));
  for (index m = 0; m < M; ++m) {
    BackwardProblem<T>& p = models[static_cast<std::size_t>(m)];
    p.shape = n;
    p.d_output = d_outputs.sequence(m);
    p.d_h_n = d_h_ns.matrix(m);
    p.output = outputs.sequence(m);
    p.x = xs.sequence(m);
    p.h_0 = h_0s.matrix(m);
    p.w_ih = w_ihs.matrix(m);
    p.w_hh = w_hhs.matrix(m);
    p.d_x = d_xs.sequence(m);
    p.d_h_0 = d_h_0s.matrix(m);
    p.d_w_ih = d_w_ihs.matrix(m);
    p.d_w_hh = d_w_hhs.matrix(m);
    p.d_b = d_bs.vector(m);
    p.options = options_of<T>(o, n);
  }
  const InstructionSet& set = choose_instruction_set(nullptr);
  call(2 * static_cast<double>(M) * flops_of(n),
       [&](CallControl& control) { rnn_backward_ensemble<T>(models, set, o.threads, control); });
}

template <class Body>
void for_dtype(const py::object& x, Body body) {
  if (is_array_of<float>(x)) return body(float{});
  if (is_array_of<double>(x)) return body(double{});
  throw py::type_error("x: expected a float32 or float64 array");
}

}  // namespace

void bind_ensemble(py::module_& m) {
  m.def("rnn_forward_ensemble",
        [](const py::object& x, const py::object& h_0, const py::object& w_ih, const py::object& w_hh,
           const py::object& b_ih, const py::object& b_hh, const py::object& output, const py::object& h_n, bool relu,
           bool reverse, int threads, const py::object& lengths, const py::object& reset) {
          const CallOptions o{relu, reverse, lengths, reset, threads};
          for_dtype(x, [&](auto zero) { forward<decltype(zero)>(x, h_0, w_ih, w_hh, b_ih, b_hh, output, h_n, o); });
        });
  m.def("rnn_backward_ensemble",
        [](const py::object& d_output, const py::object& d_h_n, const py::object& output, const py::object& x,
           const py::object& h_0, const py::object& w_ih, const py::object& w_hh, const py::object& d_x,
           const py::object& d_h_0, const py::object& d_w_ih, const py::object& d_w_hh, const py::object& d_b,
           bool relu, bool reverse, int threads, const py::object& lengths, const py::object& reset) {
          const CallOptions o{relu, reverse, lengths, reset, threads};
          for_dtype(x, [&](auto zero) {
            backward<decltype(zero)>(d_output, d_h_n, output, x, h_0, w_ih, w_hh, d_x, d_h_0, d_w_ih, d_w_hh, d_b, o);
          });
        });
}

}  // namespace fastrnn
