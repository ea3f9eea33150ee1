// SPDX-License-Identifier: Apache-2.0
// Views of tensor arguments, checked once. Only PyTorch's stable ABI: one build serves every torch
// from the targeted version on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>

#include "common/numbers.h"

namespace tdc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
inline constexpr ScalarType scalar_type_of = ScalarType::Undefined;
template <>
inline constexpr ScalarType scalar_type_of<float> = ScalarType::Float;
template <>
inline constexpr ScalarType scalar_type_of<double> = ScalarType::Double;
template <>
inline constexpr ScalarType scalar_type_of<f16> = ScalarType::Half;
template <>
inline constexpr ScalarType scalar_type_of<bf16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType scalar_type_of<int32_t> = ScalarType::Int;
template <>
inline constexpr ScalarType scalar_type_of<int64_t> = ScalarType::Long;

// f.template operator()<T>() for the C++ type of a floating dtype.
template <typename F>
decltype(auto) with_type(ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f.template operator()<float>();
    case ScalarType::Double:
      return f.template operator()<double>();
    case ScalarType::Half:
      return f.template operator()<f16>();
    case ScalarType::BFloat16:
      return f.template operator()<bf16>();
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, float16 or bfloat16");
  }
}

template <typename T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
T* mutable_data(Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// A one-dimensional tensor as a span. The tensor must outlive it and be contiguous: callers that
// accept strides call torch::stable::contiguous first.
template <typename T>
std::span<const T> vector_view(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == scalar_type_of<T>, name, ": unexpected dtype");
  STD_TORCH_CHECK(x.dim() == 1 && x.is_contiguous(), name, ": expected one contiguous dimension");
  return {data<T>(x), static_cast<size_t>(x.numel())};
}

// A matrix whose rows are dense: stride 1 along dimension 1.
inline void check_rows(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2 && (x.numel() == 0 || x.size(1) <= 1 || x.stride(1) == 1), name,
                  ": expected two dimensions and dense rows");
}

// Kernels read all arguments by their addresses: those must be of one device.
inline void check_device(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() == like.is_cpu() &&
                      x.get_device_index() == like.get_device_index(),
                  name, ": expected a tensor on the device of the others");
}

// Prefix sums of the frames of all videos of a call; without a tensor, one video of `frames`.
class Videos {
 public:
  // The sums may end at `least` or `frames`.
  Videos(const std::optional<Tensor>& cu_frames, int64_t frames, int64_t least) {
    STD_TORCH_CHECK(frames <= std::numeric_limits<int32_t>::max(), "more frames than int32 counts");
    whole_[1] = static_cast<int32_t>(frames);
    if (!cu_frames) return;
    held_ = torch::stable::contiguous(*cu_frames);
    cu_ = vector_view<int32_t>(*held_, "cu_frames");
    STD_TORCH_CHECK(!cu_.empty() && cu_.front() == 0 && std::is_sorted(cu_.begin(), cu_.end()),
                    "cu_frames: expected rising prefix sums from 0");
    STD_TORCH_CHECK(cu_.back() == frames || cu_.back() == least, "cu_frames: expected a total of ",
                    frames, " frames, got ", cu_.back());
  }
  Videos(const std::optional<Tensor>& cu_frames, int64_t frames)
      : Videos(cu_frames, frames, frames) {}
  Videos(const Videos&) = delete;  // cu_ may point into the object
  Videos& operator=(const Videos&) = delete;

  int64_t count() const { return static_cast<int64_t>(cu_.size()) - 1; }
  int32_t first(int64_t video) const { return cu_[static_cast<size_t>(video)]; }
  int32_t frames(int64_t video) const { return first(video + 1) - first(video); }
  // Whether a video begins with this frame; no pair of frames reaches across.
  bool begins(int32_t frame) const { return std::binary_search(cu_.begin(), cu_.end(), frame); }

 private:
  int32_t whole_[2] = {0, 0};
  std::span<const int32_t> cu_ = whole_;
  std::optional<Tensor> held_;
};

}  // namespace tdc
