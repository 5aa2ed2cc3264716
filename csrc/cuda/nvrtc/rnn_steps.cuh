// The recurrence as one kernel a step, between two products of the caller's library; compiled at run time (NVRTC), by
// nvcc, and for the host by tests/helpers/cuda_on_host.h. REAL is float or double.
//
// Row b of step t is the data row first[t] + b of packed rows, t * B + b of padded ones (first is null then), and it
// exists where t < lengths[b] (null: everywhere). Data rows are C-contiguous. Options that are not given are null.
#pragma once

namespace fastrnn {

using real = REAL;
using index = long long;
using byte = unsigned char;

// relu(NaN) is NaN; its derivative is 0 where h <= 0, else 1.
__device__ inline real activate(real z, bool relu) { return relu ? (z <= 0 ? real(0) : z) : tanh(z); }
__device__ inline real through(real d_h, real h, bool relu) {
  return relu ? (h <= 0 ? real(0) : d_h) : d_h * (1 - h * h);
}

// z (row0 + b, h): the input product; becomes the output. states null: neither options nor ragged rows, the products
// read the output. entering null: they read the states; else what enters the next step is written there.
// rows = 0 only prepares the first step.
extern "C" __global__ void rnn_forward_step(real* z, const real* bias, const real* product, real* states,
                                            real* entering, const index* lengths, const byte* reset, const real* mask,
                                            const byte* keep, index t, index row0, index rows, index next_row0,
                                            index next_rows, index H, int relu) {
  const index at = index(blockIdx.x) * blockDim.x + threadIdx.x, b = at / H, h = at % H;
  if (b < rows) {
    real next = 0;
    if (!lengths || t < lengths[b]) {
      if (keep && keep[row0 * H + at]) {
        next = reset && reset[row0 + b] ? real(0) : states[at];
      } else {
        next = activate(z[row0 * H + at] + bias[h] + product[at], relu);
      }
      if (states) states[at] = next;
    }
    z[row0 * H + at] = next;
  }
  if (entering && b < next_rows) {
    const real state = reset && reset[next_row0 + b] ? real(0) : states[at];
    entering[at] = mask ? state * mask[at] : state;
  }
}

// Finishes one step, whose product d_z w_hh is there, and begins the one before it: carry is the gradient of the state
// between them. done_rows = 0: the last step begins; rows = 0: the first one ends, and carry is d_h_0.
extern "C" __global__ void rnn_backward_step(real* d_z, const real* d_output, index d_start, index d_row, index d_unit,
                                             const real* output, real* carry, const real* product, const index* lengths,
                                             const byte* reset, const real* mask, const byte* keep, index done_t,
                                             index done_row0, index done_rows, index t, index row0, index rows, index H,
                                             int relu) {
  const index at = index(blockIdx.x) * blockDim.x + threadIdx.x, b = at / H, h = at % H;
  if (b >= rows && b >= done_rows) return;
  real d = carry[at];
  if (b < done_rows && (!lengths || done_t < lengths[b])) {
    real d_p = mask ? product[at] * mask[at] : product[at];
    if (keep && keep[done_row0 * H + at]) d_p += d;
    d = reset && reset[done_row0 + b] ? real(0) : d_p;
  }
  if (b < rows) {
    real d_here = 0;
    if (!lengths || t < lengths[b]) {
      if (d_output) d += d_output[d_start + b * d_row + h * d_unit];
      if (!(keep && keep[row0 * H + at])) d_here = through(d, output[row0 * H + at], relu);
    }
    d_z[row0 * H + at] = d_here;
  }
  carry[at] = d;
}

// What w_hh multiplied in every step, for d_w_hh; 0 in rows that do not exist.
extern "C" __global__ void rnn_entering(real* entering, const real* output, const real* h_0, const index* first,
                                        const index* lengths, const byte* reset, const real* mask, index T, index B,
                                        index N, index H, int reverse) {
  const index at = index(blockIdx.x) * blockDim.x + threadIdx.x, r = at / H, h = at % H;
  if (r >= N) return;
  index t = 0, b = 0;
  if (first) {
    for (index stop = T; stop - t > 1;) {  // first[t] <= r < first[t + 1]
      const index middle = (t + stop) / 2;
      (first[middle] <= r ? t : stop) = middle;
    }
    b = r - first[t];
  } else {
    t = r / B, b = r % B;
  }
  real p = 0;
  if ((!lengths || t < lengths[b]) && !(reset && reset[r])) {
    const index before = reverse ? t + 1 : t - 1;
    const bool stepped =
        before >= 0 && before < T && (first ? b < first[before + 1] - first[before] : !lengths || before < lengths[b]);
    if (stepped) {
      p = output[((first ? first[before] : before * B) + b) * H + h];
    } else if (h_0) {
      p = h_0[b * H + h];
    }
    if (mask) p *= mask[b * H + h];
  }
  entering[at] = p;
}

}  // namespace fastrnn
