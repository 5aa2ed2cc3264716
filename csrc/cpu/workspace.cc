#include "workspace.h"

#include <limits>

#include "faults.h"
#include "kept_memory.h"

namespace fastrnn {

OutOfMemory::OutOfMemory(const std::string& bytes)
    : text_("fastrnn: workspace: " + bytes + " bytes are not available") {}

index checked_product(index a, index b) {
  if (a < 0 || b < 0 || (b > 0 && a > std::numeric_limits<index>::max() / b)) {
    throw OutOfMemory(std::to_string(a) + " x " + std::to_string(b));
  }
  return a * b;
}

index Workspace::reserve(index bytes) {
  // successive parts lie 64 bytes apart more than a multiple of the page, so that they do not share cache sets
  if (bytes > std::numeric_limits<index>::max() / 2 - size_) throw OutOfMemory(std::to_string(bytes));
  const index padded = (bytes + 2 * alignment - 1) / alignment * alignment;
  const index offset = size_;
  size_ += padded;
  return offset;
}

void Workspace::allocate() {
  base_ = static_cast<unsigned char*>(take_memory(static_cast<std::size_t>(size_)));
  if (base_) return;
  if (fault(Fault::refused_memory_leaks)) take_memory(64);
  throw OutOfMemory(std::to_string(size_));
}

Workspace::~Workspace() { give_memory(base_); }

}  // namespace fastrnn
