// The whole recurrence in one launch: w_hh stays in registers and shared memory, and v goes from block to block of a
// cluster (or stays in the one block) once a step. The body is written in phases over a machine, so that the same
// source runs on a GPU (device.cuh), where a thread is one thread, and on the host (tests/helpers/cuda_machine.h),
// where each phase loops over the warps of all blocks of a cluster.
//
//   m.warps(f)        f(w) by every warp; w.each(g): g(registers, place) by every lane; w.exchange: tile.cuh
//   w.send(place, peer, index, words, i)   one or four words into the peer block's v from word index on, for step i
//   m.begin(bytes)    all blocks are there, what they have written is seen; barriers are armed for steps 0 and 1
//   m.wait(i, bytes)  all of v_i has arrived; the barrier is armed for step i + 2
//   m.end()           no block leaves while another could still reach its memory
//
// Two buffers suffice. A warp sends v_{i+1} after it has read all it wants of v_i (its sums depend on it), so a block
// that has all of v_{i+1} knows that every warp of the cluster has read v_i; only then does it send v_{i+2}, into the
// buffer of v_i. For this every warp sends something in every step: padded units and batch rows send zeros.
#pragma once

#include "rnn_backward.cuh"
#include "rnn_forward.cuh"
#include "tile.cuh"

namespace fastrnn::gpu {

// Where a thread is. In a launch without clusters the group is the block, and rank is 0.
struct Place {
  int64 group;  // the batch tile
  int rank, warp, lane, threads;
  char* shared;
  FASTRNN_HD int thread() const { return warp * 32 + lane; }
  FASTRNN_HD float* v() const { return reinterpret_cast<float*>(shared + 16); }
};

FASTRNN_HD float weight(const Call& call, int64 j, int64 k) {
  return j < call.H && k < call.H ? Stored<float>::load(call.w, j * call.w_row + k * call.w_unit, call.dtype) : 0.0f;
}

template <class Cell, class Tile>
struct Registers {
  float w[group_units][Tile::register_chunks * 4];
  float sum[Tile::sums];
  Cell pair[Tile::pairs];
};

template <class Cell, class Tile>
struct Persistent {
  using State = Registers<Cell, Tile>;

  static FASTRNN_HD void load_weights(const Call& call, State& r, const Place& at) {
    const int64 unit = at.rank * call.units + Tile::unit_of(at.warp, at.lane) - at.lane % group_units;
    Four* const more = reinterpret_cast<Four*>(at.shared + Layout<Tile>::weights_start(call));
    FASTRNN_UNROLL for (int u = 0; u < group_units; ++u) {
      const int64 j = unit + u;
      FASTRNN_UNROLL for (int c = 0; c < Tile::register_chunks; ++c) {
        FASTRNN_UNROLL for (int x = 0; x < 4; ++x) r.w[u][c * 4 + x] = weight(call, j, Tile::column_of(c, at.lane) + x);
      }
      FASTRNN_NO_UNROLL for (int c = Tile::register_chunks; c < call.chunks; ++c) {
        Four w;
        FASTRNN_UNROLL for (int x = 0; x < 4; ++x) w.x[x] = weight(call, j, Tile::column_of(c, at.lane) + x);
        more[Layout<Tile>::weights(c, u, at.thread(), at.threads)] = w;
      }
    }
  }

  static FASTRNN_HD void add_chunk(State& r, const float (&w)[group_units][4], const Four (&v)[Tile::batch]) {
    FASTRNN_UNROLL for (int x = 0; x < 4; ++x) {
      FASTRNN_UNROLL for (int u = 0; u < group_units; ++u) {
        FASTRNN_UNROLL for (int b = 0; b < Tile::batch; ++b) {
          r.sum[u * Tile::batch + b] = fma(w[u][x], v[b].x[x], r.sum[u * Tile::batch + b]);
        }
      }
    }
  }

  static FASTRNN_HD void load_v(const Call& call, const Place& at, int buffer, int chunk, Four (&v)[Tile::batch]) {
    const int k = Tile::column_of(chunk, at.lane);
    FASTRNN_UNROLL for (int b = 0; b < Tile::batch; ++b) {
      v[b] = *reinterpret_cast<const Four*>(at.v() + Layout<Tile>::v(call, buffer, b, k));
    }
  }

  static FASTRNN_HD void multiply(const Call& call, State& r, const Place& at, int64 i) {
    const int chunks = static_cast<int>(call.chunks), buffer = buffer_of(i);
    FASTRNN_UNROLL for (int s = 0; s < Tile::sums; ++s) r.sum[s] = 0.0f;
    Four v[Tile::batch];
    float w[group_units][4];
    FASTRNN_UNROLL for (int c = 0; c < Tile::register_chunks; ++c) {
      if (c < chunks) {
        load_v(call, at, buffer, c, v);
        FASTRNN_UNROLL for (int u = 0; u < group_units; ++u) {
          FASTRNN_UNROLL for (int x = 0; x < 4; ++x) w[u][x] = r.w[u][c * 4 + x];
        }
        add_chunk(r, w, v);
      }
    }
    const Four* const more = reinterpret_cast<const Four*>(at.shared + Layout<Tile>::weights_start(call));
    FASTRNN_NO_UNROLL for (int c = Tile::register_chunks; c < chunks; ++c) {
      load_v(call, at, buffer, c, v);
      FASTRNN_UNROLL for (int u = 0; u < group_units; ++u) {
        const Four four = more[Layout<Tile>::weights(c, u, at.thread(), at.threads)];
        FASTRNN_UNROLL for (int x = 0; x < 4; ++x) w[u][x] = four.x[x];
      }
      add_chunk(r, w, v);
    }
  }

  // Replicas hold the same value and share the peers among them.
  template <class Warp>
  static FASTRNN_HD void send(const Call& call, Warp& w, const Place& at, int pair, float value, int64 i) {
    const int64 unit = at.rank * call.units + Tile::unit_of(at.warp, at.lane);
    const int to = Layout<Tile>::v(call, buffer_of(i), Tile::batch_of(at.lane, pair), static_cast<int>(unit));
    const unsigned words[1] = {bits(value)};
    const int cluster = static_cast<int>(call.cluster);
    FASTRNN_NO_UNROLL for (int peer = Tile::replica_of(at.lane); peer < cluster; peer += Tile::replicas) {
      w.send(at, peer, to, words, i);
    }
  }

  template <class Machine>
  static FASTRNN_HD void run(Machine& m, const Call& call) {
    const unsigned bytes = bytes_of_step<Tile>(call);
    m.warps([&](auto& w) {
      w.each([&](State& r, const Place& at) {
        load_weights(call, r, at);
        const int floats = 2 * Tile::batch * Layout<Tile>::v_stride(call);
        FASTRNN_NO_UNROLL for (int f = at.thread(); f < floats; f += at.threads) at.v()[f] = 0.0f;
        FASTRNN_UNROLL for (int q = 0; q < Tile::pairs; ++q) {
          r.pair[q].place(call, at.group * Tile::batch + Tile::batch_of(at.lane, q),
                          at.rank * call.units + Tile::unit_of(at.warp, at.lane));
        }
      });
    });
    m.begin(bytes);
    m.warps([&](auto& w) {
      w.each([&](State& r, const Place& at) {
        const bool writes = Tile::replica_of(at.lane) == 0;
        FASTRNN_UNROLL for (int q = 0; q < Tile::pairs; ++q) {
          const float v = r.pair[q].start(call, writes);
          if (call.T > 0) send(call, w, at, q, v, 0);
        }
        load_cells(call, r, 0);
      });
    });
    FASTRNN_NO_UNROLL for (int64 i = 0; i < call.T; ++i) {
      m.wait(i, bytes);
      m.warps([&](auto& w) {
        w.each([&](State& r, const Place& at) { multiply(call, r, at, i); });
        reduce<Tile>(w);
        w.each([&](State& r, const Place& at) {
          const bool writes = Tile::replica_of(at.lane) == 0;
          FASTRNN_UNROLL for (int q = 0; q < Tile::pairs; ++q) {
            const float v = r.pair[q].finish(call, i, r.sum[q], writes);
            if (i + 1 < call.T) send(call, w, at, q, v, i + 1);
          }
          load_cells(call, r, i + 1);  // before the wait: memory answers while v is on its way
        });
      });
    }
    m.warps([&](auto& w) {
      w.each([&](State& r, const Place& at) {
        if (Tile::replica_of(at.lane) != 0) return;
        FASTRNN_UNROLL for (int q = 0; q < Tile::pairs; ++q) r.pair[q].end(call);
      });
    });
    m.end();
  }

  static FASTRNN_HD void load_cells(const Call& call, State& r, int64 i) {
    if (i >= call.T) return;
    FASTRNN_UNROLL for (int q = 0; q < Tile::pairs; ++q) r.pair[q].load(call, i);
  }
};

}  // namespace fastrnn::gpu
