// Which instruction sets are compiled in, which of them this processor runs, and which one is used.
#pragma once

#include <vector>

#include "kernels.h"

namespace fastrnn {

struct InstructionSetState {
  const char* name;
  const InstructionSet* set;  // nullptr: not compiled in
  bool supported;             // by this processor and its operating system
};

// Every instruction set by name, fastest first.
const std::vector<InstructionSetState>& instruction_sets();

// The one named, or for nullptr the one FASTRNN_ISA names, or the fastest supported. Throws std::runtime_error that
// says why when it cannot run.
const InstructionSet& choose_instruction_set(const char* name);

}  // namespace fastrnn
