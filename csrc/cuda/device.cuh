// The machines of persistent.cuh and step.cuh on a GPU: a thread is one thread of one warp of one block.
#pragma once

#include "persistent.cuh"
#include "step.cuh"

namespace fastrnn::gpu {

template <class State, class Number>
struct DeviceWarp {
  using A = Number;
  State registers;

  template <int N, class Send, class Receive>
  __device__ __forceinline__ void exchange(int mask, Send send, Receive receive) {
    A out[N], in[N];
    const int lane = static_cast<int>(threadIdx.x) % 32;
    send(registers, lane, out);
    FASTRNN_UNROLL for (int q = 0; q < N; ++q) in[q] = __shfl_xor_sync(0xffffffffu, out[q], mask);
    receive(registers, lane, in);
  }
};

template <class Cell>
struct DeviceStep : DeviceWarp<typename Step<Cell>::State, typename Cell::A> {
  template <class F>
  __device__ __forceinline__ void warps(F f) {
    f(*this);
  }
  template <class F>
  __device__ __forceinline__ void each(F f) {
    const int thread = static_cast<int>(threadIdx.x);
    f(this->registers, StepPlace{static_cast<int64>(blockIdx.x), thread / 32, thread % 32});
  }
};

// ---- one block: v is its own

template <class Cell, class Tile>
struct DeviceBlock : DeviceWarp<Registers<Cell, Tile>, float> {
  const Call& call;
  char* shared;

  __device__ __forceinline__ DeviceBlock(const Call& c, char* memory) : call(c), shared(memory) {}
  template <class F>
  __device__ __forceinline__ void warps(F f) {
    f(*this);
  }
  template <class F>
  __device__ __forceinline__ void each(F f) {
    const int thread = static_cast<int>(threadIdx.x);
    f(this->registers,
      Place{static_cast<int64>(blockIdx.x), 0, thread / 32, thread % 32, static_cast<int>(blockDim.x), shared});
  }
  __device__ __forceinline__ void begin(unsigned) { __syncthreads(); }
  __device__ __forceinline__ void send(const Place& at, int, int to, float value, int64) { at.v()[to] = value; }
  __device__ __forceinline__ void wait(int64, unsigned) { __syncthreads(); }
  __device__ __forceinline__ void end() {}
};

}  // namespace fastrnn::gpu
