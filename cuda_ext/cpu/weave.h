// Between structs of floats in a row and one vector per field, in registers.
//
// Element by element a vector waits until its parts have left for the cache, and so does a part of a
// vector. Only the 16 lanes of AVX-512 are worth it.
#pragma once

#include "simd.h"

#if GSA_LANES == 16
namespace gsa {

// 16 structs of three fields, in memory p, q, r.
GSA_SIMD void split_three(vf p, vf q, vf r, vf& a, vf& b, vf& c) {
  const vi two = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0);
  const vi one = _mm512_set1_epi32(1);
  // elements 0, 3, 6 … of p and q, then the rest out of r; likewise from 1 and from 2
  const vi k0 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
  const vi k1 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
  const vi k2 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
  const vi from_1 = _mm512_add_epi32(two, one), from_2 = _mm512_add_epi32(from_1, one);
  a = _mm512_permutex2var_ps(_mm512_permutex2var_ps(p, two, q), k0, r);
  b = _mm512_permutex2var_ps(_mm512_permutex2var_ps(p, from_1, q), k1, r);
  c = _mm512_permutex2var_ps(_mm512_permutex2var_ps(p, from_2, q), k2, r);
}
GSA_SIMD void merge_three(vf a, vf b, vf c, vf& p, vf& q, vf& r) {
  const vi i0 = _mm512_setr_epi32(0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
  const vi i1 = _mm512_setr_epi32(21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
  const vi i2 = _mm512_setr_epi32(0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
  const vi k0 = _mm512_setr_epi32(0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
  const vi k1 = _mm512_setr_epi32(0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
  const vi k2 = _mm512_setr_epi32(26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
  p = _mm512_permutex2var_ps(_mm512_permutex2var_ps(a, i0, b), k0, c);
  q = _mm512_permutex2var_ps(_mm512_permutex2var_ps(a, i1, b), k1, c);
  r = _mm512_permutex2var_ps(_mm512_permutex2var_ps(a, i2, b), k2, c);
}

// Rows and columns of the 4 x 4 floats that lie in each quarter of four vectors.
GSA_SIMD void transpose_quarters(vf* v) {
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(v[0], v[1]));
  const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(v[0], v[1]));
  const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(v[2], v[3]));
  const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(v[2], v[3]));
  v[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c)), v[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
  v[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)), v[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
}
// Rows and columns of the 4 x 4 quarters of four vectors.
GSA_SIMD void exchange_quarters(vf& a, vf& b, vf& c, vf& d) {
  const vf ab_low = _mm512_shuffle_f32x4(a, b, 0x44), ab_high = _mm512_shuffle_f32x4(a, b, 0xEE);
  const vf cd_low = _mm512_shuffle_f32x4(c, d, 0x44), cd_high = _mm512_shuffle_f32x4(c, d, 0xEE);
  a = _mm512_shuffle_f32x4(ab_low, cd_low, 0x88), b = _mm512_shuffle_f32x4(ab_low, cd_low, 0xDD);
  c = _mm512_shuffle_f32x4(ab_high, cd_high, 0x88), d = _mm512_shuffle_f32x4(ab_high, cd_high, 0xDD);
}

// 16 structs of four fields, in memory one after the other; its own inverse but for the order.
GSA_SIMD void split_four(vf* v) {
  exchange_quarters(v[0], v[1], v[2], v[3]);  // struct 4 j + i to quarter j of vector i
  transpose_quarters(v);
}
GSA_SIMD void merge_four(vf* v) {
  transpose_quarters(v);
  exchange_quarters(v[0], v[1], v[2], v[3]);
}

// 16 vectors of a field each become 16 structs.
GSA_SIMD void transpose(vf* v) {
  for (int i = 0; i < 16; i += 4) transpose_quarters(v + i);
  for (int i = 0; i < 4; ++i) exchange_quarters(v[i], v[4 + i], v[8 + i], v[12 + i]);
}

}  // namespace gsa
#endif
