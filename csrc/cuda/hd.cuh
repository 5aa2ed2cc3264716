// What the kernels need of the language: functions for host and device, arithmetic that no compiler may fuse or
// reorder, bits, and the storage types. No standard header: nvcc, NVRTC and the host's compiler all read this file.
// Every operation is an IEEE operation written out, so the host's results have the bits of the device's.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_HD __host__ __device__ __forceinline__
#define FASTRNN_UNROLL _Pragma("unroll")
#define FASTRNN_NO_UNROLL _Pragma("unroll 1")
#else
#define FASTRNN_HD inline
#define FASTRNN_UNROLL
#define FASTRNN_NO_UNROLL
#endif

namespace fastrnn::gpu {

using int64 = long long;
static_assert(sizeof(int64) == 8 && sizeof(void*) == 8, "64 bits");

// ---- arithmetic: rounded to nearest, never contracted

#if defined(__CUDA_ARCH__)
FASTRNN_HD float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
FASTRNN_HD double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
FASTRNN_HD float add(float a, float b) { return __fadd_rn(a, b); }
FASTRNN_HD double add(double a, double b) { return __dadd_rn(a, b); }
FASTRNN_HD float mul(float a, float b) { return __fmul_rn(a, b); }
FASTRNN_HD double mul(double a, double b) { return __dmul_rn(a, b); }
FASTRNN_HD float divide(float a, float b) { return __fdiv_rn(a, b); }
FASTRNN_HD double divide(double a, double b) { return __ddiv_rn(a, b); }
FASTRNN_HD unsigned bits(float a) { return __float_as_uint(a); }
FASTRNN_HD float from_bits(unsigned a) { return __uint_as_float(a); }
FASTRNN_HD unsigned long long bits(double a) { return static_cast<unsigned long long>(__double_as_longlong(a)); }
FASTRNN_HD double from_bits(unsigned long long a) { return __longlong_as_double(static_cast<long long>(a)); }
#else  // the host's compiler is told -ffp-contract=off
FASTRNN_HD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FASTRNN_HD double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
template <class A>
FASTRNN_HD A add(A a, A b) {
  return a + b;
}
template <class A>
FASTRNN_HD A mul(A a, A b) {
  return a * b;
}
template <class A>
FASTRNN_HD A divide(A a, A b) {
  return a / b;
}
template <class To, class From>
FASTRNN_HD To same_bits(From a) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  __builtin_memcpy(&to, &a, sizeof to);
  return to;
}
FASTRNN_HD unsigned bits(float a) { return same_bits<unsigned>(a); }
FASTRNN_HD float from_bits(unsigned a) { return same_bits<float>(a); }
FASTRNN_HD unsigned long long bits(double a) { return same_bits<unsigned long long>(a); }
FASTRNN_HD double from_bits(unsigned long long a) { return same_bits<double>(a); }
#endif

// ---- 16-bit storage; the conversions round to nearest even and keep NaN

FASTRNN_HD float from_bf16(unsigned short h) { return from_bits(static_cast<unsigned>(h) << 16); }

FASTRNN_HD unsigned short to_bf16(float a) {
  const unsigned u = bits(a);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<unsigned short>((u >> 16) | 0x40u);
  return static_cast<unsigned short>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

FASTRNN_HD float from_f16(unsigned short h) {
  const unsigned sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // 2^112 moves the exponent's bias from 15 to 127; exact for subnormals too
  return from_bits(sign | bits(mul(from_bits(magnitude << 13), from_bits(0x77800000u))));
}

FASTRNN_HD unsigned short to_f16(float a) {
  const unsigned u = bits(a), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<unsigned short>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x47800000u) return static_cast<unsigned short>(sign | 0x7c00u);  // 65536 and more
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the low bits, rounded
    return static_cast<unsigned short>(sign | (bits(add(from_bits(magnitude), 0.5f)) - 0x3f000000u));
  }
  return static_cast<unsigned short>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

// ---- storage: the type of the arrays is run-time data, the arithmetic is in A (double for f64, else float)

enum Storage : int64 { f64 = 0, f32 = 1, f16 = 2, bf16 = 3 };

FASTRNN_HD int64 bytes_of(int64 storage) { return storage == f64 ? 8 : storage == f32 ? 4 : 2; }

template <class A>
struct Stored;

template <>
struct Stored<double> {
  static FASTRNN_HD double load(const void* p, int64 at, int64) { return static_cast<const double*>(p)[at]; }
  static FASTRNN_HD void store(void* p, int64 at, int64, double a) { static_cast<double*>(p)[at] = a; }
  static FASTRNN_HD double rounded(int64, double a) { return a; }
};

template <>
struct Stored<float> {
  static FASTRNN_HD float load(const void* p, int64 at, int64 storage) {
    if (storage == f32) return static_cast<const float*>(p)[at];
    const unsigned short h = static_cast<const unsigned short*>(p)[at];
    return storage == f16 ? from_f16(h) : from_bf16(h);
  }
  static FASTRNN_HD void store(void* p, int64 at, int64 storage, float a) {
    if (storage == f32) {
      static_cast<float*>(p)[at] = a;
    } else {
      static_cast<unsigned short*>(p)[at] = storage == f16 ? to_f16(a) : to_bf16(a);
    }
  }
  // What a load after a store gives
  static FASTRNN_HD float rounded(int64 storage, float a) {
    return storage == f32 ? a : storage == f16 ? from_f16(to_f16(a)) : from_bf16(to_bf16(a));
  }
};

struct alignas(16) Four {  // one 16-byte access
  float x[4];
};

}  // namespace fastrnn::gpu
