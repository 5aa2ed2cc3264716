// What one instruction set consists of: included by isa_*.cc after FASTRNN_VEC, FASTRNN_NAMESPACE and FASTRNN_ISA_NAME.
// Everything below has internal linkage: FASTRNN_NAMESPACE lies in an anonymous namespace.

#include "faults.h"
#include "kernels.h"
#include "sum_order.h"

namespace fastrnn {
namespace {
namespace FASTRNN_NAMESPACE {

#include "vec.h"
// after vec.h, in this order
#include "tanh.inl"
#include "tile.inl"
#include "pack.inl"
#include "rnn_forward.inl"
#include "rnn_backward.inl"

// The measured peak: independent chains on most registers. The sum goes out, so that the compiler must compute it.
template <class T>
static double fma_loop(index iterations, T* result) {
  using S = Vec<T>;
  constexpr unsigned chains = S::registers == 32 ? 24 : 12;
  typename S::V acc[chains];
  const auto a = S::set(T(0.999999)), b = S::set(T(1e-6));
#pragma GCC unroll 24
  for (unsigned i = 0; i < chains; ++i) acc[i] = S::set(T(i));
  for (index it = 0; it < iterations; ++it) {
#pragma GCC unroll 24
    for (unsigned i = 0; i < chains; ++i) acc[i] = S::fma(acc[i], a, b);
  }
  for (unsigned i = 1; i < chains; ++i) acc[0] = S::add(acc[0], acc[i]);
  S::store_part(result, acc[0], 1);
  return 2.0 * static_cast<double>(iterations) * chains * static_cast<double>(S::lanes);
}

template <class T>
constexpr Kernels<T> table() {
  return Kernels<T>{Vec<T>::lanes,    Tile<T>::rows,  Tile<T>::columns, pack_panels<T>,  forward_step<T>,
                    backward_step<T>, row_product<T>, pack_tiles<T>,    pack_operand<T>, weight_gradient<T>,
                    bias_gradient<T>, tanh_array<T>,  fma_loop<T>};
}

}  // namespace FASTRNN_NAMESPACE
}  // namespace

extern const InstructionSet FASTRNN_ISA_TABLE;
const InstructionSet FASTRNN_ISA_TABLE = {FASTRNN_ISA_NAME, FASTRNN_NAMESPACE::table<float>(),
                                          FASTRNN_NAMESPACE::table<double>()};

}  // namespace fastrnn
