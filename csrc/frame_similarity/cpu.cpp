// SPDX-License-Identifier: Apache-2.0
// frame_similarity on the CPU. Contract: tdc_kernels/ops/frame_similarity/__init__.py.
#define TDC_KERNEL "frame_similarity/kernel.h"
#include "common/each_isa.h"
#include "common/huge_pages.h"
#include "frame_similarity/cpu.h"

#include <cmath>
#include <memory>

namespace tdc {
namespace {

// 64 kB: two frames' tiles stay in any second-level cache in use, and the hardware's prefetcher,
// which starts anew with every frame, has enough to run. 4 to 16 kB reached 0.6 to 0.85 of the read
// bandwidth where this reached 0.75 to 0.98, with and without software prefetching. Fixed, as the
// order of summation depends on it.
template <typename T>
constexpr int64_t kTile = 65536 / sizeof(T);

// The frames of one task. Short enough to keep all threads busy where there are few tiles; the first
// frame of a task reads its predecessor again, hence not shorter.
int64_t frames_per_task(int64_t frames, int64_t tiles) {
  const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t parts = std::max<int64_t>(wanted / std::max<int64_t>(tiles, 1), 1);
  return std::max<int64_t>((frames + parts - 1) / parts, 16);
}

// body(tile, first frame, last frame) over tiles x tasks along time, in parallel.
template <typename F>
void walk(int64_t frames, int64_t tiles, const F& body) {
  const int64_t step = frames_per_task(frames, tiles);
  const int64_t tasks = (frames + step - 1) / step;
  torch::stable::parallel_for(0, tiles * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % tasks * step;
      body(i / tasks, first, std::min(first + step, frames));
    }
  });
}

template <typename T>
void frame_sums(const Tensor& features, Tensor& sums) {
  const int64_t frames = features.size(0), width = features.size(1), stride = features.stride(0);
  const int64_t tiles = (width + kTile<T> - 1) / kTile<T>;
  const T* x = data<T>(features);
  const auto partial = std::make_unique_for_overwrite<acc_t<T>[]>(
      static_cast<size_t>(tiles * frames * 2));
  const auto kernel = TDC_VARIANT(tile_sums<T>);
  walk(frames, tiles, [&](int64_t tile, int64_t first, int64_t last) {
    const int64_t begin = tile * kTile<T>;
    kernel(x + begin, stride, std::min(kTile<T>, width - begin), first, last,
           partial.get() + tile * frames * 2);
  });
  auto* out = mutable_data<acc_t<T>>(sums);
  for (int64_t i = 0; i < 2 * frames; ++i) {
    double total = 0;
    for (int64_t tile = 0; i > 0 && tile < tiles; ++tile) {  // i = 0 is the pair before frame 0
      total += static_cast<double>(partial[static_cast<size_t>(tile * frames * 2 + i)]);
    }
    out[i] = static_cast<acc_t<T>>(total);
  }
}

template <typename A>
void cosines(const A* sums, int64_t frames, const Videos& videos, float* out) {
  for (int32_t t = 1; t < frames; ++t) {
    const A norms = std::max(std::sqrt(sums[2 * t - 1]), kEps<A>) *
                    std::max(std::sqrt(sums[2 * t + 1]), kEps<A>);
    out[t - 1] = videos.begins(t) ? std::numeric_limits<float>::infinity()
                                  : static_cast<float>(sums[2 * t] / norms);
  }
}

// What tile_gradient multiplies frame t's neighbours and itself with. With n = max(|x|, eps):
// ds_t/dx_t = x_{t-1} / (n_{t-1} n_t) - s_t x_t / |x_t|^2, the second part where |x_t| >= eps.
template <typename A>
void gradient_weights(const A* sums, const float* grad, int64_t frames, const Videos& videos,
                      A* weights) {
  const auto pair = [&](int64_t t) -> A {  // gradient of <x_{t-1}, x_t>
    if (t <= 0 || t >= frames || videos.begins(static_cast<int32_t>(t))) return 0;
    return static_cast<A>(grad[t - 1]) / (std::max(std::sqrt(sums[2 * t - 1]), kEps<A>) *
                                          std::max(std::sqrt(sums[2 * t + 1]), kEps<A>));
  };
  for (int64_t t = 0; t < frames; ++t) {
    const A before = pair(t), after = pair(t + 1), square = sums[2 * t + 1];
    A own = 0;
    if (before != 0) own += before * sums[2 * t];
    if (after != 0) own += after * sums[2 * t + 2];
    weights[3 * t] = before;
    // A NaN stays one; below eps the norm is a constant.
    weights[3 * t + 1] = std::sqrt(square) < kEps<A> ? A(0) : -own / square;
    weights[3 * t + 2] = after;
  }
}

template <typename T>
void gradient(const Tensor& features, const acc_t<T>* weights, Tensor& out) {
  const int64_t frames = features.size(0), width = features.size(1);
  const int64_t stride = features.stride(0), out_stride = out.stride(0);
  const int64_t tiles = (width + kTile<T> - 1) / kTile<T>;
  const T* x = data<T>(features);
  T* grad = mutable_data<T>(out);
  const auto kernel = TDC_VARIANT(tile_gradient<T>);
  walk(frames, tiles, [&](int64_t tile, int64_t first, int64_t last) {
    const int64_t begin = tile * kTile<T>;
    kernel(x + begin, stride, std::min(kTile<T>, width - begin), first, last, weights, grad + begin,
           out_stride);
  });
}

std::tuple<Tensor, Tensor> frame_similarity(Tensor features, std::optional<Tensor> cu_frames) {
  const Videos videos(cu_frames, features.dim() > 0 ? features.size(0) : 0);
  return similarity_and_sums(features, videos);
}

Tensor frame_similarity_backward(Tensor grad, Tensor features, Tensor sums,
                                 std::optional<Tensor> cu_frames) {
  check_rows(features, "features");
  const int64_t frames = features.size(0);
  const Videos videos(cu_frames, frames);
  const Tensor dense = torch::stable::contiguous(grad);
  STD_TORCH_CHECK(vector_view<float>(dense, "grad").size() ==
                      static_cast<size_t>(std::max<int64_t>(frames - 1, 0)),
                  "grad: expected one entry per pair of frames");
  STD_TORCH_CHECK(sums.is_contiguous() && sums.numel() == 2 * frames, "sums: expected [F, 2]");
  Tensor out = torch::stable::new_empty(features, {frames, features.size(1)});
  prefer_huge_pages(out);
  with_type(features.scalar_type(), [&]<typename T>() {
    STD_TORCH_CHECK(sums.scalar_type() == scalar_type_of<acc_t<T>>, "sums: unexpected dtype");
    const auto weights =
        std::make_unique_for_overwrite<acc_t<T>[]>(static_cast<size_t>(3 * frames));
    gradient_weights(data<acc_t<T>>(sums), data<float>(dense), frames, videos, weights.get());
    gradient<T>(features, weights.get(), out);
  });
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor> similarity_and_sums(const Tensor& features, const Videos& videos) {
  check_rows(features, "features");
  const int64_t frames = features.size(0);
  Tensor out = torch::stable::new_empty(features, {std::max<int64_t>(frames - 1, 0)},
                                        ScalarType::Float);
  return with_type(features.scalar_type(), [&]<typename T>() {
    Tensor sums = torch::stable::new_empty(features, {frames, 2}, scalar_type_of<acc_t<T>>);
    frame_sums<T>(features, sums);
    cosines(data<acc_t<T>>(sums), frames, videos, mutable_data<float>(out));
    return std::tuple<Tensor, Tensor>(out, sums);
  });
}

}  // namespace tdc

// The schemas are declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_native, CPU, m) {
  m.impl("frame_similarity", TORCH_BOX(&tdc::frame_similarity));
  m.impl("frame_similarity_backward", TORCH_BOX(&tdc::frame_similarity_backward));
}
