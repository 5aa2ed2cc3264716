// The machines of persistent.cuh for a cluster of blocks (sm_90 on), the second one of mma.cuh, too: v is exchanged
// through distributed shared memory.
//
//   DeviceClusterBarrier   plain remote stores, one cluster barrier a step
//   DeviceCluster          st.async: each value counts its bytes at the receiver's mbarrier; nobody waits for anybody
//                          but for the values themselves. Two barriers, one a buffer; thread 0 arms a barrier for step
//                          i + 2 right after it has seen step i complete, before it sends v_{i+1}: no byte of step
//                          i + 2 can come before that, since its sender needs all of v_{i+1} (persistent.cuh).
#pragma once

#include "device.cuh"

namespace fastrnn::gpu {

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ unsigned address_in(unsigned address, int peer) {
  unsigned remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(peer));
  return remote;
}

__device__ __forceinline__ void cluster_barrier() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n\t"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

template <class State>
struct DeviceClusterBase : DeviceWarp<State, float> {
  const Call& call;
  char* shared;

  __device__ __forceinline__ DeviceClusterBase(const Call& c, char* memory) : call(c), shared(memory) {}

  __device__ __forceinline__ Place place() const {
    unsigned rank, cluster;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(cluster));
    const int thread = static_cast<int>(threadIdx.x);
    return {static_cast<int64>(cluster),
            static_cast<int>(rank),
            thread / 32,
            thread % 32,
            static_cast<int>(blockDim.x),
            shared};
  }
  template <class F>
  __device__ __forceinline__ void each(F f) {
    f(this->registers, place());
  }
};

template <class State>
struct DeviceClusterBarrier : DeviceClusterBase<State> {
  using DeviceClusterBase<State>::DeviceClusterBase;

  template <class F>
  __device__ __forceinline__ void warps(F f) {
    f(*this);
  }
  __device__ __forceinline__ void begin(unsigned) { cluster_barrier(); }
  __device__ __forceinline__ void send(const Place& at, int peer, int to, const unsigned (&words)[1], int64) {
    lose_time();
    const unsigned remote = address_in(shared_address(at.v() + to), peer);
    asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(remote), "r"(words[0]) : "memory");
  }
  __device__ __forceinline__ void wait(int64, unsigned) {
    cluster_barrier();
    lose_time();
  }
  __device__ __forceinline__ void end() { cluster_barrier(); }
};

template <class State>
struct DeviceCluster : DeviceClusterBase<State> {
  using DeviceClusterBase<State>::DeviceClusterBase;

  template <class F>
  __device__ __forceinline__ void warps(F f) {
    f(*this);
  }
  template <class F, class G>
  __device__ __forceinline__ void in_two(F f, G g) {
    f(*this);
    lose_time();
    __syncthreads();
    g(*this);
  }
  __device__ __forceinline__ unsigned barrier(int64 i) const {
    return shared_address(this->shared) + static_cast<unsigned>(buffer_of(i)) * 8;
  }
  __device__ __forceinline__ void arm(int64 i, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier(i)), "r"(bytes) : "memory");
  }
  __device__ __forceinline__ void begin(unsigned bytes) {
    if (threadIdx.x == 0) {
      FASTRNN_UNROLL for (int i = 0; i < 2; ++i) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier(i)) : "memory");
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      FASTRNN_UNROLL for (int i = 0; i < 2; ++i) {
        if (i < this->call.T) arm(i, bytes);
      }
    }
    cluster_barrier();
  }
  __device__ __forceinline__ void send(const Place& at, int peer, int to, const unsigned (&words)[1], int64 i) {
    lose_time();
    const unsigned remote = address_in(shared_address(at.v() + to), peer);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(remote),
                 "r"(words[0]), "r"(address_in(barrier(i), peer))
                 : "memory");
  }
  __device__ __forceinline__ void send(const Place& at, int peer, int to, const unsigned (&words)[4], int64 i) {
    lose_time();
    const unsigned remote = address_in(shared_address(at.v() + to), peer);
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(remote),
        "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(address_in(barrier(i), peer))
        : "memory");
  }
  __device__ __forceinline__ void wait(int64 i, unsigned bytes) {
    unsigned done;
    do {
      asm volatile(
          "{\n\t"
          ".reg .pred p;\n\t"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, p;\n\t"
          "}"
          : "=r"(done)
          : "r"(barrier(i)), "r"(parity_of(i))
          : "memory");
    } while (!done);
    lose_time();
    if (threadIdx.x == 0 && i + 2 < this->call.T) arm(i + 2, bytes);
    lose_time();
    __syncwarp();
  }
  __device__ __forceinline__ void end() { cluster_barrier(); }
};

// Older targets get empty kernels, which are never launched there: the dispatch asks the device first.
template <template <class> class Machine, class Program>
__device__ __forceinline__ void run_cluster(const Call& call) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) char shared[];
  Machine<typename Program::State> machine(call, shared);
  Program::run(machine, call);
#endif
}

}  // namespace fastrnn::gpu
