// Linear motion of a cloud, and its gradients.
#include <atomic>

#include "motion.h"
#include "pages.h"
#include "parallel.h"
#include "watch.h"

namespace gsa {
namespace {

struct Chunk {
  int first, count;
};
inline Chunk chunk_at(int c, int total) {
  const int first = c * kChunk;
  return {first, total - first < kChunk ? total - first : kChunk};
}

void store_offset(float* at, int used, const Offset<vf>& o) {
  const vf fields[kOffsets] = {o.displacement.x, o.displacement.y, o.displacement.z,
                               o.turn.x,         o.turn.y,         o.turn.z,
                               o.stretch.x,      o.stretch.y,      o.stretch.z};
  for (int i = 0; i < kOffsets; ++i) store_strided(at + i, kOffsets, used, fields[i]);
}

// Returns the code of what is malformed. The offsets are watched, not only what they make: a stretch
// that is NaN may come out of the exponential as a number.
int32_t blend_chunk(const gsa_motion& m, Chunk c) {
  float offsets[kOffsets * kChunk];
  sum_offsets(m, c.first, c.count, offsets);
  vf sums[4] = {};  // means, quats, scales, basis
  for (int i = 0; i < c.count; i += GSA_LANES) {
    const int used = lanes_from(i, c.count);
    const int64_t n = c.first + i;
    const Gaussian3<vf> g = load_gaussians(m.means, m.quats, m.scales, n, used);
    const Offset<vf> o = load_offset(offsets + kOffsets * i, used);
    watch(sums[0], g.mean.x + g.mean.y + g.mean.z);
    watch(sums[1], g.quat.w + g.quat.x + g.quat.y + g.quat.z);
    watch(sums[2], g.scale.x + g.scale.y + g.scale.z);
    watch(sums[3], o.displacement.x + o.displacement.y + o.displacement.z + o.turn.x + o.turn.y +
                       o.turn.z + o.stretch.x + o.stretch.y + o.stretch.z);
    const Gaussian3<vf> out = moved(g, o, m.mean_unit);
    store_three(m.out_means + 3 * n, used, out.mean);
    store_quat(m.out_quats + 4 * n, used, out.quat);
    store_three(m.out_scales + 3 * n, used, out.scale);
  }
  return code_of(sums);
}

// Products of `Count` basis rows with the gradient of the offsets, sums[j] = row[j] . v.
template <int Count>
void dot_rows(const float* const* row, const float* v, int length, float* sums) {
  vf sum[Count];
  for (vf& s : sum) s = broadcast(0.0f);
  int i = 0;
  for (; i + GSA_LANES <= length; i += GSA_LANES) {
    const vf slope = load(v + i);
    for (int j = 0; j < Count; ++j) sum[j] = sum[j] + load(row[j] + i) * slope;
  }
  for (int j = 0; j < Count; ++j) {
    float total = sum_of_lanes(sum[j]);
    for (int n = i; n < length; ++n) total += row[j][n] * v[n];
    sums[j] = total;
  }
}

// Gradients of the basis and of the coefficients by those of the offsets, `v`.
void sum_offsets_bwd(const gsa_motion& m, const gsa_motion_grad& grad, Chunk chunk, const float* v,
                     float* coefficients) {
  const int length = kOffsets * chunk.count, terms = m.coefficient_count;
  const auto at = [&](int k) { return kOffsets * ((int64_t)k * m.count + chunk.first); };
  for (int k = 0; grad.coefficients && k < terms; k += kStreams) {
    const float* row[kStreams];
    for (int j = 0; j < kStreams; ++j) row[j] = m.basis + at(k + j < terms ? k + j : terms - 1);
    if (k + kStreams <= terms) {
      dot_rows<kStreams>(row, v, length, coefficients + k);
    } else {
      for (int j = 0; k + j < terms; ++j) dot_rows<1>(row + j, v, length, coefficients + k + j);
    }
  }
  for (int k = 0; grad.basis && k < terms; ++k) {
    float* out = grad.basis + at(k);
    int i = 0;
    for (; i + GSA_LANES <= length; i += GSA_LANES) store(out + i, load(v + i) * m.coefficients[k]);
    for (; i < length; ++i) out[i] = v[i] * m.coefficients[k];
  }
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
  sum_offsets_bwd(m, v, c, offsets, coefficients);
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_blend(const gsa_motion* motion) {
  using namespace gsa;
  const gsa_motion& m = *motion;
  if (!all_finite(m.coefficients, m.coefficient_count)) return GSA_NOT_FINITE + 4;
  std::atomic<int32_t> code{GSA_OK};
  Crew crew(m.threads);
  crew.run((m.count + kChunk - 1) / kChunk, [&](int c) {
    const int32_t found = blend_chunk(m, chunk_at(c, m.count));
    if (found != GSA_OK) code.store(found, std::memory_order_relaxed);
  });
  return code.load();
}

extern "C" int32_t gsa_blend_bwd(const gsa_motion* motion, const gsa_motion_grad* grad) {
  using namespace gsa;
  const gsa_motion& m = *motion;
  const gsa_motion_grad& v = *grad;
  const int chunks = (m.count + kChunk - 1) / kChunk, terms = m.coefficient_count;
  if (v.basis) prefer_large_pages(v.basis, sizeof(float) * kOffsets * (size_t)terms * (size_t)m.count);
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
