// The register tile: R rows x W vectors of outputs, summed in the canonical order (sum_order.h).
//
// A group of panels is worked on at once when there are few rows, so that about tile_rows * panel_vectors independent
// chains hide the latency of the FMA. The running sum s waits in a small buffer while a block's chain is in registers.

template <class T>
struct Tile {
  using S = Vec<T>;
  using V = typename S::V;
  static constexpr index lanes = S::lanes;
  static constexpr index panel_vectors = S::registers == 32 ? 4 : 2;
  static constexpr index rows = 6;
  static constexpr index columns = panel_vectors * lanes;
  static constexpr index most_vectors = 8;                   // of one row, over a group of panels
  static constexpr index sum_stride = most_vectors * lanes;  // between the rows of the sum buffer
  static constexpr index sum_size = rows * sum_stride;

  // panels worked on at once with r rows
  FN index group(index r) {
    if (r == 1) return most_vectors / panel_vectors;
    if (r == 2) return panel_vectors == 4 ? 2 : 3;
    if (r == 3) return panel_vectors == 4 ? 1 : 2;
    return 1;
  }
};

// s[r][w] += sum over the blocks of a[r][0 .. terms) * b, or = where fresh; b holds W vectors a term: `panel_vectors`
// from each panel of a group, whose panels lie `panel_stride` apart, or one narrow panel of W vectors.
template <class T, unsigned R, unsigned W>
static void add_blocks(T* s, const T* const* a, index terms, const T* b, index panel_stride, bool fresh) {
  using S = Vec<T>;
  using V = typename S::V;
  using G = Tile<T>;
  constexpr index L = S::lanes;
  constexpr index in_panel = W < G::panel_vectors ? W : G::panel_vectors;
  constexpr index step = in_panel * L;
  const bool other_order = fault(Fault::sum_in_one_chain) || (fault(Fault::sum_order_by_rows) && R == 1) ||
                           (fault(Fault::sum_order_by_alignment) && reinterpret_cast<std::uintptr_t>(a[0]) % 16 != 0);
  const index block = other_order ? terms : sum_block(terms);
  const T* row[R];
#pragma GCC unroll 8
  for (unsigned r = 0; r < R; ++r) row[r] = a[r];
  for (index k0 = 0; k0 < terms; k0 += block) {
    const index n = terms - k0 < block ? terms - k0 : block;
    V acc[R][W];
#pragma GCC unroll 8
    for (unsigned r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (unsigned w = 0; w < W; ++w) acc[r][w] = S::set(T(0));
#pragma GCC unroll 2
    for (index k = 0; k < n; ++k) {
      V bv[W];
#pragma GCC unroll 8
      for (unsigned w = 0; w < W; ++w) bv[w] = S::load(b + (w / in_panel) * panel_stride + (w % in_panel) * L);
#pragma GCC unroll 8
      for (unsigned r = 0; r < R; ++r) {
        const V av = S::set(row[r][k]);
#pragma GCC unroll 8
        for (unsigned w = 0; w < W; ++w) acc[r][w] = S::fma(av, bv[w], acc[r][w]);
      }
      b += step;
    }
#pragma GCC unroll 8
    for (unsigned r = 0; r < R; ++r) {
      row[r] += n;
#pragma GCC unroll 8
      for (unsigned w = 0; w < W; ++w) {
        T* at = s + r * G::sum_stride + w * L;
        const V chain = fault(Fault::sum_block_skipped) && k0 == block ? S::set(T(0)) : acc[r][w];
        S::store(at, S::add(fresh ? S::set(T(0)) : S::load(at), chain));
      }
    }
    fresh = false;
  }
}

template <class T>
using AddBlocks = void (*)(T*, const T* const*, index, const T*, index, bool);

template <class T, unsigned R>
static AddBlocks<T> add_blocks_wide(index vectors) {
  switch (vectors) {
    case 1:
      return add_blocks<T, R, 1>;
    case 2:
      return add_blocks<T, R, 2>;
    case 3:
      return Tile<T>::panel_vectors == 4 ? add_blocks<T, R, 3> : nullptr;
    case 4:
      return Tile<T>::panel_vectors == 4 || R <= 3 ? add_blocks<T, R, 4> : nullptr;
    case 6:
      return Tile<T>::panel_vectors == 2 && R <= 2 ? add_blocks<T, R, 6> : nullptr;
    case 8:
      return R <= 2 ? add_blocks<T, R, 8> : nullptr;
    default:
      return nullptr;
  }
}

// The tile for r rows and a width of `vectors`: one narrow panel, one full panel, or a group of full panels.
template <class T>
static AddBlocks<T> add_blocks_for(index r, index vectors) {
  switch (r) {
    case 1:
      return add_blocks_wide<T, 1>(vectors);
    case 2:
      return add_blocks_wide<T, 2>(vectors);
    case 3:
      return add_blocks_wide<T, 3>(vectors);
    case 4:
      return add_blocks_wide<T, 4>(vectors);
    case 5:
      return add_blocks_wide<T, 5>(vectors);
    default:
      return add_blocks_wide<T, 6>(vectors);
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

// Walks the outputs panel group by panel group and, inside, the rows tile by tile, so that a group's weights stay in
// the first cache level over all rows. visit(first row, row count, first column, column count, add), where
// add.sum(s, a + first row, terms, packed, fresh) adds one operand's blocks for this tile; fresh: s starts from 0.
template <class T>
struct TileSum {
  AddBlocks<T> add_blocks;
  index column;
  inline void sum(T* s, const T* const* a, index terms, const T* packed, bool fresh) const {
    add_blocks(s, a, terms, packed + column * terms, Tile<T>::columns * terms, fresh);
  }
};

template <class T, class Visit>
FN void for_each_tile(index rows, index outputs, index tile_rows, Visit visit) {
  using G = Tile<T>;
  const index most = tile_rows > 0 && tile_rows < G::rows ? tile_rows : G::rows;
  const RowTiles tiles = RowTiles::of(rows, most);
  if (tiles.count == 0) return;
  const index group = G::group(tiles.size(0));
  for (index column = 0; column < outputs;) {
    const index whole = (outputs - column) / G::columns;  // full panels left
    const index panels = whole >= group ? group : whole > 0 ? 1 : 0;
    const index left = outputs - column;
    const index columns = panels > 0 ? panels * G::columns : left;
    const index vectors = panels > 0 ? panels * G::panel_vectors : (left + G::lanes - 1) / G::lanes;
    index first = 0;
    for (index tile = 0; tile < tiles.count; ++tile) {
      const index r = tiles.size(tile);
      visit(first, r, column, columns, TileSum<T>{add_blocks_for<T>(r, vectors), column});
      first += r;
    }
    column += columns;
  }
}

// Vectors of columns [0, columns) with the number of valid lanes of each.
template <class T, class Visit>
FN void for_each_vector(index columns, Visit visit) {
  for (index c = 0; c < columns; c += Vec<T>::lanes) {
    visit(c, columns - c < Vec<T>::lanes ? columns - c : Vec<T>::lanes);
  }
}

template <class T>
FN typename Vec<T>::V load_lanes(const T* p, index n) {
  return n == Vec<T>::lanes ? Vec<T>::load(p) : Vec<T>::load_part(p, n);
}

template <class T>
FN void store_lanes(T* p, typename Vec<T>::V v, index n) {
  if (n == Vec<T>::lanes) {
    Vec<T>::store(p, v);
  } else {
    Vec<T>::store_part(p, v, fault(Fault::tail_lane_lost) ? n - 1 : n);
  }
}

// The lines of `rows` rows that the tile's end will touch; asked for before the sums, they are there after them
template <class T>
FN void prefetch_rows(const T* const* rows, index first, index count, index column, index columns, index unit) {
  if (!rows) return;
  for (index r = first; r < first + count; ++r) {
    for (index c = 0; c < columns; c += 64 / static_cast<index>(sizeof(T))) prefetch(rows[r] + (column + c) * unit);
  }
}

// Elements p[0], p[unit], ...: any unit, also 0 and negative
template <class T>
FN typename Vec<T>::V load_strided(const T* p, index unit, index n) {
  if (unit == 1) return load_lanes(p, n);
  T part[Vec<T>::lanes] = {};
  for (index i = 0; i < n; ++i) part[i] = p[i * unit];
  return Vec<T>::load(part);
}
