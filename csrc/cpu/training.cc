// Plain loops, which compilers turn into vectors: memory is what they wait for.

#include "training.h"

#include <cmath>

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
    const T g = grad[i] + s.decay * value;
    const T m = mean[i] + s.one_minus_b1 * (g - mean[i]);
    const T v = s.b2 * square[i] + s.one_minus_b2 * (g * g);
    mean[i] = m;
    square[i] = v;
    p[i] = value - s.rate * (m / (s.correction * std::sqrt(v) + s.eps));
  }
}

}  // namespace

template <class T>
void adam_step(const AdamStep<T>& step, int threads, CallControl& control) {
  const DefaultFloatEnvironment environment;
  const index tasks = (step.count + chunk - 1) / chunk;
  parallel_for(tasks, useful(threads, step.count), control, [&](index task, int) {
    const DefaultFloatEnvironment of_this_thread;
    const index first = task * chunk;
    adam_part(step, first, first + chunk < step.count ? first + chunk : step.count);
  });
}

template <class T>
void sum_segments(T* sums, const T* rows, const std::int64_t* order, const std::int64_t* first, index segments,
                  index columns, int threads, CallControl& control) {
  const index at_once = 64;  // segments of one task
  const index elements = static_cast<index>(first[segments]) * columns;
  parallel_for((segments + at_once - 1) / at_once, useful(threads, elements), control, [&](index task, int) {
    const DefaultFloatEnvironment environment;
    const index last = (task + 1) * at_once < segments ? (task + 1) * at_once : segments;
    for (index s = task * at_once; s < last; ++s) {
      T* const to = sums + s * columns;
      for (index j = 0; j < columns; ++j) to[j] = 0;
      for (std::int64_t i = first[s]; i < first[s + 1]; ++i) {
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
    T* const best = top + b * P;
    std::int64_t* const where = at + b * P;
    for (index j = 0; j < P; ++j) {
      best[j] = lengths[b] > 0 ? x[b * P + j] : T(0);
      where[j] = 0;
    }
    for (index t = 1; t < lengths[b]; ++t) {
      const T* const row = x + (t * B + b) * P;
      for (index j = 0; j < P; ++j) {
        const bool larger = !(row[j] <= best[j]) && best[j] == best[j];
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
