// The rows of a batch in length order. Row r (0 = longest) is the caller's row slot(r); processing step s of it lies at
// time s, or counted from its own end in reverse; rows 0 .. active(s) - 1 take part in step s. Padded, batch-first and
// packed data are the same thing from here on: an element address is start(t) * step + slot * row.
#pragma once

#include "../rnn.h"
#include "workspace.h"

namespace fastrnn {

class RowOrder {
public:
  RowOrder(const Shape& shape, const RowMap& rows, bool reverse);

  index steps() const { return steps_; }  // of the longest row
  index batch() const { return batch_; }
  index total() const { return total_; }  // (time, row) pairs that exist
  index slot(index r) const { return slot_ ? slot_[r] : r; }
  index length(index r) const { return length_ ? length_[r] : steps_; }
  index active(index s) const { return s >= steps_ ? 0 : active_ ? active_[s] : batch_; }
  index time(index s, index r) const { return reverse_ ? length(r) - 1 - s : s; }
  // Active rows among [first, last) at step s
  index active_in(index s, index first, index last) const {
    const index n = active(s) < last ? active(s) : last;
    return n > first ? n - first : 0;
  }
  bool packed() const { return packed_; }
  // Position of (t, row) among the rows of a C-contiguous (T, B) or packed (N) array
  index position(index t, index r) const { return packed_ ? start_[t] + r : t * batch_ + slot(r); }

  template <class T>
  T* at(const Sequence<T>& a, index t, index r) const {
    return a.data + (packed_ ? start_[t] : t) * a.step + slot(r) * a.row;
  }

private:
  Workspace memory_;
  index steps_, batch_, total_;
  index* slot_ = nullptr;
  index* length_ = nullptr;
  index* active_ = nullptr;
  index* start_ = nullptr;
  bool reverse_, packed_;
};

}  // namespace fastrnn
