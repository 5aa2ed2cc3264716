// What one (batch row, hidden unit) does in BPTT; called as Forward is (rnn_forward.cuh), in the reverse order of
// processing, with the transpose of w_hh. v is d_z, which is carried in the sums' type and stored rounded.
#pragma once

#include "call.cuh"
#include "cell.cuh"

namespace fastrnn::gpu {

template <class Arithmetic>
struct Backward {
  using A = Arithmetic;
  using Memory = Stored<A>;

  int64 b = 0;
  int j = 0;
  bool exists = false;  // not padding
  A state = 0;  // d_h: of this step while it is being finished, then what its predecessor gets, d_output not added

  A mask = 1, upstream = 0, h = 0;                                       // d_output and output of step i + 1
  bool runs = false, restarts = false, kept = false, kept_next = false;  // of step i; keep_mask of step i + 1
  DataRow next = {};

  static FASTRNN_HD int64 time_of(const Call& call, int64 i) { return call.reverse ? i : call.T - 1 - i; }

  FASTRNN_HD void place(const Call& call, int64 batch_row, int64 unit) {
    b = batch_row;
    j = static_cast<int>(unit);
    exists = batch_row < call.B && unit < call.H;
  }

  FASTRNN_HD void load_mask(const Call& call) {
    if (exists && call.recurrent_mask) mask = Memory::load(call.recurrent_mask, b * call.H + j, call.dtype);
  }

  FASTRNN_HD void load_next(const Call& call, int64 i) {
    if (i >= call.T) return;
    next = data_row(call, time_of(call, i), b);
    if (!next.exists) return;
    upstream = A(0);
    if (call.d_output) {
      const int64 at = offset(call, next, call.d_output_step, call.d_output_row) + j * call.d_output_unit;
      upstream = Memory::load(call.d_output, at, call.dtype);
    }
    h = Memory::load(call.output, offset(call, next, call.output_step, call.output_row) + j, call.dtype);
    kept_next = call.keep_mask && call.keep_mask[next.at * call.H + j] != 0;
  }

  // d_z of the step that load_next has loaded
  FASTRNN_HD A produce(const Call& call, bool writes) {
    A d_z = 0;
    if (next.exists) {
      state = add(state, upstream);
      if (!kept_next) d_z = through_activation(state, h, call.relu != 0);
    }
    if (writes && (next.exists || is_blank(call, next))) {
      Memory::store(call.d_z, offset(call, next, call.d_z_step, call.d_z_row) + j, call.dtype, d_z);
    }
    return d_z;
  }

  FASTRNN_HD A start(const Call& call, bool writes) {
    if (!exists) return 0;
    load_mask(call);
    if (call.d_h_n) state = Memory::load(call.d_h_n, b * call.d_h_n_row + j * call.d_h_n_unit, call.dtype);
    if (call.T == 0) return 0;
    load_next(call, 0);
    return produce(call, writes);
  }

  FASTRNN_HD void load(const Call& call, int64 i) {
    if (!exists) return;
    const DataRow row = data_row(call, time_of(call, i), b);
    runs = row.exists;
    kept = runs && call.keep_mask && call.keep_mask[row.at * call.H + j] != 0;
    restarts = runs && call.reset && call.reset[row.at] != 0;
    load_next(call, i + 1);
  }

  FASTRNN_HD A finish(const Call& call, int64 i, A sum, bool writes) {
    if (!exists) return 0;
    if (runs) {
      A d_p = mul(sum, mask);
      if (kept) d_p = add(d_p, state);
      state = restarts ? A(0) : d_p;
    }
    return i + 1 < call.T ? produce(call, writes) : A(0);
  }

  FASTRNN_HD void end(const Call& call) const {
    if (exists) Memory::store(call.d_h_0, b * call.d_h_0_row + j, call.dtype, state);
  }
};

}  // namespace fastrnn::gpu
