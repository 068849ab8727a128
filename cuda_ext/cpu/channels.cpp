// Compositing of channels beside colour, and its derivative.
//
// The walks are those of composite.cpp and backward.cpp without depth, branches and background. The
// loss is linear in the outputs, so what a group of channels says about the Gaussians is simply added.
#include "channels.h"
//
#include <atomic>

#include "lanes.h"
#include "tile.h"
#include "watch.h"

namespace gsa {
namespace {

constexpr int kGroup = GSA_CHANNELS;
static_assert(kGroup == 8, "sum_entry sums four channels twice");

// Some of the channels.
struct Group {
  const gsa_raster& s;
  int first, count;
};

template <class Visit>
void for_groups(const gsa_raster& s, const Visit& visit) {
  for (int first = 0; first < s.channel_count; first += kGroup) {
    const int left = s.channel_count - first;
    visit(Group{s, first, left < kGroup ? left : kGroup});
  }
}

// A batch with its channels; past the end of a list, and past the last channel, there are zeros.
struct Values {
  Batch batch;
  alignas(64) float value[kBatch + 1][kGroup] = {};

  void read(const Group& group, const TileArea& area, int first, int last, const Pixels& pixels) {
    const gsa_raster& s = group.s;
    read_batch(s, area, first, last, pixels, batch, blocks_known(s));
    for (int i = 0; i < batch.count; ++i) {
      const int64_t g = s.list[2 * (int64_t)(first + i)];
      memcpy(value[i], s.channels + g * s.channel_count + group.first,
             sizeof(float) * (size_t)group.count);
    }
  }
};

struct Tile {
  alignas(64) float transmittance[kPixels];
  alignas(64) float behind[kPixels];         // R of composite.h
  alignas(64) float channel[kGroup][kPixels];  // sums forward, gradients backward
};

// Between a tile's order and rows of the picture: visit(pixel of the picture, its place in the tile).
template <class Visit>
void for_pixels(const gsa_raster& s, const TileArea& area, const Visit& visit) {
  for (int y = 0; y < area.height; ++y) {
    const int64_t row = (int64_t)(area.top + y) * s.width + area.left;
    const int block = y / kBlockHeight * kBlocksAcross, line = y % kBlockHeight * kBlockWidth;
    for (int x = 0; x < area.width; ++x)
      visit(row + x, (block + x / kBlockWidth) * GSA_LANES + line + x % kBlockWidth);
  }
}

// Composites `count` listed Gaussians over one block; false once all its pixels are opaque.
template <int Count>
GSA_ALONE bool composite_block(const Values& values, int count, const Pixels& pixels, int i,
                               Tile& t) {
  const BlockPixels p(pixels, i);
  vf transmittance = load(t.transmittance + i), sum[Count];
  for (int c = 0; c < Count; ++c) sum[c] = load(t.channel[c] + i);
  for (int k = 0; k < count; k += kAhead) {
    const Entry* e[kAhead];
    vf alpha[kAhead];
    next_entries(values.batch, k, e);
    alphas(e, p, alpha);
    for (int n = 0; n < kAhead; ++n) {
      const float* value = values.value[values.batch.list[k + n]];
      const auto c = contribute<vm>(alpha[n], transmittance);
      transmittance = c.transmittance;
      for (int j = 0; j < Count; ++j) sum[j] = sum[j] + c.weight * value[j];
    }
    if (!any_transparent(transmittance)) break;
  }
  for (int c = 0; c < Count; ++c) store(t.channel[c] + i, sum[c]);
  store(t.transmittance + i, transmittance);
  return any_transparent(transmittance);
}

void composite_tile(const Group& group, int tile, const Pixels& pixels) {
  const gsa_raster& s = group.s;
  const TileArea area = tile_area(s, tile);
  const int last = s.tile_start[tile + 1];
  const FlushTiny flush;
  Tile t;
  memset(&t, 0, sizeof t);
  Values values;
  BlockSet alive = start_transmittance(area, t.transmittance);
  const auto composite = group.count > 4 ? composite_block<kGroup> : composite_block<4>;
  for (int first = s.tile_start[tile]; first < last && alive; first += kBatch) {
    values.read(group, area, first, last, pixels);
    for (BlockSet left = alive; left; left &= left - 1) {
      const int b = __builtin_ctzll(left), count = list_block(values.batch, b);
      if (count && !composite(values, count, pixels, b * GSA_LANES, t)) alive &= ~((BlockSet)1 << b);
    }
  }
  for_pixels(s, area, [&](int64_t pixel, int at) {
    float* out = s.extras + pixel * s.channel_count + group.first;
    for (int c = 0; c < group.count; ++c) out[c] = t.channel[c][at];
  });
}

// One vector per (entry, block), as in backward.cpp.
constexpr int kSlotsAhead = 12;           // slots lie scattered
constexpr int kSpare = kBatch * kBlocks;  // where entries past the end of a list write
struct Visits {
  alignas(64) float power[kBatch * kPixels + GSA_LANES];  // dL/dpower
  alignas(64) float weight[kBatch * kPixels + GSA_LANES];
  int start[kBatch];
};

// Walks one block front to back; false once all its pixels are opaque.
template <int Count>
GSA_ALONE bool walk_block(const Values& values, int count, int b, const Pixels& pixels, Tile& t,
                          Visits& visits) {
  const Batch& batch = values.batch;
  const int i = b * GSA_LANES;
  const BlockPixels p(pixels, i);
  vf transmittance = load(t.transmittance + i), behind = load(t.behind + i), v[Count];
  for (int c = 0; c < Count; ++c) v[c] = load(t.channel[c] + i);
  const BlockSet before = ((BlockSet)1 << b) - 1;
  for (int k = 0; k < count; k += kAhead) {
    const Entry* e[kAhead];
    vf alpha[kAhead], slope[kAhead], rest[kAhead];
    Contribution<vf, vm> c[kAhead];
    const float* value[kAhead];
    next_entries(batch, k, e);
    alphas(e, p, alpha);
    for (int n = 0; n < kAhead; ++n) value[n] = values.value[batch.list[k + n]];
    for (int n = 0; n < kAhead; ++n) slope[n] = v[0] * value[n][0];
    for (int j = 1; j < Count; ++j)
      for (int n = 0; n < kAhead; ++n) slope[n] = slope[n] + v[j] * value[n][j];
    for (int n = 0; n < kAhead; ++n) {
      c[n] = contribute<vm>(alpha[n], transmittance);
      transmittance = c[n].transmittance;
      rest[n] = behind = behind - c[n].weight * slope[n];
    }
    for (int n = 0; n < kAhead; ++n) {
      const int entry = batch.list[k + n];
      const int64_t at = entry == kBatch ? kSpare : visits.start[entry] +
                             __builtin_popcountll(batch.blocks[entry] & before);
      store(visits.power + at * GSA_LANES, contribute_bwd(c[n], slope[n], rest[n]));
      store(visits.weight + at * GSA_LANES, c[n].weight);
    }
  }
  store(t.transmittance + i, transmittance), store(t.behind + i, behind);
  return any_transparent(transmittance);
}

// Sums of one Gaussian over the blocks it reaches: the moments are added to its slot.
template <int Count>
GSA_ALONE void sum_entry(const Entry& e, BlockSet blocks, const float* power, const float* weight,
                         const Pixels& p, const Tile& t, float* slot, float* channels) {
  constexpr int kMoments = 6;  // those of the position
  vf m[GSA_MOMENTS] = {}, rest[GSA_MOMENTS] = {};
  for (; blocks; blocks &= blocks - 1) {
    const int i = __builtin_ctzll(blocks) * GSA_LANES;
    const vf g = load(power), w = load(weight), x = load(p.x + i) - e.x, y = load(p.y + i) - e.y;
    const vf gx = g * x, gy = g * y;
    m[kG] = m[kG] + g;
    m[kGx] = m[kGx] + gx, m[kGy] = m[kGy] + gy;
    m[kGxx] = m[kGxx] + gx * x, m[kGxy] = m[kGxy] + gx * y, m[kGyy] = m[kGyy] + gy * y;
    for (int c = 0; c < 4; ++c) m[kMoments + c] = m[kMoments + c] + w * load(t.channel[c] + i);
    for (int c = 4; c < Count; ++c) rest[c - 4] = rest[c - 4] + w * load(t.channel[c] + i);
    power += GSA_LANES, weight += GSA_LANES;
  }
  float sum[GSA_MOMENTS];
  sum_moments(m, sum);
  for (int k = 0; k < kMoments; ++k) slot[k] += sum[k];
  memcpy(channels, sum + kMoments, 4 * sizeof(float));
  if (Count == 4) return;
  sum_moments(rest, sum);
  memcpy(channels + 4, sum, 4 * sizeof(float));
}

template <int Count>
void walk_batch(const gsa_raster_grad& v, Values& values, const Pixels& pixels, BlockSet& alive,
                Tile& t, Visits& visits) {
  Batch& batch = values.batch;
  int count = 0;
  for (int n = 0; n < batch.count; ++n) {
    batch.blocks[n] &= alive;
    visits.start[n] = count;
    count += __builtin_popcountll(batch.blocks[n]);
  }
  for (BlockSet left = alive; left; left &= left - 1) {
    const int b = __builtin_ctzll(left), listed = list_block(batch, b);
    if (listed && !walk_block<Count>(values, listed, b, pixels, t, visits))
      alive &= ~((BlockSet)1 << b);
  }
  for (int n = 0; n < batch.count; ++n) {
    if (n + kSlotsAhead < batch.count) {
      const int64_t later = batch.entry[n + kSlotsAhead].slot;
      __builtin_prefetch(v.slots + GSA_MOMENTS * later, 1);
      __builtin_prefetch(v.channel_slots + kGroup * later, 1);
    }
    const int64_t at = visits.start[n] * (int64_t)GSA_LANES, slot = batch.entry[n].slot;
    sum_entry<Count>(batch.entry[n], batch.blocks[n], visits.power + at, visits.weight + at, pixels,
                     t, v.slots + GSA_MOMENTS * slot, v.channel_slots + kGroup * slot);
  }
}

void walk_tile(const Group& group, const gsa_raster_grad& v, int tile, const Pixels& pixels) {
  const gsa_raster& s = group.s;
  const TileArea area = tile_area(s, tile);
  const int last = s.tile_start[tile + 1];
  if (s.tile_start[tile] == last) return;
  const FlushTiny flush;
  Tile t;
  memset(&t, 0, sizeof t);
  BlockSet alive = start_transmittance(area, t.transmittance);
  for_pixels(s, area, [&](int64_t pixel, int at) {
    const int64_t from = pixel * s.channel_count + group.first;
    for (int c = 0; c < group.count; ++c) {
      t.channel[c][at] = v.extras[from + c];
      t.behind[at] += v.extras[from + c] * s.extras[from + c];
    }
  });
  Values values;
  Visits visits;
  const auto walk = group.count > 4 ? walk_batch<kGroup> : walk_batch<4>;
  for (int first = s.tile_start[tile]; first < last; first += kBatch) {
    if (!alive) {  // nothing behind is seen
      for (int i = first; i < last; ++i)
        memset(v.channel_slots + kGroup * (int64_t)s.list[2 * (int64_t)i + 1], 0,
               kGroup * sizeof(float));
      break;
    }
    values.read(group, area, first, last, pixels);
    walk(v, values, pixels, alive, t, visits);
  }
}

bool channels_are_finite(const gsa_raster& s, Crew& crew) {
  std::atomic<bool> finite{true};
  crew.run((s.count + kChunk - 1) / kChunk, [&](int c) {
    const int64_t first = (int64_t)c * kChunk, left = s.count - first;
    const float* at = s.channels + first * s.channel_count;
    const int64_t count = (left < kChunk ? left : kChunk) * s.channel_count;
    vf sum = broadcast(0.0f);
    int64_t i = 0;
    for (; i + GSA_LANES <= count; i += GSA_LANES) watch(sum, load(at + i));
    if (is_nan(sum) || !all_finite(at + i, (int)(count - i)))
      finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

}  // namespace

void channels_bwd(const gsa_raster& s, const gsa_raster_grad& v, Crew& crew) {
  const Pixels pixels;
  for_groups(s, [&](const Group& group) {
    crew.run(tiles_across(s) * tiles_down(s), [&](int tile) { walk_tile(group, v, tile, pixels); });
    crew.run((s.count + kChunk - 1) / kChunk, [&](int chunk) {
      const int end = s.count < (chunk + 1) * kChunk ? s.count : (chunk + 1) * kChunk;
      for (int64_t i = chunk * kChunk; i < end; ++i) {
        float sum[kGroup] = {};
        for (int64_t j = s.pair_start[i]; j < s.pair_start[i + 1]; ++j)
          for (int c = 0; c < kGroup; ++c) sum[c] += v.channel_slots[kGroup * j + c];
        memcpy(v.channels + i * s.channel_count + group.first, sum,
               sizeof(float) * (size_t)group.count);
      }
    });
  });
}

}  // namespace gsa

extern "C" int32_t gsa_channels(const gsa_raster* scene) {
  using namespace gsa;
  const gsa_raster& s = *scene;
  Crew crew(s.threads);
  if (!channels_are_finite(s, crew)) return GSA_NOT_FINITE + 10;
  const Pixels pixels;
  for_groups(s, [&](const Group& group) {
    crew.run(tiles_across(s) * tiles_down(s), [&](int tile) { composite_tile(group, tile, pixels); });
  });
  return GSA_OK;
}
