// SPDX-License-Identifier: Apache-2.0
// Small kernels, right and wrong ones, for test_cuda_on_cpu.py.
#include "cuda_on_cpu.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;

// out [4][64]: the lane each shuffle reads, in segments of 8.
__global__ void shuffles(int* out) {
  const int t = threadIdx.x;
  out[t] = __shfl_sync(kAll, t, 5, 8);
  out[64 + t] = __shfl_xor_sync(kAll, t, 6, 8);
  out[128 + t] = __shfl_up_sync(kAll, t, 3, 8);
  out[192 + t] = __shfl_down_sync(kAll, t, 3, 8);
}

// Lanes from 8 on have returned: they neither hold the others up nor vote.
__global__ void votes(int* out) {
  const int t = threadIdx.x;
  if (t >= 8) return;
  out[t] = static_cast<int>(__ballot_sync(kAll, t % 2));
  out[8 + t] = __all_sync(kAll, t < 8);
  out[16 + t] = __all_sync(kAll, t < 7);
  out[24 + t] = __any_sync(kAll, t == 7);
  out[32 + t] = __any_sync(kAll, t > 7);
}

// Values handed round the block through shared memory, and blocks that count themselves.
__global__ void around(int* out) {
  __shared__ int shared[128];
  const int t = threadIdx.x, last = blockDim.x - 1;
  for (int i = 0; i < 3; ++i) {
    shared[t] = i == 0 ? t : shared[t] + 1;
    __syncthreads();
    const int next = shared[t == last ? 0 : t + 1];
    __syncthreads();
    shared[t] = next;
  }
  out[1 + blockIdx.x * blockDim.x + t] = shared[t];
  if (t == 0) out[200 + atomicAdd(out, 1)] = static_cast<int>(blockIdx.x) + (shared[127] + 1);
}

__global__ void half_at_barrier(int* out) {
  if (threadIdx.x < 16) __syncthreads();
  out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
}

__global__ void lanes_missing(int* out) {
  if (threadIdx.x % 32 < 31) out[threadIdx.x] = __any_sync(kAll, 1);
  else __syncthreads();
}

__global__ void from_returned(int* out) {
  if (threadIdx.x % 32 == 3) return;
  out[threadIdx.x] = __shfl_sync(kAll, 1, 3);
}

__global__ void not_in_mask(int* out) { out[threadIdx.x] = __any_sync(1u, 1); }

__global__ void misaligned(int* out) {
  *reinterpret_cast<int4*>(out + 1) = int4{};
}

__global__ void nowhere(int* out) { *(out - (int64_t{1} << 44)) = 1; }

__global__ void extremes(int* out) {
  const float nan = NAN;
  out[0] = max(nan, 2.f) == 2.f && min(2.f, nan) == 2.f && max(-1, 1u) == kAll && min(1, 2ll) == 1;
}

using Kernel = void (*)(int*);
constexpr Kernel kKernels[] = {shuffles,      votes,       around,     half_at_barrier, lanes_missing,
                               from_returned, not_in_mask, misaligned, nowhere,         extremes};

}  // namespace

// The error, or an empty string.
extern "C" __attribute__((visibility("default"))) const char* probe(int kernel, unsigned blocks,
                                                                    unsigned threads, int* out) {
  const cudaLaunchConfig_t config = {.gridDim = dim3(blocks), .blockDim = dim3(threads)};
  const cudaError_t error = cudaLaunchKernelEx(&config, kKernels[kernel], out);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}
