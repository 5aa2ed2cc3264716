// BPTT: the sequential part (one step for a block of rows) and the weight gradients over one block of the canonical
// sum.

// From the sum over the later step's d_sum (in `sum`) to this step's d_sum, for `columns` units of one row
template <class T>
FN void finish_row(const BackwardStep<T>& a, index row, index column, index columns, T* sum) {
  using S = Vec<T>;
  const bool cut = a.cut && *a.cut[row];
  const T* mask = a.mask && !cut ? a.mask[row] + column : nullptr;
  const T* last = a.last ? a.last[row] + column * a.last_unit : nullptr;
  const T* d_output = a.d_output ? a.d_output[row] + column * a.d_output_unit : nullptr;
  const T* h = a.h ? a.h[row] + column * a.h_unit : nullptr;
  T* d_state = a.d_state ? a.d_state[row] + column : nullptr;
  T* d_sum = a.d_sum[row] + column;
  if (cut && fault(Fault::reset_multiplies_in_backward)) {
    for (index c = 0; c < columns; ++c) sum[c] *= T(0);
  } else if (cut) {
    for_each_vector<T>(columns, [&](index c, index) { S::store(sum + c, S::set(T(0))); });
  } else if (mask) {
    for_each_vector<T>(columns,
                       [&](index c, index n) { S::store(sum + c, S::mul(S::load(sum + c), load_lanes(mask + c, n))); });
  }
  if (a.keep_next && !cut) {
    const unsigned char* keep = a.keep_next[row] + column;
    const T* leak = a.leak ? a.leak + column : nullptr;
    for (index c = 0; c < columns; ++c) sum[c] += keep[c] ? d_state[c] : leak ? leak[c] * d_state[c] : T(0);
  } else if (a.leak && !cut) {
    for_each_vector<T>(columns, [&](index c, index n) {
      const auto passed = S::mul(load_lanes(a.leak + column + c, n), load_lanes(d_state + c, n));
      S::store(sum + c, S::add(S::load(sum + c), passed));
    });
  }
  for_each_vector<T>(columns, [&](index c, index n) {
    auto d = S::load(sum + c);
    if (last) d = S::add(d, load_strided(last + c * a.last_unit, a.last_unit, n));
    if (d_output) d = S::add(d, load_strided(d_output + c * a.d_output_unit, a.d_output_unit, n));
    if (d_state) store_lanes(d_state + c, d, n);
    if (a.alpha) {
      if (a.d_alpha) {
        auto change = load_lanes(h + c, n);
        if (a.p[row]) change = S::sub(change, load_lanes(a.p[row] + column + c, n));
        store_lanes(a.d_alpha[row] + column + c, S::mul(d, change), n);
      }
      d = S::mul(d, load_lanes(a.alpha + column + c, n));
    }
    if (h) {
      const auto hv = load_strided(h + c * a.h_unit, a.h_unit, n);
      d = a.relu ? S::zero_where_not_positive(d, hv) : S::mul(d, S::fnma(hv, hv, S::set(T(1))));
    }
    store_lanes(d_sum + c, d, n);
  });
  if (a.keep) {
    const unsigned char* keep = a.keep[row] + column;
    for (index c = 0; c < columns; ++c) d_sum[c] = keep[c] ? T(0) : d_sum[c];
    T* d_alpha = a.d_alpha && !fault(Fault::keep_mask_ignored_in_d_alpha) ? a.d_alpha[row] + column : nullptr;
    for (index c = 0; d_alpha && c < columns; ++c) d_alpha[c] = keep[c] ? T(0) : d_alpha[c];
  }
}

template <class T>
FN typename Vec<T>::V plain_d_sum(typename Vec<T>::V sum, typename Vec<T>::V d_output, typename Vec<T>::V h) {
  using S = Vec<T>;
  return S::mul(S::add(sum, d_output), S::fnma(h, h, S::set(T(1))));
}

// Steps that only add d_output and multiply by tanh', all contiguous
template <class T>
struct PlainSlope {
  static constexpr bool in_registers = true;
  static constexpr unsigned most_sums = any_tile;
  const BackwardStep<T>& a;
  bool plain;

  inline bool takes(const TileAt& at) const { return plain && at.whole_vectors(); }

  template <unsigned R, unsigned W>
  INLINE void take(const TileAt& at, const typename Vec<T>::V (&sums)[R][W]) const {
    using S = Vec<T>;
#pragma GCC unroll 8
    for (unsigned r = 0; r < R; ++r) {
      const index row = at.row + static_cast<index>(r);
      const T* d_output = a.d_output[row] + at.column;
      const T* h = a.h[row] + at.column;
      T* d_sum = a.d_sum[row] + at.column;
#pragma GCC unroll 8
      for (unsigned w = 0; w < W; ++w) {
        const index c = w * S::lanes;
        S::store(d_sum + c, plain_d_sum<T>(sums[r][w], S::load(d_output + c), S::load(h + c)));
      }
    }
  }
};

// The same from the buffer: a partial last vector, weights that are not packed
template <class T>
FN void finish_plain_row(const T* sum, const T* d_output, const T* h, T* d_sum, index columns) {
  using S = Vec<T>;
  for_each_vector<T>(columns, [&](index c, index n) {
    const bool lost = fault(Fault::plain_step_tail_lost) && n < S::lanes;
    const auto d = lost ? S::set(T(0)) : load_lanes(d_output + c, n);
    store_lanes(d_sum + c, plain_d_sum<T>(S::load(sum + c), d, load_lanes(h + c, n)), n);
  });
}

template <class T>
static void backward_step(const BackwardStep<T>& a) {
  const bool plain = a.d_output && a.d_output_unit == 1 && a.h && a.h_unit == 1 && !a.relu && !a.last && !a.mask &&
                     !a.cut && !a.d_state;  // leaky units have a d_state
  const auto seed = [&](const T** seeds, const TileAt& at) {
    for (index r = 0; r < at.rows; ++r) seeds[r] = zeros<T>;
    prefetch_rows<T>(a.d_output, at.row, at.rows, at.column, at.columns, a.d_output_unit);
    prefetch_rows<T>(a.h, at.row, at.rows, at.column, at.columns, a.h_unit);
    return true;
  };
  const auto finish = [&](T* s, const TileAt& at) {
    for (index r = at.row; r < at.row + at.rows; ++r, s += at.width) {
      if (plain) {
        finish_plain_row(s, a.d_output[r] + at.column, a.h[r] + at.column, a.d_sum[r] + at.column, at.columns);
      } else {
        finish_row(a, r, at.column, at.columns, s);
      }
    }
  };
  sum_tiles<T>(a.rows, a.units, a.tile_rows, a.descending, Product<T>{nullptr, 0, a.w_hh_t},
               Product<T>{a.d_sum_next, a.d_sum_next ? a.H : 0, a.w_hh_t}, seed, PlainSlope<T>{a, plain}, finish);
}

// d_w = or += acc, from registers: the compiler would make a copy of a buffer of them, which is slow for so few.
template <class T, unsigned R, unsigned W>
FN void store_gradient(T* d_w, index d_w_row, index units, index columns, const typename Vec<T>::V (&acc)[R][W],
                       bool add) {
  using S = Vec<T>;
  const bool whole = units >= static_cast<index>(R) && columns == static_cast<index>(W) * S::lanes;
  if (whole && !add) {
#pragma GCC unroll 8
    for (unsigned r = 0; r < R; ++r, d_w += d_w_row) {
#pragma GCC unroll 4
      for (unsigned w = 0; w < W; ++w) store_lanes(d_w + w * S::lanes, acc[r][w], S::lanes);
    }
    return;
  }
#pragma GCC unroll 8
  for (unsigned r = 0; r < R; ++r, d_w += d_w_row) {
    if (static_cast<index>(r) >= units) return;
#pragma GCC unroll 4
    for (unsigned w = 0; w < W; ++w) {
      const index c = w * S::lanes, n = columns - c < S::lanes ? columns - c : S::lanes;
      store_lanes(d_w + c, add ? S::add(load_lanes(d_w + c, n), acc[r][w]) : acc[r][w], n);
    }
  }
}

// One tile of d_w: R units x W vectors of columns over all rows of the block, the second operand packed. The first
// `units` of the R are there.
template <class T, unsigned R, unsigned W>
static void gradient_tile(const T* d_sum, index d_sum_row, const T* operand, index rows, T* d_w, index d_w_row,
                          index units, index columns, bool add) {
  using S = Vec<T>;
  constexpr index width = W * S::lanes;
  for (index r = 0; r < units; ++r) prefetch_row(d_w + r * d_w_row, columns, 1);
  alignas(64) T sum[R * static_cast<unsigned>(width)];
  const T* before = zeros<T>;  // the sum of the chains before, row after row of it
  index before_row = 0;
  typename S::V acc[R][W];
  for (index first = 0;; first += gradient_chain) {
    const index n = rows - first < gradient_chain ? rows - first : gradient_chain;
    const bool skipped = fault(Fault::d_w_chain_skipped) && first == gradient_chain;
    chain<T, R, W>(acc, SpacedRows<T>{d_sum, d_sum_row}, operand, 0, skipped ? 0 : n);
    add_sums<T, R, W>([&](unsigned r) { return before + static_cast<index>(r) * before_row; }, acc);
    if (first + n == rows) break;
    store_sums<T, R, W>([&](unsigned r) { return sum + r * W * S::lanes; }, acc);
    before = sum;
    before_row = width;
    d_sum += n * d_sum_row;
    operand += n * width;
  }
  store_gradient<T, R, W>(d_w, d_w_row, units, columns, acc, add);
}

template <class T>
using GradientTile = void (*)(const T*, index, const T*, index, T*, index, index, index, bool);

template <class T, unsigned R>
FN GradientTile<T> gradient_tile_wide(index vectors) {
  constexpr unsigned most = Tile<T>::panel_vectors, three = most < 3 ? most : 3;
  switch (vectors) {
    case 1:
      return gradient_tile<T, R, 1>;
    case 2:
      return gradient_tile<T, R, 2>;
    case 3:
      return gradient_tile<T, R, three>;
    default:
      return gradient_tile<T, R, most>;
  }
}

// Even tiles of units are of 5 or 6, or of 4 and 5 where there are few.
template <class T>
FN GradientTile<T> gradient_tile_for(index units, index vectors) {
  static_assert(Tile<T>::rows == 6);
  return units == 6   ? gradient_tile_wide<T, 6>(vectors)
         : units == 5 ? gradient_tile_wide<T, 5>(vectors)
                      : gradient_tile_wide<T, 4>(vectors);
}

// Tile of units by tile of units, over all panels: rows of d_w are written from end to end where there are many panels.
template <class T>
static void weight_gradient(const WeightGradient<T>& a) {
  using G = Tile<T>;
  const RowTiles tiles = RowTiles::of(a.units.last - a.units.first, G::rows);
  index unit = a.units.first;
  for (index tile = 0; tile < tiles.count; unit += tiles.size(tile), ++tile) {
    for (index column = a.columns.first; column < a.columns.last; column += G::columns) {
      const index columns = a.columns.last - column < G::columns ? a.columns.last - column : G::columns;
      gradient_tile_for<T>(tiles.size(tile), (columns + G::lanes - 1) / G::lanes)(
          a.d_sum + unit, a.d_sum_row, a.operand_panels + column * a.rows, a.rows, a.d_w + unit * a.d_w_row + column,
          a.d_w_row, tiles.size(tile), columns, a.add);
    }
  }
}

// Of C columns and W vectors of units: each term is a column's element, spread, times units.
template <class T, unsigned C, unsigned W>
static void narrow_tile(const NarrowGradient<T>& a, index unit, index units) {
  using S = Vec<T>;
  alignas(64) T sum[C * W * static_cast<unsigned>(S::lanes)];
  for (unsigned i = 0; i < C * W; ++i) S::store(sum + i * S::lanes, S::set(T(0)));
  const T* d_sum = a.d_sum + unit;
  for (index first = 0; first < a.rows; first += gradient_chain) {
    const index end = a.rows - first < gradient_chain ? a.rows : first + gradient_chain;
    typename S::V acc[C][W];
#pragma GCC unroll 8
    for (unsigned c = 0; c < C; ++c)
#pragma GCC unroll 8
      for (unsigned w = 0; w < W; ++w) acc[c][w] = S::set(T(0));
    for (index i = first; i < end; ++i) {
      const T* row = d_sum + i * a.d_sum_row;
      typename S::V d[W];
#pragma GCC unroll 8
      for (unsigned w = 0; w < W; ++w) d[w] = S::load(row + w * S::lanes);  // padded to whole lines
#pragma GCC unroll 8
      for (unsigned c = 0; c < C; ++c) {
        const auto value = S::set(a.operand[i][static_cast<index>(c) * a.unit]);
#pragma GCC unroll 8
        for (unsigned w = 0; w < W; ++w) acc[c][w] = S::add_product(acc[c][w], d[w], value);
      }
    }
#pragma GCC unroll 8
    for (unsigned c = 0; c < C; ++c)
#pragma GCC unroll 8
      for (unsigned w = 0; w < W; ++w) {
        T* of = sum + (c * W + w) * S::lanes;
        S::store(of, S::add(S::load(of), acc[c][w]));
      }
  }
  for (index u = 0; u < units; ++u) {
    compiler_barrier();  // else a memcpy of so few where there is one column
    T* d_w = a.d_w + (unit + u) * a.d_w_row;
    for (unsigned c = 0; c < C; ++c) {
      const T value = sum[static_cast<index>(c * W) * S::lanes + u];
      d_w[c] = a.add ? d_w[c] + value : value;
    }
  }
}

// The units from `unit` on: W vectors at a time, then half as many
template <class T, unsigned C, unsigned W>
static void narrow_tiles(const NarrowGradient<T>& a, index unit) {
  constexpr index width = static_cast<index>(W) * Vec<T>::lanes;
  for (; unit + (W > 1 ? width : 1) <= a.units.last; unit += width) {
    narrow_tile<T, C, W>(a, unit, W > 1 || a.units.last - unit > width ? width : a.units.last - unit);
  }
  if constexpr (W > 1) narrow_tiles<T, C, W / 2>(a, unit);
}

template <class T, unsigned C = 1>
static void narrow_gradient([[maybe_unused]] const NarrowGradient<T>& a) {
  if constexpr (static_cast<index>(C) <= narrow_columns(Vec<T>::lanes)) {
    if (a.columns == static_cast<index>(C)) {
      constexpr unsigned registers = Vec<T>::registers;
      narrow_tiles<T, C, (C + 1) * 8 < registers ? 8 : (C + 1) * 4 < registers ? 4 : 2>(a, a.units.first);
    } else {
      narrow_gradient<T, C + 1>(a);
    }
  }
}

// d_b += the block's sum, whose rounding goes to lost (two-sum); several vectors at once hide the additions' latency
template <class T, unsigned W>
FN void bias_gradient_of(T* d_b, T* lost, const T* d_sum, index rows, index row_stride, index columns) {
  using S = Vec<T>;
  using V = typename S::V;
  constexpr index L = S::lanes;
  V sum[W];
#pragma GCC unroll 4
  for (unsigned w = 0; w < W; ++w) sum[w] = S::set(T(0));
  for (index first = 0; first < rows; first += bias_chain) {
    const index end = rows - first < bias_chain ? rows : first + bias_chain;
    V chain[W];
#pragma GCC unroll 4
    for (unsigned w = 0; w < W; ++w) chain[w] = S::set(T(0));
    for (index i = first; i < end; ++i) {
#pragma GCC unroll 4
      for (unsigned w = 0; w < W; ++w) {
        const index n = columns - w * L < L ? columns - w * L : L;
        chain[w] = S::add(chain[w], load_lanes(d_sum + i * row_stride + w * L, n));
      }
    }
#pragma GCC unroll 4
    for (unsigned w = 0; w < W; ++w) sum[w] = S::add(sum[w], chain[w]);
  }
#pragma GCC unroll 4
  for (unsigned w = 0; w < W; ++w) {
    const index n = columns - w * L < L ? columns - w * L : L;
    const V before = load_lanes(d_b + w * L, n);
    const V after = S::add(before, sum[w]);
    const V added = S::sub(after, before);
    const V error = S::add(S::sub(before, S::sub(after, added)), S::sub(sum[w], added));
    store_lanes(d_b + w * L, after, n);
    store_lanes(lost + w * L, S::add(load_lanes(lost + w * L, n), error), n);
  }
}

template <class T>
static void bias_gradient(T* d_b, T* lost, const T* d_sum, index rows, index row_stride, index H) {
  constexpr index L = Vec<T>::lanes;
  index c = 0;
  for (; c + 4 * L <= H; c += 4 * L) bias_gradient_of<T, 4>(d_b + c, lost + c, d_sum + c, rows, row_stride, 4 * L);
  for (; c < H; c += L) {
    bias_gradient_of<T, 1>(d_b + c, lost + c, d_sum + c, rows, row_stride, H - c < L ? H - c : L);
  }
}
