#include "launch.h"

#include <cuda_runtime_api.h>

#include <initializer_list>

// The entry points of kernels.cu and cluster.cu, as the host sees them
extern "C" {
void rnn_forward_step_f32(fastrnn::gpu::Call, long long);
void rnn_backward_step_f32(fastrnn::gpu::Call, long long);
void rnn_forward_step_f64(fastrnn::gpu::Call, long long);
void rnn_backward_step_f64(fastrnn::gpu::Call, long long);
#define FASTRNN_DECLARE(name, K, B)                        \
  void rnn_forward_##name##_##K##_##B(fastrnn::gpu::Call); \
  void rnn_backward_##name##_##K##_##B(fastrnn::gpu::Call);
#define FASTRNN_BLOCK(K, B, chunks) FASTRNN_DECLARE(block, K, B)
#define FASTRNN_CLUSTER(K, B, chunks) FASTRNN_DECLARE(cluster, K, B)
#define FASTRNN_CLUSTER_BARRIER(K, B, chunks) FASTRNN_DECLARE(cluster_barrier, K, B)
FASTRNN_BLOCK_TILES(FASTRNN_BLOCK)
FASTRNN_CLUSTER_TILES(FASTRNN_CLUSTER)
FASTRNN_CLUSTER_BARRIER_TILES(FASTRNN_CLUSTER_BARRIER)
#undef FASTRNN_BLOCK
#undef FASTRNN_CLUSTER
#undef FASTRNN_CLUSTER_BARRIER
#define FASTRNN_MMA_BLOCK(S, N, chunks, precision) FASTRNN_DECLARE(mma_block, N, precision)
#define FASTRNN_MMA_CLUSTER(S, N, chunks, precision) FASTRNN_DECLARE(mma_cluster, N, precision)
FASTRNN_MMA_BLOCK_TILES(FASTRNN_MMA_BLOCK)
FASTRNN_MMA_CLUSTER_TILES(FASTRNN_MMA_CLUSTER)
#undef FASTRNN_MMA_BLOCK
#undef FASTRNN_MMA_CLUSTER
}

namespace fastrnn::gpu {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // it is reported here, once
  throw CudaError(std::string(what) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

const void* entry_of(const Kernel& kernel, bool backward) {
  struct Entry {
    const char* name;
    const void *forward, *backward;
  };
  static const Entry entries[] = {
#define FASTRNN_ENTRY(name, K, B)                                                       \
  {#name "_" #K "_" #B, reinterpret_cast<const void*>(&rnn_forward_##name##_##K##_##B), \
   reinterpret_cast<const void*>(&rnn_backward_##name##_##K##_##B)},
#define FASTRNN_BLOCK(K, B, chunks) FASTRNN_ENTRY(block, K, B)
#define FASTRNN_CLUSTER(K, B, chunks) FASTRNN_ENTRY(cluster, K, B)
#define FASTRNN_CLUSTER_BARRIER(K, B, chunks) FASTRNN_ENTRY(cluster_barrier, K, B)
      FASTRNN_BLOCK_TILES(FASTRNN_BLOCK) FASTRNN_CLUSTER_TILES(FASTRNN_CLUSTER)
          FASTRNN_CLUSTER_BARRIER_TILES(FASTRNN_CLUSTER_BARRIER)
#define FASTRNN_MMA_BLOCK(S, N, chunks, precision) FASTRNN_ENTRY(mma_block, N, precision)
#define FASTRNN_MMA_CLUSTER(S, N, chunks, precision) FASTRNN_ENTRY(mma_cluster, N, precision)
              FASTRNN_MMA_BLOCK_TILES(FASTRNN_MMA_BLOCK) FASTRNN_MMA_CLUSTER_TILES(FASTRNN_MMA_CLUSTER)};
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.name, kernel.name) == 0) return backward ? entry.backward : entry.forward;
  }
  throw std::logic_error(std::string("no entry point for the kernel ") + kernel.name);
}

const void* step_entry(int64 dtype, bool backward) {
  if (dtype == f64) {
    return reinterpret_cast<const void*>(backward ? &rnn_backward_step_f64 : &rnn_forward_step_f64);
  }
  return reinterpret_cast<const void*>(backward ? &rnn_backward_step_f32 : &rnn_forward_step_f32);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

// The stream's device is current while this lives.
class CurrentDevice {
public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  ~CurrentDevice() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

private:
  int before_ = 0;
  bool changed_ = false;
};

// Room for the shared memory and the cluster, and the launch's description
struct Launch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute cluster = {};

  Launch(const void* entry, const Plan& plan, void* stream) {
    config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
    config.blockDim = dim3(static_cast<unsigned>(plan.threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(plan.shared);
    config.stream = static_cast<cudaStream_t>(stream);
    if (plan.shared > 48 * 1024) {
      check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared)),
            "shared memory of a block");
    }
    if (plan.cluster > 1) {
      if (plan.cluster > 8) {
        check(cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "clusters of 16 blocks");
      }
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = static_cast<unsigned>(plan.cluster);
      cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
      config.attrs = &cluster;
      config.numAttrs = 1;
    }
  }
};

}  // namespace

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

DeviceFacts facts_of(int device) {
  DeviceFacts facts;
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  facts.name = properties.name;
  facts.major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  facts.minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  facts.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  facts.limits.shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  facts.limits.tensor_cores = facts.major >= 8;
  facts.limits.clusters = facts.major >= 9 && attribute(cudaDevAttrClusterLaunch, device) != 0;
  return facts;
}

int clusters_at_once(const Kernel& kernel, bool backward, const Call&, const Plan& plan) {
  const void* const entry = entry_of(kernel, backward);
  try {
    const Launch launch(entry, plan, nullptr);
    int clusters = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, entry, &launch.config);
    if (error == cudaSuccess) return clusters;
  } catch (const CudaError&) {  // more shared memory or blocks than the device grants
  }
  (void)cudaGetLastError();
  return 0;
}

const Rule& choose_on(int device, const Call& call, bool backward, bool tf32) {
  const CurrentDevice current(device);
  return choose(call, facts_of(device).limits, tf32, [&](const Kernel& kernel, const Call& planned, const Plan& plan) {
    return clusters_at_once(kernel, backward, planned, plan);
  });
}

void launch(const Kernel& kernel, int cluster, bool backward, const Call& call, int device, void* stream) {
  const CurrentDevice current(device);
  Call planned = call;
  const int64 shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const Plan plan = plan_of(kernel, planned, cluster, shared);
  if (*plan.why) throw std::invalid_argument(std::string("kernel ") + kernel.name + ": " + plan.why);
  if (plan.blocks == 0) return;
  if (kernel.kind == Kind::step) {
    if (call.workspace == nullptr) throw std::invalid_argument("workspace: expected memory for the kernel step");
    const void* const entry = step_entry(call.dtype, backward);
    const Launch launch(entry, plan, stream);
    for (int64 i = -1; i < call.T; ++i) {
      void* arguments[] = {&planned, &i};
      check(cudaLaunchKernelExC(&launch.config, entry, arguments), kernel.name);
    }
    return;
  }
  const void* const entry = entry_of(kernel, backward);
  if (plan.cluster > 1 && clusters_at_once(kernel, backward, planned, plan) < 1) {
    throw std::invalid_argument(std::string("kernel ") + kernel.name + ": this device runs no cluster of " +
                                std::to_string(plan.cluster) + " such blocks");
  }
  const Launch launch(entry, plan, stream);
  void* arguments[] = {&planned};
  check(cudaLaunchKernelExC(&launch.config, entry, arguments), kernel.name);
}

}  // namespace fastrnn::gpu
