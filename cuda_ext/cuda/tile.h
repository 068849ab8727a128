// What the passes over tiles share: projected Gaussians, the pixel of a thread, and a batch of a tile's
// list in shared memory.
#pragma once

#include "block.h"
//
#include "composite.h"
#include "cuda_abi.h"

namespace gsa {
namespace {

constexpr int kTile = GSA_TILE;
constexpr int kBatchBwd = 64;

struct Record {  // as in cpu/record.h
  float exponent_xx, exponent_xy, exponent_yy, slope_x, slope_y, extent_x;
  float peak, faintest, color[3], depth, x, y;
  int32_t branch;
  float extent_y;
};
static_assert(sizeof(Record) == GSA_RECORD * sizeof(float), "see abi.h");

__device__ __forceinline__ int across(const gsa_raster& s) { return (s.width + kTile - 1) / kTile; }
__device__ __forceinline__ int down(const gsa_raster& s) { return (s.height + kTile - 1) / kTile; }

__device__ __forceinline__ bool finite(float a) { return a * 0.0f == 0.0f; }

// Whether a box of pixel centres, its first at (x, y), holds a point within reach.
__device__ __forceinline__ bool reaches(const Record& r, float x, float y, float wide, float high) {
  const Exponent<float> e = {r.exponent_xx, r.exponent_xy, r.exponent_yy};
  const float dx = x - r.x, dy = y - r.y;
  return least_exponent(e, r.slope_x, r.slope_y, dx, dx + wide, dy, dy + high) <= -r.faintest;
}

// The pixel of a thread: warps tile the block 2 across, 4 down, each 8 x 4.
struct Pixel {
  int x, y;             // in the picture
  float box_x, box_y;   // first pixel centre of the warp
  bool inside;
};

__device__ __forceinline__ Pixel pixel_of(const gsa_raster& s) {
  const int tile = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int x = tile % across(s) * kTile + warp % 2 * 8, y = tile / across(s) * kTile + warp / 2 * 4;
  Pixel p;
  p.x = x + lane % 8, p.y = y + lane / 8;
  p.box_x = (float)x + 0.5f, p.box_y = (float)y + 0.5f;
  p.inside = p.x < s.width && p.y < s.height;
  return p;
}

// A batch of records in shared memory, by field: lanes then read neighbouring words.
template <int Size>
struct Shared {
  float field[GSA_RECORD][Size];
  int32_t slot[Size];

  __device__ void read(const gsa_raster& s, int first, int count) {
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int32_t* pair = s.list + 2 * (int64_t)(first + i);
      const float* record = s.records + GSA_RECORD * (int64_t)pair[0];
      for (int k = 0; k < GSA_RECORD; ++k) field[k][i] = record[k];
      slot[i] = pair[1];
    }
  }
  __device__ __forceinline__ Record at(int i) const {
    Record r;
    float* into = (float*)&r;
    for (int k = 0; k < GSA_RECORD; ++k) into[k] = field[k][i];
    return r;
  }
};

__device__ __forceinline__ Contribution<float, bool> contribution(const Record& r, const Pixel& p,
                                                                  float transmittance) {
  const Exponent<float> e = {r.exponent_xx, r.exponent_xy, r.exponent_yy};
  const float dx = (float)p.x + 0.5f - r.x, dy = (float)p.y + 0.5f - r.y;
  const float power = r.peak - exponent_at(e, dx, dy);
  return contribute<bool>(alpha_of(power, power_of_two(power), 1.0f), transmittance);
}

}  // namespace
}  // namespace gsa
