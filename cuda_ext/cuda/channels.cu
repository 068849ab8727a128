// Channels beside colour on CUDA, eight at a time, over the tile lists that colour has.
//
// The loss is linear in the outputs, so a group of channels adds its moments to the slots that colour
// has filled; each has its own kernel call, in the caller's stream, so nothing is added at once.
#include "tile.h"

namespace gsa {
namespace {

constexpr int kGroup = GSA_CHANNELS;
constexpr int kMoments = 6;  // those of the position: g, gx, gy, gxx, gxy, gyy
static_assert(kMoments + kGroup <= 16, "a warp sums 16 values");

struct Group {
  int first, count;  // channels
};

// The channels of a batch in shared memory; zeros past the last of them.
template <int Size>
struct Values {
  float value[kGroup][Size];

  __device__ void read(const gsa_raster& s, const Group& group, int first, int count) {
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int64_t g = s.list[2 * (int64_t)(first + i)];
      const float* from = s.channels + g * s.channel_count + group.first;
      for (int c = 0; c < kGroup; ++c) value[c][i] = c < group.count ? from[c] : 0.0f;
    }
  }
};

__global__ void __launch_bounds__(kThreads) finite_kernel(gsa_cuda_raster call) {
  const gsa_raster& s = call.scene;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.count) return;
  float sum = 0.0f;
  for (int c = 0; c < s.channel_count; ++c)
    sum += s.channels[(int64_t)i * s.channel_count + c] * 0.0f;
  if (!finite(sum)) atomicMax(call.status + 1, GSA_NOT_FINITE + 10);
}

__global__ void __launch_bounds__(kThreads) channels_kernel(gsa_cuda_raster call, Group group) {
  const gsa_raster& s = call.scene;
  GSA_SHARED Shared<kThreads> batch;
  GSA_SHARED Values<kThreads> values;
  const Pixel p = pixel_of(s);
  const int lane = threadIdx.x % 32;
  const int last = s.tile_start[blockIdx.x + 1];
  float left = p.inside ? 1.0f : 0.0f, sum[kGroup] = {};
  for (int first = s.tile_start[blockIdx.x]; first < last; first += kThreads) {
    if (!__syncthreads_or(left >= kTransmittanceMin)) break;
    const int count = last - first < kThreads ? last - first : kThreads;
    batch.read(s, first, count);
    values.read(s, group, first, count);
    __syncthreads();
    for (int from = 0; from < count; from += 32) {
      if (!__ballot_sync(kAll, left >= kTransmittanceMin)) break;
      const int mine = from + lane;
      uint32_t hits = __ballot_sync(
          kAll, mine < count && reaches(batch.at(mine < count ? mine : 0), p.box_x, p.box_y, 7, 3));
      for (; hits; hits &= hits - 1) {
        const int entry = from + __ffs(hits) - 1;
        const auto c = contribution(batch.at(entry), p, left);
        left = c.transmittance;
        for (int k = 0; k < kGroup; ++k) sum[k] += c.weight * values.value[k][entry];
      }
    }
  }
  if (!p.inside) return;
  float* out = s.extras + ((int64_t)p.y * s.width + p.x) * s.channel_count + group.first;
  for (int k = 0; k < group.count; ++k) out[k] = sum[k];
}

__global__ void __launch_bounds__(kThreads)
    channels_bwd_kernel(gsa_cuda_raster call, gsa_raster_grad v, Group group) {
  const gsa_raster& s = call.scene;
  constexpr int kSums = kMoments + kGroup;
  GSA_SHARED Shared<kBatchBwd> batch;
  GSA_SHARED Values<kBatchBwd> values;
  GSA_SHARED float sums[kWarps][kBatchBwd][kSums];
  const Pixel p = pixel_of(s);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int last = s.tile_start[blockIdx.x + 1];
  float left = p.inside ? 1.0f : 0.0f, behind = 0.0f, v_out[kGroup] = {};
  const int64_t pixel = ((int64_t)p.y * s.width + p.x) * s.channel_count + group.first;
  for (int k = 0; p.inside && k < group.count; ++k) {  // R of composite.h before the first Gaussian
    v_out[k] = v.extras[pixel + k];
    behind += v_out[k] * s.extras[pixel + k];
  }
  for (int first = s.tile_start[blockIdx.x]; first < last; first += kBatchBwd) {
    if (!__syncthreads_or(left >= kTransmittanceMin)) break;
    const int count = last - first < kBatchBwd ? last - first : kBatchBwd;
    batch.read(s, first, count);
    values.read(s, group, first, count);
    for (int i = threadIdx.x; i < kWarps * kBatchBwd * kSums; i += kThreads)
      (&sums[0][0][0])[i] = 0.0f;
    __syncthreads();
    for (int from = 0; from < count; from += 32) {
      if (!__ballot_sync(kAll, left >= kTransmittanceMin)) break;
      const int mine = from + lane;
      uint32_t hits = __ballot_sync(
          kAll, mine < count && reaches(batch.at(mine < count ? mine : 0), p.box_x, p.box_y, 7, 3));
      for (; hits; hits &= hits - 1) {
        const int entry = from + __ffs(hits) - 1;
        const Record r = batch.at(entry);
        const auto c = contribution(r, p, left);
        float slope = 0.0f;
        for (int k = 0; k < kGroup; ++k) slope += v_out[k] * values.value[k][entry];
        left = c.transmittance;
        behind -= c.weight * slope;
        const float g = contribute_bwd(c, slope, behind);
        const float dx = (float)p.x + 0.5f - r.x, dy = (float)p.y + 0.5f - r.y;
        float m[16] = {g, g * dx, g * dy, g * dx * dx, g * dx * dy, g * dy * dy};
        for (int k = 0; k < kGroup; ++k) m[kMoments + k] = c.weight * v_out[k];
        const float sum = sum_warp(m);
        if (lane % 2 == 0 && sum_index(lane) < kSums) sums[warp][entry][sum_index(lane)] = sum;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * kSums; i += kThreads) {
      const int entry = i / kSums, k = i % kSums;
      const int64_t slot = batch.slot[entry];
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) sum += sums[w][entry][k];
      if (k < kMoments) v.slots[GSA_MOMENTS * slot + k] += sum;
      else v.channel_slots[kGroup * slot + k - kMoments] = sum;
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    gather_kernel(gsa_cuda_raster call, gsa_raster_grad v, Group group) {
  const gsa_raster& s = call.scene;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.count) return;
  const int64_t begin = s.pair_start[i], wanted = begin + call.pair_count[i];
  const int64_t end = wanted < call.capacity ? wanted : call.capacity;
  float sum[kGroup] = {};
  for (int64_t j = begin; j < end; ++j)
    for (int c = 0; c < kGroup; ++c) sum[c] += v.channel_slots[kGroup * j + c];
  float* out = v.channels + (int64_t)i * s.channel_count + group.first;
  for (int c = 0; c < group.count; ++c) out[c] = sum[c];
}

template <class Visit>
void for_groups(const gsa_raster& s, const Visit& visit) {
  for (int first = 0; first < s.channel_count; first += kGroup) {
    const int left = s.channel_count - first;
    visit(Group{first, left < kGroup ? left : kGroup});
  }
}

int tiles_of(const gsa_raster& s) {
  return ((s.width + kTile - 1) / kTile) * ((s.height + kTile - 1) / kTile);
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_cuda_channels(const gsa_cuda_raster* arguments) {
  using namespace gsa;
  const gsa_cuda_raster call = *arguments;
  const cudaStream_t stream = (cudaStream_t)call.stream;
  if (call.scene.count > 0)
    GSA_LAUNCH(finite_kernel, blocks_for(call.scene.count), kThreads, stream, call);
  for_groups(call.scene, [&](const Group& group) {
    GSA_LAUNCH(channels_kernel, tiles_of(call.scene), kThreads, stream, call, group);
  });
  return (int32_t)cudaGetLastError();
}

extern "C" int32_t gsa_cuda_channels_bwd(const gsa_cuda_raster* arguments,
                                         const gsa_raster_grad* grad) {
  using namespace gsa;
  const gsa_cuda_raster call = *arguments;
  const gsa_raster_grad v = *grad;
  const cudaStream_t stream = (cudaStream_t)call.stream;
  const size_t bytes = sizeof(float) * kGroup * (size_t)call.capacity;
  for_groups(call.scene, [&](const Group& group) {
    cudaMemsetAsync(v.channel_slots, 0, bytes, stream);  // of pairs behind what is seen
    GSA_LAUNCH(channels_bwd_kernel, tiles_of(call.scene), kThreads, stream, call, v, group);
    if (call.scene.count > 0)
      GSA_LAUNCH(gather_kernel, blocks_for(call.scene.count), kThreads, stream, call, v, group);
  });
  return (int32_t)cudaGetLastError();
}
