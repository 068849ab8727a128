// Colours of a vector of Gaussians by spherical harmonics.
#pragma once

#include "lanes.h"
#include "sh.h"

namespace gsa {

struct Seen {
  Vec3<vf> direction;
  vf inverse;
  vf basis[kShTerms];
};

inline Seen see_along(int terms, const Vec3<vf>& offset) {
  Seen seen;
  seen.direction = direction_of(offset, seen.inverse);
  sh_basis(terms, seen.direction, seen.basis);
  return seen;
}

inline vf sh_coefficient(const float* sh, int terms, int first, int used, int term, int channel) {
  const int stride = 3 * terms;
  return load_strided(sh + (int64_t)stride * first + 3 * term + channel, stride, used, 0.0f);
}

// Before the clamp.
inline vf sh_channel(const float* sh, int terms, const Seen& seen, int first, int used, int channel) {
  vf sum = broadcast(0.5f);
  for (int t = 0; t < terms; ++t)
    sum = sum + seen.basis[t] * sh_coefficient(sh, terms, first, used, t, channel);
  return sum;
}

}  // namespace gsa
