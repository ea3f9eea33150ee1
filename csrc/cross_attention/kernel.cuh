// SPDX-License-Identifier: Apache-2.0
// cross_attention over projected keys and values, and its gradients. A block has 16 queries of one
// head and walks over its frame's tokens, visual ones first; in the gradient of the tokens it has a
// few tokens and walks over the rows that ask for their frame. Heads wider than 64 are taken in
// parts: a block owns one part of its result and goes over all parts for the scores.
//
// All products go through shared memory: tensor cores (wmma) for half types, plain FMA for others.
// Not tuned on a GPU; wgmma and TMA for sm_90a wait for a measurement.
#pragma once

#include "cross_attention/tiles.cuh"

namespace tdc::attention {

// One source's keys and values, [F, tokens, 2, H*d].
template <typename T>
struct Source {
  const T* projected;
  int tokens, first;  // of a frame, and where they begin among all of its tokens
  Integers lengths;

  __device__ __forceinline__ int length(int64_t frame) const {
    return lengths.base == nullptr ? tokens : static_cast<int>(lengths[frame]);
  }
};

template <typename T>
struct Problem {
  const T *query, *grad;  // [M, Q, H*d]
  Source<T> sources[2];
  int source_count;
  Integers index;
  const uint8_t* mask;  // [F, tokens], or null
  int rows, queries, heads, dim, tokens;
  acc_t<T> scale;

  __device__ __forceinline__ int64_t width() const { return static_cast<int64_t>(heads) * dim; }
  __device__ __forceinline__ bool sees(int64_t frame, int token) const {
    return mask == nullptr || mask[frame * tokens + token] != 0;
  }
};

// Of one block: a head of some queries of a row.
template <typename T>
struct Place {
  int row, head, first, count;  // queries
  int64_t frame, at;            // of the first query's head

  __device__ __forceinline__ explicit Place(const Problem<T>& p)
      : row(static_cast<int>(blockIdx.x / static_cast<unsigned>(p.heads))),
        head(static_cast<int>(blockIdx.x % static_cast<unsigned>(p.heads))),
        first(static_cast<int>(blockIdx.y) * kQueries),
        count(min(kQueries, p.queries - first)),
        frame(p.index.base == nullptr ? row : p.index[row]),
        at((static_cast<int64_t>(row) * p.queries + first) * p.width() + head * p.dim) {}
};

// total (+)= a b^T over a head's columns, part by part: a has R rows, b has C.
template <int V, int R, int C, typename T, typename A>
__device__ __forceinline__ void head_products(const T* a, int64_t a_stride, int a_rows, const T* b,
                                              int64_t b_stride, int b_rows, int dim,
                                              Tile<T, R, kColumns>& x, Tile<T, C, kColumns>& y,
                                              Tile<A, R, C>& total) {
  for (int c = 0; c < dim; c += kColumns) {
    load<V>(x, a + c, a_stride, a_rows, dim - c);
    load<V>(y, b + c, b_stride, b_rows, dim - c);
    __syncthreads();
    multiply<true>(x, y, total, c > 0);
    __syncthreads();
  }
}

// Running maximum and sum of exponentials of 16 queries' scores.
template <typename A>
struct Running {
  A top[kQueries], total[kQueries], along[kQueries];

  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < kQueries; i += kThreads) {
      top[i] = -INFINITY;
      total[i] = along[i] = 0;
    }
  }
};

template <typename A>
__device__ __forceinline__ A shifted_exp(A score, A top) {
  return exp(score - (top == A(-INFINITY) ? A(0) : top));
}

template <typename A>
__device__ __forceinline__ A warp_max(A x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x = max(x, __shfl_xor_sync(kFullMask, x, step));
  return x;
}

// A row of a block of scores, by one warp: into exponentials, and the running values with them.
// Returns by how much what was summed before shrinks.
template <typename T, int N, typename A>
__device__ __forceinline__ A softmax_step(const Problem<T>& p, const Source<T>& source,
                                          int64_t frame, int first, int length, int i,
                                          Tile<A, kQueries, N>& score, Running<A>& running) {
  const int lane = threadIdx.x % kWarp;
  A best = running.top[i], sum = 0;
  const A before = best;
  for (int n = lane; n < N; n += kWarp) {
    const int token = first + n;
    const bool seen = token < length && p.sees(frame, source.first + token);
    score.x[i][n] = seen ? score.x[i][n] * p.scale : A(-INFINITY);
    best = max(best, score.x[i][n]);
  }
  best = warp_max(best);
  for (int n = lane; n < N; n += kWarp) {
    score.x[i][n] = shifted_exp(score.x[i][n], best);
    sum += score.x[i][n];
  }
  sum = warp_sum(sum);
  const A shrink = shifted_exp(before, best);
  if (lane == 0) {
    running.top[i] = best;
    running.total[i] = running.total[i] * shrink + sum;
  }
  return shrink;
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kResident)
    attend(Problem<T> p, const T* __restrict__ bias, T* __restrict__ out) {
  using A = acc_t<T>;
  constexpr int N = kTokens<T>;
  __shared__ Tile<T, kQueries, kColumns> query;
  __shared__ Tile<T, N, kColumns> token_rows;
  __shared__ Tile<A, kQueries, N> score;
  __shared__ Tile<T, kQueries, N> probability;
  __shared__ Tile<A, kQueries, kColumns> mixed;
  __shared__ Running<A> running;
  const Place<T> place(p);
  const int64_t width = p.width();
  const int part = static_cast<int>(blockIdx.z) * kColumns;
  running.clear();
  clear(mixed);
  __syncthreads();
  for (int s = 0; s < p.source_count; ++s) {
    const Source<T>& source = p.sources[s];
    const int length = source.length(place.frame);
    const T* keys = source.projected + place.frame * source.tokens * 2 * width + place.head * p.dim;
    for (int first = 0; first < length; first += N, keys += N * 2 * width) {
      const int count = length - first;
      head_products<V>(p.query + place.at, width, place.count, keys, 2 * width, count, p.dim, query,
                       token_rows, score);
      load<V>(token_rows, keys + width + part, 2 * width, count, p.dim - part);
      for (int i = threadIdx.x / kWarp; i < kQueries; i += kWarps) {
        const A shrink = softmax_step(p, source, place.frame, first, length, i, score, running);
        const int lane = threadIdx.x % kWarp;
        for (int c = lane; c < kColumns; c += kWarp) mixed.x[i][c] *= shrink;
        for (int n = lane; n < N; n += kWarp) probability.x[i][n] = static_cast<T>(score.x[i][n]);
      }
      __syncthreads();
      multiply<false>(probability, token_rows, mixed, true);
      __syncthreads();
    }
  }
  for (int e = threadIdx.x; e < kQueries * kColumns; e += kThreads) {
    const int i = e / kColumns, c = e % kColumns;
    if (i >= place.count || part + c >= p.dim) continue;
    const A total = running.total[i];
    A value = 0;  // a row without any token: no bias. A NaN stays one
    if (total != 0) {
      value = mixed.x[i][c] / total;
      if (bias != nullptr) value += static_cast<A>(bias[place.head * p.dim + part + c]);
    }
    out[place.at + i * width + part + c] = static_cast<T>(value);
  }
}

// Twice over the tokens: for the statistics [M, H, 3, Q] (highest score, 1 / sum of exponentials,
// sum of p <g, v>), then for dS K, with dS = p (<g, v> - sum of p <g, v>).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kResident)
    query_gradient(Problem<T> p, acc_t<T>* __restrict__ statistics, T* __restrict__ out) {
  using A = acc_t<T>;
  constexpr int N = kTokens<T>;
  __shared__ Tile<T, kQueries, kColumns> query;  // or the output's gradient
  __shared__ Tile<T, N, kColumns> token_rows;
  __shared__ Tile<A, kQueries, N> score, dp;
  __shared__ Tile<T, kQueries, N> ds;
  __shared__ Tile<A, kQueries, kColumns> total;
  __shared__ Running<A> running;
  const Place<T> place(p);
  const int64_t width = p.width();
  const int part = static_cast<int>(blockIdx.z) * kColumns, lane = threadIdx.x % kWarp;
  running.clear();
  clear(total);
  __syncthreads();
  for (int step = 0; step < 2 * p.source_count; ++step) {
    const bool second = step >= p.source_count;
    const Source<T>& source = p.sources[step % p.source_count];
    const int length = source.length(place.frame);
    const T* keys = source.projected + place.frame * source.tokens * 2 * width + place.head * p.dim;
    if (step == p.source_count && threadIdx.x < kQueries) {
      A& share = running.total[threadIdx.x];
      share = share == 0 ? A(0) : A(1) / share;
      running.along[threadIdx.x] *= share;
    }
    for (int first = 0; first < length; first += N, keys += N * 2 * width) {
      const int count = length - first;
      head_products<V>(p.query + place.at, width, place.count, keys, 2 * width, count, p.dim, query,
                       token_rows, score);
      head_products<V>(p.grad + place.at, width, place.count, keys + width, 2 * width, count, p.dim,
                       query, token_rows, dp);
      if (second) load<V>(token_rows, keys + part, 2 * width, count, p.dim - part);
      for (int i = threadIdx.x / kWarp; i < kQueries; i += kWarps) {
        if (second) {
          for (int n = lane; n < N; n += kWarp) {
            const bool seen = n < count && p.sees(place.frame, source.first + first + n);
            const A s = seen ? score.x[i][n] * p.scale : A(-INFINITY);
            const A probability = shifted_exp(s, running.top[i]) * running.total[i];
            ds.x[i][n] = static_cast<T>(probability * (dp.x[i][n] - running.along[i]));
          }
          continue;
        }
        const A shrink = softmax_step(p, source, place.frame, first, length, i, score, running);
        A sum = 0;
        for (int n = lane; n < N; n += kWarp) sum += score.x[i][n] * dp.x[i][n];
        sum = warp_sum(sum);
        if (lane == 0) running.along[i] = running.along[i] * shrink + sum;
      }
      __syncthreads();
      if (second) multiply<false>(ds, token_rows, total, true);
      __syncthreads();
    }
    __syncthreads();
  }
  if (part == 0 && threadIdx.x < place.count) {
    A* to = statistics + (static_cast<int64_t>(place.row) * p.heads + place.head) * 3 * p.queries +
            place.first + threadIdx.x;
    to[0] = running.top[threadIdx.x];
    to[p.queries] = running.total[threadIdx.x];
    to[2 * p.queries] = running.along[threadIdx.x];
  }
  for (int e = threadIdx.x; e < kQueries * kColumns; e += kThreads) {
    const int i = e / kColumns, c = e % kColumns;
    if (i >= place.count || part + c >= p.dim) continue;
    out[place.at + i * width + part + c] = static_cast<T>(total.x[i][c] * p.scale);
  }
}

// The gradients of one source's keys and values [F, N, 2, H*d]. A block owns some tokens of a frame
// and adds up the rows that ask for it in their order. Every value is written once, zeros included.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kResident)
    token_gradient(Problem<T> p, int which, const acc_t<T>* __restrict__ statistics,
                   T* __restrict__ out) {
  using A = acc_t<T>;
  constexpr int N = kGradientTokens<T>;
  __shared__ Tile<T, N, kColumns> token_rows;    // keys or values
  __shared__ Tile<T, kQueries, kColumns> query;  // or the output's gradient
  __shared__ Tile<A, N, kQueries> score, dp;
  __shared__ Halves<T, N> halves;
  __shared__ Tile<A, N, kColumns> to_key, to_value;
  const Source<T>& source = p.sources[which];
  const int head = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.heads));
  const int64_t frame = blockIdx.x / static_cast<unsigned>(p.heads), width = p.width();
  const int first = static_cast<int>(blockIdx.y) * N, part = blockIdx.z * kColumns;
  const int count = source.length(frame) - first;
  const int64_t place = (frame * source.tokens + first) * 2 * width + head * p.dim;
  const T* keys = source.projected + place;
  auto& ds = halves.ds(dp);
  auto& probability = halves.probability(score);
  clear(to_key);
  clear(to_value);
  const int begin = p.index.base == nullptr ? static_cast<int>(frame) : 0;
  const int end = count <= 0 ? begin : p.index.base == nullptr ? begin + 1 : p.rows;
  for (int row = begin; row < end; ++row) {
    if (p.index.base != nullptr && p.index[row] != frame) continue;
    const A* of_row = statistics + (static_cast<int64_t>(row) * p.heads + head) * 3 * p.queries;
    for (int q = 0; q < p.queries; q += kQueries) {
      const int queries = p.queries - q;
      const int64_t at = (static_cast<int64_t>(row) * p.queries + q) * width + head * p.dim;
      __syncthreads();
      head_products<V>(keys, 2 * width, count, p.query + at, width, queries, p.dim, token_rows,
                       query, score);
      head_products<V>(keys + width, 2 * width, count, p.grad + at, width, queries, p.dim,
                       token_rows, query, dp);
      for (int e = threadIdx.x; e < N * kQueries; e += kThreads) {
        const int n = e / kQueries, i = e % kQueries;
        const bool seen = n < count && i < queries && p.sees(frame, source.first + first + n);
        A share = 0, change = 0;
        if (seen) {
          const A* of = of_row + q + i;
          share = shifted_exp(score.x[n][i] * p.scale, of[0]) * of[p.queries];
          change = share * (dp.x[n][i] - of[2 * p.queries]);
        }
        probability.x[n][i] = static_cast<T>(share);
        ds.x[n][i] = static_cast<T>(change);
      }
      load<V>(query, p.grad + at + part, width, queries, p.dim - part);
      __syncthreads();
      multiply<false>(probability, query, to_value, true);
      __syncthreads();
      load<V>(query, p.query + at + part, width, queries, p.dim - part);
      __syncthreads();
      multiply<false>(ds, query, to_key, true);
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < N * kColumns; e += kThreads) {
    const int n = e / kColumns, c = e % kColumns;
    if (first + n >= source.tokens || part + c >= p.dim) continue;
    T* to = out + place + n * 2 * width + part + c;
    to[0] = static_cast<T>(to_key.x[n][c] * p.scale);
    to[width] = static_cast<T>(to_value.x[n][c]);
  }
}

}  // namespace tdc::attention
