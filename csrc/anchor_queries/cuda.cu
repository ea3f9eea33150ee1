// SPDX-License-Identifier: Apache-2.0
// anchor_queries on CUDA devices. Contract: tdc_kernels/ops/anchor_queries/__init__.py.
#include "anchor_queries/bins.h"
#include "common/cuda.cuh"

namespace tdc {
namespace {

using namespace pooling;

inline constexpr int kThreads = 128;  // 1024 columns in bf16, of 3584 in the model
inline constexpr int kInFlight = 4;   // tokens a thread is loading at once
inline constexpr int kBatch = 16;     // entries of `index` on their way at once

// Tokens whose gradients a thread holds, in 32 registers at most.
template <int V>
inline constexpr int kTokens = V > 4 ? 32 / V : 8;

// What is small, the pooled rows and the index, is accessed by its dtype at run time: the kernels
// are compiled once per dtype of the tokens.
template <typename O, int V, typename A>
__device__ __forceinline__ void load_values(const void* base, int64_t offset, A (&x)[V]) {
  constexpr int width = V < kVector<O> ? V : kVector<O>;
#pragma unroll
  for (int i = 0; i < V; i += width) {
    const auto part = load_pack<width>(static_cast<const O*>(base) + offset + i);
#pragma unroll
    for (int v = 0; v < width; ++v) x[i + v] = static_cast<A>(part.x[v]);
  }
}

template <typename O, int V, typename A>
__device__ __forceinline__ void store_values(void* base, int64_t offset, const A (&x)[V]) {
  constexpr int width = V < kVector<O> ? V : kVector<O>;
#pragma unroll
  for (int i = 0; i < V; i += width) {
    Pack<O, width> part;
#pragma unroll
    for (int v = 0; v < width; ++v) part.x[v] = static_cast<O>(x[i + v]);
    store_pack(static_cast<O*>(base) + offset + i, part);
  }
}

struct Pooled {
  void* base;
  ScalarType type;

  template <int V, typename A>
  __device__ __forceinline__ void load(int64_t offset, A (&x)[V]) const {
    if constexpr (std::is_same_v<A, double>) load_values<double>(base, offset, x);
    else if (type == ScalarType::Float) load_values<float>(base, offset, x);
    else if (type == ScalarType::Half) load_values<f16>(base, offset, x);
    else load_values<bf16>(base, offset, x);
  }

  template <int V, typename A>
  __device__ __forceinline__ void store(int64_t offset, const A (&x)[V]) const {
    if constexpr (std::is_same_v<A, double>) store_values<double>(base, offset, x);
    else if (type == ScalarType::Float) store_values<float>(base, offset, x);
    else if (type == ScalarType::Half) store_values<f16>(base, offset, x);
    else store_values<bf16>(base, offset, x);
  }
};

// Frame numbers of the anchors; without a tensor, every frame once. An empty tensor has no address.
struct Index {
  enum Kind : int { every, narrow, wide };  // int32, int64
  const void* base;
  Kind kind;
  int count, last;  // anchors, and the last frame that there is: no number leads beyond

  __device__ __forceinline__ int64_t operator[](int anchor) const {
    if (kind == every) return anchor;
    const int64_t frame = kind == wide ? static_cast<const int64_t*>(base)[anchor]
                                       : static_cast<const int32_t*>(base)[anchor];
    return min(max(frame, int64_t{0}), int64_t{last});
  }

  __device__ __forceinline__ bool asks(int anchor, int frame) const {
    return kind == every || (*this)[anchor] == frame;
  }
};

struct Shape {
  int length, queries;
  int64_t width;
};

// The mean of one bin's tokens, over the block's columns: they are read once, but for one that two
// bins share, which comes from the L2 cache (they are neighbours in the grid). A block per bin, as
// a block per anchor would leave most of the GPU idle.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    pool(const T* __restrict__ tokens, int64_t frame_stride, int64_t token_stride, Shape shape,
         Index index, Pooled out) {
  using A = acc_t<T>;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * V;
  if (column >= shape.width) return;  // V divides the width, or is 1
  const unsigned row = blockIdx.x, queries = static_cast<unsigned>(shape.queries);
  const Bin bin(row % queries, shape.length, shape.queries);
  const T* x = tokens + index[static_cast<int>(row / queries)] * frame_stride +
               bin.start * token_stride + column;
  A total[V] = {};
  int left = static_cast<int>(bin.stop - bin.start);
  const A count = static_cast<A>(left);
  for (; left > 0; left -= kInFlight) {
    Pack<T, V> part[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (u < left) part[u] = load_pack<V>(x + u * token_stride);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (u < left) total[v] += static_cast<A>(part[u].x[v]);
      }
    }
    x += kInFlight * token_stride;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) total[v] /= count;
  out.store(row * shape.width + column, total);
}

// All that a walk over bins needs, so that it divides nothing: L / K, L mod K, and the reciprocals
// of the three widths that bins can have, L / K and one or two more.
template <typename A>
struct Steps {
  int quotient, remainder;
  A scale[3];

  explicit Steps(const Shape& s)
      : quotient(s.length / s.queries), remainder(s.length % s.queries) {
    for (int i = 0; i < 3; ++i) scale[i] = A(1) / static_cast<A>(std::max(quotient + i, 1));
  }
};

// Where a walk over the bins of the tokens from `first` on begins.
struct Walk {
  int64_t bin;
  int start, rest;  // floor(jL/K) and jL mod K

  __device__ __forceinline__ Walk(int first, const Shape& s)
      : bin(first_bin(first, s.length, s.queries)),
        start(static_cast<int>(bin * s.length / s.queries)),
        rest(static_cast<int>(bin * s.length % s.queries)) {}

  // To the next bin; returns where this one stops.
  template <typename A>
  __device__ __forceinline__ int next(const Steps<A>& steps, int queries) {
    ++bin;
    start += steps.quotient;
    rest += steps.remainder;
    if (rest >= queries) {
      rest -= queries;
      ++start;
    }
    return rest > 0 ? start + 1 : start;
  }
};

// Adds one anchor's gradient to those of the tokens from `first` on, bin by bin.
template <int V, typename A>
__device__ __forceinline__ void add_anchor(A (&total)[kTokens<V>][V], const Pooled& grad,
                                           int64_t anchor, const Shape& shape,
                                           const Steps<A>& steps, int64_t column, int first,
                                           Walk walk) {
  const int end = min(first + kTokens<V>, shape.length);
  while (walk.start < end) {
    A value[V];
    grad.load((anchor * shape.queries + walk.bin) * shape.width + column, value);
    const int start = walk.start, stop = walk.next(steps, shape.queries);
    const int more = stop - start - steps.quotient;
    const A scale = more == 0 ? steps.scale[0] : more == 1 ? steps.scale[1] : steps.scale[2];
#pragma unroll
    for (int u = 0; u < kTokens<V>; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (start <= first + u && first + u < stop) total[u][v] += value[v] * scale;
      }
    }
  }
}

// The gradient of kTokens tokens of a frame, over the block's columns: what the anchors that ask
// for the frame received, in their order. Every value is written once, zeros included.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    gradient(Pooled grad, Index index, Shape shape, Steps<acc_t<T>> steps, T* __restrict__ out) {
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * V;
  if (column >= shape.width) return;
  const int parts = (shape.length + kTokens<V> - 1) / kTokens<V>;
  const int frame = static_cast<int>(blockIdx.x) / parts;
  const int first = static_cast<int>(blockIdx.x) % parts * kTokens<V>;
  const Walk walk(first, shape);
  acc_t<T> total[kTokens<V>][V] = {};
  const int anchors = index.kind == Index::every ? 1 : index.count;
  for (int begin = 0; begin < anchors; begin += kBatch) {
    unsigned asking = 0;
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (begin + u < anchors && index.asks(begin + u, frame)) asking |= 1u << u;
    }
    for (; asking != 0; asking &= asking - 1) {
      const int anchor = index.kind == Index::every ? frame : begin + __ffs(asking) - 1;
      add_anchor<V>(total, grad, anchor, shape, steps, column, first, walk);
    }
  }
  T* at = out + (static_cast<int64_t>(frame) * shape.length + first) * shape.width + column;
#pragma unroll
  for (int u = 0; u < kTokens<V>; ++u) {
    if (first + u < shape.length) store_values<T>(at, u * shape.width, total[u]);
  }
}

// ---------------------------------------------------------------- host

Index index_of(const std::optional<Tensor>& index, int64_t frames, const Tensor& like) {
  STD_TORCH_CHECK(frames <= std::numeric_limits<int32_t>::max(), "more frames than int32 counts");
  const int last = static_cast<int>(frames) - 1;
  if (!index) return {nullptr, Index::every, static_cast<int>(frames), last};
  check_device(*index, like, "index");
  STD_TORCH_CHECK(frames > 0 || index->numel() == 0, "index: expected none, as there is no frame");
  const bool wide = index->scalar_type() == ScalarType::Long;
  if (wide) vector_view<int64_t>(*index, "index");
  else vector_view<int32_t>(*index, "index");
  return {index->const_data_ptr(), wide ? Index::wide : Index::narrow,
          static_cast<int>(index->numel()), last};
}

void check_types(ScalarType tokens, ScalarType pooled) {
  const bool narrow = pooled == ScalarType::Float || pooled == ScalarType::Half ||
                      pooled == ScalarType::BFloat16;
  STD_TORCH_CHECK(tokens == ScalarType::Double ? pooled == ScalarType::Double : narrow,
                  "dtype: expected float64 for float64, else float32, float16 or bfloat16");
}

Shape shape_of(int64_t length, int64_t queries, int64_t width) {
  constexpr int64_t most = 1 << 30;  // sums of two fit an int
  STD_TORCH_CHECK(0 <= length && length <= most, "tokens: expected at most 2^30 per frame");
  STD_TORCH_CHECK(1 <= queries && queries <= most, "num_queries: expected 1 to 2^30");
  return {static_cast<int>(length), static_cast<int>(queries), width};
}

dim3 grid_of(int64_t rows, int64_t width, int vector) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t tiles = (width + kThreads * vector - 1) / (kThreads * vector);
  STD_TORCH_CHECK(rows <= most && tiles <= 65535, "more rows or columns than a launch can have");
  return dim3(static_cast<unsigned>(rows), static_cast<unsigned>(tiles));
}

Tensor anchor_queries(Tensor tokens, int64_t num_queries, std::optional<Tensor> index,
                      std::optional<ScalarType> dtype) {
  STD_TORCH_CHECK(tokens.dim() == 3 && tokens.size(1) >= 1, "tokens: expected [F, L, D], L >= 1");
  STD_TORCH_CHECK((tokens.numel() == 0 || tokens.size(2) <= 1 || tokens.stride(2) == 1),
                  "tokens: expected dense rows");
  const OnDevice device(tokens);
  if (index) index = torch::stable::contiguous(*index);
  const Index frames = index_of(index, tokens.size(0), tokens);
  const int64_t width = tokens.size(2), outer = tokens.stride(0), inner = tokens.stride(1);
  const ScalarType type = dtype.value_or(tokens.scalar_type());
  check_types(tokens.scalar_type(), type);
  Tensor out = torch::stable::new_empty(tokens, {frames.count, num_queries, width}, type);
  const Shape shape = shape_of(tokens.size(1), num_queries, width);
  with_type(tokens.scalar_type(), [&]<typename T>() {
    const T* x = data<T>(tokens);
    const bool wide = aligned16(x, {outer, inner, width}, sizeof(T));
    device.launch(wide ? &pool<T, kVector<T>> : &pool<T, 1>,
                  grid_of(frames.count * num_queries, width, wide ? kVector<T> : 1), kThreads, x,
                  outer, inner, shape, frames, Pooled{out.mutable_data_ptr(), type});
  });
  return out;
}

Tensor anchor_queries_backward(Tensor grad, int64_t frames, int64_t length,
                               std::optional<Tensor> index, ScalarType dtype) {
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(1) >= 1, "grad: expected [A, K, D], K >= 1");
  const OnDevice device(grad);
  if (index) index = torch::stable::contiguous(*index);
  const Index asked = index_of(index, frames, grad);
  STD_TORCH_CHECK(grad.size(0) == asked.count, "grad: expected one entry per anchor");
  check_types(dtype, grad.scalar_type());
  Tensor dense = torch::stable::contiguous(grad);
  const int64_t width = grad.size(2);
  Tensor out = torch::stable::new_empty(grad, {frames, length, width}, dtype);
  const Shape shape = shape_of(length, grad.size(1), width);
  with_type(dtype, [&]<typename T>() {
    constexpr int wide = kVector<T>;
    T* result = mutable_data<T>(out);
    const bool aligned = aligned16(dense.const_data_ptr(), {}, 1) &&
                         aligned16(result, {width}, sizeof(T));
    const int64_t tokens = aligned ? kTokens<wide> : kTokens<1>;
    device.launch(aligned ? &gradient<T, wide> : &gradient<T, 1>,
                  grid_of(frames * ((length + tokens - 1) / tokens), width, aligned ? wide : 1),
                  kThreads, Pooled{const_cast<void*>(dense.const_data_ptr()), grad.scalar_type()},
                  asked, shape, Steps<acc_t<T>>(shape), result);
  });
  return out;
}

}  // namespace
}  // namespace tdc

// The schemas are declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_cuda, TDC_CUDA_KEY, m) {
  m.impl("anchor_queries", TORCH_BOX(&tdc::anchor_queries));
  m.impl("anchor_queries_backward", TORCH_BOX(&tdc::anchor_queries_backward));
}
