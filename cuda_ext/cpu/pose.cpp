// A rigid motion of a cloud, each Gaussian by its share, and its gradients.
#include <atomic>

#include "lanes.h"
// lanes.h first: see scalar.h
#include "parallel.h"
#include "pose.h"
#include "watch.h"

namespace gsa {
namespace {

constexpr int kSums = 16;  // of RigidGrad

struct Placed {
  Vec3<vf> mean;
  Quat<vf> quat;
};
Placed load_placed(const float* means, const float* quats, int64_t first, int used) {
  const float *m = means + 3 * first, *q = quats + 4 * first;
  return {{load_strided(m, 3, used, 0.0f), load_strided(m + 1, 3, used, 0.0f),
           load_strided(m + 2, 3, used, 0.0f)},
          {load_strided(q, 4, used, 0.0f), load_strided(q + 1, 4, used, 0.0f),
           load_strided(q + 2, 4, used, 0.0f), load_strided(q + 3, 4, used, 0.0f)}};
}

vf share_of(const gsa_pose_args& p, int first, int used) {
  return p.share ? load_strided(p.share + first, 1, used, 0.0f) : broadcast(1.0f);
}

// `sums` watch the arguments in the order of the struct; turn and shift are seen elsewhere.
void pose_lanes(const gsa_pose_args& p, const Rigid& rigid, int first, int used, vf (&sums)[5]) {
  Placed g = load_placed(p.means, p.quats, first, used);
  const vf share = share_of(p, first, used);
  watch(sums[0], g.mean.x + g.mean.y + g.mean.z);
  watch(sums[1], g.quat.w + g.quat.x + g.quat.y + g.quat.z);
  watch(sums[4], share);
  posed(rigid, share, g.mean, g.quat);
  store_three(p.out_means + 3 * (int64_t)first, used, g.mean);
  store_quat(p.out_quats + 4 * (int64_t)first, used, g.quat);
}

// Lanes past `used` have no gradient, so they add nothing to the sums.
void pose_lanes_bwd(const gsa_pose_args& p, const gsa_pose_grad& v, const Rigid& rigid, int first,
                    int used, vf* sums) {
  const Placed g = load_placed(p.means, p.quats, first, used);
  Placed grad = load_placed(v.out_means, v.out_quats, first, used);
  RigidGrad<vf> r;
  const vf v_share =
      posed_bwd(rigid, share_of(p, first, used), g.mean, g.quat, grad.mean, grad.quat, r);
  store_three(v.means + 3 * (int64_t)first, used, grad.mean);
  store_quat(v.quats + 4 * (int64_t)first, used, grad.quat);
  if (v.share) store_strided(v.share + first, 1, used, v_share);
  const vf fields[kSums] = {r.rotation[0].x, r.rotation[0].y, r.rotation[0].z, r.rotation[1].x,
                            r.rotation[1].y, r.rotation[1].z, r.rotation[2].x, r.rotation[2].y,
                            r.rotation[2].z, r.shift.x,       r.shift.y,       r.shift.z,
                            r.turn.w,        r.turn.x,        r.turn.y,        r.turn.z};
  for (int k = 0; k < kSums; ++k) sums[k] = sums[k] + fields[k];
}

template <class Body>
void for_chunks(const gsa_pose_args& p, const Body& body) {
  Crew crew(p.threads);
  crew.run((p.count + kChunk - 1) / kChunk, [&](int c) {
    body(c, c * kChunk, p.count < (c + 1) * kChunk ? p.count : (c + 1) * kChunk);
  });
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_pose(const gsa_pose_args* arguments) {
  using namespace gsa;
  const gsa_pose_args& p = *arguments;
  if (!all_finite(p.turn, 4)) return GSA_NOT_FINITE + 2;
  if (!all_finite(p.shift, 3)) return GSA_NOT_FINITE + 3;
  const Rigid rigid = make_rigid(p.turn, p.shift);
  std::atomic<int32_t> code{GSA_OK};
  for_chunks(p, [&](int, int first, int end) {
    vf sums[5] = {};
    for (int i = first; i < end; i += GSA_LANES) pose_lanes(p, rigid, i, lanes_from(i, end), sums);
    const int32_t found = code_of(sums);
    if (found != GSA_OK) code.store(found, std::memory_order_relaxed);
  });
  return code.load();
}

extern "C" int32_t gsa_pose_bwd(const gsa_pose_args* arguments, const gsa_pose_grad* grad) {
  using namespace gsa;
  const gsa_pose_args& p = *arguments;
  const gsa_pose_grad& v = *grad;
  const Rigid rigid = make_rigid(p.turn, p.shift);
  for_chunks(p, [&](int c, int first, int end) {
    vf sums[kSums];
    for (vf& sum : sums) sum = broadcast(0.0f);
    for (int i = first; i < end; i += GSA_LANES)
      pose_lanes_bwd(p, v, rigid, i, lanes_from(i, end), sums);
    for (int k = 0; k < kSums; ++k) v.partial[kSums * c + k] = sum_of_lanes(sums[k]);
  });
  double total[kSums] = {};
  for (int i = 0; i < kSums * ((p.count + kChunk - 1) / kChunk); ++i) total[i % kSums] += v.partial[i];
  rigid_sums_bwd(rigid, total, v.turn, v.shift);
  return GSA_OK;
}
