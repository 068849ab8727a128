// Linear motion of a chunk of Gaussians.
#pragma once

#include "lanes.h"
#include "blend.h"

namespace gsa {

// Offsets [count, 9] of the Gaussians from `first` on: sum of the basis rows, weighted. Coefficients
// at rest cost nothing.
inline void sum_offsets(const gsa_motion& m, int64_t first, int count, float* offsets) {
  const int length = kOffsets * count;
  memset(offsets, 0, sizeof(float) * (size_t)length);
  for (int k = 0; k < m.coefficient_count; ++k) {
    const float c = m.coefficients[k];
    if (c == 0.0f) continue;
    const float* row = m.basis + kOffsets * ((int64_t)k * m.count + first);
    int i = 0;
    for (; i + GSA_LANES <= length; i += GSA_LANES)
      store(offsets + i, load(offsets + i) + load(row + i) * c);
    for (; i < length; ++i) offsets[i] += row[i] * c;
  }
}

inline Offset<vf> load_offset(const float* at, int used) {
  const auto field = [&](int i) { return load_strided(at + i, kOffsets, used, 0.0f); };
  return {{field(0), field(1), field(2)}, {field(3), field(4), field(5)},
          {field(6), field(7), field(8)}};
}

}  // namespace gsa
