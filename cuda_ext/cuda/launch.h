// What a kernel file needs from CUDA: the runtime and, with GSA_CUB, the sorts and sums of CUB; or,
// with GSA_EMULATE, the stand-ins of emulator.h that run the same kernels on a CPU for the tests.
#pragma once

#ifdef GSA_EMULATE
#include "emulator.h"
#else
#include <cuda_runtime.h>
#ifdef GSA_CUB  // which takes ten times as long to compile as all the rest
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#endif

#define GSA_LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<(blocks), (threads), 0, (stream)>>>(__VA_ARGS__)
#define GSA_SHARED __shared__
#endif
