// View-dependent colours of a cloud, and their gradients.
#include <atomic>

#include "lanes.h"
// lanes.h first: see scalar.h
#include "colour.h"
#include "parallel.h"
#include "watch.h"

namespace gsa {
namespace {

Seen see(const gsa_sh_args& s, int first, int used) {
  const float* at = s.means + 3 * (int64_t)first;
  const Vec3<vf> offset = {load_strided(at, 3, used, 0.0f) - broadcast(s.centre[0]),
                           load_strided(at + 1, 3, used, 0.0f) - broadcast(s.centre[1]),
                           load_strided(at + 2, 3, used, 1.0f) - broadcast(s.centre[2])};
  return see_along(s.terms, offset);
}

vf coefficient(const gsa_sh_args& s, int first, int used, int term, int channel) {
  return sh_coefficient(s.sh, s.terms, first, used, term, channel);
}

vf channel_of(const gsa_sh_args& s, const Seen& seen, int first, int used, int channel) {
  return sh_channel(s.sh, s.terms, seen, first, used, channel);
}

// `sums` watch means and harmonics; these before the clamp, which hides minus infinity.
void colour_lanes(const gsa_sh_args& s, int first, int used, vf (&sums)[2]) {
  const float* mean = s.means + 3 * (int64_t)first;
  for (int c = 0; c < 3; ++c) watch(sums[0], load_strided(mean + c, 3, used, 0.0f));
  const Seen seen = see(s, first, used);
  for (int c = 0; c < 3; ++c) {
    const vf sum = channel_of(s, seen, first, used, c);
    watch(sums[1], sum);
    store_strided(s.colors + 3 * (int64_t)first + c, 3, used, larger(broadcast(0.0f), sum));
  }
}

void colour_lanes_bwd(const gsa_sh_args& s, const gsa_sh_grad& v, int first, int used,
                      Vec3<vf>& centre) {
  const Seen seen = see(s, first, used);
  const int stride = 3 * s.terms;
  vf v_basis[kShTerms];
  for (int t = 0; t < s.terms; ++t) v_basis[t] = broadcast(0.0f);
  for (int c = 0; c < 3; ++c) {
    const vf arrives = load_strided(v.colors + 3 * (int64_t)first + c, 3, used, 0.0f);
    const vm open = less_equal(broadcast(0.0f), channel_of(s, seen, first, used, c));
    const vf v_colour = zero_unless(open, arrives);
    for (int t = 0; t < s.terms; ++t) {
      v_basis[t] = v_basis[t] + v_colour * coefficient(s, first, used, t, c);
      store_strided(v.sh + (int64_t)stride * first + 3 * t + c, stride, used,
                    v_colour * seen.basis[t]);
    }
  }
  const Vec3<vf> v_mean = direction_bwd(seen.direction, seen.inverse,
                                        sh_basis_bwd(s.terms, seen.direction, v_basis));
  float* at = v.means + 3 * (int64_t)first;
  store_strided(at, 3, used, v_mean.x), store_strided(at + 1, 3, used, v_mean.y);
  store_strided(at + 2, 3, used, v_mean.z);
  accumulate(centre, v_mean);  // lanes past `used` got no gradient
}

template <class Body>
void for_chunks(const gsa_sh_args& s, const Body& body) {
  Crew crew(s.threads);
  crew.run((s.count + kChunk - 1) / kChunk, [&](int c) {
    body(c, c * kChunk, s.count < (c + 1) * kChunk ? s.count : (c + 1) * kChunk);
  });
}

}  // namespace
}  // namespace gsa

extern "C" int32_t gsa_sh(const gsa_sh_args* arguments) {
  using namespace gsa;
  const gsa_sh_args& s = *arguments;
  if (!all_finite(s.centre, 3)) return GSA_NOT_FINITE + 2;
  std::atomic<int32_t> code{GSA_OK};
  for_chunks(s, [&](int, int first, int end) {
    vf sums[2] = {};
    for (int i = first; i < end; i += GSA_LANES) colour_lanes(s, i, lanes_from(i, end), sums);
    const int32_t found = code_of(sums);
    if (found != GSA_OK) code.store(found, std::memory_order_relaxed);
  });
  return code.load();
}

extern "C" int32_t gsa_sh_bwd(const gsa_sh_args* arguments, const gsa_sh_grad* grad) {
  using namespace gsa;
  const gsa_sh_args& s = *arguments;
  const gsa_sh_grad& v = *grad;
  for_chunks(s, [&](int c, int first, int end) {
    const vf zero = broadcast(0.0f);
    Vec3<vf> sum = {zero, zero, zero};
    for (int i = first; i < end; i += GSA_LANES)
      colour_lanes_bwd(s, v, i, lanes_from(i, end), sum);
    const vf fields[3] = {sum.x, sum.y, sum.z};
    for (int k = 0; k < 3; ++k) v.partial[3 * c + k] = sum_of_lanes(fields[k]);
  });
  double sum[3] = {};
  for (int i = 0; i < 3 * ((s.count + kChunk - 1) / kChunk); ++i) sum[i % 3] += v.partial[i];
  for (int k = 0; k < 3; ++k) v.centre[k] = (float)-sum[k];
  return GSA_OK;
}
