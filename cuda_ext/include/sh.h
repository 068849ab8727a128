// Colour seen from a direction: real spherical harmonics of degree 0 to 3, and the derivative.
//
// Basis in Cartesian form (Sloan 2013, "Efficient spherical harmonic evaluation", appendix A2), with
// the signs of Kerbl et al. 2023: band l starts at term l^2, m from -l to l. The colour is
// max(0, 1/2 + sum_s Y_s(d) c_s) with d the unit vector from the camera's centre to the Gaussian.
#pragma once

#include "scalar.h"

namespace gsa {

constexpr int kShTerms = 16;
constexpr float kSh0 = 0.28209479f, kSh1 = 0.48860251f;
// one by one: device code cannot read the elements of a constant array
constexpr float kSh2a = 1.0925484f, kSh2b = 0.31539157f, kSh2c = 0.54627421f;
constexpr float kSh3a = 0.59004359f, kSh3b = 2.8906114f, kSh3c = 0.45704580f;
constexpr float kSh3d = 0.37317633f, kSh3e = 1.4453057f;

// The first `terms` (1, 4, 9 or 16) values of the basis at a unit direction.
template <class F>
GSA_FN void sh_basis(int terms, const Vec3<F>& d, F* y) {
  y[0] = splat(d.x, kSh0);
  if (terms < 4) return;
  y[1] = d.y * -kSh1, y[2] = d.z * kSh1, y[3] = d.x * -kSh1;
  if (terms < 9) return;
  const F xx = d.x * d.x, yy = d.y * d.y, zz = d.z * d.z;
  const F xy = d.x * d.y, yz = d.y * d.z, xz = d.x * d.z;
  y[4] = xy * kSh2a, y[5] = yz * -kSh2a;
  y[6] = (2.0f * zz - xx - yy) * kSh2b;
  y[7] = xz * -kSh2a, y[8] = (xx - yy) * kSh2c;
  if (terms < 16) return;
  y[9] = d.y * (3.0f * xx - yy) * -kSh3a;
  y[10] = xy * d.z * kSh3b;
  y[11] = d.y * (4.0f * zz - xx - yy) * -kSh3c;
  y[12] = d.z * (2.0f * zz - 3.0f * xx - 3.0f * yy) * kSh3d;
  y[13] = d.x * (4.0f * zz - xx - yy) * -kSh3c;
  y[14] = d.z * (xx - yy) * kSh3e;
  y[15] = d.x * (xx - 3.0f * yy) * -kSh3a;
}

// sum_s v[s] dY_s / dd, with the components of d free.
template <class F>
GSA_FN Vec3<F> sh_basis_bwd(int terms, const Vec3<F>& d, const F* v) {
  const F zero = splat(d.x, 0.0f);
  Vec3<F> g = {zero, zero, zero};
  if (terms < 4) return g;
  g = {v[3] * -kSh1, v[1] * -kSh1, v[2] * kSh1};
  if (terms < 9) return g;
  const F v4 = v[4] * kSh2a, v5 = v[5] * -kSh2a, v6 = v[6] * (2.0f * kSh2b);
  const F v7 = v[7] * -kSh2a, v8 = v[8] * (2.0f * kSh2c);
  accumulate(g, Vec3<F>{v4 * d.y + v7 * d.z + (v8 - v6) * d.x,
                        v4 * d.x + v5 * d.z - (v8 + v6) * d.y,
                        v5 * d.y + v7 * d.x + 2.0f * v6 * d.z});
  if (terms < 16) return g;
  const F xx = d.x * d.x, yy = d.y * d.y, zz = d.z * d.z;
  const F xy = d.x * d.y, yz = d.y * d.z, xz = d.x * d.z;
  const F v9 = v[9] * -kSh3a, v10 = v[10] * kSh3b, v11 = v[11] * -kSh3c;
  const F v12 = v[12] * kSh3d, v13 = v[13] * -kSh3c, v14 = v[14] * kSh3e;
  const F v15 = v[15] * -kSh3a;
  accumulate(g, Vec3<F>{6.0f * v9 * xy + v10 * yz - 2.0f * v11 * xy - 6.0f * v12 * xz +
                            v13 * (4.0f * zz - 3.0f * xx - yy) + 2.0f * v14 * xz +
                            3.0f * v15 * (xx - yy),
                        3.0f * v9 * (xx - yy) + v10 * xz + v11 * (4.0f * zz - xx - 3.0f * yy) -
                            6.0f * v12 * yz - 2.0f * v13 * xy - 2.0f * v14 * yz -
                            6.0f * v15 * xy,
                        v10 * xy + 8.0f * v11 * yz + 3.0f * v12 * (2.0f * zz - xx - yy) +
                            8.0f * v13 * xz + v14 * (xx - yy)});
  return g;
}

// d = o / |o|, with 1 / |o| kept; finite for o = 0.
template <class F>
GSA_FN Vec3<F> direction_of(const Vec3<F>& offset, F& inverse) {
  const F squared = dot(offset, offset);
  inverse = reciprocal(root(larger(squared, splat(squared, 1e-24f))));
  return scaled(offset, inverse);
}

// Where a camera stands in the world.
GSA_FN Vec3<float> centre_of(const float* world_to_cam) {
  const float *w = world_to_cam, x = w[3], y = w[7], z = w[11];
  return {-(w[0] * x + w[4] * y + w[8] * z), -(w[1] * x + w[5] * y + w[9] * z),
          -(w[2] * x + w[6] * y + w[10] * z)};
}

// Gradient of the offset: the part of v along d is lost, the rest divided by the length.
template <class F>
GSA_FN Vec3<F> direction_bwd(const Vec3<F>& d, const F& inverse, const Vec3<F>& v) {
  const F along = dot(d, v);
  return {(v.x - along * d.x) * inverse, (v.y - along * d.y) * inverse,
          (v.z - along * d.z) * inverse};
}

}  // namespace gsa
