// Packs a weight matrix in slices of panels, over the pool; stops between slices when the call shall stop.
#pragma once

#include "faults.h"
#include "kernels.h"
#include "thread_pool.h"
#include "workspace.h"

namespace fastrnn {

// Elements of a packed operand; the tail panel is rounded up to whole vectors.
template <class T>
index packed_size(const Kernels<T>& k, index terms, index outputs) {
  return checked_product(terms, (outputs + k.lanes - 1) / k.lanes * k.lanes);
}

// packed(s, o) = source[s * terms_stride + o * outputs_stride], as Kernels::pack_panels
template <class T>
void pack_parallel(const Kernels<T>& k, int threads, CallControl& control, T* packed, const T* source, index terms,
                   index terms_stride, index outputs, index outputs_stride) {
  constexpr index slice_elements = 1 << 18;
  index slice = slice_elements / (terms + 1) / k.tile_columns * k.tile_columns;
  if (slice < k.tile_columns) slice = k.tile_columns;
  parallel_for((outputs + slice - 1) / slice, threads, control, [&](index task, int worker) {
    if (control.stopped(worker == 0)) return;
    const index first = task * slice;
    const index width = outputs - first < slice ? outputs - first : slice;
    const index from = fault(Fault::pack_slice_repeated) && task == 1 ? 0 : first;
    k.pack_panels(packed + first * terms, source + from * outputs_stride, terms, terms_stride, width, outputs_stride);
  });
}

}  // namespace fastrnn
