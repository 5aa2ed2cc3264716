// NumPy arrays as the kernels take them, checked briefly so that no wrong call can reach memory.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "rnn.h"

namespace fastrnn {

namespace py = pybind11;

[[noreturn]] inline void refuse(const char* name, const std::string& expected) {
  throw py::value_error(std::string(name) + ": expected " + expected);
}

// No text is put together where all is well: a call takes microseconds
inline void expect(bool holds, const char* name, const char* what) {
  if (!holds) refuse(name, what);
}

template <class T>
index elements(const py::array& a, py::ssize_t axis, const char* name) {
  if (a.shape(axis) <= 1) return 1;  // never used, and may be anything
  const py::ssize_t bytes = a.strides(axis);
  expect(bytes % static_cast<py::ssize_t>(sizeof(T)) == 0, name, "strides that are multiples of the item size");
  return bytes / static_cast<py::ssize_t>(sizeof(T));
}

// Whether o is an array of T in this machine's byte order. NumPy's own comparison of types takes longer than all the
// other checks of an argument together.
template <class T>
bool is_array_of(const py::object& o) {
  if (!py::isinstance<py::array>(o)) return false;
  const auto* type = py::detail::array_descriptor_proxy(py::detail::array_proxy(o.ptr())->descr);
  return type->type_num == py::detail::npy_format_descriptor<T>::value &&
         (type->byteorder == '=' || type->byteorder == '|');
}

// The array behind an object, checked for its element type and shape; a negative extent is free. None: no array.
template <class T>
std::optional<py::array> array_of(const py::object& o, const char* name, std::initializer_list<index> shape,
                                  bool writes) {
  if (o.is_none()) return std::nullopt;
  if (!is_array_of<T>(o)) {
    throw py::type_error(std::string(name) + ": expected a NumPy array of " +
                         py::str(py::dtype::of<T>()).cast<std::string>());
  }
  auto a = py::reinterpret_borrow<py::array>(o);
  if (a.ndim() != static_cast<py::ssize_t>(shape.size())) {
    refuse(name, std::to_string(shape.size()) + " dimensions");
  }
  py::ssize_t axis = 0;
  for (const index extent : shape) {
    const index found = a.shape(axis);
    if (extent >= 0 && found != extent) {
      refuse(name, "extent " + std::to_string(extent) + " on axis " + std::to_string(axis));
    }
    ++axis;
  }
  const bool writable = a.writeable();
  const bool fits = !writes || writable;
  expect(fits, name, "a writable array");
  expect(reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) == 0, name, "aligned data");
  return a;
}

template <class T>
T* data_of(const py::array& a) {
  return static_cast<T*>(const_cast<void*>(a.data()));
}

// A C-contiguous array of a fixed type that the kernels read directly
template <class T>
const T* table(const py::object& o, const char* name, std::initializer_list<index> shape) {
  const auto a = array_of<T>(o, name, shape, false);
  if (!a) return nullptr;
  expect((a->flags() & py::array::c_style) != 0, name, "a C-contiguous array");
  return data_of<T>(*a);
}

}  // namespace fastrnn
