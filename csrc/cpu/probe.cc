#include "probe.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "workspace.h"

namespace fastrnn {
namespace {

// The sum over the threads of the work that each does in a second, over `seconds` after one call that is not timed.
template <class Work>
double rate(int threads, double seconds, Work work) {
  std::vector<double> rates(static_cast<std::size_t>(threads));
  const auto measure = [&](std::size_t thread) {
    using clock = std::chrono::steady_clock;
    work(thread);
    const auto begin = clock::now();
    double done = 0, elapsed = 0;
    do {
      done += work(thread);
      elapsed = std::chrono::duration<double>(clock::now() - begin).count();
    } while (elapsed < seconds);
    rates[thread] = done / elapsed;
  };
  std::vector<std::thread> others;
  const auto join = [&] {
    for (auto& thread : others) thread.join();
  };
  try {
    others.reserve(rates.size());
    for (std::size_t i = 1; i < rates.size(); ++i) others.emplace_back(measure, i);
  } catch (const std::exception&) {
    join();
    throw;
  }
  measure(0);
  join();
  double total = 0;
  for (const double r : rates) total += r;
  return total;
}

}  // namespace

template <class T>
double fma_peak(const InstructionSet& set, int threads, double seconds) {
  const auto& kernels = kernels_of<T>(set);
  return 1e-9 * rate(threads, seconds, [&](std::size_t) {
           T sum;
           return kernels.fma_loop(20000, &sum);
         });
}
template double fma_peak<float>(const InstructionSet&, int, double);
template double fma_peak<double>(const InstructionSet&, int, double);

double read_bandwidth(const InstructionSet& set, index bytes, int threads, double seconds) {
  const index part = bytes / threads / read_granule * read_granule;
  const index count = part / static_cast<index>(sizeof(float));
  const index passes = std::max<index>(1, (index{1} << 20) / part);  // reading the clock must not count
  Workspace memory;
  const auto all = memory.take<float>(checked_product(count, threads));
  memory.allocate();
  std::vector<char> filled(static_cast<std::size_t>(threads), 0);
  return 1e-9 * rate(threads, seconds, [&](std::size_t thread) {
           float* const own = memory[all] + static_cast<index>(thread) * count;
           if (!filled[thread]) {  // by the thread that reads it: on its side of the machine
             std::fill_n(own, count, 0.0f);
             filled[thread] = 1;
           }
           float sum;
           return set.f32.read_loop(own, count, passes, &sum);
         });
}

}  // namespace fastrnn
