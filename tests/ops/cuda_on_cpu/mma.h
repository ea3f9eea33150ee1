// SPDX-License-Identifier: Apache-2.0
// The part of nvcuda::wmma that the kernels use: tiles of 16 x 16 x 16, half types into fp32. A lane
// has 8 values of an accumulator (which ones is as little known to kernels as on a GPU), and all of
// the operands. Every function waits for the whole warp; addresses and strides that a GPU would
// refuse are errors.
#pragma once

#include "cuda_on_cpu.h"

struct __half {
  uint16_t bits;
  explicit operator float() const {
    const int exponent = bits >> 10 & 31;
    const float fraction = static_cast<float>(bits & 1023);
    const float size = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                       : exponent == 0 ? ldexpf(fraction, -24)
                                       : ldexpf(fraction + 1024, exponent - 25);
    return bits >> 15 ? -size : size;
  }
};
struct __nv_bfloat16 {
  uint16_t bits;
  explicit operator float() const { return std::bit_cast<float>(unsigned{bits} << 16); }
};

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16);
  float x[16][16];  // an operand, by rows
};
template <>
struct fragment<accumulator, 16, 16, 16, float, void> {
  float x[8];
};
using Sum = fragment<accumulator, 16, 16, 16, float, void>;

inline int cuda_on_cpu_lane() { return cuda_on_cpu::lane(*cuda_on_cpu::machine.current); }

template <typename T>
void cuda_on_cpu_check(const T* p, unsigned stride) {
  if (reinterpret_cast<uintptr_t>(p) % 32 != 0) {
    cuda_on_cpu::report("wmma: address is no multiple of 32 bytes");
  }
  if (stride * sizeof(T) % 16 != 0) cuda_on_cpu::report("wmma: stride is no multiple of 16 bytes");
  __syncwarp();
}

template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* p, unsigned stride) {
  cuda_on_cpu_check(p, stride);
  for (unsigned i = 0; i < 16; ++i) {
    for (unsigned j = 0; j < 16; ++j) {
      const bool by_rows = std::is_same_v<Layout, row_major>;
      f.x[i][j] = static_cast<float>(by_rows ? p[i * stride + j] : p[j * stride + i]);
    }
  }
}

inline void load_matrix_sync(Sum& f, const float* p, unsigned stride, layout_t) {
  cuda_on_cpu_check(p, stride);
  const int lane = cuda_on_cpu_lane();
  for (int j = 0; j < 8; ++j) f.x[j] = p[lane / 2 * static_cast<int>(stride) + lane % 2 * 8 + j];
}

inline void fill_fragment(Sum& f, float value) {
  for (float& x : f.x) x = value;
}

template <typename T, typename Layout>
void mma_sync(Sum& d, const fragment<matrix_a, 16, 16, 16, T, row_major>& a,
              const fragment<matrix_b, 16, 16, 16, T, Layout>& b, const Sum& c) {
  __syncwarp();
  const int i = cuda_on_cpu_lane() / 2, first = cuda_on_cpu_lane() % 2 * 8;
  for (int j = 0; j < 8; ++j) {
    float sum = c.x[j];
    for (int k = 0; k < 16; ++k) sum += a.x[i][k] * b.x[k][first + j];
    d.x[j] = sum;
  }
}

inline void store_matrix_sync(float* p, const Sum& f, unsigned stride, layout_t) {
  cuda_on_cpu_check(p, stride);
  const int lane = cuda_on_cpu_lane();
  for (int j = 0; j < 8; ++j) p[lane / 2 * static_cast<int>(stride) + lane % 2 * 8 + j] = f.x[j];
  __syncwarp();
}

}  // namespace nvcuda::wmma
