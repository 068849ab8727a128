// View-dependent colours of a cloud on CUDA, and their gradients: a thread for each Gaussian.
#include "block.h"
//
#include "cuda_abi.h"
#include "sh.h"

namespace gsa {
namespace {

struct Seen {
  Vec3<float> direction;
  float inverse, basis[kShTerms];
};

// Terms is known to the compiler, so that the basis stays in registers.
template <int Terms>
__device__ __forceinline__ Seen see(const gsa_sh_args& s, int64_t n) {
  const float *m = s.means + 3 * n, *c = s.centre;
  Seen seen;
  seen.direction = direction_of(Vec3<float>{m[0] - c[0], m[1] - c[1], m[2] - c[2]}, seen.inverse);
  sh_basis(Terms, seen.direction, seen.basis);
  return seen;
}

template <int Terms>
__device__ __forceinline__ float channel_of(const float* sh, const Seen& seen, int channel) {
  float sum = 0.5f;
  for (int t = 0; t < Terms; ++t) sum += seen.basis[t] * sh[3 * t + channel];
  return sum;
}

template <int Terms>
__global__ void __launch_bounds__(kThreads) sh_kernel(gsa_sh_args s) {
  const int64_t n = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (n >= s.count) return;
  const Seen seen = see<Terms>(s, n);
  for (int c = 0; c < 3; ++c)  // in this order a NaN stays one
    s.colors[3 * n + c] = larger(0.0f, channel_of<Terms>(s.sh + 3 * Terms * n, seen, c));
}

template <int Terms>
__global__ void __launch_bounds__(kThreads) sh_bwd_kernel(gsa_sh_args s, gsa_sh_grad v) {
  const int64_t n = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  Vec3<float> v_mean = {};
  if (n < s.count) {
    const Seen seen = see<Terms>(s, n);
    const float* sh = s.sh + 3 * Terms * n;
    float* v_sh = v.sh + 3 * Terms * n;
    float v_basis[kShTerms] = {};
    for (int c = 0; c < 3; ++c) {
      const bool open = 0.0f <= channel_of<Terms>(sh, seen, c);
      const float v_colour = open ? v.colors[3 * n + c] : 0.0f;
      for (int t = 0; t < Terms; ++t) {
        v_basis[t] += v_colour * sh[3 * t + c];
        v_sh[3 * t + c] = v_colour * seen.basis[t];
      }
    }
    v_mean = direction_bwd(seen.direction, seen.inverse,
                           sh_basis_bwd(Terms, seen.direction, v_basis));
    v.means[3 * n] = v_mean.x, v.means[3 * n + 1] = v_mean.y, v.means[3 * n + 2] = v_mean.z;
  }
  GSA_SHARED float sums[kWarps][3];
  const float sum[3] = {sum_one(v_mean.x), sum_one(v_mean.y), sum_one(v_mean.z)};
  if (threadIdx.x % 32 == 0)
    for (int k = 0; k < 3; ++k) sums[threadIdx.x / 32][k] = sum[k];
  __syncthreads();
  if (threadIdx.x >= 3) return;
  float total = 0.0f;
  for (int w = 0; w < kWarps; ++w) total += sums[w][threadIdx.x];
  v.partial[3 * (int64_t)blockIdx.x + threadIdx.x] = total;
}

// The camera's centre is what every mean is measured from.
__global__ void centre_bwd_kernel(gsa_sh_grad v, int blocks) {
  if (threadIdx.x >= 3) return;
  double sum = 0.0;
  for (int b = 0; b < blocks; ++b) sum += v.partial[3 * (int64_t)b + threadIdx.x];
  v.centre[threadIdx.x] = (float)-sum;
}

template <int Terms>
void launch_sh(const gsa_sh_args& s, cudaStream_t stream) {
  GSA_LAUNCH(sh_kernel<Terms>, blocks_for(s.count), kThreads, stream, s);
}

template <int Terms>
void launch_sh_bwd(const gsa_sh_args& s, const gsa_sh_grad& v, cudaStream_t stream) {
  GSA_LAUNCH(sh_bwd_kernel<Terms>, blocks_for(s.count), kThreads, stream, s, v);
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_cuda_sh(const gsa_sh_args* arguments, void* on) {
  using namespace gsa;
  const gsa_sh_args s = *arguments;
  const cudaStream_t stream = (cudaStream_t)on;
  if (s.count > 0) {
    if (s.terms == 1) launch_sh<1>(s, stream);
    if (s.terms == 4) launch_sh<4>(s, stream);
    if (s.terms == 9) launch_sh<9>(s, stream);
    if (s.terms == 16) launch_sh<16>(s, stream);
  }
  return (int32_t)cudaGetLastError();
}

extern "C" int32_t gsa_cuda_sh_bwd(const gsa_sh_args* arguments, const gsa_sh_grad* grad, void* on) {
  using namespace gsa;
  const gsa_sh_args s = *arguments;
  const gsa_sh_grad v = *grad;
  const cudaStream_t stream = (cudaStream_t)on;
  if (s.count > 0) {
    if (s.terms == 1) launch_sh_bwd<1>(s, v, stream);
    if (s.terms == 4) launch_sh_bwd<4>(s, v, stream);
    if (s.terms == 9) launch_sh_bwd<9>(s, v, stream);
    if (s.terms == 16) launch_sh_bwd<16>(s, v, stream);
  }
  GSA_LAUNCH(centre_bwd_kernel, 1, 32, stream, v, blocks_for(s.count));
  return (int32_t)cudaGetLastError();
}
