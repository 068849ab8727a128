// Gradients of the compositing pass (by tiles) and of the projection (by Gaussians).
//
// Pixels are walked front to back again, as in the forward pass; what lies behind a Gaussian is the
// finished pixel minus what came before. Each (Gaussian, tile) pair has a slot of its own for the
// sums over the tile's pixels, and slots are added in a fixed order: repeat runs are bit-equal.
#include "channels.h"
#include "lanes.h"
#include "parallel.h"
#include "tile.h"

namespace gsa {
namespace {

static_assert(kDepth + 1 == GSA_MOMENTS, "abi.h states the size of a slot");

struct Moments {
  float g, gx, gy, gxx, gxy, gyy;
};

// slot[k] = sum over lanes of m[k]; the first of them also by return. They stay in registers: stored
// together and read again one by one, they wait until they have left for the cache.
inline Moments sum_lanes(const vf* m, float* slot) {
#if GSA_LANES == 16
  // A tree that halves the number of vectors at every step. Halves of 256 bits, then of 128:
  const auto halves = [](vf a, vf b) {
    return _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xEE);
  };
  const auto quarters = [](vf a, vf b) {
    return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xDD);
  };
  const vf q0 = quarters(halves(m[0], m[1]), halves(m[2], m[3]));
  const vf q1 = quarters(halves(m[4], m[5]), halves(m[6], m[7]));
  const vf h2 = halves(m[8], m[9]);
  const vf q2 = quarters(h2, h2);
  // then within 128 bits; lane 4 j + k ends with the sum of m[4 k + j]
  const vf r0 = _mm512_unpacklo_ps(q0, q1) + _mm512_unpackhi_ps(q0, q1);
  const vf r1 = _mm512_unpacklo_ps(q2, q2) + _mm512_unpackhi_ps(q2, q2);
  const vf s = _mm512_shuffle_ps(r0, r1, 0x44) + _mm512_shuffle_ps(r0, r1, 0xEE);
  const __m512i place = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 0, 0, 0, 0, 0, 0);
  const vf placed = _mm512_permutexvar_ps(place, s);
  _mm512_mask_storeu_ps(slot, (1 << GSA_MOMENTS) - 1, placed);
  return {placed[0], placed[1], placed[2], placed[3], placed[4], placed[5]};
#elif GSA_LANES == 8
  const auto four = [](vf a, vf b, vf c, vf d) {
    const vf h = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  };
  const __m128 a = four(m[0], m[1], m[2], m[3]), b = four(m[4], m[5], m[6], m[7]);
  _mm_storeu_ps(slot, a);
  _mm_storeu_ps(slot + 4, b);
  _mm_storel_pi((__m64*)(slot + 8), four(m[8], m[9], m[8], m[9]));
  return {a[0], a[1], a[2], a[3], b[0], b[1]};
#else
  for (int k = 0; k < GSA_MOMENTS; ++k) slot[k] = (m[k][0] + m[k][1]) + (m[k][2] + m[k][3]);
  return {slot[0], slot[1], slot[2], slot[3], slot[4], slot[5]};
#endif
}

struct Tile {
  alignas(64) float transmittance[kPixels];
  alignas(64) float behind[kPixels];  // R of composite.h
  alignas(64) float v_rgb[3][kPixels];
  alignas(64) float v_depth[kPixels];
  alignas(64) float v_share[3][kPixels];
};

// What the walk over blocks leaves for the sums per Gaussian: one vector per (entry, block).
constexpr int kSlotsAhead = 12;  // slots lie scattered: their lines are asked for early
constexpr int kSpare = kBatch * kBlocks;  // where entries past the end of a list write
struct Visits {
  // dL/dpower and the weight of each visit: those of an entry together, in the order of its blocks.
  alignas(64) float value[2 * (kBatch * kPixels + kAhead * GSA_LANES)];
  int next[kBatch + 1];  // where the next visit of each entry goes
};

// Walks one block front to back; false once all its pixels are opaque. `Depth` says whether depth has
// a gradient, which colour alone has not.
template <bool Depth>
GSA_ALONE bool walk_block(const Batch& batch, int count, int b, const Pixels& pixels, Tile& t,
                          Visits& visits) {
  const int i = b * GSA_LANES;
  const BlockPixels p(pixels, i);
  vf transmittance = load(t.transmittance + i), behind = load(t.behind + i);
  const vf v_red = load(t.v_rgb[0] + i), v_green = load(t.v_rgb[1] + i);
  const vf v_blue = load(t.v_rgb[2] + i), v_depth = load(t.v_depth + i);
  visits.next[kBatch] = kSpare;
  for (int k = 0; k < count; k += kAhead) {
    const Entry* e[kAhead];
    vf alpha[kAhead], slope[kAhead], rest[kAhead];
    Contribution<vf, vm> c[kAhead];
    next_entries(batch, k, e);
    alphas(e, p, alpha);
    for (int n = 0; n < kAhead; ++n) slope[n] = load(t.v_share[e[n]->branch] + i);
    for (int n = 0; n < kAhead; ++n) slope[n] = slope[n] + v_red * e[n]->color[0];
    for (int n = 0; n < kAhead; ++n) slope[n] = slope[n] + v_green * e[n]->color[1];
    for (int n = 0; n < kAhead; ++n) slope[n] = slope[n] + v_blue * e[n]->color[2];
    if (Depth)
      for (int n = 0; n < kAhead; ++n) slope[n] = slope[n] + v_depth * e[n]->depth;
    for (int n = 0; n < kAhead; ++n) {
      c[n] = contribute<vm>(alpha[n], transmittance);
      transmittance = c[n].transmittance;
      rest[n] = behind = behind - c[n].weight * slope[n];
    }
    for (int n = 0; n < kAhead; ++n) {
      float* at = visits.value + visits.next[batch.list[k + n]]++ * (int64_t)(2 * GSA_LANES);
      store(at, contribute_bwd(c[n], slope[n], rest[n]));
      store(at + GSA_LANES, c[n].weight);
    }
  }
  store(t.transmittance + i, transmittance), store(t.behind + i, behind);
  return any_transparent(transmittance);
}

// Moments about the Gaussian's mean out of those about the tile's centre.
inline void recentre(float x, float y, const Moments& m, float* slot) {
  slot[kGx] = m.gx - x * m.g;
  slot[kGy] = m.gy - y * m.g;
  slot[kGxx] = m.gxx + x * (x * m.g - 2.0f * m.gx);
  slot[kGxy] = m.gxy + (x * (y * m.g - m.gy) - y * m.gx);
  slot[kGyy] = m.gyy + y * (y * m.g - 2.0f * m.gy);
}

// Sums of one Gaussian over the blocks it reaches.
template <bool Depth>
GSA_ALONE void sum_entry(const Entry& e, BlockSet blocks, const float* visit, const Pixels& p,
                         const Tile& t, float* slot) {
  vf m[GSA_MOMENTS];
  for (int k = 0; k < GSA_MOMENTS; ++k) m[k] = broadcast(0.0f);
  for (; blocks; blocks &= blocks - 1) {
    const int i = __builtin_ctzll(blocks) * GSA_LANES;
    const vf g = load(visit), w = load(visit + GSA_LANES);
    m[kG] = m[kG] + g;
    m[kGx] = m[kGx] + g * load(p.x + i);
    m[kGy] = m[kGy] + g * load(p.y + i);
    m[kGxx] = m[kGxx] + g * load(p.xx + i);
    m[kGxy] = m[kGxy] + g * load(p.xy + i);
    m[kGyy] = m[kGyy] + g * load(p.yy + i);
    m[kRed] = m[kRed] + w * load(t.v_rgb[0] + i);
    m[kGreen] = m[kGreen] + w * load(t.v_rgb[1] + i);
    m[kBlue] = m[kBlue] + w * load(t.v_rgb[2] + i);
    if (Depth) m[kDepth] = m[kDepth] + w * load(t.v_depth + i);
    visit += 2 * GSA_LANES;
  }
  recentre(e.x, e.y, sum_lanes(m, slot), slot);
}

void composite_batch_bwd(const gsa_raster_grad& v, const Pixels& pixels, Batch& batch,
                         BlockSet& alive, Tile& t, Visits& visits) {
  int count = 0;
  for (int n = 0; n < batch.count; ++n) {
    batch.blocks[n] &= alive;
    visits.next[n] = count;
    count += __builtin_popcountll(batch.blocks[n]);
  }
  const auto walk = v.depth ? walk_block<true> : walk_block<false>;
  const auto sum = v.depth ? sum_entry<true> : sum_entry<false>;
  for (BlockSet left = alive; left; left &= left - 1) {
    const int b = __builtin_ctzll(left);
    const int listed = list_block(batch, b);
    if (listed && !walk(batch, listed, b, pixels, t, visits)) alive &= ~((BlockSet)1 << b);
  }
  const auto slot_of = [&](int n) {
    return v.slots + GSA_MOMENTS * (int64_t)batch.entry[n].slot;
  };
  const float* visit = visits.value;
  for (int n = 0; n < batch.count; ++n) {
    if (n + kSlotsAhead < batch.count) __builtin_prefetch(slot_of(n + kSlotsAhead), 1);
    sum(batch.entry[n], batch.blocks[n], visit, pixels, t, slot_of(n));
    visit += __builtin_popcountll(batch.blocks[n]) * (2 * GSA_LANES);
  }
}

// Gradients of the pixels, and R before the first Gaussian: the loss is linear in the outputs, so R
// is the outputs' share of it, with alpha = 1 - T counted by -T.
struct RowReader {
  const gsa_raster& s;
  const gsa_raster_grad& v;
  int64_t row;
  int width;     // pixels of the row inside the picture
  int from;      // place of the row in its band
  float* sum;

  // Three channels: their gradients into the band, their products with the output into sum.
  void three(const float* v_out, const float* out, float (*band)[kBand]) const {
    alignas(64) float mixed[3 * kTile] = {}, value[3][kTile];
    copy_row(mixed, out + 3 * row, width, 3);
    separate(mixed, value[0], value[1], value[2]);
    copy_row(mixed, v_out + 3 * row, width, 3);
    separate(mixed, band[0] + from, band[1] + from, band[2] + from);
    for (int c = 0; c < 3; ++c) add_products(band[c] + from, value[c]);
  }
  void depth(float* band) const {
    alignas(64) float value[kTile] = {};
    copy_row(value, s.depth + row, width);
    copy_row(band + from, v.depth + row, width);
    add_products(band + from, value);
  }
  void alpha() const {
    alignas(64) float value[kTile] = {}, slope[kTile] = {};
    copy_row(value, s.alpha + row, width);
    copy_row(slope, v.alpha + row, width);
    for (int x = 0; x < kTile; x += GSA_LANES) {
      const vf left = broadcast(1.0f) - load(value + x);
      store(sum + x, load(sum + x) - load(slope + x) * left);
    }
  }
  void add_products(const float* a, const float* b) const {
    for (int x = 0; x < kTile; x += GSA_LANES)
      store(sum + x, load(sum + x) + load(a + x) * load(b + x));
  }
};

void read_tile(const gsa_raster& s, const gsa_raster_grad& v, const TileArea& area, Tile& t) {
  for (int top = 0; top < area.height; top += kBlockHeight) {
    alignas(64) float rgb[3][kBand] = {}, share[3][kBand] = {}, depth[kBand] = {};
    alignas(64) float behind[kBand] = {};
    for (int y = 0; y < kBlockHeight && top + y < area.height; ++y) {
      const int64_t row = (int64_t)(area.top + top + y) * s.width + area.left;
      const RowReader reader = {s, v, row, area.width, y * kTile,
                                behind + y * kTile};
      if (v.rgb) reader.three(v.rgb, s.rgb, rgb);
      if (v.branch_alpha) reader.three(v.branch_alpha, s.branch_alpha, share);
      if (v.depth) reader.depth(depth);
      if (v.alpha) reader.alpha();
    }
    const int at = top * kTile;
    rows_to_band(behind, t.behind + at);
    rows_to_band(depth, t.v_depth + at);
    for (int c = 0; c < 3; ++c) {
      rows_to_band(rgb[c], t.v_rgb[c] + at);
      rows_to_band(share[c], t.v_share[c] + at);
    }
  }
}

// The background is seen through what is left: v_background = T v_rgb.
void background_bwd(const gsa_raster& s, const gsa_raster_grad& v, const TileArea& area,
                    float* tile_sum) {
  float sum[3] = {};
  for (int y = 0; y < area.height; ++y) {
    const int64_t row = (int64_t)(area.top + y) * s.width + area.left;
    for (int64_t pixel = row; pixel < row + area.width; ++pixel) {
      for (int c = 0; c < 3; ++c) {
        const float g = v.rgb ? v.rgb[3 * pixel + c] * (1.0f - s.alpha[pixel]) : 0.0f;
        if (s.background_is_image) v.background[3 * pixel + c] = g;
        sum[c] += g;
      }
    }
  }
  memcpy(tile_sum, sum, sizeof sum);
}

void composite_tile_bwd(const gsa_raster& s, const gsa_raster_grad& v, int tile,
                        const Pixels& pixels, float* background_sums) {
  const TileArea area = tile_area(s, tile);
  if (v.background) background_bwd(s, v, area, background_sums + 3 * (int64_t)tile);
  const int last = s.tile_start[tile + 1];
  if (s.tile_start[tile] == last) return;
  const bool known = blocks_known(s);
  const FlushTiny flush;
  Tile t;
  memset(&t, 0, sizeof t);
  BlockSet alive = start_transmittance(area, t.transmittance);
  read_tile(s, v, area, t);
  Batch batch;
  Visits visits;
  for (int first = s.tile_start[tile]; first < last; first += kBatch) {
    if (!alive) {  // nothing behind is seen
      for (int i = first; i < last; ++i)
        memset(v.slots + GSA_MOMENTS * (int64_t)s.list[2 * (int64_t)i + 1], 0,
               GSA_MOMENTS * sizeof(float));
      break;
    }
    read_batch(s, area, first, last, pixels, batch, known);
    composite_batch_bwd(v, pixels, batch, alive, t, visits);
  }
}

// Sums of the slots of `used` Gaussians, one vector per field; lanes without slots are 0.
Lanes<GSA_MOMENTS> gather_slots(const gsa_raster& s, const gsa_raster_grad& v, int first, int used) {
  Lanes<GSA_MOMENTS> sums = {};
  for (int l = 0; l < used; ++l) {
    float sum[GSA_MOMENTS] = {};
    for (int64_t j = s.pair_start[first + l]; j < s.pair_start[first + l + 1]; ++j)
      for (int k = 0; k < GSA_MOMENTS; ++k) sum[k] += v.slots[GSA_MOMENTS * j + k];
    for (int k = 0; k < GSA_MOMENTS; ++k) sums.value[k][l] = sum[k];
  }
  return sums;
}

struct CameraSums {
  vf value[16];  // rotation row-major, translation, fx, fy, cx, cy
};

void add_camera(CameraSums& sums, const ViewGrad<vf>& c, vm seen) {
  const vf fields[16] = {c.rotation[0].x, c.rotation[0].y, c.rotation[0].z, c.rotation[1].x,
                         c.rotation[1].y, c.rotation[1].z, c.rotation[2].x, c.rotation[2].y,
                         c.rotation[2].z, c.translation.x, c.translation.y, c.translation.z,
                         c.fx,            c.fy,            c.cx,            c.cy};
  for (int k = 0; k < 16; ++k) sums.value[k] = sums.value[k] + zero_unless(seen, fields[k]);
}

void project_lanes_bwd(const gsa_raster& s, const gsa_raster_grad& v, const View& view, int first,
                       int used, CameraSums& camera) {
  const Lanes<GSA_MOMENTS> sums = gather_slots(s, v, first, used);
  float pairs[GSA_LANES] = {};
  for (int l = 0; l < used; ++l)
    pairs[l] = s.pair_start[first + l + 1] > s.pair_start[first + l] ? 1.0f : 0.0f;
  const vm seen = less(broadcast(0.0f), load(pairs));
  vf sum[GSA_MOMENTS];
  for (int k = 0; k < GSA_MOMENTS; ++k) sum[k] = load(sums.value[k]);

  const Gaussian3<vf> g = load_gaussians(s.means, s.quats, s.scales, first, used);
  const vf opacity = load_strided(s.opacities + first, 1, used, 0.0f);
  ProjectionParts<vf> parts;
  const Gaussian2<vf> p = project(view, g, parts);
  vf v_opacity;
  const Gaussian2Grad<vf> screen = screen_bwd(p, opacity, sum, v_opacity);
  ViewGrad<vf> here = {};
  const Gaussian3Grad<vf> grad = project_bwd(view, g, p, parts, screen, here);
  add_camera(camera, here, seen);

  const auto put = [&](float* at, int stride, int k, vf value) {
    store_strided(at + (int64_t)stride * first + k, stride, used, zero_unless(seen, value));
  };
  const auto put_three = [&](float* at, vf x, vf y, vf z) {
    store_three(at + 3 * (int64_t)first, used,
                {zero_unless(seen, x), zero_unless(seen, y), zero_unless(seen, z)});
  };
  put_three(v.means, grad.mean.x, grad.mean.y, grad.mean.z);
  store_quat(v.quats + 4 * (int64_t)first, used,
             {zero_unless(seen, grad.quat.w), zero_unless(seen, grad.quat.x),
              zero_unless(seen, grad.quat.y), zero_unless(seen, grad.quat.z)});
  put_three(v.scales, grad.scale.x, grad.scale.y, grad.scale.z);
  put(v.opacities, 1, 0, v_opacity);
  put_three(v.colors, sum[kRed], sum[kGreen], sum[kBlue]);
  if (v.screen_probe) put(v.screen_probe, 2, 0, screen.x), put(v.screen_probe, 2, 1, screen.y);
}

void write_camera(const gsa_raster_grad& v, const float* partial, int chunks) {
  double sum[16] = {};
  for (int c = 0; c < chunks; ++c)
    for (int k = 0; k < 16; ++k) sum[k] += partial[16 * c + k];
  for (int i = 0; i < 16; ++i) v.world_to_cam[i] = 0.0f;
  for (int i = 0; i < 9; ++i) v.K[i] = 0.0f;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) v.world_to_cam[4 * i + j] = (float)sum[3 * i + j];
    v.world_to_cam[4 * i + 3] = (float)sum[9 + i];
  }
  v.K[0] = (float)sum[12], v.K[4] = (float)sum[13], v.K[2] = (float)sum[14], v.K[5] = (float)sum[15];
}

}  // namespace

void sum_moments(const vf* m, float* out) { (void)sum_lanes(m, out); }

}  // namespace gsa

extern "C" int32_t gsa_raster_bwd(const gsa_raster* scene, const gsa_raster_grad* grad) {
  using namespace gsa;
  const gsa_raster& s = *scene;
  const gsa_raster_grad& v = *grad;
  const int tiles = tiles_across(s) * tiles_down(s), chunks = (s.count + kChunk - 1) / kChunk;
  float *camera_sums = v.partial, *background_sums = v.partial + 16 * (int64_t)(s.count / kChunk + 1);
  const Pixels pixels;
  Crew crew(s.threads);
  crew.run(tiles, [&](int tile) { composite_tile_bwd(s, v, tile, pixels, background_sums); });
  if (v.extras) channels_bwd(s, v, crew);
  if (v.background && !s.background_is_image) {
    double sum[3] = {};
    for (int64_t i = 0; i < 3 * (int64_t)tiles; ++i) sum[i % 3] += background_sums[i];
    for (int c = 0; c < 3; ++c) v.background[c] = (float)sum[c];
  }
  const View view = make_view(s.world_to_cam, s.K, s.width, s.height);
  crew.run(chunks, [&](int c) {
    CameraSums sums;
    for (vf& value : sums.value) value = broadcast(0.0f);
    const int end = s.count < (c + 1) * kChunk ? s.count : (c + 1) * kChunk;
    for (int i = c * kChunk; i < end; i += GSA_LANES)
      project_lanes_bwd(s, v, view, i, end - i < GSA_LANES ? end - i : GSA_LANES, sums);
    for (int k = 0; k < 16; ++k) {
      float lane[GSA_LANES], sum = 0.0f;
      store(lane, sums.value[k]);
      for (int l = 0; l < GSA_LANES; ++l) sum += lane[l];
      camera_sums[16 * c + k] = sum;
    }
  });
  write_camera(v, camera_sums, chunks);
  return GSA_OK;
}
