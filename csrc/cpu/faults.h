// Seeded faults: tests/mutations.py shows that the suite sees each of them. They exist in builds with the CMake option
// FASTRNN_FAULTS alone, where the environment variable FASTRNN_FAULT names the one that is active; in every other build
// fault(...) is a constant false and leaves no trace in the object code.
#pragma once

#if FASTRNN_FAULTS
#include <vector>
#endif

#define FASTRNN_FAULT_LIST(X)                                                                                    \
  X(bias_dropped, "z lacks b_hh of the last unit")                                                               \
  X(x_of_the_step_before, "x of step t - 1 for that of t, at one step that is not hoisted")                      \
  X(x_strided_last_element, "x that is not contiguous: x[0] for the last input")                                 \
  X(projected_last_unit_lost, "x that is projected already is not read for the last unit")                       \
  X(reset_ignored, "the last batch row is never reset")                                                          \
  X(zoneout_of_the_masked_state, "a kept unit keeps the state with the recurrent mask on it")                    \
  X(leak_tail_lost, "leaky units: 0 for the state that leaks, for units in a vector that is not full")           \
  X(h_n_at_the_last_step, "h_n of a short row is taken at T")                                                    \
  X(h_n_of_an_empty_row, "h_n of a row without steps is 0, not h_0")                                             \
  X(output_not_cleared, "output beyond a row's length keeps what was there")                                     \
  X(thread_block_missed, "with threads, the last block of batch rows is not computed")                           \
  X(model_missed, "with threads, the last model of an ensemble is not computed")                                 \
  X(unit_slice_missed, "threads on one step: the last slice of the units is not computed, at one step")          \
  X(unit_slice_missed_in_backward, "the same in BPTT")                                                           \
  X(packed_weights_stale, "frozen(): one packed weight is not the one that was given")                           \
  X(tail_lane_lost, "a vector that is not full is stored without its last lane")                                 \
  X(whole_vector_read, "of a vector that is not full the last lane is read, too, and dropped")                   \
  X(whole_vector_written, "the lane behind a vector that is not full is written, with what it held")             \
  X(whole_panel_read, "of a panel that is not full the last weight is read, too, and dropped")                   \
  X(refused_memory_leaks, "a workspace that is refused leaves a block behind")                                   \
  X(written_before_memory_is_there, "h_n is written before the workspace is there")                              \
  X(kept_memory_taken_twice, "a block that is taken stays among those that are kept")                            \
  X(kept_memory_without_end, "whatever is freed is kept, beyond the limit, too")                                 \
  X(sum_block_skipped, "the canonical sum lacks its second block")                                               \
  X(short_call_block_repeated, "weights not packed ahead: each block of the sum takes the row's first elements") \
  X(tiles_beyond_a_run_missed,                                                                                   \
    "weights packed on the way: rows beyond the tiles that share a block are left as they were")                 \
  X(narrow_last_terms_lost, "few outputs, rows as lanes: the terms beyond the last whole group are lost")        \
  X(sum_in_one_chain, "a sum is one chain: right, but less accurate")                                            \
  X(sum_order_by_rows, "one row alone is summed in another order: right, but not the same bits")                 \
  X(sum_order_by_alignment, "rows at odd addresses are summed in another order")                                 \
  X(pack_slice_repeated, "weights so large that they are packed in slices: the first slice twice")               \
  X(row_slice_missed, "rows so wide that a step stops between them: those after the first stop are lost")        \
  X(tanh_formula_stretched, "one of tanh's formulas is used beyond its range, up or down to 0.9")                \
  X(tanh_sign_lost, "tanh of a negative argument is positive")                                                   \
  X(subnormals_kept, "the kernels keep subnormal numbers")                                                       \
  X(float_environment_of_the_caller, "the caller's rounding mode stays")                                         \
  X(slope_of_the_step_before, "tanh' from h of step t - 1, at one step")                                         \
  X(plain_step_tail_lost, "a step of BPTT without options: no d_output for units in a vector that is not full")  \
  X(slope_of_tanh_for_relu, "relu differentiated as 1 - h^2")                                                    \
  X(d_output_beyond_the_length, "the d_output behind a short row's end stands in for d_h_n")                     \
  X(d_output_of_stride_0_dropped, "a broadcast d_output counts as 0")                                            \
  X(d_h_n_dropped, "d_h_n of rows that end before the longest is lost")                                          \
  X(d_h_0_of_an_empty_row, "d_h_0 of a row without steps is 0, not d_h_n")                                       \
  X(d_x_not_cleared, "d_x beyond a row's length keeps what was there")                                           \
  X(lengths_ignored_in_backward, "BPTT takes all T steps of every row")                                          \
  X(reverse_ignored_in_backward, "BPTT runs as for a row that is not reversed")                                  \
  X(reset_ignored_in_backward, "a gradient passes through a reset")                                              \
  X(reset_multiplies_in_backward, "a gradient is cut by a product with 0, which NaN survives")                   \
  X(row_slice_missed_in_backward, "as row_slice_missed, in BPTT")                                                \
  X(reset_ignored_in_d_w_hh, "d_w_hh takes the state from before a reset")                                       \
  X(recurrent_mask_ignored_in_backward, "d_h is not multiplied by the recurrent mask")                           \
  X(recurrent_mask_ignored_in_d_w_hh, "d_w_hh takes the state without the mask")                                 \
  X(keep_mask_gradient_dropped, "what a kept unit passes on is lost")                                            \
  X(keep_mask_ignored_in_d_sum, "a kept unit has a gradient at its activation")                                  \
  X(leak_gradient_dropped, "what a leaky unit passes on is lost")                                                \
  X(slope_of_the_leaky_state, "leaky units: the slope is taken from h, not from the activation")                 \
  X(x_strided_last_element_in_backward, "leaky units: as x_strided_last_element, where BPTT computes again")     \
  X(recurrent_mask_ignored_in_activations, "leaky units: BPTT computes again without the recurrent mask")        \
  X(d_alpha_without_the_state, "d_alpha takes the activation alone, not its distance from the state")            \
  X(keep_mask_ignored_in_d_alpha, "a kept unit counts in d_alpha")                                               \
  X(d_w_hh_without_step_0, "d_w_hh lacks the term of h_0")                                                       \
  X(d_w_hh_of_the_step_itself, "d_w_hh takes h_t for h_{t-1}, at one step of each block")                        \
  X(d_w_block_skipped, "d_w lacks the block of the first steps, if there are several")                           \
  X(d_w_chain_skipped, "a block of d_w lacks its second chain of rows")                                          \
  X(d_w_blocks_by_threads, "with threads, the blocks of d_w are longer: right, but not the same bits")           \
  X(narrow_units_missed, "d_w_ih of a narrow x: units beyond the first task's are not computed")                 \
  X(d_w_panel_missed, "with threads, one task of d_w is not computed")                                           \
  X(sums_begin_again, "BPTT over a part of the steps: d_w_hh loses what the later steps added")                  \
  X(d_b_block_rounding_dropped, "what rounding took from d_b is not given back")                                 \
  X(carry_of_another_row, "between two blocks of steps, the last batch row goes on from the first's d_sum")      \
  X(panel_missed_descending, "panels taken from the last to the first: the last once more for the first")        \
  X(worker_stays_off_a_cpu, "a worker that was woken never again runs on its waker's CPU")                       \
  X(adam_last_element_missed, "a step of Adam leaves the last element of a parameter as it is")                  \
  X(adam_block_missed, "with threads, Adam leaves the last block of a parameter as it is")                       \
  X(adam_decay_dropped, "the gradient lacks the weight decay")                                                   \
  X(adam_mean_of_the_step_before, "the step is taken along the mean of the gradients before")                    \
  X(segment_not_cleared, "the sum of a segment goes on from what was there")                                     \
  X(segment_last_row_missed, "the sum of the last segment lacks its last row")                                   \
  X(segment_block_missed, "with threads, the last segments are not summed")                                      \
  X(maximum_takes_the_last_of_equals, "of equal values, the step of the last")                                   \
  X(maximum_without_the_last_step, "the last step of a row is not looked at")                                    \
  X(maximum_ignores_nan, "NaN is no maximum")                                                                    \
  X(maximum_of_no_steps, "the maximum of a row without steps is 1, not 0")

namespace fastrnn {

#define FASTRNN_FAULT_NAME(name, what) name,
enum class Fault { none, FASTRNN_FAULT_LIST(FASTRNN_FAULT_NAME) };
#undef FASTRNN_FAULT_NAME

#if FASTRNN_FAULTS
struct FaultEntry {
  Fault fault;
  const char* name;
  const char* what;
};
const std::vector<FaultEntry>& known_faults();
void choose_fault(const char* name);  // nullptr or "": none; throws std::runtime_error for an unknown name

extern Fault active_fault;
static inline bool fault(Fault which) { return active_fault == which; }
#else
static constexpr bool fault(Fault) { return false; }
#endif

}  // namespace fastrnn
