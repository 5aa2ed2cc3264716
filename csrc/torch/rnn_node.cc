// fastrnn.torch's plain layer and step as functions that autograd records, in C++: what fastrnn/torch/autograd.py's
// RnnLayer and cell.py's Step do, to the same bits, without the time that a Python autograd.Function takes. Compiled on
// demand against the installed torch (fastrnn/torch/node.py). Whatever is not plain goes back to Python: forward
// returns None, backward calls what start() was given.

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/from_blob.h>
#include <ATen/record_function.h>
#include <Python.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "rnn_calls.h"

namespace {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

const FastrnnTorchCalls* calls = nullptr;  // set once, by start()
PyObject* in_python = nullptr;             // backward of what is not plain

class Gil {  // which the engine does not hold
public:
  Gil() : state_(PyGILState_Ensure()) {}
  ~Gil() { PyGILState_Release(state_); }
  Gil(const Gil&) = delete;
  Gil& operator=(const Gil&) = delete;

private:
  PyGILState_STATE state_;
};

class Object {  // an owned reference; the GIL is held
public:
  explicit Object(PyObject* owned) : owned_(owned) {}
  ~Object() { Py_XDECREF(owned_); }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  PyObject* get() const { return owned_; }

private:
  PyObject* owned_;
};

[[noreturn]] void throw_python_error() {
  python_error error;
  error.persist();
  throw std::move(error);
}

// ---- tensors as memory

constexpr auto unusual =
    at::kTensorSubclassLike |
    c10::DispatchKeySet({c10::DispatchKey::Negative, c10::DispatchKey::Conjugate, c10::DispatchKey::ZeroTensor});

// Whether its elements simply lie in memory, at whatever strides
bool is_memory(const Tensor& t, at::ScalarType type) {
  if (!t.defined() || !(t.unsafeGetTensorImpl()->key_set() & unusual).empty()) return false;
  if (!t.is_cpu() || t.layout() != at::kStrided || t.scalar_type() != type || !t.has_storage()) return false;
  const auto at = reinterpret_cast<std::uintptr_t>(t.const_data_ptr());
  return at % t.element_size() == 0 && (at != 0 || t.numel() == 0);
}

bool is_dense(const Tensor& t, at::ScalarType type, at::IntArrayRef sizes) {
  return is_memory(t, type) && t.sizes() == sizes && t.is_contiguous();
}

const void* data(const Tensor& t) {
  static const double nothing = 0;  // given, but empty: never read, and not "not given"
  const void* const at = t.const_data_ptr();
  return at ? at : &nothing;
}

const void* data_or_null(const Tensor& t) { return t.defined() ? data(t) : nullptr; }

// Large ones in memory that is kept between calls (csrc/cpu/kept_memory.h has the same least size). The GIL may be
// held.
Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  constexpr double least_kept = 1 << 16, most = 1LL << 60;
  double bytes = static_cast<double>(c10::elementSize(type));  // doubles do not overflow
  for (const int64_t size : sizes) bytes *= static_cast<double>(size);
  if (bytes >= least_kept && bytes < most) {
    void* memory = calls->take(static_cast<std::size_t>(bytes), 0);
    if (!memory) {
      const Gil gil;
      memory = calls->take(static_cast<std::size_t>(bytes), 1);
      if (!memory) throw_python_error();
    }
    return at::for_blob(memory, sizes)
        .context(memory, calls->give)
        .allocator(c10::GetCPUAllocator())
        .resizeable_storage()
        .options(at::TensorOptions(type))
        .make_tensor();
  }
  try {
    return at::detail::empty_cpu(sizes, type);
  } catch (const c10::Error& error) {
    const Gil gil;
    PyErr_SetString(PyExc_MemoryError, error.what_without_backtrace());
    throw_python_error();
  }
}

// More than values and a first derivative is asked for: dispatch.transformed()
bool transformed() {
  const auto& local = c10::impl::tls_local_dispatch_key_set();
  return local.included_.has_any(c10::DispatchKeySet(
             {c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::FuncTorchDynamicLayerBackMode})) ||
         c10::impl::TorchDispatchModeTLS::stack_len() != 0 ||
         torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr;
}

// ---- one problem

struct Tensors {  // in the order in which Python saves them
  Tensor x, h_0, w_ih, w_hh, b_ih, b_hh, output;
};

struct Kind {
  FastrnnProblem n;  // threads: those of each call
  bool step;         // x (B, I) and h_0, output (B, H), instead of (T, B, I), (1, B, H), (T, B, H)

  at::ScalarType type() const { return n.wide ? at::kDouble : at::kFloat; }
  at::DimVector rows(int64_t width) const { return step ? at::DimVector{n.B, width} : at::DimVector{n.T, n.B, width}; }
  at::DimVector states() const { return step ? at::DimVector{n.B, n.H} : at::DimVector{1, n.B, n.H}; }

  bool takes(const Tensors& t) const {
    const auto dense = [type = type()](const Tensor& one, at::IntArrayRef sizes) { return is_dense(one, type, sizes); };
    return dense(t.x, rows(n.I)) && (!t.h_0.defined() || dense(t.h_0, states())) && dense(t.w_ih, {n.H, n.I}) &&
           dense(t.w_hh, {n.H, n.H}) && (!t.b_ih.defined() || dense(t.b_ih, {n.H})) &&
           (!t.b_hh.defined() || dense(t.b_hh, {n.H}));
  }

  // Throws where what was saved is of another dtype or shape now: hooks of saved tensors may return anything.
  void check(const Tensors& t) const {
    const auto like = [type = type()](const char* name, const Tensor& one, at::IntArrayRef sizes) {
      TORCH_CHECK(!one.defined() || (one.is_cpu() && one.scalar_type() == type && one.sizes() == sizes), name,
                  ": expected torch.", type == at::kDouble ? "float64" : "float32", " on cpu of shape ", sizes,
                  " in backward, as in forward, got ", one.scalar_type(), " on ", one.device(), " of shape ",
                  one.sizes(), ": from a hook of saved tensors, or set since?");
    };
    like("w_hh", t.w_hh, {n.H, n.H});
    like("w_ih", t.w_ih, {n.H, n.I});
    like("x", t.x, rows(n.I));
    like("h_0", t.h_0, states());
    like("b_ih", t.b_ih, {n.H});
    like("b_hh", t.b_hh, {n.H});
    like("output", t.output, rows(n.H));
  }

  // output and h_n; the GIL is held
  std::pair<Tensor, Tensor> forward(const Tensors& t) const {
    std::pair<Tensor, Tensor> made(empty(rows(n.H), type()), empty(states(), type()));
    FastrnnForward p{};
    p.problem = n;
    p.problem.threads = at::get_num_threads();
    p.x = data(t.x);
    p.h_0 = data_or_null(t.h_0);
    p.w_ih = data(t.w_ih);
    p.w_hh = data(t.w_hh);
    p.b_ih = data_or_null(t.b_ih);
    p.b_hh = data_or_null(t.b_hh);
    p.output = made.first.mutable_data_ptr();
    p.h_n = made.second.mutable_data_ptr();
    if (calls->forward(&p) != 0) throw_python_error();
    return made;
  }
};

// ---- backward

enum Input : std::size_t { X, H_0, W_IH, W_HH, B_IH, B_HH, INPUTS };

struct Upstream {
  Tensor d_output, d_h_n;  // undefined: zeros
  bool modified;           // the output was, since it was saved
  std::array<bool, INPUTS> needs;
};

ptrdiff_t along(const Tensor& t, int64_t axis) { return t.size(axis) <= 1 ? 1 : t.stride(axis); }

// By the kernels; the GIL is not held
variable_list gradients(const Kind& kind, const Tensors& t, const Upstream& u) {
  const auto& n = kind.n;
  variable_list made(INPUTS);
  const auto make = [&](Input k, at::IntArrayRef sizes) -> void* {
    if (!u.needs[k]) return nullptr;
    made[k] = empty(sizes, kind.type());
    return made[k].mutable_data_ptr();
  };
  FastrnnBackward p{};
  p.problem = n;
  p.problem.threads = at::get_num_threads();
  if (u.d_output.defined()) {
    p.d_output = data(u.d_output);
    for (int64_t axis = 0; axis < 3; ++axis) p.d_output_strides[axis] = along(u.d_output, axis);
  }
  if (u.d_h_n.defined()) {
    p.d_h_n = data(u.d_h_n);
    for (int64_t axis = 0; axis < 2; ++axis) p.d_h_n_strides[axis] = along(u.d_h_n, axis + u.d_h_n.dim() - 2);
  }
  p.x = data(t.x);
  p.h_0 = data_or_null(t.h_0);
  p.w_ih = data(t.w_ih);
  p.w_hh = data(t.w_hh);
  p.d_x = make(X, kind.rows(n.I));
  p.d_h_0 = make(H_0, kind.states());
  p.d_w_ih = make(W_IH, {n.H, n.I});
  p.d_w_hh = make(W_HH, {n.H, n.H});
  p.d_b = make(B_IH, {n.H});
  void* const d_b_hh = make(B_HH, {n.H});  // two arrays: whoever gets one may write to it
  if (p.d_b == nullptr) p.d_b = d_b_hh;
  {
    const Gil gil;
    const Tensor output = u.modified ? kind.forward(t).first : t.output;
    p.output = data(output);
    if (calls->backward(&p) != 0) throw_python_error();
  }
  if (d_b_hh != nullptr && d_b_hh != p.d_b) std::memcpy(d_b_hh, p.d_b, made[B_HH].nbytes());
  return made;
}

// By what start() was given
variable_list gradients_of_python(const Kind& kind, const Tensors& t, const Upstream& u) {
  const Gil gil;
  const auto boolean = [](bool value) { return value ? Py_True : Py_False; };
  const auto wrap = [](const Tensor& one) { return THPVariable_Wrap(one); };
  const Object args(Py_BuildValue("O(NNNNNNN)OO(OOOOOO)NN", boolean(kind.step), wrap(t.x), wrap(t.h_0), wrap(t.w_ih),
                                  wrap(t.w_hh), wrap(t.b_ih), wrap(t.b_hh), wrap(t.output), boolean(u.modified),
                                  boolean(kind.n.relu != 0), boolean(u.needs[X]), boolean(u.needs[H_0]),
                                  boolean(u.needs[W_IH]), boolean(u.needs[W_HH]), boolean(u.needs[B_IH]),
                                  boolean(u.needs[B_HH]), wrap(u.d_output), wrap(u.d_h_n)));
  if (!args.get()) throw_python_error();
  const Object found(PyObject_CallObject(in_python, args.get()));
  if (!found.get()) throw_python_error();
  variable_list made(INPUTS);
  for (std::size_t k = 0; k < INPUTS; ++k) {
    PyObject* const each = PyTuple_GetItem(found.get(), static_cast<Py_ssize_t>(k));
    if (!each) throw_python_error();
    if (each != Py_None) made[k] = THPVariable_Unpack(each);
  }
  return made;
}

variable_list backward(const Kind& kind, const Tensors& t, const Upstream& u) {
  if (!u.d_output.defined() && !u.d_h_n.defined()) return variable_list(INPUTS);
  const auto fits = [&](const Tensor& d, at::IntArrayRef sizes) {
    return !d.defined() || (is_memory(d, kind.type()) && d.sizes() == sizes);
  };
  const bool plain = !torch::autograd::GradMode::is_enabled() && !transformed() &&
                     fits(u.d_output, kind.rows(kind.n.H)) && fits(u.d_h_n, kind.states()) && kind.takes(t) &&
                     is_dense(t.output, kind.type(), kind.rows(kind.n.H));
  if (!plain) kind.check(t);
  return plain ? gradients(kind, t, u) : gradients_of_python(kind, t, u);
}

// ---- the node

// A tensor and where its memory is, which Module.half() and the like exchange unseen; holds neither.
class Place {
public:
  explicit Place(const Tensor& t) : tensor_(t.getIntrusivePtr()), memory_(t.storage().getWeakStorageImpl()) {}

  // Whether t is the same tensor, and no hook's copy, with other memory
  bool moved(const Tensor& t) const {
    return t.unsafeGetTensorImpl() == tensor_._unsafe_get_target() &&
           (!t.has_storage() || t.storage().unsafeGetStorageImpl() != memory_._unsafe_get_target());
  }

private:
  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor_;
  c10::weak_intrusive_ptr<c10::StorageImpl> memory_;
};

class RnnBackward : public torch::autograd::Node {
public:
  // The tape is an alias of the output that does not count modifications, or autograd would refuse them; version_
  // counts them without holding the memory, which hooks and checkpoints of saved tensors may free.
  void keep(const Kind& kind, const Tensors& t, const Tensor& output) {
    kind_ = kind;
    version_ = torch::autograd::impl::version_counter(output);
    kept_at_ = version_.current_version();
    const std::array<const Tensor*, INPUTS> given{&t.x, &t.h_0, &t.w_ih, &t.w_hh, &t.b_ih, &t.b_hh};
    for (std::size_t k = 0; k < INPUTS; ++k) {
      if (given[k]->defined()) saved_[k] = SavedVariable(*given[k], false);
    }
    saved_[INPUTS] = SavedVariable(Tensor(output.variable_data()), false);
    for (std::size_t k = W_IH; k < INPUTS; ++k) {
      if (given[k]->defined()) weights_[k - W_IH].emplace(*given[k]);
    }
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& each : saved_) each.reset_data();
    for (std::optional<Place>& each : weights_) each.reset();  // torch swaps no parameter that a weak reference holds
  }

  variable_list apply(variable_list&& upstream) override {
    const Tensors t = unpacked();
    const std::array<const Tensor*, 4> weights{&t.w_ih, &t.w_hh, &t.b_ih, &t.b_hh};
    constexpr std::array<const char*, 4> names{"w_ih", "w_hh", "b_ih", "b_hh"};
    for (std::size_t k = 0; k < weights.size(); ++k) {
      TORCH_CHECK(!weights_[k] || !weights_[k]->moved(*weights[k]), names[k],
                  ": expected the memory that it had in forward, got another: call backward before Module.half(), "
                  "Module.to() and what else sets a parameter's data");
    }
    return backward(kind_, t, above(upstream));
  }

  // For torch's compiled autograd: what the graph depends on, and the call that goes into it, which is not traced.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    const auto& n = kind_.n;
    for (const int64_t size : {n.T, n.B, n.I, n.H}) args.collect(static_cast<uint64_t>(size));
    for (const bool flag : {n.wide != 0, n.relu != 0, modified()}) args.collect(flag);
    for (const SavedVariable& each : saved_) args.collect(each, false);
  }

  variable_list apply_with_saved(const variable_list& inputs,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    for (SavedVariable& each : saved_) saved.before(each);
    const Tensors t = unpacked();
    const std::array<const Tensor*, INPUTS + 1> all{&t.x, &t.h_0, &t.w_ih, &t.w_hh, &t.b_ih, &t.b_hh, &t.output};
    std::array<bool, INPUTS + 1> given{};
    std::vector<c10::IValue> args;
    for (std::size_t k = 0; k < all.size(); ++k) {
      given[k] = all[k]->defined();
      if (given[k]) args.emplace_back(*all[k]);
    }
    const auto run = [kind = kind_, given, u = above(variable_list(2))](const variable_list& upstream,
                                                                        const std::vector<c10::IValue>& values) {
      Tensors own;
      const std::array<Tensor*, INPUTS + 1> into{&own.x,    &own.h_0,  &own.w_ih,  &own.w_hh,
                                                 &own.b_ih, &own.b_hh, &own.output};
      auto value = values.begin();
      for (std::size_t k = 0; k < into.size(); ++k) {
        if (given[k]) *into[k] = (value++)->toTensor();
      }
      return backward(kind, own, of(kind, upstream, u));
    };
    const auto& compiler = torch::dynamo::autograd::getPyCompilerInterface();
    const std::vector<at::TypePtr> schema(args.size(), at::TensorType::get());
    const std::string function = compiler->bind_function(saved.get_py_compiler(), name(), run, schema, true, false);
    auto metadata =
        torch::dynamo::autograd::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            torch::dynamo::autograd::get_input_metadata(next_edges()));
    auto results =
        compiler->call_function(saved.get_py_compiler(), "apply_functional", function, inputs, args, metadata);
    for (SavedVariable& each : saved_) saved.after(each);
    return results;
  }

private:
  Kind kind_{};
  std::array<SavedVariable, INPUTS + 1> saved_;  // Tensors, in their order
  std::array<std::optional<Place>, 4> weights_;
  c10::VariableVersion version_;
  uint32_t kept_at_ = 0;

  bool modified() const { return version_.current_version() != kept_at_; }

  Tensors unpacked() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {saved_[X].unpack(),    saved_[H_0].unpack(),  saved_[W_IH].unpack(),  saved_[W_HH].unpack(),
            saved_[B_IH].unpack(), saved_[B_HH].unpack(), saved_[INPUTS].unpack()};
  }

  static Upstream of(const Kind& kind, const variable_list& upstream, Upstream u) {
    (kind.step ? u.d_h_n : u.d_output) = upstream[0];
    if (!kind.step) u.d_h_n = upstream[1];
    return u;
  }

  Upstream above(const variable_list& upstream) const {
    Upstream u{};
    u.modified = modified();
    for (std::size_t k = 0; k < INPUTS; ++k) u.needs[k] = task_should_compute_output(k);
    return of(kind_, upstream, std::move(u));
  }
};

struct RnnLayerBackward : RnnBackward {
  std::string name() const override { return "RnnLayerBackward"; }
};

struct StepBackward : RnnBackward {
  std::string name() const override { return "StepBackward"; }
};

// ---- for Python

// relu, x, h_0, w_ih, w_hh and, unless there are no biases, b_ih, b_hh; false: not plain
bool read(PyObject* const* args, Py_ssize_t count, bool step, Tensors& t, Kind& kind) {
  if (count != 5 && count != 7) return false;
  const std::array<Tensor*, INPUTS> into{&t.x, &t.h_0, &t.w_ih, &t.w_hh, &t.b_ih, &t.b_hh};
  for (Py_ssize_t k = 1; k < count; ++k) {
    if (args[k] == Py_None) continue;
    if (!THPVariable_Check(args[k])) return false;
    *into[static_cast<std::size_t>(k - 1)] = THPVariable_Unpack(args[k]);
  }
  if (!t.x.defined() || t.x.dim() != (step ? 2 : 3) || !t.w_hh.defined() || t.w_hh.dim() != 2 || transformed()) {
    return false;
  }
  auto& n = kind.n;
  const auto sizes = t.x.sizes();
  n.T = step ? 1 : sizes[0];
  n.B = sizes[sizes.size() - 2];
  n.I = sizes.back();
  n.H = t.w_hh.size(0);
  n.wide = t.x.scalar_type() == at::kDouble;
  n.relu = args[0] == Py_True;
  kind.step = step;
  return n.T > 0 && n.H > 0 && !(c10::InferenceMode::is_enabled() && torch::autograd::GradMode::is_enabled()) &&
         kind.takes(t);
}

template <class Node>
PyObject* run(PyObject* const* args, Py_ssize_t count, bool step, const char* name) {
  HANDLE_TH_ERRORS
  Tensors t;
  Kind kind{};
  if (!read(args, count, step, t, kind)) Py_RETURN_NONE;
  RECORD_FUNCTION(name, c10::ArrayRef<const c10::IValue>());
  std::pair<Tensor, Tensor> made = kind.forward(t);
  if (torch::autograd::compute_requires_grad(t.x, t.h_0, t.w_ih, t.w_hh, t.b_ih, t.b_hh)) {
    auto node = c10::make_intrusive<Node>();
    node->set_next_edges(torch::autograd::collect_next_edges(t.x, t.h_0, t.w_ih, t.w_hh, t.b_ih, t.b_hh));
    torch::autograd::set_history(made.first, node);
    if (!step) torch::autograd::set_history(made.second, node);
    node->keep(kind, t, made.first);
  }
  if (step) return THPVariable_Wrap(std::move(made.first));
  return Py_BuildValue("NN", THPVariable_Wrap(std::move(made.first)), THPVariable_Wrap(std::move(made.second)));
  END_HANDLE_TH_ERRORS
}

PyObject* layer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return run<RnnLayerBackward>(args, count, false, "RnnLayer");
}

PyObject* step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return run<StepBackward>(args, count, true, "Step");
}

PyObject* start(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "start: expected 2 arguments, got %zd", count);
  const auto* const given = static_cast<const FastrnnTorchCalls*>(PyCapsule_GetPointer(args[0], FASTRNN_TORCH_CALLS));
  if (!given) return nullptr;
  if (given->version != FASTRNN_TORCH_CALLS_VERSION) {
    return PyErr_Format(PyExc_ImportError, "the native module has version %d of torch_calls, this was compiled for %d",
                        given->version, FASTRNN_TORCH_CALLS_VERSION);
  }
  calls = given;
  Py_INCREF(args[1]);
  Py_XSETREF(in_python, args[1]);
  Py_RETURN_NONE;
}

template <class Node>
void name_type(PyTypeObject& type, const char* name) {  // of grad_fn
  torch::autograd::_initFunctionPyTypeObject(type, name, nullptr, nullptr);
  torch::autograd::registerCppFunction(typeid(Node), &type);
}

PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {{"layer", fast(&layer), METH_FASTCALL, nullptr},
                         {"step", fast(&step), METH_FASTCALL, nullptr},
                         {"start", fast(&start), METH_FASTCALL, nullptr},
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "rnn_node", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
PyTypeObject layer_type, step_type;

}  // namespace

PyMODINIT_FUNC PyInit_rnn_node() {
  HANDLE_TH_ERRORS
  PyObject* const module = PyModule_Create(&definition);
  if (!module) return nullptr;
#ifdef Py_GIL_DISABLED
  PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
  name_type<RnnLayerBackward>(layer_type, "RnnLayerBackward");
  name_type<StepBackward>(step_type, "StepBackward");
  return module;
  END_HANDLE_TH_ERRORS
}
