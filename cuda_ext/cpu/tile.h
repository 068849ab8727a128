// What the forward and the backward tile pass share.
//
// A tile is 16 x 16 pixels in blocks of one vector each. Its Gaussians come in depth-ordered batches.
// For a batch we find which blocks each Gaussian reaches, turn that into a list of Gaussians per
// block, and then walk one block at a time: its pixels stay in registers, the loops are long, and a
// block whose pixels are all opaque drops out.
#pragma once

#include <stddef.h>

#include "record.h"
#include "composite.h"
#include "weave.h"

namespace gsa {

// For the innermost loops: inlined into their callers they lose registers to the callers' values.
#define GSA_ALONE __attribute__((noinline))

constexpr int kBatch = 240;  // a multiple of 16 whose places fit a byte

// Gaussians whose alpha is computed together, each step of all before the next step of any: the steps
// of one wait for each other, and the processor looks ahead less far than that takes.
#if GSA_LANES == 16
constexpr int kAhead = 4;
#else
constexpr int kAhead = 2;  // half the registers
#endif

// Pixels are stored block by block: block b holds pixels 4 wide, kBlockHeight high.

// Pixel centres relative to the tile's centre, their products, and the blocks' first centres
// relative to its corner.
struct Pixels {
  alignas(64) float x[kPixels], y[kPixels], xx[kPixels], xy[kPixels], yy[kPixels];
  alignas(64) float block_x[kBlocks], block_y[kBlocks];

  Pixels() {
    for (int b = 0; b < kBlocks; ++b) {
      const int left = kBlockWidth * (b % kBlocksAcross), top = kBlockHeight * (b / kBlocksAcross);
      block_x[b] = (float)left + 0.5f, block_y[b] = (float)top + 0.5f;
      for (int l = 0; l < GSA_LANES; ++l) {
        const int i = b * GSA_LANES + l;
        x[i] = block_x[b] + (float)(l % kBlockWidth) - kCentre;
        y[i] = block_y[b] + (float)(l / kBlockWidth) - kCentre;
        xx[i] = x[i] * x[i], xy[i] = x[i] * y[i], yy[i] = y[i] * y[i];
      }
    }
  }
  static constexpr float kCentre = 0.5f * (float)kTile;
};
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

// One Gaussian of a batch, relative to the tile's centre: a Record in which the falloff has taken the
// place of the ellipse.
struct Entry {
  Falloff<float> falloff;
  float peak, faintest;
  float color[3];
  float depth;
  float x, y;
  int32_t branch;
  int32_t slot;
};
static_assert(sizeof(Entry) == sizeof(Record), "an entry is copied from a record");
static_assert(offsetof(Entry, peak) == offsetof(Record, peak), "and keeps what follows");

struct Batch {
  alignas(64) Entry entry[kBatch + 1];  // the last counts nowhere
  BlockSet blocks[kBatch];              // which blocks each reaches
  uint8_t list[kBatch + 16];            // entries of the block in hand, written in groups of 16
  int count;
  bool mixed;  // holds more than one branch

  Batch() {
    memset((void*)(entry + kBatch), 0, sizeof(Entry));
    entry[kBatch].falloff.one = 2.0f * kPowerMin;
  }
};

// Bit b is set where block b holds a point within reach of the Gaussian.
inline BlockSet block_mask(const Record& r, const Pixels& p, float x, float y) {
  const Exponent<vf> e = {broadcast(r.exponent_xx), broadcast(r.exponent_xy),
                          broadcast(r.exponent_yy)};
  const vf slope_x = broadcast(r.slope_x), slope_y = broadcast(r.slope_y);
  BlockSet mask = 0;
  for (int i = 0; i < kBlocks; i += GSA_LANES) {
    const vf x_low = load(p.block_x + i) - x, y_low = load(p.block_y + i) - y;
    const vf least = least_exponent(e, slope_x, slope_y, x_low, x_low + (float)(kBlockWidth - 1),
                                    y_low, y_low + (float)(kBlockHeight - 1));
    mask |= (BlockSet)bits(less_equal(least, broadcast(-r.faintest))) << i;
  }
  return mask;
}

constexpr int kRecordsAhead = 20;  // records lie scattered: their lines are asked for early

// Whether gsa_composite has left which blocks the pairs reach. Another instruction set may have drawn
// the picture, with blocks of another size.
inline bool blocks_known(const gsa_raster& s) {
  return s.blocks && s.tile_start[tiles_across(s) * tiles_down(s) + 1] == GSA_LANES;
}

// Reads the pairs [first, first + batch.count) of the tile's list. Which blocks each reaches is found,
// and kept where there is a place for it, unless it is `known`.
inline void read_batch(const gsa_raster& s, const TileArea& area, int first, int last,
                       const Pixels& p, Batch& batch, bool known) {
  const Record* records = (const Record*)s.records;
  const int32_t* pair = s.list + 2 * (int64_t)first;
  BlockSet* kept = s.blocks ? (BlockSet*)s.blocks + first : nullptr;
  batch.count = last - first < kBatch ? last - first : kBatch;
  int branches = 0;
  for (int i = 0; i < kRecordsAhead && first + i < last; ++i)
    __builtin_prefetch(records + pair[2 * i]);
  for (int i = 0; i < batch.count; ++i) {
    if (first + i + kRecordsAhead < last)
      __builtin_prefetch(records + pair[2 * (i + kRecordsAhead)]);
    const Record& r = records[pair[2 * i]];
    const float x = r.x - (float)area.left, y = r.y - (float)area.top;
    if (!known) batch.blocks[i] = block_mask(r, p, x, y);
    Entry& e = batch.entry[i];
    memcpy((void*)&e, &r, sizeof e);
    e.x = x - Pixels::kCentre, e.y = y - Pixels::kCentre;
    e.falloff = falloff_of(Exponent<float>{r.exponent_xx, r.exponent_xy, r.exponent_yy}, e.x, e.y,
                           r.peak);
    e.slot = pair[2 * i + 1];
    branches |= 1 << r.branch;
  }
  const size_t bytes = sizeof(BlockSet) * (size_t)batch.count;
  if (known) {
    memcpy(batch.blocks, kept, bytes);
  } else if (kept) {
    memcpy(kept, batch.blocks, bytes);
  }
  for (int i = batch.count; i < (batch.count + 15) / 16 * 16; ++i) batch.blocks[i] = 0;
  batch.mixed = (branches & (branches - 1)) != 0;
}

// Fills batch.list with the entries that reach block b, in order; returns how many.
inline int find_listed(Batch& batch, int b) {
#if GSA_LANES == 16
  const __m512i bit = _mm512_set1_epi32(1 << b), step = _mm512_set1_epi32(16);
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int n = 0;
  for (int i = 0; i < batch.count; i += 16) {  // read_batch left no bits past the count
    const __mmask16 hit = _mm512_test_epi32_mask(_mm512_loadu_si512(batch.blocks + i), bit);
    const __m512i listed = _mm512_maskz_compress_epi32(hit, index);
    _mm_storeu_si128((__m128i*)(batch.list + n), _mm512_cvtepi32_epi8(listed));
    n += __builtin_popcount(hit);
    index = _mm512_add_epi32(index, step);
  }
  return n;
#else
  int n = 0;
  for (int i = 0; i < batch.count; ++i) {  // no branch: most Gaussians reach some blocks
    batch.list[n] = (uint8_t)i;
    n += (int)(batch.blocks[i] >> b & 1);
  }
  return n;
#endif
}

inline int list_block(Batch& batch, int b) {
  const int n = find_listed(batch, b);
  for (int i = 0; i < kAhead; ++i) batch.list[n + i] = kBatch;
  return n;
}

// Transmittance before the first Gaussian: 1, and 0 outside the picture so that nothing counts
// there. Returns the blocks that hold a pixel.
inline BlockSet start_transmittance(const TileArea& area, float* transmittance) {
  BlockSet alive = 0;
  for (int b = 0; b < kBlocks; ++b) {
    const int left = kBlockWidth * (b % kBlocksAcross), top = kBlockHeight * (b / kBlocksAcross);
    bool any = false;
    for (int l = 0; l < GSA_LANES; ++l) {
      const bool inside = left + l % kBlockWidth < area.width && top + l / kBlockWidth < area.height;
      transmittance[b * GSA_LANES + l] = inside ? 1.0f : 0.0f;
      any = any || inside;
    }
    if (any) alive |= (BlockSet)1 << b;
  }
  return alive;
}

inline bool any_transparent(vf transmittance) {
  return bits(less_equal(broadcast(kTransmittanceMin), transmittance)) != 0;
}

// The pixels of one block.
struct BlockPixels {
  vf x, y, xx, xy, yy;
  BlockPixels(const Pixels& p, int i)
      : x(load(p.x + i)), y(load(p.y + i)), xx(load(p.xx + i)), xy(load(p.xy + i)),
        yy(load(p.yy + i)) {}
};

// alpha of kAhead listed Gaussians, their steps interleaved.
inline void alphas(const Entry* const* e, const BlockPixels& p, vf* alpha) {
  vf power[kAhead];
  for (int i = 0; i < kAhead; ++i) power[i] = p.x * e[i]->falloff.x + broadcast(e[i]->falloff.one);
  for (int i = 0; i < kAhead; ++i) power[i] = p.y * e[i]->falloff.y + power[i];
  for (int i = 0; i < kAhead; ++i) power[i] = p.xx * e[i]->falloff.xx + power[i];
  for (int i = 0; i < kAhead; ++i) power[i] = p.xy * e[i]->falloff.xy + power[i];
  for (int i = 0; i < kAhead; ++i) power[i] = p.yy * e[i]->falloff.yy + power[i];
  vf fraction[kAhead], rest[kAhead];
  powers_of_two<kAhead>(power, fraction, rest);
  for (int i = 0; i < kAhead; ++i) alpha[i] = alpha_of(power[i], fraction[i], rest[i]);
}

// The entries `batch.list[k …]`; past the end of the list one that counts nowhere.
inline void next_entries(const Batch& batch, int k, const Entry** e) {
  for (int i = 0; i < kAhead; ++i) e[i] = batch.entry + batch.list[k + i];
}

// A band of kBlockHeight rows: between the tile's order, where a vector is a block, and rows of 16
// pixels. (Copying 16 bytes at a time would stall every later load of a whole vector.)
inline void band_to_rows(const float* band, float* rows) {
#if GSA_LANES == 16
  vf a = load(band), b = load(band + 16), c = load(band + 32), d = load(band + 48);
  exchange_quarters(a, b, c, d);
  store(rows, a), store(rows + 16, b), store(rows + 32, c), store(rows + 48, d);
#elif GSA_LANES == 8
  for (int i = 0; i < 2; ++i) {
    const vf a = load(band + 16 * i), b = load(band + 16 * i + 8);
    store(rows + 8 * i, _mm256_permute2f128_ps(a, b, 0x20));
    store(rows + 8 * i + 16, _mm256_permute2f128_ps(a, b, 0x31));
  }
#else
  memcpy(rows, band, kTile * sizeof(float));
#endif
}
inline void rows_to_band(const float* rows, float* band) {
#if GSA_LANES == 16
  band_to_rows(rows, band);  // a transpose of 4 x 4 quarters is its own inverse
#elif GSA_LANES == 8
  for (int i = 0; i < 2; ++i) {
    const vf a = load(rows + 8 * i), b = load(rows + 8 * i + 16);
    store(band + 16 * i, _mm256_permute2f128_ps(a, b, 0x20));
    store(band + 16 * i + 8, _mm256_permute2f128_ps(a, b, 0x31));
  }
#else
  memcpy(band, rows, kTile * sizeof(float));
#endif
}
constexpr int kBand = kTile * kBlockHeight;  // pixels of a band

// `width` pixels of a tile's row; nearly all rows are whole, and a known size needs no call.
inline void copy_row(float* to, const float* from, int width, int channels = 1) {
  if (width == kTile) {
    for (int c = 0; c < channels; ++c)
      memcpy(to + c * kTile, from + c * kTile, kTile * sizeof(float));
  } else {
    memcpy(to, from, (size_t)(width * channels) * sizeof(float));
  }
}

// 16 pixels between three planes and interleaved memory.
inline void interleave(const float* a, const float* b, const float* c, float* out) {
#if GSA_LANES == 16
  vf p, q, r;
  merge_three(load(a), load(b), load(c), p, q, r);
  store(out, p), store(out + 16, q), store(out + 32, r);
#else
  for (int x = 0; x < kTile; ++x) out[3 * x] = a[x], out[3 * x + 1] = b[x], out[3 * x + 2] = c[x];
#endif
}
inline void separate(const float* in, float* a, float* b, float* c) {
#if GSA_LANES == 16
  vf x, y, z;
  split_three(load(in), load(in + 16), load(in + 32), x, y, z);
  store(a, x), store(b, y), store(c, z);
#else
  for (int x = 0; x < kTile; ++x) a[x] = in[3 * x], b[x] = in[3 * x + 1], c[x] = in[3 * x + 2];
#endif
}

}  // namespace gsa
