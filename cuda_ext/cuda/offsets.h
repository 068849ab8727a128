// Linear motion of the Gaussians of a block.
#pragma once

#include "block.h"
//
#include "abi.h"
#include "blend.h"

namespace gsa {

constexpr int kBlockOffsets = kOffsets * kThreads;

// Offsets [kThreads, 9] in shared memory of the `count` Gaussians from `first` on. A thread sums nine
// numbers that lie kThreads apart, so that a warp reads the basis in the order it lies in memory.
// Every thread of the block calls it.
__device__ __forceinline__ void sum_offsets(const gsa_motion& m, int first, int count,
                                            float* offsets) {
  float sum[kOffsets] = {};
  for (int k = 0; k < m.coefficient_count; ++k) {
    const float c = m.coefficients[k];
    if (c == 0.0f) continue;
    const float* row = m.basis + kOffsets * ((int64_t)k * m.count + first);
    for (int j = 0; j < kOffsets; ++j) {
      const int i = threadIdx.x + j * kThreads;
      if (i < kOffsets * count) sum[j] += c * row[i];
    }
  }
  for (int j = 0; j < kOffsets; ++j) offsets[threadIdx.x + j * kThreads] = sum[j];
  __syncthreads();
}

__device__ __forceinline__ Offset<float> offset_at(const float* offsets, int i) {
  const float* o = offsets + kOffsets * i;
  return {{o[0], o[1], o[2]}, {o[3], o[4], o[5]}, {o[6], o[7], o[8]}};
}

__device__ __forceinline__ Gaussian3<float> gaussian_at(const float* means, const float* quats,
                                                        const float* scales, int64_t i) {
  const float *m = means + 3 * i, *q = quats + 4 * i, *k = scales + 3 * i;
  return {{m[0], m[1], m[2]}, {q[0], q[1], q[2], q[3]}, {k[0], k[1], k[2]}};
}

__device__ __forceinline__ void store_three(float* at, const Vec3<float>& v) {
  at[0] = v.x, at[1] = v.y, at[2] = v.z;
}
__device__ __forceinline__ void store_quat(float* at, const Quat<float>& q) {
  at[0] = q.w, at[1] = q.x, at[2] = q.y, at[3] = q.z;
}

}  // namespace gsa
