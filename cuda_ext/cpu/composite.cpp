// Tile lists in depth order and the forward compositing pass.
#include <math.h>

#include <atomic>

#include "parallel.h"
#include "tile.h"

namespace gsa {
namespace {

constexpr int kCoversAhead = 8;  // covers are read in the order of depth, all over memory

// Counting sort of the visible Gaussians, near to far, into tiles. Part p of the order is counted
// and placed by itself, so the lists do not depend on the number of parts.
void bin(const gsa_raster& s, int tiles, Crew& crew) {
  const Record* records = (const Record*)s.records;
  const Cover* covers = (const Cover*)s.cover;
  const int across = tiles_across(s), parts = s.threads;
  memset(s.tile_counts, 0, sizeof(int32_t) * (size_t)parts * (size_t)tiles);
  const auto bound = [&](int p) { return (int)((int64_t)s.visible * p / parts); };
  crew.run(parts, [&](int p) {
    int32_t* counts = s.tile_counts + (int64_t)p * tiles;
    const int end = bound(p + 1);
    for (int i = bound(p); i < end; ++i) {
      const int32_t g = s.order[i];
      if (i + kCoversAhead < end) __builtin_prefetch(covers + s.order[i + kCoversAhead]);
      for_tiles(covers[g], records + g, across, [&](int tile) { ++counts[tile]; });
    }
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
  s.tile_start[tiles + 1] = GSA_LANES;
  crew.run(parts, [&](int p) {
    int32_t* cursor = s.tile_counts + (int64_t)p * tiles;
    const int end = bound(p + 1);
    for (int i = bound(p); i < end; ++i) {
      const int32_t g = s.order[i];
      if (i + kCoversAhead < end) {
        __builtin_prefetch(covers + s.order[i + kCoversAhead]);
        __builtin_prefetch(s.pair_start + s.order[i + kCoversAhead]);
      }
      int32_t slot = s.pair_start[g];
      for_tiles(covers[g], records + g, across, [&](int tile) {
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

// Composites `count` listed Gaussians over the block at `i`; false once all its pixels are opaque.
// Where all are of one branch, its sum of weights stays in a register; else each is added in memory,
// which is less work than three products with 0 or 1.
template <bool Mixed>
GSA_ALONE bool composite_block(const Batch& batch, int count, const Pixels& pixels, int i, Tile& t) {
  const BlockPixels p(pixels, i);
  vf transmittance = load(t.transmittance + i), depth = load(t.depth + i);
  vf red = load(t.rgb[0] + i), green = load(t.rgb[1] + i), blue = load(t.rgb[2] + i);
  vf share = broadcast(0.0f);
  for (int k = 0; k < count; k += kAhead) {
    const Entry* e[kAhead];
    vf alpha[kAhead];
    next_entries(batch, k, e);
    alphas(e, p, alpha);
    for (int n = 0; n < kAhead; ++n) {
      const auto c = contribute<vm>(alpha[n], transmittance);
      transmittance = c.transmittance;
      red = red + c.weight * e[n]->color[0];
      green = green + c.weight * e[n]->color[1];
      blue = blue + c.weight * e[n]->color[2];
      depth = depth + c.weight * e[n]->depth;
      if (Mixed) {
        float* own = t.share[e[n]->branch] + i;
        store(own, load(own) + c.weight);
      } else {
        share = share + c.weight;
      }
    }
    if (!any_transparent(transmittance)) break;
  }
  if (!Mixed) {
    float* own = t.share[batch.entry[0].branch] + i;
    store(own, load(own) + share);
  }
  store(t.transmittance + i, transmittance), store(t.depth + i, depth);
  store(t.rgb[0] + i, red), store(t.rgb[1] + i, green), store(t.rgb[2] + i, blue);
  return any_transparent(transmittance);
}

void write_empty(const gsa_raster& s, const TileArea& area) {
  float plain[3 * kTile];
  for (int i = 0; i < 3 * kTile; ++i) plain[i] = s.background[i % 3];
  const size_t n = (size_t)area.width * sizeof(float);
  for (int y = 0; y < area.height; ++y) {
    const int64_t row = (int64_t)(area.top + y) * s.width + area.left;
    memcpy(s.rgb + 3 * row, s.background_is_image ? s.background + 3 * row : plain, 3 * n);
    memset(s.alpha + row, 0, n);
    memset(s.depth + row, 0, n);
    memset(s.branch_alpha + 3 * row, 0, 3 * n);
  }
}

// One row of three planes into interleaved memory.
void write_three(const float* a, const float* b, const float* c, float* out, int width) {
  if (width == kTile) return interleave(a, b, c, out);
  float mixed[3 * kTile];
  interleave(a, b, c, mixed);
  memcpy(out, mixed, 3 * sizeof(float) * (size_t)width);
}

void write_tile(const gsa_raster& s, const TileArea& area, const Tile& t) {
  alignas(64) float depth[kBand], rgb[3][kBand], share[3][kBand];
  for (int top = 0; top < area.height; top += kBlockHeight) {
    band_to_rows(t.depth + top * kTile, depth);
    for (int c = 0; c < 3; ++c) {
      band_to_rows(t.rgb[c] + top * kTile, rgb[c]);
      band_to_rows(t.share[c] + top * kTile, share[c]);
    }
    for (int y = 0; y < kBlockHeight && top + y < area.height; ++y) {
      const int64_t row = (int64_t)(area.top + top + y) * s.width + area.left;
      const int from = y * kTile;
      alignas(64) float alpha[kTile], back[3][kTile], mixed[3 * kTile];
      if (s.background_is_image) {
        copy_row(mixed, s.background + 3 * row, area.width, 3);
        separate(mixed, back[0], back[1], back[2]);
      }
      for (int x = 0; x < kTile; x += GSA_LANES) {
        const vf opaque =
            load(share[0] + from + x) + load(share[1] + from + x) + load(share[2] + from + x);
        store(alpha + x, opaque);
        for (int c = 0; c < 3; ++c) {
          const vf behind = s.background_is_image ? load(back[c] + x) : broadcast(s.background[c]);
          float* at = rgb[c] + from + x;
          store(at, load(at) + (broadcast(1.0f) - opaque) * behind);
        }
      }
      copy_row(s.alpha + row, alpha, area.width);
      copy_row(s.depth + row, depth + from, area.width);
      write_three(rgb[0] + from, rgb[1] + from, rgb[2] + from, s.rgb + 3 * row, area.width);
      write_three(share[0] + from, share[1] + from, share[2] + from, s.branch_alpha + 3 * row,
                  area.width);
    }
  }
}

void composite_tile(const gsa_raster& s, int tile, const Pixels& pixels) {
  const TileArea area = tile_area(s, tile);
  const int last = s.tile_start[tile + 1];
  if (s.tile_start[tile] == last) return write_empty(s, area);
  const FlushTiny flush;
  Tile t;
  memset(&t, 0, sizeof t);
  Batch batch;
  BlockSet alive = start_transmittance(area, t.transmittance);
  int first = s.tile_start[tile];
  for (; first < last && alive; first += kBatch) {
    read_batch(s, area, first, last, pixels, batch, false);
    for (BlockSet left = alive; left; left &= left - 1) {
      const int b = __builtin_ctzll(left);
      const int count = list_block(batch, b);
      if (count == 0) continue;
      const auto composite = batch.mixed ? composite_block<true> : composite_block<false>;
      if (!composite(batch, count, pixels, b * GSA_LANES, t)) alive &= ~((BlockSet)1 << b);
    }
  }
  if (s.blocks)  // nothing behind is seen
    for (; first < last; ++first) ((BlockSet*)s.blocks)[first] = 0;
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
  Crew crew(s.threads);
  bin(s, tiles, crew);
  const Pixels pixels;
  crew.run(tiles, [&](int tile) { composite_tile(s, tile, pixels); });
  return GSA_OK;
}

extern "C" int64_t gsa_count_contributions(const gsa_raster* scene) {
  using namespace gsa;
  const gsa_raster& s = *scene;
  const Pixels pixels;
  std::atomic<int64_t> total{0};
  Crew crew(s.threads);
  crew.run(tiles_across(s) * tiles_down(s), [&](int tile) {
    const TileArea area = tile_area(s, tile);
    const int last = s.tile_start[tile + 1];
    alignas(64) float transmittance[kPixels];
    start_transmittance(area, transmittance);
    int64_t found = 0;
    Batch batch;
    for (int first = s.tile_start[tile]; first < last; first += kBatch) {
      read_batch(s, area, first, last, pixels, batch, false);
      for (int b = 0; b < kBlocks; ++b) {
        const BlockPixels p(pixels, b * GSA_LANES);
        const int count = list_block(batch, b);
        vf left = load(transmittance + b * GSA_LANES);
        for (int k = 0; k < count; k += kAhead) {
          const Entry* e[kAhead];
          vf alpha[kAhead];
          next_entries(batch, k, e);
          alphas(e, p, alpha);
          for (int n = 0; n < kAhead; ++n) {
            const auto c = contribute<vm>(alpha[n], left);
            left = c.transmittance;
            found += __builtin_popcount(bits(less(broadcast(0.0f), c.weight)));
          }
        }
        store(transmittance + b * GSA_LANES, left);
      }
    }
    total += found;
  });
  return total.load();
}
