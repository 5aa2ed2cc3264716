// The canonical sum: the one order in which every path adds, so that a row's result has the same bits whatever the
// batch, the time range, the thread count, the alignment or the register tile.
//
// z    = b; then for each block of sum_block(I) consecutive k of x, ascending: z += chain(block); then the same over
//        the state with sum_block(H). A chain is one ascending sequence of FMAs that starts from 0.
// d_h, d_x likewise over j in blocks of sum_block(H), from 0; then the recurrent mask; then what zoneout or the leak
//        passes on; then d_output. d_x has the sum alone.
// d_w: blocks of gradient_steps(B) whole time steps, counted from the last processed step backwards. The rows of a
//        block, steps descending, rows ascending in length order, are cut into chains of gradient_chain rows. The sum
//        of a block is its chains added in order, from 0; d_w is the blocks added in order, from 0.
// d_b, d_alpha: likewise with chains of bias_chain rows; what rounding loses when blocks are added is summed and added
//        last.
#pragma once

#include "../rnn.h"

namespace fastrnn {

// Short sums take short blocks: several independent chains hide the latency at B = 1.
static constexpr index longest_block = 128;
static constexpr index sum_block(index terms) { return terms <= 96 ? 32 : longest_block; }

// About sqrt(rows) is the most accurate; three levels keep it near that from 32 rows to millions.
static constexpr index gradient_rows = 256;
static constexpr index gradient_chain = 32;
static constexpr index bias_chain = 16;

static constexpr index gradient_steps(index batch) {
  return batch >= gradient_rows ? 1 : (gradient_rows + batch - 1) / (batch > 0 ? batch : 1);
}

}  // namespace fastrnn
