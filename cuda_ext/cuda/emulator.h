// Runs CUDA kernels on a CPU, one fiber per thread, so that their logic can be tested without a GPU.
//
// Threads of a block take turns at barriers and warp exchanges; blocks run one after the other.
// That shows wrong indices, missing barriers before a read and wrong sums, not races between blocks.
// Compile a .cu file as C++ with -DGSA_EMULATE.
#pragma once

#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define GSA_SHARED static  // blocks run one at a time

typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0;

namespace emulator {

constexpr size_t kStack = 64 << 10;

struct Dim {
  int x;
};

struct Warp {
  int arrived = 0, generation = 0;
  uint32_t value[32];
};

struct Block {
  std::vector<ucontext_t> contexts;
  std::vector<char> done;
  std::vector<Warp> warps;
  int arrived = 0, generation = 0, count = 0, counted = 0;
  int size = 0, current = 0;
  ucontext_t scheduler;
  std::function<void()> body;
};

inline Block* block = nullptr;

inline void yield() { swapcontext(&block->contexts[block->current], &block->scheduler); }

inline void thread_main() {
  block->body();
  block->done[block->current] = 1;
  yield();
}

inline void wait(int& arrived, int& generation, int size) {
  const int before = generation;
  if (++arrived == size) {
    arrived = 0;
    ++generation;
    return;
  }
  while (generation == before) yield();
}

template <class Body>
void launch(int blocks, int threads, const Body& body);

}  // namespace emulator

inline thread_local emulator::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

template <class Body>
void launch(int blocks, int threads, const Body& body) {
  for (int b = 0; b < blocks; ++b) {
    Block here;
    block = &here;
    here.size = threads;
    here.body = body;
    here.contexts.resize(threads);
    static std::vector<char> stacks;
    if (stacks.size() < (size_t)threads * kStack) stacks.resize((size_t)threads * kStack);
    here.done.assign(threads, 0);
    here.warps.resize((threads + 31) / 32);
    for (int t = 0; t < threads; ++t) {
      getcontext(&here.contexts[t]);
      here.contexts[t].uc_stack.ss_sp = stacks.data() + t * kStack;
      here.contexts[t].uc_stack.ss_size = kStack;
      here.contexts[t].uc_link = nullptr;
      makecontext(&here.contexts[t], thread_main, 0);
    }
    for (int left = threads; left > 0;) {
      left = 0;
      for (int t = 0; t < threads; ++t) {
        if (here.done[t]) continue;
        ++left;
        here.current = t;
        threadIdx = {t}, blockIdx = {b}, blockDim = {threads}, gridDim = {blocks};
        swapcontext(&here.scheduler, &here.contexts[t]);
      }
    }
    block = nullptr;
  }
}

template <class T>
T exchange(T value, int from) {
  static_assert(sizeof(T) == 4, "registers are 32 bits");
  const int thread = block->current;
  Warp& warp = block->warps[thread / 32];
  memcpy(&warp.value[thread % 32], &value, 4);
  wait(warp.arrived, warp.generation, 32);
  T got;
  memcpy(&got, &warp.value[from], 4);
  wait(warp.arrived, warp.generation, 32);
  return got;
}

}  // namespace emulator

inline void __syncthreads() {
  emulator::wait(emulator::block->arrived, emulator::block->generation, emulator::block->size);
}
inline int __syncthreads_or(int predicate) {
  emulator::Block& b = *emulator::block;
  if (predicate) b.counted = 1;
  __syncthreads();
  const int result = b.counted;
  __syncthreads();
  b.counted = 0;
  __syncthreads();
  return result;
}
template <class T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  return emulator::exchange(value, (emulator::block->current % 32) ^ mask);
}
inline uint32_t __ballot_sync(uint32_t, int predicate) {
  uint32_t result = 0;
  const uint32_t mine = predicate ? 1u : 0u;
  const int thread = emulator::block->current;
  emulator::Warp& warp = emulator::block->warps[thread / 32];
  warp.value[thread % 32] = mine;
  emulator::wait(warp.arrived, warp.generation, 32);
  for (int l = 0; l < 32; ++l) result |= warp.value[l] << l;
  emulator::wait(warp.arrived, warp.generation, 32);
  return result;
}
inline int __ffs(uint32_t v) { return __builtin_ffs((int)v); }
inline int __float_as_int(float v) {
  int i;
  memcpy(&i, &v, 4);
  return i;
}
template <class T>
T atomicMax(T* at, T value) {
  const T before = *at;
  if (value > before) *at = value;
  return before;
}

inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

#define GSA_LAUNCH(kernel, blocks, threads, stream, ...) \
  emulator::launch((blocks), (threads), [=]() { kernel(__VA_ARGS__); })

namespace cub {
struct DeviceRadixSort {
  template <class K, class V>
  static cudaError_t SortPairs(void* temp, size_t& bytes, const K* keys, K* keys_out,
                               const V* values, V* values_out, int64_t count, int first, int end,
                               cudaStream_t = nullptr) {
    if (!temp) {
      bytes = 1;
      return cudaSuccess;
    }
    std::vector<int64_t> order((size_t)count);
    std::iota(order.begin(), order.end(), 0);
    const uint64_t mask = ((1ull << (end - first)) - 1) << first;
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
    for (int64_t i = 0; i < count; ++i) keys_out[i] = keys[order[i]], values_out[i] = values[order[i]];
    return cudaSuccess;
  }
};
struct DeviceScan {
  template <class T, class U>
  static cudaError_t InclusiveSum(void* temp, size_t& bytes, const T* in, U* out, int64_t count,
                                  cudaStream_t = nullptr) {
    if (!temp) {
      bytes = 1;
      return cudaSuccess;
    }
    U sum = 0;
    for (int64_t i = 0; i < count; ++i) out[i] = sum += in[i];
    return cudaSuccess;
  }
};
}  // namespace cub
