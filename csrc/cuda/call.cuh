// One call of a kernel: h_t = act(xp_t + w_hh p_t), or its BPTT, for one direction of one layer. The caller's library
// computes xp = w_ih x + b_ih + b_hh before, and d_x, d_w_ih, d_w_hh, d_b from d_z after.
//
// Call is passed by value; every field has 8 bytes, so a table of int64 is one, too. What is not given is null. Arrays
// are of the type `dtype` says and lie on the device; strides count elements.
//
// The kernels (kernels.cu; cluster.cu from sm_90 on), all with 1-D grids and blocks, launched on any stream:
//
//   rnn_forward_block_K_B, rnn_backward_block_K_B (Call)       float32, float16, bfloat16; all T steps in one launch
//     K = 8 or 32 lanes share a sum, B = 1 or 4 batch rows to a block. `units` = H rounded up to a multiple of
//     256 / K, at most 2048 / K; `chunks` = ceil(H / (4 K)); `cluster` = 1.
//     grid = ceil(B / B_tile), block = units K / 8 threads, dynamic shared memory = shared_bytes() of tile.cuh.
//   rnn_forward_cluster_K_B, ..._cluster_barrier_K_B (Call)    the same over a cluster of C blocks, K = 16 or 32
//     `units` = ceil(H / C) rounded up as above, `cluster` = C; grid = C ceil(B / B_tile), cluster dimension C.
//   rnn_forward_mma_block_N_P, ..._mma_cluster_N_P (Call)      the same on tensor cores: N = 8 or 16 batch rows,
//     P = f16, bf16, tf32x3, tf32; blocks S = 1, clusters S = 2 slices of w_hh's columns. `units` = ceil(H / C)
//     rounded up to a multiple of 16, at most 128 / S; `chunks` = ceil(ceil(H element bytes / 64) / S);
//     block = 2 S units threads, dynamic shared memory = mma_shared_bytes() of mma_tile.cuh.
//   rnn_forward_step_f32, rnn_backward_step_f32 and ..._f64 (Call, int64 i)   any H, any dtype (f64 for float64)
//     one launch for i = -1, 0, ..., T - 1 in this order; `workspace` holds step_workspace_bytes().
//     grid = ceil(H / 32) ceil(B / 4), block = 128 threads, no dynamic shared memory.
//
// A kernel writes every element of output, h_n or of d_z, d_h_0; xp may be output itself (same strides).
// Beyond a row's length output and d_z are 0; nothing of the inputs is read there.
#pragma once

#include "hd.cuh"

namespace fastrnn::gpu {

struct Call {
  int64 T, B, H;
  // Element (j, k) at j w_row + k w_unit: w_hh forward, its transpose backward (strides swapped, or a transposed copy)
  const void* w;
  int64 w_row, w_unit;
  // forward: element (t, b, j) at t step + b row + j, or, packed, (packed_start[t] + b) row + j
  const void* xp;
  int64 xp_step, xp_row;
  void* output;  // written forward, read backward
  int64 output_step, output_row;
  const void* h_0;  // (B, H)
  int64 h_0_row, h_0_unit;
  void* h_n;
  int64 h_n_row;
  // backward
  const void* d_output;
  int64 d_output_step, d_output_row, d_output_unit;
  const void* d_h_n;
  int64 d_h_n_row, d_h_n_unit;
  void* d_z;
  int64 d_z_step, d_z_row;
  void* d_h_0;
  int64 d_h_0_row;
  // options, as in csrc/rnn.h; masks C-contiguous
  const int64* lengths;            // (B)
  const int64* packed_start;       // (T + 1): the data rows before step t
  const unsigned char* reset;      // (T, B) or (N)
  const void* recurrent_mask;      // (B, H)
  const unsigned char* keep_mask;  // (T, B, H) or (N, H)
  void* workspace;
  int64 dtype;  // Storage
  int64 relu, reverse;
  int64 cluster, units, chunks;  // blocks of a cluster; hidden units of a block; chunks of 4 columns of a lane
};

static_assert(sizeof(Call) == 41 * 8, "a table of 8-byte fields");

// The data row of step t, batch row b; none where the row has ended.
struct DataRow {
  bool exists;
  int64 t, b, at;  // at: the row's number in arrays of one row after the other
};

FASTRNN_HD DataRow data_row(const Call& call, int64 t, int64 b) {
  if (call.packed_start) {
    const int64 start = call.packed_start[t];
    return {b < call.packed_start[t + 1] - start, t, b, start + b};
  }
  return {!call.lengths || t < call.lengths[b], t, b, t * call.B + b};
}

FASTRNN_HD int64 offset(const Call& call, const DataRow& row, int64 step, int64 stride) {
  return call.packed_start ? row.at * stride : row.t * step + row.b * stride;
}

// Where a kernel writes zeros: the row has ended, but its place is there.
FASTRNN_HD bool is_blank(const Call& call, const DataRow& row) { return !row.exists && !call.packed_start; }

FASTRNN_HD int64 step_workspace_bytes(const Call& call) {  // v (2, B, H) and the state (B, H), in the sums' type
  return 3 * call.B * call.H * (call.dtype == f64 ? 8 : 4);
}

}  // namespace fastrnn::gpu
