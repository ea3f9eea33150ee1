// SPDX-License-Identifier: Apache-2.0
// cross_attention on CUDA devices. Contract: tdc_kernels/ops/cross_attention/__init__.py.
// Products of whole matrices, with the weights, are the library's; the kernels are what lies between.
// The backward always goes by keys and values, also where the forward absorbed the weights: it needs
// five products of the scores' size, and keys and values are a fifth as wide as tokens.
#include <tuple>

#include "cross_attention/absorbed.cuh"
#include "cross_attention/project.cuh"

namespace tdc {
namespace {

using namespace attention;

// Values of the absorbed queries of the rows that go together: 34 MB in bf16, 24 of the paper's rows.
constexpr int64_t kAbsorbedAtOnce = int64_t{1} << 24;

// Sum over the rows that have any token; a thread per column, always in the same order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    bias_gradient(const T* __restrict__ grad, const acc_t<T>* __restrict__ statistics, int rows,
                  int queries, int heads, int width, T* __restrict__ out) {
  const int c = static_cast<int>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= width) return;
  acc_t<T> sum = 0;
  for (int64_t m = 0; m < rows; ++m) {
    if (statistics[(m * heads * 3 + 1) * queries] == 0) continue;
    for (int q = 0; q < queries; ++q) {
      sum += static_cast<acc_t<T>>(grad[(m * queries + q) * width + c]);
    }
  }
  out[c] = static_cast<T>(sum);
}

// ---------------------------------------------------------------- forward

Tensor attended(Call& call) {
  const Maybe frames = call.few();
  const std::vector<Tensor> projected = project(call, frames);
  call.by_row(frames);
  Tensor out = torch::stable::new_empty(call.query, {call.rows(), call.queries(), call.width()});
  with_type(out.scalar_type(), [&]<typename T>() {
    const Problem<T> p = problem<T>(call, nullptr, projected);
    call.device.launch(packs(p) ? &attend<T, kVector<T>> : &attend<T, 1>, grid_of_rows(p), kThreads,
                       p, call.bias ? data<T>(*call.bias) : nullptr, mutable_data<T>(out));
  });
  return out;
}

// [n, Q, H*d] -> [H, n*Q, d], and a weight as [H, d, D].
Tensor heads_first(const Call& call, const Tensor& query) {
  Tensor x = torch::stable::view(query, {query.size(0) * call.queries(), call.heads, call.dim()});
  return torch::stable::transpose(x, 0, 1);
}

Tensor by_head(const Call& call, const Tensor& weight) {
  return torch::stable::reshape(weight, {call.heads, call.dim(), weight.size(1)});
}

// `n` rows from `begin` on with absorbed weights, into out [n, Q, H*d].
template <typename T>
void absorbed_rows(const Call& call, const std::vector<Tensor>& tokens, int64_t begin, int64_t n,
                   Tensor out) {
  using A = acc_t<T>;
  const int64_t all = call.heads * call.queries(), rows = n * call.queries();
  const Tensor q = heads_first(call, part_of(call.query, begin, n));
  const ScalarType sums = scalar_type_of<A>;
  Tensor score = torch::stable::new_empty(q, {n, all, call.in_all}, sums);
  Tensor share = torch::stable::new_empty(q, {n, all, call.in_all});
  Tensor any = torch::stable::new_empty(q, {n, all}, ScalarType::Byte);
  int64_t columns = 0;
  std::vector<Tensor> values;
  for (const Tokens& s : call.sources) columns += s.depth();
  const auto absorbed = [&](size_t i, int64_t wide) {
    const Tokens& s = call.sources[i];
    const uint8_t* mask =
        call.mask ? static_cast<const uint8_t*>(call.mask->const_data_ptr()) : nullptr;
    return Absorbed<T>{data<T>(tokens[i]), tokens[i].stride(0), tokens[i].stride(1), wide,
                       s.depth(), narrow(s.count()), static_cast<int>(s.first),
                       narrow(call.in_all), integers(s.lengths, s.count()),
                       integers(call.index, call.frames() - 1), narrow(begin), mask, narrow(n), narrow(call.queries()), narrow(call.heads)};
  };
  const auto wide = [&](const Absorbed<T>& p, const void* other) {
    return aligned16(p.tokens, {p.frame_stride, p.token_stride, p.depth, p.columns}, sizeof(T)) &&
           aligned16(other, {}, 1);
  };
  const unsigned groups = blocks(n * ((all + kGroup - 1) / kGroup), 1, kMostBlocks);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Tokens& s = call.sources[i];
    const Tensor folded = aten("aten::bmm", "", q, by_head(call, s.w_key));  // [H, n*Q, D]
    const Absorbed<T> p = absorbed(i, s.depth());
    const T* from = data<T>(folded);
    call.device.launch(wide(p, from) ? &absorbed_scores<T, kVector<T>> : &absorbed_scores<T, 1>,
                       dim3(groups, blocks(s.count(), kAbsorbedTokens<T>)), kThreads, p, from,
                       static_cast<A>(1 / std::sqrt(static_cast<double>(call.dim()))),
                       mutable_data<A>(score));
    values.push_back(by_head(call, s.w_value));
  }
  call.device.launch(&absorbed_softmax<T>, dim3(blocks(n * all, kWarps, kMostBlocks)), kThreads,
                     data<A>(score), narrow(n * all), narrow(call.in_all), mutable_data<T>(share),
                     mutable_data<uint8_t>(any));
  // Side by side, so that one product adds both sources up.
  Tensor mixed = torch::stable::new_empty(q, {call.heads, rows, columns});
  T* to = mutable_data<T>(mixed);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Absorbed<T> p = absorbed(i, columns);
    call.device.launch(wide(p, to) ? &absorbed_mix<T, kVector<T>> : &absorbed_mix<T, 1>,
                       dim3(groups, blocks(p.depth, kColumns)), kThreads, p, data<T>(share), to);
    to += p.depth;
  }
  Tensor weights = aten("aten::cat", "", values, int64_t{2});  // [H, d, columns]
  const Tensor last = aten("aten::bmm", "", mixed, torch::stable::transpose(weights, 1, 2));
  call.device.launch(&absorbed_finish<T>, dim3(blocks(n, 1, kMostBlocks)), kThreads, data<T>(last),
                     data<uint8_t>(any), call.bias ? data<T>(*call.bias) : nullptr, narrow(n),
                     narrow(call.queries()), narrow(call.heads), narrow(call.dim()),
                     mutable_data<T>(out));
}

Tensor absorbed(const Call& call) {
  Tensor out = torch::stable::new_empty(call.query, {call.rows(), call.queries(), call.width()});
  std::vector<Tensor> tokens;  // as they are, but in the dtype of the weights and with dense rows
  int64_t depth = 1;
  for (const Tokens& s : call.sources) {
    const bool as_is = s.x.scalar_type() == out.scalar_type() && s.x.stride(2) == 1;
    tokens.push_back(as_is ? s.x
                           : torch::stable::view(matrix(call, s, Maybe(), 0, call.frames(), false),
                                                 {call.frames(), s.count(), s.depth()}));
    depth = std::max(depth, s.depth());
  }
  const int64_t step =
      std::max<int64_t>(kAbsorbedAtOnce / (call.heads * call.queries() * depth), 1);
  for (int64_t begin = 0; begin < call.rows(); begin += step) {
    const int64_t n = std::min(step, call.rows() - begin);
    with_type(out.scalar_type(), [&]<typename T>() {
      absorbed_rows<T>(call, tokens, begin, n, part_of(out, begin, n));
    });
  }
  return out;
}

Tensor cross_attention(Tensor query, Tensor visual, Maybe audio, Tensor w_key, Maybe /*b_key*/,
                       Tensor w_value, Maybe b_value, int64_t num_heads, Maybe index,
                       Maybe visual_lengths, Maybe audio_lengths, Maybe mask, Maybe w_key_audio,
                       Maybe w_value_audio, bool absorb) {
  const Arguments arguments{query, visual, audio, w_key, w_value, b_value, num_heads, index,
                            visual_lengths, audio_lengths, mask, w_key_audio, w_value_audio};
  check(arguments);
  check_one_dtype(arguments);
  Call call(query, visual, audio, w_key, w_value, b_value, num_heads, index, visual_lengths,
            audio_lengths, mask, w_key_audio, w_value_audio);
  if (query.numel() == 0 || call.in_all == 0) {
    return torch::stable::new_zeros(query, {query.size(0), query.size(1), query.size(2)});
  }
  return absorb ? absorbed(call) : attended(call);
}

// ---------------------------------------------------------------- backward

Tensor gradient_of_tokens(const Tokens& s, const Tensor& inner) {
  Tensor out = torch::stable::new_empty(s.x, {s.x.size(0), s.count(), s.depth()});
  const Tensor weights = both_weights(s);
  in_parts(out.size(0), s.count(), [&](int64_t begin, int64_t n) {
    const Tensor from = as_matrix(part_of(inner, begin, n));
    Tensor to = as_matrix(part_of(out, begin, n));
    if (to.scalar_type() == from.scalar_type()) aten("aten::mm", "out", from, weights, to);
    else torch::stable::copy_(to, torch::stable::matmul(from, weights));
  });
  return out;
}

// [2*H*d, D], in the dtype of accumulation. What lies beyond the lengths has gradients of zero, but
// may be NaN, which zeros do not hide.
Tensor gradient_of_weights(const Call& call, const Tokens& s, const Maybe& frames,
                           const Tensor& inner) {
  const bool wide = call.query.scalar_type() == ScalarType::Double;
  Tensor total = torch::stable::new_zeros(call.query, {inner.size(2), s.depth()},
                                          wide ? ScalarType::Double : ScalarType::Float);
  in_parts(inner.size(0), s.count(), [&](int64_t begin, int64_t n) {
    Tensor of_part = as_matrix(part_of(inner, begin, n));
    const Tensor x = matrix(call, s, frames, begin, n, true);
    const Tensor product = torch::stable::matmul(torch::stable::transpose(of_part, 0, 1), x);
    total = torch::stable::subtract(total, product, -1.0);
  });
  return total;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor zeros_if(bool wanted, const Tensor& grad, const Maybe& x) {
  if (!wanted || !x) return torch::stable::new_empty(grad, {0});
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x->dim(); ++i) shape.push_back(x->size(i));
  return torch::stable::new_zeros(*x, shape);
}

Gradients cross_attention_backward(Tensor grad, Tensor query, Tensor visual, Maybe audio,
                                   Tensor w_key, Maybe /*b_key*/, Tensor w_value, Maybe b_value,
                                   int64_t num_heads, Maybe index, Maybe visual_lengths,
                                   Maybe audio_lengths, Maybe mask, Maybe w_key_audio,
                                   Maybe w_value_audio, bool /*absorb*/, bool tokens,
                                   bool weights) {
  const Arguments arguments{query, visual, audio, w_key, w_value, b_value, num_heads, index,
                            visual_lengths, audio_lengths, mask, w_key_audio, w_value_audio};
  check(arguments);
  check_one_dtype(arguments);
  check_device(grad, query, "grad");
  STD_TORCH_CHECK(grad.scalar_type() == query.scalar_type() && grad.dim() == 3 &&
                      grad.size(0) == query.size(0) && grad.size(1) == query.size(1) &&
                      grad.size(2) == query.size(2),
                  "grad: expected the shape and dtype of query");
  if (query.numel() == 0) {  // the kernels' threads read rows that are not there
    return {zeros_if(true, grad, query), zeros_if(tokens, grad, visual),
            zeros_if(tokens, grad, audio), zeros_if(weights, grad, w_key),
            zeros_if(weights, grad, w_value), zeros_if(weights, grad, b_value),
            zeros_if(weights, grad, w_key_audio), zeros_if(weights, grad, w_value_audio)};
  }
  Call call(query, visual, audio, w_key, w_value, b_value, num_heads, index, visual_lengths,
            audio_lengths, mask, w_key_audio, w_value_audio);
  const std::vector<Tokens> sources = call.sources;
  // Rows that share a frame need a place where their tokens' gradients meet: all frames, then.
  const Maybe frames = tokens ? Maybe() : call.few();
  const std::vector<Tensor> projected = project(call, frames);
  call.by_row(frames);
  grad = torch::stable::contiguous(grad);
  const auto none = [&] { return torch::stable::new_empty(grad, {0}); };
  Tensor to_query = torch::stable::new_empty(grad, {call.rows(), call.queries(), call.width()});
  Tensor to_bias = none();  // no result may be another one, nor a view of it
  std::vector<Tensor> inner, to_tokens{none(), none()}, to_weights{none(), none(), none(), none()};
  with_type(grad.scalar_type(), [&]<typename T>() {
    using A = acc_t<T>;
    Tensor statistics = torch::stable::new_empty(
        grad, {call.rows(), call.heads, 3, call.queries()}, scalar_type_of<A>);
    const Problem<T> p = problem<T>(call, &grad, projected);
    const bool wide = packs(p);
    call.device.launch(wide ? &query_gradient<T, kVector<T>> : &query_gradient<T, 1>,
                       grid_of_rows(p), kThreads, p, mutable_data<A>(statistics),
                       mutable_data<T>(to_query));
    for (size_t i = 0; i < sources.size() && (tokens || weights); ++i) {
      const int64_t count = projected[i].size(0);
      inner.push_back(torch::stable::empty_like(projected[i]));
      const dim3 grid(blocks(count * call.heads, 1, kMostBlocks),
                      blocks(sources[i].count(), kGradientTokens<T>), blocks(std::max(p.dim, 1), kColumns));
      call.device.launch(wide ? &token_gradient<T, kVector<T>> : &token_gradient<T, 1>, grid,
                         kThreads, p, static_cast<int>(i), data<A>(statistics),
                         mutable_data<T>(inner[i]));
    }
    if (b_value && weights) {
      to_bias = torch::stable::new_empty(grad, {call.width()});
      call.device.launch(&bias_gradient<T>, dim3(blocks(call.width(), kThreads)), kThreads,
                         data<T>(grad), data<A>(statistics), p.rows, p.queries, p.heads,
                         narrow(call.width()), mutable_data<T>(to_bias));
    }
  });
  for (size_t i = 0; i < sources.size() && tokens; ++i) {
    to_tokens[i] = gradient_of_tokens(sources[i], inner[i]);
  }
  std::vector<Tensor> sums;
  for (size_t i = 0; i < sources.size() && weights; ++i) {
    sums.push_back(gradient_of_weights(call, sources[i], frames, inner[i]));
  }
  if (sums.size() == 2 && !w_key_audio) {
    sums = {torch::stable::subtract(sums[0], sums[1], -1.0)};
  }
  for (size_t i = 0; i < 2 * sums.size(); ++i) {
    Tensor& both = sums[i / 2];
    const int64_t half = call.width();
    to_weights[i] = torch::stable::to(
        torch::stable::narrow(both, 0, static_cast<int64_t>(i % 2) * half, half),
        grad.scalar_type(), std::nullopt, std::nullopt, std::nullopt, false, true);
  }
  return {to_query, to_tokens[0], to_tokens[1], to_weights[0],
          to_weights[1], to_bias, to_weights[2], to_weights[3]};
}

}  // namespace
}  // namespace tdc

// The schemas are declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_cuda, TDC_CUDA_KEY, m) {
  m.impl("cross_attention", TORCH_BOX(&tdc::cross_attention));
  m.impl("cross_attention_backward", TORCH_BOX(&tdc::cross_attention_backward));
}
