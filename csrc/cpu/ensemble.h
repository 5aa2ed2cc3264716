// Many models of one shape in one call. The results of each are, to the bit, those of a call of its own.
#pragma once

#include <vector>

#include "passes.h"

namespace fastrnn {

// As rnn_forward and rnn_backward of each problem. A workspace is taken for one model at a time on each thread: when
// OutOfMemory is thrown, the results of other models may have been written.
template <class T>
void rnn_forward_ensemble(const std::vector<ForwardProblem<T>>& models, const InstructionSet& set, int threads,
                          CallControl& control);

template <class T>
void rnn_backward_ensemble(const std::vector<BackwardProblem<T>>& models, const InstructionSet& set, int threads,
                           CallControl& control);

}  // namespace fastrnn
