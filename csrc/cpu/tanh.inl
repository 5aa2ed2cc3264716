// tanh, by two formulas, one of which is chosen lane by lane:
//   |x| <= 0.625    x + x^3 Q(x^2)
//   above           1 - 2 / (exp(2 |x|) + 1), the sign put back; exp by reduction to [-ln2 / 2, ln2 / 2]
// so that what is rounded is a small part of the result. The coefficients interpolate (tanh(x) / x - 1) / x^2 and
// (exp(r) - 1) / r at Chebyshev nodes: relative errors of 6e-10 and 5e-9 for float, 2e-18 and 9e-18 for double.
// Max error 2 ULP for float (tests/test_tanh.py, all inputs) and double; odd, |y| <= 1, exact at 0, NaN stays.

template <class T>
struct TanhConstants;
template <>
struct TanhConstants<float> {
  static constexpr float top = 18.2f;  // of 2 |x|; tanh rounds to 1 from 2 |x| = 18.03
  static constexpr unsigned near_terms = 6, exp_terms = 6;
  static constexpr float near[near_terms] = {-0.333333331721f, 0.133333035569f,    -0.0539592595772f,
                                             0.021768918651f,  -0.00834394551584f, 0.00229274481618f};
  static constexpr float exp[exp_terms] = {
      1.0f, 0.500000001354f, 0.16666504613f, 0.0416664641974f, 0.0083692202918f, 0.00139337307158f};
};
template <>
struct TanhConstants<double> {
  static constexpr double top = 38.2;  // tanh rounds to 1 from 2 |x| = 38.12
  static constexpr unsigned near_terms = 12, exp_terms = 11;
  static constexpr double near[near_terms] = {
      -0.33333333333333332938,    0.13333333333333041602,     -0.05396825396789699169,     0.021869488519008305756,
      -0.008863235103240877925,   0.0035921217511549622695,   -0.0014557754120478055104,   0.0005896606577757043347,
      -0.00023759064960555619551, 0.000092571161295567682707, -0.000031201101425797400033, 6.48516348279311315e-6};
  static constexpr double exp[exp_terms] = {1.0,
                                            0.50000000000000056734,
                                            0.1666666666666667103,
                                            0.041666666666572391458,
                                            0.0083333333333260831202,
                                            0.001388888893275100025,
                                            0.00019841269875002278793,
                                            0.000024801504014426905068,
                                            2.7557255170000887438e-6,
                                            2.7626495546432196255e-7,
                                            2.5105312729622101787e-8};
};

// c[0] + c[1] x + ... by Horner's rule
template <class T, unsigned terms>
FN typename Vec<T>::V polynomial(const T (&c)[terms], typename Vec<T>::V x) {
  typename Vec<T>::V sum = Vec<T>::set(c[terms - 1]);
#pragma GCC unroll 12
  for (int i = static_cast<int>(terms) - 2; i >= 0; --i) sum = Vec<T>::fma(sum, x, Vec<T>::set(c[i]));
  return sum;
}

template <class T>
FN typename Vec<T>::V tanh_of(typename Vec<T>::V x) {
  using S = Vec<T>;
  using K = TanhConstants<T>;
  using V = typename S::V;
  const V square = S::mul(x, x);
  const V near = S::fma(x, S::mul(square, polynomial<T>(K::near, square)), x);

  const V magnitude = S::abs(x);
  const V y = S::clamp_top(S::add(magnitude, magnitude), S::set(K::top));
  const V shifted = S::fma(y, S::set(T(1.4426950408889634074)), S::set(Magic<T>::shift));
  const V n = S::sub(shifted, S::set(Magic<T>::shift));
  const V r = S::fnma(n, S::set(T(0.69314718055994530942)), y);
  const V exp = S::times_pow2(S::fma(r, polynomial<T>(K::exp, r), S::set(T(1))), shifted);
  const V one = S::set(T(1));
  const V far = S::sub(one, S::div(S::set(T(2)), S::add(exp, one)));
  // NaN takes near; the sign last, since near turns -0 into 0
  const T border = fault(Fault::tanh_formula_stretched) ? T(0.9) : T(0.625);
  const V sign = fault(Fault::tanh_sign_lost) ? magnitude : x;
  return S::with_sign_of(S::where_greater(magnitude, S::set(border), far, near), sign);
}

template <class T>
static void tanh_array(const T* x, T* out, index count) {
  using S = Vec<T>;
  index i = 0;
  for (; i + S::lanes <= count; i += S::lanes) S::store(out + i, tanh_of<T>(S::load(x + i)));
  if (i < count) S::store_part(out + i, tanh_of<T>(S::load_part(x + i, count - i)), count - i);
}
