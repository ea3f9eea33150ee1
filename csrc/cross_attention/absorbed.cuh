// SPDX-License-Identifier: Apache-2.0
// cross_attention with the weights absorbed into the queries: scores of a row's H*Q absorbed queries
// with its frame's tokens, their softmax, and mixtures of tokens. The scores go through memory: they
// are a ninth of the absorbed queries (206 tokens of 3584 values). Not tuned on a GPU.
#pragma once

#include "cross_attention/tiles.cuh"

namespace tdc::attention {

inline constexpr int kGroup = 32;  // absorbed queries of a block
template <typename T>
inline constexpr int kAbsorbedTokens = sizeof(T) == 2 ? 64 : 16;

// Some rows' absorbed queries or mixtures, [H, rows, Q, columns], and one source's tokens.
template <typename T>
struct Absorbed {
  const T* tokens;  // [F, N, D], dense rows
  int64_t frame_stride, token_stride, columns;
  int64_t depth;  // D; of `columns` there may be more, another source's
  int count, first, in_all;
  Integers lengths;
  Integers index;
  int begin;  // the first of the rows among all
  const uint8_t* mask;
  int rows, queries, heads;

  __device__ __forceinline__ int64_t frame(int row) const {
    return index.base == nullptr ? begin + row : index[begin + row];
  }
  __device__ __forceinline__ int length(int64_t f) const {
    return lengths.base == nullptr ? count : static_cast<int>(lengths[f]);
  }
  // Where absorbed query j of a row begins.
  __device__ __forceinline__ int64_t place(int row, int j) const {
    return ((static_cast<int64_t>(j / queries) * rows + row) * queries + j % queries) * columns;
  }
};

// kGroup absorbed queries' columns from `at` on, which do not lie a constant stride apart.
template <int V, typename T>
__device__ __forceinline__ void load_group(Tile<T, kGroup, kColumns>& tile, const T* from,
                                           const Absorbed<T>& p, int row, int first, int64_t at) {
  constexpr int across = kColumns / V;
  for (int e = threadIdx.x; e < kGroup * across; e += kThreads) {
    const int r = e / across, c = e % across * V;
    Pack<T, V> part;
    if (first + r < p.heads * p.queries && at + c < p.depth) {
      part = load_pack<V>(from + p.place(row, first + r) + at + c);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) part.x[v] = T(0.f);
    }
    store_pack<V>(&tile.x[r][c], part);
  }
}

// score [rows, H*Q, Nv+Na]; -inf at tokens that do not count.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kResident)
    absorbed_scores(Absorbed<T> p, const T* __restrict__ absorbed, acc_t<T> scale,
                    acc_t<T>* __restrict__ score) {
  using A = acc_t<T>;
  constexpr int N = kAbsorbedTokens<T>;
  __shared__ Tile<T, kGroup, kColumns> group;
  __shared__ Tile<T, N, kColumns> token_rows;
  __shared__ Tile<A, kGroup, N> total;
  const int all = p.heads * p.queries, parts = (all + kGroup - 1) / kGroup;
  const int row = static_cast<int>(blockIdx.x) / parts;
  const int j = static_cast<int>(blockIdx.x) % parts * kGroup;
  const int64_t frame = p.frame(row);
  const int first = static_cast<int>(blockIdx.y) * N, length = p.length(frame);
  const T* tokens = p.tokens + frame * p.frame_stride + first * p.token_stride;
  clear(total);
  __syncthreads();
  for (int64_t c = 0; c < p.depth && first < length; c += kColumns) {
    load_group<V>(group, absorbed, p, row, j, c);
    const int columns = static_cast<int>(p.depth - c < kColumns ? p.depth - c : kColumns);
    load<V>(token_rows, tokens + c, p.token_stride, length - first, columns);
    __syncthreads();
    multiply<true>(group, token_rows, total, true);
    __syncthreads();
  }
  A* to = score + (static_cast<int64_t>(row) * all + j) * p.in_all + p.first + first;
  for (int e = threadIdx.x; e < kGroup * N; e += kThreads) {
    const int i = e / N, n = e % N, token = first + n;
    if (j + i >= all || token >= p.count) continue;
    const bool seen = token < length &&
                      (p.mask == nullptr || p.mask[frame * p.in_all + p.first + token] != 0);
    to[static_cast<int64_t>(i) * p.in_all + n] = seen ? total.x[i][n] * scale : A(-INFINITY);
  }
}

// A warp per row of scores: probabilities in the dtype of the tokens, and whether there is any token.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    absorbed_softmax(const acc_t<T>* __restrict__ score, int count, int tokens,
                     T* __restrict__ probability, uint8_t* __restrict__ any) {
  using A = acc_t<T>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= count) return;
  const int lane = threadIdx.x % kWarp;
  const A* s = score + row * tokens;
  A top = -INFINITY, total = 0;
  for (int n = lane; n < tokens; n += kWarp) top = max(top, s[n]);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    top = max(top, __shfl_xor_sync(kFullMask, top, step));
  }
  if (top == A(-INFINITY)) top = 0;  // no token at all: zeros
  for (int n = lane; n < tokens; n += kWarp) total += exp(s[n] - top);
  total = warp_sum(total);
  const A share = total == 0 ? A(0) : A(1) / total;
  for (int n = lane; n < tokens; n += kWarp) {
    probability[row * tokens + n] = static_cast<T>(exp(s[n] - top) * share);
  }
  if (lane == 0) any[row] = total != 0;
}

// mixed [H, rows, Q, columns], one source's part of the columns.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kResident)
    absorbed_mix(Absorbed<T> p, const T* __restrict__ probability, T* __restrict__ mixed) {
  using A = acc_t<T>;
  constexpr int N = kAbsorbedTokens<T>;
  __shared__ Tile<T, kGroup, N> shares;
  __shared__ Tile<T, N, kColumns> token_rows;
  __shared__ Tile<A, kGroup, kColumns> total;
  const int all = p.heads * p.queries, parts = (all + kGroup - 1) / kGroup;
  const int row = static_cast<int>(blockIdx.x) / parts;
  const int j = static_cast<int>(blockIdx.x) % parts * kGroup;
  const int64_t frame = p.frame(row), column = static_cast<int64_t>(blockIdx.y) * kColumns;
  const int columns = static_cast<int>(p.depth - column < kColumns ? p.depth - column : kColumns);
  const int length = p.length(frame);
  const T* from = probability + (static_cast<int64_t>(row) * all + j) * p.in_all + p.first;
  const T* tokens = p.tokens + frame * p.frame_stride + column;
  clear(total);
  for (int first = 0; first < length; first += N) {
    load<1>(shares, from + first, p.in_all, all - j, length - first);
    load<V>(token_rows, tokens + first * p.token_stride, p.token_stride, length - first, columns);
    __syncthreads();
    multiply<false>(shares, token_rows, total, true);
    __syncthreads();
  }
  __syncthreads();
  for (int e = threadIdx.x; e < kGroup * kColumns; e += kThreads) {
    const int i = e / kColumns, c = e % kColumns;
    if (j + i >= all || c >= columns) continue;
    mixed[p.place(row, j + i) + column + c] = static_cast<T>(total.x[i][c]);
  }
}

// [H, rows, Q, d] -> [rows, Q, H*d], plus the bias where the row has any token.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    absorbed_finish(const T* __restrict__ heads_first, const uint8_t* __restrict__ any,
                    const T* __restrict__ bias, int rows, int queries, int heads, int dim,
                    T* __restrict__ out) {
  const int row = static_cast<int>(blockIdx.x), width = heads * dim;
  for (int e = threadIdx.x; e < queries * width; e += kThreads) {
    const int q = e / width, h = e % width / dim, c = e % dim;
    const int64_t from = ((static_cast<int64_t>(h) * rows + row) * queries + q) * dim + c;
    acc_t<T> value = 0;
    if (any[(static_cast<int64_t>(row) * heads + h) * queries + q] != 0) {
      value = static_cast<acc_t<T>>(heads_first[from]);
      if (bias != nullptr) value += static_cast<acc_t<T>>(bias[h * dim + c]);
    }
    out[static_cast<int64_t>(row) * queries * width + e] = static_cast<T>(value);
  }
}

}  // namespace tdc::attention
