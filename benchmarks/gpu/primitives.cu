// What a step of the recurrence waits for, each `times` times over: the gate's micro-benchmarks. CLUSTER is the number
// of blocks of a cluster.
extern "C" __global__ void empty() {}

extern "C" __global__ void block_barrier(int times) {
  for (int i = 0; i < times; ++i) __syncthreads();
}

// All blocks of a cooperative launch.
extern "C" __global__ void grid_barrier(int times, unsigned* arrived) {
  for (int i = 0; i < times; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(arrived, 1u);
      const unsigned turn = (i + 1) * gridDim.x;
      unsigned seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrived) : "memory");
      } while (static_cast<int>(seen - turn) < 0);
      __threadfence();
    }
    __syncthreads();
  }
}

#if defined(CLUSTER) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) cluster_barrier(int times) {
  for (int i = 0; i < times; ++i) {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
}

// Each block sends 4 bytes to its neighbour, and waits for those of its other neighbour, as the cluster kernel does.
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) async_exchange(int times) {
  __shared__ alignas(8) unsigned long long barriers[2];
  __shared__ unsigned values[2];
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(barriers));
  const unsigned value = static_cast<unsigned>(__cvta_generic_to_shared(values));
  unsigned to, to_value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(own), "r"((rank + 1) % CLUSTER));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to_value) : "r"(value), "r"((rank + 1) % CLUSTER));
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(own + 8 * i) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int i = 0; i < 2; ++i) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 4;" ::"r"(own + 8 * i) : "memory");
    }
  }
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  if (threadIdx.x == 0) {
    for (int i = 0; i < times; ++i) {
      const unsigned at = (i & 1) * 8, parity = (i >> 1) & 1;
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to_value +
                                                                                                      at / 2),
                   "r"(i), "r"(to + at)
                   : "memory");
      unsigned done;
      do {
        asm volatile(
            "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, p;\n\t}"
            : "=r"(done)
            : "r"(own + at), "r"(parity)
            : "memory");
      } while (!done);
      if (i + 2 < times) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 4;" ::"r"(own + at) : "memory");
      }
    }
  }
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
#endif
