// What this library is and what this machine can run.
#include "simd.h"
// simd.h first: see scalar.h
#include "abi.h"

extern "C" int32_t gsa_abi(void) { return GSA_ABI; }
extern "C" int32_t gsa_lanes(void) { return GSA_LANES; }

extern "C" int32_t gsa_has_threads(void) {
#ifdef GSA_NO_THREADS
  return 0;
#else
  return 1;
#endif
}

extern "C" int32_t gsa_cpu_level(void) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

namespace {
constexpr int kChains = 12;  // more than two units with a latency of four need, fewer than registers
}

extern "C" int32_t gsa_fma_chains(void) { return kChains; }

extern "C" float gsa_fma(int64_t rounds) {
  using namespace gsa;
  vf sum[kChains];
  for (int c = 0; c < kChains; ++c) sum[c] = broadcast((float)c);
  const vf factor = broadcast(0.999f), step = broadcast(0.001f);
  for (int64_t i = 0; i < rounds; ++i)
    for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * factor + step;
  float lane[GSA_LANES], total = 0.0f;
  for (int c = 0; c < kChains; ++c) {
    store(lane, sum[c]);
    for (int l = 0; l < GSA_LANES; ++l) total += lane[l];
  }
  return total;
}
