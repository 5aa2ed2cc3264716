// The sums of rows by segments: the gradient of an embedding, token by token.
#pragma once

#include "rnn_steps.cuh"

namespace fastrnn {

// sums (S, E): row s is the sum of those rows (N, E) that order names from first[s] to first[s + 1], in this order and
// from 0 on, as csrc/cpu/training.cc adds them; a thread has one column of one segment.
extern "C" __global__ void sum_segments(real* sums, const real* rows, const index* order, const index* first, index S,
                                        index E) {
  const index at = index(blockIdx.x) * blockDim.x + threadIdx.x, s = at / E, e = at % E;
  if (s >= S) return;
  real sum = 0;
  for (index i = first[s]; i < first[s + 1]; ++i) sum += rows[order[i] * E + e];
  sums[at] = sum;
}

}  // namespace fastrnn
