// Plain loops, which compilers turn into vectors: memory is what they wait for.

#include "training.h"

#include <cmath>

#include "faults.h"
#include "float_environment.h"

namespace fastrnn {
namespace {

constexpr index chunk = 1 << 14;          // elements of one task
constexpr index parallel_from = 1 << 17;  // elements; below, waking a thread costs more than it brings

int useful(int threads, index elements) { return elements < parallel_from ? 1 : threads; }

template <class T>
void adam_part(const AdamStep<T>& s, index first, index last) {
  T* const p = s.p;
  T* const mean = s.mean;
  T* const square = s.square;
  const T* const grad = s.grad;
#if defined(__clang__)
#pragma clang loop vectorize(enable)
#elif defined(__GNUC__)
#pragma GCC ivdep
#endif
  for (index i = first; i < last; ++i) {
    const T value = p[i] * s.keep;
    const T g = fault(Fault::adam_decay_dropped) ? grad[i] : grad[i] + s.decay * value;
    const T m = mean[i] + s.one_minus_b1 * (g - mean[i]);
    const T v = s.b2 * square[i] + s.one_minus_b2 * (g * g);
    const T along = fault(Fault::adam_mean_of_the_step_before) ? mean[i] : m;
    mean[i] = m;
    square[i] = v;
    p[i] = value - s.rate * (along / (s.correction * std::sqrt(v) + s.eps));
  }
}

}  // namespace

template <class T>
void adam_step(const AdamStep<T>& step, int threads, CallControl& control) {
  const index tasks = (step.count + chunk - 1) / chunk;
  parallel_for(tasks, useful(threads, step.count), control, [&](index task, int) {
    const FloatEnvironment environment(Subnormals::zero);
    if (fault(Fault::adam_block_missed) && threads > 1 && task == tasks - 1) return;
    const index end = fault(Fault::adam_last_element_missed) ? step.count - 1 : step.count;
    const index first = task * chunk;
    adam_part(step, first, first + chunk < end ? first + chunk : end);
  });
}

template <class T>
void sum_segments(T* sums, const T* rows, const std::int64_t* order, const std::int64_t* first, index segments,
                  index columns, int threads, CallControl& control) {
  const index at_once = 64;  // segments of one task
  const index elements = static_cast<index>(first[segments]) * columns;
  parallel_for((segments + at_once - 1) / at_once, useful(threads, elements), control, [&](index task, int) {
    const FloatEnvironment environment(Subnormals::kept);  // a sum costs no more with them
    if (fault(Fault::segment_block_missed) && threads > 1 && task > 0) return;
    const index last = (task + 1) * at_once < segments ? (task + 1) * at_once : segments;
    for (index s = task * at_once; s < last; ++s) {
      T* const to = sums + s * columns;
      for (index j = 0; j < columns && !fault(Fault::segment_not_cleared); ++j) to[j] = 0;
      const std::int64_t end = first[s + 1] - (fault(Fault::segment_last_row_missed) && s == segments - 1 ? 1 : 0);
      for (std::int64_t i = first[s]; i < end; ++i) {
        const T* const from = rows + static_cast<index>(order[i]) * columns;
        for (index j = 0; j < columns; ++j) to[j] += from[j];
      }
    }
  });
}

template <class T>
void max_over_time(T* top, std::int64_t* at, const T* x, const std::int64_t* lengths, index B, index P, int threads,
                   CallControl& control) {
  index steps = 0;
  for (index b = 0; b < B; ++b) steps += static_cast<index>(lengths[b]);
  parallel_for(B, useful(threads, steps * P), control, [&](index b, int) {
    const FloatEnvironment environment(Subnormals::kept);  // as 0 they would all be equal
    T* const best = top + b * P;
    std::int64_t* const where = at + b * P;
    for (index j = 0; j < P; ++j) {
      best[j] = lengths[b] > 0 ? x[b * P + j] : T(fault(Fault::maximum_of_no_steps) ? 1 : 0);
      where[j] = 0;
    }
    const std::int64_t steps_of_row = lengths[b] - (fault(Fault::maximum_without_the_last_step) ? 1 : 0);
    for (index t = 1; t < steps_of_row; ++t) {
      const T* const row = x + (t * B + b) * P;
      for (index j = 0; j < P; ++j) {
        const bool above = fault(Fault::maximum_ignores_nan) ? row[j] > best[j] : !(row[j] <= best[j]);
        const bool tied = fault(Fault::maximum_takes_the_last_of_equals) && row[j] == best[j];
        const bool larger = (above || tied) && best[j] == best[j];
        best[j] = larger ? row[j] : best[j];
        where[j] = larger ? t : where[j];
      }
    }
  });
}

template void adam_step(const AdamStep<float>&, int, CallControl&);
template void adam_step(const AdamStep<double>&, int, CallControl&);
template void sum_segments(float*, const float*, const std::int64_t*, const std::int64_t*, index, index, int,
                           CallControl&);
template void sum_segments(double*, const double*, const std::int64_t*, const std::int64_t*, index, index, int,
                           CallControl&);
template void max_over_time(float*, std::int64_t*, const float*, const std::int64_t*, index, index, int, CallControl&);
template void max_over_time(double*, std::int64_t*, const double*, const std::int64_t*, index, index, int,
                            CallControl&);

}  // namespace fastrnn
