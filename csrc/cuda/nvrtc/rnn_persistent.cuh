// The recurrence in one kernel, w_hh held on the chip for all steps. A tile of ROWS batch rows belongs to a group of
// blocks, each of which owns UNITS units: one block for a narrow layer, or several, which exchange what they computed
// through global memory, with one barrier a step among the blocks of the group (a cooperative launch, one block a
// multiprocessor). No atomic but the integer one of the barrier; sums in a fixed order: the same bits in every run.
//
// Compiled for REAL and for these sizes (fastrnn/_backends/cupy_plan.py chooses them):
//   HP      H, padded             UNITS  units of a block     SLICES  threads that share a sum
//   PER     units of a thread     REG    columns of a slice in registers, the others in shared memory
//   ROWS    batch rows of a tile  THREADS = UNITS / PER * SLICES
#include "rnn_steps.cuh"

namespace fastrnn {

constexpr int VEC = 16 / sizeof(real);
constexpr int COLUMNS = HP / SLICES;                         // of a slice
constexpr int STRIDE = UNITS / PER;                          // from one unit of a thread to its next
constexpr int OWN = (ROWS * UNITS + THREADS - 1) / THREADS;  // outputs that a thread finishes
static_assert(STRIDE * SLICES == THREADS && COLUMNS % VEC == 0 && REG % VEC == 0 && REG <= COLUMNS && REG > 0,
              "sizes that do not fit");

struct alignas(16) Vec {
  real at[VEC];
};

struct Shared {   // of a block, in this order; weights last, which may be none
  real* in;       // (2, ROWS, HP): what w multiplies, and what it will multiply next
  real* partial;  // (SLICES, ROWS, UNITS)
  real* state;    // (ROWS, UNITS)
  Vec* weights;   // ((COLUMNS - REG) / VEC, PER, THREADS)
};

__device__ inline Shared parts_of(unsigned char* memory) {
  real* in = reinterpret_cast<real*>(memory);
  real* partial = in + 2 * ROWS * HP;
  real* state = partial + SLICES * ROWS * UNITS;
  return {in, partial, state, reinterpret_cast<Vec*>(state + ROWS * UNITS)};
}

struct Rows {
  const index *first, *lengths;
  index B;
  __device__ bool exists(index t, index b) const {
    return b < B && (first ? b < first[t + 1] - first[t] : !lengths || t < lengths[b]);
  }
  __device__ index row(index t, index b) const { return (first ? first[t] : t * B) + b; }
};

// Element (unit, column) of the matrix whose rows are summed over: w_hh forward, its transpose backward.
template <bool transposed>
__device__ real weight(const real* w_hh, index H, index unit, index column) {
  if (unit >= H || column >= H) return 0;
  return transposed ? w_hh[column * H + unit] : w_hh[unit * H + column];
}

template <bool transposed>
__device__ void load(real (&own)[PER][REG], const Shared& shared, const real* w_hh, index H, index unit0) {
  const int lane = threadIdx.x % STRIDE;
  const index column0 = threadIdx.x / STRIDE * COLUMNS;
#pragma unroll
  for (int r = 0; r < PER; ++r) {
#pragma unroll
    for (int k = 0; k < REG; ++k) {
      own[r][k] = weight<transposed>(w_hh, H, unit0 + r * STRIDE + lane, column0 + k);
    }
#pragma unroll 4
    for (int k = REG; k < COLUMNS; ++k) {
      shared.weights[((k - REG) / VEC * PER + r) * THREADS + threadIdx.x].at[k % VEC] =
          weight<transposed>(w_hh, H, unit0 + r * STRIDE + lane, column0 + k);
    }
  }
}

// partial[slice][b][unit] = the slice's share of the sum over columns of weight(unit, column) * in[b][column].
__device__ inline void multiply(const real (&own)[PER][REG], const Shared& shared, const real* in) {
  lose_time();
  const int slice = threadIdx.x / STRIDE, lane = threadIdx.x % STRIDE;
  const Vec* columns = reinterpret_cast<const Vec*>(in + slice * COLUMNS);
  real sum[PER][ROWS] = {};
#pragma unroll
  for (int k = 0; k < REG; k += VEC) {
#pragma unroll
    for (int b = 0; b < ROWS; ++b) {
      const Vec v = columns[(b * HP + k) / VEC];
#pragma unroll
      for (int r = 0; r < PER; ++r) {
#pragma unroll
        for (int i = 0; i < VEC; ++i) sum[r][b] = fma(own[r][k + i], v.at[i], sum[r][b]);
      }
    }
  }
#pragma unroll 2
  for (int k = REG; k < COLUMNS; k += VEC) {
    Vec w[PER];
#pragma unroll
    for (int r = 0; r < PER; ++r) w[r] = shared.weights[((k - REG) / VEC * PER + r) * THREADS + threadIdx.x];
#pragma unroll
    for (int b = 0; b < ROWS; ++b) {
      const Vec v = columns[(b * HP + k) / VEC];
#pragma unroll
      for (int r = 0; r < PER; ++r) {
#pragma unroll
        for (int i = 0; i < VEC; ++i) sum[r][b] = fma(w[r].at[i], v.at[i], sum[r][b]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < PER; ++r) {
#pragma unroll
    for (int b = 0; b < ROWS; ++b) shared.partial[(slice * ROWS + b) * UNITS + r * STRIDE + lane] = sum[r][b];
  }
}

__device__ inline real total(const Shared& shared, int own) {
  real sum = shared.partial[own];
#pragma unroll
  for (int slice = 1; slice < SLICES; ++slice) sum += shared.partial[slice * ROWS * UNITS + own];
  return sum;
}

// How the blocks of a group hand on what enters the next step. Two buffers are enough: who writes one of them for step
// i + 2 has met all others after step i + 1 had read it for step i.
struct Exchange {
  real* global;       // (2, B, HP), zeros at first; null for a group of one block
  unsigned* arrived;  // counts the blocks of the group
  unsigned group, turn;
  index B;

  __device__ void send(const Shared& shared, int buffer, index tile_row, index b, index unit, real value) const {
    if (!global) {
      shared.in[(buffer * ROWS + tile_row) * HP + unit] = value;
    } else if (b < B) {
      global[(buffer * B + b) * HP + unit] = value;
    }
  }

  // After this everything that the group sent may be read.
  __device__ void meet() {
    lose_time();
    __syncthreads();
    if (!global) return;
    turn += group;  // wraps as the counter does
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(arrived, 1u);
      while (static_cast<int>(load_acquire(arrived) - turn) < 0) wait_a_little();
      __threadfence();
    }
    __syncthreads();
  }

  // What was sent to the buffer, as (ROWS, HP).
  __device__ const real* receive(const Shared& shared, int buffer, index b0) const {
    if (!global) return shared.in + buffer * ROWS * HP;
    for (int at = threadIdx.x; at < ROWS * HP; at += THREADS) {
      const index b = b0 + at / HP;
      shared.in[at] = b < B ? load_uncached(global + (buffer * B + b) * HP + at % HP) : real(0);
    }
    __syncthreads();
    return shared.in;
  }
};

// z (N, H): the input products; becomes the output.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    rnn_forward_persistent(real* z, const real* bias, const real* w_hh, const real* h_0, real* h_n, real* exchange,
                           unsigned* arrived, const index* first, const index* lengths, const byte* reset,
                           const real* mask, const byte* keep, index T, index B, index H, int group, int relu,
                           int reverse) {
  const Shared shared = parts_of(shared_memory());
  const index unit0 = index(blockIdx.x % group) * UNITS, tile0 = blockIdx.x / group, tiles = gridDim.x / group;
  if (tile0 >= tiles) return;  // blocks that are too few for a group
  const Rows rows{first, lengths, B};
  Exchange peers{exchange, arrived + tile0 * 32, static_cast<unsigned>(group), 0, B};
  real own[PER][REG];
  load<false>(own, shared, w_hh, H, unit0);
  for (int at = threadIdx.x; at < 2 * ROWS * HP; at += THREADS) shared.in[at] = 0;
  __syncthreads();

  for (index tile = tile0; tile * ROWS < B; tile += tiles) {
    const index b0 = tile * ROWS;
    const auto enter = [&](int buffer, index t, int at, real state) {
      const index b = b0 + at / UNITS, unit = unit0 + at % UNITS;
      if (unit >= H) return;
      if (reset && rows.exists(t, b) && reset[rows.row(t, b)]) state = 0;
      peers.send(shared, buffer, at / UNITS, b, unit, mask && b < B ? state * mask[b * H + unit] : state);
    };
    for (int at = threadIdx.x; at < ROWS * UNITS; at += THREADS) {
      const index b = b0 + at / UNITS, unit = unit0 + at % UNITS;
      shared.state[at] = h_0 && b < B && unit < H ? h_0[b * H + unit] : real(0);
      enter(0, reverse ? T - 1 : 0, at, shared.state[at]);
    }
    peers.meet();

    for (index i = 0; i < T; ++i) {
      const index t = reverse ? T - 1 - i : i;
      const int buffer = static_cast<int>(i & 1);
      real input[OWN] = {};  // asked for now, used after the product
#pragma unroll
      for (int n = 0; n < OWN; ++n) {
        const index at = threadIdx.x + n * THREADS, b = b0 + at / UNITS, unit = unit0 + at % UNITS;
        if (at < ROWS * UNITS && unit < H && rows.exists(t, b)) input[n] = z[rows.row(t, b) * H + unit] + bias[unit];
      }
      multiply(own, shared, peers.receive(shared, buffer, b0));
      __syncthreads();
#pragma unroll
      for (int n = 0; n < OWN; ++n) {
        const int at = threadIdx.x + n * THREADS;
        const index b = b0 + at / UNITS, unit = unit0 + at % UNITS;
        if (at >= ROWS * UNITS || unit >= H) continue;
        real state = shared.state[at];
        if (rows.exists(t, b)) {
          const index r = rows.row(t, b);
          if (keep && keep[r * H + unit]) {
            if (reset && reset[r]) state = 0;
          } else {
            state = activate(input[n] + total(shared, at), relu);
          }
          z[r * H + unit] = shared.state[at] = state;
        } else if (b < B && !first) {
          z[rows.row(t, b) * H + unit] = 0;
        }
        if (i + 1 < T) enter(buffer ^ 1, reverse ? t - 1 : t + 1, at, state);
      }
      peers.meet();
    }
    for (int at = threadIdx.x; at < ROWS * UNITS; at += THREADS) {
      const index b = b0 + at / UNITS, unit = unit0 + at % UNITS;
      if (b < B && unit < H) h_n[b * H + unit] = shared.state[at];
    }
  }
}

// d_z (N, H) is written. carry (B, H): d_h_n; becomes d_h_0.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    rnn_backward_persistent(real* d_z, const real* d_output, index d_step, index d_row, index d_unit,
                            const real* output, const real* w_hh, real* carry, real* exchange, unsigned* arrived,
                            const index* first, const index* lengths, const byte* reset, const real* mask,
                            const byte* keep, index T, index B, index H, int group, int relu, int reverse) {
  const Shared shared = parts_of(shared_memory());
  const index unit0 = index(blockIdx.x % group) * UNITS, tile0 = blockIdx.x / group, tiles = gridDim.x / group;
  if (tile0 >= tiles) return;  // blocks that are too few for a group
  const Rows rows{first, lengths, B};
  Exchange peers{exchange, arrived + tile0 * 32, static_cast<unsigned>(group), 0, B};
  real own[PER][REG];
  load<true>(own, shared, w_hh, H, unit0);
  for (int at = threadIdx.x; at < 2 * ROWS * HP; at += THREADS) shared.in[at] = 0;
  __syncthreads();

  for (index tile = tile0; tile * ROWS < B; tile += tiles) {
    const index b0 = tile * ROWS;
    real h[OWN] = {}, d_h[OWN] = {};  // of the step that begins next, asked for before the product
    const auto fetch = [&](index t) {
#pragma unroll
      for (int n = 0; n < OWN; ++n) {
        const index at = threadIdx.x + n * THREADS, b = b0 + at / UNITS, unit = unit0 + at % UNITS;
        if (at >= ROWS * UNITS || unit >= H || !rows.exists(t, b)) continue;
        const index r = rows.row(t, b);
        h[n] = output[r * H + unit];
        if (d_output) d_h[n] = d_output[(first ? r * d_row : t * d_step + b * d_row) + unit * d_unit];
      }
    };
    const auto begin = [&](int buffer, index t, int n, int at, real d) {
      const index b = b0 + at / UNITS, unit = unit0 + at % UNITS;
      real d_here = 0;
      if (rows.exists(t, b)) {
        const index r = rows.row(t, b);
        if (d_output) d += d_h[n];
        if (!(keep && keep[r * H + unit])) d_here = through(d, h[n], relu);
        d_z[r * H + unit] = d_here;
      } else if (b < B && !first) {
        d_z[rows.row(t, b) * H + unit] = 0;
      }
      shared.state[at] = d;
      peers.send(shared, buffer, at / UNITS, b, unit, d_here);
    };

    fetch(reverse ? 0 : T - 1);
#pragma unroll
    for (int n = 0; n < OWN; ++n) {
      const int at = threadIdx.x + n * THREADS;
      const index b = b0 + at / UNITS, unit = unit0 + at % UNITS;
      if (at >= ROWS * UNITS || unit >= H) continue;
      begin(0, reverse ? 0 : T - 1, n, at, b < B ? carry[b * H + unit] : real(0));
    }
    peers.meet();

    for (index i = T - 1; i >= 0; --i) {
      const index t = reverse ? T - 1 - i : i, before = reverse ? t + 1 : t - 1;
      const int buffer = static_cast<int>((T - 1 - i) & 1);
      if (i > 0) fetch(before);
      multiply(own, shared, peers.receive(shared, buffer, b0));
      __syncthreads();
#pragma unroll
      for (int n = 0; n < OWN; ++n) {
        const int at = threadIdx.x + n * THREADS;
        const index b = b0 + at / UNITS, unit = unit0 + at % UNITS;
        if (at >= ROWS * UNITS || unit >= H) continue;
        real d = shared.state[at];
        if (rows.exists(t, b)) {
          const index r = rows.row(t, b);
          real d_p = total(shared, at);
          if (mask) d_p *= mask[b * H + unit];
          if (keep && keep[r * H + unit]) d_p += d;
          d = reset && reset[r] ? real(0) : d_p;
        }
        if (i > 0) {
          begin(buffer ^ 1, before, n, at, d);
        } else if (b < B) {
          carry[b * H + unit] = d;
        }
      }
      peers.meet();
    }
  }
}

}  // namespace fastrnn
