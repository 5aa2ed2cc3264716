// Where sleeping workers wake up. Linux may put a woken thread on its waker's own CPU, behind the waker, and leave it
// there for milliseconds while another CPU has nothing to do: on a virtual machine an idle CPU that its host has put to
// sleep does not count as idle. So a worker that is woken may not run on the CPUs that are taken; once awake, it may
// run wherever it could before.
#pragma once

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>

#include "faults.h"
#endif

namespace fastrnn {

#if defined(__linux__)

// The CPUs of the caller, and of the workers that it has woken
class TakenCpus {
public:
  TakenCpus() {
    CPU_ZERO(&set_);
    add(sched_getcpu());
  }

private:
  friend class Placement;
  void add(int cpu) {
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(static_cast<std::size_t>(cpu), &set_);
  }
  cpu_set_t set_;
};

// Of one worker. All but begin() under the lock that the worker waits with.
class Placement {
public:
  void begin() { thread_ = static_cast<pid_t>(syscall(SYS_gettid)); }

  void sleeps() {
    cpu_ = sched_getcpu();
    asleep_ = true;
  }

  void wakes() {
    asleep_ = false;
    if (restricted_ && !fault(Fault::worker_stays_off_a_cpu)) sched_setaffinity(thread_, sizeof(usual_), &usual_);
    restricted_ = false;
  }

  // The waker's: before it wakes this worker
  void keep_off(TakenCpus& taken) {
    if (!asleep_ || restricted_ || sched_getaffinity(thread_, sizeof(usual_), &usual_) != 0) return;
    cpu_set_t left, both;
    CPU_AND(&both, &usual_, &taken.set_);
    CPU_XOR(&left, &usual_, &both);
    if (CPU_COUNT(&left) == 0) return;
    restricted_ = CPU_COUNT(&both) > 0 && sched_setaffinity(thread_, sizeof(left), &left) == 0;
    taken.add(cpu_);
  }

private:
  pid_t thread_ = 0;
  int cpu_ = -1;  // the last one
  bool asleep_ = false, restricted_ = false;
  cpu_set_t usual_;
};

#else

class TakenCpus {};

class Placement {
public:
  void begin() {}
  void sleeps() {}
  void wakes() {}
  void keep_off(TakenCpus&) {}
};

#endif

}  // namespace fastrnn
