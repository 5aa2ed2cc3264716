// Many models of one shape in one call: cpu/ensemble.h for stacked NumPy arrays.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn {

void bind_ensemble(pybind11::module_& m);

}  // namespace fastrnn
