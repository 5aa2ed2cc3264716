// The register tile's shape and what is packed for it: weights into panels of outputs; for the weight gradients, their
// two operands.

template <class T>
struct Tile {
  using S = Vec<T>;
  static constexpr index lanes = S::lanes;
  static constexpr index panel_vectors = S::registers == 32 ? 4 : 2;
  static constexpr index rows = 6;
  static constexpr index narrow_rows = 8;  // where the tile is one vector wide
  static constexpr index columns = panel_vectors * lanes;
  static constexpr index most_vectors = 8;  // of one row, over a group of panels
  static constexpr index sum_size = rows * most_vectors * lanes;
  static constexpr index unpacked_vectors = 4;  // the same where the panels are packed on the way

  // panels worked on at once with r rows, so that about rows * panel_vectors independent chains hide the FMA's latency
  FN index group(index r) {
    if (r == 1) return most_vectors / panel_vectors;
    if (r == 2) return panel_vectors == 4 ? 2 : 3;
    if (r == 3) return panel_vectors == 4 ? 1 : 2;
    return 1;
  }
  FN index unpacked_group(index r) { return r <= 3 ? unpacked_vectors / panel_vectors : 1; }
};

// to[s][c] = from[c][s] for a square block of transpose_side elements
#if FASTRNN_VEC >= 256
template <class T>
static constexpr index transpose_side = 32 / static_cast<index>(sizeof(T));

FN __m256 two_quarters(const float* low, const float* high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}
FN void transpose(const float* from, index from_row, float* to, index to_row) {
#pragma GCC unroll 2
  for (index half = 0; half < 2; ++half) {
    const float* a = from + 4 * half;
    const __m256 a0 = two_quarters(a, a + 4 * from_row);
    const __m256 a1 = two_quarters(a + from_row, a + 5 * from_row);
    const __m256 a2 = two_quarters(a + 2 * from_row, a + 6 * from_row);
    const __m256 a3 = two_quarters(a + 3 * from_row, a + 7 * from_row);
    const __m256 low01 = _mm256_unpacklo_ps(a0, a1), high01 = _mm256_unpackhi_ps(a0, a1);
    const __m256 low23 = _mm256_unpacklo_ps(a2, a3), high23 = _mm256_unpackhi_ps(a2, a3);
    float* b = to + 4 * half * to_row;
    _mm256_storeu_ps(b, _mm256_shuffle_ps(low01, low23, 0x44));
    _mm256_storeu_ps(b + to_row, _mm256_shuffle_ps(low01, low23, 0xee));
    _mm256_storeu_ps(b + 2 * to_row, _mm256_shuffle_ps(high01, high23, 0x44));
    _mm256_storeu_ps(b + 3 * to_row, _mm256_shuffle_ps(high01, high23, 0xee));
  }
}
FN __m256d two_halves(const double* low, const double* high) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(low)), _mm_loadu_pd(high), 1);
}
FN void transpose(const double* from, index from_row, double* to, index to_row) {
#pragma GCC unroll 2
  for (index half = 0; half < 2; ++half) {
    const double* a = from + 2 * half;
    const __m256d even = two_halves(a, a + 2 * from_row), odd = two_halves(a + from_row, a + 3 * from_row);
    _mm256_storeu_pd(to + 2 * half * to_row, _mm256_unpacklo_pd(even, odd));
    _mm256_storeu_pd(to + (2 * half + 1) * to_row, _mm256_unpackhi_pd(even, odd));
  }
}
#elif FASTRNN_VEC == 128
template <class T>
static constexpr index transpose_side = 16 / static_cast<index>(sizeof(T));

FN void transpose(const float* from, index from_row, float* to, index to_row) {
  __m128 a0 = _mm_loadu_ps(from), a1 = _mm_loadu_ps(from + from_row);
  __m128 a2 = _mm_loadu_ps(from + 2 * from_row), a3 = _mm_loadu_ps(from + 3 * from_row);
  _MM_TRANSPOSE4_PS(a0, a1, a2, a3);
  _mm_storeu_ps(to, a0);
  _mm_storeu_ps(to + to_row, a1);
  _mm_storeu_ps(to + 2 * to_row, a2);
  _mm_storeu_ps(to + 3 * to_row, a3);
}
FN void transpose(const double* from, index from_row, double* to, index to_row) {
  const __m128d a0 = _mm_loadu_pd(from), a1 = _mm_loadu_pd(from + from_row);
  _mm_storeu_pd(to, _mm_unpacklo_pd(a0, a1));
  _mm_storeu_pd(to + to_row, _mm_unpackhi_pd(a0, a1));
}
#else
template <class T>
static constexpr index transpose_side = 4;

template <class T>
FN void transpose(const T* from, index from_row, T* to, index to_row) {
  for (index s = 0; s < transpose_side<T>; ++s) {
    for (index c = 0; c < transpose_side<T>; ++c) to[s * to_row + c] = from[c * from_row + s];
  }
}
#endif

// One panel of `valid` outputs, filled up with 0 to `width`
template <class T>
FN void pack_panel(T* panel, const T* source, index terms, index terms_stride, index valid, index outputs_stride,
                   index width) {
  if (fault(Fault::whole_panel_read) && terms > 0) {
    (void)static_cast<const volatile T*>(source)[(terms - 1) * terms_stride + (width - 1) * outputs_stride];
  }
  if (outputs_stride == 1) {
    for (index s = 0; s < terms; ++s) {
      const T* from = source + s * terms_stride;
      T* to = panel + s * width;
      for_each_vector<T>(valid, [&](index c, index n) { Vec<T>::store(to + c, load_lanes(from + c, n)); });
    }
    return;
  }
  // A line of outputs at a time over a stretch of terms: more streams, often some multiple of 4 KiB apart, would throw
  // each other out of the cache before their lines are used up.
  constexpr index side = transpose_side<T>, line = 64 / static_cast<index>(sizeof(T));
  const index blocks = terms_stride == 1 ? valid / side * side : 0;  // outputs in whole squares
  for (index t0 = 0; t0 < terms; t0 += longest_block) {
    const index t1 = t0 + longest_block < terms ? t0 + longest_block : terms;
    const index squares = t0 + (t1 - t0) / side * side;
    for (index c0 = 0; c0 < blocks; c0 += line) {
      const index c1 = c0 + line < blocks ? c0 + line : blocks;
      for (index s = t0; s < squares; s += side) {
        for (index c = c0; c < c1; c += side) {
          transpose(source + s + c * outputs_stride, outputs_stride, panel + s * width + c, width);
        }
      }
    }
    for (index s = blocks < width ? t0 : squares; s < t1; ++s) {
      for (index c = s < squares ? blocks : 0; c < width; ++c) {
        panel[s * width + c] = c < valid ? source[s * terms_stride + c * outputs_stride] : T(0);
      }
    }
  }
}

template <class T>
static void pack_panels(T* packed, const T* source, index terms, index terms_stride, index outputs,
                        index outputs_stride) {
  using G = Tile<T>;
  for (index o = 0; o < outputs; o += G::columns) {
    const index valid = outputs - o < G::columns ? outputs - o : G::columns;
    const index width = (valid + G::lanes - 1) / G::lanes * G::lanes;
    pack_panel(packed + o * terms, source + o * outputs_stride, terms, terms_stride, valid, outputs_stride, width);
  }
}

// Tile q, row i, unit u of the tile: tiles[(q * rows + i) * Tile::rows + u]; units beyond H are 0. Whole vectors are
// written, so a row spills into the next one before that is written; the last row of a tile is copied to the element.
template <class T>
static void pack_tiles(T* tiles, const T* d_sum, index rows, index row_stride, index H, index first_tile,
                       index last_tile) {
  using S = Vec<T>;
  constexpr index R = Tile<T>::rows;
  for (index q = first_tile; q < last_tile; ++q) {
    const index unit = q * R;
    const index valid = H - unit < R ? H - unit : R;
    T* to = tiles + q * rows * R;
    const T* from = d_sum + unit;
    index i = 0;
    if (valid == R) {
      for (; i + S::lanes / R + 1 < rows && unit + (R + S::lanes - 1) / S::lanes * S::lanes <= H; ++i) {
        for (index u = 0; u < R; u += S::lanes) S::store(to + i * R + u, S::load(from + i * row_stride + u));
      }
    }
    for (; i < rows; ++i) {
      for (index u = 0; u < valid; ++u) to[i * R + u] = from[i * row_stride + u];
      for (index u = valid; u < R; ++u) to[i * R + u] = T(0);
    }
  }
}

// Rows [first, last) of an operand (x or states) into panels of Tile::columns; a panel holds all rows, side by side.
template <class T>
static void pack_operand(const OperandRows<T>& a, index first, index last) {
  using S = Vec<T>;
  using G = Tile<T>;
  for (index i = first; i < last; ++i) {
    const T* from = a.source[i];
    const T* mask = a.mask ? a.mask[i] : nullptr;
    for (index column = 0; column < a.columns; column += G::columns) {
      const index valid = a.columns - column < G::columns ? a.columns - column : G::columns;
      const index width = (valid + G::lanes - 1) / G::lanes * G::lanes;
      T* to = a.panels + column * a.rows + i * width;
      for_each_vector<T>(valid, [&](index c, index n) {
        const index k = column + c;
        auto v = from ? load_strided(from + k * a.unit, a.unit, n) : S::set(T(0));
        if (from && mask) v = S::mul(v, load_lanes(mask + k, n));
        S::store(to + c, v);
      });
    }
  }
}
