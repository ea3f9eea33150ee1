// SPDX-License-Identifier: Apache-2.0
// Device code of frame_similarity, shared with segment_scenes.
#pragma once

#include "common/cuda.cuh"

namespace tdc::similarity {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / kWarp;
inline constexpr int kUnroll = 2;  // 16-byte loads a thread has in flight per frame
inline constexpr int kBatch = 8;   // frames between two synchronisations of a block

template <typename T, int V>
inline constexpr int kTile = kThreads * kUnroll * V;  // features of a block: 4096 in bf16

template <typename A>
__device__ constexpr A eps() {
  return static_cast<A>(1e-8);  // smallest norm divided by, as in F.cosine_similarity
}

// A thread's part of one frame's tile; features beyond the width are zero.
template <typename T, int V>
struct Slice {
  Pack<T, V> part[kUnroll];

  __device__ __forceinline__ void load(const T* frame, int64_t column, int64_t width) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = column + u * kThreads * V;
      if (i < width) {  // V divides the width, or is 1
        part[u] = load_pack<V>(frame + i);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) part[u].x[v] = T(0.f);
      }
    }
  }
};

// partial[t][tile] = {<x_{t-1}, x_t>, |x_t|^2} over the block's features, for the frames of its
// part of time. A block walks along time with the previous frame in registers and the next one
// already on its way, so that memory is read once; only the first frame of a part has its
// predecessor read twice, which is why parts are long (parts_of). The counters of the launch that
// follows are zeroed on the way.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    partial_sums(const T* __restrict__ features, int64_t stride, int64_t width, int frames,
                 int part_frames, acc_t<T>* __restrict__ partial, int32_t* __restrict__ counters,
                 int counted) {
  using A = acc_t<T>;
  __shared__ A shared[kBatch][2][kWarps];
  if (blockIdx.x == 0 && blockIdx.y == 0) {
    for (int i = threadIdx.x; i < counted; i += kThreads) counters[i] = 0;
  }
  const int tile = blockIdx.x, tiles = gridDim.x;
  const int64_t column = static_cast<int64_t>(tile) * kTile<T, V> + threadIdx.x * V;
  const int first = blockIdx.y * part_frames;
  const int last = min(first + part_frames, frames);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  const T* next_frame = features + first * stride;
  Slice<T, V> previous, current, next;
  current.load(next_frame, column, width);
  previous = current;
  if (first > 0) previous.load(next_frame - stride, column, width);
  for (int start = first; start < last; start += kBatch) {
    const int count = min(kBatch, last - start);
    for (int k = 0; k < count; ++k) {
      next_frame += stride;
      if (start + k + 1 < last) next.load(next_frame, column, width);
      A dot = 0, square = 0;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A a = static_cast<A>(current.part[u].x[v]);
          dot += static_cast<A>(previous.part[u].x[v]) * a;
          square += a * a;
        }
      }
      dot = warp_sum(dot);
      square = warp_sum(square);
      if (lane == 0) {
        shared[k][0][warp] = dot;
        shared[k][1][warp] = square;
      }
      previous = current;
      current = next;
    }
    __syncthreads();
    if (threadIdx.x < 2 * count) {
      const int k = threadIdx.x / 2, which = threadIdx.x % 2;
      A total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += shared[k][which][w];
      partial[(static_cast<int64_t>(start + k) * tiles + tile) * 2 + which] = total;
    }
    __syncthreads();
  }
}

// The block's warp adds up frame t's partial sums: {<x_{t-1}, x_t>, |x_t|^2} in every lane.
template <typename A>
__device__ __forceinline__ void frame_total(const A* partial, int t, int tiles, A& dot, A& square) {
  dot = square = 0;
  const A* row = partial + static_cast<int64_t>(t) * tiles * 2;
#pragma unroll 4
  for (int tile = threadIdx.x % kWarp; tile < tiles; tile += kWarp) {
    dot += row[2 * tile];
    square += row[2 * tile + 1];
  }
  dot = warp_sum(dot);
  square = warp_sum(square);
  if (t == 0) dot = 0;  // there is no frame before
}

template <typename A>
__device__ __forceinline__ A cosine(A dot, A before, A square) {
  return dot / (max(sqrt(before), eps<A>()) * max(sqrt(square), eps<A>()));
}

// A warp writes sums[t] and the similarity of frames t - 1 and t; its first lane does the writing.
// `begins`: frame t begins a video.
template <typename A>
__device__ __forceinline__ void finish_frame(const A* partial, int t, int tiles, bool begins,
                                             A* sums, float* similarity) {
  A dot, square, before = 0, unused;
  frame_total(partial, t, tiles, dot, square);
  if (t > 0) frame_total(partial, t - 1, tiles, unused, before);
  if (threadIdx.x % kWarp != 0) return;
  sums += 2 * static_cast<int64_t>(t);
  sums[0] = dot;
  sums[1] = square;
  if (t == 0) return;
  similarity[t - 1] = begins ? INFINITY : static_cast<float>(cosine(dot, before, square));
}

// How partial_sums is launched: blocks of features times parts of time.
struct Grid {
  int64_t tiles;
  int part_frames;
  int64_t parts;
};

// Enough blocks for every GPU in use (8 blocks of 256 threads on 132 to 160 processors) while a
// part stays at least 32 frames long: 3 % of the features are read twice at most.
inline Grid parts_of(int64_t frames, int64_t width, int tile) {
  const int64_t tiles = std::max<int64_t>((width + tile - 1) / tile, 1);
  const int64_t wanted = std::max<int64_t>(1024 / tiles, 1);
  const int64_t length = std::max<int64_t>((frames + wanted - 1) / wanted, 32);
  return {tiles, static_cast<int>(length), (frames + length - 1) / length};
}

// partial [F, tiles, 2], launched; tiles are its size(1). The launch also zeroes the counters.
template <typename T>
Tensor launch_partial_sums(const OnDevice& device, const Tensor& features,
                           int32_t* counters = nullptr, int counted = 0) {
  check_rows(features, "features");
  const int64_t frames = features.size(0), width = features.size(1), stride = features.stride(0);
  const T* x = data<T>(features);
  const bool wide = aligned16(x, {stride, width}, sizeof(T));
  const Grid grid = parts_of(frames, width, wide ? kTile<T, kVector<T>> : kTile<T, 1>);
  Tensor partial = torch::stable::new_empty(features, {frames, grid.tiles, 2},
                                            scalar_type_of<acc_t<T>>);
  device.launch(wide ? &partial_sums<T, kVector<T>> : &partial_sums<T, 1>,
                dim3(static_cast<unsigned>(grid.tiles), static_cast<unsigned>(grid.parts)),
                kThreads, x, stride, width, static_cast<int>(frames), grid.part_frames,
                mutable_data<acc_t<T>>(partial), counters, counted);
  return partial;
}

// The videos' prefix sums on the device; pointer null and count 1 without. Nobody waits for their
// values: kernels read and write nothing outside, whatever these are.
struct DeviceVideos {
  const int32_t* cu = nullptr;
  int count = 1;

  DeviceVideos(const std::optional<Tensor>& cu_frames, const Tensor& like, int64_t least_frames) {
    if (!cu_frames) return;
    check_device(*cu_frames, like, "cu_frames");
    cu = vector_view<int32_t>(*cu_frames, "cu_frames").data();
    count = static_cast<int>(cu_frames->numel()) - 1;
    STD_TORCH_CHECK(count > 0 || (count == 0 && least_frames == 0),
                    "cu_frames: expected prefix sums of ", least_frames, " frames");
  }
};

// The video of frame t < F: the last one that begins at or before it (empty ones that begin there
// too come earlier).
__device__ __forceinline__ int video_of(const int32_t* cu, int videos, int t) {
  if (cu == nullptr) return 0;
  int low = 0, high = videos;  // the first entry of cu[1:] > t
  while (low < high) {
    const int middle = (low + high) / 2;
    if (cu[middle + 1] <= t) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Whether a video begins with frame t, 0 < t < F: no pair of frames reaches across.
__device__ __forceinline__ bool begins(const int32_t* cu, int videos, int t) {
  return cu != nullptr && cu[video_of(cu, videos, t)] == t;
}

}  // namespace tdc::similarity
