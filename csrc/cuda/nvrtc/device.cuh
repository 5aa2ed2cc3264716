// What the kernels of this folder ask of the device beyond CUDA C++.
#pragma once

namespace fastrnn {

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

__device__ inline unsigned load_acquire(const unsigned* from) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Past L1, which is not coherent within a kernel.
template <class T>
__device__ T load_uncached(const T* from) {
  return __ldcg(from);
}

__device__ inline void wait_a_little() {}

// Tests: threads lose time where they are about to read or to send, each another time.
__device__ inline void lose_time() {
#ifdef FASTRNN_DELAYS
  const unsigned drawn = (static_cast<unsigned>(clock64()) ^ (blockIdx.x * 40503u + threadIdx.x / 32)) * 2654435761u;
  if (drawn >> 30 == 0) __nanosleep(drawn >> 20 & 1023);
#endif
}

}  // namespace fastrnn
