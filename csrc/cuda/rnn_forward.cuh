// What one (batch row, hidden unit) does forward. The kernels call start() once; then, for each step i in the order of
// processing, load(i), which the sum does not need, and finish(i, sum), with sum = w_hh v_i; last, end(). What start
// and finish return is the unit's part of the next v: the state that enters w_hh.
#pragma once

#include "call.cuh"
#include "cell.cuh"

namespace fastrnn::gpu {

template <class Arithmetic>
struct Forward {
  using A = Arithmetic;
  using Memory = Stored<A>;

  int64 b = 0;
  int j = 0;
  bool exists = false;  // not padding
  A state = 0;          // the value that output holds: rounded to the storage type

  A mask = 1, xp = 0;
  bool kept = false, restarts = false, restarts_next = false;  // keep_mask and reset of step i, reset of step i + 1
  DataRow row = {};

  static FASTRNN_HD int64 time_of(const Call& call, int64 i) { return call.reverse ? call.T - 1 - i : i; }

  FASTRNN_HD void place(const Call& call, int64 batch_row, int64 unit) {
    b = batch_row;
    j = static_cast<int>(unit);
    exists = batch_row < call.B && unit < call.H;
  }

  static FASTRNN_HD bool resets(const Call& call, int64 i, int64 b) {
    if (!call.reset || i >= call.T) return false;
    const DataRow at = data_row(call, time_of(call, i), b);
    return at.exists && call.reset[at.at] != 0;
  }

  FASTRNN_HD A entering(bool restart) const { return mul(restart ? A(0) : state, mask); }

  FASTRNN_HD void load_mask(const Call& call) {
    if (exists && call.recurrent_mask) mask = Memory::load(call.recurrent_mask, b * call.H + j, call.dtype);
  }

  FASTRNN_HD A start(const Call& call, bool) {
    if (!exists) return 0;
    load_mask(call);
    if (call.h_0) state = Memory::load(call.h_0, b * call.h_0_row + j * call.h_0_unit, call.dtype);
    return entering(resets(call, 0, b));
  }

  FASTRNN_HD void load(const Call& call, int64 i) {
    if (!exists) return;
    row = data_row(call, time_of(call, i), b);
    restarts_next = resets(call, i + 1, b);
    if (!row.exists) return;
    xp = Memory::load(call.xp, offset(call, row, call.xp_step, call.xp_row) + j, call.dtype);
    kept = call.keep_mask && call.keep_mask[row.at * call.H + j] != 0;
    restarts = kept && call.reset && call.reset[row.at] != 0;
  }

  FASTRNN_HD A finish(const Call& call, int64, A sum, bool writes) {
    if (!exists) return 0;
    if (row.exists) {
      const A p = restarts ? A(0) : state;
      state = kept ? p : Memory::rounded(call.dtype, activate(add(xp, sum), call.relu != 0));
    }
    if (writes && (row.exists || is_blank(call, row))) {
      const int64 at = offset(call, row, call.output_step, call.output_row) + j;
      Memory::store(call.output, at, call.dtype, row.exists ? state : A(0));
    }
    return entering(restarts_next);
  }

  FASTRNN_HD void end(const Call& call) const {
    if (exists) Memory::store(call.h_n, b * call.h_n_row + j, call.dtype, state);
  }
};

}  // namespace fastrnn::gpu
