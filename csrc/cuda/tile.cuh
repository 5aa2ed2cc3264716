// Who computes what. A warp owns 256 / K hidden units: K lanes share the sums of 8 units, 32 / K such groups a warp.
// Lane l of a group multiplies columns (c K + l) 4 ... + 3 of chunk c = 0, 1, ...: 16 bytes a lane, K lanes side by
// side.
//
//   sum of lane l    a chain of FMAs over its chunks, ascending, from 0
//   sum of a unit    the lanes' sums, added pairwise over the lane masks 4, 2, 1, then K / 2, ..., 8
//
// A stage of this butterfly halves what each lane holds, as long as it holds more than one sum: the lane whose bit is
// set keeps the upper half. So lane l ends with unit l % 8 of its group and with the batch rows
// batch_of(l, 0 ... pairs - 1); where no sum is left to share, `replicas` lanes hold the same.
#pragma once

#include "call.cuh"

namespace fastrnn::gpu {

// Every tile that is compiled: X(K lanes, batch rows, chunks of 4 columns in registers). As many chunks as find room
// beside the sums and the addresses; the others lie in shared memory.
#define FASTRNN_BLOCK_TILES(X) X(8, 1, 5) X(8, 4, 3) X(32, 1, 5) X(32, 4, 4)
#define FASTRNN_CLUSTER_TILES(X) X(16, 1, 5) X(16, 4, 4) X(32, 1, 5) X(32, 4, 4)
#define FASTRNN_CLUSTER_BARRIER_TILES(X) X(16, 4, 4) X(32, 1, 5)

constexpr int group_units = 8;

template <int K, int B, int RegisterChunks>
struct Tile {
  static_assert((K == 8 || K == 16 || K == 32) && (B == 1 || B == 2 || B == 4), "tile");
  static constexpr int lanes = K, batch = B, register_chunks = RegisterChunks;
  static constexpr int warp_units = 256 / K;
  static constexpr int spread = K / group_units;
  static constexpr int pairs = B > spread ? B / spread : 1;
  static constexpr int replicas = spread > B ? spread / B : 1;
  static constexpr int sums = group_units * B;

  static FASTRNN_HD int unit_of(int warp, int lane) {  // in the block
    return warp * warp_units + lane / K * group_units + lane % group_units;
  }
  static FASTRNN_HD int batch_of(int lane, int pair) { return lane % K / group_units / replicas * pairs + pair; }
  static FASTRNN_HD int replica_of(int lane) { return lane % K / group_units % replicas; }
  static FASTRNN_HD int column_of(int chunk, int lane) { return (chunk * K + lane % K) * 4; }
};

// ---- shared memory of a block: two barriers, v (2, B, v_stride), the weights that found no register

template <class Tile>
struct Layout {
  static FASTRNN_HD int v_stride(const Call& call) {
    const int columns = static_cast<int>(call.chunks) * 4 * Tile::lanes;
    const int units = static_cast<int>(call.cluster * call.units);
    return columns > units ? columns : units;
  }
  static constexpr int barrier_bytes = 16;
  static FASTRNN_HD int v(const Call& call, int buffer, int b, int k) {  // in floats, from v's start
    return (buffer * Tile::batch + b) * v_stride(call) + k;
  }
  static FASTRNN_HD int weights(int chunk, int r, int thread, int threads) {  // in Fours, from the weights' start
    return ((chunk - Tile::register_chunks) * group_units + r) * threads + thread;
  }
  static FASTRNN_HD int weights_start(const Call& call) {  // bytes
    return barrier_bytes + 2 * Tile::batch * v_stride(call) * 4;
  }
  static FASTRNN_HD int64 bytes(const Call& call, int threads) {
    const int64 chunks = call.chunks > Tile::register_chunks ? call.chunks - Tile::register_chunks : 0;
    return weights_start(call) + chunks * group_units * threads * 16;
  }
};

FASTRNN_HD int threads_of(int64 units, int k_lanes) { return static_cast<int>(units * k_lanes / group_units); }

// Bytes of dynamic shared memory of rnn_*_block_K_B and rnn_*_cluster_K_B; `registers`: chunks kept in registers
FASTRNN_HD int64 shared_bytes(const Call& call, int k_lanes, int batch, int registers) {
  const int64 columns = call.chunks * 4 * k_lanes, units = call.cluster * call.units;
  const int64 more = call.chunks > registers ? call.chunks - registers : 0;
  return 16 + 2 * batch * (columns > units ? columns : units) * 4 +
         more * group_units * threads_of(call.units, k_lanes) * 16;
}

// ---- the exchange of v: step i reads buffer i % 2, and barrier i % 2 completes once for every use of its buffer

FASTRNN_HD int buffer_of(int64 i) { return static_cast<int>(i & 1); }
FASTRNN_HD unsigned parity_of(int64 i) { return static_cast<unsigned>((i >> 1) & 1); }

template <class Tile>
FASTRNN_HD unsigned bytes_of_step(const Call& call) {  // that each block receives: padded units and rows are sent, too
  return static_cast<unsigned>(Tile::batch * call.cluster * call.units * 4);
}

// ---- the butterfly. w.exchange<N>(mask, send, receive) hands send's N values to the lane whose number differs by mask

template <class Tile, int N, int mask, class Warp>
FASTRNN_HD void add_over_lanes(Warp& w) {
  using A = typename Warp::A;
  constexpr int half = N > 1 ? N / 2 : 1;
  w.template exchange<half>(
      mask,
      [](auto& r, int lane, A* out) {
        const bool upper = (lane & mask) != 0;
        FASTRNN_UNROLL for (int q = 0; q < half; ++q) out[q] = N > 1 && !upper ? r.sum[q + half] : r.sum[q];
      },
      [](auto& r, int lane, const A* in) {
        const bool upper = (lane & mask) != 0;
        FASTRNN_UNROLL for (int q = 0; q < half; ++q) r.sum[q] =
            add(N > 1 && upper ? r.sum[q + half] : r.sum[q], in[q]);
      });
  constexpr int next = mask == 1 ? Tile::lanes / 2 : mask / 2;
  if constexpr (mask == 1 ? Tile::lanes > 8 : mask != 8) add_over_lanes<Tile, half, next>(w);
}

template <class Tile, class Warp>
FASTRNN_HD void reduce(Warp& w) {
  add_over_lanes<Tile, Tile::sums, 4>(w);
}

}  // namespace fastrnn::gpu
