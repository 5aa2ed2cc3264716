// The table that each instruction set fills: all arithmetic of the CPU backend goes through these functions. The
// objects that implement them hold static code only (no std:: templates), so no wide instruction leaks elsewhere.
#pragma once

#include "../rnn.h"

namespace fastrnn {

// Weights packed as panels of tile_columns outputs: panel p starts at p * tile_columns * terms and holds, for each
// summed index, its outputs side by side; the last panel is only as wide as whole vectors demand, zero-filled.
template <class T>
struct Weights {
  const T* packed = nullptr;  // nullptr: not ahead; blocks are packed where they are used, and one row does without
  const T* source = nullptr;  // (term s, output o): source[s * term_stride + o * output_stride]
  index term_stride = 0, output_stride = 0;
};

struct Columns {
  index first, last;
};

// One step of the recurrence over `rows` rows; row arrays hold one pointer a row, to contiguous elements.
template <class T>
struct ForwardStep {
  index rows = 0, I = 0, H = 0;
  Columns units = {0, 0};                      // which are computed
  const T* const* x = nullptr;                 // nullptr: out already holds b + w_ih x
  const T* const* x_next = nullptr;            // what the next step will read, or nullptr
  const T* const* state = nullptr;             // what w_hh multiplies: reset and masked
  const T* const* kept = nullptr;              // previous state for units that keep it or leak; with keep or alpha
  const unsigned char* const* keep = nullptr;  // nullptr: no zoneout
  const T* alpha = nullptr;                    // leaky units: out = leak * kept + alpha * act; nullptr: act
  const T* leak = nullptr;                     // 1 - alpha
  T* const* out = nullptr;
  Weights<T> w_ih, w_hh;
  const T* bias = nullptr;  // padded to whole vectors
  bool relu = false;
  index tile_rows = 0;
  bool descending = false;  // the order of the panels: from the last to the first
};

// One step of BPTT: d_state = (d_sum_next w_hh) * mask [cut by a reset] + kept or leaked gradient + d_output, then
// d_sum = d_state * act'(h). d_sum is the gradient at the activation's argument. With leaky units h stands for the
// activation, d_sum = alpha * d_state * act'(h), and the gradient of alpha is the sum of d_alpha = d_state * (h - p).
template <class T>
struct BackwardStep {
  index rows = 0, H = 0;
  Columns units = {0, 0};                // which are computed
  const T* const* d_sum_next = nullptr;  // nullptr: no later step; then `last` is added instead
  const T* const* last = nullptr;        // nullptr or d_h_n rows, with last_unit
  index last_unit = 1;
  Weights<T> w_hh_t;                                // outputs = columns of w_hh
  const T* const* mask = nullptr;                   // recurrent mask rows, or nullptr
  const unsigned char* const* cut = nullptr;        // one flag a row: the later step was reset; or nullptr
  const unsigned char* const* keep_next = nullptr;  // zoneout of the later step, or nullptr
  const T* leak = nullptr;                          // 1 - alpha where the later step leaks, or nullptr
  T* const* d_state = nullptr;                      // in: the later step's d_state, out: this step's; keep or alpha
  const T* const* d_output = nullptr;               // nullptr: zeros; with d_output_unit
  index d_output_unit = 1;
  const T* const* h = nullptr;  // nullptr: this is h_0, d_sum receives d_state itself
  index h_unit = 1;
  const unsigned char* const* keep = nullptr;  // zoneout of this step, or nullptr
  const T* alpha = nullptr;                    // leaky units, or nullptr
  const T* const* p = nullptr;                 // the state that entered this step; a null row counts as 0
  T* const* d_alpha = nullptr;                 // or nullptr: not needed
  T* const* d_sum = nullptr;
  bool relu = false;
  index tile_rows = 0;
  bool descending = false;
};

// out = bias + rows * weights: the hoisted input projection, and d_x.
template <class T>
struct RowProduct {
  index rows = 0, terms = 0;
  Columns outputs = {0, 0};
  const T* const* a = nullptr;
  Weights<T> weights;
  const T* bias = nullptr;  // padded to whole vectors; nullptr: 0
  T* const* out = nullptr;
  const T* const* ahead = nullptr;  // as many rows of as many elements, which will be read next; or nullptr
  index tile_rows = 0;
};

// One operand of the weight gradients, x or the states that entered the steps, on its way into panels
template <class T>
struct OperandRows {
  index rows = 0, columns = 0;
  const T* const* source = nullptr;  // a null row counts as 0
  index unit = 1;
  const T* const* mask = nullptr;  // rows that multiply the source, or nullptr
  T* panels = nullptr;             // packed_size(rows, columns)
};

// d_w(units, columns) = or += d_sum^T operand over the rows of one block of the canonical sum.
template <class T>
struct WeightGradient {
  index rows = 0;
  const T* d_sum = nullptr;  // a tile of units reads whole ones, beyond the last unit too
  index d_sum_row = 0;
  const T* operand_panels = nullptr;  // from pack_operand
  Columns units = {0, 0};             // whole tiles, but for the last of all
  Columns columns = {0, 0};           // whole panels, but for the last of all
  T* d_w = nullptr;
  index d_w_row = 0;
  bool add = true;
};

// The same of all columns for an operand of at most narrow_columns, as its rows lie; none is null. Rows of d_sum can be
// read to whole vectors behind the last unit.
template <class T>
struct NarrowGradient {
  index rows = 0;
  const T* d_sum = nullptr;
  index d_sum_row = 0;
  const T* const* operand = nullptr;
  index unit = 1;  // elements between an operand's columns
  index columns = 0;
  Columns units = {0, 0};  // from a whole vector on
  T* d_w = nullptr;
  index d_w_row = 0;
  bool add = true;
};

// Columns of an operand up to which units fill vectors better than its columns do
static constexpr index narrow_columns(index lanes) { return lanes / 2; }

// Outputs up to which a product's rows fill vectors better than its outputs do
static constexpr index narrow_outputs(index lanes) { return lanes >= 8 ? lanes / 4 : 0; }

template <class T>
struct Kernels {
  index lanes, tile_rows, tile_columns;
  // packed(s, o) = source[s * terms_stride + o * outputs_stride]
  void (*pack_panels)(T* packed, const T* source, index terms, index terms_stride, index outputs, index outputs_stride);
  void (*forward_step)(const ForwardStep<T>&);
  void (*backward_step)(const BackwardStep<T>&);
  void (*row_product)(const RowProduct<T>&);
  void (*pack_operand)(const OperandRows<T>&, index first, index last);
  void (*weight_gradient)(const WeightGradient<T>&);
  void (*narrow_gradient)(const NarrowGradient<T>&);
  // d_b += the block's sum; lost collects what the additions to d_b round away
  void (*bias_gradient)(T* d_b, T* lost, const T* d_sum, index rows, index row_stride, index H);
  void (*tanh)(const T* x, T* out, index count);
  double (*fma_loop)(index iterations, T* result);  // runs FMAs on all registers; returns the operations done
  double (*read_loop)(const T* data, index count, index passes, T* result);  // reads and adds; returns the bytes read
};

struct InstructionSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

template <class T>
const Kernels<T>& kernels_of(const InstructionSet& set);
template <>
inline const Kernels<float>& kernels_of<float>(const InstructionSet& set) {
  return set.f32;
}
template <>
inline const Kernels<double>& kernels_of<double>(const InstructionSet& set) {
  return set.f64;
}

}  // namespace fastrnn
