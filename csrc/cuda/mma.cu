// The kernels whose products tensor cores compute (call.cuh says how to launch them): sm_80 on, over clusters sm_90 on.
#include "cluster.cuh"

namespace fastrnn::gpu {

template <class Program>
__device__ __forceinline__ void run_mma_block(const Call& call) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  run_block<Program>(call);
#endif
}

}  // namespace fastrnn::gpu

using namespace fastrnn::gpu;

#define FASTRNN_MMA_BLOCK(direction, Cell, S, N, chunks, precision)                                   \
  extern "C" __global__ __launch_bounds__(                                                            \
      256, 1) void rnn_##direction##_mma_block_##N##_##precision(const __grid_constant__ Call call) { \
    run_mma_block<PersistentMma<Cell<float>, MmaTile<S, N, chunks, Precision::precision>>>(call);     \
  }
#define FASTRNN_MMA_BLOCKS(S, N, chunks, precision)            \
  FASTRNN_MMA_BLOCK(forward, Forward, S, N, chunks, precision) \
  FASTRNN_MMA_BLOCK(backward, Backward, S, N, chunks, precision)

#define FASTRNN_MMA_CLUSTER(direction, Cell, S, N, chunks, precision)                                          \
  extern "C" __global__ __launch_bounds__(                                                                     \
      256, 1) void rnn_##direction##_mma_cluster_##N##_##precision(const __grid_constant__ Call call) {        \
    run_cluster<DeviceCluster, PersistentMma<Cell<float>, MmaTile<S, N, chunks, Precision::precision>>>(call); \
  }
#define FASTRNN_MMA_CLUSTERS(S, N, chunks, precision)            \
  FASTRNN_MMA_CLUSTER(forward, Forward, S, N, chunks, precision) \
  FASTRNN_MMA_CLUSTER(backward, Backward, S, N, chunks, precision)

FASTRNN_MMA_BLOCK_TILES(FASTRNN_MMA_BLOCKS)
FASTRNN_MMA_CLUSTER_TILES(FASTRNN_MMA_CLUSTERS)
