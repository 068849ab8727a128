// Between arrays of structs in memory and one vector per field.
#pragma once

#include "simd.h"
// simd.h first: see scalar.h
#include "abi.h"
#include "projection.h"

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

inline void store_three(float* at, int used, const Vec3<vf>& v) {
  store_strided(at, 3, used, v.x), store_strided(at + 1, 3, used, v.y);
  store_strided(at + 2, 3, used, v.z);
}
inline void store_quat(float* at, int used, const Quat<vf>& q) {
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
  const float *m = means + 3 * first, *q = quats + 4 * first, *k = scales + 3 * first;
  return {{load_strided(m, 3, used, 0.0f), load_strided(m + 1, 3, used, 0.0f),
           load_strided(m + 2, 3, used, 0.0f)},
          {load_strided(q, 4, used, 1.0f), load_strided(q + 1, 4, used, 0.0f),
           load_strided(q + 2, 4, used, 0.0f), load_strided(q + 3, 4, used, 0.0f)},
          {load_strided(k, 3, used, 0.0f), load_strided(k + 1, 3, used, 0.0f),
           load_strided(k + 2, 3, used, 0.0f)}};
}

// K vectors, readable lane by lane.
template <int K>
struct Lanes {
  float value[K][GSA_LANES];
  void put(int field, vf v) { store(value[field], v); }
  float at(int field, int lane) const { return value[field][lane]; }
};

}  // namespace gsa
