// Motion of a cloud on CUDA: the linear offsets and the rigid pose, each with its gradients.
//
// A thread serves one Gaussian, a block 256. Sums over the cloud go by warp, block and then, in order,
// over the blocks: no atomics, repeat runs are bit-equal.
#include "offsets.h"
//
#include "cuda_abi.h"
#include "pose.h"

namespace gsa {
namespace {

constexpr int kRows = 32;  // of the basis whose products are summed before the block meets
constexpr int kPoseSums = 16;

__global__ void __launch_bounds__(kThreads) blend_kernel(gsa_motion m) {
  GSA_SHARED float offsets[kBlockOffsets];
  const int first = blockIdx.x * kThreads, left = m.count - first;
  sum_offsets(m, first, left < kThreads ? left : kThreads, offsets);
  const int64_t n = first + (int)threadIdx.x;
  if (n >= m.count) return;
  const Gaussian3<float> out = moved(gaussian_at(m.means, m.quats, m.scales, n),
                                     offset_at(offsets, threadIdx.x), m.mean_unit);
  store_three(m.out_means + 3 * n, out.mean);
  store_quat(m.out_quats + 4 * n, out.quat);
  store_three(m.out_scales + 3 * n, out.scale);
}

// A block's share of the coefficients' gradients, by its gradients of the offsets in the order of
// the basis.
__device__ void coefficients_bwd(const gsa_motion& m, int first, int length, const float* mine,
                                 float* partial) {
  GSA_SHARED float sums[kWarps][kRows];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int k = 0; k < m.coefficient_count; k += kRows) {
    const int rows = m.coefficient_count - k < kRows ? m.coefficient_count - k : kRows;
    for (int r = 0; r < rows; ++r) {
      const float* row = m.basis + kOffsets * ((int64_t)(k + r) * m.count + first);
      float sum = 0.0f;
      for (int j = 0; j < kOffsets; ++j) {
        const int i = threadIdx.x + j * kThreads;
        if (i < length) sum += row[i] * mine[j];
      }
      sum = sum_one(sum);
      if (lane == 0) sums[warp][r] = sum;
    }
    __syncthreads();
    if (threadIdx.x < rows) {
      float total = 0.0f;
      for (int w = 0; w < kWarps; ++w) total += sums[w][threadIdx.x];
      partial[k + threadIdx.x] = total;
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) blend_bwd_kernel(gsa_motion m, gsa_motion_grad v) {
  GSA_SHARED float offsets[kBlockOffsets];
  const int first = blockIdx.x * kThreads, left = m.count - first;
  const int length = kOffsets * (left < kThreads ? left : kThreads);
  sum_offsets(m, first, length / kOffsets, offsets);
  const int64_t n = first + (int)threadIdx.x;
  Offset<float> v_offset = {};
  if (n < m.count) {
    const Gaussian3<float> out = gaussian_at(v.out_means, v.out_quats, v.out_scales, n);
    const Gaussian3Grad<float> grad =
        moved_bwd(gaussian_at(m.means, m.quats, m.scales, n), offset_at(offsets, threadIdx.x),
                  m.mean_unit, Gaussian3Grad<float>{out.mean, out.quat, out.scale}, v_offset);
    store_three(v.means + 3 * n, grad.mean);
    store_quat(v.quats + 4 * n, grad.quat);
    store_three(v.scales + 3 * n, grad.scale);
  }
  float* own = offsets + kOffsets * threadIdx.x;  // which no other thread reads before the barrier
  store_three(own, v_offset.displacement);
  store_three(own + 3, v_offset.turn);
  store_three(own + 6, v_offset.stretch);
  __syncthreads();
  float mine[kOffsets];
  for (int j = 0; j < kOffsets; ++j) mine[j] = offsets[threadIdx.x + j * kThreads];
  for (int k = 0; v.basis && k < m.coefficient_count; ++k) {
    float* row = v.basis + kOffsets * ((int64_t)k * m.count + first);
    const float c = m.coefficients[k];
    for (int j = 0; j < kOffsets; ++j) {
      const int i = threadIdx.x + j * kThreads;
      if (i < length) row[i] = c * mine[j];
    }
  }
  if (v.coefficients)
    coefficients_bwd(m, first, length, mine, v.partial + (int64_t)blockIdx.x * m.coefficient_count);
}

// out[k] = sum of partial[b, k] over the blocks, in order.
__global__ void column_sums_kernel(const float* partial, int blocks, int columns, float* out) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= columns) return;
  double sum = 0.0;
  for (int b = 0; b < blocks; ++b) sum += partial[(int64_t)b * columns + k];
  out[k] = (float)sum;
}

__global__ void __launch_bounds__(kThreads) pose_kernel(gsa_pose_args p) {
  const int64_t n = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (n >= p.count) return;
  const Rigid rigid = make_rigid(p.turn, p.shift);
  const float *m = p.means + 3 * n, *q = p.quats + 4 * n;
  Vec3<float> mean = {m[0], m[1], m[2]};
  Quat<float> quat = {q[0], q[1], q[2], q[3]};
  posed(rigid, p.share ? p.share[n] : 1.0f, mean, quat);
  store_three(p.out_means + 3 * n, mean);
  store_quat(p.out_quats + 4 * n, quat);
}

__global__ void __launch_bounds__(kThreads) pose_bwd_kernel(gsa_pose_args p, gsa_pose_grad v) {
  const int64_t n = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  RigidGrad<float> r = {};
  if (n < p.count) {
    const Rigid rigid = make_rigid(p.turn, p.shift);
    const float *m = p.means + 3 * n, *q = p.quats + 4 * n;
    const float *vm = v.out_means + 3 * n, *vq = v.out_quats + 4 * n;
    const Vec3<float> mean = {m[0], m[1], m[2]};
    const Quat<float> quat = {q[0], q[1], q[2], q[3]};
    Vec3<float> v_mean = {vm[0], vm[1], vm[2]};
    Quat<float> v_quat = {vq[0], vq[1], vq[2], vq[3]};
    const float v_share =
        posed_bwd(rigid, p.share ? p.share[n] : 1.0f, mean, quat, v_mean, v_quat, r);
    store_three(v.means + 3 * n, v_mean);
    store_quat(v.quats + 4 * n, v_quat);
    if (v.share) v.share[n] = v_share;
  }
  float fields[kPoseSums] = {r.rotation[0].x, r.rotation[0].y, r.rotation[0].z, r.rotation[1].x,
                             r.rotation[1].y, r.rotation[1].z, r.rotation[2].x, r.rotation[2].y,
                             r.rotation[2].z, r.shift.x,       r.shift.y,       r.shift.z,
                             r.turn.w,        r.turn.x,        r.turn.y,        r.turn.z};
  sum_block(fields, v.partial + kPoseSums * (int64_t)blockIdx.x);
}

__global__ void pose_sums_kernel(gsa_pose_args p, gsa_pose_grad v, int blocks) {
  GSA_SHARED double total[kPoseSums];
  if (threadIdx.x < kPoseSums) {
    double sum = 0.0;
    for (int b = 0; b < blocks; ++b) sum += v.partial[kPoseSums * (int64_t)b + threadIdx.x];
    total[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) rigid_sums_bwd(make_rigid(p.turn, p.shift), total, v.turn, v.shift);
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_cuda_blend(const gsa_motion* motion, void* on) {
  using namespace gsa;
  const gsa_motion m = *motion;
  const cudaStream_t stream = (cudaStream_t)on;
  if (m.count > 0) GSA_LAUNCH(blend_kernel, blocks_for(m.count), kThreads, stream, m);
  return (int32_t)cudaGetLastError();
}

extern "C" int32_t gsa_cuda_blend_bwd(const gsa_motion* motion, const gsa_motion_grad* grad,
                                      void* on) {
  using namespace gsa;
  const gsa_motion m = *motion;
  const gsa_motion_grad v = *grad;
  const cudaStream_t stream = (cudaStream_t)on;
  const int blocks = blocks_for(m.count), terms = m.coefficient_count;
  if (m.count > 0) GSA_LAUNCH(blend_bwd_kernel, blocks, kThreads, stream, m, v);
  if (v.coefficients && terms > 0)
    GSA_LAUNCH(column_sums_kernel, blocks_for(terms), kThreads, stream, v.partial, blocks, terms,
               v.coefficients);
  return (int32_t)cudaGetLastError();
}

extern "C" int32_t gsa_cuda_pose(const gsa_pose_args* pose, void* on) {
  using namespace gsa;
  const gsa_pose_args p = *pose;
  const cudaStream_t stream = (cudaStream_t)on;
  if (p.count > 0) GSA_LAUNCH(pose_kernel, blocks_for(p.count), kThreads, stream, p);
  return (int32_t)cudaGetLastError();
}

extern "C" int32_t gsa_cuda_pose_bwd(const gsa_pose_args* pose, const gsa_pose_grad* grad, void* on) {
  using namespace gsa;
  const gsa_pose_args p = *pose;
  const gsa_pose_grad v = *grad;
  const cudaStream_t stream = (cudaStream_t)on;
  const int blocks = blocks_for(p.count);
  if (p.count > 0) GSA_LAUNCH(pose_bwd_kernel, blocks, kThreads, stream, p, v);
  GSA_LAUNCH(pose_sums_kernel, 1, 32, stream, p, v, blocks);
  return (int32_t)cudaGetLastError();
}
