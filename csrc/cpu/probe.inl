// The loops that measure the machine's limits with the vectors of one instruction set; probe.cc times them.
// Their sums go out, so that the compiler must compute them.

// Independent chains of FMAs on most registers
template <class T>
static double fma_loop(index iterations, T* result) {
  using S = Vec<T>;
  constexpr unsigned chains = S::registers == 32 ? 24 : 12;
  typename S::V acc[chains];
  const auto a = S::set(T(0.999999)), b = S::set(T(1e-6));
#pragma GCC unroll 24
  for (unsigned i = 0; i < chains; ++i) acc[i] = S::set(T(i));
  for (index it = 0; it < iterations; ++it) {
#pragma GCC unroll 24
    for (unsigned i = 0; i < chains; ++i) acc[i] = S::fma(acc[i], a, b);
  }
  for (unsigned i = 1; i < chains; ++i) acc[0] = S::add(acc[0], acc[i]);
  S::store_part(result, acc[0], 1);
  return 2.0 * static_cast<double>(iterations) * chains * static_cast<double>(S::lanes);
}

// Whole vectors in ascending order, added to independent sums: loads are the limit
template <class T>
static double read_loop(const T* data, index count, index passes, T* result) {
  using S = Vec<T>;
  constexpr index streams = 8, stride = streams * S::lanes;
  const index end = count - count % stride;
  typename S::V acc[streams];
#pragma GCC unroll 8
  for (index i = 0; i < streams; ++i) acc[i] = S::set(T(0));
  for (index pass = 0; pass < passes; ++pass) {
    for (index at = 0; at < end; at += stride) {
#pragma GCC unroll 8
      for (index i = 0; i < streams; ++i) acc[i] = S::add(acc[i], S::load(data + at + i * S::lanes));
    }
  }
  for (index i = 1; i < streams; ++i) acc[0] = S::add(acc[0], acc[i]);
  S::store_part(result, acc[0], 1);
  return static_cast<double>(passes) * static_cast<double>(end) * static_cast<double>(sizeof(T));
}
