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

class FloatEnvironment {
public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
#if defined(__x86_64__) || defined(_M_X64)
  explicit FloatEnvironment(Subnormals subnormals) : old_(_mm_getcsr()) {
    constexpr unsigned usual = 0x1f80, flush_results = 0x8000, flush_operands = 0x40;
    const bool zero = subnormals == Subnormals::zero && !fault(Fault::subnormals_kept);
    if (!fault(Fault::float_environment_of_the_caller))
      _mm_setcsr(zero ? usual | flush_results | flush_operands : usual);
  }
  ~FloatEnvironment() { _mm_setcsr(old_); }

private:
  unsigned old_;
#elif defined(__aarch64__) && defined(__GNUC__)
  explicit FloatEnvironment(Subnormals subnormals) {
    constexpr std::uint64_t usual = 0, flush = std::uint64_t{1} << 24;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(old_));
    set(subnormals == Subnormals::zero ? flush : usual);
  }
  ~FloatEnvironment() { set(old_); }

private:
  static void set(std::uint64_t control) { __asm__ __volatile__("msr fpcr, %0" : : "r"(control)); }
  std::uint64_t old_;
#else
  explicit FloatEnvironment(Subnormals) {
    std::fegetenv(&old_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&old_); }

private:
  std::fenv_t old_;
#endif
};

}  // namespace fastrnn
