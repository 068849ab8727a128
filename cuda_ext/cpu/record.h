// A projected Gaussian as the tile passes read it: one cache line.
#pragma once

#include "simd.h"
// simd.h first: see scalar.h
#include "abi.h"
#include "coverage.h"

namespace gsa {

struct alignas(4) Record {
  float x, y;                       // mean, pixels
  float exponent_xx, exponent_xy, exponent_yy;  // see coverage.h
  float opacity;                    // compensated
  float color[3];
  float depth;
  float reach;                      // largest P that counts
  float slope_x, slope_y;           // of the ellipse's sides, see least_exponent
  int32_t branch;                   // -1 if it reaches no pixel
  uint16_t tile_left, tile_right, tile_top, tile_bottom;  // inclusive
};
static_assert(sizeof(Record) == GSA_RECORD * sizeof(float), "a record is one cache line");

constexpr int kTile = GSA_TILE;
constexpr int kPixels = kTile * kTile;
constexpr int kBlockWidth = 4;
constexpr int kBlockHeight = GSA_LANES / kBlockWidth;  // a block of pixels fills one vector
constexpr int kBlocks = kPixels / GSA_LANES;
constexpr int kBlocksAcross = kTile / kBlockWidth;

inline int tiles_across(const gsa_raster& s) { return (s.width + kTile - 1) / kTile; }
inline int tiles_down(const gsa_raster& s) { return (s.height + kTile - 1) / kTile; }

inline Exponent<float> exponent(const Record& r) {
  return {r.exponent_xx, r.exponent_xy, r.exponent_yy};
}

// Calls visit(tile) for every tile that holds a pixel centre within reach, row by row.
template <class Visit>
inline void for_tiles(const Record& r, int across, const Visit& visit) {
  const Exponent<float> e = exponent(r);
  const bool single = r.tile_left == r.tile_right || r.tile_top == r.tile_bottom;
  for (int ty = r.tile_top; ty <= r.tile_bottom; ++ty) {
    const float y_low = (float)(ty * kTile) + 0.5f - r.y;
    for (int tx = r.tile_left; tx <= r.tile_right; ++tx) {
      const float x_low = (float)(tx * kTile) + 0.5f - r.x;
      if (single || least_exponent(e, r.slope_x, r.slope_y, x_low, x_low + (kTile - 1), y_low,
                                   y_low + (kTile - 1)) <= r.reach)
        visit(ty * across + tx);
    }
  }
}

}  // namespace gsa
