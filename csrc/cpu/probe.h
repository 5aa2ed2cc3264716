// The limits of this machine, measured now: what a kernel's speed is compared with. Threads of their own, not the pool.
#pragma once

#include "kernels.h"

namespace fastrnn {

// 1e9 multiplications and additions a second, all threads together
template <class T>
double fma_peak(const InstructionSet& set, int threads, double seconds);

// 1e9 bytes a second: `bytes` in total, of which each thread reads its own equal part over and over, from whichever
// cache holds it. A part is at least read_granule bytes. Throws OutOfMemory.
constexpr index read_granule = 4096;
double read_bandwidth(const InstructionSet& set, index bytes, int threads, double seconds);

}  // namespace fastrnn
