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

#include "../common/checks.h"

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

void check_prefix_sums(std::span<const int32_t> cu, int64_t pairs) {
  STD_TORCH_CHECK(!cu.empty() && cu.front() == 0 && std::is_sorted(cu.begin(), cu.end()),
                  "cu_frames: expected rising prefix sums from 0");
  const int64_t frames = cu.back();
  STD_TORCH_CHECK(std::max<int64_t>(frames - 1, 0) == pairs,
                  "cu_frames: expected a total of one frame more than similarity has pairs");
}

Tensor scene_boundaries(Tensor similarity, int64_t num_boundaries, std::optional<Tensor> cu_frames,
                        std::optional<double> threshold) {
  STD_TORCH_CHECK(num_boundaries >= 0, "num_boundaries: expected a number >= 0");
  const Tensor dense = torch::stable::contiguous(similarity);
  const auto values = vector_view<float>(dense, "similarity");
  const auto pairs = static_cast<int64_t>(values.size());
  STD_TORCH_CHECK(pairs < std::numeric_limits<int32_t>::max(), "similarity: too long for int32");

  const int32_t whole[] = {0, static_cast<int32_t>(pairs) + 1};  // one video
  std::span<const int32_t> cu = whole;
  Tensor dense_cu = dense;
  if (cu_frames) {
    dense_cu = torch::stable::contiguous(*cu_frames);
    cu = vector_view<int32_t>(dense_cu, "cu_frames");
    check_prefix_sums(cu, pairs);
  }
  const auto videos = static_cast<int64_t>(cu.size()) - 1;
  const auto width = static_cast<size_t>(num_boundaries);
  Tensor out = torch::stable::new_empty(dense, {videos, num_boundaries}, ScalarType::Int);
  auto* rows = static_cast<int32_t*>(out.mutable_data_ptr());

  // PyTorch compares a float tensor with a number in float; so must this.
  std::optional<float> limit;
  if (threshold) {
    limit = static_cast<float>(*threshold);
  }
  std::vector<Pair> scratch;
  for (int64_t b = 0; b < videos; ++b) {
    const auto frames = cu[b + 1] - cu[b];
    const auto count = static_cast<size_t>(std::max(frames - 1, 0));
    const auto first = count > 0 ? static_cast<size_t>(cu[b]) : 0;
    select(values.subspan(first, count), frames, limit, scratch,
           {rows + static_cast<size_t>(b) * width, width});
  }
  return out;
}

}  // namespace
}  // namespace tdc

// The schema is declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_native, CPU, m) {
  m.impl("scene_boundaries", TORCH_BOX(&tdc::scene_boundaries));
}
