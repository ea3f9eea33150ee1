// SPDX-License-Identifier: Apache-2.0
// scene_boundaries on CUDA devices. Contract: tdc_kernels/ops/scene_boundaries/__init__.py.
#include "frame_similarity/kernel.cuh"
#include "scene_boundaries/kernel.cuh"

namespace tdc {
namespace {

using namespace boundaries;
using similarity::DeviceVideos;

constexpr int kMostThreads = 1024;

// A block per video.
__global__ void __launch_bounds__(kMostThreads)
    lowest(const float* similarity, int frames, const int32_t* __restrict__ cu, int num_boundaries,
           unsigned limit, int32_t* __restrict__ out) {
  const int video = static_cast<int>(blockIdx.x);
  const Span span = span_of(cu, frames, video);
  select_lowest(similarity + span.first, span.frames, num_boundaries, limit,
                out + static_cast<int64_t>(video) * num_boundaries);
}

Tensor scene_boundaries(Tensor similarity, int64_t num_boundaries, std::optional<Tensor> cu_frames,
                        std::optional<double> threshold) {
  const OnDevice device(similarity);
  const Tensor dense = torch::stable::contiguous(similarity);
  const auto pairs = static_cast<int64_t>(vector_view<float>(dense, "similarity").size());
  STD_TORCH_CHECK(pairs < std::numeric_limits<int32_t>::max(), "more frames than int32 counts");
  const DeviceVideos videos(cu_frames, similarity, pairs > 0 ? pairs + 1 : 0);
  Tensor out = new_boundaries(dense, videos.count, num_boundaries);
  // No more threads than pairs in all: short videos need no block of 32 warps.
  const int64_t warps = std::max<int64_t>((pairs + kWarp - 1) / kWarp, 1);
  device.launch(&lowest, dim3(static_cast<unsigned>(videos.count)),
                static_cast<int>(std::min<int64_t>(warps * kWarp, kMostThreads)),
                data<float>(dense), static_cast<int>(pairs + 1), videos.cu,
                static_cast<int>(num_boundaries), limit_of(threshold), mutable_data<int32_t>(out));
  return out;
}

}  // namespace
}  // namespace tdc

// The schema is declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_cuda, TDC_CUDA_KEY, m) {
  m.impl("scene_boundaries", TORCH_BOX(&tdc::scene_boundaries));
}
