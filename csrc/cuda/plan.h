// Which kernel, how many blocks of what size: arithmetic on the host alone, tested without a GPU.
#pragma once

#include <cstring>

#include "mma_tile.cuh"
#include "step.cuh"
#include "tile.cuh"

namespace fastrnn::gpu {

enum class Kind { step, block, cluster, cluster_barrier, mma_block, mma_cluster };

struct Kernel {
  const char* name;  // as a user forces it; the entry points are rnn_forward_NAME and rnn_backward_NAME
  Kind kind;
  int lanes;  // that share a sum; slices of w_hh's columns on tensor cores
  int batch, register_chunks;
  Precision precision;  // on tensor cores
};

inline bool uses_clusters(const Kernel& kernel) {
  return kernel.kind == Kind::cluster || kernel.kind == Kind::cluster_barrier || kernel.kind == Kind::mma_cluster;
}

inline bool uses_tensor_cores(const Kernel& kernel) {
  return kernel.kind == Kind::mma_block || kernel.kind == Kind::mma_cluster;
}

inline constexpr Kernel kernels[] = {
#define FASTRNN_BLOCK(K, B, chunks) {"block_" #K "_" #B, Kind::block, K, B, chunks, {}},
#define FASTRNN_CLUSTER(K, B, chunks) {"cluster_" #K "_" #B, Kind::cluster, K, B, chunks, {}},
#define FASTRNN_CLUSTER_BARRIER(K, B, chunks) {"cluster_barrier_" #K "_" #B, Kind::cluster_barrier, K, B, chunks, {}},
#define FASTRNN_MMA_BLOCK(S, N, chunks, precision) \
  {"mma_block_" #N "_" #precision, Kind::mma_block, S, N, chunks, Precision::precision},
#define FASTRNN_MMA_CLUSTER(S, N, chunks, precision) \
  {"mma_cluster_" #N "_" #precision, Kind::mma_cluster, S, N, chunks, Precision::precision},
    FASTRNN_BLOCK_TILES(FASTRNN_BLOCK) FASTRNN_CLUSTER_TILES(FASTRNN_CLUSTER)
        FASTRNN_CLUSTER_BARRIER_TILES(FASTRNN_CLUSTER_BARRIER) FASTRNN_MMA_BLOCK_TILES(FASTRNN_MMA_BLOCK)
            FASTRNN_MMA_CLUSTER_TILES(FASTRNN_MMA_CLUSTER){"step", Kind::step, 32, step_batch, 0, {}},
#undef FASTRNN_BLOCK
#undef FASTRNN_CLUSTER
#undef FASTRNN_CLUSTER_BARRIER
#undef FASTRNN_MMA_BLOCK
#undef FASTRNN_MMA_CLUSTER
};

inline const Kernel* find_kernel(const char* name) {
  for (const Kernel& kernel : kernels) {
    if (std::strcmp(kernel.name, name) == 0) return &kernel;
  }
  return nullptr;
}

// One launch; blocks == 0: the kernel cannot do it, and why says so.
struct Plan {
  int64 blocks = 0, shared = 0, workspace = 0;
  int threads = 0, cluster = 1;
  const char* why = "";
};

inline int64 divided_up(int64 a, int64 b) { return (a + b - 1) / b; }

// Units of a block, a multiple of `step` and at most `most`; false where they are more
inline bool place_units(Call& call, int64 cluster, int64 step, int64 most) {
  call.cluster = cluster;
  call.units = divided_up(divided_up(call.H, cluster), step) * step;
  return call.units <= most;
}

inline int64 storage_of(Precision precision) {
  return precision == Precision::f16 ? f16 : precision == Precision::bf16 ? bf16 : f32;
}

// Fills the plan's fields of the call. max_shared: bytes a block of this device may have.
inline Plan plan_of(const Kernel& kernel, Call& call, int cluster, int64 max_shared) {
  Plan plan;
  call.cluster = 1;
  call.units = call.chunks = 0;
  if (kernel.kind == Kind::step) {
    plan.blocks = step_blocks(call);
    plan.threads = 32 * step_warps;
    plan.workspace = step_workspace_bytes(call);
  } else {
    if (call.dtype == f64) {
      plan.why = "float64 is computed by the kernel 'step' alone";
      return plan;
    }
    if (!uses_clusters(kernel)) cluster = 1;
    bool enough_threads;
    if (uses_tensor_cores(kernel)) {
      if (call.dtype != storage_of(kernel.precision)) {
        plan.why = "its tensor core instruction is for another dtype";
        return plan;
      }
      const int slices = kernel.lanes, bytes = mma_element_bytes(kernel.precision);
      enough_threads = place_units(call, cluster, mma_units, mma_units * mma_warps / slices);
      call.chunks = divided_up(divided_up(call.H * bytes, 64), slices);
      plan.threads = mma_threads(call.units, slices);
      plan.shared = mma_shared_bytes(call, slices, kernel.batch, bytes, kernel.register_chunks);
    } else {
      const int64 warp_units = 256 / kernel.lanes;
      enough_threads = place_units(call, cluster, warp_units, 8 * warp_units);
      call.chunks = divided_up(call.H, 4 * kernel.lanes);
      plan.threads = threads_of(call.units, kernel.lanes);
      plan.shared = shared_bytes(call, kernel.lanes, kernel.batch, kernel.register_chunks);
    }
    if (!enough_threads) {
      plan.why = "too many hidden units for the threads of its blocks";
      return plan;
    }
    plan.cluster = cluster;
    if (plan.shared > max_shared) {
      plan.why = "w_hh does not fit into the registers and the shared memory of its blocks";
      return plan;
    }
    plan.blocks = divided_up(call.B, kernel.batch) * cluster;
  }
  if (plan.blocks > 0x7fffffff) {
    plan.blocks = 0;
    plan.why = "more blocks than a grid holds";
  }
  return plan;
}

// ---- the dispatch, as data: of the rules for the call's numbers, H and B, the first whose kernel can run is taken.
// What stands here comes from counting, not yet from measuring: with few rows a step waits for reading w_hh and
// multiplying, so more blocks share it; with many rows it multiplies, so rows share what is read, and no block waits
// for another. Tensor cores take float16 and bfloat16 always; float32 as tf32x3 from 32 rows on, where FFMA
// instructions are the bound, and as tf32 where that was asked for.
enum class Numbers { all, f16, bf16, f32, f32_as_tf32 };

struct Rule {
  Numbers numbers;
  int64 least_B, most_B, most_H;
  const char* kernel;
  int cluster;
};

inline constexpr int64 any = 0x7fffffffffffffff;

// Of 132 multiprocessors, 33 clusters of 4 can run at once, 15 of 8 and 7 of 16: with more rows than these hold, 16 to
// a cluster, where they find room.
#define FASTRNN_TENSOR_CORE_RULES(numbers, least_B, precision)         \
  {numbers, least_B, any, 128, "mma_block_8_" #precision, 1},          \
      {numbers, least_B, 264, 256, "mma_cluster_8_" #precision, 4},    \
      {numbers, least_B, any, 256, "mma_cluster_16_" #precision, 4},   \
      {numbers, least_B, 120, 512, "mma_cluster_8_" #precision, 8},    \
      {numbers, least_B, any, 512, "mma_cluster_16_" #precision, 8},   \
      {numbers, least_B, 56, 1024, "mma_cluster_8_" #precision, 16},   \
      {numbers, least_B, any, 1024, "mma_cluster_16_" #precision, 16}, \
      {numbers, least_B, any, 1024, "mma_cluster_8_" #precision, 16}

inline constexpr Rule rules[] = {
    FASTRNN_TENSOR_CORE_RULES(Numbers::f16, 1, f16),
    FASTRNN_TENSOR_CORE_RULES(Numbers::bf16, 1, bf16),
    FASTRNN_TENSOR_CORE_RULES(Numbers::f32_as_tf32, 1, tf32),
    FASTRNN_TENSOR_CORE_RULES(Numbers::f32, 32, tf32x3),
    {Numbers::all, 0, 1023, 64, "block_32_1", 1},      //
    {Numbers::all, 0, any, 64, "block_32_4", 1},       //
    {Numbers::all, 0, 16, 256, "cluster_32_1", 4},     // 32 columns a lane, none in shared memory
    {Numbers::all, 0, 132, 256, "block_8_1", 1},       // a multiprocessor a row
    {Numbers::all, 0, any, 256, "block_8_4", 1},       //
    {Numbers::all, 0, any, 256, "block_8_1", 1},       // where the shared memory is too small for the one above
    {Numbers::all, 0, 16, 512, "cluster_32_1", 8},     //
    {Numbers::all, 0, any, 512, "cluster_32_4", 8},    //
    {Numbers::all, 0, 8, 1024, "cluster_32_1", 16},    // 16 blocks are more than every device grants
    {Numbers::all, 0, any, 1024, "cluster_32_4", 16},  //
    {Numbers::all, 0, any, 768, "cluster_16_4", 8},    //
    {Numbers::all, 0, any, 768, "cluster_16_1", 8},    //
    {Numbers::all, 0, any, any, "step", 1},            //
};

#undef FASTRNN_TENSOR_CORE_RULES

// A device, as far as the dispatch asks
struct Limits {
  int64 shared = 48 * 1024;   // bytes a block may have
  bool clusters = false;      // sm_90 on
  bool tensor_cores = false;  // for these types: sm_80 on
};

inline bool applies(const Rule& rule, const Call& call, bool tf32) {
  if (call.H > rule.most_H || call.B < rule.least_B || call.B > rule.most_B) return false;
  switch (rule.numbers) {
    case Numbers::all:
      return true;
    case Numbers::f16:
      return call.dtype == f16;
    case Numbers::bf16:
      return call.dtype == bf16;
    case Numbers::f32:
      return call.dtype == f32;
    default:
      return call.dtype == f32 && tf32;
  }
}

// The first rule whose kernel can run. clusters_at_once(kernel, planned call, plan) asks the device how many of these
// clusters it can run; 0 is an answer, too. tf32: float32 may be multiplied as tf32.
template <class Ask>
inline const Rule& choose(const Call& call, const Limits& limits, bool tf32, Ask clusters_at_once) {
  for (const Rule& rule : rules) {
    if (!applies(rule, call, tf32)) continue;
    const Kernel& kernel = *find_kernel(rule.kernel);
    if (uses_clusters(kernel) && !limits.clusters) continue;
    if (uses_tensor_cores(kernel) && !limits.tensor_cores) continue;
    Call planned = call;
    const Plan plan = plan_of(kernel, planned, rule.cluster, limits.shared);
    if (*plan.why) continue;
    if (uses_clusters(kernel) && plan.blocks > 0 && clusters_at_once(kernel, planned, plan) < 1) continue;
    return rule;
  }
  return rules[sizeof rules / sizeof rules[0] - 1];
}

}  // namespace fastrnn::gpu
