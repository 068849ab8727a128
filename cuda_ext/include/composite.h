// Front-to-back alpha compositing of one Gaussian over pixels, and its derivative.
//
// Kerbl et al. 2023, eq. 3: C = sum_i c_i alpha_i T_i with T_i = prod_{j<i} (1 - alpha_j), plus the
// background times the last T. alpha is the opacity, at most kOpacityMax, times the falloff; a Gaussian
// counts where alpha >= kAlphaMin and T >= kTransmittanceMin.
#pragma once

#include "coverage.h"

namespace gsa {

template <class F, class M>
struct Contribution {
  F weight;         // alpha T, 0 where the Gaussian does not count
  F transmittance;  // T behind it
  M open;           // where the pixel still takes something
};

// alpha, or 0 where it is too faint to count. `power` is its logarithm, peak - P of coverage.h, and
// alpha comes as two factors, the power of two of a fraction and of the rest.
template <class F>
GSA_FN F alpha_of(const F& power, const F& fraction, const F& rest) {
  return product_if(less_equal(splat(power, kPowerMin), power), fraction, rest);
}

// The next Gaussian waits for T and for nothing else: a pixel that takes nothing more still lets its
// T shrink, only the weight is cut. Its opacity is therefore the sum of the weights, not 1 - T.
template <class M, class F>
GSA_FN Contribution<F, M> contribute(const F& alpha, const F& transmittance) {
  const M open = less_equal(splat(alpha, kTransmittanceMin), transmittance);
  return {product_if(open, alpha, transmittance), transmittance - alpha * transmittance, open};
}

// dL/dpower of one Gaussian, where power = -P ln 2 is the exponent of its falloff.
//
// `slope` is dL/dweight of this Gaussian; `behind` is what everything behind it, background included,
// adds to the loss: R = sum_{j>i} weight_j slope_j + T_end v_T. Raising alpha_i by d adds T slope d
// and takes the share d / (1 - alpha) from R, so with alpha / (1 - alpha) = weight / T_behind:
// alpha dL/dalpha = weight (slope - R / T_behind).
template <class F, class M>
GSA_FN F contribute_bwd(const Contribution<F, M>& c, const F& slope, const F& behind) {
  return product_if(c.open, c.weight, slope - behind * reciprocal(c.transmittance));
}

}  // namespace gsa
