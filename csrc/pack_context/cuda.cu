// SPDX-License-Identifier: Apache-2.0
// pack_context on CUDA devices: one launch forward, one backward, a block per row. Contract:
// tdc_kernels/ops/pack_context/__init__.py.
#include "common/cuda.cuh"
#include "pack_context/arguments.h"

namespace tdc {
namespace {

inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / kWarp;

// Packs of a row that a thread keeps between the norm and the write, 4096 elements of a block in
// bf16 and fp32: the paper's 3584 are read once. What is longer is read again from the cache.
template <typename T, int V>
inline constexpr int kHeld = V > 1 && sizeof(T) == 2 ? 4 : 8;

// Of the separator's gradient: threads side by side in a row (256 bytes), and rows at once.
template <int V>
inline constexpr int kAcross = V > 1 ? 16 : kWarp;

template <typename A>
__device__ constexpr A eps() {
  return static_cast<A>(1e-12);  // smallest norm divided by, as in F.normalize
}

// M*K rows, K of a frame.
template <typename T>
struct Compressed {
  const T* first;
  int64_t frame_stride, query_stride;
  int queries, rows;

  __device__ __forceinline__ const T* row(int r) const {
    return first + r / queries * frame_stride + r % queries * query_stride;
  }
};

// f(column) for the packs of a thread that it does not keep.
template <typename T, int V, typename F>
__device__ __forceinline__ void rest_of_row(int width, const F& f) {
  for (int i = (kHeld<T, V> * kThreads + threadIdx.x) * V; i < width; i += kThreads * V) f(i);
}

// The part of a row that a thread keeps; zero beyond the width, of which V is a divisor.
template <typename T, int V>
struct Held {
  Pack<T, V> part[kHeld<T, V>];

  static __device__ __forceinline__ int column(int u) { return (u * kThreads + threadIdx.x) * V; }

  __device__ __forceinline__ void load(const T* row, int width) {
#pragma unroll
    for (int u = 0; u < kHeld<T, V>; ++u) {
      if (column(u) < width) {
        part[u] = load_pack<V>(row + column(u));
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) part[u].x[v] = T(0.f);
      }
    }
  }
};

template <typename T, int V>
__device__ __forceinline__ acc_t<T> dot(const Pack<T, V>& a, const Pack<T, V>& b) {
  using A = acc_t<T>;
  A total = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) total += static_cast<A>(a.x[v]) * static_cast<A>(b.x[v]);
  return total;
}

// Sums over the block in a fixed order, in every thread.
template <int N, typename A>
__device__ __forceinline__ void block_sums(A (&x)[N]) {
  __shared__ A shared[N][kWarps];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    x[k] = warp_sum(x[k]);
    if (threadIdx.x % kWarp == 0) shared[k][threadIdx.x / kWarp] = x[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < N; ++k) {
    x[k] = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) x[k] += shared[k][w];
  }
}

template <typename T, int V>
__device__ __forceinline__ void copy_row(const T* from, int width, T* to, const Held<T, V>& held) {
#pragma unroll
  for (int u = 0; u < kHeld<T, V>; ++u) {
    const int i = held.column(u);
    if (i < width) store_pack<V>(to + i, held.part[u]);
  }
  rest_of_row<T, V>(width, [&](int i) { store_pack<V>(to + i, load_pack<V>(from + i)); });
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    pack(const T* __restrict__ static_rows, int64_t static_stride, int static_count,
         Compressed<T> compressed, const T* __restrict__ separator,
         const int32_t* __restrict__ source, int width, T* __restrict__ out) {
  using A = acc_t<T>;
  const int r = source[blockIdx.x];
  const bool unit = r >= static_count && r - static_count < compressed.rows;
  // Any other number is the separator: what is not there is not read.
  const T* x = unit                         ? compressed.row(r - static_count)
               : r >= 0 && r < static_count ? static_rows + r * static_stride
                                            : separator;
  T* to = out + static_cast<int64_t>(blockIdx.x) * width;
  Held<T, V> held;
  held.load(x, width);
  if (!unit) return copy_row(x, width, to, held);

  A sums[1] = {0};
#pragma unroll
  for (int u = 0; u < kHeld<T, V>; ++u) sums[0] += dot(held.part[u], held.part[u]);
  rest_of_row<T, V>(width, [&](int i) {
    const Pack<T, V> part = load_pack<V>(x + i);
    sums[0] += dot(part, part);
  });
  block_sums(sums);
  const A norm = sqrt(sums[0]);
  const A scale = A(1) / (norm < eps<A>() ? eps<A>() : norm);  // a NaN stays one
  const auto write = [&](int i, const Pack<T, V>& part) {
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.x[v] = static_cast<T>(static_cast<A>(part.x[v]) * scale);
    store_pack<V>(to + i, result);
  };
#pragma unroll
  for (int u = 0; u < kHeld<T, V>; ++u) {
    if (held.column(u) < width) write(held.column(u), held.part[u]);
  }
  rest_of_row<T, V>(width, [&](int i) { write(i, load_pack<V>(x + i)); });
}

// The tokens' gradients [N, D], found by where a row went.
template <typename T>
struct Tokens {
  const T* grad;
  int64_t stride;
  int count;

  // Null where the row was cut off. What is not there is not read.
  __device__ __forceinline__ const T* at(int n) const {
    return n >= 0 && n < count ? grad + n * stride : nullptr;
  }
};

// Sum over all separators for one tile of columns: groups of threads take every so many-th one,
// then the groups are added up; always in the same order.
template <typename T, int V>
__device__ __forceinline__ void separator_gradient(const Tokens<T>& tokens,
                                                   const int32_t* separators, int count, int tile,
                                                   int width, T* out) {
  using A = acc_t<T>;
  constexpr int across = kAcross<V>, groups = kThreads / across, columns = across * V;
  __shared__ A shared[groups][columns];
  const int first = tile * columns, group = threadIdx.x / across;
  const int place = threadIdx.x % across * V;  // of the thread's columns in the tile
  A total[V] = {};
  if (first + place < width) {
#pragma unroll 4
    for (int s = group; s < count; s += groups) {
      const T* g = tokens.at(separators[s]);
      if (g == nullptr) continue;
      const Pack<T, V> part = load_pack<V>(g + first + place);
#pragma unroll
      for (int v = 0; v < V; ++v) total[v] += static_cast<A>(part.x[v]);
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) shared[group][place + v] = total[v];
  __syncthreads();
  for (int i = threadIdx.x; i < columns && first + i < width; i += kThreads) {
    A sum = 0;
#pragma unroll
    for (int k = 0; k < groups; ++k) sum += shared[k][i];
    out[first + i] = static_cast<T>(sum);
  }
}

// With n = max(|x|, eps) and y = x / n: dx = (g - y <y, g>) / n; below eps g / n.
template <typename T, int V>
__device__ __forceinline__ void compressed_gradient(const T* x, const T* g, int width, T* to,
                                                    const Held<T, V>& g_held) {
  using A = acc_t<T>;
  Held<T, V> x_held;
  x_held.load(x, width);
  A sums[2] = {0, 0};
#pragma unroll
  for (int u = 0; u < kHeld<T, V>; ++u) {
    sums[0] += dot(x_held.part[u], x_held.part[u]);
    sums[1] += dot(x_held.part[u], g_held.part[u]);
  }
  rest_of_row<T, V>(width, [&](int i) {
    const Pack<T, V> part = load_pack<V>(x + i);
    sums[0] += dot(part, part);
    sums[1] += dot(part, load_pack<V>(g + i));
  });
  block_sums(sums);
  const A norm = sqrt(sums[0]);
  const bool clamped = norm < eps<A>();
  const A along = clamped ? A(0) : sums[1] / sums[0];
  const A scale = A(1) / (clamped ? eps<A>() : norm);
  const auto write = [&](int i, const Pack<T, V>& a, const Pack<T, V>& b) {
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A across = static_cast<A>(b.x[v]) - along * static_cast<A>(a.x[v]);
      result.x[v] = static_cast<T>(across * scale);
    }
    store_pack<V>(to + i, result);
  };
#pragma unroll
  for (int u = 0; u < kHeld<T, V>; ++u) {
    const int i = x_held.column(u);
    if (i < width) write(i, x_held.part[u], g_held.part[u]);
  }
  rest_of_row<T, V>(width, [&](int i) { write(i, load_pack<V>(x + i), load_pack<V>(g + i)); });
}

// The first `tiles` blocks sum up separators, as that takes longest; each of the others has one row
// of [static; compressed], from `begin` on.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    pack_backward(Tokens<T> tokens, Compressed<T> compressed, const int32_t* __restrict__ position,
                  const int32_t* __restrict__ separators, int separator_count, int tiles, int begin,
                  int static_count, int width, T* __restrict__ to_static,
                  T* __restrict__ to_compressed, T* __restrict__ to_separator) {
  const int block = blockIdx.x;
  if (block < tiles) {
    separator_gradient<T, V>(tokens, separators, separator_count, block, width, to_separator);
    return;
  }
  const int row = begin + block - tiles;
  const bool unit = row >= static_count;
  const int64_t place = unit ? row - static_count : row;
  T* to = (unit ? to_compressed : to_static) + place * width;
  const T* g = tokens.at(position[row]);
  Held<T, V> held;
  held.load(g, g == nullptr ? 0 : width);
  if (unit && g != nullptr) {
    compressed_gradient(compressed.row(static_cast<int>(place)), g, width, to, held);
  } else if (g != nullptr) {
    copy_row(g, width, to, held);
  } else {
    for (int i = threadIdx.x * V; i < width; i += kThreads * V) store_pack<V>(to + i, held.part[0]);
  }
}

template <typename T>
Compressed<T> compressed_rows(const Tensor& x) {
  return {data<T>(x), x.stride(0), x.stride(1), static_cast<int>(x.size(1)),
          static_cast<int>(x.size(0) * x.size(1))};
}

template <typename T>
bool wide(const Compressed<T>& x, int64_t width) {
  return aligned16(x.first, {x.frame_stride, x.query_stride, width}, sizeof(T));
}

Tensor pack_context(Tensor static_rows, Tensor compressed, Tensor separator, Tensor source,
                    Tensor /*position*/, Tensor /*separators*/) {
  packing::check_pieces(static_rows, compressed, separator, source);
  const OnDevice device(static_rows);
  const int64_t tokens = source.numel(), width = static_rows.size(1);
  const int64_t stride = static_rows.stride(0);
  Tensor out = torch::stable::new_empty(static_rows, {tokens, width});
  with_type(static_rows.scalar_type(), [&]<typename T>() {
    const Compressed<T> units = compressed_rows<T>(compressed);
    const bool packs = wide(units, width) &&
                       aligned16(static_rows.const_data_ptr(), {stride}, sizeof(T)) &&
                       aligned16(separator.const_data_ptr(), {}, sizeof(T));
    device.launch(packs ? &pack<T, kVector<T>> : &pack<T, 1>, dim3(static_cast<unsigned>(tokens)),
                  kThreads, data<T>(static_rows), stride, static_cast<int>(static_rows.size(0)),
                  units, data<T>(separator), data<int32_t>(source), static_cast<int>(width),
                  mutable_data<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> pack_context_backward(Tensor grad, Tensor compressed,
                                                         Tensor position, Tensor separators,
                                                         bool for_static, bool for_compressed,
                                                         bool for_separator) {
  const OnDevice device(grad);
  packing::Backward call(grad, compressed, position, separators, for_static, for_compressed,
                         for_separator);
  const int64_t width = call.width, stride = call.grad.stride(0);
  with_type(grad.scalar_type(), [&]<typename T>() {
    const Compressed<T> units = compressed_rows<T>(compressed);
    const Tokens<T> tokens{data<T>(call.grad), stride, static_cast<int>(call.tokens)};
    const bool packs = wide(units, width) && aligned16(tokens.grad, {stride}, sizeof(T));
    const int columns = packs ? kAcross<kVector<T>> * kVector<T> : kAcross<1>;
    const int64_t tiles = for_separator ? (width + columns - 1) / columns : 0;
    const int64_t begin = for_static ? 0 : call.static_count;
    const int64_t end = for_compressed ? position.numel() : call.static_count;
    device.launch(packs ? &pack_backward<T, kVector<T>> : &pack_backward<T, 1>,
                  dim3(static_cast<unsigned>(tiles + end - begin)), kThreads, tokens, units,
                  data<int32_t>(position), data<int32_t>(separators),
                  static_cast<int>(separators.numel()), static_cast<int>(tiles),
                  static_cast<int>(begin), static_cast<int>(call.static_count),
                  static_cast<int>(width), mutable_data<T>(call.to_static),
                  mutable_data<T>(call.to_compressed), mutable_data<T>(call.to_separator));
  });
  return {call.to_static, call.to_compressed, call.to_separator};
}

}  // namespace
}  // namespace tdc

// The schemas are declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_cuda, TDC_CUDA_KEY, m) {
  m.impl("pack_context", TORCH_BOX(&tdc::pack_context));
  m.impl("pack_context_backward", TORCH_BOX(&tdc::pack_context_backward));
}
