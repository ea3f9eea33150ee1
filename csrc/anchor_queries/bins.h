// SPDX-License-Identifier: Apache-2.0
// The bins of adaptive average pooling, for the CPU and the GPU. Products are int64: L and K may
// both be large.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TDC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TDC_HOST_DEVICE inline
#endif

namespace tdc::pooling {

// Tokens [start, stop) of bin j: floor(jL/K) .. ceil((j+1)L/K) - 1.
struct Bin {
  int64_t start, stop;

  TDC_HOST_DEVICE Bin(int64_t j, int64_t length, int64_t queries)
      : start(j * length / queries), stop(((j + 1) * length + queries - 1) / queries) {}
};

// The lowest bin with token i: the first j with ceil((j+1)L/K) > i.
TDC_HOST_DEVICE int64_t first_bin(int64_t token, int64_t length, int64_t queries) {
  return token * queries / length;
}

// One past the highest: the first j with floor(jL/K) > i.
TDC_HOST_DEVICE int64_t end_bin(int64_t token, int64_t length, int64_t queries) {
  return ((token + 1) * queries + length - 1) / length;
}

}  // namespace tdc::pooling
