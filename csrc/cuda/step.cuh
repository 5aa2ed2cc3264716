// One step of the recurrence in one launch: any H, any type; w_hh and v are read from memory. The launches of a call
// run in order on one stream; what one leaves for the next lies in call.workspace: v (2, B, H), then the state (B, H).
// Sums in the order of tile.cuh, with K = 32.
#pragma once

#include "rnn_backward.cuh"
#include "rnn_forward.cuh"
#include "tile.cuh"

namespace fastrnn::gpu {

constexpr int step_warps = 4, step_batch = 4;
constexpr int step_units = step_warps * group_units;  // of a block

FASTRNN_HD int64 step_blocks(const Call& call) {
  return (call.H + step_units - 1) / step_units * ((call.B + step_batch - 1) / step_batch);
}

struct StepPlace {
  int64 block;
  int warp, lane;
};

template <class Cell>
struct Step {
  using A = typename Cell::A;
  using Tile = gpu::Tile<32, step_batch, 0>;
  static_assert(Tile::pairs == 1 && Tile::replicas == 1 && Tile::warp_units == group_units, "one pair a lane");

  struct State {
    A sum[Tile::sums];
    Cell pair;
  };

  static FASTRNN_HD int64 first_unit(const Call& call, const StepPlace& at) {
    const int64 blocks = (call.H + step_units - 1) / step_units;
    return at.block % blocks * step_units + at.warp * group_units;
  }
  static FASTRNN_HD int64 first_row(const Call& call, const StepPlace& at) {
    return at.block / ((call.H + step_units - 1) / step_units) * step_batch;
  }

  static FASTRNN_HD A* v_of(const Call& call, int64 i, int64 b) {
    return static_cast<A*>(call.workspace) + (buffer_of(i) * call.B + b) * call.H;
  }
  static FASTRNN_HD A& state_of(const Call& call, int64 b, int64 j) {
    return static_cast<A*>(call.workspace)[(2 * call.B + b) * call.H + j];
  }

  static FASTRNN_HD void multiply(const Call& call, State& r, const StepPlace& at, int64 i) {
    FASTRNN_UNROLL for (int s = 0; s < Tile::sums; ++s) r.sum[s] = A(0);
    const int64 j = first_unit(call, at), b0 = first_row(call, at);
    FASTRNN_NO_UNROLL for (int64 c = 0; c * 128 < call.H; ++c) {
      FASTRNN_UNROLL for (int x = 0; x < 4; ++x) {
        const int64 k = Tile::column_of(0, at.lane) + c * 128 + x;
        if (k < call.H) {
          A v[step_batch];
          FASTRNN_UNROLL for (int b = 0; b < step_batch; ++b) v[b] = b0 + b < call.B ? v_of(call, i, b0 + b)[k] : A(0);
          FASTRNN_UNROLL for (int u = 0; u < group_units; ++u) {
            const A w =
                j + u < call.H ? Stored<A>::load(call.w, (j + u) * call.w_row + k * call.w_unit, call.dtype) : A(0);
            FASTRNN_UNROLL for (int b = 0; b < step_batch; ++b) {
              r.sum[u * step_batch + b] = fma(w, v[b], r.sum[u * step_batch + b]);
            }
          }
        }
      }
    }
  }

  static FASTRNN_HD void place(const Call& call, State& r, const StepPlace& at) {
    r.pair.place(call, first_row(call, at) + Tile::batch_of(at.lane, 0), first_unit(call, at) + at.lane % group_units);
  }

  // i = -1 begins; the launch of the last step ends. A machine as in persistent.cuh, but without v and barriers.
  template <class Machine>
  static FASTRNN_HD void run(Machine& m, const Call& call, int64 i) {
    if (i < 0) {
      m.warps([&](auto& w) {
        w.each([&](State& r, const StepPlace& at) {
          place(call, r, at);
          keep(call, r, r.pair.start(call, true), 0);
        });
      });
      return;
    }
    m.warps([&](auto& w) {
      w.each([&](State& r, const StepPlace& at) {
        place(call, r, at);
        if (r.pair.exists) r.pair.state = state_of(call, r.pair.b, r.pair.j);
        r.pair.load_mask(call);
        r.pair.load(call, i);
        multiply(call, r, at, i);
      });
      reduce<Tile>(w);
      w.each([&](State& r, const StepPlace&) { keep(call, r, r.pair.finish(call, i, r.sum[0], true), i + 1); });
    });
  }

  // Leaves v_next and the state to the next launch, or the result to the caller
  static FASTRNN_HD void keep(const Call& call, State& r, A v, int64 next) {
    if (!r.pair.exists) return;
    if (next < call.T) {
      v_of(call, next, r.pair.b)[r.pair.j] = v;
      state_of(call, r.pair.b, r.pair.j) = r.pair.state;
    } else {
      r.pair.end(call);
    }
  }
};

}  // namespace fastrnn::gpu
