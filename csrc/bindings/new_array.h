// NumPy arrays for results, in memory that is kept between calls.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace fastrnn {

// np.empty(shape, dtype), and a MemoryError also where NumPy cannot even count the bytes. The array owns its memory, as
// every other does; NumPy calls its allocator "fastrnn" where it comes from kept_memory.h (numpy.lib.introspect and
// np.core.multiarray.get_handler_name).
pybind11::array new_array(const pybind11::dtype& dtype, const pybind11::ssize_t* shape, int axes);

template <class T>
pybind11::array_t<T> new_array(const pybind11::ssize_t* shape, int axes) {
  return new_array(pybind11::dtype::of<T>(), shape, axes);
}

void bind_new_array(pybind11::module_& m);

}  // namespace fastrnn
