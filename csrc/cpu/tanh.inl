// tanh(x) = (1 - e) / (1 + e) with e = exp(-2 |x|), the sign put back; exp by reduction to [-ln2 / 2, ln2 / 2]. With
// the negative exponent both lie below the powers of two that |tanh| lies below, which keeps each rounding small. The
// coefficients interpolate (expm1(r) - r) / r^2 at Chebyshev nodes (relative error of expm1 below 6e-10 and 6e-19). Max
// error 2 ULP for float (tests/test_tanh.py, all inputs) and double; odd, |y| <= 1, exact at 0, NaN stays.

template <class T>
struct TanhConstants;
template <>
struct TanhConstants<float> {
  static constexpr int terms = 6;
  static constexpr float top = 18.2f;  // of 2 |x|; tanh rounds to 1 from 2 |x| = 18.03
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860677e-6f;  // n * ln2_high is exact
  static constexpr float c[terms] = {0.50000000134981778643f,   0.16666666681659179129f,   0.041666464602026541557f,
                                     0.0083333108895820771937f, 0.0013933685862617173589f, 0.00019891030654370327738f};
};
template <>
struct TanhConstants<double> {
  static constexpr int terms = 11;
  static constexpr double top = 38.2;  // tanh rounds to 1 from 2 |x| = 38.12
  static constexpr double ln2_high = 0.69314718036912382, ln2_low = 1.9082149292705877e-10;
  static constexpr double c[terms] = {0.5,
                                      0.16666666666666671008,
                                      0.041666666666666669767,
                                      0.0083333333333261120526,
                                      0.0013888888888883731828,
                                      0.00019841269874901259234,
                                      0.000024801587325605322782,
                                      2.7557255297969644392e-6,
                                      2.7557273570102139673e-7,
                                      2.5105259538448493419e-8,
                                      2.0914717341716375952e-9};
};

template <class T>
FN typename Vec<T>::V tanh_of(typename Vec<T>::V x) {
  using S = Vec<T>;
  using K = TanhConstants<T>;
  using V = typename S::V;
  const V magnitude = S::abs(x);
  const V y = S::clamp_top(S::add(magnitude, magnitude), S::set(K::top));
  const V shifted = S::fma(y, S::set(T(1.4426950408889634074)), S::set(Magic<T>::shift));
  const V n = S::sub(shifted, S::set(Magic<T>::shift));
  const V r = S::fnma(n, S::set(K::ln2_low), S::fnma(n, S::set(K::ln2_high), y));
  V q = S::set(K::c[K::terms - 1]);
#pragma GCC unroll 12
  for (int i = K::terms - 2; i >= 0; --i) q = S::fnma(q, r, S::set(K::c[i]));
  const V p = S::fnma(S::mul(r, r), q, r);  // 1 - exp(-r)
  const V scale = S::pow2_negative(shifted);
  const V one = S::set(T(1));
  const V minus = S::fma(scale, p, S::sub(one, scale));  // 1 - exp(-2 |x|)
  const V plus = S::fnma(scale, p, S::add(one, scale));  // 1 + exp(-2 |x|)
  V y_abs = S::div(minus, plus);
  if (sizeof(T) == 8) {  // double has no bit to spare: puts both roundings right, with 1 / plus = (1 + y) / 2
    const V half = S::set(T(0.5));
    const V lost_minus = S::fma(scale, p, S::sub(S::sub(one, scale), minus));
    const V lost_plus = S::fnma(scale, p, S::sub(S::add(one, scale), plus));
    y_abs = S::fma(S::fnma(y_abs, lost_plus, lost_minus), S::fma(y_abs, half, half), y_abs);
  }
  return S::with_sign_of(y_abs, x);
}

template <class T>
static void tanh_array(const T* x, T* out, index count) {
  using S = Vec<T>;
  index i = 0;
  for (; i + S::lanes <= count; i += S::lanes) S::store(out + i, tanh_of<T>(S::load(x + i)));
  if (i < count) S::store_part(out + i, tanh_of<T>(S::load_part(x + i, count - i)), count - i);
}
