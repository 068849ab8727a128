// A Gaussian that takes its share of a rigid motion, and the derivative.
//
// With R the rotation, p its unit quaternion (real part not negative), t the shift and w the share:
// mean + w (R mean + t - mean), and n(1 + w (p - 1)) (x) quat, where n(.) has unit length: linear
// interpolation of the turn, within 0.1 degree of the spherical one for the turns a neck makes.
#pragma once

#include "blend.h"

namespace gsa {

struct Rigid {
  Mat3<float> rotation;
  Quat<float> turn;  // unit
  Vec3<float> shift;
  float inverse_length;  // of the quaternion given, negative if its sign was turned
};

GSA_FN Rigid make_rigid(const float* turn, const float* shift) {
  Rigid r;
  const Quat<float> given = {turn[0], turn[1], turn[2], turn[3]};
  r.inverse_length = inverse_length(given) * (given.w < 0.0f ? -1.0f : 1.0f);
  r.turn = {given.w * r.inverse_length, given.x * r.inverse_length, given.y * r.inverse_length,
            given.z * r.inverse_length};
  r.rotation = rotation(r.turn);
  r.shift = {shift[0], shift[1], shift[2]};
  return r;
}

// Where the whole motion would take a point, minus the point.
template <class F>
GSA_FN Vec3<F> way_of(const Rigid& r, const Vec3<F>& m) {
  return {dot(m, r.rotation.row[0]) + r.shift.x - m.x, dot(m, r.rotation.row[1]) + r.shift.y - m.y,
          dot(m, r.rotation.row[2]) + r.shift.z - m.z};
}

// The share of the turn, of unit length; `inverse` is 1 over its length before.
template <class F>
GSA_FN Quat<F> part_of_turn(const Rigid& r, const F& share, F& inverse) {
  const Quat<F> part = {share * (r.turn.w - 1.0f) + 1.0f, share * r.turn.x, share * r.turn.y,
                        share * r.turn.z};
  inverse = inverse_length(part);
  return {part.w * inverse, part.x * inverse, part.y * inverse, part.z * inverse};
}

template <class F>
GSA_FN void posed(const Rigid& r, const F& share, Vec3<F>& mean, Quat<F>& quat) {
  accumulate(mean, scaled(way_of(r, mean), share));
  F inverse;
  quat = product(part_of_turn(r, share, inverse), quat);
}

// Gradients that a Gaussian leaves for the motion they share; to be summed.
template <class F>
struct RigidGrad {
  Vec3<F> rotation[3], shift;
  Quat<F> turn;
};

// Gradients of mean, quat and share. `v_mean` and `v_quat` come in for the posed Gaussian and leave
// for the Gaussian given.
template <class F>
GSA_FN F posed_bwd(const Rigid& r, const F& share, const Vec3<F>& mean, const Quat<F>& quat,
                   Vec3<F>& v_mean, Quat<F>& v_quat, RigidGrad<F>& v) {
  const Vec3<F> moved = scaled(v_mean, share);
  F v_share = dot(way_of(r, mean), v_mean);
  v.rotation[0] = scaled(mean, moved.x);
  v.rotation[1] = scaled(mean, moved.y);
  v.rotation[2] = scaled(mean, moved.z);
  v.shift = moved;
  const Mat3<float>& m = r.rotation;
  v_mean.x = v_mean.x - moved.x + m.row[0].x * moved.x + m.row[1].x * moved.y + m.row[2].x * moved.z;
  v_mean.y = v_mean.y - moved.y + m.row[0].y * moved.x + m.row[1].y * moved.y + m.row[2].y * moved.z;
  v_mean.z = v_mean.z - moved.z + m.row[0].z * moved.x + m.row[1].z * moved.y + m.row[2].z * moved.z;

  F inverse;
  const Quat<F> part = part_of_turn(r, share, inverse);
  const Quat<F> v_part = product(v_quat, conjugate(quat));
  v_quat = product(conjugate(part), v_quat);
  // through the normalisation, which removes what lies along the quaternion
  const F along = v_part.w * part.w + v_part.x * part.x + v_part.y * part.y + v_part.z * part.z;
  const Quat<F> across = {(v_part.w - along * part.w) * inverse, (v_part.x - along * part.x) * inverse,
                          (v_part.y - along * part.y) * inverse, (v_part.z - along * part.z) * inverse};
  v_share = v_share + across.w * (r.turn.w - 1.0f) + across.x * r.turn.x + across.y * r.turn.y +
            across.z * r.turn.z;
  v.turn = {across.w * share, across.x * share, across.y * share, across.z * share};
  return v_share;
}

// Gradient of the quaternion given to make_rigid, by the sums over all Gaussians.
GSA_FN Quat<float> make_rigid_bwd(const Rigid& r, const RigidGrad<float>& v) {
  Mat3<float> turn;
  for (int i = 0; i < 3; ++i) turn.row[i] = v.rotation[i];
  Quat<float> g = rotation_bwd(r.turn, r.inverse_length, turn);
  const float along =
      v.turn.w * r.turn.w + v.turn.x * r.turn.x + v.turn.y * r.turn.y + v.turn.z * r.turn.z;
  g.w += (v.turn.w - along * r.turn.w) * r.inverse_length;
  g.x += (v.turn.x - along * r.turn.x) * r.inverse_length;
  g.y += (v.turn.y - along * r.turn.y) * r.inverse_length;
  g.z += (v.turn.z - along * r.turn.z) * r.inverse_length;
  return g;
}

// The gradients of turn [4] and shift [3] out of the sums of RigidGrad's fields in their order.
GSA_FN void rigid_sums_bwd(const Rigid& r, const double* sum, float* v_turn, float* v_shift) {
  RigidGrad<float> v;
  for (int i = 0; i < 3; ++i)
    v.rotation[i] = {(float)sum[3 * i], (float)sum[3 * i + 1], (float)sum[3 * i + 2]};
  for (int i = 0; i < 3; ++i) v_shift[i] = (float)sum[9 + i];
  v.turn = {(float)sum[12], (float)sum[13], (float)sum[14], (float)sum[15]};
  const Quat<float> g = make_rigid_bwd(r, v);
  v_turn[0] = g.w, v_turn[1] = g.x, v_turn[2] = g.y, v_turn[3] = g.z;
}

}  // namespace gsa
