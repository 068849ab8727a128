// A Gaussian moved by linear offsets, and the derivative.
//
// offset = sum_k c_k B_k has nine numbers: displacement d (in units of `mean_unit`), rotation vector
// r and logarithm l of the stretch. mean + d, exp(r) (x) quat, scale exp(l).
#pragma once

#include "projection.h"

namespace gsa {

constexpr int kOffsets = 9;

// cos(sqrt(u)), sin(sqrt(u)) / sqrt(u) and the derivative of the latter: power series in u, which
// need no case for u = 0. Error below 2e-6 for u <= pi^2, that is rotation vectors up to 2 pi.
template <class F>
struct HalfTurn {
  F cosine, sine, sine_slope;
};

template <class F>
GSA_FN HalfTurn<F> half_turn(const F& u) {
  // (-1)^k / (2k)! and (-1)^k / (2k + 1)!, highest first
  const float c[11] = {4.1103176e-19f, -1.5619207e-16f, 4.7794773e-14f, -1.1470746e-11f,
                       2.0876757e-9f,  -2.7557319e-7f,  2.4801587e-5f,  -1.3888889e-3f,
                       4.1666667e-2f,  -0.5f,           1.0f};
  const float s[11] = {1.9572941e-20f, -8.2206352e-18f, 2.8114573e-15f, -7.6471637e-13f,
                       1.6059044e-10f, -2.5052108e-8f,  2.7557319e-6f,  -1.9841270e-4f,
                       8.3333333e-3f,  -0.16666667f,    1.0f};
  HalfTurn<F> t;
  t.cosine = splat(u, c[0]);
  t.sine = splat(u, s[0]);
  t.sine_slope = splat(u, 0.0f);
  for (int i = 1; i < 11; ++i) {
    t.sine_slope = t.sine_slope * u + t.sine;
    t.cosine = t.cosine * u + splat(u, c[i]);
    t.sine = t.sine * u + splat(u, s[i]);
  }
  return t;
}

template <class F>
GSA_FN Quat<F> product(const Quat<F>& a, const Quat<F>& b) {
  return {a.w * b.w - a.x * b.x - a.y * b.y - a.z * b.z,
          a.w * b.x + a.x * b.w + a.y * b.z - a.z * b.y,
          a.w * b.y - a.x * b.z + a.y * b.w + a.z * b.x,
          a.w * b.z + a.x * b.y - a.y * b.x + a.z * b.w};
}

template <class F>
GSA_FN Quat<F> conjugate(const Quat<F>& q) {
  return {q.w, -q.x, -q.y, -q.z};
}

// exp(a), at most 2^127.
template <class F>
GSA_FN F natural_exp(const F& a) {
  return power_of_two(smaller(splat(a, 127.0f), a * kLog2e));
}

template <class F>
struct Offset {
  Vec3<F> displacement, turn, stretch;
};

template <class F>
GSA_FN Quat<F> turn_of(const Vec3<F>& r, HalfTurn<F>& half) {
  half = half_turn(0.25f * dot(r, r));
  const F scale = 0.5f * half.sine;
  return {half.cosine, r.x * scale, r.y * scale, r.z * scale};
}

template <class F>
GSA_FN Gaussian3<F> moved(const Gaussian3<F>& g, const Offset<F>& o, float mean_unit) {
  HalfTurn<F> half;
  Gaussian3<F> out;
  out.mean = {g.mean.x + o.displacement.x * mean_unit, g.mean.y + o.displacement.y * mean_unit,
              g.mean.z + o.displacement.z * mean_unit};
  out.quat = product(turn_of(o.turn, half), g.quat);
  out.scale = {g.scale.x * natural_exp(o.stretch.x), g.scale.y * natural_exp(o.stretch.y),
               g.scale.z * natural_exp(o.stretch.z)};
  return out;
}

// Gradients of the Gaussian and of its offset. The product of quaternions is orthogonal in each
// factor: v_a = v (x) conj(b), v_b = conj(a) (x) v.
template <class F>
GSA_FN Gaussian3Grad<F> moved_bwd(const Gaussian3<F>& g, const Offset<F>& o, float mean_unit,
                                  const Gaussian3Grad<F>& v, Offset<F>& v_offset) {
  HalfTurn<F> half;
  const Quat<F> turn = turn_of(o.turn, half);
  Gaussian3Grad<F> grad;
  grad.mean = v.mean;
  v_offset.displacement = scaled(v.mean, mean_unit);
  grad.quat = product(conjugate(turn), v.quat);
  const Quat<F> v_turn = product(v.quat, conjugate(g.quat));
  const Vec3<F> axis = {v_turn.x, v_turn.y, v_turn.z};
  const F v_u = 0.5f * (half.sine_slope * dot(axis, o.turn) - v_turn.w * half.sine);
  const F along = 0.5f * v_u, across = 0.5f * half.sine;
  v_offset.turn = {across * axis.x + along * o.turn.x, across * axis.y + along * o.turn.y,
                   across * axis.z + along * o.turn.z};
  const Vec3<F> stretch = {natural_exp(o.stretch.x), natural_exp(o.stretch.y),
                           natural_exp(o.stretch.z)};
  grad.scale = {v.scale.x * stretch.x, v.scale.y * stretch.y, v.scale.z * stretch.z};
  v_offset.stretch = {grad.scale.x * g.scale.x, grad.scale.y * g.scale.y, grad.scale.z * g.scale.z};
  return grad;
}

}  // namespace gsa
