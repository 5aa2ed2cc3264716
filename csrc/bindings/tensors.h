// Calls that take torch tensors as they are: for short sequences, where NumPy's views of them cost more than the
// kernel.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn {

void define_tensor_calls(pybind11::module_& m);

}  // namespace fastrnn
