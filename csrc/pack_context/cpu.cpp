// SPDX-License-Identifier: Apache-2.0
// pack_context on the CPU. Contract: tdc_kernels/ops/pack_context/__init__.py.
#define TDC_KERNEL "pack_context/kernel.h"
#include "common/each_isa.h"
#include "common/huge_pages.h"
#include "pack_context/arguments.h"

#include <cmath>

namespace tdc {
namespace {

template <typename A>
constexpr A kEps = static_cast<A>(1e-12);  // smallest norm divided by, as in F.normalize

// M*K rows, K of a frame.
template <typename T>
struct Compressed {
  const T* first;
  int64_t queries, frame_stride, query_stride, rows;

  explicit Compressed(const Tensor& x)
      : first(data<T>(x)), queries(x.size(1)), frame_stride(x.stride(0)), query_stride(x.stride(1)),
        rows(x.size(0) * queries) {}
  const T* row(int64_t r) const {
    return first + r / queries * frame_stride + r % queries * query_stride;
  }
};

// Numbers of rows, all from `least` to `end - 1`: 4 us for 8,000 tokens of 14 kB.
std::span<const int32_t> numbers(const Tensor& x, int64_t least, int64_t end, const char* name) {
  const auto values = vector_view<int32_t>(x, name);
  int32_t low = std::numeric_limits<int32_t>::max(), high = std::numeric_limits<int32_t>::min();
  for (const int32_t v : values) {
    low = std::min(low, v);
    high = std::max(high, v);
  }
  STD_TORCH_CHECK(values.empty() || (low >= least && high < end), name, ": expected numbers from ",
                  least, " to ", end - 1, ", got ", low, " to ", high);
  return values;
}

// body(row) for all rows, in parallel; 64 kB at least are worth a task.
template <typename F>
void each_row(int64_t rows, int64_t row_bytes, const F& body) {
  const int64_t grain = std::max<int64_t>(65536 / std::max<int64_t>(row_bytes, 1), 1);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) body(r);
  });
}

Tensor pack_context(Tensor static_rows, Tensor compressed, Tensor separator, Tensor source,
                    Tensor /*position*/, Tensor /*separators*/) {
  packing::check_pieces(static_rows, compressed, separator, source);
  const int64_t tokens = source.numel(), width = static_rows.size(1);
  Tensor out = torch::stable::new_empty(static_rows, {tokens, width});
  prefer_huge_pages(out);
  with_type(static_rows.scalar_type(), [&]<typename T>() {
    using A = acc_t<T>;
    const Compressed<T> units(compressed);
    const T *first = data<T>(static_rows), *between = data<T>(separator);
    const int64_t stride = static_rows.stride(0), static_count = static_rows.size(0);
    const int64_t last = static_count + units.rows;
    const auto rows = numbers(source, 0, last + 1, "source");
    const int64_t bytes = width * int64_t{sizeof(T)};
    const auto sum_up = TDC_VARIANT(row_sums<T>);
    const auto divide = TDC_VARIANT(divide_row<T>);
    T* to = mutable_data<T>(out);
    each_row(tokens, bytes, [&](int64_t n) {
      const int64_t r = rows[static_cast<size_t>(n)];
      if (r < static_count || r == last) {
        const T* from = r == last ? between : first + r * stride;
        std::memcpy(to + n * width, from, static_cast<size_t>(bytes));
        return;
      }
      const T* x = units.row(r - static_count);
      A sums[2];
      sum_up(x, nullptr, width, sums);
      const A norm = std::sqrt(sums[0]);
      divide(x, norm < kEps<A> ? kEps<A> : norm, width, to + n * width);
    });
  });
  return out;
}

// The tokens' gradients, found by where a row went.
template <typename T>
struct Tokens {
  const T* grad;
  int64_t stride, width;
  std::span<const int32_t> position;

  // Null where the row was cut off.
  const T* of(int64_t row) const {
    const int32_t n = position[static_cast<size_t>(row)];
    return n < 0 ? nullptr : grad + n * stride;
  }
};

template <typename T>
void static_gradient(const Tokens<T>& tokens, Tensor& out) {
  const int64_t width = tokens.width, bytes = width * int64_t{sizeof(T)};
  T* to = mutable_data<T>(out);
  each_row(out.size(0), bytes, [&](int64_t r) {
    const T* g = tokens.of(r);
    if (g != nullptr) std::memcpy(to + r * width, g, static_cast<size_t>(bytes));
    else std::memset(to + r * width, 0, static_cast<size_t>(bytes));
  });
}

// With n = max(|x|, eps) and y = x / n: dx = (g - y <y, g>) / n; below eps g / n.
template <typename T>
void compressed_gradient(const Tokens<T>& tokens, int64_t static_count, const Compressed<T>& units,
                         Tensor& out) {
  using A = acc_t<T>;
  const int64_t width = tokens.width, bytes = width * int64_t{sizeof(T)};
  const auto sum_up = TDC_VARIANT(row_sums<T>);
  const auto write = TDC_VARIANT(gradient_row<T>);
  T* to = mutable_data<T>(out);
  each_row(units.rows, bytes, [&](int64_t r) {
    const T *x = units.row(r), *g = tokens.of(static_count + r);
    if (g == nullptr) {
      std::memset(to + r * width, 0, static_cast<size_t>(bytes));
      return;
    }
    A sums[2];
    sum_up(x, g, width, sums);
    const A norm = std::sqrt(sums[0]);
    const bool clamped = norm < kEps<A>;
    const A along = clamped ? A(0) : sums[1] / sums[0];
    write(g, x, along, clamped ? kEps<A> : norm, width, to + r * width);
  });
}

// Every column in the order of the tokens, whatever the number of threads.
template <typename T>
void separator_gradient(const Tokens<T>& tokens, std::span<const int32_t> separators, Tensor& out) {
  constexpr int64_t tile = 512;  // columns, whose sums stay in the L1 cache
  const int64_t width = tokens.width;
  const auto add = TDC_VARIANT(sum_rows<T>);
  T* to = mutable_data<T>(out);
  torch::stable::parallel_for(0, (width + tile - 1) / tile, 1, [&](int64_t begin, int64_t end) {
    acc_t<T> sums[tile];
    for (int64_t i = begin * tile; i < std::min(end * tile, width); i += tile) {
      add(tokens.grad + i, tokens.stride, separators.data(),
          static_cast<int64_t>(separators.size()), std::min(tile, width - i), sums, to + i);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> pack_context_backward(Tensor grad, Tensor compressed,
                                                         Tensor position, Tensor separators,
                                                         bool for_static, bool for_compressed,
                                                         bool for_separator) {
  packing::Backward call(grad, compressed, position, separators, for_static, for_compressed,
                         for_separator);
  prefer_huge_pages(call.to_static);
  prefer_huge_pages(call.to_compressed);
  const auto places = numbers(position, -1, call.tokens, "position");
  const auto between = numbers(separators, 0, call.tokens, "separators");
  with_type(call.grad.scalar_type(), [&]<typename T>() {
    const Tokens<T> tokens{data<T>(call.grad), call.grad.stride(0), call.width, places};
    if (for_static) static_gradient(tokens, call.to_static);
    if (for_compressed) {
      compressed_gradient(tokens, call.static_count, Compressed<T>(compressed), call.to_compressed);
    }
    if (for_separator) separator_gradient(tokens, between, call.to_separator);
  });
  return {call.to_static, call.to_compressed, call.to_separator};
}

}  // namespace
}  // namespace tdc

// The schemas are declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_native, CPU, m) {
  m.impl("pack_context", TORCH_BOX(&tdc::pack_context));
  m.impl("pack_context_backward", TORCH_BOX(&tdc::pack_context_backward));
}
