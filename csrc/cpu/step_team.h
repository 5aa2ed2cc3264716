// Several threads on one recurrence whose batch is too small to split: each owns a slice of the units, whose weights
// stay in its core's cache, and all meet after every step.
//
// No thread is waited for that has not begun: a slice is claimed for one step at a time, and who finds another one's
// slice unclaimed for long works it out as well. So one thread alone gets everything done, late ones join where the
// others are, and the results do not depend on who computed what. When the caller had to wait for a thread that lost
// its core in the middle of a step, it goes on alone for some steps, each time for longer.
#pragma once

#include <atomic>
#include <thread>

#include "../rnn.h"
#include "spin.h"
#include "split.h"
#include "thread_pool.h"

namespace fastrnn {

class StepTeam {
public:
  // work(step, slice, worker) for every step in 0 .. steps - 1, in order, and every slice; a step begins when the one
  // before it is complete. At most one thread works on a slice of a step. Asks control every steps_per_check steps.
  template <class Work>
  static void run(index steps, index slices, int threads, index steps_per_check, CallControl& control, Work work) {
    StepTeam team(steps, slices, steps_per_check, control);
    parallel_for(slices, threads, control, [&](index own, int worker) { team.member(own, worker, work); });
  }

private:
  struct alignas(64) Slice {
    std::atomic<index> claimed{0}, finished{0};  // steps
    std::atomic<bool> present{false};            // its owner takes part
  };

  StepTeam(index steps, index slices, index steps_per_check, CallControl& control)
      : steps_(steps), slices_(slices), steps_per_check_(steps_per_check), control_(control) {}

  template <class Work>
  void member(index own, int worker, Work& work) {
    slice_[own].present.store(true, std::memory_order_relaxed);
    for (index s = slice_[own].finished.load(std::memory_order_acquire); s < steps_; ++s) {
      if (s % steps_per_check_ == 0 && control_.stopped(worker == 0)) return;
      if (!await_all(s, worker, work)) return;
      if (may_claim(s, worker) && attempt(own, s, worker, work)) {
        slice_[own].present.store(true, std::memory_order_relaxed);
      }
    }
    await_all(steps_, worker, work);
  }

  // Until `wanted` steps are finished; false: the call shall stop
  template <class Work>
  bool await_all(index wanted, int worker, Work& work) {
    for (index q = 0; q < slices_; ++q) {
      if (!await(q, wanted, worker, work)) return false;
    }
    return true;
  }

  bool may_claim(index s, int worker) const { return worker == 0 || s >= alone_until_.load(std::memory_order_relaxed); }

  // Claims the slice for step s and works it out, unless somebody has it
  template <class Work>
  bool attempt(index q, index s, int worker, Work& work) {
    index expected = s;
    if (!slice_[q].claimed.compare_exchange_strong(expected, s + 1, std::memory_order_acq_rel)) return false;
    work(s, q, worker);
    slice_[q].finished.store(s + 1, std::memory_order_release);
    return true;
  }

  template <class Work>
  bool await(index q, index wanted, int worker, Work& work) {
    const index step = wanted - 1;
    Slice& slice = slice_[q];
    if (slice.finished.load(std::memory_order_acquire) >= wanted) return true;
    for (index spins = 0;; ++spins) {
      const bool patient = spins < patience && slice.present.load(std::memory_order_relaxed);
      if (!patient && may_claim(step, worker) && slice.claimed.load(std::memory_order_relaxed) <= step) {
        slice.present.store(false, std::memory_order_relaxed);
        attempt(q, step, worker, work);
      }
      if (slice.finished.load(std::memory_order_acquire) >= wanted) return true;
      if (spins % patience == patience - 1) {
        if (control_.stopped(worker == 0)) return false;
        if (spins > 32 * patience) {
          if (worker == 0 && alone_until_.load(std::memory_order_relaxed) <= step) {
            alone_until_.store(wanted + alone_for_, std::memory_order_relaxed);
            alone_for_ = 2 * alone_for_;
          }
          std::this_thread::yield();
        }
      }
      relax();
    }
  }

  static constexpr index patience = 64;  // pauses of the processor: a few microseconds

  const index steps_, slices_, steps_per_check_;
  CallControl& control_;
  std::atomic<index> alone_until_{0};  // the step from which other threads than the caller's may claim
  index alone_for_ = 64;               // steps; the caller's
  Slice slice_[most_step_slices];
};

}  // namespace fastrnn
