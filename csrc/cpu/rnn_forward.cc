// The forward pass: packs the weights, then runs blocks of batch rows over all time, each block on one thread.
//
// Per step of n rows: 2 n H (I + H) FLOPs; the packed weights stream once from the cache that holds them. For small
// blocks, and for few units, the input projection is hoisted: done for many time steps at once, left in the output, and
// picked up there. An x that is projected already takes that way too, with an addition for the product.

#include <cstring>

#include "faults.h"
#include "float_environment.h"
#include "pack_parallel.h"
#include "passes.h"
#include "row_order.h"
#include "split.h"
#include "step_team.h"
#include "sum_order.h"
#include "units.h"
#include "workspace.h"

namespace fastrnn {
namespace {

template <class T>
struct PackedParts {
  Workspace::Part<T> w_ih, w_hh;
};

template <class T>
PackedParts<T> take_packed(Workspace& memory, const Kernels<T>& k, const Shape& shape) {
  return {memory.take<T>(packed_size(k, shape.I, shape.H)), memory.take<T>(packed_size(k, shape.H, shape.H))};
}

template <class T>
void pack(T* w_ih_to, T* w_hh_to, const Kernels<T>& k, const Shape& shape, const Matrix<const T>& w_ih,
          const Matrix<const T>& w_hh, int threads, CallControl& control) {
  pack_parallel(k, threads, control, w_ih_to, w_ih.data, shape.I, w_ih.unit, shape.H, w_ih.row);
  pack_parallel(k, threads, control, w_hh_to, w_hh.data, shape.H, w_hh.unit, shape.H, w_hh.row);
}

template <class T>
class ForwardPass {
public:
  ForwardPass(const ForwardProblem<T>& problem, const Kernels<T>& kernels, const PackedWeights<T>* packed, int threads,
              CallControl& control)
      : p_(problem),
        k_(kernels),
        control_(control),
        order_(problem.shape, problem.options.rows, problem.options.reverse),
        flops_per_row_(2.0 * static_cast<double>(p_.shape.H) * static_cast<double>(p_.shape.I + p_.shape.H)),
        threads_(useful_threads(threads, flops_per_row_ * static_cast<double>(order_.total()))),
        slices_(step_slices(p_.shape, threads_, k_.tile_columns, p_.tuning.slices)),
        blocks_(split_rows(p_.shape.B, slices_ > 1 ? 1 : threads_, k_.tile_rows, p_.tuning.row_block)) {
    const Shape& n = p_.shape;
    const bool pack_now = !packed && worth_packing(order_.steps(), n.B, k_.tile_rows);
    PackedParts<T> parts;
    if (pack_now) parts = take_packed(memory_, k_, n);
    const auto bias = memory_.take<T>(n.H + k_.lanes);
    const auto zero = memory_.take<T>(n.H);
    const index leaky = p_.options.alpha.data ? n.H : 0;
    const auto alpha = memory_.take<T>(leaky), leak = memory_.take<T>(leaky);
    const auto h_0 = memory_.take<T>(p_.h_0.data && p_.h_0.unit != 1 ? checked_product(n.B, n.H) : 0);
    const index lines = checked_product(most_block_rows, threads_);
    const auto x_rows = memory_.take<T>(p_.x.unit != 1 ? checked_product(lines, n.I) : 0);
    const auto masked = memory_.take<T>(p_.options.recurrent_mask ? checked_product(lines, n.H) : 0);
    if (fault(Fault::written_before_memory_is_there)) p_.h_n.data[0] = T(0);
    memory_.allocate();

    w_ih_ = Weights<T>{packed ? packed->w_ih : nullptr, p_.w_ih.data, p_.w_ih.unit, p_.w_ih.row};
    w_hh_ = Weights<T>{packed ? packed->w_hh : nullptr, p_.w_hh.data, p_.w_hh.unit, p_.w_hh.row};
    if (pack_now) {
      pack(memory_[parts.w_ih], memory_[parts.w_hh], k_, n, p_.w_ih, p_.w_hh, threads_, control_);
      w_ih_.packed = memory_[parts.w_ih];
      w_hh_.packed = memory_[parts.w_hh];
    }
    bias_ = memory_[bias];
    sum_biases(bias_, n.H + k_.lanes, n.H, p_.b_ih, p_.b_hh);
    if (leaky > 0) {
      alpha_ = memory_[alpha];
      leak_ = memory_[leak];
      split_leak(alpha_, leak_, n.H, p_.options.alpha);
    }
    zero_ = memory_[zero];
    std::memset(zero_, 0, sizeof(T) * static_cast<std::size_t>(n.H));
    h_0_ = p_.h_0;
    if (p_.h_0.data && p_.h_0.unit != 1) {
      T* to = memory_[h_0];
      for (index b = 0; b < n.B; ++b) {
        for (index j = 0; j < n.H; ++j) to[b * n.H + j] = p_.h_0.data[b * p_.h_0.row + j * p_.h_0.unit];
      }
      h_0_ = Matrix<const T>{to, n.H, 1};
    }
    x_rows_ = p_.x.unit != 1 ? memory_[x_rows] : nullptr;
    masked_ = p_.options.recurrent_mask ? memory_[masked] : nullptr;
  }

  void run() {
    if (slices_ > 1 && blocks_.count == 1) return run_together();
    parallel_for(blocks_.count, threads_, control_, [this](index block, int worker) {
      if (fault(Fault::thread_block_missed) && threads_ > 1 && block == blocks_.count - 1) return;
      run_block(blocks_.first(block), blocks_.last(block), worker);
    });
  }

private:
  const T* initial(index r) const { return h_0_.data ? h_0_.data + order_.slot(r) * h_0_.row : zero_; }

  // x of (t, r), contiguous: where it lies, or copied to line i of this worker's scratch
  const T* x_row(index t, index r, index i, int worker) const {
    const T* from = order_.at(p_.x, t, r);
    if (!x_rows_) return from;
    T* to = x_rows_ + (worker * most_block_rows + i) * p_.shape.I;
    for (index k = 0; k < p_.shape.I; ++k) to[k] = from[k * p_.x.unit];
    if (fault(Fault::x_strided_last_element) && p_.shape.I > 0) to[p_.shape.I - 1] = from[0];
    return to;
  }

  // All rows at once, each thread some units
  void run_together() {
    const index H = p_.shape.H, B = p_.shape.B;
    const index chunk = most_block_rows / B;
    const index check = steps_per_check(flops_per_row_ * static_cast<double>(B));
    StepTeam::run(order_.steps(), slices_, threads_, check, control_, [&](index s, index slice, int worker) {
      if (fault(Fault::unit_slice_missed) && slice == slices_ - 1 && s == 1) return;
      const Columns units = slice_units(slice, slices_, H, k_.tile_columns);
      if (s % chunk == 0) project(s, s + chunk < order_.steps() ? s + chunk : order_.steps(), 0, B, units, worker);
      run_step(s, 0, B, units, true, worker);
    });
    finish_rows(0, B);
  }

  void run_block(index first, index last, int worker) {
    const Columns units{0, p_.shape.H};
    const index rows = last - first;
    const index steps = order_.active_in(0, first, last) > 0 ? order_.length(first) : 0;
    const bool narrow = p_.shape.H <= narrow_outputs(k_.lanes) && p_.shape.I >= 4 * k_.lanes;
    const bool by_size = p_.tuning.hoist >= 0 ? p_.tuning.hoist == 1 : rows < 2 * k_.tile_rows || narrow;
    const bool hoist = by_size || p_.projected;
    index chunk = hoist ? most_block_rows / rows : steps_per_check(flops_per_row_ * static_cast<double>(rows));
    if (p_.tuning.chunk_steps > 0 && p_.tuning.chunk_steps < chunk) chunk = p_.tuning.chunk_steps;
    const index rows_at_once = rows_per_check(flops_per_row_, k_.tile_rows);
    for (index s = 0; s < steps; s += chunk) {
      if (control_.stopped(worker == 0)) return;
      const index end = s + chunk < steps ? s + chunk : steps;
      if (hoist) project(s, end, first, last, units, worker);
      for (index step = s; step < end; ++step) {
        for (index r = first; r < last; r += rows_at_once) {
          if (r > first && control_.stopped(worker == 0)) return;
          if (r > first && fault(Fault::row_slice_missed)) break;
          run_step(step, r, r + rows_at_once < last ? r + rows_at_once : last, units, hoist, worker);
        }
      }
    }
    finish_rows(first, last);
  }

  // h_n, and zeros beyond the rows' lengths
  void finish_rows(index first, index last) const {
    const Shape& n = p_.shape;
    for (index r = first; r < last; ++r) {
      const index length = order_.length(r);
      const T* h_n = length > 0 ? order_.at(p_.output, order_.time(length - 1, r), r) : initial(r);
      if (fault(Fault::h_n_at_the_last_step) && !order_.packed() && length > 0) h_n = order_.at(p_.output, n.T - 1, r);
      if (fault(Fault::h_n_of_an_empty_row) && length == 0) h_n = zero_;
      std::memcpy(p_.h_n.data + order_.slot(r) * p_.h_n.row, h_n, sizeof(T) * static_cast<std::size_t>(n.H));
      if (order_.packed() || fault(Fault::output_not_cleared)) continue;
      for (index t = length; t < n.T; ++t) {
        std::memset(order_.at(p_.output, t, r), 0, sizeof(T) * static_cast<std::size_t>(n.H));
      }
    }
  }

  // output = b + w_ih x for steps [s, end) of the block
  void project(index s, index end, index first, index last, Columns units, int worker) {
    const T* x[most_block_rows];
    T* out[most_block_rows];
    index lines = 0;
    for (; s < end; ++s) {
      const index active = order_.active_in(s, first, last);
      for (index r = first; r < first + active; ++r, ++lines) {
        const index t = order_.time(s, r);
        out[lines] = order_.at(p_.output, t, r);
        if (p_.projected) {
          seed_sum(out[lines], bias_, order_.at(p_.x, t, r), p_.x.unit, units);
        } else {
          x[lines] = x_row(t, r, lines, worker);
        }
      }
    }
    if (p_.projected) return;
    RowProduct<T> product;
    product.rows = lines;
    product.terms = p_.shape.I;
    product.outputs = units;
    product.a = x;
    product.weights = w_ih_;
    product.bias = bias_;
    product.out = out;
    product.tile_rows = p_.tuning.tile_rows;
    k_.row_product(product);
  }

  void run_step(index s, index first, index last, Columns units, bool hoisted, int worker) {
    const RnnOptions<T>& o = p_.options;
    const index H = p_.shape.H;
    const T* x[most_block_rows];
    const T* x_next[most_block_rows];
    const T* state[most_block_rows];
    const T* kept[most_block_rows];
    const unsigned char* keep[most_block_rows];
    T* out[most_block_rows];
    const index rows = order_.active_in(s, first, last);
    if (rows == 0) return;
    for (index i = 0; i < rows; ++i) {
      const index r = first + i;
      const index t = order_.time(s, r);
      out[i] = order_.at(p_.output, t, r);
      if (!hoisted) {
        x[i] = x_row(fault(Fault::x_of_the_step_before) && s == 3 ? order_.time(2, r) : t, r, i, worker);
        x_next[i] = s + 1 < order_.length(r) ? order_.at(p_.x, order_.time(s + 1, r), r) : x[i];
      }
      const T* previous = s > 0 ? order_.at(p_.output, order_.time(s - 1, r), r) : initial(r);
      const bool forgotten = fault(Fault::reset_ignored) && r == p_.shape.B - 1;
      if (o.reset && o.reset[order_.position(t, r)] && !forgotten) previous = zero_;
      kept[i] = state[i] = previous;
      if (o.keep_mask) keep[i] = o.keep_mask + order_.position(t, r) * H;
      if (masked_) {
        T* to = masked_ + (worker * most_block_rows + i) * H;
        const T* mask = o.recurrent_mask + order_.slot(r) * H;
        for (index j = 0; j < H; ++j) to[j] = previous[j] * mask[j];
        state[i] = to;
        if (fault(Fault::zoneout_of_the_masked_state)) kept[i] = to;
      }
    }
    ForwardStep<T> step;
    step.rows = rows;
    step.I = p_.shape.I;
    step.H = H;
    step.units = units;
    step.x = hoisted ? nullptr : x;
    step.x_next = hoisted || x_rows_ ? nullptr : x_next;
    step.state = state;
    step.kept = kept;
    step.keep = o.keep_mask ? keep : nullptr;
    step.alpha = alpha_;
    step.leak = leak_;
    step.out = out;
    step.w_ih = w_ih_;
    step.w_hh = w_hh_;
    step.bias = bias_;
    step.relu = o.relu;
    step.tile_rows = p_.tuning.tile_rows;
    step.descending = s % 2 != 0;
    k_.forward_step(step);
  }

  const ForwardProblem<T>& p_;
  const Kernels<T>& k_;
  CallControl& control_;
  RowOrder order_;
  double flops_per_row_;
  int threads_;
  index slices_;  // threads on one step
  RowBlocks blocks_;
  Workspace memory_;
  Weights<T> w_ih_, w_hh_;
  T* bias_ = nullptr;
  T* zero_ = nullptr;
  T* alpha_ = nullptr;
  T* leak_ = nullptr;  // 1 - alpha
  Matrix<const T> h_0_;
  T* x_rows_ = nullptr;
  T* masked_ = nullptr;
};

}  // namespace

template <class T>
PackedWeights<T> pack_weights(const InstructionSet& set, const Shape& shape, const Matrix<const T>& w_ih,
                              const Matrix<const T>& w_hh) {
  const Kernels<T>& k = kernels_of<T>(set);
  PackedWeights<T> result;
  result.set = &set;
  result.I = shape.I;
  result.H = shape.H;
  result.memory = std::make_unique<Workspace>();
  const PackedParts<T> parts = take_packed(*result.memory, k, shape);
  result.memory->allocate();
  T* to_ih = (*result.memory)[parts.w_ih];
  T* to_hh = (*result.memory)[parts.w_hh];
  CallControl control(nullptr, nullptr);
  pack(to_ih, to_hh, k, shape, w_ih, w_hh, 1, control);
  if (fault(Fault::packed_weights_stale)) to_hh[0] = T(0);
  result.w_ih = to_ih;
  result.w_hh = to_hh;
  return result;
}

template <class T>
void rnn_forward(const ForwardProblem<T>& problem, const InstructionSet& set, const PackedWeights<T>* packed,
                 int threads, CallControl& control) {
  if (problem.shape.B == 0) return;
  const FloatEnvironment environment(Subnormals::zero);
  ForwardPass<T>(problem, kernels_of<T>(set), packed, threads, control).run();
}

template PackedWeights<float> pack_weights(const InstructionSet&, const Shape&, const Matrix<const float>&,
                                           const Matrix<const float>&);
template PackedWeights<double> pack_weights(const InstructionSet&, const Shape&, const Matrix<const double>&,
                                            const Matrix<const double>&);
template void rnn_forward(const ForwardProblem<float>&, const InstructionSet&, const PackedWeights<float>*, int,
                          CallControl&);
template void rnn_forward(const ForwardProblem<double>&, const InstructionSet&, const PackedWeights<double>*, int,
                          CallControl&);

}  // namespace fastrnn
