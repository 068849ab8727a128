// What the forward and the backward tile pass share: the pixels of a tile as vectors.
#pragma once

#include "record.h"
#include "composite.h"

namespace gsa {

// Pixels are stored block by block: block b holds pixels 4 wide, kBlockHeight high.
struct Block {
  int x, y;  // first pixel, relative to the tile
};
inline Block block_at(int b) {
  return {kBlockWidth * (b % kBlocksAcross), kBlockHeight * (b / kBlocksAcross)};
}

struct LaneOffsets {
  vf x, y;                                      // pixel centres within a block
  vf block_x[kBlocks / GSA_LANES + (kBlocks < GSA_LANES)];  // first centre of every block
  vf block_y[kBlocks / GSA_LANES + (kBlocks < GSA_LANES)];
};

inline LaneOffsets lane_offsets() {
  LaneOffsets o;
  float x[GSA_LANES], y[GSA_LANES];
  for (int l = 0; l < GSA_LANES; ++l)
    x[l] = (float)(l % kBlockWidth) + 0.5f, y[l] = (float)(l / kBlockWidth) + 0.5f;
  o.x = load(x), o.y = load(y);
  for (int i = 0; i < kBlocks / GSA_LANES; ++i) {
    for (int l = 0; l < GSA_LANES; ++l) {
      const Block b = block_at(i * GSA_LANES + l);
      x[l] = (float)b.x + 0.5f, y[l] = (float)b.y + 0.5f;
    }
    o.block_x[i] = load(x), o.block_y[i] = load(y);
  }
  return o;
}
static_assert(kBlocks % GSA_LANES == 0, "the block mask is made of whole vectors");

struct TileArea {
  int left, top, width, height;  // pixels of it inside the picture
};
inline TileArea tile_area(const gsa_raster& s, int tile) {
  const int across = tiles_across(s);
  TileArea a;
  a.left = tile % across * kTile, a.top = tile / across * kTile;
  a.width = s.width - a.left < kTile ? s.width - a.left : kTile;
  a.height = s.height - a.top < kTile ? s.height - a.top : kTile;
  return a;
}

// Bit b is set where block b holds a point within reach of the Gaussian.
inline uint64_t block_mask(const Record& r, const LaneOffsets& o, float tile_x, float tile_y) {
  const Exponent<vf> e = {broadcast(r.exponent_xx), broadcast(r.exponent_xy),
                          broadcast(r.exponent_yy)};
  const vf slope_x = broadcast(r.slope_x), slope_y = broadcast(r.slope_y);
  uint64_t mask = 0;
  for (int i = 0; i < kBlocks / GSA_LANES; ++i) {
    const vf x_low = o.block_x[i] + (tile_x - r.x), y_low = o.block_y[i] + (tile_y - r.y);
    const vf least = least_exponent(e, slope_x, slope_y, x_low, x_low + (float)(kBlockWidth - 1),
                                    y_low, y_low + (float)(kBlockHeight - 1));
    mask |= (uint64_t)bits(less_equal(least, broadcast(r.reach))) << (i * GSA_LANES);
  }
  return mask;
}

// Transmittance before the first Gaussian: 1, and 0 outside the picture so that nothing counts
// there. Returns the blocks that hold a pixel.
inline uint64_t start_transmittance(const TileArea& area, float* transmittance) {
  uint64_t alive = 0;
  for (int b = 0; b < kBlocks; ++b) {
    const Block at = block_at(b);
    bool any = false;
    for (int l = 0; l < GSA_LANES; ++l) {
      const bool inside = at.x + l % kBlockWidth < area.width && at.y + l / kBlockWidth < area.height;
      transmittance[b * GSA_LANES + l] = inside ? 1.0f : 0.0f;
      any = any || inside;
    }
    if (any) alive |= 1ull << b;
  }
  return alive;
}

// Calls visit(place in the tile's vectors, pixel index in the picture) for every pixel inside.
template <class Visit>
inline void for_pixels(const TileArea& area, int image_width, const Visit& visit) {
  for (int y = 0; y < area.height; ++y) {
    const int64_t row = (int64_t)(area.top + y) * image_width + area.left;
    const int block_row = y / kBlockHeight * kBlocksAcross, lane_row = y % kBlockHeight * kBlockWidth;
    for (int x = 0; x < area.width; ++x)
      visit((block_row + x / kBlockWidth) * GSA_LANES + lane_row + x % kBlockWidth, row + x);
  }
}

}  // namespace gsa
