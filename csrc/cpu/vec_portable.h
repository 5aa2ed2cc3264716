// Vec<T> in plain C++: vectors of the compiler where it has them (16 bytes: NEON on arm64), one element elsewhere.
// FMAs are fused where the target has them in hardware; elsewhere product and sum are rounded one after the other.

template <class T>
struct PortableBits;
template <>
struct PortableBits<float> {
  using Int = std::int32_t;
  using Unsigned = std::uint32_t;
  static constexpr Int mantissa = 23;
};
template <>
struct PortableBits<double> {
  using Int = std::int64_t;
  using Unsigned = std::uint64_t;
  static constexpr Int mantissa = 52;
};

FN float fused(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
FN double fused(double a, double b, double c) {
#ifdef __FP_FAST_FMA
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

template <class T>
struct Vec {
  using Int = typename PortableBits<T>::Int;
  using Unsigned = typename PortableBits<T>::Unsigned;
#if defined(__GNUC__)
  static constexpr index lanes = 16 / sizeof(T);
  typedef T V __attribute__((vector_size(16)));
  FN T& lane(V& v, index i) { return reinterpret_cast<T*>(&v)[i]; }
#else
  static constexpr index lanes = 1;
  using V = T;
  FN T& lane(V& v, index) { return v; }
#endif
#if defined(__aarch64__)
  static constexpr index registers = 32;
#else
  static constexpr index registers = 16;
#endif
  // f applied lane by lane; compilers turn these loops into vector code
  template <class F>
  FN V each(F f) {
    V r;
    for (index i = 0; i < lanes; ++i) lane(r, i) = f(i);
    return r;
  }
  FN V set(T a) {
    return each([&](index) { return a; });
  }
  FN V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  FN void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }
  FN V load_part(const T* p, index n) {
    return each([&](index i) { return i < n ? p[i] : T(0); });
  }
  FN void store_part(T* p, V v, index n) {
    for (index i = 0; i < n && i < lanes; ++i) p[i] = lane(v, i);
  }
  FN V add(V a, V b) { return a + b; }
  FN V sub(V a, V b) { return a - b; }
  FN V mul(V a, V b) { return a * b; }
  FN V div(V a, V b) { return a / b; }
#if defined(__GNUC__) && !defined(__FP_FAST_FMA)
  FN V fma(V a, V b, V c) { return a * b + c; }
  FN V fnma(V a, V b, V c) { return c - a * b; }
#else
  FN V fma(V a, V b, V c) {
    return each([&](index i) { return fused(lane(a, i), lane(b, i), lane(c, i)); });
  }
  FN V fnma(V a, V b, V c) {
    return each([&](index i) { return fused(-lane(a, i), lane(b, i), lane(c, i)); });
  }
#endif
  FN V add_product(V sum, V a, V b) { return fma(a, b, sum); }
  FN V clamp_top(V x, V top) {
    return each([&](index i) { return lane(top, i) < lane(x, i) ? lane(top, i) : lane(x, i); });
  }
  FN Int bits(T a) {
    Int b;
    std::memcpy(&b, &a, sizeof b);
    return b;
  }
  FN T from_bits(Unsigned b) {
    T a;
    std::memcpy(&a, &b, sizeof a);
    return a;
  }
  static constexpr Unsigned sign = Unsigned(1) << (8 * sizeof(T) - 1);
  FN V abs(V a) {
    return each([&](index i) { return from_bits(Unsigned(bits(lane(a, i))) & ~sign); });
  }
  FN V with_sign_of(V magnitude, V s) {
    return each(
        [&](index i) { return from_bits(Unsigned(bits(lane(magnitude, i))) | (Unsigned(bits(lane(s, i))) & sign)); });
  }
  FN V zero_where_not_positive(V value, V test) {
    return each([&](index i) { return lane(test, i) <= T(0) ? T(0) : lane(value, i); });
  }
  FN V pow2_of(V shifted) {
    return each([&](index i) { return from_bits(Unsigned(bits(lane(shifted, i))) << PortableBits<T>::mantissa); });
  }
  FN V where_greater(V a, V b, V yes, V no) {
    return each([&](index i) { return lane(a, i) > lane(b, i) ? lane(yes, i) : lane(no, i); });
  }
};
