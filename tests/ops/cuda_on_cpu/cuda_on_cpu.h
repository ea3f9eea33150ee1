// SPDX-License-Identifier: Apache-2.0
// The part of CUDA that the kernels in csrc/ use, on the CPU: their logic is tested without a GPU.
// Compile a .cu with g++ -x c++ -std=c++20 -DTDC_CUDA_ON_CPU; __init__.py does it for the tests.
//
// TDC_CUDA_ON_CPU_ORDER = forward, reverse or shuffle (default): the order of blocks, warps and
// lanes. A warp runs as far as it can before the next one does, and shared memory starts as 0xff
// bytes: a missing barrier shows as a wrong result. A deadlock, a shuffle from a lane that is not
// there and a launch that CUDA refuses are errors of one line. Not found: races that need a change
// of threads between two waits, memory out of bounds, anything about speed.
#pragma once

#include <math.h>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// All lie together in the library's thread-local segment, where they can be poisoned. A section of
// their own is not possible: g++ refuses it for static variables of templates.
#define __shared__ static thread_local

struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               A&&... args) {
  auto call = [&] { kernel(static_cast<P>(args)...); };  // every thread has parameters of its own
  return cuda_on_cpu::launch(
      *config, [](void* p) { (*static_cast<decltype(call)*>(p))(); }, &call);
}

inline const char* cudaGetErrorString(cudaError_t) { return cuda_on_cpu::machine.error; }

inline void __syncthreads() {
  cuda_on_cpu::machine.current->state = cuda_on_cpu::State::at_barrier;
  cuda_on_cpu::wait();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_on_cpu::collective(cuda_on_cpu::Meeting::sync, mask, 0, 0);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = cuda_on_cpu::lane(*cuda_on_cpu::machine.current) & -width;
  return cuda_on_cpu::shuffle(mask, value, first | (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = cuda_on_cpu::lane(*cuda_on_cpu::machine.current), end = (lane & -width) + width;
  return cuda_on_cpu::shuffle(mask, value, (lane ^ bits) < end ? lane ^ bits : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32) {
  const int lane = cuda_on_cpu::lane(*cuda_on_cpu::machine.current), first = lane & -width;
  return cuda_on_cpu::shuffle(mask, value, lane - by >= first ? lane - by : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32) {
  const int lane = cuda_on_cpu::lane(*cuda_on_cpu::machine.current), end = (lane & -width) + width;
  return cuda_on_cpu::shuffle(mask, value, lane + by < end ? lane + by : lane);
}

inline unsigned __ballot_sync(unsigned mask, int yes) {
  return cuda_on_cpu::collective(cuda_on_cpu::Meeting::vote, mask, yes != 0, 0) >> 32;
}
inline int __any_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) != 0; }
inline int __all_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes == 0) == 0; }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}
inline void __threadfence() {}

// Nothing runs between two waits of a fiber. std::type_identity_t: the memory's type decides.
template <typename T, typename F>
T cuda_on_cpu_exchange(T* p, F&& next) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || std::is_same_v<T, unsigned long long>));
  const T before = *p;
  *p = next(before);
  return before;
}
template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> x) {
  return cuda_on_cpu_exchange(p, [=](T y) { return static_cast<T>(y + x); });
}
template <typename T>
T atomicMax(T* p, std::type_identity_t<T> x) {
  return cuda_on_cpu_exchange(p, [=](T y) { return y > x ? y : x; });
}
template <typename T>
T atomicMin(T* p, std::type_identity_t<T> x) {
  return cuda_on_cpu_exchange(p, [=](T y) { return y < x ? y : x; });
}
template <typename T>
T atomicOr(T* p, std::type_identity_t<T> x) {
  return cuda_on_cpu_exchange(p, [=](T y) { return y | x; });
}
template <typename T>
T atomicExch(T* p, std::type_identity_t<T> x) {
  return cuda_on_cpu_exchange(p, [=](T) { return x; });
}
template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> wanted, std::type_identity_t<T> x) {
  return cuda_on_cpu_exchange(p, [=](T y) { return y == wanted ? x : y; });
}

// Of floating values CUDA's drop a NaN, as fmin does.
template <typename A, typename B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return fmin(static_cast<C>(a), static_cast<C>(b));
  else return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(a) : static_cast<C>(b);
}
template <typename A, typename B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return fmax(static_cast<C>(a), static_cast<C>(b));
  else return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}
