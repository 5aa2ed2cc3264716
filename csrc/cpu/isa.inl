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
#include "lanes.inl"
#include "tanh_table.inl"
#include "tanh.inl"
#include "turn.inl"
#include "pack.inl"
#include "tile.inl"
#include "rnn_forward.inl"
#include "rnn_backward.inl"
#include "probe.inl"

template <class T>
constexpr Kernels<T> table() {
  return Kernels<T>{Vec<T>::lanes,    Tile<T>::rows,  Tile<T>::columns, pack_panels<T>,     forward_step<T>,
                    backward_step<T>, row_product<T>, pack_operand<T>,  weight_gradient<T>, narrow_gradient<T>,
                    bias_gradient<T>, tanh_array<T>,  fma_loop<T>,      read_loop<T>};
}

}  // namespace FASTRNN_NAMESPACE
}  // namespace

extern const InstructionSet FASTRNN_ISA_TABLE;
const InstructionSet FASTRNN_ISA_TABLE = {FASTRNN_ISA_NAME, FASTRNN_NAMESPACE::table<float>(),
                                          FASTRNN_NAMESPACE::table<double>()};

}  // namespace fastrnn
