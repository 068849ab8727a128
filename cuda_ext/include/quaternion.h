// Rotation matrix of a quaternion of any length, and its derivative.
#pragma once

#include "scalar.h"

namespace gsa {

template <class F>
struct Quat {
  F w, x, y, z;
};

template <class F>
struct Mat3 {
  Vec3<F> row[3];
};

// 1 / |q|, finite for a zero quaternion (whose rotation is then the identity).
template <class F>
GSA_FN F inverse_length(const Quat<F>& q) {
  const F squared = q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z;
  return reciprocal(root(larger(squared, splat(squared, 1e-24f))));
}

// R(q) for a unit quaternion (Diebel 2006, eq. 125).
template <class F>
GSA_FN Mat3<F> rotation(const Quat<F>& q) {
  Mat3<F> r;
  r.row[0] = {1.0f - 2.0f * (q.y * q.y + q.z * q.z), 2.0f * (q.x * q.y - q.w * q.z),
              2.0f * (q.x * q.z + q.w * q.y)};
  r.row[1] = {2.0f * (q.x * q.y + q.w * q.z), 1.0f - 2.0f * (q.x * q.x + q.z * q.z),
              2.0f * (q.y * q.z - q.w * q.x)};
  r.row[2] = {2.0f * (q.x * q.z - q.w * q.y), 2.0f * (q.y * q.z + q.w * q.x),
              1.0f - 2.0f * (q.x * q.x + q.y * q.y)};
  return r;
}

// Gradient of the unnormalised quaternion: d R / d q of the matrix above, then through q / |q|,
// which removes the part along q and divides by the length.
template <class F>
GSA_FN Quat<F> rotation_bwd(const Quat<F>& unit, const F& inverse, const Mat3<F>& v) {
  const Vec3<F>&a = v.row[0], &b = v.row[1], &c = v.row[2];
  Quat<F> g;
  g.w = 2.0f * (unit.x * (c.y - b.z) + unit.y * (a.z - c.x) + unit.z * (b.x - a.y));
  g.x = 2.0f * (unit.y * (b.x + a.y) + unit.z * (c.x + a.z) + unit.w * (c.y - b.z) -
                2.0f * unit.x * (b.y + c.z));
  g.y = 2.0f * (unit.x * (b.x + a.y) + unit.z * (c.y + b.z) + unit.w * (a.z - c.x) -
                2.0f * unit.y * (a.x + c.z));
  g.z = 2.0f * (unit.x * (c.x + a.z) + unit.y * (c.y + b.z) + unit.w * (b.x - a.y) -
                2.0f * unit.z * (a.x + b.y));
  const F along = g.w * unit.w + g.x * unit.x + g.y * unit.y + g.z * unit.z;
  return {(g.w - along * unit.w) * inverse, (g.x - along * unit.x) * inverse,
          (g.y - along * unit.y) * inverse, (g.z - along * unit.z) * inverse};
}

}  // namespace gsa
