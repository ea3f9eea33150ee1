// SPDX-License-Identifier: Apache-2.0
// For segment_scenes, which is this and scene_boundaries in one call.
#pragma once

#include <tuple>

#include "common/checks.h"

namespace tdc {

// Smallest norm divided by, as in torch.nn.functional.cosine_similarity.
template <typename A>
inline constexpr A kEps = static_cast<A>(1e-8);

// features [F, N] with dense rows -> similarity fp32 [F-1]; sums [F, 2] in the accumulation type:
// <x_{t-1}, x_t> (0 for the first frame) and |x_t|^2.
std::tuple<Tensor, Tensor> similarity_and_sums(const Tensor& features, const Videos& videos);

}  // namespace tdc
