// Mean SSIM of two interleaved pictures on CUDA, and its gradient.
//
// A block serves a tile, a thread a pixel of it, one channel after the other. The tile with the
// window's margin lies in shared memory and is blurred across, then down. The first kernel compares
// and leaves the derivatives of every pixel, weighted by the mask; the last blurs those the same way
// back (a symmetric window is its own adjoint, zeros outside). Between the two the tiles' sums are
// added in order, so repeat runs are bit-equal and nothing is added atomically.
#include "block.h"
//
#include "cuda_abi.h"
#include "ssim.h"

namespace gsa {
namespace {

constexpr int kTile = GSA_TILE;
constexpr int kHalo = kTile + 2 * kSsimRadius;
constexpr int kPitch = 48;  // floats of a row with its margin: a warp's two rows use other banks
static_assert(kTile * kTile == kThreads, "a thread for each pixel");
static_assert(kPitch >= kHalo && kPitch % 32 == kTile, "the rows of a warp lie half the banks apart");

typedef float Margined[kHalo][kPitch];  // a tile of one channel with its margin
typedef float Strip[kHalo][kTile];      // the same, blurred across

struct Place {
  int left, top, x, y;  // the tile's first pixel, and the thread's own in the tile
  bool inside;
  int64_t pixel;
};

__host__ __device__ __forceinline__ int tiles_across(const gsa_ssim_args& s) {
  return (s.width + kTile - 1) / kTile;
}

__device__ __forceinline__ Place place_of(const gsa_ssim_args& s) {
  Place p;
  p.left = blockIdx.x % tiles_across(s) * kTile, p.top = blockIdx.x / tiles_across(s) * kTile;
  p.x = threadIdx.x % kTile, p.y = threadIdx.x / kTile;
  p.inside = p.left + p.x < s.width && p.top + p.y < s.height;
  p.pixel = (int64_t)(p.top + p.y) * s.width + p.left + p.x;
  return p;
}

// One channel of an interleaved picture around the tile, zeros outside. The block meets afterwards.
__device__ __forceinline__ void read(const gsa_ssim_args& s, const Place& p, const float* channel,
                                     Margined& into) {
  for (int i = threadIdx.x; i < kHalo * kHalo; i += kThreads) {
    const int row = i / kHalo, column = i % kHalo;
    const int y = p.top + row - kSsimRadius, x = p.left + column - kSsimRadius;
    const bool inside = x >= 0 && x < s.width && y >= 0 && y < s.height;
    into[row][column] = inside ? channel[3 * ((int64_t)y * s.width + x)] : 0.0f;
  }
}

// Blurs the rows of a tile across: `tap(row, column, out)` gives what is summed there, in `Planes`.
template <int Planes, class Tap>
__device__ __forceinline__ void blur_across(const Tap& tap, Strip* strips) {
  constexpr SsimWindow window = kSsimWindow;
  for (int i = threadIdx.x; i < kHalo * kTile; i += kThreads) {
    const int row = i / kTile, column = i % kTile;
    float sum[Planes] = {};
#pragma unroll
    for (int k = 0; k < kSsimTaps; ++k) {
      float value[Planes];
      tap(row, column + k, value);
      for (int plane = 0; plane < Planes; ++plane) sum[plane] += window.tap[k] * value[plane];
    }
    for (int plane = 0; plane < Planes; ++plane) strips[plane][row][column] = sum[plane];
  }
}

// And then down, around the thread's pixel.
template <int Planes>
__device__ __forceinline__ void blur_down(const Strip* strips, const Place& p, float* sum) {
  constexpr SsimWindow window = kSsimWindow;
  for (int plane = 0; plane < Planes; ++plane) {
    sum[plane] = 0.0f;
#pragma unroll
    for (int k = 0; k < kSsimTaps; ++k) sum[plane] += window.tap[k] * strips[plane][p.y + k][p.x];
  }
}

// The tile's sums of similarities and of weights, and every pixel's weighted derivatives.
__global__ void __launch_bounds__(kThreads) ssim_kernel(gsa_ssim_args s) {
  GSA_SHARED Margined a, b;
  GSA_SHARED Strip strips[4];
  GSA_SHARED float sums[kWarps][2];
  const Place p = place_of(s);
  const float weight = !p.inside ? 0.0f : s.mask ? s.mask[p.pixel] : 1.0f;
  const int64_t plane = 3 * (int64_t)s.width * s.height;
  float value = 0.0f;
  for (int c = 0; c < 3; ++c) {
    read(s, p, s.a + c, a);
    read(s, p, s.b + c, b);
    __syncthreads();
    blur_across<4>(
        [](int row, int column, float(&out)[4]) { moments(a[row][column], b[row][column], out); },
        strips);
    __syncthreads();
    float mean[4];
    blur_down<4>(strips, p, mean);
    const Similarity<float> similar = similarity(mean[0], mean[1], mean[2], mean[3]);
    if (!p.inside) continue;
    value += weight * similar.value;
    if (!s.v_a) continue;
    float* slope = s.scratch + 3 * p.pixel + c;
    slope[0] = weight * similar.by_mean;
    slope[plane] = weight * similar.by_square;
    slope[2 * plane] = weight * similar.by_product;
  }
  const float sum[2] = {sum_one(value), sum_one(weight)};
  if (threadIdx.x % 32 == 0)
    for (int k = 0; k < 2; ++k) sums[threadIdx.x / 32][k] = sum[k];
  __syncthreads();
  if (threadIdx.x >= 2) return;
  double total = 0.0;
  for (int w = 0; w < kWarps; ++w) total += sums[w][threadIdx.x];
  s.sums[2 * (int64_t)blockIdx.x + threadIdx.x] = total;
}

// The mean, and what every derivative is scaled by, which goes behind the tiles' sums.
__global__ void __launch_bounds__(kThreads) mean_kernel(gsa_ssim_args s, int tiles) {
  GSA_SHARED double sums[2][kThreads];
  double value = 0.0, weight = 0.0;
  for (int64_t t = threadIdx.x; t < tiles; t += kThreads)
    value += s.sums[2 * t], weight += s.sums[2 * t + 1];
  sums[0][threadIdx.x] = value, sums[1][threadIdx.x] = weight;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int k = 0; k < 2; ++k) sums[k][threadIdx.x] += sums[k][threadIdx.x + half];
  }
  if (threadIdx.x > 0) return;
  const double scale = mean_scale(sums[1][0]);
  s.value[0] = (float)(sums[0][0] * scale);
  s.sums[2 * (int64_t)tiles] = scale;
}

__global__ void __launch_bounds__(kThreads) ssim_bwd_kernel(gsa_ssim_args s, int tiles) {
  GSA_SHARED Margined slopes[3];
  GSA_SHARED Strip strips[3];
  const Place p = place_of(s);
  const int64_t plane = 3 * (int64_t)s.width * s.height;
  const float scale = (float)s.sums[2 * (int64_t)tiles];
  for (int c = 0; c < 3; ++c) {
    for (int k = 0; k < 3; ++k) read(s, p, s.scratch + k * plane + c, slopes[k]);
    __syncthreads();
    blur_across<3>(
        [](int row, int column, float(&out)[3]) {
          for (int k = 0; k < 3; ++k) out[k] = slopes[k][row][column];
        },
        strips);
    __syncthreads();
    float v[3];
    blur_down<3>(strips, p, v);
    const int64_t at = 3 * p.pixel + c;
    if (p.inside) s.v_a[at] = scale * similarity_bwd(s.a[at], s.b[at], v[0], v[1], v[2]);
  }
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_cuda_ssim(const gsa_ssim_args* arguments, void* on) {
  using namespace gsa;
  const gsa_ssim_args s = *arguments;
  const cudaStream_t stream = (cudaStream_t)on;
  const int tiles = tiles_across(s) * ((s.height + kTile - 1) / kTile);
  GSA_LAUNCH(ssim_kernel, tiles, kThreads, stream, s);
  GSA_LAUNCH(mean_kernel, 1, kThreads, stream, s, tiles);
  if (s.v_a) GSA_LAUNCH(ssim_bwd_kernel, tiles, kThreads, stream, s, tiles);
  return (int32_t)cudaGetLastError();
}
