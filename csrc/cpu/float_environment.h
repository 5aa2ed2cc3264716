// The floating-point environment of our own code for the life of the object, then the old one again: results depend
// neither on what a caller has set nor on which thread computes, and callers keep what they set.
//
// Rounding is to nearest. In the kernels subnormal numbers count as 0, as operands and as results (x86-64 and ARM64):
// some CPUs take an assist in microcode for a product with one, and the gradients of BPTT often vanish through them.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#elif defined(__aarch64__) && defined(__GNUC__)
#include <cstdint>
#else
#include <cfenv>
#endif

#include "faults.h"

namespace fastrnn {

enum class Subnormals { zero, kept };

#if defined(__x86_64__) || defined(_M_X64)
using FloatState = unsigned;
inline FloatState float_state() { return _mm_getcsr(); }
inline void set_float_state(FloatState state) { _mm_setcsr(state); }
inline FloatState our_float_state(Subnormals subnormals) {
  constexpr unsigned usual = 0x1f80, flush_results = 0x8000, flush_operands = 0x40;
  const bool zero = subnormals == Subnormals::zero && !fault(Fault::subnormals_kept);
  return zero ? usual | flush_results | flush_operands : usual;
}
#elif defined(__aarch64__) && defined(__GNUC__)
using FloatState = std::uint64_t;
inline FloatState float_state() {
  FloatState state;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(state));
  return state;
}
inline void set_float_state(FloatState state) { __asm__ __volatile__("msr fpcr, %0" : : "r"(state)); }
inline FloatState our_float_state(Subnormals subnormals) {
  return subnormals == Subnormals::zero ? FloatState{1} << 24 : FloatState{0};
}
#else
using FloatState = std::fenv_t;
inline FloatState float_state() {
  FloatState state;
  std::fegetenv(&state);
  return state;
}
inline void set_float_state(const FloatState& state) { std::fesetenv(&state); }
inline FloatState our_float_state(Subnormals) {
  const FloatState before = float_state();
  std::fesetenv(FE_DFL_ENV);
  const FloatState usual = float_state();
  set_float_state(before);
  return usual;
}
#endif

class FloatEnvironment {
public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
  explicit FloatEnvironment(const FloatState& state) : old_(float_state()) { set_float_state(state); }
  explicit FloatEnvironment(Subnormals subnormals)
      : FloatEnvironment(fault(Fault::float_environment_of_the_caller) ? float_state() : our_float_state(subnormals)) {}
  ~FloatEnvironment() { set_float_state(old_); }

private:
  FloatState old_;
};

}  // namespace fastrnn
