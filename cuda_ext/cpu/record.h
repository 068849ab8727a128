// A projected Gaussian as the tile passes read it: one cache line.
#pragma once

#include "simd.h"
// simd.h first: see scalar.h
#include "abi.h"
#include "coverage.h"

namespace gsa {

struct Record {
  float exponent_xx, exponent_xy, exponent_yy;  // see coverage.h
  float slope_x, slope_y;                       // of the ellipse's sides, see least_exponent
  float unused;
  float peak;      // see Reach
  float faintest;  // minus the reach
  float color[3];
  float depth;
  float x, y;      // mean, pixels
  int32_t branch;  // -1 if it reaches no pixel
  int32_t slot;    // of tile.h
};
static_assert(sizeof(Record) == GSA_RECORD * sizeof(float), "a record is one cache line");

// The tiles that hold a pixel centre within reach. Most Gaussians meet few, kept as a bit mask of a
// window of 8 x 8 tiles; a larger one keeps its bounds and is tested again at every use.
struct Cover {
  uint64_t mask;  // bit 8 row + column; 0 for a large one
  uint16_t left, top, right, bottom;
};
static_assert(sizeof(Cover) == GSA_COVER * sizeof(int32_t), "abi.h states the size of a cover");
constexpr int kWindow = 8;

constexpr int kTile = GSA_TILE;
constexpr int kPixels = kTile * kTile;
constexpr int kBlockWidth = 4;
constexpr int kBlockHeight = GSA_LANES / kBlockWidth;  // a block of pixels fills one vector
constexpr int kBlocks = kPixels / GSA_LANES;
constexpr int kBlocksAcross = kTile / kBlockWidth;
#if GSA_LANES >= 8
typedef uint32_t BlockSet;  // a bit for each block of a tile
#else
typedef uint64_t BlockSet;
#endif
static_assert(kBlocks <= 8 * (int)sizeof(BlockSet), "every block has a bit");

inline int tiles_across(const gsa_raster& s) { return (s.width + kTile - 1) / kTile; }
inline int tiles_down(const gsa_raster& s) { return (s.height + kTile - 1) / kTile; }

inline bool reaches_tile(const Record& r, int tx, int ty) {
  const Exponent<float> e = {r.exponent_xx, r.exponent_xy, r.exponent_yy};
  const float x = (float)(tx * kTile) + 0.5f - r.x, y = (float)(ty * kTile) + 0.5f - r.y;
  return least_exponent(e, r.slope_x, r.slope_y, x, x + (kTile - 1), y, y + (kTile - 1)) <= -r.faintest;
}

// Calls visit(tile) for every tile of the cover, row by row.
template <class Visit>
inline void for_tiles(const Cover& c, const Record* r, int across, const Visit& visit) {
  if (c.mask) {
    const int first = c.top * across + c.left;
    for (uint64_t m = c.mask; m; m &= m - 1) {
      const int bit = __builtin_ctzll(m);
      visit(first + bit / kWindow * across + bit % kWindow);
    }
    return;
  }
  for (int ty = c.top; ty <= c.bottom; ++ty)
    for (int tx = c.left; tx <= c.right; ++tx)
      if (reaches_tile(*r, tx, ty)) visit(ty * across + tx);
}

}  // namespace gsa
