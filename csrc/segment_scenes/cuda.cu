// SPDX-License-Identifier: Apache-2.0
// segment_scenes on CUDA devices in two launches: frame_similarity's first, and one in which the
// block that finishes a video's last frame also finds the video's boundaries.
// Contract: tdc_kernels/ops/segment_scenes/__init__.py.
#include <tuple>

#include "frame_similarity/kernel.cuh"
#include "scene_boundaries/kernel.cuh"

namespace tdc {
namespace {

using namespace boundaries;
using similarity::DeviceVideos;

// Frames that a block finishes, a warp each, and the warps that share a video's selection.
constexpr int kFrames = 16;
constexpr int kBlocks = 3;  // of a processor: leaves 40 registers a thread; 32 would spill in fp64

// The warp finishes frame t. The video that this completes, else -1; for the first lane. A frame that
// no video owns, beyond the last one, completes none.
// finished [videos] counts frames: whoever counts the last one sees what all others have written.
template <typename A>
__device__ __forceinline__ int finish_and_count(const A* partial, int t, int tiles, int frames,
                                                const int32_t* cu, int videos, int32_t* finished,
                                                A* sums, float* similarity) {
  int video = similarity::video_of(cu, videos, t);
  const bool begins = cu != nullptr && cu[video] == t;
  similarity::finish_frame(partial, t, tiles, begins, sums, similarity);
  if (threadIdx.x % kWarp != 0) return -1;
  video = min(video, videos - 1);
  const Span span = span_of(cu, frames, video);
  if (t < span.first || t >= span.first + span.frames) return -1;
  __threadfence();
  const bool last = atomicAdd(finished + video, 1) == span.frames - 1;
  __threadfence();
  return last ? video : -1;
}

// Blocks of kFrames frames, and at least as many as videos: block b also fills up video b's row if
// it is empty and no frame will. `similarity` is written and read: neither const nor __restrict__.
template <typename A>
__global__ void __launch_bounds__(kFrames* kWarp, kBlocks)
    finish_and_select(const A* __restrict__ partial, int tiles, int frames,
                      const int32_t* __restrict__ cu, int videos, int num_boundaries,
                      unsigned limit, int32_t* finished, A* __restrict__ sums, float* similarity,
                      int32_t* __restrict__ out) {
  __shared__ int complete[kFrames];
  const int warp = threadIdx.x / kWarp, block = static_cast<int>(blockIdx.x);
  const int64_t t = static_cast<int64_t>(block) * kFrames + warp;
  int video = -1;
  if (t < frames) {
    video = finish_and_count(partial, static_cast<int>(t), tiles, frames, cu, videos, finished,
                             sums, similarity);
  }
  if (threadIdx.x % kWarp == 0) complete[warp] = video;
  __syncthreads();
  const bool fill = block < videos && span_of(cu, frames, block).frames == 0;
  for (int i = 0; i < kFrames + 1; ++i) {
    video = i < kFrames ? complete[i] : fill ? block : -1;
    if (video < 0) continue;
    const Span span = span_of(cu, frames, video);
    select_lowest(similarity + span.first, span.frames, num_boundaries, limit,
                  out + static_cast<int64_t>(video) * num_boundaries);
  }
}

std::tuple<Tensor, Tensor, Tensor> segment_scenes(Tensor features, int64_t num_boundaries,
                                                  std::optional<Tensor> cu_frames,
                                                  std::optional<double> threshold) {
  check_rows(features, "features");
  const OnDevice device(features);
  const int64_t frames = features.size(0);
  const DeviceVideos videos(cu_frames, features, frames);
  Tensor out = torch::stable::new_empty(features, {std::max<int64_t>(frames - 1, 0)},
                                        ScalarType::Float);
  Tensor boundaries = new_boundaries(features, videos.count, num_boundaries);
  Tensor finished = torch::stable::new_empty(features, {videos.count}, ScalarType::Int);
  return with_type(features.scalar_type(), [&]<typename T>() {
    using A = acc_t<T>;
    Tensor sums = torch::stable::new_empty(features, {frames, 2}, scalar_type_of<A>);
    const Tensor partial = similarity::launch_partial_sums<T>(
        device, features, mutable_data<int32_t>(finished), videos.count);
    const int64_t blocks = std::max<int64_t>((frames + kFrames - 1) / kFrames, videos.count);
    device.launch(&finish_and_select<A>, dim3(static_cast<unsigned>(blocks)), kFrames * kWarp,
                  data<A>(partial), static_cast<int>(partial.size(1)), static_cast<int>(frames),
                  videos.cu, videos.count, static_cast<int>(num_boundaries), limit_of(threshold),
                  mutable_data<int32_t>(finished), mutable_data<A>(sums), mutable_data<float>(out),
                  mutable_data<int32_t>(boundaries));
    return std::tuple<Tensor, Tensor, Tensor>(out, sums, boundaries);
  });
}

}  // namespace
}  // namespace tdc

// The schema is declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_cuda, TDC_CUDA_KEY, m) {
  m.impl("segment_scenes", TORCH_BOX(&tdc::segment_scenes));
}
