// The kernels that every GPU runs (call.cuh says how to launch them); one translation unit for nvcc, one source for
// NVRTC.
#include "device.cuh"

namespace fastrnn::gpu {

template <class Cell>
__device__ __forceinline__ void run_step(const Call& call, int64 i) {
  DeviceStep<Cell> machine;
  Step<Cell>::run(machine, call, i);
}

}  // namespace fastrnn::gpu

using namespace fastrnn::gpu;

#define FASTRNN_STEP(direction, Cell, suffix, Number)                                               \
  extern "C" __global__ __launch_bounds__(32 * step_warps, 1) void rnn_##direction##_step_##suffix( \
      const __grid_constant__ Call call, int64 i) {                                                 \
    run_step<Cell<Number>>(call, i);                                                                \
  }

#define FASTRNN_BLOCK(direction, Cell, K, B, chunks)                                      \
  extern "C" __global__ __launch_bounds__(                                                \
      256, 1) void rnn_##direction##_block_##K##_##B(const __grid_constant__ Call call) { \
    run_block<Persistent<Cell<float>, Tile<K, B, chunks>>>(call);                         \
  }
#define FASTRNN_BLOCKS(K, B, chunks)            \
  FASTRNN_BLOCK(forward, Forward, K, B, chunks) \
  FASTRNN_BLOCK(backward, Backward, K, B, chunks)

FASTRNN_STEP(forward, Forward, f32, float)
FASTRNN_STEP(backward, Backward, f32, float)
FASTRNN_STEP(forward, Forward, f64, double)
FASTRNN_STEP(backward, Backward, f64, double)
FASTRNN_BLOCK_TILES(FASTRNN_BLOCKS)
