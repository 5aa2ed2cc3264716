// The register tile's shape and what is packed for it: weights into panels of outputs, x and h into panels for the
// weight gradients.

template <class T>
struct Tile {
  using S = Vec<T>;
  static constexpr index lanes = S::lanes;
  static constexpr index panel_vectors = S::registers == 32 ? 4 : 2;
  static constexpr index rows = 6;
  static constexpr index narrow_rows = 8;  // where the tile is one vector wide
  static constexpr index columns = panel_vectors * lanes;
  static constexpr index most_vectors = 8;      // of one row, over a group of panels
  static constexpr index unpacked_vectors = 4;  // the same where the panels are packed on the way
  static constexpr index unpacked_tiles = 16;   // of rows at once then
  static constexpr index unpacked_sum_size = unpacked_tiles * rows * unpacked_vectors * lanes;
  static constexpr index turned_vectors = 64 / (lanes * static_cast<index>(sizeof(T)));  // where they are turned

  // panels worked on at once with r rows, so that about rows * panel_vectors independent chains hide the FMA's latency
  FN index group(index r) {
    if (r == 1) return most_vectors / panel_vectors;
    if (r == 2) return panel_vectors == 4 ? 2 : 3;
    if (r == 3) return panel_vectors == 4 ? 1 : 2;
    return 1;
  }
  FN index unpacked_group(index r) {
    return r == 1 ? most_vectors / panel_vectors : r <= 3 ? unpacked_vectors / panel_vectors : 1;
  }
};

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
  using S = Vec<T>;
  constexpr index line = 64 / static_cast<index>(sizeof(T));
  const index blocks = terms_stride == 1 ? valid / S::lanes * S::lanes : 0;  // outputs in whole vectors
  for (index t0 = 0; t0 < terms; t0 += longest_block) {
    const index t1 = t0 + longest_block < terms ? t0 + longest_block : terms;
    const index squares = t0 + (t1 - t0) / Turn<T>::terms * Turn<T>::terms;
    for (index c0 = 0; c0 < blocks; c0 += line) {
      const index c1 = c0 + line < blocks ? c0 + line : blocks;
      for (index s = t0; s < squares; s += Turn<T>::terms) {
        for (index c = c0; c < c1; c += S::lanes) {
          typename S::V turned[Turn<T>::terms];
          Turn<T>::block(turned, source + s + c * outputs_stride, outputs_stride);
          for (index i = 0; i < Turn<T>::terms; ++i) S::store(panel + (s + i) * width + c, turned[i]);
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

// Rows [first, last) of an operand (x or states) into panels of Tile::columns; a panel holds all rows, side by side.
template <class T>
static void pack_operand(const OperandRows<T>& a, index first, index last) {
  using S = Vec<T>;
  using G = Tile<T>;
  // The rows of a step lie apart from those of the next one. Short rows are there sooner than they could be asked for.
  constexpr index early = 16;
  const bool long_rows = a.columns * static_cast<index>(sizeof(T)) >= 256;
  for (index i = first; i < last; ++i) {
    const T* from = a.source[i];
    const T* mask = a.mask ? a.mask[i] : nullptr;
    const bool plain = from && !mask && a.unit == 1;
    if (long_rows && i + early < last && a.source[i + early])
      prefetch_rows<T>(a.source, i + early, 1, 0, a.columns, a.unit);
    for (index column = 0; column < a.columns; column += G::columns) {
      const index valid = a.columns - column < G::columns ? a.columns - column : G::columns;
      const index width = (valid + G::lanes - 1) / G::lanes * G::lanes;
      T* to = a.panels + column * a.rows + i * width;
      if (plain && valid == G::columns) {
#pragma GCC unroll 4
        for (index c = 0; c < G::columns; c += S::lanes) S::store(to + c, S::load(from + column + c));
        continue;
      }
      for_each_vector<T>(valid, [&](index c, index n) {
        const index k = column + c;
        auto v = from ? load_strided(from + k * a.unit, a.unit, n) : S::set(T(0));
        if (from && mask) v = S::mul(v, load_lanes(mask + k, n));
        S::store(to + c, v);
      });
    }
  }
}
