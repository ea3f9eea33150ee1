// SPDX-License-Identifier: Apache-2.0
// segment_scenes on the CPU: both halves without a way back through the dispatcher.
// Contract: tdc_kernels/ops/segment_scenes/__init__.py.
#include <optional>
#include <tuple>

#include "frame_similarity/cpu.h"
#include "scene_boundaries/cpu.h"

namespace tdc {
namespace {

std::tuple<Tensor, Tensor, Tensor> segment_scenes(Tensor features, int64_t num_boundaries,
                                                  std::optional<Tensor> cu_frames,
                                                  std::optional<double> threshold) {
  const Videos videos(cu_frames, features.dim() > 0 ? features.size(0) : 0);
  auto [similarity, sums] = similarity_and_sums(features, videos);
  Tensor boundaries = boundaries_of(vector_view<float>(similarity, "similarity"), num_boundaries,
                                    videos, threshold, similarity);
  return {similarity, sums, boundaries};
}

}  // namespace
}  // namespace tdc

STABLE_TORCH_LIBRARY_IMPL(tdc_native, CPU, m) {
  m.impl("segment_scenes", TORCH_BOX(&tdc::segment_scenes));
}
