// Linear motion of a chunk of Gaussians.
#pragma once

#include "lanes.h"
#include "blend.h"

namespace gsa {

// Rows of the basis read side by side: each is a stream of its own to the memory, and the sums go to
// and from the first cache once for all of them.
constexpr int kStreams = 8;

// offsets[i] += sum_j c[j] row[j][i], j < Count.
template <int Count>
inline void add_rows(const float* const* row, const float* c, float* offsets, int length) {
  int i = 0;
  for (; i + GSA_LANES <= length; i += GSA_LANES) {
    vf sum = load(offsets + i);
    for (int j = 0; j < Count; ++j) sum = sum + load(row[j] + i) * c[j];
    store(offsets + i, sum);
  }
  for (; i < length; ++i)
    for (int j = 0; j < Count; ++j) offsets[i] += row[j][i] * c[j];
}

// Offsets [count, 9] of the Gaussians from `first` on: sum of the basis rows, weighted. Coefficients
// at rest cost nothing.
inline void sum_offsets(const gsa_motion& m, int64_t first, int count, float* offsets) {
  const int length = kOffsets * count;
  memset(offsets, 0, sizeof(float) * (size_t)length);
  const float* row[kStreams];
  float c[kStreams];
  int held = 0;
  for (int k = 0; k < m.coefficient_count; ++k) {
    if (m.coefficients[k] == 0.0f) continue;
    row[held] = m.basis + kOffsets * ((int64_t)k * m.count + first);
    c[held++] = m.coefficients[k];
    if (held < kStreams) continue;
    add_rows<kStreams>(row, c, offsets, length);
    held = 0;
  }
  for (int j = 0; j < held; ++j) add_rows<1>(row + j, c + j, offsets, length);
}

inline Offset<vf> load_offset(const float* at, int used) {
  const auto field = [&](int i) { return load_strided(at + i, kOffsets, used, 0.0f); };
  return {{field(0), field(1), field(2)}, {field(3), field(4), field(5)},
          {field(6), field(7), field(8)}};
}

}  // namespace gsa
