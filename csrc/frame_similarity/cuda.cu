// SPDX-License-Identifier: Apache-2.0
// frame_similarity on CUDA devices. Contract: tdc_kernels/ops/frame_similarity/__init__.py.
#include <tuple>

#include "frame_similarity/kernel.cuh"

namespace tdc {
namespace {

using namespace similarity;

// A warp per frame.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish(const A* __restrict__ partial, int tiles, int frames, const int32_t* __restrict__ cu,
           int videos, A* __restrict__ sums, float* __restrict__ out) {
  const int t = blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (t < frames) finish_frame(partial, t, tiles, begins(cu, videos, t), sums, out);
}

// Gradient of <x_{t-1}, x_t>; 0 where there is no such pair.
template <typename A>
__device__ __forceinline__ A pair_weight(const A* sums, const float* grad, int frames,
                                         const int32_t* cu, int videos, int t) {
  if (t <= 0 || t >= frames || begins(cu, videos, t)) return 0;
  return cosine(static_cast<A>(grad[t - 1]), sums[2 * t - 1], sums[2 * t + 1]);
}

// grad_t = a x_{t-1} + b x_t + c x_{t+1}, walked along time like the forward: every feature is read
// once, every gradient written once. With n = max(|x|, eps):
// ds_t/dx_t = x_{t-1} / (n_{t-1} n_t) - s_t x_t / |x_t|^2, the second part where |x_t| >= eps.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    gradient(const T* __restrict__ features, int64_t stride, int64_t width, int frames,
             int part_frames, const acc_t<T>* __restrict__ sums, const float* __restrict__ grad,
             const int32_t* __restrict__ cu, int videos, T* __restrict__ out) {
  using A = acc_t<T>;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kTile<T, V> + threadIdx.x * V;
  const int first = blockIdx.y * part_frames;
  const int last = min(first + part_frames, frames);
  Slice<T, V> previous, current, next;
  current.load(features + first * stride, column, width);
  previous = next = current;
  if (first > 0) previous.load(features + (first - 1) * stride, column, width);
  A before = pair_weight(sums, grad, frames, cu, videos, first);
  for (int t = first; t < last; ++t) {
    if (t + 1 < frames) next.load(features + (t + 1) * stride, column, width);
    const A after = pair_weight(sums, grad, frames, cu, videos, t + 1);
    const A square = sums[2 * t + 1];
    A own = 0;
    if (before != A(0)) own += before * sums[2 * t];
    if (after != A(0)) own += after * sums[2 * t + 2];
    // A NaN stays one; below eps the norm is a constant.
    own = sqrt(square) < eps<A>() ? A(0) : -own / square;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = column + u * kThreads * V;
      Pack<T, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A total = own * static_cast<A>(current.part[u].x[v]);
        // A neighbour of weight 0 may hold a NaN of another video.
        if (before != A(0)) total += before * static_cast<A>(previous.part[u].x[v]);
        if (after != A(0)) total += after * static_cast<A>(next.part[u].x[v]);
        result.x[v] = static_cast<T>(total);
      }
      if (i < width) store_pack<V>(out + t * width + i, result);
    }
    previous = current;
    current = next;
    before = after;
  }
}

std::tuple<Tensor, Tensor> frame_similarity(Tensor features, std::optional<Tensor> cu_frames) {
  check_rows(features, "features");
  const OnDevice device(features);
  const int64_t frames = features.size(0);
  const DeviceVideos videos(cu_frames, features, frames);
  Tensor out = torch::stable::new_empty(features, {std::max<int64_t>(frames - 1, 0)},
                                        ScalarType::Float);
  return with_type(features.scalar_type(), [&]<typename T>() {
    using A = acc_t<T>;
    Tensor sums = torch::stable::new_empty(features, {frames, 2}, scalar_type_of<A>);
    const Tensor partial = launch_partial_sums<T>(device, features);
    device.launch(&finish<A>, dim3(static_cast<unsigned>((frames + kWarps - 1) / kWarps)), kThreads,
                  data<A>(partial), static_cast<int>(partial.size(1)), static_cast<int>(frames),
                  videos.cu, videos.count, mutable_data<A>(sums), mutable_data<float>(out));
    return std::tuple<Tensor, Tensor>(out, sums);
  });
}

Tensor frame_similarity_backward(Tensor grad, Tensor features, Tensor sums,
                                 std::optional<Tensor> cu_frames) {
  check_rows(features, "features");
  const OnDevice device(features);
  const int64_t frames = features.size(0), width = features.size(1), stride = features.stride(0);
  const DeviceVideos videos(cu_frames, features, frames);
  const Tensor dense = torch::stable::contiguous(grad);
  check_device(grad, features, "grad");
  check_device(sums, features, "sums");
  STD_TORCH_CHECK(static_cast<int64_t>(vector_view<float>(dense, "grad").size()) ==
                      std::max<int64_t>(frames - 1, 0),
                  "grad: expected one entry per pair of frames");
  STD_TORCH_CHECK(sums.is_contiguous() && sums.numel() == 2 * frames, "sums: expected [F, 2]");
  Tensor out = torch::stable::new_empty(features, {frames, width});
  with_type(features.scalar_type(), [&]<typename T>() {
    using A = acc_t<T>;
    STD_TORCH_CHECK(sums.scalar_type() == scalar_type_of<A>, "sums: unexpected dtype");
    const T* x = data<T>(features);
    const bool wide = aligned16(x, {stride, width}, sizeof(T));
    const Grid grid = parts_of(frames, width, wide ? kTile<T, kVector<T>> : kTile<T, 1>);
    device.launch(wide ? &gradient<T, kVector<T>> : &gradient<T, 1>,
                  dim3(static_cast<unsigned>(grid.tiles), static_cast<unsigned>(grid.parts)),
                  kThreads, x, stride, width, static_cast<int>(frames), grid.part_frames,
                  data<A>(sums), data<float>(dense), videos.cu, videos.count, mutable_data<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace tdc

// The schemas are declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_cuda, TDC_CUDA_KEY, m) {
  m.impl("frame_similarity", TORCH_BOX(&tdc::frame_similarity));
  m.impl("frame_similarity_backward", TORCH_BOX(&tdc::frame_similarity_backward));
}
