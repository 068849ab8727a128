// The rasterizer on CUDA: the functions of include/, one thread per Gaussian or per pixel.
//
// Gaussians are sorted by depth, emit their (tile, slot) pairs in that order, and a stable sort by
// tile alone gives depth-ordered tile lists. A tile is a block of 256 threads; a warp owns 8 x 4 of
// its pixels and skips, 32 at a time, the Gaussians whose ellipse misses them. In the backward pass
// a warp adds its 32 pixels with exchanges, the block adds its warps in order, and each (Gaussian,
// tile) pair has a slot of its own: no atomics on gradients, repeat runs are bit-equal.
#define GSA_CUB
#include "offsets.h"
//
#include "part.h"
#include "sh.h"
#include "tile.h"

namespace gsa {
namespace {

// The code of the first argument of Gaussian i that is malformed, as the CPU library returns it.
// `color` is not clamped yet and `stretch` the sum of the offset's, which the exponential may hide.
__device__ int32_t malformed(const gsa_raster& s, int i, const Gaussian3<float>& g,
                             const float* color, float stretch) {
  const float* rest = s.scales + 3 * i;  // limits hide those that are infinite
  if (!finite(g.mean.x + g.mean.y + g.mean.z)) return GSA_NOT_FINITE;
  if (!finite(g.quat.w + g.quat.x + g.quat.y + g.quat.z)) return GSA_NOT_FINITE + 1;
  if (!finite(rest[0] + rest[1] + rest[2])) return GSA_NOT_FINITE + 2;
  if (!finite(stretch)) return GSA_NOT_FINITE + 9;
  if (!finite(g.scale.x + g.scale.y + g.scale.z)) return GSA_NOT_FINITE + 2;
  if (!finite(s.opacities[i])) return GSA_NOT_FINITE + 3;
  if (!finite(color[0] + color[1] + color[2])) return GSA_NOT_FINITE + 4;
  if (s.screen_probe && !finite(s.screen_probe[2 * i] + s.screen_probe[2 * i + 1]))
    return GSA_NOT_FINITE + 8;
  if (s.branch[i] < 0 || s.branch[i] > 2) return GSA_BAD_BRANCH;
  return GSA_OK;
}

template <class Visit>
__device__ __forceinline__ void for_tiles(const gsa_raster& s, const Record& r, Visit visit) {
  TileBox b;
  if (!tile_box(r.x, r.y, r.extent_x, r.extent_y, s.width, s.height, kTile, b)) return;
  for (int ty = b.top; ty <= b.bottom; ++ty)
    for (int tx = b.left; tx <= b.right; ++tx)
      if (reaches(r, (float)(tx * kTile) + 0.5f, (float)(ty * kTile) + 0.5f, kTile - 1, kTile - 1))
        visit(ty * across(s) + tx);
}

// Gaussian i where it is drawn, and its colour before the clamp. `offsets` are those of its block, `own` its place in
// the block and in_part that in the part.
__device__ Gaussian3<float> placed_at(const gsa_raster& s, const gsa_part& part, bool moves,
                                      const float* offsets, int own, int in_part, int i,
                                      float* color) {
  Gaussian3<float> g = gaussian_at(s.means, s.quats, s.scales, i);
  if (!s.sh)
    for (int c = 0; c < 3; ++c) color[c] = s.colors[3 * i + c];
  if (!moves) return g;
  const Rigid rigid = rigid_of(part);
  const float share = part.pose.share ? part.pose.share[in_part] : 1.0f;
  g = placed(part, rigid, share, g, offset_at(offsets, own));
  if (!s.sh) return g;
  float inverse, basis[kShTerms];
  sh_basis(s.terms, direction_of(seen_from(part, rigid, centre_of(s.world_to_cam), g.mean), inverse),
           basis);
  const float* sh = s.sh + 3 * (int64_t)s.terms * i;
  for (int c = 0; c < 3; ++c) {
    float sum = 0.5f;
    for (int t = 0; t < s.terms; ++t) sum += basis[t] * sh[3 * t + c];
    color[c] = sum;
  }
  return g;
}

// The Gaussians of a part that begins at `part_first`; the whole cloud as it is unless it `moves`.
__global__ void __launch_bounds__(kThreads)
    project_kernel(gsa_cuda_raster call, gsa_part part, int part_first, bool moves) {
  GSA_SHARED float offsets[kBlockOffsets];
  const gsa_raster& s = call.scene;
  const int first = blockIdx.x * kThreads, total = moves ? part.motion.count : s.count;
  const int own = threadIdx.x, in_part = first + own, i = part_first + in_part;
  if (moves)
    sum_offsets(part.motion, first, total - first < kThreads ? total - first : kThreads, offsets);
  if (in_part >= total) return;
  const View view = make_view(s.world_to_cam, s.K, s.width, s.height);
  float color[3];
  const Gaussian3<float> g = placed_at(s, part, moves, offsets, own, in_part, i, color);
  const float* offset = offsets + kOffsets * own;
  const float stretch = moves ? offset[6] + offset[7] + offset[8] : 0.0f;
  const int32_t wrong = malformed(s, i, g, color, stretch);
  if (wrong != GSA_OK) atomicMax(call.status + 1, wrong);
  ProjectionParts<float> parts;
  const Gaussian2<float> p = project(view, g, parts);
  Record r;
  r.x = p.x, r.y = p.y;
  if (s.screen_probe) r.x += s.screen_probe[2 * i], r.y += s.screen_probe[2 * i + 1];
  const Exponent<float> e = exponent_of(p.conic_xx, p.conic_xy, p.conic_yy);
  r.exponent_xx = e.xx, r.exponent_xy = e.xy, r.exponent_yy = e.yy;
  const Reach<float> reach = reach_of(s.opacities[i], p.compensation, p.cov_xx, p.cov_yy);
  r.peak = reach.peak, r.faintest = -reach.power;
  r.extent_x = reach.extent_x, r.extent_y = reach.extent_y;
  for (int c = 0; c < 3; ++c) r.color[c] = s.sh ? larger(0.0f, color[c]) : color[c];
  r.depth = p.depth;
  r.slope_x = slope_along(e.xx, e.xy), r.slope_y = slope_along(e.yy, e.xy);
  r.branch = s.branch[i];
  int32_t count = 0;
  if (can_show(p.depth, p.cov_xx, p.cov_yy, reach.power) && wrong == GSA_OK)
    for_tiles(s, r, [&](int) { ++count; });
  ((Record*)s.records)[i] = r;
  call.pair_count[i] = count;
  call.keys[i] = count ? (uint32_t)__float_as_int(p.depth) : kAll;
  call.values[i] = (uint32_t)i;
}

// Pair counts in depth order, ready for the sum that places them.
__global__ void count_kernel(gsa_cuda_raster call, const uint32_t* order, int64_t* counts) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < call.scene.count) counts[i] = call.pair_count[order[i]];
}

// ends[i] is where the pairs of the i-th Gaussian from the near end stop; huge scales give billions.
__global__ void emit_kernel(gsa_cuda_raster call, const uint32_t* order, const int64_t* ends) {
  const gsa_raster& s = call.scene;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.count) return;
  const int g = (int)order[i];
  int64_t at = i ? ends[i - 1] : 0;
  s.pair_start[g] = (int32_t)(at < call.capacity ? at : call.capacity);
  if (i == s.count - 1) {
    const bool too_many = ends[i] > INT32_MAX;
    call.status[0] = too_many ? INT32_MAX : (int32_t)ends[i];
    if (too_many) atomicMax(call.status + 1, GSA_TOO_MANY);
  }
  if (call.pair_count[g] == 0) return;
  for_tiles(s, ((const Record*)s.records)[g], [&](int tile) {
    if (at < call.capacity) {
      call.keys[at] = (uint32_t)tile;
      call.values[at] = (uint32_t)at;
      call.owner[at] = g;
    }
    ++at;
  });
}

// First pair of every tile out of the sorted tiles; unused places hold kAll and come last.
__global__ void range_kernel(gsa_cuda_raster call, const uint32_t* tiles_sorted,
                             const uint32_t* slots_sorted) {
  const gsa_raster& s = call.scene;
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i > call.capacity) return;
  const int tiles = across(s) * down(s);
  const uint32_t end = (uint32_t)tiles;
  const uint32_t here = i < call.capacity && tiles_sorted[i] < end ? tiles_sorted[i] : end;
  const uint32_t before = i > 0 ? (tiles_sorted[i - 1] < end ? tiles_sorted[i - 1] : end) : kAll;
  for (uint32_t t = before + 1; t <= here; ++t) s.tile_start[t] = (int32_t)i;  // kAll + 1 is 0
  if (i < call.capacity && here < end) {
    const int32_t slot = (int32_t)slots_sorted[i];
    s.list[2 * i] = call.owner[slot];
    s.list[2 * i + 1] = slot;
  }
}

__global__ void __launch_bounds__(kThreads) composite_kernel(gsa_cuda_raster call) {
  const gsa_raster& s = call.scene;
  GSA_SHARED Shared<kThreads> batch;
  const Pixel p = pixel_of(s);
  const int lane = threadIdx.x % 32;
  const int last = s.tile_start[blockIdx.x + 1];
  float left = p.inside ? 1.0f : 0.0f, rgb[3] = {}, share[3] = {}, depth = 0.0f;
  for (int first = s.tile_start[blockIdx.x]; first < last; first += kThreads) {
    if (!__syncthreads_or(left >= kTransmittanceMin)) break;
    const int count = last - first < kThreads ? last - first : kThreads;
    batch.read(s, first, count);
    __syncthreads();
    for (int group = 0; group < count; group += 32) {
      if (!__ballot_sync(kAll, left >= kTransmittanceMin)) break;
      const int mine = group + lane;
      uint32_t hits = __ballot_sync(
          kAll, mine < count && reaches(batch.at(mine < count ? mine : 0), p.box_x, p.box_y, 7, 3));
      for (; hits; hits &= hits - 1) {
        const Record r = batch.at(group + __ffs(hits) - 1);
        const auto c = contribution(r, p, left);
        left = c.transmittance;
        depth += c.weight * r.depth;
        for (int k = 0; k < 3; ++k) {
          rgb[k] += c.weight * r.color[k];
          share[k] += r.branch == k ? c.weight : 0.0f;
        }
      }
    }
  }
  if (!p.inside) return;
  const int64_t pixel = (int64_t)p.y * s.width + p.x;
  const float* back = s.background + (s.background_is_image ? 3 * pixel : 0);
  const float alpha = share[0] + share[1] + share[2];
  bool fine = true;
  for (int k = 0; k < 3; ++k) {
    fine = fine && finite(back[k]);
    s.rgb[3 * pixel + k] = rgb[k] + (1.0f - alpha) * back[k];
    s.branch_alpha[3 * pixel + k] = share[k];
  }
  s.alpha[pixel] = alpha;
  s.depth[pixel] = depth;
  if (!fine) atomicMax(call.status + 1, GSA_NOT_FINITE + 7);
}

__global__ void __launch_bounds__(kThreads)
    composite_bwd_kernel(gsa_cuda_raster call, gsa_raster_grad v) {
  const gsa_raster& s = call.scene;
  GSA_SHARED Shared<kBatchBwd> batch;
  GSA_SHARED float sums[kWarps][kBatchBwd][GSA_MOMENTS];
  const Pixel p = pixel_of(s);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int last = s.tile_start[blockIdx.x + 1];
  const int64_t pixel = (int64_t)p.y * s.width + p.x;
  float left = p.inside ? 1.0f : 0.0f, behind = 0.0f;
  float v_rgb[3] = {}, v_share[3] = {}, v_depth = 0.0f;
  if (p.inside) {  // R of composite.h before the first Gaussian
    for (int k = 0; k < 3; ++k) {
      v_rgb[k] = v.rgb ? v.rgb[3 * pixel + k] : 0.0f;
      v_share[k] = v.branch_alpha ? v.branch_alpha[3 * pixel + k] : 0.0f;
      behind += v_rgb[k] * s.rgb[3 * pixel + k] + v_share[k] * s.branch_alpha[3 * pixel + k];
    }
    v_depth = v.depth ? v.depth[pixel] : 0.0f;
    behind += v_depth * s.depth[pixel];
    if (v.alpha) behind -= v.alpha[pixel] * (1.0f - s.alpha[pixel]);
  }
  for (int first = s.tile_start[blockIdx.x]; first < last; first += kBatchBwd) {
    if (!__syncthreads_or(left >= kTransmittanceMin)) break;
    const int count = last - first < kBatchBwd ? last - first : kBatchBwd;
    batch.read(s, first, count);
    for (int i = threadIdx.x; i < kWarps * kBatchBwd * GSA_MOMENTS; i += kThreads)
      (&sums[0][0][0])[i] = 0.0f;
    __syncthreads();
    for (int group = 0; group < count; group += 32) {
      if (!__ballot_sync(kAll, left >= kTransmittanceMin)) break;
      const int mine = group + lane;
      uint32_t hits = __ballot_sync(
          kAll, mine < count && reaches(batch.at(mine < count ? mine : 0), p.box_x, p.box_y, 7, 3));
      for (; hits; hits &= hits - 1) {
        const int entry = group + __ffs(hits) - 1;
        const Record r = batch.at(entry);
        const auto c = contribution(r, p, left);
        float slope = v_depth * r.depth;
        for (int k = 0; k < 3; ++k)
          slope += v_rgb[k] * r.color[k] + (r.branch == k ? v_share[k] : 0.0f);
        left = c.transmittance;
        behind -= c.weight * slope;
        const float g = contribute_bwd(c, slope, behind);
        const float dx = (float)p.x + 0.5f - r.x, dy = (float)p.y + 0.5f - r.y;
        float m[16] = {g, g * dx, g * dy, g * dx * dx, g * dx * dy, g * dy * dy,
                       c.weight * v_rgb[0], c.weight * v_rgb[1], c.weight * v_rgb[2],
                       c.weight * v_depth};
        const float sum = sum_warp(m);
        if (lane % 2 == 0 && sum_index(lane) < GSA_MOMENTS) sums[warp][entry][sum_index(lane)] = sum;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * GSA_MOMENTS; i += kThreads) {
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) sum += sums[w][i / GSA_MOMENTS][i % GSA_MOMENTS];
      v.slots[GSA_MOMENTS * (int64_t)batch.slot[i / GSA_MOMENTS] + i % GSA_MOMENTS] = sum;
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    project_bwd_kernel(gsa_cuda_raster call, gsa_raster_grad v) {
  const gsa_raster& s = call.scene;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  ViewGrad<float> camera = {};
  if (i < s.count) {
    const int64_t begin = s.pair_start[i];
    int64_t end = begin + call.pair_count[i];
    if (end > call.capacity) end = call.capacity;
    float m[GSA_MOMENTS] = {};
    for (int64_t j = begin; j < end; ++j)
      for (int k = 0; k < GSA_MOMENTS; ++k) m[k] += v.slots[GSA_MOMENTS * j + k];
    Gaussian3Grad<float> grad = {};
    Gaussian2Grad<float> screen = {};
    float v_opacity = 0.0f;
    if (end > begin) {
      const View view = make_view(s.world_to_cam, s.K, s.width, s.height);
      const Gaussian3<float> g = gaussian_at(s.means, s.quats, s.scales, i);
      ProjectionParts<float> parts;
      const Gaussian2<float> p = project(view, g, parts);
      screen = screen_bwd(p, s.opacities[i], m, v_opacity);
      grad = project_bwd(view, g, p, parts, screen, camera);
    }
    v.means[3 * i] = grad.mean.x, v.means[3 * i + 1] = grad.mean.y, v.means[3 * i + 2] = grad.mean.z;
    v.quats[4 * i] = grad.quat.w, v.quats[4 * i + 1] = grad.quat.x;
    v.quats[4 * i + 2] = grad.quat.y, v.quats[4 * i + 3] = grad.quat.z;
    v.scales[3 * i] = grad.scale.x, v.scales[3 * i + 1] = grad.scale.y;
    v.scales[3 * i + 2] = grad.scale.z;
    v.opacities[i] = v_opacity;
    for (int k = 0; k < 3; ++k) v.colors[3 * i + k] = m[kRed + k];
    if (v.screen_probe) v.screen_probe[2 * i] = screen.x, v.screen_probe[2 * i + 1] = screen.y;
  }
  float fields[16] = {camera.rotation[0].x, camera.rotation[0].y, camera.rotation[0].z,
                      camera.rotation[1].x, camera.rotation[1].y, camera.rotation[1].z,
                      camera.rotation[2].x, camera.rotation[2].y, camera.rotation[2].z,
                      camera.translation.x, camera.translation.y, camera.translation.z,
                      camera.fx,            camera.fy,            camera.cx,
                      camera.cy};
  sum_block(fields, v.partial + 16 * blockIdx.x);
}

__global__ void camera_bwd_kernel(gsa_raster_grad v, int blocks) {
  const int k = threadIdx.x;
  if (k < 16) v.world_to_cam[k] = 0.0f;
  if (k < 9) v.K[k] = 0.0f;
  __syncthreads();
  if (k >= 16) return;
  double sum = 0.0;
  for (int b = 0; b < blocks; ++b) sum += v.partial[16 * b + k];
  if (k < 9) v.world_to_cam[4 * (k / 3) + k % 3] = (float)sum;
  if (k >= 9 && k < 12) v.world_to_cam[4 * (k - 9) + 3] = (float)sum;
  if (k == 12) v.K[0] = (float)sum;
  if (k == 13) v.K[4] = (float)sum;
  if (k == 14) v.K[2] = (float)sum;
  if (k == 15) v.K[5] = (float)sum;
}

// Bits of a tile number such that all ones is none of them.
int tile_bits(int tiles) {
  int bits = 1;
  while ((1ll << bits) <= tiles) ++bits;
  return bits;
}

void launch_project(const gsa_cuda_raster& call, cudaStream_t stream) {
  const gsa_raster& s = call.scene;
  if (s.part_count == 0) {
    const gsa_part none = {};
    GSA_LAUNCH(project_kernel, blocks_for(s.count), kThreads, stream, call, none, 0, false);
  }
  int first = 0;
  for (int k = 0; k < s.part_count; ++k) {
    const gsa_part part = s.parts[k];
    if (part.motion.count > 0)
      GSA_LAUNCH(project_kernel, blocks_for(part.motion.count), kThreads, stream, call, part, first,
                 true);
    first += part.motion.count;
  }
}

int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace gsa

extern "C" GSA_API int32_t gsa_abi(void) { return GSA_ABI; }

extern "C" int64_t gsa_cuda_temporary_bytes(int32_t count, int64_t capacity, int32_t tiles) {
  const uint32_t* in = nullptr;
  uint32_t* out = nullptr;
  const int64_t* counts = nullptr;
  int64_t* ends = nullptr;
  size_t depth = 0, sum = 0, tile = 0;
  cub::DeviceRadixSort::SortPairs(nullptr, depth, in, out, in, out, (int64_t)count, 0, 32);
  cub::DeviceScan::InclusiveSum(nullptr, sum, counts, ends, (int64_t)count);
  cub::DeviceRadixSort::SortPairs(nullptr, tile, in, out, in, out, capacity, 0,
                                  gsa::tile_bits(tiles));
  return gsa::larger_of((int64_t)depth, gsa::larger_of((int64_t)sum, (int64_t)tile));
}

extern "C" int32_t gsa_cuda_forward(const gsa_cuda_raster* arguments) {
  using namespace gsa;
  const gsa_cuda_raster call = *arguments;
  const gsa_raster& s = call.scene;
  const cudaStream_t stream = (cudaStream_t)call.stream;
  const int tiles = ((s.width + kTile - 1) / kTile) * ((s.height + kTile - 1) / kTile);
  const int64_t half = larger_of(s.count, call.capacity);
  const int per_gaussian = blocks_for(s.count);
  size_t bytes = (size_t)call.temporary_bytes;
  cudaMemsetAsync(call.status, 0, 4 * sizeof(int32_t), stream);
  if (s.count > 0) {
    launch_project(call, stream);
    uint32_t *order = call.values + half, *depths = call.keys + half;
    cub::DeviceRadixSort::SortPairs(call.temporary, bytes, call.keys, depths, call.values, order,
                                    (int64_t)s.count, 0, 32, stream);
    int64_t *counts = (int64_t*)s.scratch, *ends = counts + s.count;
    GSA_LAUNCH(count_kernel, per_gaussian, kThreads, stream, call, order, counts);
    bytes = (size_t)call.temporary_bytes;
    cub::DeviceScan::InclusiveSum(call.temporary, bytes, counts, ends, (int64_t)s.count, stream);
    cudaMemsetAsync(call.keys, 0xFF, sizeof(uint32_t) * (size_t)call.capacity, stream);
    GSA_LAUNCH(emit_kernel, per_gaussian, kThreads, stream, call, order, ends);
  } else {
    cudaMemsetAsync(call.keys, 0xFF, sizeof(uint32_t) * (size_t)call.capacity, stream);
  }
  uint32_t *tiles_sorted = call.keys + half, *slots_sorted = call.values + half;
  bytes = (size_t)call.temporary_bytes;
  cub::DeviceRadixSort::SortPairs(call.temporary, bytes, call.keys, tiles_sorted, call.values,
                                  slots_sorted, call.capacity, 0, tile_bits(tiles), stream);
  GSA_LAUNCH(range_kernel, blocks_for(call.capacity + 1), kThreads, stream, call, tiles_sorted,
             slots_sorted);
  GSA_LAUNCH(composite_kernel, tiles, kThreads, stream, call);
  if (s.channel_count > 0) return gsa_cuda_channels(arguments);
  return (int32_t)cudaGetLastError();
}

extern "C" int32_t gsa_cuda_backward(const gsa_cuda_raster* arguments, const gsa_raster_grad* grad) {
  using namespace gsa;
  const gsa_cuda_raster call = *arguments;
  const gsa_raster_grad v = *grad;
  const gsa_raster& s = call.scene;
  const cudaStream_t stream = (cudaStream_t)call.stream;
  const int tiles = ((s.width + kTile - 1) / kTile) * ((s.height + kTile - 1) / kTile);
  const int per_gaussian = blocks_for(s.count);
  cudaMemsetAsync(v.slots, 0, sizeof(float) * GSA_MOMENTS * (size_t)call.capacity, stream);
  GSA_LAUNCH(composite_bwd_kernel, tiles, kThreads, stream, call, v);
  if (v.extras) gsa_cuda_channels_bwd(arguments, grad);
  if (s.count > 0) GSA_LAUNCH(project_bwd_kernel, per_gaussian, kThreads, stream, call, v);
  GSA_LAUNCH(camera_bwd_kernel, 1, 32, stream, v, per_gaussian);
  return (int32_t)cudaGetLastError();
}
