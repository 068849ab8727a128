// What the forward and the backward tile pass share.
//
// A tile is 16 x 16 pixels in blocks of one vector each. Its Gaussians come in depth-ordered batches.
// For a batch we find which blocks each Gaussian reaches, turn that into a list of Gaussians per
// block, and then walk one block at a time: its pixels stay in registers, the loops are long, and a
// block whose pixels are all opaque drops out.
#pragma once

#include "record.h"
#include "composite.h"

namespace gsa {

// For the innermost loops: inlined into their callers they lose registers to the callers' values.
#define GSA_ALONE __attribute__((noinline))

constexpr int kBatch = 128;

// Pixels are stored block by block: block b holds pixels 4 wide, kBlockHeight high.
struct Block {
  int x, y;  // first pixel, relative to the tile
};
inline Block block_at(int b) {
  return {kBlockWidth * (b % kBlocksAcross), kBlockHeight * (b / kBlocksAcross)};
}

// The same as floats, without a conversion in the loops.
struct BlockCorners {
  float x[kBlocks], y[kBlocks];
  constexpr BlockCorners() : x(), y() {
    for (int b = 0; b < kBlocks; ++b) {
      x[b] = (float)(kBlockWidth * (b % kBlocksAcross));
      y[b] = (float)(kBlockHeight * (b / kBlocksAcross));
    }
  }
};
constexpr BlockCorners kCorner;

struct LaneOffsets {
  vf x, y;                            // pixel centres within a block
  vf block_x[kBlocks / GSA_LANES];    // first centre of every block
  vf block_y[kBlocks / GSA_LANES];
};
static_assert(kBlocks % GSA_LANES == 0, "the block mask is made of whole vectors");

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

// One Gaussian of a batch, its mean relative to the tile.
struct Entry {
  float x, y;
  Exponent<float> exponent;
  float opacity;
  float color[3];
  float depth;
  float in_branch[3];  // 1 for its branch, else 0
  int32_t branch;
  int32_t slot;
  int32_t unused;
};

struct Batch {
  alignas(64) Entry entry[kBatch];
  uint64_t blocks[kBatch];        // which blocks it reaches
  uint8_t list[kBatch + 8];       // entries of the block in hand, written in groups of 8
  int count;
};

// Bit b is set where block b holds a point within reach of the Gaussian.
inline uint64_t block_mask(const Record& r, const LaneOffsets& o, float x, float y) {
  const Exponent<vf> e = {broadcast(r.exponent_xx), broadcast(r.exponent_xy),
                          broadcast(r.exponent_yy)};
  const vf slope_x = broadcast(r.slope_x), slope_y = broadcast(r.slope_y);
  uint64_t mask = 0;
  for (int i = 0; i < kBlocks / GSA_LANES; ++i) {
    const vf x_low = o.block_x[i] - x, y_low = o.block_y[i] - y;
    const vf least = least_exponent(e, slope_x, slope_y, x_low, x_low + (float)(kBlockWidth - 1),
                                    y_low, y_low + (float)(kBlockHeight - 1));
    mask |= (uint64_t)bits(less_equal(least, broadcast(r.reach))) << (i * GSA_LANES);
  }
  return mask;
}

// Reads the pairs [first, first + batch.count) of the tile's list.
inline void read_batch(const gsa_raster& s, const TileArea& area, int first, int last,
                       const LaneOffsets& o, Batch& batch) {
  const Record* records = (const Record*)s.records;
  const int32_t* pair = s.list + 2 * (int64_t)first;
  batch.count = last - first < kBatch ? last - first : kBatch;
  for (int i = 0; i < batch.count; ++i) {
    if (first + i + 8 < last) __builtin_prefetch(records + pair[2 * (i + 8)]);
    const Record& r = records[pair[2 * i]];
    Entry& e = batch.entry[i];
    e.x = r.x - (float)area.left, e.y = r.y - (float)area.top;
    e.exponent = {r.exponent_xx, r.exponent_xy, r.exponent_yy};
    e.opacity = r.opacity;
    for (int c = 0; c < 3; ++c) e.color[c] = r.color[c], e.in_branch[c] = c == r.branch ? 1.0f : 0.0f;
    e.depth = r.depth;
    e.branch = r.branch;
    e.slot = pair[2 * i + 1];
    batch.blocks[i] = block_mask(r, o, e.x, e.y);
  }
}

// Fills batch.list with the entries that reach block b, in order; returns how many.
inline int list_block(Batch& batch, int b) {
#if GSA_LANES == 16
  const __m512i bit = _mm512_set1_epi64(1ll << b);
  const __m128i step = _mm_set1_epi8(8);
  __m128i index = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0);
  int n = 0;
  for (int i = 0; i < batch.count; i += 8) {  // entries past the count are cut off below
    const int left = batch.count - i;
    const uint32_t valid = left < 8 ? (1u << left) - 1 : 0xFFu;
    const uint32_t hit = valid & _mm512_test_epi64_mask(_mm512_loadu_si512(batch.blocks + i), bit);
    const __m512i wide = _mm512_maskz_compress_epi64((__mmask8)hit, _mm512_cvtepu8_epi64(index));
    _mm_storel_epi64((__m128i*)(batch.list + n), _mm512_cvtepi64_epi8(wide));
    n += __builtin_popcount(hit);
    index = _mm_add_epi8(index, step);
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

inline bool any_transparent(vf transmittance) {
  return bits(less_equal(broadcast(kTransmittanceMin), transmittance)) != 0;
}

inline Contribution<vf, vm> contribution(const Entry& e, vf dx, vf dy, vf transmittance) {
  const Exponent<vf> exponent = {broadcast(e.exponent.xx), broadcast(e.exponent.xy),
                                 broadcast(e.exponent.yy)};
  return contribute<vf, vm>(exponent, broadcast(e.opacity), dx, dy, transmittance);
}

// A band of kBlockHeight rows: between the tile's order, where a vector is a block, and rows of 16
// pixels. (Copying 16 bytes at a time would stall every later load of a whole vector.)
inline void band_to_rows(const float* band, float* rows) {
#if GSA_LANES == 16
  const vf a = load(band), b = load(band + 16), c = load(band + 32), d = load(band + 48);
  const vf ab_low = _mm512_shuffle_f32x4(a, b, 0x44), ab_high = _mm512_shuffle_f32x4(a, b, 0xEE);
  const vf cd_low = _mm512_shuffle_f32x4(c, d, 0x44), cd_high = _mm512_shuffle_f32x4(c, d, 0xEE);
  store(rows, _mm512_shuffle_f32x4(ab_low, cd_low, 0x88));
  store(rows + 16, _mm512_shuffle_f32x4(ab_low, cd_low, 0xDD));
  store(rows + 32, _mm512_shuffle_f32x4(ab_high, cd_high, 0x88));
  store(rows + 48, _mm512_shuffle_f32x4(ab_high, cd_high, 0xDD));
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

// 16 pixels between three planes and interleaved memory.
inline void interleave(const float* a, const float* b, const float* c, float* out) {
#if GSA_LANES == 16
  const __m512i i0 = _mm512_setr_epi32(0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
  const __m512i i1 = _mm512_setr_epi32(21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
  const __m512i i2 = _mm512_setr_epi32(0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
  const __m512i k0 = _mm512_setr_epi32(0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
  const __m512i k1 = _mm512_setr_epi32(0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
  const __m512i k2 = _mm512_setr_epi32(26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
  const vf x = load(a), y = load(b), z = load(c);
  store(out, _mm512_permutex2var_ps(_mm512_permutex2var_ps(x, i0, y), k0, z));
  store(out + 16, _mm512_permutex2var_ps(_mm512_permutex2var_ps(x, i1, y), k1, z));
  store(out + 32, _mm512_permutex2var_ps(_mm512_permutex2var_ps(x, i2, y), k2, z));
#else
  for (int x = 0; x < kTile; ++x) out[3 * x] = a[x], out[3 * x + 1] = b[x], out[3 * x + 2] = c[x];
#endif
}
inline void separate(const float* in, float* a, float* b, float* c) {
#if GSA_LANES == 16
  const vf p = load(in), q = load(in + 16), r = load(in + 32);
  const __m512i two = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0);
  const __m512i one = _mm512_set1_epi32(1);
  // elements 0, 3, 6 … of p and q, then the rest out of r; likewise from 1 and from 2
  const __m512i k0 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
  const __m512i k1 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
  const __m512i k2 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
  const __m512i from_1 = _mm512_add_epi32(two, one), from_2 = _mm512_add_epi32(from_1, one);
  store(a, _mm512_permutex2var_ps(_mm512_permutex2var_ps(p, two, q), k0, r));
  store(b, _mm512_permutex2var_ps(_mm512_permutex2var_ps(p, from_1, q), k1, r));
  store(c, _mm512_permutex2var_ps(_mm512_permutex2var_ps(p, from_2, q), k2, r));
#else
  for (int x = 0; x < kTile; ++x) a[x] = in[3 * x], b[x] = in[3 * x + 1], c[x] = in[3 * x + 2];
#endif
}

}  // namespace gsa
