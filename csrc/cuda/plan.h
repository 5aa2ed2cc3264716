// Which kernel, how many blocks of what size: arithmetic on the host alone, tested without a GPU.
#pragma once

#include <cstring>

#include "step.cuh"
#include "tile.cuh"

namespace fastrnn::gpu {

enum class Kind { step, block, cluster, cluster_barrier };

struct Kernel {
  const char* name;  // as a user forces it; the entry points are rnn_forward_NAME and rnn_backward_NAME
  Kind kind;
  int k_lanes, batch, register_chunks;
};

inline constexpr Kernel kernels[] = {
#define FASTRNN_BLOCK(K, B, chunks) {"block_" #K "_" #B, Kind::block, K, B, chunks},
#define FASTRNN_CLUSTER(K, B, chunks) {"cluster_" #K "_" #B, Kind::cluster, K, B, chunks},
#define FASTRNN_CLUSTER_BARRIER(K, B, chunks) {"cluster_barrier_" #K "_" #B, Kind::cluster_barrier, K, B, chunks},
    FASTRNN_BLOCK_TILES(FASTRNN_BLOCK) FASTRNN_CLUSTER_TILES(FASTRNN_CLUSTER)
        FASTRNN_CLUSTER_BARRIER_TILES(FASTRNN_CLUSTER_BARRIER){"step", Kind::step, 32, step_batch, 0},
#undef FASTRNN_BLOCK
#undef FASTRNN_CLUSTER
#undef FASTRNN_CLUSTER_BARRIER
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
    const int64 warp_units = 256 / kernel.k_lanes;
    call.cluster = kernel.kind == Kind::block ? 1 : cluster;
    call.units = divided_up(divided_up(call.H, call.cluster), warp_units) * warp_units;
    call.chunks = divided_up(call.H, 4 * kernel.k_lanes);
    if (call.units > 8 * warp_units) {
      plan.why = "too many hidden units for the threads of its blocks";
      return plan;
    }
    plan.threads = threads_of(call.units, kernel.k_lanes);
    plan.cluster = static_cast<int>(call.cluster);
    plan.shared = shared_bytes(call, kernel.k_lanes, kernel.batch, kernel.register_chunks);
    if (plan.shared > max_shared) {
      plan.why = "w_hh does not fit into the registers and the shared memory of its blocks";
      return plan;
    }
    plan.blocks = divided_up(call.B, kernel.batch) * call.cluster;
  }
  if (plan.blocks > 0x7fffffff) {
    plan.blocks = 0;
    plan.why = "more blocks than a grid holds";
  }
  return plan;
}

// ---- the dispatch, as data: of the rules for the call's dtype, H and B, the first whose kernel can run is taken. The
// numbers come from counting, not yet from measuring: with few rows a step waits for reading w_hh and multiplying, so
// more blocks share it; with many rows it multiplies, so four rows share what is read, and no block waits for another.
struct Rule {
  int64 most_H, most_B;
  const char* kernel;
  int cluster;
};

inline constexpr int64 any = 0x7fffffffffffffff;

inline constexpr Rule rules[] = {
    {64, 1023, "block_32_1", 1},      //
    {64, any, "block_32_4", 1},       //
    {256, 16, "cluster_32_1", 4},     // 32 columns a lane, none in shared memory
    {256, 132, "block_8_1", 1},       // a multiprocessor a row
    {256, any, "block_8_4", 1},       //
    {256, any, "block_8_1", 1},       // where the shared memory is too small for the one above
    {512, 16, "cluster_32_1", 8},     //
    {512, any, "cluster_32_4", 8},    //
    {1024, 8, "cluster_32_1", 16},    // 16 blocks are more than every device grants
    {1024, any, "cluster_32_4", 16},  //
    {768, any, "cluster_16_4", 8},    //
    {768, any, "cluster_16_1", 8},    //
    {any, any, "step", 1},            //
};

// A device, as far as the dispatch asks
struct Limits {
  int64 shared = 48 * 1024;  // bytes a block may have
  bool clusters = false;     // sm_90 on
};

// The first rule whose kernel can run. clusters_at_once(kernel, planned call, plan) asks the device how many of these
// clusters it can run; 0 is an answer, too.
template <class Ask>
inline const Rule& choose(const Call& call, const Limits& limits, Ask clusters_at_once) {
  for (const Rule& rule : rules) {
    if (call.H > rule.most_H || call.B > rule.most_B) continue;
    const Kernel& kernel = *find_kernel(rule.kernel);
    const bool needs_clusters = kernel.kind == Kind::cluster || kernel.kind == Kind::cluster_barrier;
    if (needs_clusters && !limits.clusters) continue;
    Call planned = call;
    const Plan plan = plan_of(kernel, planned, rule.cluster, limits.shared);
    if (*plan.why) continue;
    if (needs_clusters && plan.blocks > 0 && clusters_at_once(kernel, planned, plan) < 1) continue;
    return rule;
  }
  return rules[sizeof rules / sizeof rules[0] - 1];
}

}  // namespace fastrnn::gpu
