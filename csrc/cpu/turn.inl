// Small blocks of weights that lie output by output, turned so that the outputs are a vector's lanes.

// turned[s] = from[c * row + s] in every lane c, for `terms` terms s
template <class T>
struct Turn;

#if FASTRNN_VEC >= 256
FN __m256 two_quarters(const float* low, const float* high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}
FN __m256d two_halves(const double* low, const double* high) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(low)), _mm_loadu_pd(high), 1);
}
#endif

#if FASTRNN_VEC == 512
template <>
struct Turn<float> {
  static constexpr index terms = 4;
  FN __m512 rows(const float* from, index row) {
    const __m256 low = two_quarters(from, from + 4 * row), high = two_quarters(from + 8 * row, from + 12 * row);
    const __m512d both = _mm512_castpd256_pd512(_mm256_castps_pd(low));
    return _mm512_castpd_ps(_mm512_insertf64x4(both, _mm256_castps_pd(high), 1));
  }
  FN void block(__m512 (&turned)[terms], const float* from, index row) {
    const __m512 a0 = rows(from, row), a1 = rows(from + row, row);
    const __m512 a2 = rows(from + 2 * row, row), a3 = rows(from + 3 * row, row);
    const __m512 low01 = _mm512_unpacklo_ps(a0, a1), high01 = _mm512_unpackhi_ps(a0, a1);
    const __m512 low23 = _mm512_unpacklo_ps(a2, a3), high23 = _mm512_unpackhi_ps(a2, a3);
    turned[0] = _mm512_shuffle_ps(low01, low23, 0x44);
    turned[1] = _mm512_shuffle_ps(low01, low23, 0xee);
    turned[2] = _mm512_shuffle_ps(high01, high23, 0x44);
    turned[3] = _mm512_shuffle_ps(high01, high23, 0xee);
  }
};
template <>
struct Turn<double> {
  static constexpr index terms = 2;
  FN __m512d rows(const double* from, index row) {
    const __m256d low = two_halves(from, from + 2 * row), high = two_halves(from + 4 * row, from + 6 * row);
    return _mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1);
  }
  FN void block(__m512d (&turned)[terms], const double* from, index row) {
    const __m512d even = rows(from, row), odd = rows(from + row, row);
    turned[0] = _mm512_unpacklo_pd(even, odd);
    turned[1] = _mm512_unpackhi_pd(even, odd);
  }
};
#elif FASTRNN_VEC == 256
template <>
struct Turn<float> {
  static constexpr index terms = 4;
  FN void block(__m256 (&turned)[terms], const float* from, index row) {
    const __m256 a0 = two_quarters(from, from + 4 * row), a1 = two_quarters(from + row, from + 5 * row);
    const __m256 a2 = two_quarters(from + 2 * row, from + 6 * row), a3 = two_quarters(from + 3 * row, from + 7 * row);
    const __m256 low01 = _mm256_unpacklo_ps(a0, a1), high01 = _mm256_unpackhi_ps(a0, a1);
    const __m256 low23 = _mm256_unpacklo_ps(a2, a3), high23 = _mm256_unpackhi_ps(a2, a3);
    turned[0] = _mm256_shuffle_ps(low01, low23, 0x44);
    turned[1] = _mm256_shuffle_ps(low01, low23, 0xee);
    turned[2] = _mm256_shuffle_ps(high01, high23, 0x44);
    turned[3] = _mm256_shuffle_ps(high01, high23, 0xee);
  }
};
template <>
struct Turn<double> {
  static constexpr index terms = 2;
  FN void block(__m256d (&turned)[terms], const double* from, index row) {
    const __m256d even = two_halves(from, from + 2 * row), odd = two_halves(from + row, from + 3 * row);
    turned[0] = _mm256_unpacklo_pd(even, odd);
    turned[1] = _mm256_unpackhi_pd(even, odd);
  }
};
#elif FASTRNN_VEC == 128
template <>
struct Turn<float> {
  static constexpr index terms = 4;
  FN void block(__m128 (&turned)[terms], const float* from, index row) {
    for (index c = 0; c < terms; ++c) turned[c] = _mm_loadu_ps(from + c * row);
    _MM_TRANSPOSE4_PS(turned[0], turned[1], turned[2], turned[3]);
  }
};
template <>
struct Turn<double> {
  static constexpr index terms = 2;
  FN void block(__m128d (&turned)[terms], const double* from, index row) {
    const __m128d a0 = _mm_loadu_pd(from), a1 = _mm_loadu_pd(from + row);
    turned[0] = _mm_unpacklo_pd(a0, a1);
    turned[1] = _mm_unpackhi_pd(a0, a1);
  }
};
#else
template <class T>
struct Turn {
  static constexpr index terms = 4;
  FN void block(typename Vec<T>::V (&turned)[terms], const T* from, index row) {
    for (index s = 0; s < terms; ++s) {
      T lanes[Vec<T>::lanes];
      for (index c = 0; c < Vec<T>::lanes; ++c) lanes[c] = from[c * row + s];
      turned[s] = Vec<T>::load(lanes);
    }
  }
};
#endif
