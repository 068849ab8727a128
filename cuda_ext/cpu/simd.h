// The vector type `vf` of the instruction set this file is compiled for, and its mask type `vm`.
//
// + - * and broadcasting scalars are the compiler's vector extension (GCC, Clang); what it lacks is
// below. The portable version (4 lanes) uses nothing else, so it builds for any target.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(GSA_AVX512)
#include <immintrin.h>
#define GSA_LANES 16
namespace gsa {
typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;
#define GSA_SIMD static inline __attribute__((always_inline))
GSA_SIMD vf broadcast(float a) { return _mm512_set1_ps(a); }
GSA_SIMD vm less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
GSA_SIMD vm less_equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
GSA_SIMD vm both(vm a, vm b) { return (vm)(a & b); }
GSA_SIMD uint32_t bits(vm a) { return a; }
GSA_SIMD vf choose(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
GSA_SIMD vf zero_unless(vm m, vf a) { return _mm512_maskz_mov_ps(m, a); }
GSA_SIMD vf product_if(vm m, vf a, vf b) { return _mm512_maskz_mul_ps(m, a, b); }
GSA_SIMD vf smaller(vf a, vf b) { return _mm512_min_ps(a, b); }
GSA_SIMD vf larger(vf a, vf b) { return _mm512_max_ps(a, b); }
GSA_SIMD vf root(vf a) { return _mm512_sqrt_ps(a); }
GSA_SIMD vf reciprocal(vf a) {  // 14 bits, then one Newton step
  const vf r = _mm512_rcp14_ps(a);
  return r * (broadcast(2.0f) - a * r);
}
// The integer part of an exponent, and 2^(integer part) p for p in about 0.7 … 1.4.
GSA_SIMD vf whole_part(vf& t) {
  return _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
GSA_SIMD vf fraction(vf t, vf whole) { return t - whole; }
GSA_SIMD vf scaled_by(vf p, vf whole) { return _mm512_scalef_ps(p, whole); }
}  // namespace gsa

#elif defined(__AVX2__) && defined(__FMA__) && defined(GSA_AVX2)
#include <immintrin.h>
#define GSA_LANES 8
namespace gsa {
typedef __m256 vf;
typedef __m256i vi;
typedef struct {
  __m256 m;
} vm;
#define GSA_SIMD static inline __attribute__((always_inline))
GSA_SIMD vf broadcast(float a) { return _mm256_set1_ps(a); }
GSA_SIMD vm less(vf a, vf b) { return {_mm256_cmp_ps(a, b, _CMP_LT_OQ)}; }
GSA_SIMD vm less_equal(vf a, vf b) { return {_mm256_cmp_ps(a, b, _CMP_LE_OQ)}; }
GSA_SIMD vm both(vm a, vm b) { return {_mm256_and_ps(a.m, b.m)}; }
GSA_SIMD uint32_t bits(vm a) { return (uint32_t)_mm256_movemask_ps(a.m); }
GSA_SIMD vf choose(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m.m); }
GSA_SIMD vf zero_unless(vm m, vf a) { return _mm256_and_ps(m.m, a); }
GSA_SIMD vf product_if(vm m, vf a, vf b) { return _mm256_and_ps(m.m, a * b); }
GSA_SIMD vf smaller(vf a, vf b) { return _mm256_min_ps(a, b); }
GSA_SIMD vf larger(vf a, vf b) { return _mm256_max_ps(a, b); }
GSA_SIMD vf root(vf a) { return _mm256_sqrt_ps(a); }
GSA_SIMD vf reciprocal(vf a) {  // 12 bits, then one Newton step
  const vf r = _mm256_rcp_ps(a);
  return r * (broadcast(2.0f) - a * r);
}
// The integer part of an exponent, as the low bits of 1.5 * 2^23 plus it, and its use.
GSA_SIMD vf whole_part(vf& t) {
  t = larger(t, broadcast(-126.0f));
  return t + broadcast(12582912.0f);
}
GSA_SIMD vf fraction(vf t, vf whole) { return t - (whole - broadcast(12582912.0f)); }
GSA_SIMD vf scaled_by(vf p, vf whole) {
  const vi step = _mm256_slli_epi32(_mm256_castps_si256(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), step));
}
}  // namespace gsa

#else
#include <math.h>
#define GSA_LANES 4
namespace gsa {
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef vi vm;
#define GSA_SIMD static inline __attribute__((always_inline))
GSA_SIMD vf broadcast(float a) { return vf{a, a, a, a}; }
GSA_SIMD vm less(vf a, vf b) { return a < b; }
GSA_SIMD vm less_equal(vf a, vf b) { return a <= b; }
GSA_SIMD vm both(vm a, vm b) { return a & b; }
GSA_SIMD uint32_t bits(vm a) {
  return (uint32_t)((a[0] & 1) | (a[1] & 2) | (a[2] & 4) | (a[3] & 8));
}
GSA_SIMD vf zero_unless(vm m, vf a) { return (vf)(m & (vi)a); }
GSA_SIMD vf choose(vm m, vf a, vf b) { return (vf)((m & (vi)a) | (~m & (vi)b)); }
GSA_SIMD vf product_if(vm m, vf a, vf b) { return zero_unless(m, a * b); }
GSA_SIMD vf smaller(vf a, vf b) { return choose(a < b, a, b); }
GSA_SIMD vf larger(vf a, vf b) { return choose(a > b, a, b); }
GSA_SIMD vf root(vf a) { return vf{sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
GSA_SIMD vf reciprocal(vf a) { return broadcast(1.0f) / a; }
// The integer part of an exponent, as the low bits of 1.5 * 2^23 plus it, and its use.
GSA_SIMD vf whole_part(vf& t) {
  t = larger(t, broadcast(-126.0f));
  return t + broadcast(12582912.0f);
}
GSA_SIMD vf fraction(vf t, vf whole) { return t - (whole - broadcast(12582912.0f)); }
GSA_SIMD vf scaled_by(vf p, vf whole) { return (vf)((vi)p + ((vi)whole << 23)); }
}  // namespace gsa
#endif

namespace gsa {

// 2^t for N vectors by the polynomial of scalar.h, one step of all before the next of any: the steps
// of one wait for each other, and the processor looks ahead less far than that takes.
template <int N>
GSA_SIMD void powers_of_two(vf* t) {
  vf whole[N], p[N];
  for (int i = 0; i < N; ++i) whole[i] = whole_part(t[i]);
  for (int i = 0; i < N; ++i) t[i] = fraction(t[i], whole[i]);
  for (int i = 0; i < N; ++i) p[i] = t[i] * broadcast(1.3266970e-3f) + broadcast(9.6754597e-3f);
  for (int i = 0; i < N; ++i) p[i] = p[i] * t[i] + broadcast(5.5507426e-2f);
  for (int i = 0; i < N; ++i) p[i] = p[i] * t[i] + broadcast(2.4022122e-1f);
  for (int i = 0; i < N; ++i) p[i] = p[i] * t[i] + broadcast(6.9314695e-1f);
  for (int i = 0; i < N; ++i) p[i] = p[i] * t[i] + broadcast(1.0f);
  for (int i = 0; i < N; ++i) t[i] = scaled_by(p[i], whole[i]);
}
GSA_SIMD vf power_of_two(vf t) {
  powers_of_two<1>(&t);
  return t;
}

GSA_SIMD vf splat(vf, float value) { return broadcast(value); }
GSA_SIMD vf load(const float* p) {
  vf v;
  memcpy(&v, p, sizeof v);
  return v;
}
GSA_SIMD void store(float* p, vf v) { memcpy(p, &v, sizeof v); }

// Upper bound of log2(a) for a normal positive a, at most 5e-5 above it: exponent bits plus a
// polynomial through the mantissa.
GSA_SIMD vf log2_above(vf a) {
  float in[GSA_LANES], whole[GSA_LANES], part[GSA_LANES];
  store(in, a);
  for (int l = 0; l < GSA_LANES; ++l) {
    int32_t b;
    memcpy(&b, in + l, 4);
    whole[l] = (float)((b >> 23) - 127);
    b = (b & 0x7fffff) | 0x3f800000;
    memcpy(part + l, &b, 4);
  }
  const vf m = load(part);
  vf p = m * broadcast(0.04392863f) + broadcast(-0.40947559f);
  p = p * m + broadcast(1.61017755f);
  p = p * m + broadcast(-3.52021884f);
  p = p * m + broadcast(5.06975632f);
  p = p * m + broadcast(-2.79415368f);
  return load(whole) + p + broadcast(3e-5f);
}

// While it lives, numbers below 1e-38 count as 0: the transmittance of an opaque pixel shrinks
// through them, and the CPU handles each by microcode. They are far below what a picture holds.
class FlushTiny {
#if defined(__SSE__)
 public:
  FlushTiny() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
  ~FlushTiny() { __builtin_ia32_ldmxcsr(before_); }

 private:
  unsigned before_;
#else
 public:
  FlushTiny() {}
  ~FlushTiny() {}
#endif
};

}  // namespace gsa
