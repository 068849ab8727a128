// Perspective projection of a 3D Gaussian to a screen-space one, and its derivative.
//
// EWA splatting (Zwicker et al. 2001, eq. 24-31): the camera's projection is replaced by its
// Jacobian J at the mean, so the screen covariance is J W S S^T W^T J^T with W the rotation of the
// camera and S = R(q) diag(s). We never form the 3x3 covariance: with A = J W R(q) diag(s) (2x3)
// the screen covariance is A A^T and, by Cauchy-Binet, its determinant is |a_0 x a_1|^2, which
// stays exact and non-negative for a disc seen edge on.
//
// The covariance is blurred by kScreenBlur and the opacity scaled by
// sqrt(det / det_blurred), so that a small Gaussian keeps its total weight (Yu et al. 2024, eq. 9).
#pragma once

#include "quaternion.h"

namespace gsa {

// Pinhole camera, OpenCV axes. `u` and `v` are x/z and y/z; their limits bound where the Jacobian
// is evaluated, because it grows without bound off screen.
struct View {
  float rotation[9], translation[3];
  float fx, fy, cx, cy;
  float u_min, u_max, v_min, v_max;
  int32_t width, height;
};

GSA_FN View make_view(const float* world_to_cam, const float* K, int32_t width, int32_t height) {
  View view;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) view.rotation[3 * i + j] = world_to_cam[4 * i + j];
    view.translation[i] = world_to_cam[4 * i + 3];
  }
  view.fx = K[0], view.fy = K[4], view.cx = K[2], view.cy = K[5];
  const float margin_x = 0.15f * (float)width, margin_y = 0.15f * (float)height;
  view.u_min = (-margin_x - view.cx) / view.fx;
  view.u_max = ((float)width + margin_x - view.cx) / view.fx;
  view.v_min = (-margin_y - view.cy) / view.fy;
  view.v_max = ((float)height + margin_y - view.cy) / view.fy;
  view.width = width, view.height = height;
  return view;
}

template <class F>
struct Gaussian3 {
  Vec3<F> mean;
  Quat<F> quat;  // any length
  Vec3<F> scale;
};

template <class F>
struct Gaussian2 {
  F x, y, depth;              // pixels, metres
  F conic_xx, conic_xy, conic_yy;  // inverse of the blurred covariance
  F cov_xx, cov_yy;           // its extent: blurred variances
  F compensation;             // factor on the opacity
};

// What the derivative needs again.
template <class F>
struct ProjectionParts {
  Vec3<F> cam;                   // mean in the camera frame
  F inverse_z, u, v;             // u, v after the limits
  F u_free, v_free;              // 1 where the limits do not act
  Quat<F> unit;
  F inverse_length;
  Mat3<F> turn;                  // R(q)
  Vec3<F> plane_0, plane_1;      // W_0 - u W_2 and W_1 - v W_2: rows of J W over f/z
  Vec3<F> jw_0, jw_1;            // rows of J W
  Vec3<F> b_0, b_1;              // rows of J W R
  Vec3<F> a_0, a_1;              // rows of J W R diag(s)
  Vec3<F> normal;                // a_0 x a_1
  F inverse_det;                 // of the blurred covariance
};

template <class F, class G>
GSA_FN Vec3<F> row_times(const Vec3<F>& row, const Mat3<G>& m) {
  return {row.x * m.row[0].x + row.y * m.row[1].x + row.z * m.row[2].x,
          row.x * m.row[0].y + row.y * m.row[1].y + row.z * m.row[2].y,
          row.x * m.row[0].z + row.y * m.row[1].z + row.z * m.row[2].z};
}

template <class F>
GSA_FN Gaussian2<F> project(const View& view, const Gaussian3<F>& g, ProjectionParts<F>& p) {
  const float* w = view.rotation;
  const Vec3<F>& m = g.mean;
  p.cam = {w[0] * m.x + w[1] * m.y + w[2] * m.z + view.translation[0],
           w[3] * m.x + w[4] * m.y + w[5] * m.z + view.translation[1],
           w[6] * m.x + w[7] * m.y + w[8] * m.z + view.translation[2]};
  const F near = splat(p.cam.z, kNear);
  p.inverse_z = reciprocal(larger(p.cam.z, near));  // behind the camera is culled by the caller
  const F u = p.cam.x * p.inverse_z, v = p.cam.y * p.inverse_z;
  p.u = smaller(larger(u, splat(u, view.u_min)), splat(u, view.u_max));
  p.v = smaller(larger(v, splat(v, view.v_min)), splat(v, view.v_max));
  const F one = splat(u, 1.0f);
  p.u_free = zero_unless(both(less_equal(p.u, u), less_equal(u, p.u)), one);
  p.v_free = zero_unless(both(less_equal(p.v, v), less_equal(v, p.v)), one);

  p.inverse_length = inverse_length(g.quat);
  p.unit = {g.quat.w * p.inverse_length, g.quat.x * p.inverse_length,
            g.quat.y * p.inverse_length, g.quat.z * p.inverse_length};
  p.turn = rotation(p.unit);
  p.plane_0 = {w[0] - p.u * w[6], w[1] - p.u * w[7], w[2] - p.u * w[8]};
  p.plane_1 = {w[3] - p.v * w[6], w[4] - p.v * w[7], w[5] - p.v * w[8]};
  p.jw_0 = scaled(p.plane_0, view.fx * p.inverse_z);
  p.jw_1 = scaled(p.plane_1, view.fy * p.inverse_z);
  p.b_0 = row_times(p.jw_0, p.turn);
  p.b_1 = row_times(p.jw_1, p.turn);
  p.a_0 = {p.b_0.x * g.scale.x, p.b_0.y * g.scale.y, p.b_0.z * g.scale.z};
  p.a_1 = {p.b_1.x * g.scale.x, p.b_1.y * g.scale.y, p.b_1.z * g.scale.z};
  p.normal = cross(p.a_0, p.a_1);

  const F xx = dot(p.a_0, p.a_0), xy = dot(p.a_0, p.a_1), yy = dot(p.a_1, p.a_1);
  const F det = dot(p.normal, p.normal);
  const F det_blurred = det + kScreenBlur * (xx + yy) + kScreenBlur * kScreenBlur;
  p.inverse_det = reciprocal(det_blurred);
  Gaussian2<F> out;
  out.x = view.fx * u + view.cx;
  out.y = view.fy * v + view.cy;
  out.depth = p.cam.z;
  out.cov_xx = xx + kScreenBlur;
  out.cov_yy = yy + kScreenBlur;
  out.conic_xx = out.cov_yy * p.inverse_det;
  out.conic_xy = -xy * p.inverse_det;
  out.conic_yy = out.cov_xx * p.inverse_det;
  out.compensation = root(det * p.inverse_det);
  return out;
}

// Gradient that arrives at a screen-space Gaussian. `moment` is the matrix of which half is minus
// the gradient of the conic: sum over pixels of dL/dpower * d d^T with d = pixel - mean.
template <class F>
struct Gaussian2Grad {
  F x, y, depth;
  F moment_xx, moment_xy, moment_yy;
  F compensation;
};

// Sums over a Gaussian's pixels, from which everything else follows. d = pixel - mean, g = dL/dpower;
// colour and depth are weighted by the pixel's share.
enum Moment { kG, kGx, kGy, kGxx, kGxy, kGyy, kRed, kGreen, kBlue, kDepth };

// power = - d^T conic d / 2, so v_mean = conic sum(g d); alpha = o c exp(power) with o the opacity and
// c the compensation, so v_(o c) = sum(g) / (o c), none where o c is cut off.
template <class F>
GSA_FN Gaussian2Grad<F> screen_bwd(const Gaussian2<F>& out, const F& opacity, const F* sum,
                                   F& v_opacity) {
  const F tiny = splat(opacity, 1e-12f);
  const F g = zero_unless(less(opacity * out.compensation, splat(opacity, kOpacityMax)), sum[kG]);
  v_opacity = g * reciprocal(larger(opacity, tiny));
  Gaussian2Grad<F> v;
  v.x = out.conic_xx * sum[kGx] + out.conic_xy * sum[kGy];
  v.y = out.conic_xy * sum[kGx] + out.conic_yy * sum[kGy];
  v.depth = sum[kDepth];
  v.moment_xx = sum[kGxx], v.moment_xy = sum[kGxy], v.moment_yy = sum[kGyy];
  v.compensation = g * reciprocal(larger(out.compensation, tiny));
  return v;
}

template <class F>
struct Gaussian3Grad {
  Vec3<F> mean;
  Quat<F> quat;
  Vec3<F> scale;
};

// Sums over Gaussians; rotation row-major.
template <class F>
struct ViewGrad {
  Vec3<F> rotation[3], translation;
  F fx, fy, cx, cy;
};

// Derivative of `project`, in reverse order; `v` names the gradient of what follows it.
template <class F>
GSA_FN Gaussian3Grad<F> project_bwd(const View& view, const Gaussian3<F>& g,
                                    const Gaussian2<F>& out, const ProjectionParts<F>& p,
                                    const Gaussian2Grad<F>& v, ViewGrad<F>& camera) {
  // conic = cov^-1, so v_cov = - conic v_conic conic (Petersen & Pedersen 2012, eq. 59), and
  // v_conic = - moment / 2.
  const F ca = out.conic_xx, cb = out.conic_xy, cc = out.conic_yy;
  const F h_xx = v.moment_xx * ca + v.moment_xy * cb, h_xy = v.moment_xx * cb + v.moment_xy * cc;
  const F h_yx = v.moment_xy * ca + v.moment_yy * cb, h_yy = v.moment_xy * cb + v.moment_yy * cc;
  // compensation = |normal| det_blurred^-1/2, and d det = det tr(cov^-1 d cov) (ibid., eq. 46).
  const F shrink = v.compensation * out.compensation;
  const F v_xx = 0.5f * (ca * h_xx + cb * h_yx - shrink * ca);
  const F v_xy = 0.5f * (ca * h_xy + cb * h_yy - shrink * cb);
  const F v_yy = 0.5f * (cb * h_xy + cc * h_yy - shrink * cc);
  const F length_squared = dot(p.normal, p.normal);
  const F per_normal = shrink * reciprocal(larger(length_squared, splat(length_squared, 1e-20f)));
  const Vec3<F> v_normal = scaled(p.normal, per_normal);
  const Vec3<F> turn_0 = cross(p.a_1, v_normal), turn_1 = cross(v_normal, p.a_0);
  // cov = A A^T
  const Vec3<F> v_a0 = {2.0f * (v_xx * p.a_0.x + v_xy * p.a_1.x) + turn_0.x,
                        2.0f * (v_xx * p.a_0.y + v_xy * p.a_1.y) + turn_0.y,
                        2.0f * (v_xx * p.a_0.z + v_xy * p.a_1.z) + turn_0.z};
  const Vec3<F> v_a1 = {2.0f * (v_xy * p.a_0.x + v_yy * p.a_1.x) + turn_1.x,
                        2.0f * (v_xy * p.a_0.y + v_yy * p.a_1.y) + turn_1.y,
                        2.0f * (v_xy * p.a_0.z + v_yy * p.a_1.z) + turn_1.z};
  Gaussian3Grad<F> grad;
  grad.scale = {v_a0.x * p.b_0.x + v_a1.x * p.b_1.x, v_a0.y * p.b_0.y + v_a1.y * p.b_1.y,
                v_a0.z * p.b_0.z + v_a1.z * p.b_1.z};
  const Vec3<F> v_b0 = {v_a0.x * g.scale.x, v_a0.y * g.scale.y, v_a0.z * g.scale.z};
  const Vec3<F> v_b1 = {v_a1.x * g.scale.x, v_a1.y * g.scale.y, v_a1.z * g.scale.z};
  Mat3<F> v_turn;
  v_turn.row[0] = scaled(v_b0, p.jw_0.x);
  v_turn.row[1] = scaled(v_b0, p.jw_0.y);
  v_turn.row[2] = scaled(v_b0, p.jw_0.z);
  accumulate(v_turn.row[0], scaled(v_b1, p.jw_1.x));
  accumulate(v_turn.row[1], scaled(v_b1, p.jw_1.y));
  accumulate(v_turn.row[2], scaled(v_b1, p.jw_1.z));
  grad.quat = rotation_bwd(p.unit, p.inverse_length, v_turn);
  const Vec3<F> v_jw0 = {dot(v_b0, p.turn.row[0]), dot(v_b0, p.turn.row[1]),
                         dot(v_b0, p.turn.row[2])};
  const Vec3<F> v_jw1 = {dot(v_b1, p.turn.row[0]), dot(v_b1, p.turn.row[1]),
                         dot(v_b1, p.turn.row[2])};
  // J W = (f / z) (W_0 - u W_2), and the mean at f u + c
  const float* w = view.rotation;
  const Vec3<float> w_2 = {w[6], w[7], w[8]};
  const F per_x = view.fx * p.inverse_z, per_y = view.fy * p.inverse_z;
  const F v_per_x = dot(v_jw0, p.plane_0), v_per_y = dot(v_jw1, p.plane_1);
  const Vec3<F> v_plane0 = scaled(v_jw0, per_x), v_plane1 = scaled(v_jw1, per_y);
  const F v_u = v.x * view.fx - p.u_free * dot(v_plane0, w_2);
  const F v_v = v.y * view.fy - p.v_free * dot(v_plane1, w_2);
  const F v_inverse_z =
      v_per_x * view.fx + v_per_y * view.fy + v_u * p.cam.x + v_v * p.cam.y;
  const Vec3<F> v_cam = {v_u * p.inverse_z, v_v * p.inverse_z,
                         v.depth - v_inverse_z * p.inverse_z * p.inverse_z};
  grad.mean = {w[0] * v_cam.x + w[3] * v_cam.y + w[6] * v_cam.z,
               w[1] * v_cam.x + w[4] * v_cam.y + w[7] * v_cam.z,
               w[2] * v_cam.x + w[5] * v_cam.y + w[8] * v_cam.z};
  accumulate(camera.rotation[0], v_plane0);
  accumulate(camera.rotation[1], v_plane1);
  accumulate(camera.rotation[2], scaled(v_plane0, -p.u));
  accumulate(camera.rotation[2], scaled(v_plane1, -p.v));
  accumulate(camera.rotation[0], scaled(g.mean, v_cam.x));
  accumulate(camera.rotation[1], scaled(g.mean, v_cam.y));
  accumulate(camera.rotation[2], scaled(g.mean, v_cam.z));
  accumulate(camera.translation, v_cam);
  camera.fx = camera.fx + v_per_x * p.inverse_z + v.x * p.cam.x * p.inverse_z;
  camera.fy = camera.fy + v_per_y * p.inverse_z + v.y * p.cam.y * p.inverse_z;
  camera.cx = camera.cx + v.x;
  camera.cy = camera.cy + v.y;
  return grad;
}

}  // namespace gsa
