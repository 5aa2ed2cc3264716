// Vectors over the units, contiguous as the kernels read them.
#pragma once

#include "../rnn.h"
#include "faults.h"
#include "kernels.h"

namespace fastrnn {

// to[0, padded) = b_ih + b_hh, and 0 from H on
template <class T>
void sum_biases(T* to, index padded, index H, const Vector<const T>& b_ih, const Vector<const T>& b_hh) {
  for (index j = 0; j < padded; ++j) {
    const bool given = j < H;
    const T ih = given && b_ih.data ? b_ih.data[j * b_ih.unit] : T(0);
    const T hh = given && b_hh.data ? b_hh.data[j * b_hh.unit] : T(0);
    to[j] = fault(Fault::bias_dropped) && j == H - 1 ? ih : ih + hh;
  }
}

// out = bias + x for the units: the first terms of the canonical sum where x is projected already
template <class T>
void seed_sum(T* out, const T* bias, const T* x, index unit, Columns units) {
  const index last = units.last - (fault(Fault::projected_last_unit_lost) ? 1 : 0);
  if (unit == 1) {
    for (index j = units.first; j < last; ++j) out[j] = bias[j] + x[j];
  } else {
    for (index j = units.first; j < last; ++j) out[j] = bias[j] + x[j * unit];
  }
  if (last < units.last) out[last] = bias[last];
}

// What leaky units multiply: the activation, and the state that enters the step
template <class T>
void split_leak(T* alpha, T* leak, index H, const Vector<const T>& given) {
  for (index j = 0; j < H; ++j) {
    alpha[j] = given.data[j * given.unit];
    leak[j] = T(1) - alpha[j];
  }
}

}  // namespace fastrnn
