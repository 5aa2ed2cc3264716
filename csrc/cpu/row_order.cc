#include "row_order.h"

#include <stdexcept>

namespace fastrnn {

RowOrder::RowOrder(const Shape& shape, const RowMap& rows, bool reverse)
    : steps_(shape.T), batch_(shape.B), total_(0), reverse_(reverse), packed_(rows.batch_sizes != nullptr) {
  if (!rows.lengths && !rows.batch_sizes) {
    total_ = checked_product(shape.T, shape.B);
    return;
  }
  const auto length = memory_.take<index>(batch_);
  const auto slot = memory_.take<index>(packed_ ? 0 : batch_);
  const auto active = memory_.take<index>(shape.T + 1);
  const auto start = memory_.take<index>(shape.T + 1);
  memory_.allocate();
  length_ = memory_[length];
  active_ = memory_[active];
  for (index s = 0; s <= shape.T; ++s) active_[s] = 0;
  if (packed_) {
    start_ = memory_[start];
    for (index t = 0; t < shape.T; ++t) {
      const index n = static_cast<index>(rows.batch_sizes[t]);
      if (n < 1 || n > (t ? active_[t - 1] : batch_)) {
        throw std::invalid_argument("batch_sizes: expected positive, falling counts");
      }
      start_[t] = total_;
      active_[t] = n;
      total_ += n;
    }
    for (index r = 0, t = shape.T; r < batch_; ++r) {
      while (t > 0 && active_[t - 1] <= r) --t;
      length_[r] = t;
    }
    return;
  }
  // counting sort by falling length, stable; active(s) = rows longer than s
  for (index b = 0; b < batch_; ++b) {
    const std::int64_t n = rows.lengths[b];
    if (n < 0 || n > shape.T) throw std::invalid_argument("lengths: expected values in 0..T");
    if (n > 0) ++active_[n - 1];
    total_ += static_cast<index>(n);
  }
  for (index s = shape.T - 1; s > 0; --s) active_[s - 1] += active_[s];
  steps_ = 0;
  while (steps_ < shape.T && active_[steps_] > 0) ++steps_;
  // rows of length n take the places active(n), active(n) + 1, ... in the caller's order
  slot_ = memory_[slot];
  index* place = memory_[start];
  for (index n = 0; n <= shape.T; ++n) place[n] = active_[n];
  for (index b = 0; b < batch_; ++b) {
    const index n = static_cast<index>(rows.lengths[b]);
    const index r = place[n]++;
    slot_[r] = b;
    length_[r] = n;
  }
}

}  // namespace fastrnn
