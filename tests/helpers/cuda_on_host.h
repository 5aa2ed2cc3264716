// CUDA C++ on the host: threads as fibers, blocks of a launch side by side, in an order drawn anew in every round, so
// that what a missing barrier would let happen does happen. Shared memory starts as NaN. For small launches.
#pragma once

#include <ucontext.h>  // few and small headers: every size of a kernel compiles anew

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Dim {
  unsigned x;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

namespace fastrnn {
using std::fma;
using std::tanh;
}  // namespace fastrnn

namespace host {

constexpr size_t stack_bytes = 32 << 10, most_fibers = 132 * 256;

struct Block {
  unsigned char* shared;
  unsigned waiting, generation, alive;
};

struct Fiber {
  ucontext_t context;
  unsigned block, thread;
  bool done;
};

static Block blocks[132];
static Fiber* fibers = nullptr;
static unsigned char* stacks = nullptr;
static Fiber* running = nullptr;
static ucontext_t scheduler;
static void (*body)() = nullptr;

inline void yield() { swapcontext(&running->context, &scheduler); }

inline void enter() {
  body();
  running->done = true;
  Block& block = blocks[running->block];
  if (--block.alive && block.waiting == block.alive) block.waiting = 0, ++block.generation;
  setcontext(&scheduler);
}

// Blocks first .. first + count - 1, side by side.
inline void run_fibers(unsigned first, unsigned count, unsigned threads, unsigned shared, unsigned seed) {
  if (!fibers) {
    fibers = static_cast<Fiber*>(std::malloc(most_fibers * sizeof(Fiber)));
    stacks = static_cast<unsigned char*>(std::malloc(most_fibers * stack_bytes));  // pages come when touched
  }
  const unsigned total = count * threads;
  unsigned* order = static_cast<unsigned*>(std::malloc(total * sizeof(unsigned)));
  for (unsigned i = 0; i < count; ++i) {
    blocks[i] = {static_cast<unsigned char*>(std::aligned_alloc(16, (shared + 15) / 16 * 16)), 0, 0, threads};
    std::memset(blocks[i].shared, 0xff, shared);
  }
  for (unsigned i = 0; i < total; ++i) {
    Fiber& fiber = fibers[i];
    order[i] = i, fiber.block = i / threads, fiber.thread = i % threads, fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks + i * stack_bytes;
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  unsigned long long state = seed * 2ull + 1;
  unsigned left = total;
  unsigned long long frozen = 0;  // blocks that stand still for 8 rounds, so that others run ahead
  for (unsigned rounds = 0; left; ++rounds) {
    if (rounds > 1000000) std::fputs("the kernel does not end\n", stderr), std::abort();
    for (unsigned i = total - 1; i > 0; --i) {  // Fisher and Yates
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      if (i % 256 == 1 && rounds % 8 == 0) frozen = state >> 32;
      std::swap(order[i], order[(state >> 33) % (i + 1)]);
    }
    for (unsigned i = 0; i < total; ++i) {
      Fiber& fiber = fibers[order[i]];
      if (fiber.done || (count > 1 && frozen >> (fiber.block % 32) & 1)) continue;
      running = &fiber, threadIdx.x = fiber.thread, blockIdx.x = first + fiber.block;
      swapcontext(&scheduler, &fiber.context);
      left -= fiber.done;
    }
  }
  for (unsigned i = 0; i < count; ++i) std::free(blocks[i].shared);
  std::free(order);
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(arguments[I])...);
}

// Runs a kernel as cuLaunchKernel would, or, together, cuLaunchCooperativeKernel. shared = 0: no thread waits.
template <class... A>
void launch(void (*kernel)(A...), unsigned grid, unsigned threads, unsigned shared, bool together, unsigned seed,
            void** arguments) {
  static void (*static_kernel)(A...);
  static void** static_arguments;
  static_kernel = kernel, static_arguments = arguments;
  gridDim.x = grid, blockDim.x = threads;
  body = [] { call(static_kernel, static_arguments, std::index_sequence_for<A...>()); };
  if (shared) {
    const unsigned at_once = together ? grid : 1;
    for (unsigned first = 0; first < grid; first += at_once) run_fibers(first, at_once, threads, shared, seed);
    return;
  }
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) body();
  }
}

}  // namespace host

inline void __syncthreads() {
  host::Block& block = host::blocks[host::running->block];
  const unsigned generation = block.generation;
  if (++block.waiting == block.alive) {
    block.waiting = 0, ++block.generation;
  } else {
    const Dim thread = threadIdx, here = blockIdx;
    while (block.generation == generation) host::yield();
    threadIdx = thread, blockIdx = here;
  }
}

inline void __threadfence() {}
inline void atomicAdd(unsigned* at, unsigned value) { *at += value; }

namespace fastrnn {

inline unsigned char* shared_memory() { return host::blocks[host::running->block].shared; }
inline unsigned load_acquire(const unsigned* from) { return *from; }
template <class T>
T load_uncached(const T* from) {
  return *from;
}
inline void lose_time() {}
inline void wait_a_little() { host::yield(); }

}  // namespace fastrnn
