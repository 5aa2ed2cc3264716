// The machines of persistent.cuh, mma.cuh and step.cuh on a GPU: a thread is one thread of one warp of one block.
#pragma once

#include "mma.cuh"
#include "nvrtc/device.cuh"
#include "persistent.cuh"
#include "step.cuh"

namespace fastrnn::gpu {

template <class State, class Number>
struct DeviceWarp {
  using A = Number;
  State registers;

  template <int N, class Word = A, class Send, class Receive>
  __device__ __forceinline__ void exchange(int mask, Send send, Receive receive) {
    Word out[N], in[N];
    const int lane = static_cast<int>(threadIdx.x) % 32;
    send(registers, lane, out);
    FASTRNN_UNROLL for (int q = 0; q < N; ++q) in[q] = __shfl_xor_sync(0xffffffffu, out[q], mask);
    receive(registers, lane, in);
  }

  template <Precision P, class GetFactors>
  __device__ __forceinline__ void mma(GetFactors factors_of, int which) {
    const Factors factors = factors_of(registers);
    const unsigned *const a = factors.a, *const b = factors.b;
    float (&c)[4] = registers.sum[which];
#define FASTRNN_MMA(shape_and_types)                                                                                  \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
    if constexpr (P == Precision::f16) {
      FASTRNN_MMA("m16n8k16.row.col.f32.f16.f16.f32");
    } else if constexpr (P == Precision::bf16) {
      FASTRNN_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
    } else {
      FASTRNN_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
    }
#undef FASTRNN_MMA
  }
  __device__ __forceinline__ void leave(float* address, float first, float second) {
    *reinterpret_cast<float2*>(address) = make_float2(first, second);
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

template <class State>
struct DeviceBlock : DeviceWarp<State, float> {
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
  template <int N>
  __device__ __forceinline__ void send(const Place& at, int, int to, const unsigned (&words)[N], int64) {
    lose_time();
    FASTRNN_UNROLL for (int x = 0; x < N; ++x) reinterpret_cast<unsigned*>(at.v())[to + x] = words[x];
  }
  template <class F, class G>
  __device__ __forceinline__ void in_two(F f, G g) {
    f(*this);
    __syncthreads();
    g(*this);
  }
  __device__ __forceinline__ void wait(int64, unsigned) {
    __syncthreads();
    lose_time();
  }
  __device__ __forceinline__ void end() {}
};

template <class Program>
__device__ __forceinline__ void run_block(const Call& call) {
  extern __shared__ __align__(16) char shared[];
  DeviceBlock<typename Program::State> machine(call, shared);
  Program::run(machine, call);
}

}  // namespace fastrnn::gpu
