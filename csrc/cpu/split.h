// How work is cut into tasks and steps; decides speed only, never bits.
#pragma once

#include "../rnn.h"
#include "kernels.h"

namespace fastrnn {

constexpr index most_step_slices = 16;
constexpr double step_slice_flops = 5e4;
constexpr index most_block_rows = 128;  // batch rows of one task; bounds the pointer arrays on the stack

struct RowBlocks {
  index count, rows, batch;
  index first(index block) const { return block * rows; }
  index last(index block) const { return (block + 1) * rows < batch ? (block + 1) * rows : batch; }
};

// Few large blocks, since each block streams all weights once a step; two a thread when they stay large, so that a
// thread that is held up can be helped out.
inline RowBlocks split_rows(index batch, int threads, index tile_rows, index forced) {
  index rows = forced;
  if (rows <= 0) {
    index blocks = (batch + most_block_rows - 1) / most_block_rows;
    if (threads > 1) {
      const index twice = 2 * static_cast<index>(threads);
      const index wanted = batch >= twice * 4 * tile_rows ? twice : threads;
      blocks = blocks > wanted ? (blocks + wanted - 1) / wanted * wanted : wanted;
    }
    rows = (batch + blocks - 1) / (blocks > 0 ? blocks : 1);
  }
  rows = rows < 1 ? 1 : rows > most_block_rows ? most_block_rows : rows;
  return RowBlocks{(batch + rows - 1) / rows, rows, batch};
}

// Threads that share the units of every step rather than the rows: where there are few rows for each, and each gets
// work for more than the meeting after a step takes (some 200 ns).
inline index step_slices(const Shape& shape, int threads, index tile_columns, index forced) {
  const index panels = (shape.H + tile_columns - 1) / tile_columns;
  index slices = forced;
  if (slices <= 0) {
    const double worth = 2.0 * static_cast<double>(shape.B) * static_cast<double>(shape.H * shape.H) / step_slice_flops;
    slices = shape.B >= 4 * static_cast<index>(threads) ? 1 : worth < threads ? static_cast<index>(worth) : threads;
  }
  slices = slices < most_step_slices ? slices : most_step_slices;
  return slices < 1 ? 1 : slices < panels ? slices : panels;
}

// The units of one slice, in whole panels
inline Columns slice_units(index slice, index slices, index H, index tile_columns) {
  const index panels = (H + tile_columns - 1) / tile_columns;
  const index last = (slice + 1) * panels / slices * tile_columns;
  return Columns{slice * panels / slices * tile_columns, last < H ? last : H};
}

// Threads worth waking: below about 50 us of work the caller is faster alone.
inline int useful_threads(int threads, double flops) {
  const double most = flops / 4e6;
  return most < 1 ? 1 : most < threads ? static_cast<int>(most) : threads;
}

// Rows of a step that are computed between two looks at the clock when one step alone takes long: some 20 ms
inline index rows_per_check(double flops_per_row, index tile_rows) {
  const double wanted = 1e9 / (flops_per_row + 1);
  const index rows = wanted < most_block_rows ? static_cast<index>(wanted) : most_block_rows;
  return rows > 4 * tile_rows ? rows : 4 * tile_rows;
}

// Whether weights are read often enough to pack all of them first. One or two tiles of rows in all take them as they
// lie, and one step of one block of rows packs them on its way, without a copy in memory.
inline bool worth_packing(index steps, index batch, index tile_rows) {
  return (steps > 1 || batch > most_block_rows) && steps * ((batch + tile_rows - 1) / tile_rows) > 2;
}

// Steps between two looks at the clock, some 50 us apart
inline index steps_per_check(double flops_per_step) {
  const double steps = 4e6 / (flops_per_step + 1);
  return steps < 1 ? 1 : steps > 4096 ? 4096 : static_cast<index>(steps);
}

}  // namespace fastrnn
