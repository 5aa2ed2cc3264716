// Python binding of cpu/training.h. No arithmetic; arrays are checked so that no wrong call can reach memory.

#include "bindings/training.h"

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>

#include "cpu/training.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

template <class T>
using Contiguous = py::array_t<T, py::array::c_style>;

template <class T>
T* data(const py::array_t<T, py::array::c_style>& a) {
  return const_cast<T*>(a.data());
}

void expect(bool holds, const char* what) {
  if (!holds) throw py::value_error(what);
}

template <class T>
void adam(const Contiguous<T>& p, const Contiguous<T>& mean, const Contiguous<T>& square, const Contiguous<T>& grad,
          double b1, double b2, double rate, double correction, double eps, double decay, double keep, int threads) {
  expect(mean.size() == p.size() && square.size() == p.size() && grad.size() == p.size(), "arrays of one size");
  expect(p.writeable() && mean.writeable() && square.writeable(), "writable arrays");
  AdamStep<T> step;
  step.count = p.size();
  step.p = data(p);
  step.mean = data(mean);
  step.square = data(square);
  step.grad = data(grad);
  step.one_minus_b1 = static_cast<T>(1 - b1);
  step.b2 = static_cast<T>(b2);
  step.one_minus_b2 = static_cast<T>(1 - b2);
  step.rate = static_cast<T>(rate);
  step.correction = static_cast<T>(correction);
  step.eps = static_cast<T>(eps);
  step.decay = static_cast<T>(decay);
  step.keep = static_cast<T>(keep);
  const py::gil_scoped_release release;
  CallControl control(nullptr, nullptr);
  adam_step(step, threads, control);
}

template <class T>
void sum_by_segment(const Contiguous<T>& sums, const Contiguous<T>& rows, const Contiguous<std::int64_t>& order,
                    const Contiguous<std::int64_t>& first, int threads) {
  expect(sums.ndim() == 2 && rows.ndim() == 2 && sums.shape(1) == rows.shape(1) && sums.writeable(), "rows alike");
  expect(first.ndim() == 1 && first.size() == sums.shape(0) + 1 && order.ndim() == 1, "one segment for each sum");
  const index segments = sums.shape(0);
  expect(first.at(0) == 0 && first.at(segments) == order.size(), "segments that cover all rows");
  for (index s = 0; s < segments; ++s) expect(first.at(s) <= first.at(s + 1), "segments that rise");
  const std::int64_t* const at = order.data();
  for (index i = 0; i < order.size(); ++i) expect(at[i] >= 0 && at[i] < rows.shape(0), "rows that exist");
  const py::gil_scoped_release release;
  CallControl control(nullptr, nullptr);
  sum_segments(data(sums), rows.data(), at, first.data(), segments, static_cast<index>(sums.shape(1)), threads,
               control);
}

template <class T>
void max_by_time(const Contiguous<T>& top, const Contiguous<std::int64_t>& at, const Contiguous<T>& x,
                 const Contiguous<std::int64_t>& lengths, int threads) {
  expect(x.ndim() == 3 && top.ndim() == 2 && at.ndim() == 2 && lengths.ndim() == 1, "dimensions");
  const index T_ = x.shape(0), B = x.shape(1), P = x.shape(2);
  expect(top.shape(0) == B && top.shape(1) == P && at.shape(0) == B && at.shape(1) == P, "results (B, P)");
  expect(lengths.size() == B && top.writeable() && at.writeable(), "a length for each row, writable results");
  for (index b = 0; b < B; ++b) expect(lengths.at(b) >= 0 && lengths.at(b) <= T_, "lengths in 0..T");
  const py::gil_scoped_release release;
  CallControl control(nullptr, nullptr);
  max_over_time(data(top), data(at), x.data(), lengths.data(), B, P, threads, control);
}

template <class T>
void bind(py::module_& m) {
  m.def("adam", &adam<T>, py::arg("p").noconvert(), py::arg("mean").noconvert(), py::arg("square").noconvert(),
        py::arg("grad").noconvert(), py::arg("b1"), py::arg("b2"), py::arg("rate"), py::arg("correction"),
        py::arg("eps"), py::arg("decay"), py::arg("keep"), py::arg("threads"));
  m.def("sum_segments", &sum_by_segment<T>, py::arg("sums").noconvert(), py::arg("rows").noconvert(),
        py::arg("order").noconvert(), py::arg("first").noconvert(), py::arg("threads"));
  m.def("max_over_time", &max_by_time<T>, py::arg("top").noconvert(), py::arg("at").noconvert(),
        py::arg("x").noconvert(), py::arg("lengths").noconvert(), py::arg("threads"));
}

}  // namespace

void bind_training(py::module_& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace fastrnn
