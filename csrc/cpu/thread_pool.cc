#include "thread_pool.h"

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#include "float_environment.h"
#include "placement.h"
#include "spin.h"

#if defined(_WIN32)
#else
#include <pthread.h>
#include <signal.h>
#endif

namespace fastrnn {
namespace {

constexpr int most_workers = 255;
constexpr std::chrono::microseconds spin_time{50};

class BlockedSignals {
public:
#if defined(_WIN32)
  BlockedSignals() {}
#else
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &old_, nullptr); }

private:
  sigset_t old_;
#endif
};

// Spins until done() or the time is up.
template <class Done>
bool spin(Done done, std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

// A job is open while ticket = (generation << 32 | next task) has a next task below count. A claim is a compare and
// swap on the whole ticket, so the job's fields, read before it, belong to the generation that was claimed.
class Pool {
public:
  void run(index count, int threads, Task task, void* context, CallControl& control) {
    if (busy_.exchange(true, std::memory_order_acquire)) {
      for (index i = 0; i < count; ++i) task(context, i, 0);
      return;
    }
    ensure_workers(threads - 1);
    control.share();
    std::uint64_t generation = ((ticket_.load(std::memory_order_relaxed) >> 32) + 1) & 0xffffffffu;
    if (generation == 0) generation = 1;  // 0 means: no job
    ticket_.store((generation << 32) | closed, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_release);  // no field of the new job shows before the old one is closed
    count_.store(static_cast<std::uint32_t>(count), std::memory_order_relaxed);
    helpers_.store(threads - 1, std::memory_order_relaxed);
    task_.store(task, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    ticket_.store(generation << 32, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      TakenCpus taken;
      for (int w = 0; w < workers_ && w < threads - 1; ++w) placements_[w].keep_off(taken);
      wake_.notify_all();
    }
    work(generation, 0);
    const auto all_done = [&] {
      return finished_.load(std::memory_order_acquire) == static_cast<std::uint32_t>(count);
    };
    while (!spin(all_done, spin_time)) {
      control.stopped(true);  // asks for signals, so that an interrupt reaches the workers too
      if (!is_current()) return;
      std::this_thread::yield();
    }
    busy_.store(false, std::memory_order_release);
  }

private:
  static constexpr std::uint32_t closed = 0xffffffffu;

  bool is_current() const;  // not in a child of fork, which has no thread of this pool

  // Runs tasks of this generation until none is left; false when the job on offer is another one.
  void work(std::uint64_t generation, int worker) {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
      const auto next = static_cast<std::uint32_t>(ticket);
      const Task task = task_.load(std::memory_order_relaxed);
      void* const context = context_.load(std::memory_order_relaxed);
      if (ticket >> 32 != generation || next >= count_.load(std::memory_order_relaxed)) return;
      std::atomic_thread_fence(std::memory_order_acquire);
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      task(context, static_cast<index>(next), worker);
      finished_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  // The generation of a job that this worker may join, or 0.
  std::uint64_t offered(int worker, std::uint64_t last) const {
    const std::uint64_t ticket = ticket_.load(std::memory_order_seq_cst);
    const auto next = static_cast<std::uint32_t>(ticket);
    const bool open =
        next < count_.load(std::memory_order_relaxed) && worker <= helpers_.load(std::memory_order_relaxed);
    return ticket >> 32 != last && next != closed && open ? ticket >> 32 : 0;
  }

  void worker_main(int worker) {
    const FloatEnvironment environment(Subnormals::zero);  // whatever the one who started the thread has set
    Placement& placement = placements_[worker - 1];
    placement.begin();
    std::uint64_t done = 0;
    for (;;) {
      std::uint64_t generation = 0;
      const auto ready = [&] { return (generation = offered(worker, done)) != 0; };
      if (!spin(ready, spin_time)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] {
          placement.wakes();  // also when the job is over by now
          const bool joins = ready();
          if (!joins) placement.sleeps();
          return joins;
        });
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      }
      work(generation, worker);
      done = generation;
    }
  }

  void ensure_workers(int wanted) {
    wanted = wanted < most_workers ? wanted : most_workers;
    if (workers_ >= wanted) return;
    const BlockedSignals blocked;  // signals belong to the host's threads; workers inherit the mask
    try {
      for (; workers_ < wanted; ++workers_) {
        std::thread([this, worker = workers_ + 1] { worker_main(worker); }).detach();
      }
    } catch (const std::exception&) {
      // no more threads or memory to be had: those there are do the work
    }
  }

  std::atomic<bool> busy_{false};
  std::atomic<std::uint64_t> ticket_{closed};
  std::atomic<std::uint32_t> count_{0};
  std::atomic<std::uint32_t> finished_{0};
  std::atomic<int> helpers_{0};
  std::atomic<Task> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  Placement placements_[most_workers];
  int workers_ = 0;  // changed by the owner of busy_ only
};

// Never destroyed: workers may outlive main, and a child of fork leaves its parent's pool alone.
std::atomic<Pool*> current_pool{nullptr};

bool Pool::is_current() const { return current_pool.load(std::memory_order_acquire) == this; }

// nullptr: no memory for one
Pool* pool() {
  Pool* p = current_pool.load(std::memory_order_acquire);
  if (p) return p;
  Pool* fresh = new (std::nothrow) Pool;
  if (!fresh || current_pool.compare_exchange_strong(p, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;
  return p;
}

std::atomic<unsigned> fork_count{0};

#if !defined(_WIN32)
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] {
  current_pool.store(nullptr, std::memory_order_release);
  fork_count.fetch_add(1, std::memory_order_relaxed);
});
#endif

}  // namespace

unsigned forks() { return fork_count.load(std::memory_order_relaxed); }

void parallel_for(index count, int threads, Task task, void* context, CallControl& control) {
  Pool* const shared = threads > 1 && count > 1 ? pool() : nullptr;
  if (shared) {
    shared->run(count, threads < count ? threads : static_cast<int>(count), task, context, control);
    return;
  }
  for (index i = 0; i < count; ++i) task(context, i, 0);
}

}  // namespace fastrnn
