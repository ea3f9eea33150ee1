// SPDX-License-Identifier: Apache-2.0
// anchor_queries on the CPU. Contract: tdc_kernels/ops/anchor_queries/__init__.py.
#define TDC_KERNEL "anchor_queries/kernel.h"
#include "common/each_isa.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "anchor_queries/bins.h"
#include "common/checks.h"
#include "common/huge_pages.h"

namespace tdc {
namespace {

using namespace pooling;

// Columns of one task: enough tasks for a single anchor, long runs of memory, and running sums of
// 8 kB at most.
constexpr int64_t kColumns = 1024;
// Less than this per thread is not worth waking one.
constexpr int64_t kBytesPerThread = 65536;

// f.template operator()<T, O>() for tokens in T and pooled values in O.
template <typename F>
void with_types(ScalarType tokens, ScalarType pooled, F&& f) {
  with_type(tokens, [&]<typename T>() {
    if constexpr (std::is_same_v<T, double>) {
      STD_TORCH_CHECK(pooled == ScalarType::Double, "dtype: expected float64 like tokens");
      f.template operator()<double, double>();
    } else {
      with_type(pooled, [&]<typename O>() {
        STD_TORCH_CHECK((!std::is_same_v<O, double>), "dtype: expected at most float32");
        if constexpr (!std::is_same_v<O, double>) f.template operator()<T, O>();
      });
    }
  });
}

template <typename I>
void copy_index(const Tensor& index, int64_t frames, std::vector<int64_t>& out) {
  for (const I frame : vector_view<I>(index, "index")) {
    STD_TORCH_CHECK(frame >= 0 && frame < frames, "index: expected frame numbers from 0 to ",
                    frames - 1, ", got ", frame);
    out.push_back(frame);
  }
}

// The frame of each anchor, checked.
std::vector<int64_t> frames_of(const std::optional<Tensor>& index, int64_t frames) {
  std::vector<int64_t> out;
  if (!index) {
    out.resize(static_cast<size_t>(frames));
    std::iota(out.begin(), out.end(), int64_t{0});
    return out;
  }
  const Tensor dense = torch::stable::contiguous(*index);
  out.reserve(static_cast<size_t>(dense.numel()));
  if (dense.scalar_type() == ScalarType::Int) copy_index<int32_t>(dense, frames, out);
  else copy_index<int64_t>(dense, frames, out);
  return out;
}

// body(begin, end) over `tasks` of `bytes` each, in parallel.
template <typename F>
void in_parallel(int64_t tasks, int64_t bytes, const F& body) {
  const int64_t grain = kBytesPerThread / std::max<int64_t>(bytes, 1) + 1;
  torch::stable::parallel_for(0, tasks, grain, body);
}

template <typename T, typename O>
void pool(const Tensor& tokens, const std::vector<int64_t>& frames, int64_t queries, Tensor& out) {
  const int64_t length = tokens.size(1), width = tokens.size(2);
  const int64_t frame_stride = tokens.stride(0), stride = tokens.stride(1);
  const T* x = data<T>(tokens);
  O* result = mutable_data<O>(out);
  const auto kernel = TDC_VARIANT(mean_of_rows<T, O>);
  // A task is some columns of one bin. A thread's tasks follow each other in memory; the token
  // that two bins share is still in the cache when the second one reads it.
  const int64_t tiles = (width + kColumns - 1) / kColumns;
  const int64_t tasks = static_cast<int64_t>(frames.size()) * queries * tiles;
  const int64_t bytes = (length / queries + 1) * std::min(width, kColumns) * int64_t{sizeof(T)};
  in_parallel(tasks, bytes, [&](int64_t begin, int64_t end) {
    acc_t<T> total[kColumns];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / tiles, column = i % tiles * kColumns;
      const Bin bin(row % queries, length, queries);
      const T* frame = x + frames[static_cast<size_t>(row / queries)] * frame_stride;
      kernel(frame + bin.start * stride + column, stride, bin.stop - bin.start,
             std::min(kColumns, width - column), total, result + row * width + column);
    }
  });
}

// The anchors that ask for each frame, in order: rows[starts[f]] to rows[starts[f + 1]].
struct Asking {
  std::vector<int64_t> starts, rows;

  Asking(const std::vector<int64_t>& anchors, int64_t frames)
      : starts(static_cast<size_t>(frames + 1)), rows(anchors.size()) {
    for (const int64_t frame : anchors) ++starts[static_cast<size_t>(frame + 1)];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (size_t row = 0; row < anchors.size(); ++row) {
      rows[static_cast<size_t>(next[static_cast<size_t>(anchors[row])]++)] =
          static_cast<int64_t>(row);
    }
  }

  std::span<const int64_t> of(int64_t frame) const {
    const auto* at = starts.data() + frame;
    return {rows.data() + at[0], static_cast<size_t>(at[1] - at[0])};
  }
};

// What one token's gradient is made of: rows of `grad` and the widths of their bins.
template <typename T, typename O>
struct Terms {
  std::vector<const O*> rows;
  std::vector<acc_t<T>> divisors;

  void collect(const O* grad, int64_t width, int64_t queries, std::span<const int64_t> anchors,
               int64_t first, int64_t last, const std::vector<acc_t<T>>& bin_width) {
    rows.clear();
    divisors.clear();
    for (const int64_t anchor : anchors) {
      for (int64_t j = first; j < last; ++j) {
        rows.push_back(grad + (anchor * queries + j) * width);
        divisors.push_back(bin_width[static_cast<size_t>(j)]);
      }
    }
  }
};

template <typename T, typename O>
void gradient(const Tensor& grad, const Asking& asking, Tensor& out) {
  const int64_t queries = grad.size(1), width = grad.size(2);
  const int64_t frames = out.size(0), length = out.size(1);
  const O* g = data<O>(grad);
  T* result = mutable_data<T>(out);
  std::vector<acc_t<T>> bin_width(static_cast<size_t>(queries));
  for (int64_t j = 0; j < queries; ++j) {
    const Bin bin(j, length, queries);
    bin_width[static_cast<size_t>(j)] = static_cast<acc_t<T>>(bin.stop - bin.start);
  }
  const auto kernel = TDC_VARIANT(sum_of_rows<T, O>);
  const int64_t bytes = width * int64_t{sizeof(T)};  // of one token, which is a task
  in_parallel(frames * length, bytes, [&](int64_t begin, int64_t end) {
    Terms<T, O> terms;
    int64_t frame_before = -1, first_before = 0, last_before = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t frame = i / length, token = i % length;
      const int64_t first = first_bin(token, length, queries);
      const int64_t last = end_bin(token, length, queries);
      const auto anchors = asking.of(frame);
      T* row = result + i * width;
      if (anchors.empty()) {
        std::memset(row, 0, static_cast<size_t>(bytes));
      } else if (frame == frame_before && first == first_before && last == last_before) {
        std::memcpy(row, row - width, static_cast<size_t>(bytes));  // most tokens of a bin
      } else {
        terms.collect(g, width, queries, anchors, first, last, bin_width);
        kernel(terms.rows.data(), terms.divisors.data(), static_cast<int64_t>(terms.rows.size()),
               width, row);
      }
      frame_before = frame;
      first_before = first;
      last_before = last;
    }
  });
}

Tensor anchor_queries(Tensor tokens, int64_t num_queries, std::optional<Tensor> index,
                      std::optional<ScalarType> dtype) {
  STD_TORCH_CHECK(tokens.dim() == 3 && tokens.size(1) >= 1, "tokens: expected [F, L, D], L >= 1");
  STD_TORCH_CHECK(tokens.numel() == 0 || tokens.size(2) <= 1 || tokens.stride(2) == 1, "tokens: expected dense rows");
  STD_TORCH_CHECK(num_queries >= 1, "num_queries: expected at least 1, got ", num_queries);
  const auto frames = frames_of(index, tokens.size(0));
  const ScalarType type = dtype.value_or(tokens.scalar_type());
  Tensor out = torch::stable::new_empty(
      tokens, {static_cast<int64_t>(frames.size()), num_queries, tokens.size(2)}, type);
  with_types(tokens.scalar_type(), type,
             [&]<typename T, typename O>() { pool<T, O>(tokens, frames, num_queries, out); });
  return out;
}

Tensor anchor_queries_backward(Tensor grad, int64_t frames, int64_t length,
                               std::optional<Tensor> index, ScalarType dtype) {
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(1) >= 1, "grad: expected [A, K, D], K >= 1");
  const auto anchors = frames_of(index, frames);
  STD_TORCH_CHECK(grad.size(0) == static_cast<int64_t>(anchors.size()),
                  "grad: expected one entry per anchor");
  const Tensor dense = torch::stable::contiguous(grad);
  const Asking asking(anchors, frames);
  Tensor out = torch::stable::new_empty(grad, {frames, length, grad.size(2)}, dtype);
  prefer_huge_pages(out);
  with_types(dtype, grad.scalar_type(),
             [&]<typename T, typename O>() { gradient<T, O>(dense, asking, out); });
  return out;
}

}  // namespace
}  // namespace tdc

// The schemas are declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_native, CPU, m) {
  m.impl("anchor_queries", TORCH_BOX(&tdc::anchor_queries));
  m.impl("anchor_queries_backward", TORCH_BOX(&tdc::anchor_queries_backward));
}
