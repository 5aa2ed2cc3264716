// One step of the recurrence for a block of rows: the input product (or what a hoisted one left in out), the state
// product, the activation, leak and zoneout, in registers and a buffer in the first cache level; h is written once.

template <class T, unsigned U>
FN void activations_of(typename Vec<T>::V (&v)[U], bool relu) {
  if (!relu) return tanh_of<T, U>(v);
#pragma GCC unroll 4
  for (unsigned u = 0; u < U; ++u) v[u] = Vec<T>::zero_where_not_positive(v[u], v[u]);
}

// to(row, column, elements, vector): the activations of a tile's sums, vector by vector
template <class T, class To>
FN void activate(const T* s, const TileAt& at, bool relu, To to) {
  using S = Vec<T>;
  constexpr unsigned together = 4;
  const index vectors = at.rows * at.width / S::lanes;
  index row = 0, c = 0;
  const auto next = [&](typename S::V v) {
    to(row, c, at.columns - c < S::lanes ? at.columns - c : S::lanes, v);
    c += S::lanes;
    if (c == at.width) {
      c = 0;
      ++row;
    }
  };
  index i = 0;
  for (; i + together <= vectors; i += together) {
    typename S::V v[together];
#pragma GCC unroll 4
    for (unsigned u = 0; u < together; ++u) v[u] = S::load(s + (i + u) * S::lanes);
    activations_of<T, together>(v, relu);
#pragma GCC unroll 4
    for (unsigned u = 0; u < together; ++u) next(v[u]);
  }
  for (; i < vectors; ++i) {
    typename S::V v[1] = {S::load(s + i * S::lanes)};
    activations_of<T, 1>(v, relu);
    next(v[0]);
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
  const auto seed = [&](const T** seeds, const TileAt& at) {
    for (index r = 0; r < at.rows; ++r) seeds[r] = (a.x ? a.bias : a.out[at.row + r]) + at.column;
    prefetch_rows<T>(a.out, at.row, at.rows, at.column, at.columns, 1);
  };
  const auto finish = [&](T* s, const TileAt& at) {
    // Not beside `out`: the processor keeps few missing lines in flight.
    const index from = a.I * at.column / a.H, to = a.I * (at.column + at.columns) / a.H;  // this tile's share
    prefetch_rows<T>(a.x_next, at.row, at.rows, from, to - from, 1);
    if (!a.alpha && !a.keep) {
      return activate(s, at, a.relu, [&](index row, index c, index n, typename S::V v) {
        store_lanes(a.out[at.row + row] + at.column + c, v, n);
      });
    }
    activate(s, at, a.relu, [&](index row, index c, index, typename S::V v) { S::store(s + row * at.width + c, v); });
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
  sum_tiles<T>(a.rows, a.units, a.tile_rows, a.descending, x, h, seed, finish);
}

// The product alone: bias + rows * weights, the sum's order being the recurrence's, so that hoisting keeps the bits.
template <class T>
static void row_product(const RowProduct<T>& a) {
  using S = Vec<T>;
  const auto seed = [&](const T** seeds, const TileAt& at) {
    for (index r = 0; r < at.rows; ++r) seeds[r] = a.bias ? a.bias + at.column : zeros<T>;
    prefetch_rows<T>(a.out, at.row, at.rows, at.column, at.columns, 1);
  };
  const auto finish = [&](T* s, const TileAt& at) {
    for (index r = 0; r < at.rows; ++r) {
      T* out = a.out[at.row + r] + at.column;
      for_each_vector<T>(at.columns, [&](index c, index n) { store_lanes(out + c, S::load(s + r * at.width + c), n); });
    }
  };
  sum_tiles<T>(a.rows, a.outputs, a.tile_rows, false, Product<T>{a.a, a.terms, a.weights},
               Product<T>{nullptr, 0, a.weights}, seed, finish);
}
