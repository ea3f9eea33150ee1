// SPDX-License-Identifier: Apache-2.0
// Tiles in shared memory and their products, by a block of kThreads threads.
#pragma once

#include <mma.h>

#include "common/cuda.cuh"

namespace tdc::attention {

inline constexpr int kThreads = 128, kWarps = kThreads / kWarp;
// Blocks of a processor, which leaves 168 registers a thread. Without a number the compiler aims at
// as many blocks as shared memory has room for, up to nine, and spills.
inline constexpr int kResident = 3;
inline constexpr int kQueries = 16, kColumns = 64;  // of a block; at least 16, for wmma

// Tokens of a block: as many as fit in 48 KB of shared memory with all that goes with them.
template <typename T>
inline constexpr int kTokens = sizeof(T) == 2 ? 64 : sizeof(T) == 4 ? 32 : 16;
template <typename T>
inline constexpr int kGradientTokens = sizeof(T) == 8 ? 16 : 32;

// int32 or int64 numbers from 0 to `most`, which others are taken for; no address where there are
// none.
struct Integers {
  const void* base;
  bool wide;
  int64_t most;

  __device__ __forceinline__ int64_t operator[](int64_t i) const {
    const int64_t n = wide ? static_cast<const int64_t*>(base)[i] : static_cast<const int32_t*>(base)[i];
    return min(max(n, int64_t{0}), most);
  }
};

// Rows begin 8 elements apart in banks, and are whole multiples of what wmma loads.
template <typename T, int R, int C>
struct alignas(32) Tile {
  static constexpr int kStride = C + 8;
  T x[R][kStride];
};

// Probabilities and their gradients in the dtype of the products: the tiles they are computed in
// themselves where that is the same, to save shared memory.
template <typename T, int N>
struct Halves {
  Tile<T, N, kQueries> of_score, of_dp;
  template <typename S>
  __device__ __forceinline__ auto& probability(S&) {
    return of_score;
  }
  template <typename S>
  __device__ __forceinline__ auto& ds(S&) {
    return of_dp;
  }
};
template <typename T, int N>
  requires(sizeof(T) > 2)
struct Halves<T, N> {
  template <typename S>
  __device__ __forceinline__ S& probability(S& score) {
    return score;
  }
  template <typename S>
  __device__ __forceinline__ S& ds(S& dp) {
    return dp;
  }
};

template <typename T, int R, int C>
__device__ __forceinline__ void clear(Tile<T, R, C>& tile) {
  for (int e = threadIdx.x; e < R * C; e += kThreads) tile.x[e / C][e % C] = T(0.f);
}

// From memory, V elements at once; zeros where there are no more rows or columns, of which V is a
// divisor.
template <int V, typename T, int R, int C>
__device__ __forceinline__ void load(Tile<T, R, C>& tile, const T* from, int64_t stride, int rows,
                                     int columns) {
  constexpr int across = C / V;
#pragma unroll 4
  for (int e = threadIdx.x; e < R * across; e += kThreads) {
    const int r = e / across, c = e % across * V;
    Pack<T, V> part;
    if (r < rows && c < columns) {
      part = load_pack<V>(from + r * stride + c);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) part.x[v] = T(0.f);
    }
    store_pack<V>(&tile.x[r][c], part);
  }
}

template <typename T>
struct Operand;  // the names that wmma knows the half types by
template <>
struct Operand<f16> {
  using type = __half;
};
template <>
struct Operand<bf16> {
  using type = __nv_bfloat16;
};

template <bool kTransposed, typename T, int R, int K, int BR, int BC, int C>
__device__ __forceinline__ void multiply_by_wmma(const Tile<T, R, K>& a, const Tile<T, BR, BC>& b,
                                                 Tile<float, R, C>& total, bool add) {
  namespace w = nvcuda::wmma;
  using H = typename Operand<T>::type;
  using Layout = std::conditional_t<kTransposed, w::col_major, w::row_major>;
  for (int tile = threadIdx.x / kWarp; tile < R / 16 * (C / 16); tile += kWarps) {
    const int i = tile / (C / 16) * 16, j = tile % (C / 16) * 16;
    w::fragment<w::accumulator, 16, 16, 16, float> sum;
    if (add) w::load_matrix_sync(sum, &total.x[i][j], total.kStride, w::mem_row_major);
    else w::fill_fragment(sum, 0.f);
#pragma unroll
    for (int k = 0; k < K; k += 16) {
      w::fragment<w::matrix_a, 16, 16, 16, H, w::row_major> x;
      w::fragment<w::matrix_b, 16, 16, 16, H, Layout> y;
      w::load_matrix_sync(x, reinterpret_cast<const H*>(&a.x[i][k]), a.kStride);
      const T* from = kTransposed ? &b.x[j][k] : &b.x[k][j];
      w::load_matrix_sync(y, reinterpret_cast<const H*>(from), b.kStride);
      w::mma_sync(sum, x, y, sum);
    }
    w::store_matrix_sync(&total.x[i][j], sum, total.kStride, w::mem_row_major);
  }
}

// total = a b, or a b^T if transposed, or added to it. A thread has four columns of a row, and adds
// its sum over a tile up first: one running sum over all of a token's width would be far less exact.
template <bool kTransposed, typename T, int R, int K, int BR, int BC, typename A, int C>
__device__ __forceinline__ void multiply(const Tile<T, R, K>& a, const Tile<T, BR, BC>& b,
                                         Tile<A, R, C>& total, bool add) {
  static_assert(kTransposed ? BR == C && BC == K : BR == K && BC == C);
  if constexpr (sizeof(T) == 2) {
    multiply_by_wmma<kTransposed>(a, b, total, add);
  } else {
    constexpr int across = C / 4;
    for (int e = threadIdx.x; e < R * across; e += kThreads) {
      const int i = e / across, j = e % across;
      A sum[4] = {};
#pragma unroll 8
      for (int k = 0; k < K; ++k) {
        const A x = a.x[i][k];
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          sum[u] += x * (kTransposed ? b.x[j + u * across][k] : b.x[k][j + u * across]);
        }
      }
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        A& to = total.x[i][j + u * across];
        to = add ? to + sum[u] : sum[u];
      }
    }
  }
}

}  // namespace tdc::attention
