// SPDX-License-Identifier: Apache-2.0
// What both builds of pack_context ask of their arguments.
#pragma once

#include <tuple>

#include "common/checks.h"

namespace tdc::packing {

inline void check_compressed(const Tensor& x, int64_t width, ScalarType type) {
  STD_TORCH_CHECK(x.scalar_type() == type, "compressed: unexpected dtype");
  STD_TORCH_CHECK(x.dim() == 3 && x.size(2) == width &&
                      (x.numel() == 0 || width <= 1 || x.stride(2) == 1),
                  "compressed: expected [M, K, D] with dense rows");
}

inline void check_pieces(const Tensor& static_rows, const Tensor& compressed,
                         const Tensor& separator, const Tensor& source) {
  check_rows(static_rows, "static");
  const int64_t width = static_rows.size(1);
  const ScalarType type = static_rows.scalar_type();
  check_compressed(compressed, width, type);
  check_device(compressed, static_rows, "compressed");
  check_device(separator, static_rows, "separator");
  check_device(source, static_rows, "source");
  STD_TORCH_CHECK(separator.scalar_type() == type, "separator: unexpected dtype");
  STD_TORCH_CHECK(separator.dim() == 1 && separator.size(0) == width && separator.is_contiguous(),
                  "separator: expected [D]");
  vector_view<int32_t>(source, "source");
}

// The arguments of the backward, and its outputs: an unwanted one is empty.
struct Backward {
  Tensor grad;  // [N, D] with dense rows
  int64_t tokens, width, frames, queries, static_count;
  Tensor to_static, to_compressed, to_separator;

  Backward(const Tensor& given, const Tensor& compressed, const Tensor& position,
           const Tensor& separators, bool for_static, bool for_compressed, bool for_separator)
      : grad(dense(given)), tokens(grad.size(0)), width(grad.size(1)),
        frames((check_compressed(compressed, width, grad.scalar_type()), compressed.size(0))),
        queries(compressed.size(1)), static_count(position.numel() - frames * queries),
        to_static(empty({for_static ? static_count : 0, width})),
        to_compressed(empty({for_compressed ? frames : 0, queries, width})),
        to_separator(empty({for_separator ? width : 0})) {
    check_device(compressed, grad, "compressed");
    check_device(position, grad, "position");
    check_device(separators, grad, "separators");
    vector_view<int32_t>(position, "position");
    vector_view<int32_t>(separators, "separators");
  }

 private:
  static Tensor dense(const Tensor& x) {
    STD_TORCH_CHECK(x.dim() == 2, "grad: expected [N, D]");
    return x.size(1) <= 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
  }
  Tensor empty(std::initializer_list<int64_t> sizes) const {
    STD_TORCH_CHECK(static_count >= 0, "position: expected an entry per row of compressed");
    return torch::stable::new_empty(grad, sizes);
  }
};

}  // namespace tdc::packing
