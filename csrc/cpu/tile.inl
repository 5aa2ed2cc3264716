// The register tile: R rows x W vectors of outputs, summed in the canonical order (sum_order.h).
//
// A group of panels is worked on at once when there are few rows, so that about tile_rows * panel_vectors independent
// chains hide the latency of the FMA. The running sum s waits in a buffer while a block's chain is in registers.

// Vectors that a row of W takes from one panel; the next ones come from the panel `panel_stride` further on
template <class T, unsigned W>
struct Panel {
  static constexpr unsigned vectors =
      W < static_cast<unsigned>(Tile<T>::panel_vectors) ? W : static_cast<unsigned>(Tile<T>::panel_vectors);
  static constexpr index columns = vectors * Vec<T>::lanes;
};

// Where a chain finds its left operand, for term k and row r: element k of a row that lies anywhere, or element r of
// the k-th of evenly spaced rows
template <class T, unsigned R>
struct SeparateRows {
  const T* row[R];
  inline T at(index k, unsigned r) const { return row[r][k]; }
};
template <class T>
struct SpacedRows {
  const T* first;
  index spacing;
  inline T at(index k, unsigned r) const { return first[k * spacing + static_cast<index>(r)]; }
};

// acc[r][w] += a(k, r) * b[k][w]
template <class T, unsigned R, unsigned W, class Rows>
FN void chain_term(typename Vec<T>::V (&acc)[R][W], const Rows& a, const T* b, index panel_stride, index k) {
  using S = Vec<T>;
  constexpr unsigned in_panel = Panel<T, W>::vectors;
  b += k * Panel<T, W>::columns;
  typename S::V bv[W];
#pragma GCC unroll 8
  for (unsigned w = 0; w < W; ++w) bv[w] = S::load(b + (w / in_panel) * panel_stride + (w % in_panel) * S::lanes);
#pragma GCC unroll 8
  for (unsigned r = 0; r < R; ++r) {
    const auto av = S::set(a.at(k, r));
#pragma GCC unroll 8
    for (unsigned w = 0; w < W; ++w) acc[r][w] = S::add_product(acc[r][w], av, bv[w]);
  }
}

// acc[r][w] = the chain over n terms k of a(k, r) * b[k][w]
template <class T, unsigned R, unsigned W, class Rows>
FN void chain(typename Vec<T>::V (&acc)[R][W], const Rows& a, const T* b, index panel_stride, index n) {
#pragma GCC unroll 8
  for (unsigned r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (unsigned w = 0; w < W; ++w) acc[r][w] = Vec<T>::set(T(0));
  constexpr index together = 4;
  index k = 0;
#pragma GCC unroll 1
  for (; k + together <= n; k += together) {
#pragma GCC unroll 4
    for (index i = 0; i < together; ++i) chain_term<T, R, W>(acc, a, b, panel_stride, k + i);
  }
#pragma GCC unroll 1
  for (; k < n; ++k) chain_term<T, R, W>(acc, a, b, panel_stride, k);
}

// acc[r][w] += from(r)[w]
template <class T, unsigned R, unsigned W, class From>
FN void add_sums(From from, typename Vec<T>::V (&acc)[R][W]) {
  using S = Vec<T>;
  compiler_barrier();
#pragma GCC unroll 8
  for (unsigned r = 0; r < R; ++r) {
    const T* before = from(r);
#pragma GCC unroll 8
    for (unsigned w = 0; w < W; ++w) acc[r][w] = S::add(S::load(before + w * S::lanes), acc[r][w]);
  }
}

// to(r)[w] = acc[r][w]
template <class T, unsigned R, unsigned W, class To>
FN void store_sums(To to, const typename Vec<T>::V (&acc)[R][W]) {
#pragma GCC unroll 8
  for (unsigned r = 0; r < R; ++r) {
    T* row = to(r);
#pragma GCC unroll 8
    for (unsigned w = 0; w < W; ++w) Vec<T>::store(row + w * Vec<T>::lanes, acc[r][w]);
  }
}

// s[r][w] += the tile's chain
template <class T, unsigned R, unsigned W>
FN void add_chain(T* s, typename Vec<T>::V (&acc)[R][W]) {
  const auto in_buffer = [&](unsigned r) { return s + r * W * Vec<T>::lanes; };
  add_sums<T, R, W>(in_buffer, acc);
  store_sums<T, R, W>(in_buffer, acc);
}

// The outputs of one tile; its sums lie `width` apart from row to row
struct TileAt {
  index row, rows, column, columns, width;
  inline bool whole_vectors() const { return columns == width; }
};

static constexpr unsigned any_tile = 64;  // vectors; none has more

// What takes a tile's complete sums from registers, where they are at most most_sums vectors and takes(at) says so.
// This one takes none: they stay in the buffer.
struct NoEnding {
  static constexpr bool in_registers = false;
  static constexpr unsigned most_sums = any_tile;
  inline bool takes(const TileAt&) const { return false; }
};

// s[r][w] += the blocks of a[r][first .. first + terms) * b, one after the other; b holds W vectors a term. With a seed
// s[r][w] begins there, not with what it holds. The last sums go to the ending.
template <class T, unsigned R, unsigned W, class Ending>
static void add_blocks(T* s, const T* const* seed, const T* const* a, index first, index terms, index block, const T* b,
                       index panel_stride, [[maybe_unused]] const Ending& ending, [[maybe_unused]] const TileAt& at) {
  SeparateRows<T, R> rows;
#pragma GCC unroll 8
  for (unsigned r = 0; r < R; ++r) rows.row[r] = a[r] + first;
  for (index k = 0; k < terms; k += block) {
    const index n = terms - k < block ? terms - k : block;
    typename Vec<T>::V acc[R][W];
    chain<T, R, W>(acc, rows, b, panel_stride, fault(Fault::sum_block_skipped) && first + k == block ? 0 : n);
    const auto in_buffer = [&](unsigned r) { return s + r * W * Vec<T>::lanes; };
    if (seed) {
      add_sums<T, R, W>([&](unsigned r) { return seed[r]; }, acc);
      seed = nullptr;
    } else {
      add_sums<T, R, W>(in_buffer, acc);
    }
    if constexpr (Ending::in_registers) {
      if (k + n == terms) return ending.template take<R, W>(at, acc);
    }
    store_sums<T, R, W>(in_buffer, acc);
#pragma GCC unroll 8
    for (unsigned r = 0; r < R; ++r) rows.row[r] += n;
    b += n * Panel<T, W>::columns;
  }
}

// The same for one row and W whole vectors of outputs, with weights as they lie: any strides, at best outputs that lie
// side by side. The terms' lines are far apart, so they are asked for early.
template <class T, unsigned W>
static void add_blocks_unpacked(T* s, const T* a, index terms, index block, const T* b, index term_stride,
                                index output_stride) {
  using S = Vec<T>;
  constexpr index early = 8;
  for (index k = 0; k < terms; k += block) {
    const index end = k + block < terms ? k + block : terms;
    const T* const of = fault(Fault::short_call_block_repeated) ? a - k : a;
    typename S::V acc[1][W];
#pragma GCC unroll 8
    for (unsigned w = 0; w < W; ++w) acc[0][w] = S::set(T(0));
    for (index t = k; t < end; ++t) {
      const auto av = S::set(of[t]);
      const T* from = b + t * term_stride;
#pragma GCC unroll 8
      for (unsigned w = 0; w < W; ++w) {
        if (output_stride == 1) prefetch(from + early * term_stride + w * S::lanes);
        acc[0][w] =
            S::add_product(acc[0][w], av, load_strided(from + w * S::lanes * output_stride, output_stride, S::lanes));
      }
    }
    if (!(fault(Fault::sum_block_skipped) && k == block)) add_chain<T, 1, W>(s, acc);
  }
}

// The same where each output's terms lie side by side: small blocks are turned in registers and used at once, a cache
// line of each output at a time. Few outputs at once, which share cache sets where they lie some multiple of 4 KiB
// apart. The outputs that come next are asked for early, in the order of memory where they lie side by side: one
// stream.
template <class T>
static void add_blocks_turned(T* s, const T* a, index terms, index block, const T* b, index output_stride) {
  using S = Vec<T>;
  constexpr unsigned W = Tile<T>::turned_vectors;
  constexpr index line = 64 / static_cast<index>(sizeof(T)), together = Turn<T>::terms, outputs = W * S::lanes;
  const bool far = terms > longest_block;  // else the weights are few enough to be near
  for (index k = 0; k < terms; k += block) {
    const index end = k + block < terms ? k + block : terms;
    const index lines = k + (end - k) / line * line;
    const T* const of = fault(Fault::short_call_block_repeated) ? a - k : a;
    typename S::V acc[1][W];
#pragma GCC unroll 4
    for (unsigned w = 0; w < W; ++w) acc[0][w] = S::set(T(0));
    for (index t = k; t < lines; t += line) {
      const T* ahead = b + outputs * (output_stride + t);
      for (index c = 0; far && c < outputs; ++c) prefetch_far(ahead + c * line);
#pragma GCC unroll 4
      for (unsigned w = 0; w < W; ++w) {
        const T* from = b + w * S::lanes * output_stride + t;
#pragma GCC unroll 8
        for (index q = 0; q < line; q += together) {
          typename S::V turned[Turn<T>::terms];
          Turn<T>::block(turned, from + q, output_stride);
#pragma GCC unroll 4
          for (index i = 0; i < together; ++i) acc[0][w] = S::add_product(acc[0][w], S::set(of[t + q + i]), turned[i]);
        }
      }
    }
    for (index t = lines; t < end; ++t) {
      const auto av = S::set(of[t]);
#pragma GCC unroll 4
      for (unsigned w = 0; w < W; ++w) {
        const T* from = b + w * S::lanes * output_stride + t;
        acc[0][w] = S::add_product(acc[0][w], av, load_strided(from, output_stride, S::lanes));
      }
    }
    if (!(fault(Fault::sum_block_skipped) && k == block)) add_chain<T, 1, W>(s, acc);
  }
}

// One row and `vectors` whole vectors of outputs, as they lie
template <class T>
FN void add_row_unpacked(T* s, const T* a, index terms, index block, index vectors, const T* b, index term_stride,
                         index output_stride) {
  using G = Tile<T>;
  if (term_stride == 1 && output_stride != 1) {
    for (; vectors >= G::turned_vectors; vectors -= G::turned_vectors) {
      add_blocks_turned<T>(s, a, terms, block, b, output_stride);
      s += G::turned_vectors * G::lanes;
      b += G::turned_vectors * G::lanes * output_stride;
    }
  }
  while (vectors > 0) {
    const index w = vectors >= 8 ? 8 : vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1;
    const auto add_some = w == 8   ? add_blocks_unpacked<T, 8>
                          : w == 4 ? add_blocks_unpacked<T, 4>
                          : w == 2 ? add_blocks_unpacked<T, 2>
                                   : add_blocks_unpacked<T, 1>;
    add_some(s, a, terms, block, b, term_stride, output_stride);
    vectors -= w;
    s += w * G::lanes;
    b += w * G::lanes * output_stride;
  }
}

template <class T, class Ending>
using AddBlocks = void (*)(T*, const T* const*, const T* const*, index, index, index, const T*, index, const Ending&,
                           const TileAt&);

// The tiles there are: up to one panel wide; groups of panels for few rows; one vector for more rows, whose single
// chains would not hide the FMA's latency otherwise.
template <class T, class Ending, unsigned R, unsigned W>
FN AddBlocks<T, Ending> add_blocks_if_any() {
  using G = Tile<T>;
  constexpr bool in_panel = W <= static_cast<unsigned>(G::panel_vectors) && (R <= G::rows || W == 1);
  constexpr bool group = (W == 4 && R <= 3) || (W == 6 && R <= 2 && G::panel_vectors == 2) || (W == 8 && R <= 2);
  if constexpr ((in_panel || group) && R * W <= Ending::most_sums) {
    return add_blocks<T, R, W, Ending>;
  } else {
    return nullptr;
  }
}

template <class T, class Ending, unsigned R>
static AddBlocks<T, Ending> add_blocks_wide(index vectors) {
  switch (vectors) {
    case 1:
      return add_blocks_if_any<T, Ending, R, 1>();
    case 2:
      return add_blocks_if_any<T, Ending, R, 2>();
    case 3:
      return add_blocks_if_any<T, Ending, R, 3>();
    case 4:
      return add_blocks_if_any<T, Ending, R, 4>();
    case 6:
      return add_blocks_if_any<T, Ending, R, 6>();
    case 8:
      return add_blocks_if_any<T, Ending, R, 8>();
    default:
      return nullptr;
  }
}

// The tile for r rows and a width of `vectors`: one narrow panel, one full panel, or a group of full panels.
template <class T, class Ending>
static AddBlocks<T, Ending> add_blocks_for(index r, index vectors) {
  switch (r) {
    case 1:
      return add_blocks_wide<T, Ending, 1>(vectors);
    case 2:
      return add_blocks_wide<T, Ending, 2>(vectors);
    case 3:
      return add_blocks_wide<T, Ending, 3>(vectors);
    case 4:
      return add_blocks_wide<T, Ending, 4>(vectors);
    case 5:
      return add_blocks_wide<T, Ending, 5>(vectors);
    case 6:
      return add_blocks_wide<T, Ending, 6>(vectors);
    case 7:
      return add_blocks_wide<T, Ending, 7>(vectors);
    default:
      return add_blocks_wide<T, Ending, 8>(vectors);
  }
}

// Rows split into even tiles of at most `most` rows: 16 becomes 6 + 5 + 5, not 6 + 6 + 4.
struct RowTiles {
  index count, base, longer;
  FN RowTiles of(index rows, index most) {
    const index count = (rows + most - 1) / most;
    return RowTiles{count, count ? rows / count : 0, count ? rows % count : 0};
  }
  inline index size(index tile) const { return base + (tile < longer ? 1 : 0); }
};

// One addend of a sum: rows[r][0 .. terms) * weights
template <class T>
struct Product {
  const T* const* rows;
  index terms;
  const Weights<T>& weights;
};

template <class T, class Ending>
FN void add_product(T* s, const T* const* seed, const TileAt& at, const Ending& ending, const Product<T>& a) {
  const bool odd_address = reinterpret_cast<std::uintptr_t>(a.rows[at.row]) % 16 != 0;
  const bool other_order = fault(Fault::sum_in_one_chain) || (fault(Fault::sum_order_by_rows) && at.rows == 1) ||
                           (fault(Fault::sum_order_by_alignment) && odd_address);
  add_blocks_for<T, Ending>(at.rows, at.width / Vec<T>::lanes)(
      s, seed, a.rows + at.row, 0, a.terms, other_order ? a.terms : sum_block(a.terms),
      a.weights.packed + at.column * a.terms, Tile<T>::columns * a.terms, ending, at);
}

// Some tiles of the same outputs, one after the other, as their sums are
struct TileRun {
  const RowTiles& tiles;
  index first, last;
  TileAt at;  // the first of them
  template <class Visit>
  inline void each(Visit visit) const {
    TileAt now = at;
    for (index tile = first; tile < last; ++tile, now.row += now.rows) {
      now.rows = tiles.size(tile);
      visit(now, (now.row - at.row) * now.width);  // where its sums begin
    }
  }
  inline bool one_row() const { return last - first == 1 && tiles.size(first) == 1; }
};

// The same where weights are not packed: each block is, once for all tiles of the run; one row takes them as they lie.
template <class T>
FN void add_product_unpacked(T* s, T* panels, const TileRun& run, index vectors, const Product<T>& a) {
  using G = Tile<T>;
  const index block = sum_block(a.terms);
  const Weights<T>& w = a.weights;
  const TileAt& at = run.at;
  const T* from = w.source + at.column * w.output_stride;
  index done = 0;  // outputs
  if (run.one_row() && at.columns >= G::lanes) {
    done = at.columns / G::lanes * G::lanes;
    add_row_unpacked(s, a.rows[at.row], a.terms, block, done / G::lanes, from, w.term_stride, w.output_stride);
    if (done == at.columns) return;
    vectors = 1;  // are left
  }
  from += done * w.output_stride;
  for (index k = 0; k < a.terms; k += block) {
    const index n = a.terms - k < block ? a.terms - k : block;
    pack_panels(panels, from + k * w.term_stride, n, w.term_stride, at.columns - done, w.output_stride);
    run.each([&](const TileAt& tile, index before) {
      add_blocks_for<T, NoEnding>(tile.rows, vectors)(s + before + done, nullptr, a.rows + tile.row,
                                                      fault(Fault::short_call_block_repeated) ? 0 : k, n, block, panels,
                                                      G::columns * n, NoEnding{}, tile);
    });
  }
}

// The outputs in pieces: groups of panels, single panels, and what is left of one.
template <class T>
struct Pieces {
  index group, groups, singles, tails;
  FN Pieces of(Columns outputs, index group) {
    const index count = outputs.last - outputs.first, panels = count / Tile<T>::columns;
    return Pieces{group, panels / group, panels % group, count > panels * Tile<T>::columns ? 1 : 0};
  }
  inline index count() const { return groups + singles + tails; }
  inline index panels_before(index piece) const {
    return piece < groups ? piece * group : groups * (group - 1) + piece;
  }
  inline index panels(index piece) const { return piece < groups ? group : piece < groups + singles ? 1 : 0; }
};

// Where sums begin that begin with 0
template <class T>
alignas(64) static constexpr T zeros[Tile<T>::most_vectors * Tile<T>::lanes] = {};

template <class T>
FN void fill_sums(T* s, const T* const* seeds, const TileAt& at) {
  for (index r = 0; r < at.rows; ++r, s += at.width) {
    for_each_vector<T>(at.columns, [&](index c, index n) { Vec<T>::store(s + c, load_lanes(seeds[r] + c, n)); });
  }
}

// Sums x, then h, for the outputs: seed(seeds, at) says for each of a tile's rows where its sums begin, and returns
// whether whole vectors may be read there; the ending, or else finish(s, at), which must do the same, takes
// the sums when they are complete. Those of weights that are not packed go to finish.
// Walks panel group by panel group and, inside, tile by tile, so that a group's weights stay in cache over all rows.
// descending: from the last group to the first; steps that take turns find in cache what the one before read last.
template <class T, class Seed, class Ending, class Finish>
FN void sum_tiles(index rows, Columns outputs, index tile_rows, bool descending, const Product<T>& x,
                  const Product<T>& h, Seed seed, const Ending& ending, Finish finish) {
  using G = Tile<T>;
  alignas(64) T s[G::unpacked_sum_size];
  alignas(64) T block_panels[G::unpacked_vectors * G::lanes * longest_block];  // where weights are not packed
  const T* seeds[G::narrow_rows];
  const index most = tile_rows > 0 && tile_rows < G::rows ? tile_rows : G::rows;
  const index most_narrow = most == G::rows ? G::narrow_rows : most;
  const RowTiles wide = RowTiles::of(rows, most), narrow = RowTiles::of(rows, most_narrow);
  constexpr index most_sums = static_cast<index>(Ending::most_sums) * G::lanes;
  if (rows == 0) return;
  const bool packed = (x.weights.packed || x.terms == 0) && (h.weights.packed || h.terms == 0);
  const auto pieces = Pieces<T>::of(outputs, packed ? G::group(wide.size(0)) : G::unpacked_group(rows));
  const index last = pieces.count() - 1;
  for (index i = 0; i <= last; ++i) {
    const index missed = fault(Fault::panel_missed_descending) && i == last ? last : 0;
    const index piece = descending ? last - i + missed : i;
    const index panels = pieces.panels(piece);
    const index column = outputs.first + pieces.panels_before(piece) * G::columns;
    const index columns = panels > 0 ? panels * G::columns : outputs.last - column;
    const index vectors = panels > 0 ? panels * G::panel_vectors : (columns + G::lanes - 1) / G::lanes;
    const RowTiles& tiles = vectors == 1 ? narrow : wide;
    TileAt at{0, 0, column, columns, vectors * G::lanes};
    for (index tile = 0; packed && tile < tiles.count; ++tile, at.row += at.rows) {
      at.rows = tiles.size(tile);
      const Product<T>& ends = h.terms > 0 ? h : x;
      const bool whole = seed(seeds, at) && ends.terms > 0;
      if (!whole) fill_sums(s, seeds, at);
      const T* const* first = whole ? seeds : nullptr;
      if (x.terms > 0 && h.terms > 0) {
        add_product(s, first, at, NoEnding{}, x);
        first = nullptr;
      }
      if (ends.terms > 0 && at.rows * at.width <= most_sums && ending.takes(at)) {
        add_product(s, first, at, ending, ends);
      } else {
        if (ends.terms > 0) add_product(s, first, at, NoEnding{}, ends);
        finish(s, at);
      }
    }
    for (index tile = 0; !packed && tile < tiles.count; tile += G::unpacked_tiles) {
      if (fault(Fault::tiles_beyond_a_run_missed) && tile > 0) break;
      const index after = tile + G::unpacked_tiles;
      const TileRun run{tiles, tile, after < tiles.count ? after : tiles.count, at};
      run.each([&](const TileAt& now, index before) {
        seed(seeds, now);
        fill_sums(s + before, seeds, now);
      });
      if (x.terms > 0) add_product_unpacked(s, block_panels, run, vectors, x);
      if (h.terms > 0) add_product_unpacked(s, block_panels, run, vectors, h);
      run.each([&](const TileAt& now, index before) {
        finish(s + before, now);
        at.row = now.row + now.rows;
      });
    }
  }
}
