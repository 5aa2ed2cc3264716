// The contract of every kernel: one direction of one layer of the tanh / relu (Elman) RNN.
// The CPU's kernels round to nearest and count subnormal numbers as 0, whatever their caller has set.
//
//     h_t = act(w_ih x_t + b_ih + b_hh + w_hh p_t)      p_t = h_{t-1}, or 0 where reset
//
// and with leaky units h_t = (1 - alpha) p_t + alpha act(...).
//
// Shapes are T (time), B (batch), I (input size), H (hidden size); strides count elements, may be negative or zero.
// Arrays hold float or double, one type in a call. Outputs never overlap inputs. All sizes are checked and all memory
// is taken before the first write; a call that throws before that has changed nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrnn {

using index = std::ptrdiff_t;

// Element (t, b, k) of a (T, B, K) array: data + start(t) * step + b * row + k * unit, where start(t) is t itself, or
// RowMap::packed_start[t] for packed rows (then step == row, the distance between two data rows).
template <class T>
struct Sequence {
  T* data = nullptr;  // nullptr: not given
  index step = 0, row = 0, unit = 1;
};

template <class T>
struct Matrix {  // element (r, c): data + r * row + c * unit
  T* data = nullptr;
  index row = 0, unit = 1;
};

template <class T>
struct Vector {
  T* data = nullptr;
  index unit = 1;
};

struct Shape {
  index T = 0, B = 0, I = 0, H = 0;
};

// Which (time, batch row) pairs exist. At most one of the two is given; neither means all T x B.
struct RowMap {
  const std::int64_t* lengths = nullptr;      // (B) in 0..T: row b ends after lengths[b] steps
  const std::int64_t* batch_sizes = nullptr;  // (T) positive, falling: packed rows, as in torch's PackedSequence
};

// Run-time options, applied per row outside the micro-kernel; masks are drawn by the caller. Masks are C-contiguous
// and addressed like the sequences: (T, B, ...) or packed (N, ...).
template <class T>
struct RnnOptions {
  bool relu = false;     // else tanh
  bool reverse = false;  // from each row's own end to its start
  RowMap rows;
  const unsigned char* reset = nullptr;      // (T, B): 1 = the state that enters this step is 0
  const T* recurrent_mask = nullptr;         // (B, H): multiplies the state that enters w_hh
  const unsigned char* keep_mask = nullptr;  // (T, B, H): 1 = the unit keeps its previous state
  Vector<const T> alpha;                     // (H): leaky units; data == nullptr: 1. recurrent_mask is not in the leak
};

// Test knobs: they choose between paths that must give the same bits.
struct Tuning {
  int hoist = -1;         // input projection ahead of the recurrence: -1 by size, 0 never, 1 always
  index tile_rows = 0;    // most rows of the register tile; 0: the kernel's own
  index row_block = 0;    // batch rows of one task; 0: by size
  index slices = 0;       // threads that share the units of a step; 0: by size
  index chunk_steps = 0;  // time steps between two looks at the interrupt flag (forward); 0: by size
};

template <class T>
struct ForwardProblem {
  Shape shape;
  Sequence<const T> x;
  Matrix<const T> h_0;  // data == nullptr: zeros
  Matrix<const T> w_ih, w_hh;
  bool projected = false;      // x is w_ih x already, (T, B, H); I is 0 then, and w_ih is not read
  Vector<const T> b_ih, b_hh;  // data == nullptr: no bias
  Sequence<T> output;          // unit == 1; zero beyond a row's length; the only tape BPTT needs
  Matrix<T> h_n;               // unit == 1; the state after each row's own last step
  RnnOptions<T> options;
  Tuning tuning;
};

template <class T>
struct BackwardProblem {
  Shape shape;
  Sequence<const T> d_output;  // data == nullptr: zeros; ignored beyond a row's length
  Matrix<const T> d_h_n;       // data == nullptr: zeros
  Sequence<const T> output, x;
  Matrix<const T> h_0;
  Matrix<const T> w_ih, w_hh;
  bool projected = false;      // as in ForwardProblem: x and d_x are (T, B, H), d_w_ih is not needed
  Vector<const T> b_ih, b_hh;  // read with alpha alone
  Sequence<T> d_x;             // unit == 1. Of these six: data == nullptr means not needed
  Matrix<T> d_h_0;             // unit == 1
  Matrix<T> d_w_ih, d_w_hh;    // unit == 1
  Vector<T> d_b, d_alpha;      // unit == 1; d_b_ih = d_b_hh = d_b; d_alpha with alpha alone
  // Sums that several calls make together, one for each range of steps, from the last processed range to the first:
  // d_w_ih, d_w_hh, d_b and d_alpha hold the sums so far and go on from there, and what rounding lost of the two
  // vectors is in b_lost and alpha_lost (H), for the caller to add at the end. The bits are those of one call where the
  // ranges but the first consist of whole blocks of the canonical sum: a multiple of gradient_steps(B) steps.
  bool accumulate = false;
  T* b_lost = nullptr;
  T* alpha_lost = nullptr;
  RnnOptions<T> options;
  Tuning tuning;
};

}  // namespace fastrnn
