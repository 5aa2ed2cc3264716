// Packing: weights into panels of outputs; for the weight gradients, their two operands.

template <class T>
static void pack_panels(T* packed, const T* source, index terms, index terms_stride, index outputs,
                        index outputs_stride) {
  using G = Tile<T>;
  for (index o = 0; o < outputs; o += G::columns) {
    const index valid = outputs - o < G::columns ? outputs - o : G::columns;
    const index width = (valid + G::lanes - 1) / G::lanes * G::lanes;
    T* panel = packed + o * terms;
    const T* from = source + o * outputs_stride;
    if (outputs_stride == 1) {
      for (index s = 0; s < terms; ++s) {
        T* to = panel + s * width;
        for_each_vector<T>(
            valid, [&](index c, index n) { Vec<T>::store(to + c, load_lanes(from + s * terms_stride + c, n)); });
      }
    } else {
      // square blocks keep both sides in the first cache level
      constexpr index side = 16;
      for (index s0 = 0; s0 < terms; s0 += side) {
        const index s1 = s0 + side < terms ? s0 + side : terms;
        for (index c = 0; c < valid; ++c) {
          const T* at = from + c * outputs_stride;
          for (index s = s0; s < s1; ++s) panel[s * width + c] = at[s * terms_stride];
        }
        for (index c = valid; c < width; ++c) {
          for (index s = s0; s < s1; ++s) panel[s * width + c] = T(0);
        }
      }
    }
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
