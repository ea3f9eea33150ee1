// SPDX-License-Identifier: Apache-2.0
// scene_boundaries on the CPU: the lowest similarities of every video, by partial selection.
// Contract: tdc_kernels/ops/scene_boundaries/__init__.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "scene_boundaries/cpu.h"

namespace tdc {
namespace {

struct Pair {
  float value;  // NaN already turned into -inf: comparisons below need a strict order
  int32_t frame;  // first frame of the scene it would open, from the video's start
};

bool lower(const Pair& a, const Pair& b) {
  return a.value < b.value || (a.value == b.value && a.frame < b.frame);
}

// One video of `frames` frames with frames - 1 pairs. O(P + S log S) on average: nth_element needs
// no full sort, and only the chosen are put in order. `pairs` is scratch memory.
void select(std::span<const float> similarity, int32_t frames, std::optional<float> threshold,
            std::vector<Pair>& pairs, std::span<int32_t> out) {
  pairs.clear();
  for (size_t t = 0; t < similarity.size(); ++t) {
    const float s = similarity[t];
    const float value = std::isnan(s) ? -std::numeric_limits<float>::infinity() : s;
    if (!threshold || value < *threshold) {
      pairs.push_back({value, static_cast<int32_t>(t) + 1});
    }
  }
  const size_t chosen = std::min(pairs.size(), out.size());
  if (chosen < pairs.size()) {
    std::nth_element(pairs.begin(), pairs.begin() + static_cast<std::ptrdiff_t>(chosen),
                     pairs.end(), lower);
  }
  std::transform(pairs.begin(), pairs.begin() + static_cast<std::ptrdiff_t>(chosen), out.begin(),
                 [](const Pair& pair) { return pair.frame; });
  std::sort(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(chosen));
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(chosen), out.end(), frames);
}

Tensor scene_boundaries(Tensor similarity, int64_t num_boundaries, std::optional<Tensor> cu_frames,
                        std::optional<double> threshold) {
  const Tensor dense = torch::stable::contiguous(similarity);
  const auto values = vector_view<float>(dense, "similarity");
  const auto pairs = static_cast<int64_t>(values.size());
  const Videos videos(cu_frames, pairs + 1, pairs > 0 ? pairs + 1 : 0);  // no pair: 1 frame or none
  return boundaries_of(values, num_boundaries, videos, threshold, dense);
}

}  // namespace

Tensor boundaries_of(std::span<const float> similarity, int64_t num_boundaries,
                     const Videos& videos, std::optional<double> threshold, const Tensor& like) {
  STD_TORCH_CHECK(num_boundaries >= 0, "num_boundaries: expected a number >= 0");
  const auto width = static_cast<size_t>(num_boundaries);
  Tensor out =
      torch::stable::new_empty(like, {videos.count(), num_boundaries}, ScalarType::Int);
  auto* rows = mutable_data<int32_t>(out);
  // PyTorch compares a float tensor with a number in float; so must this.
  std::optional<float> limit;
  if (threshold) limit = static_cast<float>(*threshold);
  std::vector<Pair> scratch;
  for (int64_t b = 0; b < videos.count(); ++b) {
    const int32_t frames = videos.frames(b);
    const auto count = static_cast<size_t>(std::max(frames - 1, 0));
    const auto first = count > 0 ? static_cast<size_t>(videos.first(b)) : 0;
    select(similarity.subspan(first, count), frames, limit, scratch,
           {rows + static_cast<size_t>(b) * width, width});
  }
  return out;
}

}  // namespace tdc

// The schema is declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_native, CPU, m) {
  m.impl("scene_boundaries", TORCH_BOX(&tdc::scene_boundaries));
}
