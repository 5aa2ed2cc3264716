// Vectors of one instruction set. FASTRNN_VEC names it: 512 (AVX-512), 256 (AVX2 + FMA), 128 (SSE4.2), 0 (portable).
// Included inside the namespace of the instruction set; everything is static. Partial loads and stores touch `n`
// elements only, and partial loads fill with 0.
//
// Vec<T>: lanes, then set, load, store, load_part, store_part; add, sub, mul, div; fma(a, b, c) = a b + c;
// add_product(sum, a, b): sum = fma(a, b, sum); fnma(a, b, c) = c - a b; clamp_top(x, top) = min(x, top), NaN stays
// NaN; abs; with_sign_of(v, s): sets the sign of s on v, which is positive or has it; zero_where_not_positive(value,
// test): 0 where test <= 0, NaN tests keep the value; pow2_of(shifted): 2^n for shifted = n + Magic::shift;
// where_greater(a, b, yes, no): a > b, per lane; registers: how many vectors the machine holds. Where can_look_up<T>:
// at_least(x, bottom) = max(x, bottom), bottom for NaN; quarter_octave(x) counts the quarters of octaves up to x > 0;
// look_up(table, i): table[i mod 32], per lane.

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE __forceinline
#endif
#define FN static INLINE

// Asks for the cache line of p; reads nothing, so any address will do
FN void prefetch(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

// The same into the second cache level: for what is used after much else
FN void prefetch_far(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#else
  (void)p;
#endif
}

// Values loaded before this are not kept on the stack for use after it; a loop with it is never made a memcpy
FN void compiler_barrier() {
#if defined(__GNUC__)
  __asm__ __volatile__("" ::: "memory");
#endif
}

template <class T>
struct Vec;

template <class T>
constexpr bool can_look_up = false;

template <class T>
struct Magic;  // adding `shift` rounds to an integer and leaves it in the low bits, with the exponent's bias
template <>
struct Magic<float> {
  static constexpr float shift = 12583039.0f;  // 1.5 * 2^23 + 127
};
template <>
struct Magic<double> {
  static constexpr double shift = 6755399441056767.0;  // 1.5 * 2^52 + 1023
};

// sum += a b. Written as an instruction, so that the compiler leaves the sum where it is: with intrinsics GCC chooses
// among the three forms of the FMA and moves the sums of an unrolled loop about, which costs a tenth.
#if defined(__GNUC__) && !FASTRNN_EMULATE_V4
#define FASTRNN_ADD_PRODUCT(instruction, sum, a, b)                \
  __asm__(instruction " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); \
  return sum
#else
#define FASTRNN_ADD_PRODUCT(instruction, sum, a, b) return fma(a, b, sum)
#endif

#if FASTRNN_VEC == 512

template <>
constexpr bool can_look_up<float> = true;

template <>
struct Vec<float> {
  using V = __m512;
  static constexpr index lanes = 16;
  static constexpr index registers = 32;
  FN __mmask16 first(index n) { return static_cast<__mmask16>((1u << n) - 1u); }
  FN V set(float a) { return _mm512_set1_ps(a); }
  FN V load(const float* p) { return _mm512_loadu_ps(p); }
  FN void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  FN V load_part(const float* p, index n) { return _mm512_maskz_loadu_ps(first(n), p); }
  FN void store_part(float* p, V v, index n) { _mm512_mask_storeu_ps(p, first(n), v); }
  FN V add(V a, V b) { return _mm512_add_ps(a, b); }
  FN V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  FN V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  FN V div(V a, V b) { return _mm512_div_ps(a, b); }
  FN V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  FN V add_product(V sum, V a, V b) { FASTRNN_ADD_PRODUCT("vfmadd231ps", sum, a, b); }
  FN V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
  FN V clamp_top(V x, V top) { return _mm512_min_ps(top, x); }
  FN V abs(V a) { return _mm512_abs_ps(a); }
  FN V with_sign_of(V magnitude, V s) {
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(s), _mm512_set1_epi32(INT32_MIN));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(magnitude), sign));
  }
  FN V zero_where_not_positive(V value, V test) {
    return _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(test, _mm512_setzero_ps(), _CMP_LE_OQ), _mm512_setzero_ps());
  }
  FN V pow2_of(V shifted) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23)); }
  FN V where_greater(V a, V b, V yes, V no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), yes);
  }
  FN V at_least(V x, V bottom) { return _mm512_max_ps(x, bottom); }
  FN __m512i quarter_octave(V x) { return _mm512_srli_epi32(_mm512_castps_si512(x), 21); }
  FN V look_up(const float (&table)[32], __m512i i) {
    return _mm512_permutex2var_ps(load(table), i, load(table + lanes));
  }
};

template <>
struct Vec<double> {
  using V = __m512d;
  static constexpr index lanes = 8;
  static constexpr index registers = 32;
  FN __mmask8 first(index n) { return static_cast<__mmask8>((1u << n) - 1u); }
  FN V set(double a) { return _mm512_set1_pd(a); }
  FN V load(const double* p) { return _mm512_loadu_pd(p); }
  FN void store(double* p, V v) { _mm512_storeu_pd(p, v); }
  FN V load_part(const double* p, index n) { return _mm512_maskz_loadu_pd(first(n), p); }
  FN void store_part(double* p, V v, index n) { _mm512_mask_storeu_pd(p, first(n), v); }
  FN V add(V a, V b) { return _mm512_add_pd(a, b); }
  FN V sub(V a, V b) { return _mm512_sub_pd(a, b); }
  FN V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  FN V div(V a, V b) { return _mm512_div_pd(a, b); }
  FN V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  FN V add_product(V sum, V a, V b) { FASTRNN_ADD_PRODUCT("vfmadd231pd", sum, a, b); }
  FN V fnma(V a, V b, V c) { return _mm512_fnmadd_pd(a, b, c); }
  FN V clamp_top(V x, V top) { return _mm512_min_pd(top, x); }
  FN V abs(V a) { return _mm512_abs_pd(a); }
  FN V with_sign_of(V magnitude, V s) {
    const __m512i sign = _mm512_and_si512(_mm512_castpd_si512(s), _mm512_set1_epi64(INT64_MIN));
    return _mm512_castsi512_pd(_mm512_or_si512(_mm512_castpd_si512(magnitude), sign));
  }
  FN V zero_where_not_positive(V value, V test) {
    return _mm512_mask_mov_pd(value, _mm512_cmp_pd_mask(test, _mm512_setzero_pd(), _CMP_LE_OQ), _mm512_setzero_pd());
  }
  FN V pow2_of(V shifted) { return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(shifted), 52)); }
  FN V where_greater(V a, V b, V yes, V no) {
    return _mm512_mask_mov_pd(no, _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ), yes);
  }
};

#elif FASTRNN_VEC == 256

template <>
struct Vec<float> {
  using V = __m256;
  static constexpr index lanes = 8;
  static constexpr index registers = 16;
  FN __m256i first(index n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  FN V set(float a) { return _mm256_set1_ps(a); }
  FN V load(const float* p) { return _mm256_loadu_ps(p); }
  FN void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  FN V load_part(const float* p, index n) { return _mm256_maskload_ps(p, first(n)); }
  FN void store_part(float* p, V v, index n) { _mm256_maskstore_ps(p, first(n), v); }
  FN V add(V a, V b) { return _mm256_add_ps(a, b); }
  FN V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  FN V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  FN V div(V a, V b) { return _mm256_div_ps(a, b); }
  FN V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  FN V add_product(V sum, V a, V b) { FASTRNN_ADD_PRODUCT("vfmadd231ps", sum, a, b); }
  FN V fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
  FN V clamp_top(V x, V top) { return _mm256_min_ps(top, x); }
  FN V abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  FN V with_sign_of(V magnitude, V s) { return _mm256_or_ps(magnitude, _mm256_and_ps(s, _mm256_set1_ps(-0.0f))); }
  FN V zero_where_not_positive(V value, V test) {
    return _mm256_andnot_ps(_mm256_cmp_ps(test, _mm256_setzero_ps(), _CMP_LE_OQ), value);
  }
  FN V pow2_of(V shifted) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23)); }
  FN V where_greater(V a, V b, V yes, V no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
};

template <>
struct Vec<double> {
  using V = __m256d;
  static constexpr index lanes = 4;
  static constexpr index registers = 16;
  FN __m256i first(index n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
  FN V set(double a) { return _mm256_set1_pd(a); }
  FN V load(const double* p) { return _mm256_loadu_pd(p); }
  FN void store(double* p, V v) { _mm256_storeu_pd(p, v); }
  FN V load_part(const double* p, index n) { return _mm256_maskload_pd(p, first(n)); }
  FN void store_part(double* p, V v, index n) { _mm256_maskstore_pd(p, first(n), v); }
  FN V add(V a, V b) { return _mm256_add_pd(a, b); }
  FN V sub(V a, V b) { return _mm256_sub_pd(a, b); }
  FN V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  FN V div(V a, V b) { return _mm256_div_pd(a, b); }
  FN V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  FN V add_product(V sum, V a, V b) { FASTRNN_ADD_PRODUCT("vfmadd231pd", sum, a, b); }
  FN V fnma(V a, V b, V c) { return _mm256_fnmadd_pd(a, b, c); }
  FN V clamp_top(V x, V top) { return _mm256_min_pd(top, x); }
  FN V abs(V a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  FN V with_sign_of(V magnitude, V s) { return _mm256_or_pd(magnitude, _mm256_and_pd(s, _mm256_set1_pd(-0.0))); }
  FN V zero_where_not_positive(V value, V test) {
    return _mm256_andnot_pd(_mm256_cmp_pd(test, _mm256_setzero_pd(), _CMP_LE_OQ), value);
  }
  FN V pow2_of(V shifted) { return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted), 52)); }
  FN V where_greater(V a, V b, V yes, V no) { return _mm256_blendv_pd(no, yes, _mm256_cmp_pd(a, b, _CMP_GT_OQ)); }
};

#elif FASTRNN_VEC == 128  // no FMA: a product and a sum are rounded one after the other

template <>
struct Vec<float> {
  using V = __m128;
  static constexpr index lanes = 4;
  static constexpr index registers = 16;
  FN V set(float a) { return _mm_set1_ps(a); }
  FN V load(const float* p) { return _mm_loadu_ps(p); }
  FN void store(float* p, V v) { _mm_storeu_ps(p, v); }
  FN V load_part(const float* p, index n) {
    float part[4] = {0, 0, 0, 0};
    for (index i = 0; i < n && i < lanes; ++i) part[i] = p[i];
    return load(part);
  }
  FN void store_part(float* p, V v, index n) {
    float part[4];
    store(part, v);
    for (index i = 0; i < n && i < lanes; ++i) p[i] = part[i];
  }
  FN V add(V a, V b) { return _mm_add_ps(a, b); }
  FN V sub(V a, V b) { return _mm_sub_ps(a, b); }
  FN V mul(V a, V b) { return _mm_mul_ps(a, b); }
  FN V div(V a, V b) { return _mm_div_ps(a, b); }
  FN V fma(V a, V b, V c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
  FN V add_product(V sum, V a, V b) { return fma(a, b, sum); }
  FN V fnma(V a, V b, V c) { return _mm_sub_ps(c, _mm_mul_ps(a, b)); }
  FN V clamp_top(V x, V top) { return _mm_min_ps(top, x); }
  FN V abs(V a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
  FN V with_sign_of(V magnitude, V s) { return _mm_or_ps(magnitude, _mm_and_ps(s, _mm_set1_ps(-0.0f))); }
  FN V zero_where_not_positive(V value, V test) { return _mm_andnot_ps(_mm_cmple_ps(test, _mm_setzero_ps()), value); }
  FN V pow2_of(V shifted) { return _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(shifted), 23)); }
  FN V where_greater(V a, V b, V yes, V no) { return _mm_blendv_ps(no, yes, _mm_cmpgt_ps(a, b)); }
};

template <>
struct Vec<double> {
  using V = __m128d;
  static constexpr index lanes = 2;
  static constexpr index registers = 16;
  FN V set(double a) { return _mm_set1_pd(a); }
  FN V load(const double* p) { return _mm_loadu_pd(p); }
  FN void store(double* p, V v) { _mm_storeu_pd(p, v); }
  FN V load_part(const double* p, index n) { return n > 1 ? load(p) : n > 0 ? _mm_load_sd(p) : _mm_setzero_pd(); }
  FN void store_part(double* p, V v, index n) {
    if (n > 1) {
      store(p, v);
    } else if (n > 0) {
      _mm_store_sd(p, v);
    }
  }
  FN V add(V a, V b) { return _mm_add_pd(a, b); }
  FN V sub(V a, V b) { return _mm_sub_pd(a, b); }
  FN V mul(V a, V b) { return _mm_mul_pd(a, b); }
  FN V div(V a, V b) { return _mm_div_pd(a, b); }
  FN V fma(V a, V b, V c) { return _mm_add_pd(_mm_mul_pd(a, b), c); }
  FN V add_product(V sum, V a, V b) { return fma(a, b, sum); }
  FN V fnma(V a, V b, V c) { return _mm_sub_pd(c, _mm_mul_pd(a, b)); }
  FN V clamp_top(V x, V top) { return _mm_min_pd(top, x); }
  FN V abs(V a) { return _mm_andnot_pd(_mm_set1_pd(-0.0), a); }
  FN V with_sign_of(V magnitude, V s) { return _mm_or_pd(magnitude, _mm_and_pd(s, _mm_set1_pd(-0.0))); }
  FN V zero_where_not_positive(V value, V test) { return _mm_andnot_pd(_mm_cmple_pd(test, _mm_setzero_pd()), value); }
  FN V pow2_of(V shifted) { return _mm_castsi128_pd(_mm_slli_epi64(_mm_castpd_si128(shifted), 52)); }
  FN V where_greater(V a, V b, V yes, V no) { return _mm_blendv_pd(no, yes, _mm_cmpgt_pd(a, b)); }
};

#else
#include "vec_portable.h"
#endif
