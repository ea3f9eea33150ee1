// SPDX-License-Identifier: Apache-2.0
// Views of tensor arguments, checked once. Only PyTorch's stable ABI: one build serves every torch
// from the targeted version on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <span>

namespace tdc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
inline constexpr ScalarType scalar_type_of = ScalarType::Undefined;
template <>
inline constexpr ScalarType scalar_type_of<float> = ScalarType::Float;
template <>
inline constexpr ScalarType scalar_type_of<int32_t> = ScalarType::Int;

// A one-dimensional tensor as a span. The tensor must outlive it and be contiguous: callers that
// accept strides call torch::stable::contiguous first.
template <typename T>
std::span<const T> vector_view(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == scalar_type_of<T>, name, ": unexpected dtype");
  STD_TORCH_CHECK(x.dim() == 1 && x.is_contiguous(), name, ": expected one contiguous dimension");
  return {static_cast<const T*>(x.const_data_ptr()), static_cast<size_t>(x.numel())};
}

}  // namespace tdc
