// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels share: 16-byte accesses, sums over a block, launches on torch's stream.
// Kernels use only what tests/ops/cuda_on_cpu can stand in for, so that their logic is tested
// without a GPU as well (TDC_CUDA_ON_CPU).
#pragma once

#if defined(TDC_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#define TDC_CUDA_KEY CPU
#else
#include <cuda_runtime.h>
#define TDC_CUDA_KEY CUDA
#endif

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdint>

#include "common/checks.h"

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // PyTorch 2.11: the one without the error's own text
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace tdc {

inline constexpr int kWarp = 32;
inline constexpr unsigned kFullMask = 0xffffffffu;

// 16 bytes, or one element where a tensor is not aligned for more.
template <typename T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <typename T, int V>
struct alignas(V * sizeof(T)) Pack {
  T x[V];
};

template <int V, typename T>
__device__ __forceinline__ Pack<T, V> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, V>*>(p);
}

// A plain type of so many bytes: through it a Pack is stored in one piece, where for sm_80 and sm_90
// the compiler made stores of 2 and 4 bytes of the elements.
template <int kSize>
struct Bits;
template <>
struct Bits<16> {
  using type = uint4;
};
template <>
struct Bits<8> {
  using type = uint2;
};
template <>
struct Bits<4> {
  using type = unsigned;
};
template <>
struct Bits<2> {
  using type = unsigned short;
};

template <int V, typename T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, V>& pack) {
  typename Bits<sizeof(pack)>::type bits;
  memcpy(&bits, &pack, sizeof(pack));
  *reinterpret_cast<decltype(bits)*>(p) = bits;
}

// Whether rows of `x` (any number of leading dimensions, dense last one) can be read 16 bytes at a
// time: base address and all strides are multiples of 16 bytes, and so is a row's length.
inline bool aligned16(const void* base, std::initializer_list<int64_t> elements, int64_t itemsize) {
  bool aligned = reinterpret_cast<uintptr_t>(base) % 16 == 0;
  for (const int64_t n : elements) aligned = aligned && n * itemsize % 16 == 0;
  return aligned;
}

// Sum over the warp, in every lane, in a fixed order.
template <typename A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullMask, x, step);
  return x;
}

#if defined(TDC_CUDA_ON_CPU)
struct DeviceGuard {  // torch's needs an accelerator
  explicit DeviceGuard(int32_t) {}
};
inline cudaStream_t current_stream(int32_t) { return nullptr; }
#else
using torch::stable::accelerator::DeviceGuard;
inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

// torch's current device and stream for the lifetime of a call.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x)
      : guard_(x.get_device_index()), stream_(current_stream(x.get_device_index())) {}

  template <typename... P, typename... A>
  void launch(void (*kernel)(P...), dim3 grid, int threads, A&&... args) const {
    if (grid.x == 0 || grid.y == 0) return;  // nothing to do, and an error for CUDA
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream_;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
    STD_TORCH_CHECK(error == cudaSuccess, "CUDA launch failed: ", cudaGetErrorString(error));
  }

 private:
  DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace tdc
