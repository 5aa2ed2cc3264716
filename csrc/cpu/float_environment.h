// The default floating-point environment (round to nearest, subnormals kept) for the life of the object, then the old
// one again: results depend neither on what a caller has set nor on which thread computes, and callers keep what they
// set.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

#include "faults.h"

namespace fastrnn {

class DefaultFloatEnvironment {
public:
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;
#if defined(__x86_64__) || defined(_M_X64)
  DefaultFloatEnvironment() : old_(_mm_getcsr()) {
    if (!fault(Fault::float_environment_of_the_caller)) _mm_setcsr(fault(Fault::subnormals_flushed) ? 0x9fc0 : 0x1f80);
  }
  ~DefaultFloatEnvironment() { _mm_setcsr(old_); }

private:
  unsigned old_;
#else
  DefaultFloatEnvironment() {
    std::fegetenv(&old_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&old_); }

private:
  std::fenv_t old_;
#endif
};

}  // namespace fastrnn
