// One step of the recurrence for a block of rows: the input product (or what a hoisted one left in out), the state
// product, the activation and zoneout, in registers and a buffer in the first cache level; h is written once.

template <class T>
static void forward_step(const ForwardStep<T>& a) {
  using S = Vec<T>;
  using G = Tile<T>;
  alignas(64) T s[G::sum_size];
  for_each_tile<T>(a.rows, a.H, a.tile_rows, [&](index first, index rows, index column, index columns, TileSum<T> add) {
    for (index r = 0; r < rows; ++r) {
      const T* seed = a.x ? a.bias + column : a.out[first + r] + column;
      for_each_vector<T>(columns,
                         [&](index c, index n) { S::store(s + r * G::sum_stride + c, load_lanes(seed + c, n)); });
    }
    prefetch_rows<T>(a.out, first, rows, column, columns, 1);
    if (a.x) add.sum(s, a.x + first, a.I, a.w_ih, false);
    add.sum(s, a.state + first, a.H, a.w_hh, false);
    for (index r = 0; r < rows; ++r) {
      T* out = a.out[first + r] + column;
      T* z = s + r * G::sum_stride;
      const bool relu = a.relu;
      for_each_vector<T>(columns, [&](index c, index n) {
        const auto v = S::load(z + c);
        store_lanes(out + c, relu ? S::zero_where_not_positive(v, v) : tanh_of<T>(v), n);
      });
      if (a.keep) {
        const unsigned char* keep = a.keep[first + r] + column;
        const T* kept = a.kept[first + r] + column;
        for (index c = 0; c < columns; ++c) out[c] = keep[c] ? kept[c] : out[c];
      }
    }
  });
}

// The product alone: bias + rows * panels, the sum's order being the recurrence's, so that hoisting keeps the bits.
template <class T>
static void row_product(const RowProduct<T>& a) {
  using S = Vec<T>;
  using G = Tile<T>;
  alignas(64) T s[G::sum_size];
  for_each_tile<T>(
      a.rows, a.outputs, a.tile_rows, [&](index first, index rows, index column, index columns, TileSum<T> add) {
        prefetch_rows<T>(a.out, first, rows, column, columns, 1);
        if (a.bias) {
          for (index r = 0; r < rows; ++r) {
            for_each_vector<T>(columns, [&](index c, index n) {
              S::store(s + r * G::sum_stride + c, load_lanes(a.bias + column + c, n));
            });
          }
        }
        add.sum(s, a.a + first, a.terms, a.panels, a.bias == nullptr);
        for (index r = 0; r < rows; ++r) {
          T* out = a.out[first + r] + column;
          for_each_vector<T>(columns,
                             [&](index c, index n) { store_lanes(out + c, S::load(s + r * G::sum_stride + c), n); });
        }
      });
}
