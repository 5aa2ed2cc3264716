// What stands around the recurrence in training: Adam, the gradient of an embedding, the maximum over time. Elements,
// rows and columns are computed alone, so the bits depend neither on the number of threads nor on the instruction set.
#pragma once

#include <cstdint>

#include "thread_pool.h"

namespace fastrnn {

// mean += (1 - b1) (g - mean); square = b2 square + (1 - b2) g^2; p -= rate mean / (correction sqrt(square) + eps)
template <class T>
struct AdamStep {
  index count = 0;
  T *p = nullptr, *mean = nullptr, *square = nullptr;  // (count), contiguous
  const T* grad = nullptr;
  T one_minus_b1 = 0, b2 = 0, one_minus_b2 = 0, rate = 0, correction = 1, eps = 0;
  T decay = 0;  // added to the gradient, times p
  T keep = 1;   // multiplies p first: decoupled weight decay
};

template <class T>
void adam_step(const AdamStep<T>& step, int threads, CallControl& control);

// sums(s, :) = rows(order[first[s]], :) + ... + rows(order[first[s + 1] - 1], :), in this order; all contiguous
template <class T>
void sum_segments(T* sums, const T* rows, const std::int64_t* order, const std::int64_t* first, index segments,
                  index columns, int threads, CallControl& control);

// top(b, j) = max over t < lengths[b] of x(t, b, j), at(b, j) the first such t; a row without steps: 0, 0. NaN counts
// as the largest. x is (T, B, P), contiguous.
template <class T>
void max_over_time(T* top, std::int64_t* at, const T* x, const std::int64_t* lengths, index B, index P, int threads,
                   CallControl& control);

}  // namespace fastrnn
