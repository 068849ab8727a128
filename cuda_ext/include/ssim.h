// Structural similarity of two windows, and its derivative by the statistics of the first.
//
// Wang et al. 2004, eq. 13: S = (2 m_a m_b + C1)(2 s_ab + C2) / ((m_a^2 + m_b^2 + C1)(s_a + s_b + C2))
// with s_a = E[a^2] - m_a^2 and so on, E the Gaussian window. a and b enter the variances only as a
// sum, so four blurred planes are enough: m_a, m_b, E[a^2 + b^2], E[a b].
#pragma once

#include "scalar.h"

namespace gsa {

constexpr int kSsimRadius = 5;
constexpr float kSsimC1 = 0.01f * 0.01f, kSsimC2 = 0.03f * 0.03f;
constexpr int kSsimTaps = 2 * kSsimRadius + 1;

// In a struct, because device code may copy a constant of the host but not point into it.
struct SsimWindow {
  float tap[kSsimTaps];
};
// exp(-k^2 / (2 * 1.5^2)), normalised over -5..5
constexpr SsimWindow kSsimWindow = {
    {0.0010283801f, 0.0075987581f, 0.0360007721f, 0.1093606895f, 0.2130055377f, 0.2660117249f,
     0.2130055377f, 0.1093606895f, 0.0360007721f, 0.0075987581f, 0.0010283801f}};

// What is blurred of two pictures: a, b, a^2 + b^2, a b.
template <class F>
GSA_FN void moments(const F& a, const F& b, F (&out)[4]) {
  out[0] = a, out[1] = b, out[2] = a * a + b * b, out[3] = a * b;
}

template <class F>
struct Similarity {
  F value;
  F by_mean, by_square, by_product;  // d value / d m_a, / d E[a^2], / d E[a b]
};

template <class F>
GSA_FN Similarity<F> similarity(const F& mean_a, const F& mean_b, const F& squares,
                                const F& product) {
  const F both_means = mean_a * mean_b, square_means = mean_a * mean_a + mean_b * mean_b;
  const F light = 2.0f * both_means + kSsimC1, shape = 2.0f * (product - both_means) + kSsimC2;
  const F light_norm = square_means + kSsimC1, shape_norm = (squares - square_means) + kSsimC2;
  const F per_light = reciprocal(light_norm), per_shape = reciprocal(shape_norm);
  const F scale = per_light * per_shape;
  Similarity<F> s;
  s.value = light * shape * scale;
  s.by_product = 2.0f * light * scale;
  s.by_square = -s.value * per_shape;
  s.by_mean = 2.0f * (mean_b * (shape - light) * scale + mean_a * s.value * (per_shape - per_light));
  return s;
}

// Derivative by a pixel of the first picture, from those of `similarity` blurred around it: a window
// that is symmetric is its own adjoint.
template <class F>
GSA_FN F similarity_bwd(const F& a, const F& b, const F& by_mean, const F& by_square,
                        const F& by_product) {
  return by_mean + 2.0f * a * by_square + b * by_product;
}

// What turns the sum over three channels into the mean, by the sum of the mask; an empty one gives 0.
GSA_FN double mean_scale(double weight) { return 1.0 / (3.0 * (weight > 1e-12 ? weight : 1e-12)); }

}  // namespace gsa
