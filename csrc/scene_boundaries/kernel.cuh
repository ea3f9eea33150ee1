// SPDX-License-Identifier: Apache-2.0
// Device code of scene_boundaries, shared with segment_scenes: a block finds the lowest
// similarities of one video. Integers only, so the result depends on no order of execution.
#pragma once

#include <cstring>

#include "common/cuda.cuh"

namespace tdc::boundaries {

inline constexpr int kRadixBits = 8;  // of a key, per pass over a video's keys
inline constexpr int kBins = 1 << kRadixBits;
inline constexpr int kPasses = 32 / kRadixBits;
inline constexpr unsigned kNoLimit = 0xffffffffu;  // higher than every key

// Unsigned keys in the order of the numbers with these bits; -0 equals 0.
__host__ __device__ inline unsigned ordered(unsigned bits) {
  if (bits == 0x80000000u) bits = 0;
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

// NaN counts as -inf.
__device__ __forceinline__ unsigned key_of(float value) {
  return ordered(__float_as_uint(value != value ? -INFINITY : value));
}

// Only pairs with a lower key may become boundaries. PyTorch compares a float tensor with a number
// in float; so must this.
inline unsigned limit_of(std::optional<double> threshold) {
  if (!threshold) return kNoLimit;
  const float value = static_cast<float>(*threshold);
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return value != value ? 0 : ordered(bits);  // nothing is lower than NaN
}

// Counts a digit per lane. Similarities have few exponents: the first digit is often the same in
// the whole warp, whose lanes would queue at one counter, so the lanes that agree with the first
// one are added at once.
__device__ __forceinline__ void count_digits(int* counts, unsigned digit, bool counted) {
  const int lane = threadIdx.x % kWarp;
  const unsigned all = __ballot_sync(kFullMask, counted);
  if (all == 0) return;
  const int first = __ffs(static_cast<int>(all)) - 1;
  const unsigned common = __shfl_sync(kFullMask, digit, first);
  const unsigned agreed = __ballot_sync(kFullMask, counted && digit == common);
  if (lane == first) {
    atomicAdd(counts + digit, __popc(agreed));
  } else if (counted && digit != common) {
    atomicAdd(counts + digit, 1);
  }
}

// The k-th lowest key of a video and how many are lower.
struct Cut {
  unsigned key;
  int below;
};

// Narrows the cut by one digit: the one whose keys hold the k-th. Every warp does it for itself,
// which saves a synchronisation.
__device__ __forceinline__ void narrow(const int* counts, int k, int shift, Cut& cut) {
  constexpr int per_lane = kBins / kWarp;
  const int lane = threadIdx.x % kWarp;
  int own[per_lane], sum = 0;
#pragma unroll
  for (int j = 0; j < per_lane; ++j) sum += own[j] = counts[lane * per_lane + j];
  int through = sum;  // inclusive sum over the lanes
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int lower = __shfl_up_sync(kFullMask, through, step);
    if (lane >= step) through += lower;
  }
  const int wanted = k - cut.below;  // >= 1
  const int holder = __ffs(static_cast<int>(__ballot_sync(kFullMask, through >= wanted))) - 1;
  int before = through - sum, digit = lane * per_lane;
  bool open = true;
#pragma unroll
  for (int j = 0; j < per_lane; ++j) {
    open = open && before + own[j] < wanted;
    before += open ? own[j] : 0;
    digit += open ? 1 : 0;
  }
  cut.key |= static_cast<unsigned>(__shfl_sync(kFullMask, digit, holder)) << shift;
  cut.below += __shfl_sync(kFullMask, before, holder);
}

// Radix select, highest digit first; 1 <= k <= pairs. By all threads of the block.
__device__ __forceinline__ Cut kth_lowest(const float* similarity, unsigned pairs, int k) {
  __shared__ int counts[kPasses * kBins];
  for (unsigned i = threadIdx.x; i < kPasses * kBins; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  Cut cut = {0, 0};
  for (int pass = 0; pass < kPasses; ++pass) {
    const int shift = 32 - kRadixBits * (pass + 1);
    int* bins = counts + pass * kBins;
    for (unsigned start = 0; start < pairs; start += blockDim.x) {
      const unsigned i = start + threadIdx.x;
      const unsigned key = i < pairs ? key_of(similarity[i]) : 0;
      // 64 bits, as nothing is left of 32 after the shift of the first pass.
      const bool same = static_cast<uint64_t>(key ^ cut.key) >> (shift + kRadixBits) == 0;
      count_digits(bins, key >> shift & (kBins - 1), i < pairs && same);
    }
    __syncthreads();
    narrow(bins, k, shift, cut);
  }
  return cut;
}

// Numbers of the warps of a block, two counts of at most 1024 in one: before this warp, and all.
__device__ __forceinline__ void scan_warps(const int* packed, int& before, int& all) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int own = lane < static_cast<int>(blockDim.x) / kWarp ? packed[lane] : 0;
  before = warp_sum(lane < warp ? own : 0);
  all = warp_sum(own);
}

// Writes one video's boundaries, by all threads of the block (whole warps, at most 1024 threads).
// similarity: the video's frames - 1 pairs; out: num_boundaries entries.
__device__ inline void select_lowest(const float* similarity, int frames, int num_boundaries,
                                     unsigned limit, int32_t* out) {
  __shared__ int packed[2][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int pairs = max(frames - 1, 0), most = min(num_boundaries, pairs);
  const unsigned earlier = (1u << lane) - 1;  // lanes
  __syncthreads();  // shared memory may still be read for the video before
  Cut cut = {kNoLimit, 0};
  if (0 < most && most < pairs) cut = kth_lowest(similarity, static_cast<unsigned>(pairs), most);
  // The boundaries are all keys below `below` and the first `quota` that equal the cut.
  const unsigned below = min(cut.key, limit);
  const int quota = cut.key < limit ? most - cut.below : 0;
  int lower = 0, equal = 0, side = 0;  // of either, how many there were so far
  for (unsigned start = 0; start < static_cast<unsigned>(pairs); start += blockDim.x) {
    if (lower + min(equal, quota) >= most) break;
    const unsigned i = start + threadIdx.x;
    const bool inside = i < static_cast<unsigned>(pairs);
    const unsigned key = inside ? key_of(similarity[i]) : kNoLimit;
    const bool is_lower = inside && key < below, is_equal = inside && key == cut.key;
    const unsigned lowers = __ballot_sync(kFullMask, is_lower);
    const unsigned equals = __ballot_sync(kFullMask, is_equal);
    if (lane == 0) packed[side][warp] = __popc(lowers) | __popc(equals) << 16;
    __syncthreads();
    int before, all;
    scan_warps(packed[side], before, all);
    side ^= 1;  // the next counts go where nobody reads any more: one synchronisation a round
    const int my_lower = lower + (before & 0xffff) + __popc(lowers & earlier);
    const int my_equal = equal + (before >> 16) + __popc(equals & earlier);
    if (is_lower || (is_equal && my_equal < quota)) {
      // Always inside, unless prefix sums that are none let somebody write similarities meanwhile.
      const int place = my_lower + min(my_equal, quota);
      if (place < num_boundaries) out[place] = static_cast<int32_t>(i) + 1;
    }
    lower += all & 0xffff;
    equal += all >> 16;
  }
  const int taken = lower + min(equal, quota);
  for (int64_t i = int64_t{taken} + threadIdx.x; i < num_boundaries; i += blockDim.x) {
    out[i] = frames;
  }
}

// Frames of a video: first one and number. Without prefix sums there is one video of all frames;
// sums that are none give some of the frames that there are, or none.
struct Span {
  int first, frames;
};

__device__ __forceinline__ Span span_of(const int32_t* cu, int frames, int video) {
  if (cu == nullptr) return {0, frames};
  const int first = min(max(cu[video], 0), frames);
  return {first, max(min(cu[video + 1], frames) - first, 0)};
}

// int32 [videos, num_boundaries] on the device of `like`.
inline Tensor new_boundaries(const Tensor& like, int videos, int64_t num_boundaries) {
  STD_TORCH_CHECK(0 <= num_boundaries && num_boundaries <= std::numeric_limits<int32_t>::max(),
                  "num_boundaries: expected a number >= 0 that int32 holds");
  return torch::stable::new_empty(like, {videos, num_boundaries}, ScalarType::Int);
}

}  // namespace tdc::boundaries
