// Tile lists in depth order and the forward compositing pass.
#include <math.h>

#include <atomic>

#include "parallel.h"
#include "tile.h"

namespace gsa {
namespace {

// Counting sort of the visible Gaussians, near to far, into tiles. Part p of the order is counted
// and placed by itself, so the lists do not depend on the number of parts.
void bin(const gsa_raster& s, int tiles) {
  const Record* records = (const Record*)s.records;
  const int across = tiles_across(s), parts = s.threads;
  memset(s.tile_counts, 0, sizeof(int32_t) * (size_t)parts * (size_t)tiles);
  const auto bound = [&](int p) { return (int)((int64_t)s.visible * p / parts); };
  parallel_for(parts, s.threads, [&](int p) {
    int32_t* counts = s.tile_counts + (int64_t)p * tiles;
    for (int i = bound(p); i < bound(p + 1); ++i)
      for_tiles(records[s.order[i]], across, [&](int tile) { ++counts[tile]; });
  });
  int32_t sum = 0;
  for (int t = 0; t < tiles; ++t) {
    s.tile_start[t] = sum;
    for (int p = 0; p < parts; ++p) {
      int32_t& count = s.tile_counts[(int64_t)p * tiles + t];
      const int32_t n = count;
      count = sum;
      sum += n;
    }
  }
  s.tile_start[tiles] = sum;
  parallel_for(parts, s.threads, [&](int p) {
    int32_t* cursor = s.tile_counts + (int64_t)p * tiles;
    for (int i = bound(p); i < bound(p + 1); ++i) {
      const int32_t g = s.order[i];
      int32_t slot = s.pair_start[g];
      for_tiles(records[g], across, [&](int tile) {
        int32_t* entry = s.list + 2 * (int64_t)cursor[tile]++;
        entry[0] = g;
        entry[1] = slot++;
      });
    }
  });
}

struct Tile {
  alignas(64) float transmittance[kPixels];
  alignas(64) float rgb[3][kPixels];
  alignas(64) float depth[kPixels];
  alignas(64) float share[3][kPixels];
};

inline void add(float* at, vf value) { store(at, load(at) + value); }

void composite_gaussian(const Record& r, const LaneOffsets& o, float tile_x, float tile_y,
                        uint64_t blocks, uint64_t& alive, Tile& t) {
  const Exponent<vf> e = {broadcast(r.exponent_xx), broadcast(r.exponent_xy),
                          broadcast(r.exponent_yy)};
  const vf opacity = broadcast(r.opacity);
  const vf lane_x = o.x + (tile_x - r.x), lane_y = o.y + (tile_y - r.y);
  float* share = t.share[r.branch];
  while (blocks) {
    const int b = __builtin_ctzll(blocks);
    blocks &= blocks - 1;
    const Block at = block_at(b);
    const int i = b * GSA_LANES;
    const auto c = contribute<vf, vm>(e, opacity, lane_x + (float)at.x, lane_y + (float)at.y,
                                      load(t.transmittance + i));
    store(t.transmittance + i, c.transmittance);
    add(t.rgb[0] + i, c.weight * r.color[0]);
    add(t.rgb[1] + i, c.weight * r.color[1]);
    add(t.rgb[2] + i, c.weight * r.color[2]);
    add(t.depth + i, c.weight * r.depth);
    add(share + i, c.weight);
    if (!bits(less_equal(broadcast(kTransmittanceMin), c.transmittance))) alive &= ~(1ull << b);
  }
}

void write_empty(const gsa_raster& s, const TileArea& area) {
  for (int y = 0; y < area.height; ++y) {
    const int64_t row = (int64_t)(area.top + y) * s.width + area.left;
    const size_t n = (size_t)area.width * sizeof(float);
    if (s.background_is_image) {
      memcpy(s.rgb + 3 * row, s.background + 3 * row, 3 * n);
    } else {
      for (int x = 0; x < area.width; ++x)
        for (int c = 0; c < 3; ++c) s.rgb[3 * (row + x) + c] = s.background[c];
    }
    memset(s.alpha + row, 0, n);
    memset(s.depth + row, 0, n);
    memset(s.branch_alpha + 3 * row, 0, 3 * n);
  }
}

void write_tile(const gsa_raster& s, const TileArea& area, const Tile& t) {
  for_pixels(area, s.width, [&](int i, int64_t pixel) {
    const float* back = s.background + (s.background_is_image ? 3 * pixel : 0);
    const float left = t.transmittance[i];
    s.alpha[pixel] = 1.0f - left;
    s.depth[pixel] = t.depth[i];
    for (int c = 0; c < 3; ++c) {
      s.rgb[3 * pixel + c] = t.rgb[c][i] + left * back[c];
      s.branch_alpha[3 * pixel + c] = t.share[c][i];
    }
  });
}

void composite_tile(const gsa_raster& s, int tile, const LaneOffsets& offsets) {
  const TileArea area = tile_area(s, tile);
  const int first = s.tile_start[tile], last = s.tile_start[tile + 1];
  if (first == last) return write_empty(s, area);
  Tile t;
  memset(&t, 0, sizeof t);
  uint64_t alive = start_transmittance(area, t.transmittance);
  const Record* records = (const Record*)s.records;
  const float tile_x = (float)area.left, tile_y = (float)area.top;
  for (int i = first; i < last && alive; ++i) {
    const Record& r = records[s.list[2 * (int64_t)i]];
    const uint64_t blocks = block_mask(r, offsets, tile_x, tile_y) & alive;
    composite_gaussian(r, offsets, tile_x, tile_y, blocks, alive, t);
  }
  write_tile(s, area, t);
}

bool background_is_finite(const gsa_raster& s) {
  const int64_t n = s.background_is_image ? 3 * (int64_t)s.width * s.height : 3;
  vf sum = broadcast(0.0f);
  int64_t i = 0;
  for (; i + GSA_LANES <= n; i += GSA_LANES) sum = sum + load(s.background + i) * broadcast(0.0f);
  float lane[GSA_LANES], total = 0.0f;
  store(lane, sum);
  for (int l = 0; l < GSA_LANES; ++l) total += lane[l];
  for (; i < n; ++i) total += s.background[i] * 0.0f;
  return total == total;
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_composite(gsa_raster* scene) {
  using namespace gsa;
  const gsa_raster& s = *scene;
  if (!background_is_finite(s)) return GSA_NOT_FINITE + 7;
  const int tiles = tiles_across(s) * tiles_down(s);
  bin(s, tiles);
  const LaneOffsets offsets = lane_offsets();
  parallel_for(tiles, s.threads, [&](int tile) { composite_tile(s, tile, offsets); });
  return GSA_OK;
}

extern "C" int64_t gsa_count_contributions(const gsa_raster* scene) {
  using namespace gsa;
  const gsa_raster& s = *scene;
  const LaneOffsets o = lane_offsets();
  const Record* records = (const Record*)s.records;
  std::atomic<int64_t> total{0};
  parallel_for(tiles_across(s) * tiles_down(s), s.threads, [&](int tile) {
    const TileArea area = tile_area(s, tile);
    alignas(64) float transmittance[kPixels];
    start_transmittance(area, transmittance);
    int64_t count = 0;
    for (int i = s.tile_start[tile]; i < s.tile_start[tile + 1]; ++i) {
      const Record& r = records[s.list[2 * (int64_t)i]];
      const Exponent<vf> e = {broadcast(r.exponent_xx), broadcast(r.exponent_xy),
                              broadcast(r.exponent_yy)};
      for (int b = 0; b < kBlocks; ++b) {
        const Block at = block_at(b);
        float* t = transmittance + b * GSA_LANES;
        const auto c = contribute<vf, vm>(e, broadcast(r.opacity),
                                          o.x + ((float)(area.left + at.x) - r.x),
                                          o.y + ((float)(area.top + at.y) - r.y), load(t));
        store(t, c.transmittance);
        count += __builtin_popcount(bits(less(broadcast(0.0f), c.weight)));
      }
    }
    total += count;
  });
  return total.load();
}
