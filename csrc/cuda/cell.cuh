// The activation and its derivative from the output alone. tanh is csrc/cpu/tanh.inl's, operation for operation:
//   |x| <= 0.625    x + x^3 Q(x^2)
//   above           1 - 2 / (exp(2 |x|) + 1), the sign put back; |x| = n ln2 / 2 + r, |r| <= ln2 / 4
// at most 2 ULP from the exact value, odd, |y| <= 1, NaN stays.
#pragma once

#include "hd.cuh"

namespace fastrnn::gpu {

FASTRNN_HD float tanh_of(float x) {
  const float t = mul(x, x);
  float q = 0.00229274481618f;
  q = fma(q, t, -0.00834394551584f);
  q = fma(q, t, 0.021768918651f);
  q = fma(q, t, -0.0539592595772f);
  q = fma(q, t, 0.133333035569f);
  q = fma(q, t, -0.333333331721f);
  const float near = fma(x, mul(t, q), x);

  const float size = from_bits(bits(x) & 0x7fffffffu);
  const float m = size < 9.1f ? size : 9.1f;  // tanh rounds to 1 from |x| = 9.02
  const float magic = 12583039.0f;            // 1.5 * 2^23 + 127: n and the exponent's bias in the low bits
  const float shifted = fma(m, 2.8853900817779268147f, magic);
  const float r = fma(add(shifted, -magic), -0.34657359027997265471f, m);
  float e = 0.0891758765811f;
  e = fma(e, r, 0.267815049338f);
  e = fma(e, r, 0.666663427158f);
  e = fma(e, r, 1.33332036904f);
  e = fma(e, r, 2.00000000542f);
  e = fma(e, r, 2.0f);
  const float sum = fma(fma(r, e, 1.0f), from_bits(bits(shifted) << 23), 1.0f);  // exp(2 |x|) + 1
  const float far = add(1.0f, -divide(2.0f, sum));

  const float y = size > 0.625f ? far : near;  // NaN takes near
  return from_bits((bits(y) & 0x7fffffffu) | (bits(x) & 0x80000000u));
}

FASTRNN_HD double tanh_of(double x) {
  const double t = mul(x, x);
  double q = 6.48516348279311315e-6;
  q = fma(q, t, -0.000031201101425797400033);
  q = fma(q, t, 0.000092571161295567682707);
  q = fma(q, t, -0.00023759064960555619551);
  q = fma(q, t, 0.0005896606577757043347);
  q = fma(q, t, -0.0014557754120478055104);
  q = fma(q, t, 0.0035921217511549622695);
  q = fma(q, t, -0.008863235103240877925);
  q = fma(q, t, 0.021869488519008305756);
  q = fma(q, t, -0.05396825396789699169);
  q = fma(q, t, 0.13333333333333041602);
  q = fma(q, t, -0.33333333333333332938);
  const double near = fma(x, mul(t, q), x);

  const double size = from_bits(bits(x) & 0x7fffffffffffffffull);
  const double m = size < 19.1 ? size : 19.1;  // tanh rounds to 1 from |x| = 19.06
  const double magic = 6755399441056767.0;     // 1.5 * 2^52 + 1023
  const double shifted = fma(m, 2.8853900817779268147, magic);
  const double r = fma(add(shifted, -magic), -0.34657359027997265471, m);
  double e = 0.00005141568047026606446;
  e = fma(e, r, 0.00028289531439546568965);
  e = fma(e, r, 0.0014109314647040454368);
  e = fma(e, r, 0.0063491850276932876974);
  e = fma(e, r, 0.025396825440002916855);
  e = fma(e, r, 0.0888888891696064016);
  e = fma(e, r, 0.26666666666643465985);
  e = fma(e, r, 0.66666666666515826333);
  e = fma(e, r, 1.3333333333333336824);
  e = fma(e, r, 2.0000000000000022694);
  e = fma(e, r, 2.0);
  const double sum = fma(fma(r, e, 1.0), from_bits(bits(shifted) << 52), 1.0);
  const double far = add(1.0, -divide(2.0, sum));

  const double y = size > 0.625 ? far : near;
  return from_bits((bits(y) & 0x7fffffffffffffffull) | (bits(x) & 0x8000000000000000ull));
}

template <class A>
FASTRNN_HD A activate(A z, bool relu) {
  return relu ? (z <= A(0) ? A(0) : z) : tanh_of(z);  // a NaN stays one
}

// d act / d z times d_h, from h = act(z): tanh' = 1 - h^2; relu' = 0 where h <= 0, else 1 (where h is NaN too)
template <class A>
FASTRNN_HD A through_activation(A d_h, A h, bool relu) {
  return relu ? (h <= A(0) ? A(0) : d_h) : mul(d_h, fma(-h, h, A(1)));
}

}  // namespace fastrnn::gpu
