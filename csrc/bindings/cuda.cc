// Python binding of the CUDA backend: addresses and a stream in, launches out. No arithmetic, no memory, no waiting, no
// CUDA context at import. fastrnn/_backends/cuda.py allocates, checks shapes and devices, and calls the large products.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace py = pybind11;

namespace fastrnn::gpu {
namespace {

Call call_of(const py::array& table) {
  constexpr py::ssize_t fields = sizeof(Call) / sizeof(std::int64_t);
  if (!py::isinstance<py::array_t<std::int64_t>>(table) || table.ndim() != 1 || table.shape(0) != fields ||
      (table.flags() & py::array::c_style) == 0) {
    throw py::type_error("call: expected a contiguous int64 array of " + std::to_string(fields) + " fields");
  }
  Call call;
  std::memcpy(&call, table.data(), sizeof call);
  if (call.T < 0 || call.B < 0 || call.H < 1) throw py::value_error("call: expected T, B >= 0 and H >= 1");
  if (call.dtype < f64 || call.dtype > bf16) throw py::value_error("dtype: expected 0 to 3");
  return call;
}

void expect_arrays(const Call& call, bool backward) {
  const auto expect = [](const void* p, const char* name) {
    if (!p) throw py::value_error(std::string(name) + ": expected an address");
  };
  if (call.B == 0) return;
  expect(call.w, "w");
  if (backward) {
    expect(call.d_h_0, "d_h_0");
  } else {
    expect(call.h_n, "h_n");
  }
  if (call.T == 0) return;
  expect(call.output, "output");
  expect(backward ? call.d_z : call.xp, backward ? "d_z" : "xp");
}

const Kernel& kernel_named(const std::string& name) {
  if (const Kernel* kernel = find_kernel(name.c_str())) return *kernel;
  std::string known;
  for (const Kernel& kernel : kernels) known += std::string(known.empty() ? "" : ", ") + kernel.name;
  throw py::value_error("kernel: expected one of " + known + ", got " + name);
}

int expect_cluster(int cluster) {
  if (cluster < 1 || cluster > 16) throw py::value_error("cluster: expected 1 to 16 blocks");
  return cluster;
}

}  // namespace

PYBIND11_MODULE(_fastrnn_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "CUDA kernels of fastrnn; called through fastrnn._backends.cuda";

  py::register_exception<CudaError>(m, "CudaError", PyExc_RuntimeError);

  m.def("device_count", &device_count, "Raises CudaError where there is no driver or no device.");

  m.def(
      "device",
      [](int device) {
        const DeviceFacts facts = facts_of(device);
        py::dict d;
        d["name"] = facts.name;
        d["compute_capability"] = py::make_tuple(facts.major, facts.minor);
        d["multiprocessors"] = facts.multiprocessors;
        d["shared_memory"] = facts.limits.shared;
        d["clusters"] = facts.limits.clusters;
        return d;
      },
      py::arg("device"));

  std::vector<std::string> names;
  for (const Kernel& kernel : kernels) names.emplace_back(kernel.name);
  m.attr("kernels") = py::tuple(py::cast(names));
#ifdef FASTRNN_DELAYS
  m.attr("delays") = true;
#else
  m.attr("delays") = false;
#endif
  m.attr("call_fields") = sizeof(Call) / sizeof(std::int64_t);

  m.def(
      "workspace_bytes",
      [](const std::string& kernel, const py::array& call) {
        return kernel_named(kernel).kind == Kind::step ? step_workspace_bytes(call_of(call)) : 0;
      },
      py::arg("kernel"), py::arg("call"));

  m.def(
      "choose",
      [](const py::array& call, bool backward, int device, bool tf32) {
        const Rule& rule = choose_on(device, call_of(call), backward, tf32);
        return py::make_tuple(rule.kernel, rule.cluster);
      },
      py::arg("call"), py::arg("backward"), py::arg("device"), py::arg("tf32"),
      "The kernel and the blocks of a cluster, by the rules.");

  m.def(
      "clusters_at_once",
      [](const std::string& name, int cluster, const py::array& table, bool backward, int device) {
        const Kernel& kernel = kernel_named(name);
        Call call = call_of(table);
        const Plan plan = plan_of(kernel, call, expect_cluster(cluster), facts_of(device).limits.shared);
        return *plan.why || kernel.kind == Kind::step ? 0 : clusters_at_once(kernel, backward, call, plan);
      },
      py::arg("kernel"), py::arg("cluster"), py::arg("call"), py::arg("backward"), py::arg("device"));

  m.def(
      "launch",
      [](const std::string& name, int cluster, const py::array& table, bool backward, int device,
         std::uintptr_t stream) {
        const Kernel& kernel = kernel_named(name);
        const Call call = call_of(table);
        expect_arrays(call, backward);
        expect_cluster(cluster);
        py::gil_scoped_release released;  // T launches of the kernel step take a while
        launch(kernel, cluster, backward, call, device, reinterpret_cast<void*>(stream));
      },
      py::arg("kernel"), py::arg("cluster"), py::arg("call"), py::arg("backward"), py::arg("device"), py::arg("stream"),
      "Enqueues the call on the stream and returns at once.");
}

}  // namespace fastrnn::gpu
