// Arithmetic shared by every kernel, written once for a scalar (CUDA, tails) and for a SIMD vector.
//
// The functions of the other headers are templates over F, which is `float` or the vector type of
// cpu/simd.h. What differs between the two (choice, minimum, reciprocal) has overloads here for
// float and in cpu/simd.h for vectors; cpu/simd.h must be included first.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define GSA_FN __host__ __device__ __forceinline__
#else
#define GSA_FN inline __attribute__((always_inline))
#endif

namespace gsa {

constexpr float kAlphaMin = 1.0f / 255.0f;  // fainter contributions are dropped
constexpr float kOpacityMax = 0.999f;       // keeps 1 - alpha away from 0
constexpr float kTransmittanceMin = 1e-4f;  // a pixel takes nothing more below this
constexpr float kScreenBlur = 0.3f;         // px^2 added to the projected covariance
constexpr float kNear = 0.01f;              // metres
constexpr float kVarianceMax = 1e12f;       // px^2; a larger Gaussian is treated as not visible
constexpr float kLog2e = 1.44269504088896341f;
constexpr float kPowerMin = -7.99435344f;   // log2(kAlphaMin)

GSA_FN float splat(float, float value) { return value; }  // first argument only selects the type
GSA_FN bool less(float a, float b) { return a < b; }
GSA_FN bool less_equal(float a, float b) { return a <= b; }
GSA_FN bool both(bool a, bool b) { return a && b; }
GSA_FN float choose(bool which, float a, float b) { return which ? a : b; }
GSA_FN float zero_unless(bool which, float a) { return which ? a : 0.0f; }
GSA_FN float product_if(bool which, float a, float b) { return which ? a * b : 0.0f; }
GSA_FN float smaller(float a, float b) { return a < b ? a : b; }
GSA_FN float larger(float a, float b) { return a > b ? a : b; }
GSA_FN float root(float a) { return sqrtf(a); }
GSA_FN float reciprocal(float a) { return 1.0f / a; }
GSA_FN float log2_of(float a) { return log2f(a); }

GSA_FN float power_of_two(float t) {
#if defined(__CUDA_ARCH__)
  return exp2f(t);
#else
  // Cody-Waite: 2^t = 2^round(t) * p(t - round(t)); p is a minimax polynomial of degree 5 on
  // [-1/2, 1/2], relative error 2e-7 in float. Adding 1.5 * 2^23 leaves round(t) in the low mantissa bits.
  t = larger(t, -126.0f);
  const float shifted = t + 12582912.0f;
  const float f = t - (shifted - 12582912.0f);
  float p = 1.3266970e-3f;
  p = p * f + 9.6754597e-3f;
  p = p * f + 5.5507426e-2f;
  p = p * f + 2.4022122e-1f;
  p = p * f + 6.9314695e-1f;
  p = p * f + 1.0f;
  int32_t bits, step;
  memcpy(&bits, &p, 4);
  memcpy(&step, &shifted, 4);
  bits += (int32_t)((uint32_t)step << 23);
  memcpy(&p, &bits, 4);
  return p;
#endif
}

template <class F>
struct Vec3 {
  F x, y, z;
};

template <class F, class G>
GSA_FN F dot(const Vec3<F>& a, const Vec3<G>& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}

template <class F>
GSA_FN Vec3<F> cross(const Vec3<F>& a, const Vec3<F>& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

template <class F, class G>
GSA_FN Vec3<F> scaled(const Vec3<F>& a, const G& s) {
  return {a.x * s, a.y * s, a.z * s};
}

template <class F>
GSA_FN void accumulate(Vec3<F>& into, const Vec3<F>& a) {
  into.x = into.x + a.x;
  into.y = into.y + a.y;
  into.z = into.z + a.z;
}

}  // namespace gsa
