// Who computes what on the tensor cores. A warp multiplies the w_hh of 16 hidden units, in slice s of S of its columns,
// by v of 8 batch rows (or of N = 16: twice the same): mma m16n8k16 for float16 and bfloat16, m16n8k8 for tf32. Both
// read words of 4 bytes: of the four A words and two B words of lane l, with g = l / 4 and q = l % 4, by PTX ISA,
//
//   A   rows g, g + 8, g, g + 8; columns q, q, q + 4, q + 4 (in words)        C   rows g, g, g + 8, g + 8;
//   B   column g; rows q, q + 4                                                    columns 2 q, 2 q + 1, 2 q, 2 q + 1
//
// In which order the columns of w_hh are added is ours to choose, and so is which unit a row of A is:
//
//   row g, g + 8 of A      units 2 g, 2 g + 1 of the warp: neighbours, so that 16-bit v are sent as one word
//   chunk c of a lane      16 bytes of a row of w_hh or v, at (4 c + q) 16 bytes: words 0 and 1 are those of the first
//                          mma, 2 and 3 those of the second
//
//   sum of a unit          chains of mma over its chunks, ascending, from 0; the chains, then the slices are added
//
// So a lane ends with units 2 g, 2 g + 1 and, of each 8 batch rows, with rows 2 q, 2 q + 1 (S = 1) or 2 q + s (S = 2).
#pragma once

#include "call.cuh"

namespace fastrnn::gpu {

// tf32x3: w v = w_big v_big + (w_big v_rest + w_rest v_big), each a tf32; the roundings of float32, nearly
enum class Precision { f16, bf16, tf32x3, tf32 };

// Every tile that is compiled: X(slices, batch rows, chunks in registers, precision). The other chunks lie in shared
// memory.
#define FASTRNN_MMA_BLOCK_TILES(X) X(1, 8, 4, f16) X(1, 8, 4, bf16) X(1, 8, 8, tf32x3) X(1, 8, 8, tf32)
#define FASTRNN_MMA_CLUSTER_TILES(X) \
  X(2, 8, 16, f16)                   \
  X(2, 8, 16, bf16)                  \
  X(2, 8, 16, tf32x3) X(2, 8, 14, tf32) X(2, 16, 16, f16) X(2, 16, 16, bf16) X(2, 16, 12, tf32x3) X(2, 16, 14, tf32)

constexpr int mma_units = 16, mma_rows = 8, mma_warps = 8;

constexpr int mma_element_bytes(Precision precision) {
  return precision == Precision::f16 || precision == Precision::bf16 ? 2 : 4;
}

// Of a block: threads, and bytes of dynamic shared memory
FASTRNN_HD int mma_threads(int64 units, int slices) { return static_cast<int>(units / mma_units) * slices * 32; }

FASTRNN_HD int64 mma_columns(const Call& call, int slices, int element_bytes) {
  const int64 columns = slices * call.chunks * (64 / element_bytes), units = call.cluster * call.units;
  return columns > units ? columns : units;
}

// Words of a row of v: 16 more than a multiple of 32, so that 8 lanes that read 16 bytes each meet every bank once
FASTRNN_HD int mma_v_stride(const Call& call, int slices, int element_bytes) {
  const int64 words = mma_columns(call, slices, element_bytes) * element_bytes / 4;
  return static_cast<int>((words + 31) / 32 * 32 + 16);
}

FASTRNN_HD int mma_partial_bytes(const Call& call, int slices, int rows) {
  return slices == 1 ? 0 : mma_threads(call.units, slices) * (rows / mma_rows) * 8;
}

FASTRNN_HD int64 mma_shared_bytes(const Call& call, int slices, int rows, int element_bytes, int registers) {
  const int64 more = call.chunks > registers ? call.chunks - registers : 0;
  return 16 + 2 * rows * mma_v_stride(call, slices, element_bytes) * 4 + mma_partial_bytes(call, slices, rows) +
         more * 2 * mma_threads(call.units, slices) * 16;
}

template <int S, int N, int RegisterChunks, Precision P>
struct MmaTile {
  static_assert((S == 1 || S == 2) && N % mma_rows == 0 && N <= 16, "tile");
  static constexpr Precision precision = P;
  static constexpr int slices = S, batch = N, register_chunks = RegisterChunks;
  static constexpr int element_bytes = mma_element_bytes(P);
  static constexpr int lane_columns = 16 / element_bytes;       // of a chunk
  static constexpr int tiles = N / mma_rows;                    // of 8 batch rows
  static constexpr int chains = 4 / tiles;                      // of an mma's sums, for latency
  static constexpr int rests = P == Precision::tf32x3 ? 2 : 0;  // chains of w_big v_rest + w_rest v_big
  static constexpr int own_rows = 2 / S;                        // of 8
  static constexpr int groups = tiles * own_rows;               // of two units of one row
  static constexpr int own_words = element_bytes / 2;           // of a group: of its two units
  static constexpr int replicas = 4 / own_words;                // lanes 4 apart that put their words together

  static FASTRNN_HD int slice_of(int warp) { return warp % S; }
  static FASTRNN_HD int unit_of(int warp, int lane) {  // the first of two, in the block
    return warp / S * mma_units + lane / 4 * 2;
  }
  static FASTRNN_HD int row_of(int warp, int lane, int group) {  // in the batch tile
    const int row = lane % 4 * 2 + (S == 1 ? group % 2 : slice_of(warp));
    return group / own_rows * mma_rows + row;
  }
  static FASTRNN_HD int64 column_of(const Call& call, int warp, int lane, int chunk) {
    return ((slice_of(warp) * call.chunks + chunk) * 4 + lane % 4) * lane_columns;
  }

  // ---- shared memory of a block: two barriers, v (2, N, v_stride), the sums for the other slice, weights

  static FASTRNN_HD int v(const Call& call, int buffer, int row, int64 column) {  // in words, from v's start
    return (buffer * N + row) * mma_v_stride(call, S, element_bytes) + static_cast<int>(column * element_bytes / 4);
  }
  static FASTRNN_HD int v_words(const Call& call) { return 2 * N * mma_v_stride(call, S, element_bytes); }
  // In pairs of floats, from their start: what the warp's slice is to add, or what it leaves for the other slice
  static FASTRNN_HD int partial(int warp, int lane, int tile, bool for_other) {
    const int receiver = for_other ? warp ^ 1 : warp;
    return (receiver * tiles + tile) * 32 + lane;
  }
  static FASTRNN_HD int partials_start(const Call& call) { return 16 + v_words(call) * 4; }  // bytes
  static FASTRNN_HD int weights_start(const Call& call) { return partials_start(call) + mma_partial_bytes(call, S, N); }
  static FASTRNN_HD int weights(int chunk, int of_two, int thread, int threads) {  // in Fours
    return ((chunk - register_chunks) * 2 + of_two) * threads + thread;
  }
  static FASTRNN_HD int64 bytes(const Call& call) {
    return mma_shared_bytes(call, S, N, element_bytes, register_chunks);
  }
  static FASTRNN_HD unsigned bytes_of_step(const Call& call) {  // that each block receives
    return static_cast<unsigned>(N * call.cluster * call.units * element_bytes);
  }
};

// ---- words

FASTRNN_HD float to_tf32(float a) {  // nearest, ties away from 0; NaN stays NaN, infinity itself
#if defined(__CUDA_ARCH__)
  unsigned u;
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(a));
  return from_bits(u);
#else
  const unsigned u = bits(a);
  if ((u & 0x7f800000u) == 0x7f800000u) return a;
  return from_bits((u + 0x1000u) & 0xffffe000u);
#endif
}

// A number as the sum of two tf32, but for 2^-23 of it; of an infinity NaN is left
struct TwoTf32 {
  unsigned big, rest;
};

FASTRNN_HD TwoTf32 split(unsigned word) {
  const float a = from_bits(word), big = to_tf32(a);
  return {bits(big), bits(to_tf32(add(a, -big)))};
}

template <Precision P>
FASTRNN_HD unsigned word_of(float a) {  // of one number of 4 bytes
  return bits(P == Precision::tf32 ? to_tf32(a) : a);
}

template <Precision P>
FASTRNN_HD unsigned word_of(float first, float second) {  // of two numbers of 2 bytes
  const unsigned low = P == Precision::f16 ? to_f16(first) : to_bf16(first);
  const unsigned high = P == Precision::f16 ? to_f16(second) : to_bf16(second);
  return low | high << 16;
}

}  // namespace fastrnn::gpu
