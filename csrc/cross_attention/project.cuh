// SPDX-License-Identifier: Apache-2.0
// The arguments of a call of cross_attention on CUDA devices, and its keys and values.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "cross_attention/arguments.h"
#include "cross_attention/kernel.cuh"

namespace tdc::attention {

using Maybe = std::optional<Tensor>;

// Tokens that are converted, gathered or cleared for one matrix product: 59 MB of 3584 bf16 values.
inline constexpr int64_t kTokensAtOnce = 8192;
inline constexpr int kCollected = 4;  // columns of a thread

// A part of the tokens [n, N, D] from frame `begin` on, or those of frames index[begin], ...,
// converted; zeros beyond the lengths, which are not read.
template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    collect(const S* __restrict__ x, int64_t frame_stride, int64_t token_stride, int64_t stride,
            Integers index, int64_t begin, Integers lengths, int tokens, int64_t depth,
            T* __restrict__ out) {
  int64_t frame = begin + blockIdx.x / static_cast<unsigned>(tokens);
  if (index.base != nullptr) frame = index[frame];
  const int token = static_cast<int>(blockIdx.x % static_cast<unsigned>(tokens));
  const bool there = lengths.base == nullptr || token < lengths[frame];
  const S* from = x + frame * frame_stride + token * token_stride;
  int64_t c = static_cast<int64_t>(blockIdx.y) * kThreads * kCollected + threadIdx.x;
#pragma unroll
  for (int u = 0; u < kCollected; ++u, c += kThreads) {
    if (c >= depth) return;
    const auto value = there ? static_cast<acc_t<S>>(from[c * stride]) : acc_t<S>(0);
    out[blockIdx.x * depth + c] = static_cast<T>(static_cast<acc_t<T>>(value));
  }
}

template <typename... A>
Tensor aten(const char* op, const char* overload, const A&... args) {
  std::array<StableIValue, sizeof...(A)> stack{torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor part_of(Tensor x, int64_t begin, int64_t count) {
  return torch::stable::narrow(x, 0, begin, count);
}

// [n, N, C] -> [n * N, C]
inline Tensor as_matrix(const Tensor& x) {
  return torch::stable::view(x, {x.size(0) * x.size(1), x.size(2)});
}

inline Maybe dense(const Maybe& x) { return x ? Maybe(torch::stable::contiguous(*x)) : x; }

inline Maybe at(const Maybe& x, const Tensor& frames) {
  return x ? Maybe(aten("aten::index_select", "", *x, int64_t{0}, frames)) : x;
}

// Frame numbers as the kernels take them: index_select would end the process's use of the device.
inline Tensor existing(const Tensor& index, int64_t frames) {
  Tensor lowest = torch::stable::new_zeros(index, {1});
  Tensor highest = torch::stable::new_zeros(index, {1});
  torch::stable::fill_(highest, static_cast<double>(frames - 1));
  return aten("aten::clamp", "Tensor", index, Maybe(lowest), Maybe(highest));
}

inline Integers integers(const Maybe& x, int64_t most) {
  if (!x) return {nullptr, false, most};
  return {x->const_data_ptr(), x->scalar_type() == ScalarType::Long, most};
}

inline int narrow(int64_t n) {
  STD_TORCH_CHECK(n <= std::numeric_limits<int32_t>::max(), "a size is more than int32 counts");
  return static_cast<int>(n);
}

inline unsigned blocks(int64_t n, int64_t each, int64_t most = 65535) {
  STD_TORCH_CHECK((n + each - 1) / each <= most, "more than a launch can have");
  return static_cast<unsigned>((n + each - 1) / each);
}

inline constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();

struct Tokens {
  Tensor x;  // [F, N, D]
  Maybe lengths;
  Tensor w_key, w_value;  // [H*d, D]
  int64_t first;

  int64_t count() const { return x.size(1); }
  int64_t depth() const { return x.size(2); }
};

struct Call {
  Tensor query;  // [M, Q, H*d], dense
  std::vector<Tokens> sources;
  Maybe bias, index, mask;
  int64_t heads, in_all = 0;
  OnDevice device{query};

  Call(Tensor q, Tensor visual, Maybe audio, Tensor w_key, Tensor w_value, Maybe b_value,
       int64_t num_heads, Maybe indices, Maybe visual_lengths, Maybe audio_lengths, Maybe seen,
       Maybe w_key_audio, Maybe w_value_audio)
      : query(torch::stable::contiguous(q)),
        bias(dense(b_value)),
        index(dense(indices)),
        mask(dense(seen)),
        heads(num_heads) {
    sources.push_back({visual, dense(visual_lengths), w_key, w_value, 0});
    if (audio) {
      sources.push_back({*audio, dense(audio_lengths), w_key_audio.value_or(w_key),
                         w_value_audio.value_or(w_value), visual.size(1)});
    }
    for (const Tokens& s : sources) in_all += s.count();
  }

  int64_t rows() const { return query.size(0); }
  int64_t queries() const { return query.size(1); }
  int64_t width() const { return query.size(2); }
  int64_t dim() const { return width() / heads; }
  int64_t frames() const { return sources[0].x.size(0); }

  // The frames asked for where they are fewer than there are: only they are projected.
  Maybe few() const { return index && rows() < frames() ? index : Maybe(); }

  // Row m then has keys and values of its own, those of frames[m].
  void by_row(const Maybe& chosen) {
    if (!chosen) return;
    if (mask || sources.front().lengths || sources.back().lengths) {
      const Tensor inside = existing(*chosen, frames());
      for (Tokens& s : sources) s.lengths = at(s.lengths, inside);
      mask = at(mask, inside);
    }
    index = Maybe();
  }
};

// All tokens of some frames as a matrix in the dtype of the weights, without a copy where possible.
inline Tensor matrix(const Call& call, const Tokens& s, const Maybe& frames, int64_t begin, int64_t count,
              bool clear) {
  const ScalarType type = call.query.scalar_type();
  const Maybe lengths = clear ? s.lengths : Maybe();
  if (!frames && !lengths && s.x.scalar_type() == type && s.x.is_contiguous()) {
    return as_matrix(part_of(s.x, begin, count));
  }
  Tensor out = torch::stable::new_empty(call.query, {count * s.count(), s.depth()});
  with_type(type, [&]<typename T>() {
    with_type(s.x.scalar_type(), [&]<typename S>() {
      const dim3 grid(blocks(count * s.count(), 1, kMostBlocks),
                      blocks(s.depth(), kThreads * kCollected));
      call.device.launch(&collect<T, S>, grid, kThreads, data<S>(s.x), s.x.stride(0), s.x.stride(1),
                         s.x.stride(2), integers(frames, s.x.size(0) - 1), begin,
                         integers(lengths, s.count()),
                         narrow(s.count()), s.depth(), mutable_data<T>(out));
    });
  });
  return out;
}

// f(begin, count) for all of n frames, few enough at a time.
template <typename F>
void in_parts(int64_t n, int64_t tokens, F&& f) {
  const int64_t step = std::max<int64_t>(kTokensAtOnce / std::max<int64_t>(tokens, 1), 1);
  for (int64_t begin = 0; begin < n; begin += step) f(begin, std::min(step, n - begin));
}

inline Tensor both_weights(const Tokens& s) {
  return aten("aten::cat", "", std::vector<Tensor>{s.w_key, s.w_value}, int64_t{0});
}

// Keys and values [F, N, 2*H*d] of all frames or of some, without the bias.
inline std::vector<Tensor> project(const Call& call, const Maybe& frames) {
  std::vector<Tensor> found;
  for (const Tokens& s : call.sources) {
    Tensor weights = both_weights(s);
    const Tensor transposed = torch::stable::transpose(weights, 0, 1);
    const int64_t count = frames ? call.rows() : call.frames();
    Tensor out = torch::stable::new_empty(call.query, {count, s.count(), 2 * call.width()});
    in_parts(count, s.count(), [&](int64_t begin, int64_t n) {
      aten("aten::mm", "out", matrix(call, s, frames, begin, n, false), transposed,
           as_matrix(part_of(out, begin, n)));
    });
    found.push_back(out);
  }
  return found;
}

template <typename T>
Problem<T> problem(const Call& call, const Tensor* grad, const std::vector<Tensor>& projected) {
  Problem<T> p{};
  p.query = data<T>(call.query);
  p.grad = grad == nullptr ? nullptr : data<T>(*grad);
  for (size_t i = 0; i < call.sources.size(); ++i) {
    const Tokens& s = call.sources[i];
    p.sources[i] = {data<T>(projected[i]), narrow(s.count()), static_cast<int>(s.first),
                    integers(s.lengths, s.count())};
  }
  p.source_count = static_cast<int>(call.sources.size());
  p.index = integers(call.index, call.frames() - 1);
  p.mask = call.mask ? static_cast<const uint8_t*>(call.mask->const_data_ptr()) : nullptr;
  p.rows = narrow(call.rows());
  p.queries = narrow(call.queries());
  p.heads = narrow(call.heads);
  p.dim = narrow(call.dim());
  p.tokens = narrow(call.in_all);
  p.scale = static_cast<acc_t<T>>(1 / std::sqrt(static_cast<double>(call.dim())));
  return p;
}

template <typename T>
bool packs(const Problem<T>& p) {
  bool aligned = aligned16(p.query, {p.dim}, sizeof(T)) && aligned16(p.grad, {}, sizeof(T));
  for (const auto& s : p.sources) aligned = aligned && aligned16(s.projected, {}, sizeof(T));
  return aligned;
}

template <typename T>
dim3 grid_of_rows(const Problem<T>& p) {
  return dim3(blocks(int64_t{p.rows} * p.heads, 1, kMostBlocks), blocks(p.queries, kQueries),
              blocks(std::max(p.dim, 1), kColumns));
}

}  // namespace tdc::attention
