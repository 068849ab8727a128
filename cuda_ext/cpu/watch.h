// Whether NaN or infinity came by, for one multiply-add a vector.
#pragma once

#include "simd.h"
// simd.h first: see scalar.h
#include "abi.h"

namespace gsa {

// Adds 0 * a to `sum`: NaN or infinite input makes it NaN.
inline void watch(vf& sum, vf a) { sum = sum + a * broadcast(0.0f); }

inline bool is_nan(vf a) {
  float lane[GSA_LANES];
  store(lane, a);
  bool nan = false;
  for (int l = 0; l < GSA_LANES; ++l) nan = nan || lane[l] != lane[l];
  return nan;
}

inline bool all_finite(const float* values, int count) {
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) sum += values[i] * 0.0f;
  return sum == sum;
}

// What watched sums of the arguments say: a code of abi.h, that of the first that is malformed.
template <int Count>
inline int32_t code_of(const vf (&sums)[Count]) {
  for (int i = 0; i < Count; ++i)
    if (is_nan(sums[i])) return GSA_NOT_FINITE + i;
  return GSA_OK;
}

}  // namespace gsa
