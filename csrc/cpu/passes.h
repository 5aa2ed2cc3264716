// The CPU backend's two entry points; the contract is csrc/rnn.h.
#pragma once

#include <memory>

#include "../rnn.h"
#include "kernels.h"
#include "thread_pool.h"
#include "workspace.h"

namespace fastrnn {

// w_ih and w_hh packed for the forward pass of one instruction set, for callers that know they do not change.
template <class T>
struct PackedWeights {
  const InstructionSet* set = nullptr;
  index I = 0, H = 0;
  std::unique_ptr<Workspace> memory;
  const T* w_ih = nullptr;
  const T* w_hh = nullptr;
};

template <class T>
PackedWeights<T> pack_weights(const InstructionSet& set, const Shape& shape, const Matrix<const T>& w_ih,
                              const Matrix<const T>& w_hh);

// Throws OutOfMemory or std::invalid_argument before the first write. When control stops the call, it returns early
// and the outputs are incomplete.
template <class T>
void rnn_forward(const ForwardProblem<T>& problem, const InstructionSet& set, const PackedWeights<T>* packed,
                 int threads, CallControl& control);

template <class T>
void rnn_backward(const BackwardProblem<T>& problem, const InstructionSet& set, int threads, CallControl& control);

}  // namespace fastrnn
