// The kernels of a cluster of blocks: sm_90 on (call.cuh says how to launch them).
#include "cluster.cuh"

using namespace fastrnn::gpu;

#define FASTRNN_KERNEL(direction, Cell, name, Machine, K, B, chunks)                         \
  extern "C" __global__ __launch_bounds__(                                                   \
      256, 1) void rnn_##direction##_##name##_##K##_##B(const __grid_constant__ Call call) { \
    run_cluster<Machine, Persistent<Cell<float>, Tile<K, B, chunks>>>(call);                 \
  }
#define FASTRNN_CLUSTER(K, B, chunks)                                    \
  FASTRNN_KERNEL(forward, Forward, cluster, DeviceCluster, K, B, chunks) \
  FASTRNN_KERNEL(backward, Backward, cluster, DeviceCluster, K, B, chunks)
#define FASTRNN_CLUSTER_BARRIER(K, B, chunks)                                           \
  FASTRNN_KERNEL(forward, Forward, cluster_barrier, DeviceClusterBarrier, K, B, chunks) \
  FASTRNN_KERNEL(backward, Backward, cluster_barrier, DeviceClusterBarrier, K, B, chunks)

FASTRNN_CLUSTER_TILES(FASTRNN_CLUSTER)
FASTRNN_CLUSTER_BARRIER_TILES(FASTRNN_CLUSTER_BARRIER)
