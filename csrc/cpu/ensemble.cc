// Threads take whole models: nobody waits for anybody, and a model's weights and states stay in one core's cache. What
// is left when all threads have had as many is done one after the other, by all threads on the same model.

#include "ensemble.h"

#include <atomic>
#include <exception>

#include "faults.h"
#include "split.h"

namespace fastrnn {
namespace {

// run(model, threads, control) for all models; flops: of one
template <class Run>
void each_model(index count, double flops, int threads, CallControl& control, Run run) {
  const int useful = useful_threads(threads, flops * static_cast<double>(count));
  const index rest = count % useful;
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  parallel_for(count - rest, useful, control, [&](index model, int worker) {
    if (failed.load(std::memory_order_relaxed) || control.stopped(worker == 0)) return;
    if (fault(Fault::model_missed) && useful > 1 && model == count - rest - 1) return;
    CallControl own(control, worker == 0);
    try {
      run(model, 1, own);
    } catch (const std::exception&) {  // tasks must not throw
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
  for (index model = count - rest; model < count && !control.stopped(true); ++model) run(model, useful, control);
}

double forward_flops(const Shape& n) {
  return 2.0 * static_cast<double>(n.T) * static_cast<double>(n.B) * static_cast<double>(n.H) *
         static_cast<double>(n.I + n.H);
}

}  // namespace

template <class T>
void rnn_forward_ensemble(const std::vector<ForwardProblem<T>>& models, const InstructionSet& set, int threads,
                          CallControl& control) {
  if (models.empty()) return;
  each_model(static_cast<index>(models.size()), forward_flops(models[0].shape), threads, control,
             [&](index model, int own_threads, CallControl& own) {
               rnn_forward<T>(models[static_cast<std::size_t>(model)], set, nullptr, own_threads, own);
             });
}

template <class T>
void rnn_backward_ensemble(const std::vector<BackwardProblem<T>>& models, const InstructionSet& set, int threads,
                           CallControl& control) {
  if (models.empty()) return;
  each_model(static_cast<index>(models.size()), 2 * forward_flops(models[0].shape), threads, control,
             [&](index model, int own_threads, CallControl& own) {
               rnn_backward<T>(models[static_cast<std::size_t>(model)], set, own_threads, own);
             });
}

template void rnn_forward_ensemble(const std::vector<ForwardProblem<float>>&, const InstructionSet&, int, CallControl&);
template void rnn_forward_ensemble(const std::vector<ForwardProblem<double>>&, const InstructionSet&, int,
                                   CallControl&);
template void rnn_backward_ensemble(const std::vector<BackwardProblem<float>>&, const InstructionSet&, int,
                                    CallControl&);
template void rnn_backward_ensemble(const std::vector<BackwardProblem<double>>&, const InstructionSet&, int,
                                    CallControl&);

}  // namespace fastrnn
