// Blocks of kThreads threads, one for each Gaussian or pixel, and sums over them that are the same
// in every run.
#pragma once

#include "launch.h"
//
#include <stdint.h>

namespace gsa {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr uint32_t kAll = 0xFFFFFFFFu;

inline int blocks_for(int64_t items) { return (int)((items + kThreads - 1) / kThreads); }

// One halving: of 2 Half values a lane keeps Half and adds its partner's share of them.
template <int Half>
__device__ __forceinline__ void fold(float* v, int lane) {
  const bool upper = lane & (2 * Half);
  for (int i = 0; i < Half; ++i) {
    const float keep = upper ? v[i + Half] : v[i], give = upper ? v[i] : v[i + Half];
    v[i] = keep + __shfl_xor_sync(kAll, give, 2 * Half);
  }
}

// Sums of 16 values over the warp in 16 exchanges. Returns the sum of value `sum_index(lane)`.
__device__ __forceinline__ float sum_warp(float* v) {
  const int lane = threadIdx.x % 32;
  fold<8>(v, lane);
  fold<4>(v, lane);
  fold<2>(v, lane);
  fold<1>(v, lane);
  return v[0] + __shfl_xor_sync(kAll, v[0], 1);
}
__device__ __forceinline__ int sum_index(int lane) { return lane / 2; }

__device__ __forceinline__ float sum_one(float v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kAll, v, step);
  return v;
}

// Sums of 16 values over the block, to into[16]. Every thread calls it.
__device__ __forceinline__ void sum_block(float* v, float* into) {
  GSA_SHARED float sums[kWarps][16];
  const int lane = threadIdx.x % 32;
  const float sum = sum_warp(v);
  if (lane % 2 == 0) sums[threadIdx.x / 32][sum_index(lane)] = sum;
  __syncthreads();
  if (threadIdx.x >= 16) return;
  float total = 0.0f;
  for (int w = 0; w < kWarps; ++w) total += sums[w][threadIdx.x];
  into[threadIdx.x] = total;
}

}  // namespace gsa
