// The whole recurrence in one launch, as in persistent.cuh, with its products on the tensor cores: the same cells, the
// same exchange of v, the same machines with two more parts.
//
//   w.mma<Precision>(f, which)  sum[which] += A B; f(registers): the lane's four words of A and two of B
//   m.in_two(f, g)              f(w) by every warp, a barrier of each block, g(w) by every warp
//   w.leave(address, x, y)      in f: two sums for the warp of the other slice, which sees them in g
//
// The sums that a warp leaves for step i + 1 come after it has all of v_{i+1}, of its own block too, which every thread
// sends after it has read the sums left for step i: one place for each suffices.
//
// Numerics: float16 and bfloat16: w_hh and v are exact but for v = h recurrent_mask and v = d_z, which are rounded to
// the storage type; products are exact, sums in float32. tf32x3: each product to 2^-21 of itself, sums in float32; an
// infinite weight or state gives NaN in its row. tf32: w_hh and v rounded to 11 bits. How a
// tensor core rounds its sums is not specified; benchmarks/gpu_gate.py judges them.
#pragma once

#include "mma_tile.cuh"
#include "persistent.cuh"

namespace fastrnn::gpu {

struct alignas(16) FourWords {  // one 16-byte access
  unsigned x[4];
};

struct Factors {
  const unsigned *a, *b;
};

template <class Cell, class Tile>
struct MmaRegisters {
  FourWords w[Tile::register_chunks][2];  // of the lane's two units
  FourWords more[2];                      // of a chunk in shared memory
  FourWords v[Tile::tiles];
  unsigned a[4], b[Tile::tiles][2];  // the factors of one mma for each tile, and what tf32x3 leaves of them
  unsigned a_rest[4], b_rest[Tile::tiles][2];
  float sum[Tile::tiles * (Tile::chains + Tile::rests)][4];
  unsigned words[Tile::groups][4];  // of v, to be sent
  Cell pair[Tile::groups][2];
};

template <class Cell, class Tile>
struct PersistentMma {
  using State = MmaRegisters<Cell, Tile>;
  static constexpr Precision precision = Tile::precision;
  static constexpr bool splits = precision == Precision::tf32x3;

  static FASTRNN_HD unsigned* v_of(const Place& at) { return reinterpret_cast<unsigned*>(at.shared + 16); }

  // ---- w_hh: 16 bytes of unit j's row, zeros beside the matrix

  static FASTRNN_HD FourWords load_weights(const Call& call, const Place& at, int of_two, int chunk) {
    const int64 j = at.rank * call.units + Tile::unit_of(at.warp, at.lane) + of_two;
    const int64 k = Tile::column_of(call, at.warp, at.lane, chunk);
    FourWords four;
    FASTRNN_UNROLL for (int x = 0; x < 4; ++x) {
      if constexpr (Tile::element_bytes == 4) {
        four.x[x] = word_of<precision>(weight(call, j, k + x));
      } else {  // the storage's own bits
        const unsigned short* const w = static_cast<const unsigned short*>(call.w) + j * call.w_row;
        const int64 first = k + 2 * x;
        const unsigned low = j < call.H && first < call.H ? w[first * call.w_unit] : 0;
        const unsigned high = j < call.H && first + 1 < call.H ? w[(first + 1) * call.w_unit] : 0;
        four.x[x] = low | high << 16;
      }
    }
    return four;
  }

  static FASTRNN_HD void keep_weights(const Call& call, State& r, const Place& at) {
    FourWords* const more = reinterpret_cast<FourWords*>(at.shared + Tile::weights_start(call));
    FASTRNN_UNROLL for (int u = 0; u < 2; ++u) {
      FASTRNN_UNROLL for (int c = 0; c < Tile::register_chunks; ++c) r.w[c][u] = load_weights(call, at, u, c);
      FASTRNN_NO_UNROLL for (int c = Tile::register_chunks; c < call.chunks; ++c) {
        more[Tile::weights(c, u, at.thread(), at.threads)] = load_weights(call, at, u, c);
      }
    }
  }

  // ---- w_hh v

  static FASTRNN_HD void load_v(const Call& call, State& r, const Place& at, int64 i, int chunk) {
    const int64 column = Tile::column_of(call, at.warp, at.lane, chunk);
    FASTRNN_UNROLL for (int n = 0; n < Tile::tiles; ++n) {
      const int word = Tile::v(call, buffer_of(i), n * mma_rows + at.lane / 4, column);
      r.v[n] = *reinterpret_cast<const FourWords*>(v_of(at) + word);
    }
  }

  // The words of half a chunk, as an mma takes them
  static FASTRNN_HD void take(State& r, const FourWords* two_units, int half) {
    FASTRNN_UNROLL for (int x = 0; x < 4; ++x) {
      const unsigned word = two_units[x % 2].x[2 * half + x / 2];
      if constexpr (splits) {
        const TwoTf32 w = split(word);
        r.a[x] = w.big;
        r.a_rest[x] = w.rest;
      } else {
        r.a[x] = word;
      }
    }
    FASTRNN_UNROLL for (int n = 0; n < Tile::tiles; ++n) {
      FASTRNN_UNROLL for (int x = 0; x < 2; ++x) {
        const unsigned word = r.v[n].x[2 * half + x];
        if constexpr (splits) {
          const TwoTf32 v = split(word);
          r.b[n][x] = v.big;
          r.b_rest[n][x] = v.rest;
        } else {
          r.b[n][x] = word;
        }
      }
    }
  }

  template <class Warp, class Weights>
  static FASTRNN_HD void add_chunk(Warp& w, int parity, Weights weights) {
    FASTRNN_UNROLL for (int half = 0; half < 2; ++half) {
      w.each([&](State& r, const Place&) { take(r, weights(r), half); });
      FASTRNN_UNROLL for (int n = 0; n < Tile::tiles; ++n) {
        const int first = n * (Tile::chains + Tile::rests), rest = first + Tile::chains + half;
        if constexpr (splits) {
          w.template mma<precision>([n](State& r) { return Factors{r.a_rest, r.b[n]}; }, rest);
          w.template mma<precision>([n](State& r) { return Factors{r.a, r.b_rest[n]}; }, rest);
        }
        w.template mma<precision>([n](State& r) { return Factors{r.a, r.b[n]}; },
                                  first + (2 * parity + half) % Tile::chains);
      }
    }
  }

  template <class Warp>
  static FASTRNN_HD void multiply(const Call& call, Warp& w, int64 i) {
    w.each([&](State& r, const Place&) {
      FASTRNN_UNROLL for (auto& sums : r.sum) { FASTRNN_UNROLL for (int x = 0; x < 4; ++x) sums[x] = 0.0f; }
    });
    const int chunks = static_cast<int>(call.chunks);
    FASTRNN_UNROLL for (int c = 0; c < Tile::register_chunks; ++c) {
      if (c < chunks) {
        w.each([&](State& r, const Place& at) { load_v(call, r, at, i, c); });
        add_chunk(w, c % 2, [c](State& r) { return r.w[c]; });
      }
    }
    FASTRNN_NO_UNROLL for (int c = Tile::register_chunks; c < chunks; ++c) {
      w.each([&](State& r, const Place& at) {
        load_v(call, r, at, i, c);
        const FourWords* const more = reinterpret_cast<const FourWords*>(at.shared + Tile::weights_start(call));
        FASTRNN_UNROLL for (int u = 0; u < 2; ++u) r.more[u] = more[Tile::weights(c, u, at.thread(), at.threads)];
      });
      add_chunk(w, 0, [](State& r) { return r.more; });
    }
  }

  // The chains of a tile of 8 rows, added pairwise, into its first
  static FASTRNN_HD void add_chains(State& r) {
    FASTRNN_UNROLL for (int n = 0; n < Tile::tiles; ++n) {
      float (*const sums)[4] = r.sum + n * (Tile::chains + Tile::rests);
      FASTRNN_UNROLL for (int x = 0; x < 4; ++x) {
        float rest = 0.0f;
        if constexpr (splits) rest = add(sums[Tile::chains][x], sums[Tile::chains + 1][x]);
        float sum = add(sums[0][x], sums[1][x]);
        if constexpr (Tile::chains == 4) sum = add(sum, add(sums[2][x], sums[3][x]));
        sums[0][x] = splits ? add(sum, rest) : sum;
      }
    }
  }

  // The sums of group's two units: C's columns 2 q and 2 q + 1 are in 0, 2 and in 1, 3
  static FASTRNN_HD void sums_of(const State& r, int tile, int odd_row, float (&two)[2]) {
    const float* const c = r.sum[tile * (Tile::chains + Tile::rests)];
    two[0] = odd_row ? c[1] : c[0];
    two[1] = odd_row ? c[3] : c[2];
  }

  static FASTRNN_HD float* partial_of(const Call& call, const Place& at, int tile, bool for_other) {
    float* const partials = reinterpret_cast<float*>(at.shared + Tile::partials_start(call));
    return partials + 2 * Tile::partial(at.warp, at.lane, tile, for_other);
  }

  template <class Warp>
  static FASTRNN_HD void leave_for_other(const Call& call, Warp& w) {
    w.each([&](State& r, const Place& at) {
      add_chains(r);
      if constexpr (Tile::slices == 2) {
        FASTRNN_UNROLL for (int n = 0; n < Tile::tiles; ++n) {
          float two[2];
          sums_of(r, n, 1 - Tile::slice_of(at.warp), two);
          w.leave(partial_of(call, at, n, true), two[0], two[1]);
        }
      }
    });
  }

  static FASTRNN_HD void finished_sums(const Call& call, const State& r, const Place& at, int group, float (&two)[2]) {
    const int tile = group / Tile::own_rows;
    if constexpr (Tile::slices == 1) {
      sums_of(r, tile, group % 2, two);
    } else {
      const int slice = Tile::slice_of(at.warp);
      sums_of(r, tile, slice, two);
      const float* const left = partial_of(call, at, tile, false);
      FASTRNN_UNROLL for (int u = 0; u < 2; ++u) two[u] = add(two[u], left[u]);
    }
  }

  // ---- v

  static FASTRNN_HD void keep_words(State& r, int group, const float (&two)[2]) {
    if constexpr (Tile::own_words == 1) {
      r.words[group][0] = word_of<precision>(two[0], two[1]);
    } else {
      FASTRNN_UNROLL for (int u = 0; u < 2; ++u) r.words[group][u] = word_of<precision>(two[u]);
    }
  }

  // The first N words of a group, and those of the lane that differs by mask, in the order of the lanes
  template <int N, int mask, class Warp>
  static FASTRNN_HD void put_together(Warp& w, int group) {
    w.template exchange<N, unsigned>(
        mask,
        [group](State& r, int, unsigned* out) {
          FASTRNN_UNROLL for (int x = 0; x < N; ++x) out[x] = r.words[group][x];
        },
        [group](State& r, int lane, const unsigned* in) {
          const bool upper = (lane & mask) != 0;
          FASTRNN_UNROLL for (int x = 0; x < N; ++x) {
            const unsigned own = r.words[group][x];
            r.words[group][x] = upper ? in[x] : own;
            r.words[group][N + x] = upper ? own : in[x];
          }
        });
  }

  // 16 bytes at once: the lanes that have put them together share the peers among them.
  template <class Warp>
  static FASTRNN_HD void send(const Call& call, Warp& w, int64 i) {
    FASTRNN_UNROLL for (int g = 0; g < Tile::groups; ++g) {
      if constexpr (Tile::own_words == 1) {
        put_together<1, 4>(w, g);
        put_together<2, 8>(w, g);
      } else {
        put_together<2, 4>(w, g);
      }
    }
    w.each([&](State& r, const Place& at) {
      const int replica = at.lane / 4 % Tile::replicas, cluster = static_cast<int>(call.cluster);
      const int64 unit = at.rank * call.units + Tile::unit_of(at.warp, at.lane) - 2 * replica;
      FASTRNN_UNROLL for (int g = 0; g < Tile::groups; ++g) {
        const int to = Tile::v(call, buffer_of(i), Tile::row_of(at.warp, at.lane, g), unit);
        FASTRNN_NO_UNROLL for (int peer = replica; peer < cluster; peer += Tile::replicas) {
          w.send(at, peer, to, r.words[g], i);
        }
      }
    });
  }

  template <class Machine>
  static FASTRNN_HD void run(Machine& m, const Call& call) {
    const unsigned bytes = Tile::bytes_of_step(call);
    m.warps([&](auto& w) {
      w.each([&](State& r, const Place& at) {
        keep_weights(call, r, at);
        const int words = Tile::v_words(call);
        FASTRNN_NO_UNROLL for (int word = at.thread(); word < words; word += at.threads) v_of(at)[word] = 0;
        FASTRNN_UNROLL for (int g = 0; g < Tile::groups; ++g) {
          FASTRNN_UNROLL for (int u = 0; u < 2; ++u) {
            r.pair[g][u].place(call, at.group * Tile::batch + Tile::row_of(at.warp, at.lane, g),
                               at.rank * call.units + Tile::unit_of(at.warp, at.lane) + u);
          }
        }
      });
    });
    m.begin(bytes);
    m.warps([&](auto& w) {
      w.each([&](State& r, const Place&) {
        FASTRNN_UNROLL for (int g = 0; g < Tile::groups; ++g) {
          float two[2];
          FASTRNN_UNROLL for (int u = 0; u < 2; ++u) two[u] = r.pair[g][u].start(call, true);
          keep_words(r, g, two);
        }
      });
      if (call.T > 0) send(call, w, 0);
      w.each([&](State& r, const Place&) { load_cells(call, r, 0); });
    });
    FASTRNN_NO_UNROLL for (int64 i = 0; i < call.T; ++i) {
      m.wait(i, bytes);
      const auto sum = [&](auto& w) {
        multiply(call, w, i);
        leave_for_other(call, w);
      };
      const auto finish = [&](auto& w) {
        w.each([&](State& r, const Place& at) {
          FASTRNN_UNROLL for (int g = 0; g < Tile::groups; ++g) {
            float two[2];
            finished_sums(call, r, at, g, two);
            FASTRNN_UNROLL for (int u = 0; u < 2; ++u) two[u] = r.pair[g][u].finish(call, i, two[u], true);
            keep_words(r, g, two);
          }
        });
        if (i + 1 < call.T) send(call, w, i + 1);
        // Before the wait: memory answers while v is on its way
        w.each([&](State& r, const Place&) { load_cells(call, r, i + 1); });
      };
      if constexpr (Tile::slices == 2) {
        m.in_two(sum, finish);
      } else {
        m.warps([&](auto& w) {
          sum(w);
          finish(w);
        });
      }
    }
    m.warps([&](auto& w) {
      w.each([&](State& r, const Place&) {
        FASTRNN_UNROLL for (int g = 0; g < Tile::groups; ++g) {
          FASTRNN_UNROLL for (int u = 0; u < 2; ++u) r.pair[g][u].end(call);
        }
      });
    });
    m.end();
  }

  static FASTRNN_HD void load_cells(const Call& call, State& r, int64 i) {
    if (i >= call.T) return;
    FASTRNN_UNROLL for (int g = 0; g < Tile::groups; ++g) {
      FASTRNN_UNROLL for (int u = 0; u < 2; ++u) r.pair[g][u].load(call, i);
    }
  }
};

}  // namespace fastrnn::gpu
