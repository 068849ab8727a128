#!/bin/sh
# Builds the CUDA kernels, proves them and measures them, on a machine with a GPU and nvcc:
#
#     sh benchmarks/gpu.sh
#
# Leaves benchmarks/results/gpu.json, gpu.txt and what the sanitizer said. Nothing here changes the
# GPU's settings.
set -eu
cd "$(dirname "$0")/.."
out=benchmarks/results
mkdir -p "$out"
python="${PYTHON:-python3}"
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    nvcc --version | tail -2
    "$python" -c 'import torch; print("torch", torch.__version__, torch.version.cuda)'
} | tee "$out/gpu.txt"
GSAVATAR_CUDA=1 "$python" setup.py --quiet build_ext --inplace
"$python" -m pytest tests/test_cuda_compiles.py tests/test_ops_rasterize.py | tee -a "$out/gpu.txt"
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$python" -m pytest tests/test_cuda_compiles.py -k device > "$out/$tool.txt" 2>&1 ||
            echo "$tool: see $out/$tool.txt" | tee -a "$out/gpu.txt"
    done
fi
"$python" benchmarks/rasterize.py --device cuda --json "$out/gpu.json" | tee -a "$out/gpu.txt"
