// A parallel loop over independent chunks; plain where there is no OpenMP.
#pragma once

#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gsa {

// Calls body(i) for i in [0, count). Chunks are handed out as threads become free, so each must
// write to places of its own; then the result does not depend on the schedule.
template <class Body>
static inline void parallel_for(int32_t count, int32_t threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1 && count > 1) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int32_t i = 0; i < count; ++i) body(i);
    return;
  }
#endif
  (void)threads;
  for (int32_t i = 0; i < count; ++i) body(i);
}

}  // namespace gsa
