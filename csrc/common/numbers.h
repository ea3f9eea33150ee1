// SPDX-License-Identifier: Apache-2.0
// The element types of kernels: what is stored, and what sums are taken in.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace tdc {

using f16 = torch::headeronly::Half;
using bf16 = torch::headeronly::BFloat16;

// fp64 is summed in fp64, everything else in fp32.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using acc_t = typename Accumulator<T>::type;

}  // namespace tdc
