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
// The bits of 2^(i / 32) less i << 18, which the shift below adds again, see powers_of_two.
alignas(64) constexpr uint32_t kStepBits[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};
// For powers_of_two: 32 steps, relative error 5e-8 of the polynomial.
constexpr int kSteps = 32;
constexpr float kPowerOrigin = 12582912.0f / kSteps;
constexpr float kFractionPower[] = {0.24022475f, 0.69315736f, 1.0f};
GSA_SIMD vf rest_of_power(vf shifted) {
  const vi n = _mm512_castps_si512(shifted);
  const vi step = _mm512_permutex2var_epi32(_mm512_load_si512(kStepBits), n,
                                            _mm512_load_si512(kStepBits + 16));
  return _mm512_castsi512_ps(_mm512_add_epi32(step, _mm512_slli_epi32(n, 18)));
}
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
// The bits of 2^(i / 8) less i << 20, which the shift below adds again, see powers_of_two.
alignas(32) constexpr uint32_t kStepBits[8] = {
    0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
// For powers_of_two: 8 steps, relative error 2e-8 of the polynomial.
constexpr int kSteps = 8;
constexpr float kPowerOrigin = 12582912.0f / kSteps;
constexpr float kFractionPower[] = {5.5498900e-2f, 0.24026407f, 0.69314721f, 1.0f};
GSA_SIMD vf rest_of_power(vf shifted) {
  const vi n = _mm256_castps_si256(shifted);
  const vi step = _mm256_permutevar8x32_epi32(_mm256_load_si256((const vi*)kStepBits), n);
  return _mm256_castsi256_ps(_mm256_add_epi32(step, _mm256_slli_epi32(n, 20)));
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
// For powers_of_two: whole powers alone, which need no table; the exponent's bias is in the origin.
constexpr int kSteps = 1;
constexpr float kPowerOrigin = 12582912.0f + 127.0f;
constexpr float kFractionPower[] = {1.3266970e-3f, 9.6754597e-3f, 5.5507426e-2f,
                                    2.4022122e-1f, 6.9314695e-1f, 1.0f};
GSA_SIMD vf rest_of_power(vf shifted) { return (vf)((vi)shifted << 23); }
}  // namespace gsa
#endif

namespace gsa {

constexpr int kFractionTerms = sizeof kFractionPower / sizeof kFractionPower[0];

// 2^t by the polynomial of scalar.h.
GSA_SIMD vf power_of_two(vf t) {
  const vf whole = whole_part(t), f = fraction(t, whole);
  vf p = f * broadcast(1.3266970e-3f) + broadcast(9.6754597e-3f);
  p = p * f + broadcast(5.5507426e-2f);
  p = p * f + broadcast(2.4022122e-1f);
  p = p * f + broadcast(6.9314695e-1f);
  p = p * f + broadcast(1.0f);
  return scaled_by(p, whole);
}

// 2^t as fraction * rest for N vectors with t in -100 ... 100; elsewhere the result means nothing.
//
// Adding 1.5 * 2^23 / kSteps leaves t kSteps, rounded, in the low mantissa bits. What is rounded off
// is small, so the polynomial is short; the rest is a step of a table, moved by whole powers.
template <int N>
GSA_SIMD void powers_of_two(const vf* t, vf* fraction, vf* rest) {
  const vf origin = broadcast(kPowerOrigin);
  vf f[N];
  for (int i = 0; i < N; ++i) rest[i] = t[i] + origin;
  for (int i = 0; i < N; ++i) f[i] = t[i] - (rest[i] - origin);
  for (int i = 0; i < N; ++i) fraction[i] = broadcast(kFractionPower[0]);
  for (const float* c = kFractionPower + 1; c < kFractionPower + kFractionTerms; ++c)
    for (int i = 0; i < N; ++i) fraction[i] = fraction[i] * f[i] + broadcast(*c);
  for (int i = 0; i < N; ++i) rest[i] = rest_of_power(rest[i]);
}

GSA_SIMD vf splat(vf, float value) { return broadcast(value); }
GSA_SIMD vf load(const float* p) {
  vf v;
  memcpy(&v, p, sizeof v);
  return v;
}
GSA_SIMD void store(float* p, vf v) { memcpy(p, &v, sizeof v); }

// log2(a) for a normal positive a, within 2e-7: exponent bits plus the logarithm of a mantissa in
// 0.7 ... 1.4 by the series of the inverse hyperbolic tangent.
GSA_SIMD vf log2_of(vf a) {
  float in[GSA_LANES], whole[GSA_LANES], part[GSA_LANES];
  store(in, a);
  for (int l = 0; l < GSA_LANES; ++l) {
    int32_t b;
    memcpy(&b, in + l, 4);
    const int32_t exponent = (b - 0x3f3504f3) >> 23;  // from the root of 1/2
    whole[l] = (float)exponent;
    b -= exponent * (1 << 23);
    memcpy(part + l, &b, 4);
  }
  const vf m = load(part);
  const vf s = (m - broadcast(1.0f)) * reciprocal(m + broadcast(1.0f)), s2 = s * s;
  vf p = s2 * broadcast(0.41219858f) + broadcast(0.57707802f);  // 2 / ln 2 over 7, 5, 3 and 1
  p = p * s2 + broadcast(0.96179669f);
  p = p * s2 + broadcast(2.88539008f);
  return load(whole) + p * s;
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
