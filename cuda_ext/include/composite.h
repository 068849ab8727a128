// Front-to-back alpha compositing of one Gaussian over pixels, and its derivative.
//
// Kerbl et al. 2023, eq. 3: C = sum_i c_i alpha_i T_i with T_i = prod_{j<i} (1 - alpha_j), plus the
// background times the last T. A Gaussian counts where alpha >= kAlphaMin and T >= kTransmittanceMin.
#pragma once

#include "coverage.h"

namespace gsa {

template <class F, class M>
struct Contribution {
  F weight;        // alpha T, 0 where the Gaussian does not count
  F transmittance; // T behind it
  M free;          // where it counts and alpha is below its ceiling, so that it has a gradient
};

template <class F, class M, class G>
GSA_FN Contribution<F, M> contribute(const Exponent<G>& e, const G& opacity, const F& dx,
                                     const F& dy, const F& transmittance) {
  const F raw = opacity * power_of_two(-exponent_at(e, dx, dy));
  const F ceiling = splat(dx, kAlphaMax);
  const M bright = less_equal(splat(dx, kAlphaMin), raw);
  const M open = less_equal(splat(dx, kTransmittanceMin), transmittance);
  // Two choices rather than one by `bright and open`: only the second waits for the transmittance,
  // on which the next Gaussian waits in turn.
  const F alpha = zero_unless(bright, smaller(raw, ceiling));
  Contribution<F, M> c;
  c.weight = zero_unless(open, alpha * transmittance);
  c.transmittance = transmittance - c.weight;
  c.free = both(both(bright, less(raw, ceiling)), open);
  return c;
}

// dL/dpower of one Gaussian, where power = -P ln 2 is the exponent of its falloff.
//
// `slope` is dL/dweight of this Gaussian; `behind` is what everything behind it, background included,
// adds to the loss: R = sum_{j>i} weight_j slope_j + T_end v_T. Raising alpha_i by d adds T slope d
// and takes the share d / (1 - alpha) from R, so with alpha / (1 - alpha) = weight / T_behind:
// alpha dL/dalpha = weight (slope - R / T_behind).
template <class F, class M>
GSA_FN F contribute_bwd(const Contribution<F, M>& c, const F& slope, const F& behind) {
  return zero_unless(c.free, c.weight * (slope - behind * reciprocal(c.transmittance)));
}

}  // namespace gsa
