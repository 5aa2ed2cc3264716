// The activations of leaky units, for BPTT. They cannot be had from h_t = (1 - alpha) h_{t-1} + alpha a_t without a
// division by alpha, which would multiply the rounding of h_t by 1 / alpha; and relu would lose which units are active.
// So they are computed again from x and the saved states, all rows of a chunk at once, to the bits of the forward pass.
#pragma once

#include <cstring>

#include "faults.h"
#include "pack_parallel.h"
#include "units.h"
#include "workspace.h"

namespace fastrnn {

template <class T>
class Activations {
public:
  Activations(const BackwardProblem<T>& problem, const Kernels<T>& kernels) : p_(problem), k_(kernels) {}

  // Memory for chunks of up to `lines` rows, `row` elements apart
  void take(Workspace& memory, index lines, index row, bool pack_now) {
    const Shape& n = p_.shape;
    row_ = row;
    pack_now_ = pack_now;
    w_ih_part_ = memory.take<T>(pack_now ? packed_size(k_, n.I, n.H) : 0);
    w_hh_part_ = memory.take<T>(pack_now ? packed_size(k_, n.H, n.H) : 0);
    bias_part_ = memory.take<T>(n.H + k_.lanes);
    zero_part_ = memory.take<T>(n.H);
    result_part_ = memory.take<T>(checked_product(lines, row));
    x_part_ = memory.take<T>(p_.x.unit != 1 ? checked_product(lines, n.I) : 0);
    masked_part_ = memory.take<T>(p_.options.recurrent_mask ? checked_product(lines, n.H) : 0);
  }

  void use(const Workspace& memory, int threads, CallControl& control) {
    const Shape& n = p_.shape;
    w_ih_ = Weights<T>{nullptr, p_.w_ih.data, p_.w_ih.unit, p_.w_ih.row};
    w_hh_ = Weights<T>{nullptr, p_.w_hh.data, p_.w_hh.unit, p_.w_hh.row};
    if (pack_now_) {
      T* const to_ih = memory[w_ih_part_];
      T* const to_hh = memory[w_hh_part_];
      pack_parallel(k_, threads, control, to_ih, p_.w_ih.data, n.I, p_.w_ih.unit, n.H, p_.w_ih.row);
      pack_parallel(k_, threads, control, to_hh, p_.w_hh.data, n.H, p_.w_hh.unit, n.H, p_.w_hh.row);
      w_ih_.packed = to_ih;
      w_hh_.packed = to_hh;
    }
    bias_ = memory[bias_part_];
    sum_biases(bias_, n.H + k_.lanes, n.H, p_.b_ih, p_.b_hh);
    zero_ = memory[zero_part_];
    std::memset(zero_, 0, sizeof(T) * static_cast<std::size_t>(n.H));
    result_ = memory[result_part_];
    x_ = memory[x_part_];
    masked_ = memory[masked_part_];
  }

  const T* row(index line) const { return result_ + line * row_; }

  static constexpr index most_rows = 48;  // of one call

  // Lines [first, last) of the chunk. x, state (null: 0) and mask (or nullptr) hold one pointer a line.
  void compute(index first, index last, const T* const* x, const T* const* state, const T* const* mask) const {
    const T* x_rows[most_rows];
    const T* states[most_rows];
    T* out[most_rows];
    for (index line = first; line < last; ++line) {
      states[line - first] = masked(state[line] ? state[line] : zero_, mask ? mask[line] : nullptr, line);
      out[line - first] = result_ + line * row_;
      if (p_.projected) {
        seed_sum(out[line - first], bias_, x[line], p_.x.unit, Columns{0, p_.shape.H});
      } else {
        x_rows[line - first] = contiguous(x[line], line);
      }
    }
    ForwardStep<T> step;
    step.rows = last - first;
    step.I = p_.shape.I;
    step.H = p_.shape.H;
    step.units = Columns{0, p_.shape.H};
    step.x = p_.projected ? nullptr : x_rows;
    step.state = states;
    step.out = out;
    step.w_ih = w_ih_;
    step.w_hh = w_hh_;
    step.bias = bias_;
    step.relu = p_.options.relu;
    step.tile_rows = p_.tuning.tile_rows;
    k_.forward_step(step);
  }

private:
  const T* contiguous(const T* x, index line) const {
    const index I = p_.shape.I, unit = p_.x.unit;
    if (unit == 1) return x;
    T* to = x_ + line * I;
    for (index k = 0; k < I; ++k) to[k] = x[k * unit];
    if (fault(Fault::x_strided_last_element_in_backward) && I > 0) to[I - 1] = to[0];
    return to;
  }

  const T* masked(const T* state, const T* mask, index line) const {
    if (!mask || fault(Fault::recurrent_mask_ignored_in_activations)) return state;
    T* to = masked_ + line * p_.shape.H;
    for (index j = 0; j < p_.shape.H; ++j) to[j] = state[j] * mask[j];
    return to;
  }

  const BackwardProblem<T>& p_;
  const Kernels<T>& k_;
  Workspace::Part<T> w_ih_part_, w_hh_part_, bias_part_, zero_part_, result_part_, x_part_, masked_part_;
  bool pack_now_ = false;
  index row_ = 0;
  Weights<T> w_ih_, w_hh_;
  T* bias_ = nullptr;
  T* zero_ = nullptr;
  T* result_ = nullptr;
  T* x_ = nullptr;       // rows of x that were not contiguous
  T* masked_ = nullptr;  // states with the recurrent mask on them
};

}  // namespace fastrnn
