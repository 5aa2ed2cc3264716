// One step of the recurrence for a block of rows: the input product (or what a hoisted one left in out), the state
// product, the activation, leak and zoneout, in registers and a buffer in cache; h is written once.

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

// What the next step reads of x: when sums are complete, not when `out` is asked for, since the processor keeps few
// missing lines in flight.
template <class T>
FN void ask_for_next_x(const ForwardStep<T>& a, const TileAt& at) {
  const index from = a.I * at.column / a.H, to = a.I * (at.column + at.columns) / a.H;  // this tile's share
  prefetch_rows<T>(a.x_next, at.row, at.rows, from, to - from, 1);
}

// Steps that do no more than to activate
template <class T>
struct PlainActivation {
  static constexpr bool in_registers = true;
  // tanh by formulas needs so many registers that more sums would wait in memory all the same
  static constexpr unsigned most_sums = can_look_up<T> ? any_tile : 8;
  const ForwardStep<T>& a;
  bool plain;

  inline bool takes(const TileAt& at) const { return plain && at.whole_vectors(); }

  template <unsigned R, unsigned W>
  INLINE void take(const TileAt& at, const typename Vec<T>::V (&sums)[R][W]) const {
    constexpr unsigned together = R * W < 4 ? R * W : 4, rest = R * W % together;
    ask_for_next_x(a, at);
#pragma GCC unroll 8
    for (unsigned i = 0; i + together <= R * W; i += together) take_some<R, W, together>(at, sums, i);
    if constexpr (rest > 0) take_some<R, W, rest>(at, sums, R * W - rest);
  }

private:
  // U vectors of the sums, from number i on
  template <unsigned R, unsigned W, unsigned U>
  INLINE void take_some(const TileAt& at, const typename Vec<T>::V (&sums)[R][W], unsigned i) const {
    typename Vec<T>::V v[U];
#pragma GCC unroll 4
    for (unsigned u = 0; u < U; ++u) v[u] = sums[(i + u) / W][(i + u) % W];
    activations_of<T, U>(v, a.relu);
#pragma GCC unroll 4
    for (unsigned u = 0; u < U; ++u) {
      Vec<T>::store(a.out[at.row + (i + u) / W] + at.column + (i + u) % W * Vec<T>::lanes, v[u]);
    }
  }
};

template <class T>
static void forward_step(const ForwardStep<T>& a) {
  using S = Vec<T>;
  const Product<T> x{a.x, a.x ? a.I : 0, a.w_ih};
  const Product<T> h{a.state, a.H, a.w_hh};
  const bool plain = !a.alpha && !a.keep;
  const auto seed = [&](const T** seeds, const TileAt& at) {
    for (index r = 0; r < at.rows; ++r) seeds[r] = (a.x ? a.bias : a.out[at.row + r]) + at.column;
    prefetch_rows<T>(a.out, at.row, at.rows, at.column, at.columns, 1);
    return a.x || at.whole_vectors();
  };
  const auto finish = [&](T* s, const TileAt& at) {
    ask_for_next_x(a, at);
    if (plain) {
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
  sum_tiles<T>(a.rows, a.units, a.tile_rows, a.descending, x, h, seed, PlainActivation<T>{a, plain}, finish);
}

// The product for Vec::lanes rows, `row` elements apart, and U outputs: the rows are the lanes, which hold more than so
// few outputs do.
template <class T, unsigned U>
static void narrow_product(const RowProduct<T>& a, index first, index row) {
  using S = Vec<T>;
  constexpr index together = Turn<T>::terms, line = 64 / static_cast<index>(sizeof(T));
  const index block = sum_block(a.terms), output = a.outputs.first;
  const Weights<T>& w = a.weights;
  const T* x = a.a[first];
  // So few outputs are packed as one vector.
  const T* from = w.packed ? w.packed + output * a.terms : w.source + output * w.output_stride;
  const index term_stride = w.packed ? S::lanes : w.term_stride, output_stride = w.packed ? 1 : w.output_stride;
  const auto weight = [&](unsigned u, index k) {
    return S::set(from[k * term_stride + static_cast<index>(u) * output_stride]);
  };
  typename S::V sum[U];
#pragma GCC unroll 4
  for (unsigned u = 0; u < U; ++u) sum[u] = S::set(a.bias ? a.bias[output + static_cast<index>(u)] : T(0));
  for (index k = 0; k < a.terms; k += block) {
    const index end = k + block < a.terms ? k + block : a.terms;
    typename S::V chain[U];
#pragma GCC unroll 4
    for (unsigned u = 0; u < U; ++u) chain[u] = S::set(T(0));
    index t = k;
    for (; t + together <= end; t += together) {
      if (t % line == 0) {  // the next rows, in the order of memory: one stream, not many
        const T* ahead = x + S::lanes * (row + t);
        for (index c = 0; c < S::lanes; ++c) prefetch_far(ahead + c * line);
      }
      typename S::V turned[Turn<T>::terms];
      Turn<T>::block(turned, x + t, row);
#pragma GCC unroll 4
      for (index i = 0; i < together; ++i) {
#pragma GCC unroll 4
        for (unsigned u = 0; u < U; ++u) chain[u] = S::add_product(chain[u], turned[i], weight(u, t + i));
      }
    }
    for (; t < end && !fault(Fault::narrow_last_terms_lost); ++t) {
      const auto xv = load_strided(x + t, row, S::lanes);
#pragma GCC unroll 4
      for (unsigned u = 0; u < U; ++u) chain[u] = S::add_product(chain[u], xv, weight(u, t));
    }
#pragma GCC unroll 4
    for (unsigned u = 0; u < U; ++u) sum[u] = S::add(sum[u], chain[u]);
  }
  T lanes[S::lanes];
#pragma GCC unroll 4
  for (unsigned u = 0; u < U; ++u) {
    S::store(lanes, sum[u]);
    for (index c = 0; c < S::lanes; ++c) a.out[first + c][output + static_cast<index>(u)] = lanes[c];
  }
}

// Whether rows [first, first + count) lie evenly
template <class T>
FN bool evenly_spaced(const T* const* rows, index first, index count) {
  for (index r = first + 2; r < first + count; ++r) {
    if (rows[r] - rows[r - 1] != rows[r - 1] - rows[r - 2]) return false;
  }
  return true;
}

// Sums that go to rows as they are
template <class T>
struct ToRows {
  static constexpr bool in_registers = true;
  static constexpr unsigned most_sums = any_tile;
  T* const* out;

  inline bool takes(const TileAt& at) const { return at.whole_vectors(); }

  template <unsigned R, unsigned W>
  INLINE void take(const TileAt& at, const typename Vec<T>::V (&sums)[R][W]) const {
    store_sums<T, R, W>([&](unsigned r) { return out[at.row + r] + at.column; }, sums);
  }
};

// The product alone: bias + rows * weights, the sum's order being the recurrence's, so that hoisting keeps the bits.
template <class T>
static void row_product(const RowProduct<T>& a) {
  using S = Vec<T>;
  const index outputs = a.outputs.last - a.outputs.first;
  index done = 0;  // rows
  if (outputs > 0 && outputs <= narrow_outputs(S::lanes)) {
    const auto narrow = outputs == 1   ? narrow_product<T, 1>
                        : outputs == 2 ? narrow_product<T, 2>
                        : outputs == 3 ? narrow_product<T, 3>
                                       : narrow_product<T, 4>;
    for (; done + S::lanes <= a.rows && evenly_spaced(a.a, done, S::lanes); done += S::lanes) {
      narrow(a, done, a.a[done + 1] - a.a[done]);
    }
    if (done == a.rows) return;
  }
  T* const* out_rows = a.out + done;
  const T* const* ahead = a.ahead ? a.ahead + done : nullptr;
  const auto seed = [&](const T** seeds, const TileAt& at) {
    for (index r = 0; r < at.rows; ++r) seeds[r] = a.bias ? a.bias + at.column : zeros<T>;
    prefetch_rows<T>(out_rows, at.row, at.rows, at.column, at.columns, 1);
    prefetch_rows<T>(ahead, at.row, at.rows, at.column, at.columns, 1);
    return true;
  };
  const auto finish = [&](T* s, const TileAt& at) {
    for (index r = 0; r < at.rows; ++r) {
      T* out = out_rows[at.row + r] + at.column;
      for_each_vector<T>(at.columns, [&](index c, index n) { store_lanes(out + c, S::load(s + r * at.width + c), n); });
    }
  };
  sum_tiles<T>(a.rows - done, a.outputs, a.tile_rows, false, Product<T>{a.a + done, a.terms, a.weights},
               Product<T>{nullptr, 0, a.weights}, seed, ToRows<T>{out_rows}, finish);
}
