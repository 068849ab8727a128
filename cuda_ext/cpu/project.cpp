// Projection of the cloud, depth order, and the number of (Gaussian, tile) pairs.
#include <math.h>

#include <atomic>

#include "record.h"
#include "colour.h"
#include "projection.h"
#include "motion.h"
#include "part.h"
#include "parallel.h"
#include "watch.h"

namespace gsa {
namespace {

struct ChunkCheck {
  vf sum[7];  // means, quats, scales, opacities, colors, screen_probe, basis
  bool bad_branch;
};

// Bounds of the tiles that the ellipse's box meets; false if no pixel centre is inside it.
bool find_bounds(const Record& r, float extent_x, float extent_y, const gsa_raster& s, Cover& c) {
  TileBox box;
  if (!tile_box(r.x, r.y, extent_x, extent_y, s.width, s.height, kTile, box)) return false;
  c.left = (uint16_t)box.left, c.right = (uint16_t)box.right;
  c.top = (uint16_t)box.top, c.bottom = (uint16_t)box.bottom;
  return true;
}

// The tiles within the bounds that hold a pixel centre within reach, and how many they are.
int32_t find_tiles(const Record& r, Cover& c, const vf& column, const vf& row) {
  const int width = c.right - c.left + 1, height = c.bottom - c.top + 1;
  c.mask = 0;
  if (width > kWindow || height > kWindow) {
    int32_t count = 0;
    for_tiles(c, &r, 0, [&](int) { ++count; });
    return count;
  }
  if (width == 1 && height == 1) {
    c.mask = 1;
    return 1;
  }
  const Exponent<vf> e = {broadcast(r.exponent_xx), broadcast(r.exponent_xy),
                          broadcast(r.exponent_yy)};
  const float x = (float)(c.left * kTile) + 0.5f - r.x, y = (float)(c.top * kTile) + 0.5f - r.y;
  const int bits_used = (height - 1) * kWindow + width;
  for (int first = 0; first < bits_used; first += GSA_LANES) {
    const vf x_low = column + (x + (float)(first % kWindow * kTile));
    const vf y_low = row + (y + (float)(first / kWindow * kTile));
    const vf least = least_exponent(e, broadcast(r.slope_x), broadcast(r.slope_y), x_low,
                                    x_low + (float)(kTile - 1), y_low, y_low + (float)(kTile - 1));
    c.mask |= (uint64_t)bits(less_equal(least, broadcast(-r.faintest))) << first;
  }
  const uint64_t one_row = (1ull << width) - 1;
  uint64_t inside = 0;
  for (int i = 0; i < height; ++i) inside |= one_row << (kWindow * i);
  c.mask &= inside;
  return __builtin_popcountll(c.mask);
}

// Left and upper side of the tiles of a window, in the order of a mask's bits.
void window_offsets(vf& column, vf& row) {
  float x[GSA_LANES], y[GSA_LANES];
  for (int l = 0; l < GSA_LANES; ++l)
    x[l] = (float)(l % kWindow * kTile), y[l] = (float)(l / kWindow * kTile);
  column = load(x), row = load(y);
}

// Gaussians in a row, and how they move before they are seen.
struct Piece {
  int first, end;
  const gsa_part* part;   // null if they stay where they are
  int part_first;         // first Gaussian of the part
  Rigid rigid;            // if the part is posed
};

// The Gaussians where they are drawn; `offsets` is their motion [used, 9].
Gaussian3<vf> gaussians_of(const gsa_raster& s, const Piece& piece, int first, int used,
                           const float* offsets, ChunkCheck& check) {
  const Gaussian3<vf> g = load_gaussians(s.means, s.quats, s.scales, first, used);
  if (!piece.part) return g;
  // here, because the limits hide infinite scales and the exponential a stretch that is NaN
  watch(check.sum[2], g.scale.x + g.scale.y + g.scale.z);
  const gsa_part& part = *piece.part;
  const vf share = part.pose.share
                       ? load_strided(part.pose.share + (first - piece.part_first), 1, used, 0.0f)
                       : broadcast(1.0f);
  const Offset<vf> o = load_offset(offsets, used);
  watch(check.sum[6], o.stretch.x + o.stretch.y + o.stretch.z);
  return placed(part, piece.rigid, share, g, o);
}

void colours_of(const gsa_raster& s, const Piece& piece, const Vec3<vf>& mean, int first, int used,
                vf& red, vf& green, vf& blue, ChunkCheck& check) {
  if (!s.sh) {
    const Vec3<vf> rgb = load_three(s.colors + 3 * first, used, 0.0f);
    red = rgb.x, green = rgb.y, blue = rgb.z;
    return;
  }
  const Seen seen =
      see_along(s.terms, seen_from(*piece.part, piece.rigid, centre_of(s.world_to_cam), mean));
  red = sh_channel(s.sh, s.terms, seen, first, used, 0);
  green = sh_channel(s.sh, s.terms, seen, first, used, 1);
  blue = sh_channel(s.sh, s.terms, seen, first, used, 2);
  watch(check.sum[4], red + green + blue);  // before the clamp, which hides minus infinity
  const vf zero = broadcast(0.0f);
  red = larger(zero, red), green = larger(zero, green), blue = larger(zero, blue);
}

void project_lanes(const gsa_raster& s, const View& view, const Piece& piece, int first, int used,
                   const float* offsets, ChunkCheck& check, int32_t* pairs) {
  const Gaussian3<vf> g = gaussians_of(s, piece, first, used, offsets, check);
  const vf opacity = load_strided(s.opacities + first, 1, used, 0.0f);
  vf red, green, blue;
  colours_of(s, piece, g.mean, first, used, red, green, blue, check);
  watch(check.sum[0], g.mean.x + g.mean.y + g.mean.z);
  watch(check.sum[1], g.quat.w + g.quat.x + g.quat.y + g.quat.z);
  watch(check.sum[2], g.scale.x + g.scale.y + g.scale.z);
  watch(check.sum[3], opacity);
  watch(check.sum[4], red + green + blue);

  ProjectionParts<vf> parts;
  Gaussian2<vf> p = project(view, g, parts);
  if (s.screen_probe) {
    const vf dx = load_strided(s.screen_probe + 2 * first, 2, used, 0.0f);
    const vf dy = load_strided(s.screen_probe + 2 * first + 1, 2, used, 0.0f);
    watch(check.sum[5], dx + dy);
    p.x = p.x + dx, p.y = p.y + dy;
  }
  const Reach<vf> reach = reach_of(opacity, p.compensation, p.cov_xx, p.cov_yy);
  const Exponent<vf> e = exponent_of(p.conic_xx, p.conic_xy, p.conic_yy);
  const uint32_t seen = bits(can_show(p.depth, p.cov_xx, p.cov_yy, reach.power));

  const vf zero = broadcast(0.0f);
  vf fields[GSA_RECORD] = {e.xx, e.xy, e.yy, slope_along(e.xx, e.xy), slope_along(e.yy, e.xy),
                           zero, reach.peak, zero - reach.power, red, green, blue, p.depth,
                           p.x, p.y, zero, zero};
  Lanes<2> extent;
  extent.put(0, reach.extent_x), extent.put(1, reach.extent_y);
  vf column, row;
  window_offsets(column, row);
  Record* records = (Record*)s.records;
  Cover* covers = (Cover*)s.cover;
  store_records((float*)(records + first), used, fields);
  for (int l = 0; l < used; ++l) {
    Record& r = records[first + l];
    const int32_t branch = s.branch[first + l];
    if (branch < 0 || branch > 2) check.bad_branch = true;
    int32_t count = 0;
    if ((seen >> l & 1) &&
        find_bounds(r, extent.at(0, l), extent.at(1, l), s, covers[first + l]))
      count = find_tiles(r, covers[first + l], column, row);
    r.branch = count ? branch : -1;
    pairs[first + l] = count;
  }
}

void project_piece(const gsa_raster& s, const View& view, const Piece& piece, ChunkCheck& check,
                   int32_t* pairs) {
  float offsets[kOffsets * kChunk];
  if (piece.part)
    sum_offsets(piece.part->motion, piece.first - piece.part_first, piece.end - piece.first, offsets);
  for (int i = piece.first; i < piece.end; i += GSA_LANES)
    project_lanes(s, view, piece, i, lanes_from(i, piece.end),
                  offsets + kOffsets * (i - piece.first), check, pairs);
}

// Visits the Gaussians from first to end, those of each part by themselves.
template <class Visit>
void for_pieces(const gsa_raster& s, int first, int end, const Visit& visit) {
  if (s.part_count == 0) return visit({first, end, nullptr, 0, {}});
  int part_first = 0;
  for (int k = 0; k < s.part_count; ++k) {
    const gsa_part& part = s.parts[k];
    const int part_end = part_first + part.motion.count;
    const int from = first > part_first ? first : part_first, to = end < part_end ? end : part_end;
    if (from < to) visit({from, to, &part, part_first, rigid_of(part)});
    part_first = part_end;
  }
}

int32_t check_code(const ChunkCheck& check) {
  const int argument[7] = {0, 1, 2, 3, 4, 8, 9};
  for (int i = 0; i < 7; ++i)
    if (is_nan(check.sum[i])) return GSA_NOT_FINITE + argument[i];
  return check.bad_branch ? GSA_BAD_BRANCH : GSA_OK;
}

// Stable radix sort of (key, value) by key, 11 + 11 + 10 bits from the least key on: a head's depths
// lie so near each other that the last pass has nothing to do. Ends in the first buffers or the
// second; returns where the values are.
uint32_t* radix_sort(uint32_t* keys, uint32_t* values, uint32_t* keys_2, uint32_t* values_2,
                     int count, uint32_t least) {
  uint32_t histogram[3][2048] = {};
  for (int i = 0; i < count; ++i) {
    const uint32_t k = keys[i] -= least;
    ++histogram[0][k & 2047], ++histogram[1][k >> 11 & 2047], ++histogram[2][k >> 22];
  }
  for (int pass = 0; pass < 3; ++pass) {
    uint32_t* h = histogram[pass];
    const int shift = 11 * pass;
    uint32_t sum = 0;
    bool same = false;
    for (int b = 0; b < 2048; ++b) {
      const uint32_t n = h[b];
      same = same || n == (uint32_t)count;
      h[b] = sum;
      sum += n;
    }
    if (same) continue;  // every key has the same digit here
    for (int i = 0; i < count; ++i) {
      const uint32_t to = h[keys[i] >> shift & 2047]++;
      keys_2[to] = keys[i];
      values_2[to] = values[i];
    }
    uint32_t* t = keys;
    keys = keys_2, keys_2 = t;
    t = values;
    values = values_2, values_2 = t;
  }
  return values;
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_project(gsa_raster* scene) {
  using namespace gsa;
  gsa_raster& s = *scene;
  for (int i = 0; i < 16; ++i)
    if (!isfinite(s.world_to_cam[i])) return GSA_NOT_FINITE + 5;
  for (int i = 0; i < 9; ++i)
    if (!isfinite(s.K[i])) return GSA_NOT_FINITE + 6;
  const View view = make_view(s.world_to_cam, s.K, s.width, s.height);
  const int chunks = (s.count + kChunk - 1) / kChunk;
  std::atomic<int32_t> code{GSA_OK};
  Crew crew(s.threads);
  crew.run(chunks, [&](int c) {
    ChunkCheck check = {};
    const int first = c * kChunk, end = s.count < first + kChunk ? s.count : first + kChunk;
    for_pieces(s, first, end, [&](const Piece& piece) {
      project_piece(s, view, piece, check, s.pair_start + 1);
    });
    const int32_t found = check_code(check);
    if (found != GSA_OK) code.store(found, std::memory_order_relaxed);
  });
  if (code.load() != GSA_OK) return code.load();

  const Record* records = (const Record*)s.records;
  uint32_t *keys = s.scratch, *values = keys + s.count;
  int visible = 0;
  uint32_t least = UINT32_MAX;
  int64_t pairs = 0;
  s.pair_start[0] = 0;
  for (int i = 0; i < s.count; ++i) {
    pairs += s.pair_start[i + 1];
    if (pairs > INT32_MAX) return GSA_TOO_MANY;
    s.pair_start[i + 1] = (int32_t)pairs;
    if (records[i].branch < 0) continue;
    memcpy(keys + visible, &records[i].depth, 4);  // positive floats order like their bits
    least = keys[visible] < least ? keys[visible] : least;
    values[visible++] = (uint32_t)i;
  }
  const uint32_t* sorted =
      radix_sort(keys, values, keys + 2 * s.count, keys + 3 * s.count, visible, least);
  if (visible > 0) memcpy(s.order, sorted, sizeof(int32_t) * (size_t)visible);
  s.visible = visible;
  s.pairs = pairs;
  return GSA_OK;
}
