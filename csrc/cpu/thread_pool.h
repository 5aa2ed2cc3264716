// The package's own threads: no OpenMP, so a fork is survived and no second runtime fights for the cores.
//
// parallel_for(count, threads, task): every task runs once, on the caller and at most threads - 1 workers. Tasks are
// claimed one by one; a worker that is late is done without. A pool that is busy with another call means that the
// caller works alone. Workers spin for about 50 us after their last task, then sleep. After a fork the child starts
// with a fresh pool; the parent keeps its own.
#pragma once

#include <atomic>
#include <chrono>

#include "../rnn.h"

namespace fastrnn {

// How often this process has been the child of a fork, itself and its ancestors.
unsigned forks();

// Whether a call should go on. The caller's thread asks its host (for Python: pending signals) every few milliseconds.
class CallControl {
public:
  using Interrupted = bool (*)(void* context);
  CallControl(Interrupted interrupted, void* context)
      : interrupted_(interrupted), context_(context), next_(std::chrono::steady_clock::now() + period) {}

  // Other threads have tasks of the call from now on.
  void share() {
    if (whole_) return whole_->share();
    shared_ = true;
  }

  // A signal handler has forked and this is the child, where those threads are not: the call cannot be completed.
  bool lost() const { return lost_; }

  // For a task that makes calls of its own: stops with the whole. `caller`: the task runs on the whole's caller.
  CallControl(CallControl& whole, bool caller) : CallControl(nullptr, nullptr) {
    whole_ = &whole;
    callers_ = caller;
  }

  // From any thread: true once the call shall stop. `caller`: this is the thread that made the call.
  bool stopped(bool caller) {
    if (whole_) return whole_->stopped(caller && callers_);
    if (stop_.load(std::memory_order_relaxed)) return true;
    if (!caller || !interrupted_) return false;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return false;
    next_ = now + period;
    if (interrupted_(context_)) stop_.store(true, std::memory_order_relaxed);
    if (shared_ && forks() != forks_) {
      lost_ = true;
      stop_.store(true, std::memory_order_relaxed);
    }
    return stop_.load(std::memory_order_relaxed);
  }

private:
  static constexpr std::chrono::milliseconds period{20};
  Interrupted interrupted_;
  void* context_;
  std::chrono::steady_clock::time_point next_;
  std::atomic<bool> stop_{false};
  CallControl* whole_ = nullptr;
  bool callers_ = false;
  // of the caller's thread
  const unsigned forks_ = forks();
  bool shared_ = false;
  bool lost_ = false;
};

// worker: 0 for the caller, else 1 .. threads - 1. Tasks must not throw.
using Task = void (*)(void* context, index task, int worker);

void parallel_for(index count, int threads, Task task, void* context, CallControl& control);

template <class F>
void parallel_for(index count, int threads, CallControl& control, F&& body) {
  parallel_for(
      count, threads, [](void* context, index task, int worker) { (*static_cast<F*>(context))(task, worker); },
      const_cast<void*>(static_cast<const void*>(&body)), control);
}

}  // namespace fastrnn
