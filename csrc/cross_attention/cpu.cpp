// SPDX-License-Identifier: Apache-2.0
// cross_attention on the CPU, both ways. Contract: tdc_kernels/ops/cross_attention/__init__.py.
//
// Computed in fp32 (fp64 for fp64), whatever the tokens are stored in. A bias of the keys is left out:
// it adds one number to all of a query's scores. The gradient is backward.py's.
#include <cstdint>
#include <limits>

namespace tdc {
inline constexpr int64_t kColumns = 16;
}
#define TDC_KERNEL "cross_attention/kernel.h"
#include "common/each_isa.h"

#include "cross_attention/absorb.h"
#include "cross_attention/call.h"
#include "cross_attention/project.h"

namespace tdc {
namespace {

template <typename A>
Tensor run(const Arguments& a, bool absorbing) {
  constexpr ScalarType type = scalar_type_of<A>;
  const Call<A> c = prepare<A>(a);
  const Tensor query = in_type(a.query, type);
  std::optional<Tensor> bias;
  if (a.b_value) bias = in_type(*a.b_value, type);
  Tensor out = torch::stable::new_empty(query, {c.rows, c.queries, c.width});
  const A* q = data<A>(query);
  const A* b = bias ? data<A>(*bias) : nullptr;
  if (absorbing) {
    std::vector<Map<A>> maps;
    const size_t shared = a.w_key_audio ? 1 : c.sources.size();
    maps.push_back({Blocks<A>(a.w_key), Blocks<A>(a.w_value), 0, shared});
    if (a.w_key_audio) {
      maps.push_back({Blocks<A>(*a.w_key_audio), Blocks<A>(*a.w_value_audio), 1, 2});
    }
    absorb(c, maps, q, b, mutable_data<A>(out));
  } else {
    std::vector<std::pair<Tensor, Tensor>> weights;
    weights.emplace_back(in_type(a.w_key, type), in_type(a.w_value, type));
    weights.push_back(weights.front());
    if (a.w_key_audio) {
      weights.back() = {in_type(*a.w_key_audio, type), in_type(*a.w_value_audio, type)};
    }
    project(c, weights, q, b, mutable_data<A>(out));
  }
  return a.query.scalar_type() == type ? out : torch::stable::to(out, a.query.scalar_type());
}

Tensor cross_attention(Tensor query, Tensor visual, std::optional<Tensor> audio, Tensor w_key,
                       std::optional<Tensor>, Tensor w_value, std::optional<Tensor> b_value,
                       int64_t heads, std::optional<Tensor> index,
                       std::optional<Tensor> visual_lengths, std::optional<Tensor> audio_lengths,
                       std::optional<Tensor> mask, std::optional<Tensor> w_key_audio,
                       std::optional<Tensor> w_value_audio, bool absorb) {
  const Arguments a{query, visual, audio, w_key, w_value, b_value, heads, index, visual_lengths,
                    audio_lengths, mask, w_key_audio, w_value_audio};
  check_one_dtype(a);
  return query.scalar_type() == ScalarType::Double ? run<double>(a, absorb) : run<float>(a, absorb);
}

}  // namespace
}  // namespace tdc

// The schemas are declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_native, CPU, m) {
  m.impl("cross_attention", TORCH_BOX(&tdc::cross_attention));
}
