// Python binding of the CPU backend: arguments become the problems of csrc/rnn.h, errors become exceptions, the GIL is
// released while the kernels run. No arithmetic. Shapes and dtypes are checked in fastrnn/_validate.py with messages
// for people; here once more, briefly, so that no wrong call can reach memory.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/ensemble.h"
#include "bindings/new_array.h"
#include "bindings/python_call.h"
#include "bindings/tensors.h"
#include "bindings/training.h"
#include "cpu/dispatch.h"
#include "cpu/faults.h"
#include "cpu/float_environment.h"
#include "cpu/passes.h"
#include "cpu/probe.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

using std::string;

// ---- arrays

template <class T, class Value = std::remove_const_t<T>>
Matrix<T> matrix(const py::object& o, const char* name, index rows, index columns) {
  constexpr bool writes = !std::is_const_v<T>;
  const auto a = array_of<Value>(o, name, {rows, columns}, writes);
  if (!a) return {};
  Matrix<T> m{data_of<Value>(*a), elements<Value>(*a, 0, name), elements<Value>(*a, 1, name)};
  if (columns <= 1 || a->size() == 0) m.unit = 1;
  expect(!writes || m.unit == 1, name, "a contiguous last axis");
  return m;
}

template <class T, class Value = std::remove_const_t<T>>
Vector<T> vector(const py::object& o, const char* name, index size) {
  constexpr bool writes = !std::is_const_v<T>;
  const auto a = array_of<Value>(o, name, {size}, writes);
  if (!a) return {};
  Vector<T> v{data_of<Value>(*a), elements<Value>(*a, 0, name)};
  if (size <= 1) v.unit = 1;
  expect(!writes || v.unit == 1, name, "a contiguous array");
  return v;
}

// (T, B, width), or packed (rows, width)
template <class T, class Value = std::remove_const_t<T>>
Sequence<T> sequence(const py::object& o, const char* name, const Shape& shape, index packed_rows, index width) {
  constexpr bool writes = !std::is_const_v<T>;
  const bool packed = packed_rows >= 0;
  const auto a = packed ? array_of<Value>(o, name, {packed_rows, width}, writes)
                        : array_of<Value>(o, name, {shape.T, shape.B, width}, writes);
  if (!a) return {};
  const index step = elements<Value>(*a, 0, name);
  Sequence<T> s{data_of<Value>(*a), step, packed ? step : elements<Value>(*a, 1, name),
                elements<Value>(*a, packed ? 1 : 2, name)};
  if (width <= 1 || a->size() == 0) s.unit = 1;
  expect(!writes || s.unit == 1, name, "a contiguous last axis");
  return s;
}

// ---- one call

struct PyPackedWeights {
  std::variant<PackedWeights<float>, PackedWeights<double>> weights;
};

const PyPackedWeights* packed_weights(const py::object& o) {
  if (o.is_none()) return nullptr;
  if (!py::isinstance<PyPackedWeights>(o)) throw py::type_error("packed: expected PackedWeights or None");
  auto* const made = reinterpret_cast<py::detail::instance*>(o.ptr());  // by __new__ alone it holds nothing
  expect(made->get_value_and_holder().holder_constructed(), "packed", "what pack_weights returns");
  return o.cast<const PyPackedWeights*>();
}

const InstructionSet& isa_named(const std::optional<string>& isa) {
  return choose_instruction_set(isa ? isa->c_str() : nullptr);
}

struct CallOptions {
  bool relu, reverse;
  py::object lengths, batch_sizes, reset, recurrent_mask, keep_mask, alpha;
  std::optional<string> isa;
  int threads;
  py::object tuning;
};

Tuning tuning_of(const py::object& o) {
  Tuning t;
  if (o.is_none()) return t;
  std::map<string, index> values;
  try {
    values = o.cast<std::map<string, index>>();
  } catch (const py::cast_error&) {
    throw py::type_error("tuning: expected a dict of str to int");
  }
  for (const auto& [key, value] : values) {
    if (key == "hoist") {
      t.hoist = static_cast<int>(value);
    } else if (key == "tile_rows") {
      t.tile_rows = value;
    } else if (key == "row_block") {
      t.row_block = value;
    } else if (key == "slices") {
      t.slices = value;
    } else if (key == "chunk_steps") {
      t.chunk_steps = value;
    } else {
      throw py::value_error("tuning: expected hoist, tile_rows, row_block, slices or chunk_steps, got " + key);
    }
  }
  return t;
}

// T, B, I, H and the number of packed rows (or -1); I is 0 where x is projected already
std::pair<Shape, index> shape_of(const py::object& x, const py::object& w_hh, const CallOptions& o, bool projected) {
  const auto extent = [](const py::object& a, const char* name, py::ssize_t axis) {
    if (!py::isinstance<py::array>(a)) throw py::type_error(string(name) + ": expected a NumPy array");
    const auto array = py::reinterpret_borrow<py::array>(a);
    if (array.ndim() <= axis) {
      refuse(name, std::to_string(axis + 1) + " dimensions or more");
    }
    return static_cast<index>(array.shape(axis));
  };
  Shape n;
  n.H = extent(w_hh, "w_hh", 0);
  expect(n.H > 0, "w_hh", "at least one hidden unit");
  if (o.batch_sizes.is_none()) {
    n.T = extent(x, "x", 0);
    n.B = extent(x, "x", 1);
    n.I = projected ? 0 : extent(x, "x", 2);
    return {n, -1};
  }
  n.T = extent(o.batch_sizes, "batch_sizes", 0);
  const auto* sizes = table<std::int64_t>(o.batch_sizes, "batch_sizes", {n.T});
  for (index t = 0; t < n.T; ++t) {
    expect(sizes[t] > 0 && sizes[t] <= sizes[0], "batch_sizes", "positive, falling counts");
  }
  n.B = n.T > 0 ? static_cast<index>(sizes[0]) : 0;
  n.I = projected ? 0 : extent(x, "x", 1);
  const index rows = extent(x, "x", 0);
  index sum = 0;
  for (index t = 0; t < n.T && sum <= rows; ++t) {
    sum = sizes[t] > rows - sum ? rows + 1 : sum + static_cast<index>(sizes[t]);
  }
  if (sum != rows) refuse("batch_sizes", "a sum of " + std::to_string(rows) + ", the rows of x");
  return {n, rows};
}

template <class T>
RnnOptions<T> options_of(const CallOptions& o, const Shape& n, index packed_rows) {
  RnnOptions<T> r;
  r.relu = o.relu;
  r.reverse = o.reverse;
  expect(o.lengths.is_none() || packed_rows < 0, "lengths", "None with batch_sizes");
  r.rows.lengths = table<std::int64_t>(o.lengths, "lengths", {n.B});
  r.rows.batch_sizes = table<std::int64_t>(o.batch_sizes, "batch_sizes", {n.T});
  const auto flags = [&](const py::object& a, const char* name, bool units) {
    if (packed_rows >= 0) {
      return units ? table<bool>(a, name, {packed_rows, n.H}) : table<bool>(a, name, {packed_rows});
    }
    return units ? table<bool>(a, name, {n.T, n.B, n.H}) : table<bool>(a, name, {n.T, n.B});
  };
  r.reset = reinterpret_cast<const unsigned char*>(flags(o.reset, "reset", false));
  r.keep_mask = reinterpret_cast<const unsigned char*>(flags(o.keep_mask, "keep_mask", true));
  r.recurrent_mask = table<T>(o.recurrent_mask, "recurrent_mask", {n.B, n.H});
  r.alpha = vector<const T>(o.alpha, "alpha", n.H);
  return r;
}

template <class T>
void forward(const py::object& x, const py::object& h_0, const py::object& w_ih, const py::object& w_hh,
             const py::object& b_ih, const py::object& b_hh, const py::object& output, const py::object& h_n,
             const CallOptions& o, const PyPackedWeights* packed) {
  expect(o.threads >= 1, "threads", "at least 1");
  expect(!output.is_none() && !h_n.is_none(), "output, h_n", "arrays, got None");
  ForwardProblem<T> p;
  p.projected = w_ih.is_none();
  const auto [n, packed_rows] = shape_of(x, w_hh, o, p.projected);
  p.shape = n;
  p.x = sequence<const T>(x, "x", n, packed_rows, p.projected ? n.H : n.I);
  p.h_0 = matrix<const T>(h_0, "h_0", n.B, n.H);
  p.w_ih = matrix<const T>(w_ih, "w_ih", n.H, n.I);
  p.w_hh = matrix<const T>(w_hh, "w_hh", n.H, n.H);
  p.b_ih = vector<const T>(b_ih, "b_ih", n.H);
  p.b_hh = vector<const T>(b_hh, "b_hh", n.H);
  p.output = sequence<T>(output, "output", n, packed_rows, n.H);
  p.h_n = matrix<T>(h_n, "h_n", n.B, n.H);
  p.options = options_of<T>(o, n, packed_rows);
  p.tuning = tuning_of(o.tuning);
  const InstructionSet* set = nullptr;
  const PackedWeights<T>* weights = nullptr;
  if (packed) {
    weights = std::get_if<PackedWeights<T>>(&packed->weights);
    expect(weights && (p.projected || weights->I == n.I) && weights->H == n.H, "packed",
           "weights of the same shape and dtype");
    set = weights->set;
    expect(!o.isa || *o.isa == set->name, "packed", "weights packed for the same instruction set");
  } else {
    set = &isa_named(o.isa);
  }
  call(flops_of(n), [&](CallControl& control) { rnn_forward(p, *set, weights, o.threads, control); });
}

// The next state of a cell in a new array, for x (B, I) and h (B, H) or x (I) and h (H), h may be None. None where an
// argument is not that or of a class derived from arrays, which Python says better, or where the step takes so long
// that Python's own way costs nothing.
template <class T>
py::object short_step(const py::object& x, const py::object& h, const std::array<py::object, 4>& w, bool relu,
                      const PyPackedWeights* packed) {
  constexpr double longest = 2e6;  // operations
  PyTypeObject* const arrays = py::detail::npy_api::get().PyArray_Type_;
  if (Py_TYPE(x.ptr()) != arrays || !(h.is_none() || Py_TYPE(h.ptr()) == arrays)) return py::none();
  const auto given = py::reinterpret_borrow<py::array>(x);
  const bool single = given.ndim() == 1;
  ForwardProblem<T> p;
  Shape& n = p.shape;
  n.T = 1;
  n.B = single || given.ndim() == 0 ? 1 : static_cast<index>(given.shape(0));
  const auto rows = [&](const py::object& o, const char* name, index width) {
    if (!single) return matrix<const T>(o, name, n.B, width);
    const Vector<const T> v = vector<const T>(o, name, width);
    return Matrix<const T>{v.data, 0, v.unit};
  };
  try {
    n.H = static_cast<index>(array_of<T>(w[1], "w_hh", {-1, -1}, false).value().shape(0));
    n.I = static_cast<index>(array_of<T>(w[0], "w_ih", {n.H, -1}, false).value().shape(1));
    if (n.B == 0 || flops_of(n) > longest) return py::none();
    const Matrix<const T> m = rows(x, "x", n.I);
    p.x = {m.data, 0, m.row, m.unit};
    p.h_0 = rows(h, "h", n.H);
    p.w_ih = matrix<const T>(w[0], "w_ih", n.H, n.I);
    p.w_hh = matrix<const T>(w[1], "w_hh", n.H, n.H);
    p.b_ih = vector<const T>(w[2], "b_ih", n.H);
    p.b_hh = vector<const T>(w[3], "b_hh", n.H);
  } catch (const py::builtin_exception&) {
    return py::none();
  }
  const std::array<index, 2> extents{n.B, n.H};
  const auto* const first = extents.data() + (single ? 1 : 0);
  auto next = new_array<T>(first, single ? 1 : 2);
  const std::unique_ptr<T[]> h_n(new T[static_cast<std::size_t>(n.B * n.H)]);
  p.output = {next.mutable_data(), 0, n.H};
  p.h_n = {h_n.get(), n.H};
  p.options.relu = relu;
  const auto* const weights = packed ? std::get_if<PackedWeights<T>>(&packed->weights) : nullptr;
  expect(!packed || (weights && weights->I == n.I && weights->H == n.H), "packed",
         "weights of the same shape and dtype");
  const InstructionSet* const set = weights ? weights->set : &choose_instruction_set(nullptr);
  call(flops_of(n), [&](CallControl& control) { rnn_forward(p, *set, weights, 1, control); });
  return std::move(next);
}

template <class T>
void backward(const py::object& d_output, const py::object& d_h_n, const py::object& output, const py::object& x,
              const py::object& h_0, const py::object& w_ih, const py::object& w_hh, const py::object& d_x,
              const py::object& d_h_0, const py::object& d_w_ih, const py::object& d_w_hh, const py::object& d_b,
              const py::object& d_alpha, const py::object& b_ih, const py::object& b_hh, bool accumulate,
              const py::object& b_lost, const py::object& alpha_lost, const CallOptions& o) {
  expect(o.threads >= 1, "threads", "at least 1");
  expect(!output.is_none(), "output", "an array, got None");
  BackwardProblem<T> p;
  p.projected = w_ih.is_none();
  expect(!p.projected || d_w_ih.is_none(), "d_w_ih", "None without w_ih");
  const auto [n, packed_rows] = shape_of(x, w_hh, o, p.projected);
  const index x_width = p.projected ? n.H : n.I;
  p.shape = n;
  p.d_output = sequence<const T>(d_output, "d_output", n, packed_rows, n.H);
  p.d_h_n = matrix<const T>(d_h_n, "d_h_n", n.B, n.H);
  p.output = sequence<const T>(output, "output", n, packed_rows, n.H);
  p.x = sequence<const T>(x, "x", n, packed_rows, x_width);
  p.h_0 = matrix<const T>(h_0, "h_0", n.B, n.H);
  p.w_ih = matrix<const T>(w_ih, "w_ih", n.H, n.I);
  p.w_hh = matrix<const T>(w_hh, "w_hh", n.H, n.H);
  p.d_x = sequence<T>(d_x, "d_x", n, packed_rows, x_width);
  p.d_h_0 = matrix<T>(d_h_0, "d_h_0", n.B, n.H);
  p.d_w_ih = matrix<T>(d_w_ih, "d_w_ih", n.H, n.I);
  p.d_w_hh = matrix<T>(d_w_hh, "d_w_hh", n.H, n.H);
  p.d_b = vector<T>(d_b, "d_b", n.H);
  expect(d_alpha.is_none() || !o.alpha.is_none(), "d_alpha", "None without alpha");
  p.d_alpha = vector<T>(d_alpha, "d_alpha", n.H);
  p.b_ih = vector<const T>(b_ih, "b_ih", n.H);
  p.b_hh = vector<const T>(b_hh, "b_hh", n.H);
  p.accumulate = accumulate;
  p.b_lost = vector<T>(b_lost, "b_lost", n.H).data;
  p.alpha_lost = vector<T>(alpha_lost, "alpha_lost", n.H).data;
  expect((p.b_lost != nullptr) == (accumulate && p.d_b.data), "b_lost", "an array with accumulate and d_b, else None");
  expect((p.alpha_lost != nullptr) == (accumulate && p.d_alpha.data), "alpha_lost",
         "an array with accumulate and d_alpha, else None");
  p.options = options_of<T>(o, n, packed_rows);
  p.tuning = tuning_of(o.tuning);
  const InstructionSet& set = isa_named(o.isa);
  call(2 * flops_of(n), [&](CallControl& control) { rnn_backward(p, set, o.threads, control); });
}

// Runs body(float) or body(double), as the array's dtype says
template <class Body>
auto for_dtype(const py::object& array, const char* name, Body body) {
  if (is_array_of<float>(array)) return body(float{});
  if (is_array_of<double>(array)) return body(double{});
  throw py::type_error(string(name) + ": expected a float32 or float64 array");
}

// The Python object is made first, empty: where memory for it is refused, no packed weights are lost with it.
py::object pack(const py::object& w_ih, const py::object& w_hh, const std::optional<string>& isa) {
  return for_dtype(w_hh, "w_hh", [&](auto zero) {
    using T = decltype(zero);
    Shape n;
    n.H = static_cast<index>(array_of<T>(w_hh, "w_hh", {-1, -1}, false)->shape(0));
    const auto ih = array_of<T>(w_ih, "w_ih", {n.H, -1}, false);
    expect(ih.has_value(), "w_ih", "an array");
    n.I = static_cast<index>(ih->shape(1));
    py::object result = py::cast(PyPackedWeights{});
    result.cast<PyPackedWeights&>().weights = pack_weights<T>(
        isa_named(isa), n, matrix<const T>(w_ih, "w_ih", n.H, n.I), matrix<const T>(w_hh, "w_hh", n.H, n.H));
    return result;
  });
}

void tanh_array(const py::object& x, const py::object& out, const std::optional<string>& isa) {
  for_dtype(x, "x", [&](auto zero) {
    using T = decltype(zero);
    const auto from = array_of<T>(x, "x", {-1}, false);
    expect(!out.is_none(), "out", "an array, got None");
    const auto size = static_cast<index>(from->shape(0));
    const Vector<T> to = vector<T>(out, "out", size);
    const T* source = table<T>(x, "x", {size});
    const auto& kernels = kernels_of<T>(isa_named(isa));
    without_gil([&] {
      const FloatEnvironment environment(Subnormals::zero);  // as in the kernels
      kernels.tanh(source, to.data, size);
    });
  });
}

void expect_measurable(int threads, double seconds) {
  expect(threads > 0 && threads <= 4096, "threads", "1 to 4096");
  expect(seconds > 0 && seconds <= 60, "seconds", "more than 0 and at most 60");
}

double measure_fma_peak(const string& dtype, int threads, double seconds, const std::optional<string>& isa) {
  expect(dtype == "float32" || dtype == "float64", "dtype", "float32 or float64");
  expect_measurable(threads, seconds);
  const InstructionSet& set = isa_named(isa);
  double peak = 0;
  without_gil([&] {
    peak = dtype == "float32" ? fma_peak<float>(set, threads, seconds) : fma_peak<double>(set, threads, seconds);
  });
  return peak;
}

double measure_read_bandwidth(index bytes, int threads, double seconds, const std::optional<string>& isa) {
  expect_measurable(threads, seconds);
  if (bytes / threads < read_granule) refuse("bytes", "at least " + std::to_string(read_granule) + " for each thread");
  const InstructionSet& set = isa_named(isa);
  double bandwidth = 0;
  without_gil([&] { bandwidth = read_bandwidth(set, bytes, threads, seconds); });
  return bandwidth;
}

std::vector<std::tuple<string, bool, bool>> isas() {
  std::vector<std::tuple<string, bool, bool>> result;
  for (const auto& s : instruction_sets()) result.emplace_back(s.name, s.set != nullptr, s.supported);
  return result;
}

}  // namespace

PYBIND11_MODULE(_fastrnn_cpu, m, py::mod_gil_not_used()) {
  m.doc() = "CPU kernels of fastrnn; called through fastrnn._backends.cpp";
  PythonSignals::remember_main_thread();
  m.def("_remember_main_thread", &PythonSignals::remember_main_thread);
  py::module_::import("os").attr("register_at_fork")(py::arg("after_in_child") = m.attr("_remember_main_thread"));

  py::class_<PyPackedWeights>(m, "PackedWeights");

  m.def(
      "rnn_forward",
      [](const py::object& x, const py::object& h_0, const py::object& w_ih, const py::object& w_hh,
         const py::object& b_ih, const py::object& b_hh, const py::object& output, const py::object& h_n, bool relu,
         bool reverse, int threads, const py::object& packed, py::object lengths, py::object batch_sizes,
         py::object reset, py::object recurrent_mask, py::object keep_mask, py::object alpha, std::optional<string> isa,
         py::object tuning) {
        const CallOptions o{relu,
                            reverse,
                            std::move(lengths),
                            std::move(batch_sizes),
                            std::move(reset),
                            std::move(recurrent_mask),
                            std::move(keep_mask),
                            std::move(alpha),
                            std::move(isa),
                            threads,
                            std::move(tuning)};
        const PyPackedWeights* const weights = packed_weights(packed);
        for_dtype(x, "x",
                  [&](auto zero) { forward<decltype(zero)>(x, h_0, w_ih, w_hh, b_ih, b_hh, output, h_n, o, weights); });
      },
      py::arg("x"), py::arg("h_0"), py::arg("w_ih"), py::arg("w_hh"), py::arg("b_ih"), py::arg("b_hh"),
      py::arg("output"), py::arg("h_n"), py::arg("relu") = false, py::arg("reverse") = false, py::arg("threads") = 1,
      py::arg("packed") = py::none(), py::kw_only(), py::arg("lengths") = py::none(),
      py::arg("batch_sizes") = py::none(), py::arg("reset") = py::none(), py::arg("recurrent_mask") = py::none(),
      py::arg("keep_mask") = py::none(), py::arg("alpha") = py::none(), py::arg("isa") = py::none(),
      py::arg("tuning") = py::none());

  m.def("short_step", [](const py::object& x, const py::object& h, const py::object& w_ih, const py::object& w_hh,
                         const py::object& b_ih, const py::object& b_hh, bool relu, const py::object& packed) {
    return for_dtype(w_hh, "w_hh", [&](auto zero) {
      return short_step<decltype(zero)>(x, h, {w_ih, w_hh, b_ih, b_hh}, relu, packed_weights(packed));
    });
  });

  m.def(
      "rnn_backward",
      [](const py::object& d_output, const py::object& d_h_n, const py::object& output, const py::object& x,
         const py::object& h_0, const py::object& w_ih, const py::object& w_hh, const py::object& d_x,
         const py::object& d_h_0, const py::object& d_w_ih, const py::object& d_w_hh, const py::object& d_b, bool relu,
         bool reverse, int threads, py::object lengths, py::object batch_sizes, py::object reset,
         py::object recurrent_mask, py::object keep_mask, py::object alpha, const py::object& b_ih,
         const py::object& b_hh, const py::object& d_alpha, bool accumulate, const py::object& b_lost,
         const py::object& alpha_lost, std::optional<string> isa, py::object tuning) {
        const CallOptions o{relu,
                            reverse,
                            std::move(lengths),
                            std::move(batch_sizes),
                            std::move(reset),
                            std::move(recurrent_mask),
                            std::move(keep_mask),
                            std::move(alpha),
                            std::move(isa),
                            threads,
                            std::move(tuning)};
        for_dtype(x, "x", [&](auto zero) {
          backward<decltype(zero)>(d_output, d_h_n, output, x, h_0, w_ih, w_hh, d_x, d_h_0, d_w_ih, d_w_hh, d_b,
                                   d_alpha, b_ih, b_hh, accumulate, b_lost, alpha_lost, o);
        });
      },
      py::arg("d_output"), py::arg("d_h_n"), py::arg("output"), py::arg("x"), py::arg("h_0"), py::arg("w_ih"),
      py::arg("w_hh"), py::arg("d_x"), py::arg("d_h_0"), py::arg("d_w_ih"), py::arg("d_w_hh"), py::arg("d_b"),
      py::arg("relu") = false, py::arg("reverse") = false, py::arg("threads") = 1, py::kw_only(),
      py::arg("lengths") = py::none(), py::arg("batch_sizes") = py::none(), py::arg("reset") = py::none(),
      py::arg("recurrent_mask") = py::none(), py::arg("keep_mask") = py::none(), py::arg("alpha") = py::none(),
      py::arg("b_ih") = py::none(), py::arg("b_hh") = py::none(), py::arg("d_alpha") = py::none(),
      py::arg("accumulate") = false, py::arg("b_lost") = py::none(), py::arg("alpha_lost") = py::none(),
      py::arg("isa") = py::none(), py::arg("tuning") = py::none());

#if FASTRNN_FAULTS
  choose_fault(std::getenv("FASTRNN_FAULT"));
  py::dict faults;
  m.attr("active_fault") = py::none();
  for (const FaultEntry& entry : known_faults()) {
    faults[entry.name] = entry.what;
    if (entry.fault == active_fault) m.attr("active_fault") = entry.name;
  }
  m.attr("faults") = faults;
#endif
  bind_ensemble(m);
  bind_new_array(m);
  bind_tensors(m);
  bind_training(m);
  m.def("pack_weights", &pack, py::arg("w_ih"), py::arg("w_hh"), py::arg("isa") = py::none());
  m.def("isas", &isas);
  m.def("active_isa", [] { return string(choose_instruction_set(nullptr).name); });
  m.def("tanh", &tanh_array, py::arg("x"), py::arg("out"), py::arg("isa") = py::none());
  m.def("fma_peak", &measure_fma_peak, py::arg("dtype"), py::arg("threads"), py::arg("seconds"),
        py::arg("isa") = py::none());
  m.def("read_bandwidth", &measure_read_bandwidth, py::arg("bytes"), py::arg("threads"), py::arg("seconds"),
        py::arg("isa") = py::none());
}

}  // namespace fastrnn
