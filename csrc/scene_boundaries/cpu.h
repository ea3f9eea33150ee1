// SPDX-License-Identifier: Apache-2.0
// For segment_scenes, which is this and frame_similarity in one call.
#pragma once

#include <optional>
#include <span>

#include "common/checks.h"

namespace tdc {

// int32 [B, num_boundaries] on the device of `like`: the lowest similarities of every video.
Tensor boundaries_of(std::span<const float> similarity, int64_t num_boundaries,
                     const Videos& videos, std::optional<double> threshold, const Tensor& like);

}  // namespace tdc
