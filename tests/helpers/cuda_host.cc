// The kernels of csrc/cuda for the host, behind a C interface that tests/helpers/cuda_host.py calls.
#include <cstdio>
#include <exception>

#include "cuda/plan.h"
#include "cuda_machine.h"

namespace fastrnn::gpu {
namespace {

template <class Program>
void run_clusters(const Call& call, const Plan& plan, int64 shared, unsigned seed) {
  if (shared != plan.shared) throw std::logic_error("two sizes of shared memory");
  for (int64 group = 0; group < plan.blocks / plan.cluster; ++group) {
    HostCluster<Program> cluster(call, group, plan.threads, plan.shared, seed);
    Program::run(cluster, call);
  }
}

template <class Cell>
void run_steps(const Call& call, const Plan& plan, unsigned seed) {
  for (int64 i = -1; i < call.T; ++i) {
    HostGrid<Cell> grid(plan.blocks, seed);
    Step<Cell>::run(grid, call, i);
  }
}

template <template <class> class Cell>
void run(const Kernel& kernel, const Call& call, const Plan& plan, unsigned seed) {
  if (kernel.kind == Kind::step) {
    if (call.dtype == f64) return run_steps<Cell<double>>(call, plan, seed);
    return run_steps<Cell<float>>(call, plan, seed);
  }
  using C = Cell<float>;
#define FASTRNN_RUN_MMA(S, N, chunks, p)                                                                         \
  if (uses_tensor_cores(kernel) && kernel.lanes == S && kernel.batch == N && kernel.register_chunks == chunks && \
      kernel.precision == Precision::p) {                                                                        \
    using Tile = MmaTile<S, N, chunks, Precision::p>;                                                            \
    return run_clusters<PersistentMma<C, Tile>>(call, plan, Tile::bytes(call), seed);                            \
  }
  FASTRNN_MMA_BLOCK_TILES(FASTRNN_RUN_MMA)
  FASTRNN_MMA_CLUSTER_TILES(FASTRNN_RUN_MMA)
#define FASTRNN_RUN(K, B, chunks)                                                                        \
  if (kernel.lanes == K && kernel.batch == B && kernel.register_chunks == chunks) {                      \
    using Tile = gpu::Tile<K, B, chunks>;                                                                \
    return run_clusters<Persistent<C, Tile>>(call, plan, Layout<Tile>::bytes(call, plan.threads), seed); \
  }
  FASTRNN_BLOCK_TILES(FASTRNN_RUN)
  FASTRNN_CLUSTER_TILES(FASTRNN_RUN)
  FASTRNN_CLUSTER_BARRIER_TILES(FASTRNN_RUN)
  throw std::logic_error("a kernel without a host build");
}

}  // namespace
}  // namespace fastrnn::gpu

using namespace fastrnn::gpu;

extern "C" {

const char* kernel_name(int which) {
  return which >= 0 && which < static_cast<int>(std::size(kernels)) ? kernels[which].name : nullptr;
}

// The plan's fields of the call are filled; out: blocks, threads, shared, workspace. The reason where there is no plan.
const char* make_plan(const char* name, Call* call, int cluster, long long max_shared, long long* out) {
  const Plan plan = plan_of(*find_kernel(name), *call, cluster, max_shared);
  out[0] = plan.blocks;
  out[1] = plan.threads;
  out[2] = plan.shared;
  out[3] = plan.workspace;
  return plan.why;
}

// The kernel that the rules take on a device that runs clusters of up to `most` blocks
const char* choose_kernel(const Call* call, long long shared, int most, int tf32, int* cluster) {
  const Rule& rule = choose(*call, {shared, most > 0, true}, tf32 != 0,
                            [&](const Kernel&, const Call&, const Plan& plan) { return plan.cluster <= most ? 1 : 0; });
  *cluster = rule.cluster;
  return rule.kernel;
}

// 0, or 1 and the reason
int run_kernel(const char* name, const Call* call, int cluster, int backward, unsigned seed, char* error, int size) {
  try {
    const Kernel& kernel = *find_kernel(name);
    Call planned = *call;
    const Plan plan = plan_of(kernel, planned, cluster, 227 * 1024);
    if (*plan.why) throw std::logic_error(plan.why);
    if (backward) {
      run<Backward>(kernel, planned, plan, seed);
    } else {
      run<Forward>(kernel, planned, plan, seed);
    }
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(error, static_cast<std::size_t>(size), "%s", e.what());
    return 1;
  }
}

void tanh_float(const float* x, float* y, long long count) {
  for (long long i = 0; i < count; ++i) y[i] = tanh_of(x[i]);
}
void tanh_double(const double* x, double* y, long long count) {
  for (long long i = 0; i < count; ++i) y[i] = tanh_of(x[i]);
}
void tf32_of(const float* x, float* big, float* rest, long long count) {
  for (long long i = 0; i < count; ++i) {
    const TwoTf32 two = split(bits(x[i]));
    big[i] = from_bits(two.big);
    rest[i] = from_bits(two.rest);
  }
}
void round_to(const float* x, unsigned short* y, long long count, long long storage) {
  for (long long i = 0; i < count; ++i) Stored<float>::store(y, i, storage, x[i]);
}
void widen_from(const unsigned short* x, float* y, long long count, long long storage) {
  for (long long i = 0; i < count; ++i) y[i] = Stored<float>::load(x, i, storage);
}

// Of lane `lane` in a tile K, B: unit, replica, first batch row, last batch row
void owner_of(int k_lanes, int batch, int lane, int* out) {
  const auto fill = [&](auto tile) {
    using Tile = decltype(tile);
    out[0] = Tile::unit_of(0, lane);
    out[1] = Tile::replica_of(lane);
    out[2] = Tile::batch_of(lane, 0);
    out[3] = Tile::batch_of(lane, Tile::pairs - 1);
  };
  switch (k_lanes * 10 + batch) {
    case 81:
      return fill(Tile<8, 1, 1>{});
    case 82:
      return fill(Tile<8, 2, 1>{});
    case 84:
      return fill(Tile<8, 4, 1>{});
    case 161:
      return fill(Tile<16, 1, 1>{});
    case 162:
      return fill(Tile<16, 2, 1>{});
    case 164:
      return fill(Tile<16, 4, 1>{});
    case 321:
      return fill(Tile<32, 1, 1>{});
    case 322:
      return fill(Tile<32, 2, 1>{});
    default:
      return fill(Tile<32, 4, 1>{});
  }
}
}
