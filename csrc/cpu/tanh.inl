// tanh, by two formulas, one of which is chosen lane by lane:
//   |x| <= 0.625    x + x^3 Q(x^2)
//   above           1 - 2 / (exp(2 |x|) + 1), the sign put back; |x| = n ln2 / 2 + r, |r| <= ln2 / 4
// so that what is rounded is a small part of the result. The coefficients interpolate (tanh(x) / x - 1) / x^2 and
// (exp(2 r) - 1) / r at Chebyshev nodes: relative errors of 6e-10 and 5e-9 for float, 2e-18 and 9e-18 for double.
// Max error 2 ULP for float (tests/test_tanh.py, all inputs) and double; odd, |y| <= 1, exact at 0, NaN stays.
// Subnormal arguments count as 0 (float_environment.h). float with AVX-512: tanh_table.inl.

template <class T>
struct TanhConstants;
template <>
struct TanhConstants<float> {
  static constexpr float top = 9.1f;  // tanh rounds to 1 from |x| = 9.02
  static constexpr unsigned near_terms = 6, exp_terms = 6;
  static constexpr float near[near_terms] = {-0.333333331721f, 0.133333035569f,    -0.0539592595772f,
                                             0.021768918651f,  -0.00834394551584f, 0.00229274481618f};
  static constexpr float exp[exp_terms] = {
      2.0f, 2.00000000542f, 1.33332036904f, 0.666663427158f, 0.267815049338f, 0.0891758765811f};
};
template <>
struct TanhConstants<double> {
  static constexpr double top = 19.1;  // tanh rounds to 1 from |x| = 19.06
  static constexpr unsigned near_terms = 12, exp_terms = 11;
  static constexpr double near[near_terms] = {
      -0.33333333333333332938,    0.13333333333333041602,     -0.05396825396789699169,     0.021869488519008305756,
      -0.008863235103240877925,   0.0035921217511549622695,   -0.0014557754120478055104,   0.0005896606577757043347,
      -0.00023759064960555619551, 0.000092571161295567682707, -0.000031201101425797400033, 6.48516348279311315e-6};
  static constexpr double exp[exp_terms] = {2.0,
                                            2.0000000000000022694,
                                            1.3333333333333336824,
                                            0.66666666666515826333,
                                            0.26666666666643465985,
                                            0.0888888891696064016,
                                            0.025396825440002916855,
                                            0.0063491850276932876974,
                                            0.0014109314647040454368,
                                            0.00028289531439546568965,
                                            0.00005141568047026606446};
};

// sum[u] = c[0] + c[1] x[u] + ... by Horner's rule
template <class T, unsigned U, unsigned terms>
FN void polynomials(const T (&c)[terms], const typename Vec<T>::V (&x)[U], typename Vec<T>::V (&sum)[U]) {
  FASTRNN_EACH sum[u] = Vec<T>::set(c[terms - 1]);
#pragma GCC unroll 12
  for (int i = static_cast<int>(terms) - 2; i >= 0; --i) {
    FASTRNN_EACH sum[u] = Vec<T>::fma(sum[u], x[u], Vec<T>::set(c[i]));
  }
}

// v[u] = tanh(v[u]) of U vectors, step by step for all of them: one alone would wait for its own results.
template <class T, unsigned U>
FN void tanh_by_formulas(typename Vec<T>::V (&v)[U]) {
  using S = Vec<T>;
  using K = TanhConstants<T>;
  typename S::V t[U], near[U], far[U], shifted[U];
  FASTRNN_EACH t[u] = S::mul(v[u], v[u]);
  polynomials<T, U>(K::near, t, near);
  FASTRNN_EACH near[u] = S::fma(v[u], S::mul(t[u], near[u]), v[u]);
  FASTRNN_EACH {
    const auto m = S::clamp_top(S::abs(v[u]), S::set(K::top));
    shifted[u] = S::fma(m, S::set(T(2.8853900817779268147)), S::set(Magic<T>::shift));  // n = round(2 |x| / ln 2)
    t[u] = S::fnma(S::sub(shifted[u], S::set(Magic<T>::shift)), S::set(T(0.34657359027997265471)), m);
  }
  polynomials<T, U>(K::exp, t, far);
  FASTRNN_EACH {
    const auto one = S::set(T(1));
    const auto sum = S::fma(S::fma(t[u], far[u], one), S::pow2_of(shifted[u]), one);  // exp(2 |x|) + 1
    far[u] = S::sub(one, S::div(S::set(T(2)), sum));
  }
  // NaN takes near; the sign last, since near turns -0 into 0
  const T border = fault(Fault::tanh_formula_stretched) ? T(0.9) : T(0.625);
  FASTRNN_EACH {
    const auto sign = fault(Fault::tanh_sign_lost) ? S::abs(v[u]) : v[u];
    v[u] = S::with_sign_of(S::where_greater(S::abs(v[u]), S::set(border), far[u], near[u]), sign);
  }
}

template <class T, unsigned U>
FN void tanh_of(typename Vec<T>::V (&v)[U]) {
  if constexpr (can_look_up<T>) {
    tanh_by_table<T, U>(v);
  } else {
    tanh_by_formulas<T, U>(v);
  }
}

#undef FASTRNN_EACH

// out may be x
template <class T>
static void tanh_array(const T* x, T* out, index count) {
  using S = Vec<T>;
  constexpr unsigned U = 4;
  index i = 0;
  for (; i + U * S::lanes <= count; i += U * S::lanes) {
    typename S::V v[U];
#pragma GCC unroll 4
    for (unsigned u = 0; u < U; ++u) v[u] = S::load(x + i + u * S::lanes);
    tanh_of<T, U>(v);
#pragma GCC unroll 4
    for (unsigned u = 0; u < U; ++u) S::store(out + i + u * S::lanes, v[u]);
  }
  for (; i < count; i += S::lanes) {
    const index n = count - i < S::lanes ? count - i : S::lanes;
    typename S::V v[1] = {S::load_part(x + i, n)};
    tanh_of<T, 1>(v);
    S::store_part(out + i, v[0], n);
  }
}
