#!/usr/bin/env bash
# What can be known of the CUDA module without a GPU: it compiles for every architecture without a register spilled, its
# PTX holds the instructions it must and none it must not, it links, and it says why it cannot run here.
#   tests/cuda_compile.sh [build folder]      PYTHON: an interpreter with pybind11 and NumPy; needs nvcc of CUDA 12.8 or newer
set -euo pipefail

source_dir=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$(mktemp -d)}
python=${PYTHON:-python3}
nvcc=${CUDACXX:-nvcc}

require() {  # file pattern: at least one line
  if ! grep -qE -- "$2" "$1"; then echo "$1: no $2"; exit 1; fi
}
forbid() {  # file pattern reason
  if grep -nE -m 3 -- "$2" "$1"; then echo "$1: $2 ($3)"; exit 1; fi
}

ptx() {  # file architecture
  local out=$build/$1.$2.ptx
  "$nvcc" -std=c++17 -ptx -arch="compute_$2" -I"$source_dir/csrc" "$source_dir/csrc/cuda/$1.cu" -o "$out"
  forbid "$out" '\.approx' "results to 2 ULP, the bits of the host"
  forbid "$out" '\.ftz' "subnormal numbers stay"
  forbid "$out" '^\s*(atom|red)\.' "the same bits in every run"
  forbid "$out" 'ld\.global\.nc' "the input product may lie where the output is written"
  forbid "$out" '\.local' "arrays of a thread are registers"
  require "$out" 'fma\.rn\.f32'
}

mkdir -p "$build"
echo "PTX of every kernel: required and forbidden instructions"
ptx kernels 80
require "$build/kernels.80.ptx" 'shfl\.sync\.bfly'
require "$build/kernels.80.ptx" 'bar\.sync|barrier\.sync'
require "$build/kernels.80.ptx" 'ld\.shared\.v4'
ptx mma 80
for types in 'm16n8k16\.row\.col\.f32\.f16\.f16\.f32' 'm16n8k16\.row\.col\.f32\.bf16\.bf16\.f32' \
  'm16n8k8\.row\.col\.f32\.tf32\.tf32\.f32'; do
  require "$build/mma.80.ptx" "mma\.sync\.aligned\.$types"
done
require "$build/mma.80.ptx" 'cvt\.rna\.tf32\.f32'
ptx cluster 90a
require "$build/cluster.90a.ptx" 'shfl\.sync\.bfly'
for instruction in 'st\.async\.shared::cluster\.mbarrier::complete_tx::bytes\.b32' 'mapa\.shared::cluster' \
  'mbarrier\.arrive\.expect_tx' 'mbarrier\.try_wait\.parity\.acquire\.cluster' 'fence\.mbarrier_init\.release\.cluster' \
  'barrier\.cluster\.arrive\.release\.aligned' 'barrier\.cluster\.wait\.acquire\.aligned' 'st\.shared::cluster\.b32'; do
  require "$build/cluster.90a.ptx" "$instruction"
done
ptx mma 90a
require "$build/mma.90a.ptx" 'st\.async\.shared::cluster\.mbarrier::complete_tx::bytes\.v4\.b32'

"$nvcc" -std=c++17 -ptx -arch=compute_90a -DFASTRNN_DELAYS -I"$source_dir/csrc" "$source_dir/csrc/cuda/mma.cu" -o "$build/delays.ptx"
require "$build/delays.ptx" 'nanosleep'

echo "the module, for every architecture, spills are errors"
cmake -S "$source_dir" -B "$build" -DSKBUILD_PROJECT_VERSION=0.1.0 -DFASTRNN_CUDA=ON -DFASTRNN_WERROR=ON \
  -DCMAKE_CUDA_COMPILER="$(command -v "$nvcc")" -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$build/configure.log" || { cat "$build/configure.log"; exit 1; }
cmake --build "$build" --target _fastrnn_cuda --parallel 2

module=$(find "$build" -maxdepth 1 -name '_fastrnn_cuda*.so')
if ldd "$module" | grep -E 'libcuda|libcudart|libcublas'; then echo "the module must need no CUDA library"; exit 1; fi

echo "import"
PYTHONPATH=$build "$python" - <<'PY'
import _fastrnn_cuda as module, numpy as np

print(", ".join(module.kernels))
call = np.zeros(module.call_fields, np.int64)
call[:3] = 1
call[35] = 1  # float32
try:
    count = module.device_count()
except module.CudaError as error:
    print(f"no device: {error}")
    for attempt in (lambda: module.choose(call, False, 0, False), lambda: module.device(0)):
        try:
            attempt()
        except module.CudaError:
            continue
        raise SystemExit("expected CudaError where there is no device")
else:
    print(f"{count} devices")
for wrong, kind in (((call[:-1], False, 0, False), TypeError), ((np.zeros_like(call), False, 0, False), ValueError)):
    try:
        module.choose(*wrong)
    except kind:
        continue
    raise SystemExit(f"expected {kind}")
PY
echo "passed in $SECONDS s"
