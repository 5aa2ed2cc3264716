// The functions of cpu/training.h, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn {

void bind_training(pybind11::module_& m);

}  // namespace fastrnn
