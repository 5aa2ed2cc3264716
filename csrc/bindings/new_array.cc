#include "bindings/new_array.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "cpu/kept_memory.h"

namespace fastrnn {
namespace {

namespace py = pybind11;

// ---- NumPy's allocators (NEP 49, since NumPy 1.22), as its C API declares them

struct Allocator {
  void* context;
  void* (*malloc)(void* context, std::size_t bytes);
  void* (*calloc)(void* context, std::size_t count, std::size_t size);
  void* (*realloc)(void* context, void* block, std::size_t bytes);
  void (*free)(void* context, void* block, std::size_t bytes);
};

struct Handler {
  char name[127];
  std::uint8_t version;
  Allocator allocator;
};

void* allocate(void*, std::size_t bytes) {
  try {
    return take_memory(bytes);
  } catch (...) {  // FASTRNN_KEPT_MIB is no number: new_array says so, C cannot
    return nullptr;
  }
}

void* allocate_zeros(void*, std::size_t count, std::size_t size) {
  if (size != 0 && count > SIZE_MAX / size) return nullptr;
  void* const block = allocate(nullptr, count * size);
  return block ? std::memset(block, 0, count * size) : nullptr;
}

void* reallocate(void*, void* block, std::size_t bytes) {
  void* const larger = allocate(nullptr, bytes);
  if (larger && block) std::memcpy(larger, block, std::min(bytes, capacity_of_memory(block)));
  if (larger) give_memory(block);
  return larger;
}

void deallocate(void*, void* block, std::size_t) { give_memory(block); }

Handler handler{"fastrnn", 1, {nullptr, allocate, allocate_zeros, reallocate, deallocate}};

// PyDataMem_SetHandler. Looked up at import: Python runs meanwhile, which a static's first use must not wait for.
PyObject* (*set_handler)(PyObject*) = nullptr;

void look_up() {
  constexpr std::size_t place = 304;  // in the table of NumPy's API
  const py::capsule table = py::detail::import_numpy_core_submodule("multiarray").attr("_ARRAY_API");
  set_handler = reinterpret_cast<PyObject* (*)(PyObject*)>(table.get_pointer<void*>()[place]);
}

PyObject* our_handler() {
  static PyObject* const capsule = py::capsule(&handler, "mem_handler").release().ptr();
  return capsule;
}

py::object exchange(PyObject* to) {
  auto before = py::reinterpret_steal<py::object>(set_handler(to));
  if (!before) throw py::error_already_set();  // GCOVR_EXCL_BR_LINE: the context has no memory for a variable
  return before;
}

// Arrays made meanwhile in this thread's context have their memory from `handler`
class OurMemory {
public:
  OurMemory() : before_(exchange(our_handler())) {}
  OurMemory(const OurMemory&) = delete;
  OurMemory& operator=(const OurMemory&) = delete;
  ~OurMemory() {
    const py::error_scope error;  // of the array
    try {
      exchange(before_.ptr());
    } catch (py::error_already_set& lost) {           // GCOVR_EXCL_LINE: as in exchange
      lost.discard_as_unraisable("fastrnn: memory");  // GCOVR_EXCL_LINE
    }
  }

private:
  py::object before_;
};

// NumPy calls it a ValueError
[[noreturn]] void refuse(const py::dtype& dtype, const py::ssize_t* shape, int axes) {
  py::tuple extents(axes);
  for (int k = 0; k < axes; ++k) extents[static_cast<std::size_t>(k)] = shape[k];
  const py::object bytes = py::module_::import("math").attr("prod")(extents) * py::int_(dtype.itemsize());
  const py::str text = py::str("cannot allocate {} bytes for an array of shape {}").format(bytes, extents);
  PyErr_SetObject(PyExc_MemoryError, text.ptr());
  throw py::error_already_set();
}

py::array numpys_own(const py::dtype& dtype, const py::ssize_t* shape, int axes) {
  const auto& numpy = py::detail::npy_api::get();
  auto made = py::reinterpret_steal<py::array>(numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, dtype.inc_ref().ptr(),
                                                                           axes, shape, nullptr, nullptr, 0, nullptr));
  if (!made) throw py::error_already_set();
  return made;
}

}  // namespace

py::array new_array(const py::dtype& dtype, const py::ssize_t* shape, int axes) {
  double bytes = static_cast<double>(dtype.itemsize()), counted = bytes;  // doubles do not overflow
  for (int k = 0; k < axes; ++k) {
    bytes *= static_cast<double>(shape[k]);
    if (shape[k] != 0) counted *= static_cast<double>(shape[k]);  // as NumPy does
  }
  if (counted >= static_cast<double>(PY_SSIZE_T_MAX)) refuse(dtype, shape, axes);
  if (bytes < static_cast<double>(least_kept_bytes) || kept_bytes_limit() == 0) return numpys_own(dtype, shape, axes);
  const OurMemory memory;
  return numpys_own(dtype, shape, axes);
}

void bind_new_array(py::module_& m) {
  m.def("new_array", [](const py::tuple& shape, const py::dtype& dtype) {
    constexpr std::size_t most = 8;
    py::ssize_t extents[most];
    if (shape.size() > most) throw py::value_error("shape: expected at most 8 axes");
    int axes = 0;
    for (const py::handle extent : shape) extents[axes++] = extent.cast<py::ssize_t>();
    return new_array(dtype, extents, axes);
  });
  m.def("kept_bytes", &kept_bytes);
  look_up();
  kept_bytes();  // this and the limit: made before any fork()
  try {
    kept_bytes_limit();
  } catch (const std::invalid_argument&) {  // said by each call that needs it
  }
  m.attr("memory_handler") = py::reinterpret_borrow<py::object>(our_handler());
}

}  // namespace fastrnn
