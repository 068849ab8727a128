// Between arrays of structs in memory and one vector per field.
#pragma once

#include "simd.h"
// simd.h first: see scalar.h
#include "abi.h"
#include "projection.h"
#include "weave.h"

namespace gsa {

constexpr int kChunk = 256;  // Gaussians per unit of parallel work, a multiple of every GSA_LANES

// Lane l gets p[l * stride] for l < used, else `rest`.
inline vf load_strided(const float* p, int stride, int used, float rest) {
  float lane[GSA_LANES];
  for (int l = 0; l < GSA_LANES; ++l) lane[l] = l < used ? p[l * stride] : rest;
  return load(lane);
}

inline void store_strided(float* p, int stride, int used, vf v) {
  float lane[GSA_LANES];
  store(lane, v);
  for (int l = 0; l < used; ++l) p[l * stride] = lane[l];
}

// Structs of three floats in a row, and of four.
inline Vec3<vf> load_three(const float* p, int used, float rest) {
#if GSA_LANES == 16
  if (used == GSA_LANES) {
    Vec3<vf> v;
    split_three(load(p), load(p + 16), load(p + 32), v.x, v.y, v.z);
    return v;
  }
#endif
  return {load_strided(p, 3, used, rest), load_strided(p + 1, 3, used, rest),
          load_strided(p + 2, 3, used, rest)};
}
inline Quat<vf> load_quat(const float* p, int used, float rest) {
#if GSA_LANES == 16
  if (used == GSA_LANES) {
    vf v[4] = {load(p), load(p + 16), load(p + 32), load(p + 48)};
    split_four(v);
    return {v[0], v[1], v[2], v[3]};
  }
#endif
  return {load_strided(p, 4, used, rest), load_strided(p + 1, 4, used, 0.0f),
          load_strided(p + 2, 4, used, 0.0f), load_strided(p + 3, 4, used, 0.0f)};
}
inline void store_three(float* at, int used, const Vec3<vf>& v) {
#if GSA_LANES == 16
  if (used == GSA_LANES) {
    vf p, q, r;
    merge_three(v.x, v.y, v.z, p, q, r);
    store(at, p), store(at + 16, q), store(at + 32, r);
    return;
  }
#endif
  store_strided(at, 3, used, v.x), store_strided(at + 1, 3, used, v.y);
  store_strided(at + 2, 3, used, v.z);
}
inline void store_quat(float* at, int used, const Quat<vf>& q) {
#if GSA_LANES == 16
  if (used == GSA_LANES) {
    vf v[4] = {q.w, q.x, q.y, q.z};
    merge_four(v);
    for (int i = 0; i < 4; ++i) store(at + 16 * i, v[i]);
    return;
  }
#endif
  store_strided(at, 4, used, q.w), store_strided(at + 1, 4, used, q.x);
  store_strided(at + 2, 4, used, q.y), store_strided(at + 3, 4, used, q.z);
}
inline float sum_of_lanes(vf v) {
  float lane[GSA_LANES], total = 0.0f;
  store(lane, v);
  for (int l = 0; l < GSA_LANES; ++l) total += lane[l];
  return total;
}

inline int lanes_from(int i, int end) { return end - i < GSA_LANES ? end - i : GSA_LANES; }

inline Gaussian3<vf> load_gaussians(const float* means, const float* quats, const float* scales,
                                    int64_t first, int used) {
  return {load_three(means + 3 * first, used, 0.0f), load_quat(quats + 4 * first, used, 1.0f),
          load_three(scales + 3 * first, used, 0.0f)};
}

// Vectors of GSA_RECORD fields become the records of `used` Gaussians.
inline void store_records(float* at, int used, vf* fields) {
#if GSA_LANES == 16
  transpose(fields);
  for (int l = 0; l < used; ++l) store(at + GSA_RECORD * l, fields[l]);
#else
  for (int i = 0; i < GSA_RECORD; ++i) store_strided(at + i, GSA_RECORD, used, fields[i]);
#endif
}

// K vectors, readable lane by lane.
template <int K>
struct Lanes {
  float value[K][GSA_LANES];
  void put(int field, vf v) { store(value[field], v); }
  float at(int field, int lane) const { return value[field][lane]; }
};

}  // namespace gsa
