// A Gaussian of a moving part (abi.h) where it is drawn: blend.h, limits of the scales, pose.h.
#pragma once

#include "abi.h"
#include "pose.h"

namespace gsa {

template <class F>
GSA_FN Gaussian3<F> placed(const gsa_part& part, const Rigid& rigid, const F& share,
                           const Gaussian3<F>& at_rest, const Offset<F>& offset) {
  Gaussian3<F> g = moved(at_rest, offset, part.motion.mean_unit);
  // in this order a NaN stays one
  const F least = splat(share, part.scale_min), most = splat(share, part.scale_max);
  g.scale = {smaller(most, larger(least, g.scale.x)), smaller(most, larger(least, g.scale.y)),
             smaller(most, larger(least, g.scale.z))};
  if (part.pose.turn) posed(rigid, share, g.mean, g.quat);
  return g;
}

// From where the camera stands to a placed Gaussian, in the frame of its harmonics.
template <class F>
GSA_FN Vec3<F> seen_from(const gsa_part& part, const Rigid& rigid, const Vec3<float>& centre,
                         const Vec3<F>& mean) {
  const Vec3<F> offset = {mean.x - centre.x, mean.y - centre.y, mean.z - centre.z};
  return part.turns_sh && part.pose.turn ? row_times(offset, rigid.rotation) : offset;
}

GSA_FN Rigid rigid_of(const gsa_part& part) {
  return part.pose.turn ? make_rigid(part.pose.turn, part.pose.shift) : Rigid{};
}

}  // namespace gsa
