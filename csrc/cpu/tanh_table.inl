// tanh of float where a register pair holds a table of 32: no division, no formula chosen lane by lane.
// Each quarter of an octave from 2^-4 to 16 has a node t, a float whose tanh is a float too (to 1 / 1000 ULP), and a
// polynomial: tanh(x) = tanh(t) + d (c1 + d (c2 + ...)), d = x - t, which is exact. Below 2^-4 the first one holds,
// odd, with t = 0. tests/helpers/tanh_table.py has the derivation and prints the table. Max error 1.01 ULP
// (tests/test_tanh.py, all inputs); odd, |y| <= 1, exact at 0, NaN stays.

// Of the U vectors of a call; until the end of tanh.inl
#define FASTRNN_EACH _Pragma("GCC unroll 8") for (unsigned u = 0; u < U; ++u)

struct TanhTable {
  static constexpr float top = 9.1f;  // tanh rounds to 1 from |x| = 9.02
  static constexpr float bottom = 0.0625f;
  static constexpr float node[32] = {
      2.18512535e+00f, 2.68547940e+00f, 3.18525624e+00f, 3.68517923e+00f, 4.37071371e+00f, 5.37055397e+00f,
      6.37185478e+00f, 7.38186502e+00f, 8.66434002e+00f, 0.00000000e+00f, 0.00000000e+00f, 0.00000000e+00f,
      0.00000000e+00f, 8.39081332e-02f, 9.95381102e-02f, 1.15165286e-01f, 1.36581033e-01f, 1.67823613e-01f,
      1.99068874e-01f, 2.30328038e-01f, 2.73150146e-01f, 3.35645497e-01f, 3.98163706e-01f, 4.60691690e-01f,
      5.46352088e-01f, 6.71372533e-01f, 7.96296895e-01f, 9.21361744e-01f, 1.09253216e+00f, 1.34262443e+00f,
      1.59273076e+00f, 1.84257114e+00f,
  };
  static constexpr float value[32] = {
      9.75019813e-01f, 9.90743697e-01f, 9.96583283e-01f, 9.98741508e-01f, 9.99680400e-01f, 9.99956727e-01f,
      9.99994159e-01f, 9.99999225e-01f, 9.99999940e-01f, 1.00000000e+00f, 1.00000000e+00f, 1.00000000e+00f,
      0.00000000e+00f, 8.37117657e-02f, 9.92106721e-02f, 1.14658825e-01f, 1.35738045e-01f, 1.66265592e-01f,
      1.96480304e-01f, 2.26339608e-01f, 2.66553611e-01f, 3.23584348e-01f, 3.78376663e-01f, 4.30647790e-01f,
      4.97781187e-01f, 5.85882008e-01f, 6.61961436e-01f, 7.26540983e-01f, 7.97800481e-01f, 8.72301161e-01f,
      9.20566976e-01f, 9.51041341e-01f,
  };
  static constexpr float c1[32] = {
      4.93362285e-02f, 1.84268225e-02f, 6.82171341e-03f, 2.51538260e-03f, 6.38957426e-04f, 8.65248876e-05f,
      1.16798756e-05f, 1.54937254e-06f, 1.18567641e-07f, 0.00000000e+00f, 0.00000000e+00f, 0.00000000e+00f,
      1.00000000e+00f, 9.92992342e-01f, 9.90157247e-01f, 9.86853361e-01f, 9.81575191e-01f, 9.72355723e-01f,
      9.61395502e-01f, 9.48770404e-01f, 9.28949177e-01f, 8.95293176e-01f, 8.56831074e-01f, 8.14542472e-01f,
      7.52213895e-01f, 6.56742275e-01f, 5.61807036e-01f, 4.72138196e-01f, 3.63514513e-01f, 2.39090756e-01f,
      1.52556464e-01f, 9.55203697e-02f,
  };
  static constexpr float c2[32] = {
      -4.81038876e-02f, -1.82562806e-02f, -6.79841451e-03f, -2.51222053e-03f, -6.38813246e-04f, -8.65294423e-05f,
      -1.16807623e-05f, -1.54932752e-06f, -1.19575020e-07f, 0.00000000e+00f,  0.00000000e+00f,  0.00000000e+00f,
      0.00000000e+00f,  -8.31251442e-02f, -9.82341692e-02f, -1.13151446e-01f, -1.33237094e-01f, -1.61669299e-01f,
      -1.88895285e-01f, -2.14744315e-01f, -2.47614756e-01f, -2.89702863e-01f, -3.24204892e-01f, -3.50780904e-01f,
      -3.74437898e-01f, -3.84773463e-01f, -3.71894598e-01f, -3.43027771e-01f, -2.90012091e-01f, -2.08559185e-01f,
      -1.40438467e-01f, -9.08438340e-02f,
  };
  static constexpr float c3[32] = {
      3.04703712e-02f,  1.19554522e-02f,  4.50595422e-03f,  1.67243520e-03f,  4.29129199e-04f,  5.81623390e-05f,
      7.85205611e-06f,  1.04144340e-06f,  8.38720524e-08f,  0.00000000e+00f,  0.00000000e+00f,  0.00000000e+00f,
      -3.33333075e-01f, -3.24038863e-01f, -3.20306510e-01f, -3.15977275e-01f, -3.09106171e-01f, -2.97238290e-01f,
      -2.83350676e-01f, -2.67651349e-01f, -2.43644476e-01f, -2.04685107e-01f, -1.62936360e-01f, -1.20449051e-01f,
      -6.43387064e-02f, 6.52129389e-03f,  5.89088053e-02f,  9.18393508e-02f,  1.10156395e-01f,  1.02203257e-01f,
      7.84209594e-02f,  5.45545034e-02f,
  };
  static constexpr float c4[32] = {
      -1.36809526e-02f, -5.76828560e-03f, -2.22860859e-03f, -8.34591046e-04f, -2.16440967e-04f, -2.93687044e-05f,
      -3.96733094e-06f, -5.28068256e-07f, -4.09097503e-08f, 0.00000000e+00f,  0.00000000e+00f,  0.00000000e+00f,
      0.00000000e+00f,  5.48333451e-02f,  6.45214766e-02f,  7.39455149e-02f,  8.63642320e-02f,  1.03303730e-01f,
      1.18630610e-01f,  1.32153556e-01f,  1.47449046e-01f,  1.62766621e-01f,  1.69687763e-01f,  1.68770343e-01f,
      1.56762287e-01f,  1.24407850e-01f,  8.49766657e-02f,  4.76448834e-02f,  8.90052132e-03f,  -1.95580162e-02f,
      -2.53482182e-02f, -2.15956829e-02f,
  };
  static constexpr float c5[32] = {
      3.97864962e-03f,  1.91307289e-03f,  7.69529259e-04f,  2.92247219e-04f,  6.79043078e-05f,  9.22534946e-06f,
      1.24860014e-06f,  1.68413138e-07f,  9.61341406e-09f,  0.00000000e+00f,  0.00000000e+00f,  0.00000000e+00f,
      1.33004650e-01f,  1.25107840e-01f,  1.21927671e-01f,  1.18274614e-01f,  1.11953385e-01f,  1.02144361e-01f,
      9.09797251e-02f,  7.87469745e-02f,  5.90583459e-02f,  3.19540016e-02f,  5.92374569e-03f,  -1.71667971e-02f,
      -4.35085483e-02f, -6.15947954e-02f, -6.26847371e-02f, -5.30653782e-02f, -3.20306756e-02f, -9.49567929e-03f,
      1.40670221e-03f,  4.60559409e-03f,
  };
};

// v[u] = tanh(v[u]) of U vectors, step by step for all of them: one alone would wait for its own results.
template <class T, unsigned U>
FN void tanh_by_table(typename Vec<T>::V (&v)[U]) {
  using S = Vec<T>;
  using K = TanhTable;
  const float bottom = fault(Fault::tanh_formula_stretched) ? 0.9f : K::bottom;
  typename S::V d[U], y[U];
  decltype(S::quarter_octave(v[0])) i[U];
  FASTRNN_EACH d[u] = S::clamp_top(S::abs(v[u]), S::set(K::top));
  FASTRNN_EACH i[u] = S::quarter_octave(S::at_least(d[u], S::set(bottom)));
  FASTRNN_EACH d[u] = S::sub(d[u], S::look_up(K::node, i[u]));
  FASTRNN_EACH y[u] = S::fma(S::look_up(K::c5, i[u]), d[u], S::look_up(K::c4, i[u]));
  FASTRNN_EACH y[u] = S::fma(y[u], d[u], S::look_up(K::c3, i[u]));
  FASTRNN_EACH y[u] = S::fma(y[u], d[u], S::look_up(K::c2, i[u]));
  FASTRNN_EACH y[u] = S::fma(y[u], d[u], S::look_up(K::c1, i[u]));
  FASTRNN_EACH y[u] = S::fma(y[u], d[u], S::look_up(K::value, i[u]));
  FASTRNN_EACH {
    const auto sign = fault(Fault::tanh_sign_lost) ? S::abs(v[u]) : v[u];
    v[u] = S::with_sign_of(y[u], sign);
  }
}
