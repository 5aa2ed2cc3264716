// One step of the recurrence for a block of rows: the input product (or what a hoisted one left in out), the state
// product, the activation, leak and zoneout, in registers and a buffer in the first cache level; h is written once.

template <class T>
FN void activate(T* s, index count, bool relu) {
  using S = Vec<T>;
  if (!relu) {
    tanh_array<T>(s, s, count);
  } else {
    for (index i = 0; i < count; i += S::lanes) {
      const auto v = S::load(s + i);
      S::store(s + i, S::zero_where_not_positive(v, v));
    }
  }
}

// s = leak * kept + alpha * s for `columns` units of one row
template <class T>
FN void leak_row(const T* alpha, const T* leak, const T* kept, T* s, index columns) {
  using S = Vec<T>;
  for_each_vector<T>(columns, [&](index c, index n) {
    const bool lost = fault(Fault::leak_tail_lost) && n < S::lanes;
    const auto stays = lost ? S::set(T(0)) : S::mul(load_lanes(leak + c, n), load_lanes(kept + c, n));
    S::store(s + c, S::fma(load_lanes(alpha + c, n), S::load(s + c), stays));
  });
}

template <class T>
static void forward_step(const ForwardStep<T>& a) {
  using S = Vec<T>;
  const Product<T> x{a.x, a.x ? a.I : 0, a.w_ih};
  const Product<T> h{a.state, a.H, a.w_hh};
  const auto begin = [&](T* s, const TileAt& at) {
    for (index r = 0; r < at.rows; ++r) {
      const T* seed = (a.x ? a.bias : a.out[at.row + r]) + at.column;
      for_each_vector<T>(at.columns,
                         [&](index c, index n) { S::store(s + r * at.width + c, load_lanes(seed + c, n)); });
    }
    prefetch_rows<T>(a.out, at.row, at.rows, at.column, at.columns, 1);
  };
  const auto finish = [&](T* s, const TileAt& at) {
    // Not beside `out`: the processor keeps few missing lines in flight.
    const index from = a.I * at.column / a.H, to = a.I * (at.column + at.columns) / a.H;  // this tile's share
    prefetch_rows<T>(a.x_next, at.row, at.rows, from, to - from, 1);
    activate(s, at.rows * at.width, a.relu);
    for (index r = 0; r < at.rows; ++r) {
      T* out = a.out[at.row + r] + at.column;
      if (a.alpha) {
        leak_row(a.alpha + at.column, a.leak + at.column, a.kept[at.row + r] + at.column, s + r * at.width, at.columns);
      }
      for_each_vector<T>(at.columns, [&](index c, index n) { store_lanes(out + c, S::load(s + r * at.width + c), n); });
      if (a.keep) {
        const unsigned char* keep = a.keep[at.row + r] + at.column;
        const T* kept = a.kept[at.row + r] + at.column;
        for (index c = 0; c < at.columns; ++c) out[c] = keep[c] ? kept[c] : out[c];
      }
    }
  };
  sum_tiles<T>(a.rows, a.units, a.tile_rows, a.descending, x, h, begin, finish);
}

// The product alone: bias + rows * weights, the sum's order being the recurrence's, so that hoisting keeps the bits.
template <class T>
static void row_product(const RowProduct<T>& a) {
  using S = Vec<T>;
  const auto begin = [&](T* s, const TileAt& at) {
    prefetch_rows<T>(a.out, at.row, at.rows, at.column, at.columns, 1);
    if (!a.bias) return clear_sums(s, at.rows * at.width);
    for (index r = 0; r < at.rows; ++r) {
      for_each_vector<T>(
          at.columns, [&](index c, index n) { S::store(s + r * at.width + c, load_lanes(a.bias + at.column + c, n)); });
    }
  };
  const auto finish = [&](T* s, const TileAt& at) {
    for (index r = 0; r < at.rows; ++r) {
      T* out = a.out[at.row + r] + at.column;
      for_each_vector<T>(at.columns, [&](index c, index n) { store_lanes(out + c, S::load(s + r * at.width + c), n); });
    }
  };
  sum_tiles<T>(a.rows, a.outputs, a.tile_rows, false, Product<T>{a.a, a.terms, a.weights},
               Product<T>{nullptr, 0, a.weights}, begin, finish);
}
