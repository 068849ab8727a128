#!/bin/sh
# Builds the CUDA kernels, proves them and measures them, on a machine with a GPU and nvcc:
#
#     sh benchmarks/gpu.sh
#
# Leaves benchmarks/results/gpu.json (every kernel, gsplat beside it where it is installed, and a
# training step eager and as a graph), gpu.txt (all that was printed) and what each sanitizer said.
# A step that fails is noted and the rest still runs; the exit status is then 1. Nothing here changes
# the GPU's settings.
set -eu
cd "$(dirname "$0")/.."
out=benchmarks/results
mkdir -p "$out"
rm -f "$out/gpu.json" "$out/gpu.txt"
python="${PYTHON:-python3}"
failed=0

# note NAME COMMAND…: runs it, keeps what it prints, and remembers if it failed.
note() {
    name="$1"
    shift
    echo "== $name" >> "$out/gpu.txt"
    if "$@" > "$out/last.txt" 2>&1; then
        tail -40 "$out/last.txt"
    else
        tail -80 "$out/last.txt"
        echo "== $name FAILED" | tee -a "$out/gpu.txt"
        failed=1
    fi
    cat "$out/last.txt" >> "$out/gpu.txt"
    rm -f "$out/last.txt"
}

note device nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
note compiler nvcc --version
note torch "$python" -c 'import torch; print(torch.__version__, torch.version.cuda)'
note build env GSAVATAR_CUDA=1 "$python" setup.py --quiet build_ext --inplace
note tests "$python" -m pytest -rs tests/test_cuda_device.py tests/test_cuda_compiles.py
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck; do
        note "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --log-file "$out/$tool.txt" \
            "$python" -m pytest -p no:cacheprovider tests/test_cuda_device.py -k "device"
    done
else
    echo "compute-sanitizer is not on PATH: memcheck, racecheck and initcheck were left out" |
        tee -a "$out/gpu.txt"
fi
note kernels "$python" benchmarks/rasterize.py --device cuda --json "$out/gpu.json"
note step "$python" benchmarks/graph_step.py --json "$out/gpu.json"
exit "$failed"
