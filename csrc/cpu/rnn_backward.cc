// BPTT in chunks of time steps, from the last processed step to the first. A chunk is one block of the canonical sum
// of d_w (sum_order.h), about 256 rows, so that its d_sum (the gradient at tanh's argument) is in cache for all uses:
//
//   1. the sequential part, over blocks of batch rows:    d_sum of every (step, row) of the chunk
//   2. d_x, d_b, and the operands of 3 repacked:          2 n H I FLOPs (projected x: d_x is d_sum)
//   3. d_w_ih and d_w_hh, by panels or units:             2 n H (I + H) FLOPs
//      (with units as lanes and x as it lies where x has few columns)
//
// Only h is saved: tanh' = 1 - h^2. Memory beside the outputs: the packed weights, and for
// one chunk d_sum, x and h.
//
// With leaky units, activations.h computes the activations of a chunk first: 2 n H (I + H) FLOPs more, and memory for
// the packed weights of the forward pass and for two more d_sum.

#include <cmath>
#include <cstring>

#include "activations.h"
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

// Distance between d_sum rows: whole cache lines, an odd number of them, so that a column does not share cache sets
template <class T>
index padded_row(index H) {
  const index line = 64 / static_cast<index>(sizeof(T));
  const index lines = (H + line - 1) / line;
  return (lines | 1) * line;
}

template <class T>
class BackwardPass {
public:
  BackwardPass(const BackwardProblem<T>& problem, const Kernels<T>& kernels, int threads, CallControl& control)
      : p_(problem),
        k_(kernels),
        control_(control),
        order_(problem.shape, rows_of(problem), problem.options.reverse && !fault(Fault::reverse_ignored_in_backward)),
        flops_per_row_(2.0 * static_cast<double>(p_.shape.H) * static_cast<double>(p_.shape.I + p_.shape.H)),
        threads_(useful_threads(threads, 2 * flops_per_row_ * static_cast<double>(order_.total()))),
        slices_(step_slices(p_.shape, threads_, k_.tile_columns, p_.tuning.slices)),
        blocks_(split_rows(p_.shape.B, slices_ > 1 ? 1 : threads_, k_.tile_rows, p_.tuning.row_block)),
        chunk_(gradient_steps(p_.shape.B) + (fault(Fault::d_w_blocks_by_threads) && threads_ > 1 ? 1 : 0)),
        row_(padded_row<T>(p_.shape.H)),
        activations_(problem, kernels) {
    const Shape& n = p_.shape;
    narrow_x_ = n.I > 0 && n.I <= narrow_columns(k_.lanes);
    const bool operands = needs_weights() || leaky();
    const index steps = chunk_ < order_.steps() ? chunk_ : order_.steps();
    const index lines = largest_chunk();
    const bool pack_now = worth_packing(order_.steps(), n.B, k_.tile_rows);
    const bool pack_w_hh_t = pack_now && (order_.steps() > 1 || p_.d_h_0.data);  // else nothing goes back in time
    const auto w_hh_t = memory_.take<T>(pack_w_hh_t ? packed_size(k_, n.H, n.H) : 0);
    const auto w_ih_t = memory_.take<T>(pack_now && p_.d_x.data ? packed_size(k_, n.H, n.I) : 0);
    const auto d_sum = memory_.take<T>(checked_product(lines + 1, row_));  // the last row's last tile reads on
    const auto carry = memory_.take<T>(order_.steps() > chunk_ ? checked_product(n.B, row_) : 0);
    const auto d_state = memory_.take<T>(p_.options.keep_mask || leaky() ? checked_product(n.B, n.H) : 0);
    const auto first_line = memory_.take<index>(steps + 1);
    const auto x_panels =
        memory_.take<T>(p_.d_w_ih.data && !narrow_x_ ? checked_product(packed_size(k_, 1, n.I), lines) : 0);
    const auto h_panels = memory_.take<T>(p_.d_w_hh.data ? checked_product(packed_size(k_, 1, n.H), lines) : 0);
    const auto x_rows = memory_.take<const T*>(operands ? lines : 0);
    const auto h_rows = memory_.take<const T*>(operands ? lines : 0);
    const auto mask_rows = memory_.take<const T*>(operands && p_.options.recurrent_mask ? lines : 0);
    copy_states_ = operands && (p_.output.unit != 1 || (p_.h_0.data && p_.h_0.unit != 1));
    const bool fresh = !p_.accumulate;
    const auto lost = memory_.take<T>(p_.d_b.data && fresh ? n.H : 0);
    const auto state_copy = memory_.take<T>(copy_states_ ? checked_product(lines, n.H) : 0);
    const index leaky_units = leaky() ? n.H : 0;
    const auto alpha = memory_.take<T>(leaky_units), leak = memory_.take<T>(leaky_units);
    const auto d_alpha = memory_.take<T>(p_.d_alpha.data ? checked_product(lines, row_) : 0);
    const auto lost_of_alpha = memory_.take<T>(p_.d_alpha.data && fresh ? n.H : 0);
    if (leaky()) activations_.take(memory_, lines, row_, pack_now);
    memory_.allocate();

    w_hh_t_ = Weights<T>{nullptr, p_.w_hh.data, p_.w_hh.row, p_.w_hh.unit};
    w_ih_t_ = Weights<T>{nullptr, p_.w_ih.data, p_.w_ih.row, p_.w_ih.unit};
    if (pack_w_hh_t) {
      w_hh_t_.packed = memory_[w_hh_t];
      pack_parallel(k_, threads_, control_, memory_[w_hh_t], p_.w_hh.data, n.H, p_.w_hh.row, n.H, p_.w_hh.unit);
    }
    if (pack_now && p_.d_x.data) {
      w_ih_t_.packed = memory_[w_ih_t];
      pack_parallel(k_, threads_, control_, memory_[w_ih_t], p_.w_ih.data, n.H, p_.w_ih.row, n.I, p_.w_ih.unit);
    }
    d_sum_ = memory_[d_sum];
    carry_ = memory_[carry];
    d_state_ = p_.options.keep_mask || leaky() ? memory_[d_state] : nullptr;
    first_line_ = memory_[first_line];
    x_panels_ = memory_[x_panels];
    h_panels_ = memory_[h_panels];
    x_rows_ = memory_[x_rows];
    h_rows_ = memory_[h_rows];
    mask_rows_ = p_.options.recurrent_mask ? memory_[mask_rows] : nullptr;
    state_copy_ = memory_[state_copy];
    lost_ = fresh ? memory_[lost] : p_.b_lost;
    if (!leaky()) return;
    alpha_ = memory_[alpha];
    leak_ = memory_[leak];
    split_leak(alpha_, leak_, n.H, p_.options.alpha);
    d_alpha_ = p_.d_alpha.data ? memory_[d_alpha] : nullptr;
    lost_of_alpha_ = fresh ? memory_[lost_of_alpha] : p_.alpha_lost;
    activations_.use(memory_, threads_, control_);
  }

  void run() {
    clear_outputs();
    if (order_.total() > 0) run_chunks();
    if (p_.d_b.data && !p_.accumulate && !fault(Fault::d_b_block_rounding_dropped)) give_back(p_.d_b.data, lost_);
    if (p_.d_alpha.data && !p_.accumulate) give_back(p_.d_alpha.data, lost_of_alpha_);
    if (p_.d_h_0.data) {
      for (index r = order_.active(0); r < p_.shape.B; ++r) copy_last_to_first(r);
    }
  }

private:
  void run_chunks() {
    for (index end = order_.steps(); end > 0; end -= chunk_) {
      if (control_.stopped(true)) return;
      run_chunk(end > chunk_ ? end - chunk_ : 0, end);
    }
  }

  static const RowMap& rows_of(const BackwardProblem<T>& problem) {
    static constexpr RowMap all;
    const RowMap& rows = problem.options.rows;
    return fault(Fault::lengths_ignored_in_backward) && rows.lengths ? all : rows;
  }

  bool needs_weights() const { return p_.d_w_ih.data || p_.d_w_hh.data; }
  bool leaky() const { return p_.options.alpha.data != nullptr; }

  // What the additions to a sum of blocks rounded away; where it is not finite, the sum is infinite or NaN already
  void give_back(T* sum, const T* lost) const {
    for (index j = 0; j < p_.shape.H; ++j) {
      if (std::isfinite(lost[j])) sum[j] += lost[j];
    }
  }

  index largest_chunk() const {
    index largest = 0;
    for (index end = order_.steps(); end > 0; end -= chunk_) {
      index lines = 0;
      for (index s = end > chunk_ ? end - chunk_ : 0; s < end; ++s) lines += order_.active(s);
      largest = lines > largest ? lines : largest;
      if (order_.total() == checked_product(order_.steps(), order_.batch()))
        break;  // all chunks but the last are alike
    }
    return largest;
  }

  // The weight gradients of the first chunk are stored, not added: nothing to clear for them where there are steps.
  void clear_outputs() const {
    const Shape& n = p_.shape;
    if (!p_.accumulate) clear_sums();
    if (!p_.d_x.data || order_.packed() || fault(Fault::d_x_not_cleared)) return;
    for (index r = 0; r < n.B; ++r) {
      for (index t = order_.length(r); t < n.T; ++t) clear(order_.at(p_.d_x, t, r), p_.projected ? n.H : n.I);
    }
  }

  static void clear(T* at, index count) { std::memset(at, 0, sizeof(T) * static_cast<std::size_t>(count)); }

  void clear_sums() const {
    const Shape& n = p_.shape;
    for (index j = 0; j < n.H && order_.total() == 0; ++j) {
      if (p_.d_w_ih.data) clear(p_.d_w_ih.data + j * p_.d_w_ih.row, n.I);
      if (p_.d_w_hh.data) clear(p_.d_w_hh.data + j * p_.d_w_hh.row, n.H);
    }
    if (p_.d_b.data) {
      clear(p_.d_b.data, n.H);
      clear(lost_, n.H);
    }
    if (p_.d_alpha.data) {
      clear(p_.d_alpha.data, n.H);
      clear(lost_of_alpha_, n.H);
    }
  }

  // A row of length 0: h_n is h_0
  void copy_last_to_first(index r) const {
    T* to = p_.d_h_0.data + order_.slot(r) * p_.d_h_0.row;
    const T* from = p_.d_h_n.data ? p_.d_h_n.data + order_.slot(r) * p_.d_h_n.row : nullptr;
    if (fault(Fault::d_h_0_of_an_empty_row)) from = nullptr;
    for (index j = 0; j < p_.shape.H; ++j) to[j] = from ? from[j * p_.d_h_n.unit] : T(0);
  }

  // Of (s, r) in this chunk: steps descend, rows ascend
  index line_of(index s, index r) const { return first_line_[s - begin_] + r; }
  T* d_sum(index s, index r) const { return d_sum_ + line_of(s, r) * row_; }

  void run_chunk(index begin, index end) {
    begin_ = begin;
    end_ = end;
    lines_ = 0;
    for (index s = end - 1; s >= begin; --s) {
      first_line_[s - begin] = lines_;
      lines_ += order_.active(s);
    }
    if (needs_weights() || leaky()) gather_operands();
    if (leaky()) {
      compute_activations();
      if (control_.stopped(true)) return;
    }
    if (slices_ > 1 && blocks_.count == 1) {
      run_together();
    } else {
      parallel_for(blocks_.count, threads_, control_,
                   [this](index block, int worker) { run_block(blocks_.first(block), blocks_.last(block), worker); });
    }
    if (control_.stopped(true)) return;
    middle_phase();
    if (fault(Fault::d_w_block_skipped) && begin == 0 && end < order_.steps()) return;
    if (needs_weights() && !control_.stopped(true)) weight_phase();
  }

  void compute_activations() {
    constexpr index rows = Activations<T>::most_rows;
    parallel_for((lines_ + rows - 1) / rows, threads_, control_, [&](index group, int worker) {
      if (control_.stopped(worker == 0)) return;
      const index first = group * rows;
      activations_.compute(first, first + rows < lines_ ? first + rows : lines_, x_rows_, h_rows_, mask_rows_);
    });
  }

  // ---- 1. the sequential part

  // All rows at once, each thread some units
  void run_together() {
    const index B = p_.shape.B;
    const index steps = end_ - begin_ + (begin_ == 0 && p_.d_h_0.data ? 1 : 0);  // the last one: h_0
    const index check = steps_per_check(flops_per_row_ * static_cast<double>(B));
    StepTeam::run(steps, slices_, threads_, check, control_, [&](index i, index slice, int) {
      const index s = end_ - 1 - i;
      if (fault(Fault::unit_slice_missed_in_backward) && slice == slices_ - 1 && s == 1) return;
      const Columns units = slice_units(slice, slices_, p_.shape.H, k_.tile_columns);
      const index continues = order_.active(s + 1);
      run_step(s, 0, continues, units, true);
      if (s >= 0) run_step(s, continues, order_.active(s), units, false);
    });
    if (begin_ > 0) keep_carry(0, B);
  }

  // d_sum of the chunk's first step, for the chunk before it
  void keep_carry(index first, index last) const {
    const index rows = order_.active_in(begin_, first, last);
    for (index r = first; r < first + rows; ++r) {
      std::memcpy(carry_ + r * row_, d_sum(begin_, r), sizeof(T) * static_cast<std::size_t>(p_.shape.H));
    }
  }

  void run_block(index first, index last, int worker) {
    const Columns units{0, p_.shape.H};
    const index per_check = steps_per_check(flops_per_row_ * static_cast<double>(last - first));
    const index rows_at_once = rows_per_check(flops_per_row_, k_.tile_rows);
    index unchecked = 0;
    for (index s = end_ - 1; s >= begin_; --s) {
      if (++unchecked >= per_check) {
        unchecked = 0;
        if (control_.stopped(worker == 0)) return;
      }
      const index later = order_.active_in(s + 1, first, last);
      const index now = order_.active_in(s, first, last);
      for (index r = first; r < first + now; r += rows_at_once) {
        if (r > first && control_.stopped(worker == 0)) return;
        if (r > first && fault(Fault::row_slice_missed_in_backward)) break;
        const index end = r + rows_at_once < first + now ? r + rows_at_once : first + now;
        const index continues = first + later < end ? first + later : end;
        run_step(s, r, continues, units, true);
        run_step(s, continues > r ? continues : r, end, units, false);
      }
    }
    if (begin_ > 0) {
      keep_carry(first, last);
    } else if (p_.d_h_0.data) {
      run_step(-1, first, first + order_.active_in(0, first, last), units, true);
    }
  }

  // Rows [first, last) at step s; s = -1 is h_0. continues: these rows have a step s + 1, the others end here.
  void run_step(index s, index first, index last, Columns units, bool continues) {
    if (first >= last) return;
    const RnnOptions<T>& o = p_.options;
    const index H = p_.shape.H;
    const T* next[most_block_rows];
    const T* end[most_block_rows];
    const T* mask[most_block_rows];
    const T* d_output[most_block_rows];
    const T* h[most_block_rows];
    const T* entered[most_block_rows];
    T* d_alpha[most_block_rows];
    const unsigned char* cut[most_block_rows];
    const unsigned char* keep_next[most_block_rows];
    const unsigned char* keep[most_block_rows];
    T* state[most_block_rows];
    T* to[most_block_rows];
    for (index r = first, i = 0; r < last; ++r, ++i) {
      const index slot = order_.slot(r);
      if (continues) {
        next[i] = s + 1 == end_ ? carry_ + r * row_ : d_sum(s + 1, r);
        if (fault(Fault::carry_of_another_row) && s + 1 == end_ && r == p_.shape.B - 1) next[i] = carry_;
        const index later = order_.position(order_.time(s + 1, r), r);
        if (o.reset) cut[i] = o.reset + later;
        if (o.keep_mask) keep_next[i] = o.keep_mask + later * H;
        if (o.recurrent_mask) mask[i] = o.recurrent_mask + slot * H;
      } else if (p_.d_h_n.data) {
        end[i] = p_.d_h_n.data + slot * p_.d_h_n.row;
        const bool beyond = p_.d_output.data && p_.d_output.unit == p_.d_h_n.unit && !order_.packed() && !o.reverse;
        if (fault(Fault::d_output_beyond_the_length) && beyond && s + 1 < p_.shape.T) {
          end[i] = order_.at(p_.d_output, s + 1, r);
        }
      }
      if (d_state_) state[i] = d_state_ + r * H;
      if (s < 0) {
        to[i] = p_.d_h_0.data + slot * p_.d_h_0.row;
        continue;
      }
      const index t = order_.time(s, r);
      if (p_.d_output.data) d_output[i] = order_.at(p_.d_output, t, r);
      if (o.keep_mask) keep[i] = o.keep_mask + order_.position(t, r) * H;
      h[i] = order_.at(p_.output, fault(Fault::slope_of_the_step_before) && s == 3 ? order_.time(2, r) : t, r);
      to[i] = d_sum(s, r);
      if (!leaky()) continue;
      const index line = line_of(s, r);
      if (!fault(Fault::slope_of_the_leaky_state) || p_.output.unit != 1) h[i] = activations_.row(line);
      entered[i] = fault(Fault::d_alpha_without_the_state) ? nullptr : h_rows_[line];
      if (d_alpha_) d_alpha[i] = d_alpha_ + line * row_;
    }
    BackwardStep<T> step;
    step.rows = last - first;
    step.H = H;
    step.units = units;
    step.w_hh_t = w_hh_t_;
    if (continues) {
      step.d_sum_next = next;
      step.mask = o.recurrent_mask && !fault(Fault::recurrent_mask_ignored_in_backward) ? mask : nullptr;
      step.cut = o.reset && !fault(Fault::reset_ignored_in_backward) ? cut : nullptr;
      step.keep_next = o.keep_mask && !fault(Fault::keep_mask_gradient_dropped) ? keep_next : nullptr;
      step.leak = fault(Fault::leak_gradient_dropped) ? nullptr : leak_;
    } else if (p_.d_h_n.data) {
      step.last = fault(Fault::d_h_n_dropped) && s + 1 < order_.steps() ? nullptr : end;
      step.last_unit = p_.d_h_n.unit;
    }
    step.d_state = d_state_ ? state : nullptr;
    if (s >= 0) {
      const bool lost = fault(Fault::d_output_of_stride_0_dropped) && p_.d_output.unit == 0;
      step.d_output = p_.d_output.data && !lost ? d_output : nullptr;
      step.d_output_unit = p_.d_output.unit;
      step.h = h;
      step.h_unit = leaky() ? 1 : p_.output.unit;
      step.alpha = alpha_;
      step.p = entered;
      step.d_alpha = d_alpha_ ? d_alpha : nullptr;
      step.keep = o.keep_mask && !fault(Fault::keep_mask_ignored_in_d_sum) ? keep : nullptr;
    }
    step.d_sum = to;
    step.relu = o.relu && !fault(Fault::slope_of_tanh_for_relu);
    step.tile_rows = p_.tuning.tile_rows;
    step.descending = s % 2 != 0;
    k_.backward_step(step);
  }

  // ---- 2. what depends on d_sum alone, and the operands of 3

  void middle_phase() {
    const index size = lines_of_a_group(), groups = (lines_ + size - 1) / size;
    const index unit_tasks = (p_.d_b.data ? 1 : 0) + (d_alpha_ ? 1 : 0);
    parallel_for(groups + unit_tasks, threads_, control_, [&](index task, int worker) {
      if (control_.stopped(worker == 0)) return;
      if (task < groups) {
        const index first = task * size;
        const index last = first + size < lines_ ? first + size : lines_;
        if (p_.d_x.data) input_gradient(first, last);
        if (p_.d_w_ih.data && !narrow_x_) k_.pack_operand(x_operand(), first, last);
        if (p_.d_w_hh.data) k_.pack_operand(h_operand(), first, last);
      } else if (p_.d_b.data && task == groups) {
        k_.bias_gradient(p_.d_b.data, lost_, d_sum_, lines_, row_, p_.shape.H);
      } else {
        k_.bias_gradient(p_.d_alpha.data, lost_of_alpha_, d_alpha_, lines_, row_, p_.shape.H);
      }
    });
  }

  // d_x reads all of w_ih for each group. Where that is large, groups are, too: a thread's share in even parts, each of
  // at most most_group_flops, since Ctrl-C is seen between them.
  index lines_of_a_group() const {
    const double weights = static_cast<double>(p_.shape.H) * static_cast<double>(p_.shape.I);
    if (!p_.d_x.data || weights * sizeof(T) <= weights_in_cache) return group_lines;
    const double allowed = most_group_flops / (2 * weights);
    const index most = allowed < most_group_lines ? static_cast<index>(allowed) + 1 : most_group_lines;
    const index share = (lines_ + threads_ - 1) / threads_, parts = (share + most - 1) / most;
    const index even = (share + parts - 1) / parts;
    return even > group_lines ? even : group_lines;
  }

  OperandRows<T> x_operand() const { return {lines_, p_.shape.I, x_rows_, p_.x.unit, nullptr, x_panels_}; }
  OperandRows<T> h_operand() const {
    return {lines_,
            p_.shape.H,
            h_rows_,
            copy_states_ ? 1 : p_.output.unit,
            fault(Fault::recurrent_mask_ignored_in_d_w_hh) ? nullptr : mask_rows_,
            h_panels_};
  }

  void input_gradient(index first, index last) const {
    const T* from[most_group_lines];
    T* to[most_group_lines];
    for_each_line(first, last, [&](index line, index s, index r) {
      from[line - first] = d_sum_ + line * row_;
      to[line - first] = order_.at(p_.d_x, order_.time(s, r), r);
    });
    if (p_.projected) {
      const auto bytes = sizeof(T) * static_cast<std::size_t>(p_.shape.H);
      for (index i = 0; i < last - first; ++i) std::memcpy(to[i], from[i], bytes);
      return;
    }
    RowProduct<T> product;
    product.rows = last - first;
    product.terms = p_.shape.H;
    product.outputs = Columns{0, p_.shape.I};
    product.a = from;
    product.weights = w_ih_t_;
    product.out = to;
    if (p_.d_w_ih.data && p_.x.unit == 1) product.ahead = x_rows_ + first;
    product.tile_rows = p_.tuning.tile_rows;
    k_.row_product(product);
  }

  // visit(line, step, row) for the chunk's lines [begin, end)
  template <class Visit>
  void for_each_line(index begin, index end, Visit visit) const {
    for (index s = end_ - 1; s >= begin_; --s) {
      const index first = first_line_[s - begin_];
      const index active = order_.active(s);
      if (first >= end) return;
      for (index r = begin > first ? begin - first : 0; r < active && first + r < end; ++r) visit(first + r, s, r);
    }
  }

  // ---- 3. the weight gradients

  // Of one of the two weights: tasks of all units and one panel of columns, which stays in cache; or of all columns and
  // some units where the whole operand stays there, so that each row of d_w is written from end to end, or has few
  // columns.
  struct WeightTasks {
    bool by_units;
    index size, count;  // units or columns of a task
    Columns units(index task, index H) const { return by_units ? part(task, H) : Columns{0, H}; }
    Columns columns(index task, index width) const { return by_units ? Columns{0, width} : part(task, width); }
    Columns part(index task, index of) const {
      return Columns{task * size, (task + 1) * size < of ? (task + 1) * size : of};
    }
  };

  WeightTasks weight_tasks(const Matrix<T>& d_w, index width, bool narrow) const {
    if (!d_w.data) return WeightTasks{false, 0, 0};
    const bool by_units = narrow || lines_ * width * static_cast<index>(sizeof(T)) <= operand_in_cache;
    const index size = narrow ? narrow_units : by_units ? tiles_a_task * k_.tile_rows : k_.tile_columns;
    return WeightTasks{by_units, size, ((by_units ? p_.shape.H : width) + size - 1) / size};
  }

  void weight_phase() {
    const WeightTasks ih = weight_tasks(p_.d_w_ih, p_.shape.I, narrow_x_);
    const WeightTasks hh = weight_tasks(p_.d_w_hh, p_.shape.H, false);
    parallel_for(ih.count + hh.count, threads_, control_, [&](index task, int worker) {
      if (control_.stopped(worker == 0)) return;
      if (fault(Fault::d_w_panel_missed) && threads_ > 1 && task == 0) return;
      const bool is_hh = task >= ih.count;
      const Matrix<T>& d_w = is_hh ? p_.d_w_hh : p_.d_w_ih;
      const WeightTasks& tasks = is_hh ? hh : ih;
      const index of_these = is_hh ? task - ih.count : task;
      const bool add = (p_.accumulate && !(is_hh && fault(Fault::sums_begin_again))) || end_ < order_.steps();
      if (narrow_x_ && !is_hh) {
        if (fault(Fault::narrow_units_missed) && of_these > 0) return;
        k_.narrow_gradient({lines_, d_sum_, row_, x_rows_, p_.x.unit, p_.shape.I, tasks.units(of_these, p_.shape.H),
                            d_w.data, d_w.row, add});
        return;
      }
      WeightGradient<T> g;
      g.rows = lines_;
      g.d_sum = d_sum_;
      g.d_sum_row = row_;
      g.operand_panels = is_hh ? h_panels_ : x_panels_;
      g.units = tasks.units(of_these, p_.shape.H);
      g.columns = tasks.columns(of_these, is_hh ? p_.shape.H : p_.shape.I);
      g.d_w = d_w.data;
      g.d_w_row = d_w.row;
      g.add = add;
      k_.weight_gradient(g);
    });
  }

  // The rows that multiply d_sum: x, and the state that entered the step (null where a reset or a missing h_0 makes it
  // 0)
  void gather_operands() const {
    const RnnOptions<T>& o = p_.options;
    const index H = p_.shape.H;
    for_each_line(0, lines_, [&](index line, index s, index r) {
      const index t = order_.time(s, r);
      x_rows_[line] = order_.at(p_.x, t, r);
      const T* state = nullptr;
      index unit = p_.output.unit;
      if (s > 0) {
        state = order_.at(p_.output, order_.time(s - 1, r), r);
      } else if (p_.h_0.data) {
        state = p_.h_0.data + order_.slot(r) * p_.h_0.row;
        unit = p_.h_0.unit;
      }
      if (fault(Fault::d_w_hh_without_step_0) && s == 0) state = nullptr;
      if (fault(Fault::d_w_hh_of_the_step_itself) && s == end_ - 1) {
        state = order_.at(p_.output, t, r);
        unit = p_.output.unit;
      }
      const bool forgotten = fault(Fault::reset_ignored_in_d_w_hh);
      if (o.reset && o.reset[order_.position(t, r)] && !forgotten) state = nullptr;
      if (state && copy_states_) {
        T* to = state_copy_ + line * H;
        for (index j = 0; j < H; ++j) to[j] = state[j * unit];
        state = to;
      }
      h_rows_[line] = state;
      if (mask_rows_) mask_rows_[line] = o.recurrent_mask + order_.slot(r) * H;
    });
  }

  static constexpr index group_lines = 48;              // rows of one task: d_x and packing
  static constexpr index most_group_lines = 128;        // the same where w_ih is large
  static constexpr double weights_in_cache = 2 << 20;   // bytes
  static constexpr double most_group_flops = 2e9;       // of d_x, with more lines than group_lines
  static constexpr index tiles_a_task = 8;              // tiles of units that one task turns into rows of d_w
  static constexpr index narrow_units = 256;            // of one task
  static constexpr index operand_in_cache = 64 * 1024;  // bytes

  const BackwardProblem<T>& p_;
  const Kernels<T>& k_;
  CallControl& control_;
  RowOrder order_;
  double flops_per_row_;
  int threads_;
  index slices_;  // threads on one step
  RowBlocks blocks_;
  index chunk_;  // steps
  index row_;    // elements between d_sum rows
  Activations<T> activations_;
  Workspace memory_;
  Weights<T> w_hh_t_, w_ih_t_;
  T* d_sum_ = nullptr;
  T* carry_ = nullptr;  // d_sum of step end_, from the chunk before
  T* d_state_ = nullptr;
  index* first_line_ = nullptr;
  T* x_panels_ = nullptr;
  T* h_panels_ = nullptr;
  const T** x_rows_ = nullptr;
  const T** h_rows_ = nullptr;
  const T** mask_rows_ = nullptr;
  T* state_copy_ = nullptr;
  T* lost_ = nullptr;           // what the additions to d_b rounded away
  T* alpha_ = nullptr;          // these four with leaky units alone
  T* leak_ = nullptr;           // 1 - alpha
  T* d_alpha_ = nullptr;        // what each of the chunk's lines adds to the gradient
  T* lost_of_alpha_ = nullptr;  // what these additions rounded away
  bool copy_states_ = false;
  bool narrow_x_ = false;                  // x has so few columns that it is no operand of tiles
  index begin_ = 0, end_ = 0, lines_ = 0;  // this chunk: steps [begin_, end_), their rows
};

}  // namespace

template <class T>
void rnn_backward(const BackwardProblem<T>& problem, const InstructionSet& set, int threads, CallControl& control) {
  const FloatEnvironment environment(Subnormals::zero);
  BackwardPass<T>(problem, kernels_of<T>(set), threads, control).run();
}

template void rnn_backward(const BackwardProblem<float>&, const InstructionSet&, int, CallControl&);
template void rnn_backward(const BackwardProblem<double>&, const InstructionSet&, int, CallControl&);

}  // namespace fastrnn
