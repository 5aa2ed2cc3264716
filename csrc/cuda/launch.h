// Launching: the device is asked, the plan made, the kernel enqueued on the caller's stream. Nothing is allocated and
// nothing waits, so a launch can be captured in a CUDA graph. No call here, no CUDA context.
#pragma once

#include <stdexcept>
#include <string>

#include "plan.h"

namespace fastrnn::gpu {

struct DeviceFacts {
  std::string name;
  int major = 0, minor = 0, multiprocessors = 0;
  Limits limits;
};

class CudaError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

int device_count();
DeviceFacts facts_of(int device);

// How many clusters of this plan the device can run at once; 0 where it cannot run one.
int clusters_at_once(const Kernel& kernel, bool backward, const Call& planned, const Plan& plan);

const Rule& choose_on(int device, const Call& call, bool backward, bool tf32);

// Enqueues the whole call. kernel and cluster as choose_on says, or forced. Returns before the GPU has done anything.
void launch(const Kernel& kernel, int cluster, bool backward, const Call& call, int device, void* stream);

}  // namespace fastrnn::gpu
