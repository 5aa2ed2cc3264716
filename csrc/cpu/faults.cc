// Only in builds with FASTRNN_FAULTS: the fault that FASTRNN_FAULT names, and the table of all.
#include "faults.h"

#include <stdexcept>
#include <string>

namespace fastrnn {

Fault active_fault = Fault::none;

const std::vector<FaultEntry>& known_faults() {
#define FASTRNN_FAULT_ENTRY(name, what) {Fault::name, #name, what},
  static const std::vector<FaultEntry> all = {FASTRNN_FAULT_LIST(FASTRNN_FAULT_ENTRY)};
#undef FASTRNN_FAULT_ENTRY
  return all;
}

void choose_fault(const char* name) {
  active_fault = Fault::none;
  if (!name || !*name) return;
  std::string known;
  for (const FaultEntry& entry : known_faults()) {
    if (std::string(name) == entry.name) active_fault = entry.fault;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  if (active_fault == Fault::none) {
    throw std::runtime_error("FASTRNN_FAULT: expected one of " + known + ", got '" + name + "'");
  }
}

}  // namespace fastrnn
