// Which pixels a screen-space Gaussian can reach, exactly.
//
// With alpha(d) = o 2^-P(d), P(d) = xx dx^2 + xy dx dy + yy dy^2, a pixel contributes where
// alpha >= kAlphaMin, that is P <= log2(o / kAlphaMin) = `reach`. The region is an ellipse.
#pragma once

#include "scalar.h"

namespace gsa {

constexpr float kReachSlack = 3e-5f;  // covers the rounding of what is compared with a reach

template <class F>
struct Reach {
  F peak;                // log2 of the opacity, compensated and at most kOpacityMax
  F power;               // `reach`; nothing is seen below 0
  F extent_x, extent_y;  // half the sides of the ellipse's box, px
};

template <class F>
GSA_FN Reach<F> reach_of(const F& opacity, const F& compensation, const F& cov_xx, const F& cov_yy) {
  Reach<F> r;
  const F cut = smaller(opacity * compensation, splat(opacity, kOpacityMax));
  r.peak = log2_of(larger(cut, splat(opacity, 1e-30f)));
  r.power = r.peak + (kReachSlack - kPowerMin);
  // P <= reach  <=>  q <= 2 ln 2 reach with q the quadratic of the conic.
  const F spread = larger(r.power, splat(opacity, 0.0f)) * (2.0f / kLog2e);
  r.extent_x = root(spread * cov_xx), r.extent_y = root(spread * cov_yy);
  return r;
}

// Whether a Gaussian can show at all, wherever it is on the screen.
template <class F>
GSA_FN auto can_show(const F& depth, const F& cov_xx, const F& cov_yy, const F& reach) {
  const auto in_front = less(splat(depth, kNear), depth);
  const auto small = both(less(cov_xx, splat(cov_xx, kVarianceMax)),
                          less(cov_yy, splat(cov_yy, kVarianceMax)));
  return both(both(in_front, small), less(splat(reach, 0.0f), reach));
}

// The tiles of `side` pixels, inclusive, that the box of an ellipse at (x, y) meets.
struct TileBox {
  int32_t left, right, top, bottom;
};

// False if no pixel centre of the picture is inside the box.
GSA_FN bool tile_box(float x, float y, float extent_x, float extent_y, int32_t width, int32_t height,
                     int32_t side, TileBox& box) {
  const float left = ceilf(x - extent_x - 0.5f), right = floorf(x + extent_x - 0.5f);
  const float top = ceilf(y - extent_y - 0.5f), bottom = floorf(y + extent_y - 0.5f);
  const float last_x = (float)(width - 1), last_y = (float)(height - 1);
  if (!(left <= last_x && right >= 0.0f && top <= last_y && bottom >= 0.0f)) return false;
  if (left > right || top > bottom) return false;
  box.left = (int32_t)larger(left, 0.0f) / side;
  box.right = (int32_t)smaller(right, last_x) / side;
  box.top = (int32_t)larger(top, 0.0f) / side;
  box.bottom = (int32_t)smaller(bottom, last_y) / side;
  return true;
}

template <class F>
struct Exponent {
  F xx, xy, yy;  // >= 0, any, >= 0
};

// Half the conic in units of log2: exp(-q/2) = 2^-P.
template <class F>
GSA_FN Exponent<F> exponent_of(const F& conic_xx, const F& conic_xy, const F& conic_yy) {
  return {conic_xx * (0.5f * kLog2e), conic_xy * kLog2e, conic_yy * (0.5f * kLog2e)};
}

template <class F, class G>
GSA_FN F exponent_at(const Exponent<G>& e, const F& dx, const F& dy) {
  return dx * (e.xx * dx + e.xy * dy) + e.yy * dy * dy;
}

// log2(alpha) = peak - P as a polynomial of the pixel instead of its distance from the mean: five
// multiply-adds with the pixel's own products, which are the same for all Gaussians. Keep the origin
// near the pixels: the terms are as large as P at the origin and cancel.
template <class F>
struct Falloff {
  F one, x, y, xx, xy, yy;
};

template <class F>
GSA_FN Falloff<F> falloff_of(const Exponent<F>& e, const F& mean_x, const F& mean_y,
                             const F& peak) {
  Falloff<F> f;
  f.x = 2.0f * e.xx * mean_x + e.xy * mean_y;
  f.y = 2.0f * e.yy * mean_y + e.xy * mean_x;
  f.one = peak - 0.5f * (f.x * mean_x + f.y * mean_y);
  f.xx = -e.xx, f.xy = -e.xy, f.yy = -e.yy;
  return f;
}

template <class F, class G>
GSA_FN F falloff_at(const Falloff<G>& f, const F& x, const F& y, const F& xx, const F& xy,
                    const F& yy) {
  F t = x * f.x + splat(x, f.one);
  t = y * f.y + t;
  t = xx * f.xx + t;
  t = xy * f.xy + t;
  return yy * f.yy + t;
}

template <class F>
GSA_FN F clamped(const F& value, const F& low, const F& high) {
  return smaller(larger(value, low), high);
}

// The smallest P over a box of pixel centres, given relative to the mean. A convex function's
// minimum over a box lies at the free minimum or on a side that faces it; a point of each of the two
// facing sides is tried, the best along that side.
template <class F, class G>
GSA_FN F least_exponent(const Exponent<G>& e, const G& slope_x, const G& slope_y, const F& x_low,
                        const F& x_high, const F& y_low, const F& y_high) {
  const F zero = splat(x_low, 0.0f);
  const F side_x = clamped(zero, x_low, x_high);
  const F side_y = clamped(zero, y_low, y_high);
  const F along_y = clamped(side_x * slope_y, y_low, y_high);
  const F along_x = clamped(side_y * slope_x, x_low, x_high);
  return smaller(exponent_at(e, side_x, along_y), exponent_at(e, along_x, side_y));
}

// Best dx per dy on a horizontal side and dy per dx on a vertical one.
template <class G>
GSA_FN G slope_along(const G& own, const G& mixed) {
  return -0.5f * mixed / own;
}

}  // namespace gsa
