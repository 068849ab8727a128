// Linear motion of a cloud, and its gradients.
#include "motion.h"
#include "parallel.h"

namespace gsa {
namespace {

struct Chunk {
  int first, count;
};
inline Chunk chunk_at(int c, int total) {
  const int first = c * kChunk;
  return {first, total - first < kChunk ? total - first : kChunk};
}

void store_three(float* at, int used, const Vec3<vf>& v) {
  store_strided(at, 3, used, v.x), store_strided(at + 1, 3, used, v.y);
  store_strided(at + 2, 3, used, v.z);
}
void store_quat(float* at, int used, const Quat<vf>& q) {
  store_strided(at, 4, used, q.w), store_strided(at + 1, 4, used, q.x);
  store_strided(at + 2, 4, used, q.y), store_strided(at + 3, 4, used, q.z);
}
void store_offset(float* at, int used, const Offset<vf>& o) {
  const vf fields[kOffsets] = {o.displacement.x, o.displacement.y, o.displacement.z,
                               o.turn.x,         o.turn.y,         o.turn.z,
                               o.stretch.x,      o.stretch.y,      o.stretch.z};
  for (int i = 0; i < kOffsets; ++i) store_strided(at + i, kOffsets, used, fields[i]);
}

inline int lanes_from(int i, int count) { return count - i < GSA_LANES ? count - i : GSA_LANES; }

void blend_chunk(const gsa_motion& m, Chunk c) {
  float offsets[kOffsets * kChunk];
  sum_offsets(m, c.first, c.count, offsets);
  for (int i = 0; i < c.count; i += GSA_LANES) {
    const int used = lanes_from(i, c.count);
    const int64_t n = c.first + i;
    const Gaussian3<vf> out = moved(load_gaussians(m.means, m.quats, m.scales, n, used),
                                    load_offset(offsets + kOffsets * i, used), m.mean_unit);
    store_three(m.out_means + 3 * n, used, out.mean);
    store_quat(m.out_quats + 4 * n, used, out.quat);
    store_three(m.out_scales + 3 * n, used, out.scale);
  }
}

float dot_product(const float* a, const float* b, int length) {
  vf sum = broadcast(0.0f);
  int i = 0;
  for (; i + GSA_LANES <= length; i += GSA_LANES) sum = sum + load(a + i) * load(b + i);
  float lane[GSA_LANES], total = 0.0f;
  store(lane, sum);
  for (int l = 0; l < GSA_LANES; ++l) total += lane[l];
  for (; i < length; ++i) total += a[i] * b[i];
  return total;
}

// Gradients of one chunk; those of the coefficients as its share of the sum.
void blend_chunk_bwd(const gsa_motion& m, const gsa_motion_grad& v, Chunk c, float* coefficients) {
  float offsets[kOffsets * kChunk];
  sum_offsets(m, c.first, c.count, offsets);
  for (int i = 0; i < c.count; i += GSA_LANES) {
    const int used = lanes_from(i, c.count);
    const int64_t n = c.first + i;
    const Gaussian3<vf> v_out = load_gaussians(v.out_means, v.out_quats, v.out_scales, n, used);
    Offset<vf> v_offset;
    const Gaussian3Grad<vf> grad = moved_bwd(
        load_gaussians(m.means, m.quats, m.scales, n, used),
        load_offset(offsets + kOffsets * i, used), m.mean_unit,
        Gaussian3Grad<vf>{v_out.mean, v_out.quat, v_out.scale}, v_offset);
    store_three(v.means + 3 * n, used, grad.mean);
    store_quat(v.quats + 4 * n, used, grad.quat);
    store_three(v.scales + 3 * n, used, grad.scale);
    store_offset(offsets + kOffsets * i, used, v_offset);  // now the gradient of the offsets
  }
  const int length = kOffsets * c.count;
  for (int k = 0; k < m.coefficient_count; ++k) {
    const int64_t at = kOffsets * ((int64_t)k * m.count + c.first);
    if (v.coefficients) coefficients[k] = dot_product(m.basis + at, offsets, length);
    if (!v.basis || m.coefficients[k] == 0.0f) continue;  // the caller gave zeros
    int i = 0;
    for (; i + GSA_LANES <= length; i += GSA_LANES)
      store(v.basis + at + i, load(offsets + i) * m.coefficients[k]);
    for (; i < length; ++i) v.basis[at + i] = offsets[i] * m.coefficients[k];
  }
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_blend(const gsa_motion* motion) {
  using namespace gsa;
  const gsa_motion& m = *motion;
  Crew crew(m.threads);
  crew.run((m.count + kChunk - 1) / kChunk, [&](int c) { blend_chunk(m, chunk_at(c, m.count)); });
  return GSA_OK;
}

extern "C" int32_t gsa_blend_bwd(const gsa_motion* motion, const gsa_motion_grad* grad) {
  using namespace gsa;
  const gsa_motion& m = *motion;
  const gsa_motion_grad& v = *grad;
  const int chunks = (m.count + kChunk - 1) / kChunk, terms = m.coefficient_count;
  Crew crew(m.threads);
  crew.run(chunks, [&](int c) {
    blend_chunk_bwd(m, v, chunk_at(c, m.count), v.partial + (int64_t)c * terms);
  });
  if (v.coefficients) {
    for (int k = 0; k < terms; ++k) {
      double sum = 0.0;
      for (int c = 0; c < chunks; ++c) sum += v.partial[(int64_t)c * terms + k];
      v.coefficients[k] = (float)sum;
    }
  }
  return GSA_OK;
}
