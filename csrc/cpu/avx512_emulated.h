// Test builds only (FASTRNN_EMULATE_V4): AVX-512 in software over AVX2, by SIMDe (Debian: libsimde-dev), so that the
// v4 kernels can be run and checked on processors without AVX-512. Slow; the bits are those of the real thing.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#pragma GCC diagnostic pop

// What SIMDe 0.7 lacks. Lanes beyond the mask are not touched.
#define FASTRNN_MASKED_MEMORY(suffix, T, V, M, lanes)                       \
  static inline V fastrnn_maskz_loadu_##suffix(M mask, const T* from) {     \
    T part[lanes] = {};                                                     \
    for (int i = 0; i < lanes; ++i) {                                       \
      if (mask >> i & 1) part[i] = from[i];                                 \
    }                                                                       \
    return _mm512_loadu_##suffix(part);                                     \
  }                                                                         \
  static inline void fastrnn_mask_storeu_##suffix(T* to, M mask, V value) { \
    T part[lanes];                                                          \
    _mm512_storeu_##suffix(part, value);                                    \
    for (int i = 0; i < lanes; ++i) {                                       \
      if (mask >> i & 1) to[i] = part[i];                                   \
    }                                                                       \
  }
FASTRNN_MASKED_MEMORY(ps, float, __m512, __mmask16, 16)
FASTRNN_MASKED_MEMORY(pd, double, __m512d, __mmask8, 8)
#undef FASTRNN_MASKED_MEMORY
#define _mm512_maskz_loadu_ps fastrnn_maskz_loadu_ps
#define _mm512_maskz_loadu_pd fastrnn_maskz_loadu_pd
#define _mm512_mask_storeu_ps fastrnn_mask_storeu_ps
#define _mm512_mask_storeu_pd fastrnn_mask_storeu_pd
