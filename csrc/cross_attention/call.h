// SPDX-License-Identifier: Apache-2.0
// The arguments of a call, checked, and a row's queries and scores as panels.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "common/buffer.h"
#include "cross_attention/arguments.h"

namespace tdc {
namespace {

template <typename I>
std::vector<int64_t> numbers(const Tensor& x, const char* name, int64_t most) {
  std::vector<int64_t> out;
  for (const I value : vector_view<I>(x, name)) {
    STD_TORCH_CHECK(value >= 0 && value <= most, name, ": expected 0 to ", most, ", got ", value);
    out.push_back(value);
  }
  return out;
}

// An int32 or int64 tensor, checked; without one `count` times `otherwise`.
inline std::vector<int64_t> numbers(const std::optional<Tensor>& x, const char* name, int64_t most,
                             int64_t count, int64_t otherwise) {
  if (!x) return std::vector<int64_t>(static_cast<size_t>(count), otherwise);
  const Tensor dense = torch::stable::contiguous(*x);
  STD_TORCH_CHECK(dense.numel() == count, name, ": expected ", count, " numbers");
  if (dense.scalar_type() == ScalarType::Int) return numbers<int32_t>(dense, name, most);
  return numbers<int64_t>(dense, name, most);
}

inline Tensor in_type(const Tensor& x, ScalarType type) {
  return torch::stable::contiguous(x.scalar_type() == type ? x : torch::stable::to(x, type));
}

// Tokens of one kind.
template <typename A>
struct Tokens {
  Tensor x;  // [F, N, D], dense rows
  std::vector<int64_t> lengths;
  void (*convert)(const void*, int64_t, int64_t, int64_t, A*);

  int64_t depth() const { return x.size(2); }
  int64_t length(int64_t frame) const { return lengths[static_cast<size_t>(frame)]; }

  // Columns [at, at + width) of a frame's tokens into `out`. Reading them where they lie was no
  // faster: a row is 14 KB behind the last, a page each.
  void block(int64_t frame, int64_t at, int64_t width, A* out) const {
    const auto* bytes = static_cast<const char*>(x.const_data_ptr());
    const int64_t offset = frame * x.stride(0) + at;
    convert(bytes + offset * static_cast<int64_t>(x.element_size()), x.stride(1), length(frame),
            width, out);
  }
};

template <typename T, typename A>
void convert_rows(const void* x, int64_t stride, int64_t rows, int64_t width, A* out) {
  const auto kernel = TDC_VARIANT(convert<T, A>);
  kernel(static_cast<const T*>(x), stride, rows, width, out);
}

template <typename A>
Tokens<A> tokens(Tensor x, const std::optional<Tensor>& lengths, const char* name) {
  if (x.size(2) > 1 && x.stride(2) != 1) x = torch::stable::contiguous(x);
  Tokens<A> out{x, numbers(lengths, name, x.size(1), x.size(0), x.size(1)), nullptr};
  with_type(x.scalar_type(), [&]<typename T>() { out.convert = &convert_rows<T, A>; });
  return out;
}

// A call's sizes, tokens and rows.
template <typename A>
struct Call {
  int64_t rows, queries, width, heads, dim;
  int64_t panels;      // of all heads: a head's queries are padded to kColumns each
  int64_t tokens = 0;  // Nv + Na
  std::vector<Tokens<A>> sources;
  std::vector<int64_t> frame;  // of each row
  std::optional<Tensor> seen;  // bool [F, Nv + Na]

  int64_t values() const { return panels * dim * kColumns; }  // of a row's queries in panels
  int64_t scores() const { return panels * tokens * kColumns; }
  int64_t head(int64_t panel) const { return panel * heads / panels; }
  int64_t frame_of(int64_t row) const { return frame[static_cast<size_t>(row)]; }

  int64_t count(int64_t frame_number) const {  // tokens within the lengths
    int64_t n = 0;
    for (const auto& s : sources) n += s.length(frame_number);
    return n;
  }

  // Nonzero for tokens within the lengths that get no weight; empty where all are seen.
  std::vector<uint8_t> hidden(int64_t frame_number) const {
    std::vector<uint8_t> out;
    if (!seen) return out;
    const bool* at = data<bool>(*seen) + frame_number * tokens;
    for (const auto& s : sources) {
      for (int64_t n = 0; n < s.length(frame_number); ++n) out.push_back(at[n] ? 0 : 1);
      at += s.x.size(1);
    }
    return out;
  }
};

template <typename A>
Call<A> prepare(const Arguments& a) {
  check(a);
  Call<A> c;
  c.rows = a.query.size(0);
  c.queries = a.query.size(1);
  c.width = a.query.size(2);
  c.heads = a.heads;
  c.dim = c.width / a.heads;
  c.panels = a.heads * ((c.queries + kColumns - 1) / kColumns);
  c.sources.push_back(tokens<A>(a.visual, a.visual_lengths, "visual_lengths"));
  if (a.audio) c.sources.push_back(tokens<A>(*a.audio, a.audio_lengths, "audio_lengths"));
  for (const auto& s : c.sources) c.tokens += s.x.size(1);
  c.frame = numbers(a.index, "index", a.visual.size(0) - 1, c.rows, 0);
  if (!a.index) std::iota(c.frame.begin(), c.frame.end(), int64_t{0});
  if (a.mask) c.seen = torch::stable::contiguous(*a.mask);
  return c;
}

struct Heads {
  int64_t first, last;
};

// Some heads of a row's queries [Q, H*d], scaled, as panels [panels][d][kColumns].
template <typename A>
void to_panels(const Call<A>& c, Heads heads, const A* row, A scale, A* out) {
  const int64_t of_head = c.panels / c.heads;
  out += heads.first * of_head * c.dim * kColumns;
  for (int64_t p = heads.first * of_head; p < heads.last * of_head; ++p) {
    const int64_t first = p % of_head * kColumns;
    for (int64_t j = 0; j < c.dim; ++j, out += kColumns) {
      for (int64_t i = 0; i < kColumns; ++i) {
        const bool there = first + i < c.queries;
        out[i] = there ? row[(first + i) * c.width + p / of_head * c.dim + j] * scale : A(0);
      }
    }
  }
}

// The other way round; `bias` [H*d] or null is added. Without panels zeros, and no bias.
template <typename A>
void from_panels(const Call<A>& c, Heads heads, const A* panels, const A* bias, A* row) {
  const int64_t of_head = c.panels / c.heads;
  for (int64_t h = heads.first; h < heads.last; ++h) {
    for (int64_t q = 0; q < c.queries; ++q) {
      A* to = row + q * c.width + h * c.dim;
      if (panels == nullptr) {
        std::fill(to, to + c.dim, A(0));
        continue;
      }
      const A* at = panels + (h * of_head + q / kColumns) * c.dim * kColumns + q % kColumns;
      for (int64_t j = 0; j < c.dim; ++j) {
        to[j] = at[j * kColumns] + (bias != nullptr ? bias[h * c.dim + j] : A(0));
      }
    }
  }
}

// Softmax of some heads of a row's scores, in place. False if it has no token to look at.
template <typename A>
bool attend(const Call<A>& c, Heads heads, int64_t frame, A* scores) {
  const auto softmax = TDC_VARIANT(softmax<A>);
  const auto hidden = c.hidden(frame);
  const int64_t count = c.count(frame), of_head = c.panels / c.heads;
  const bool none = !hidden.empty() && std::find(hidden.begin(), hidden.end(), 0) == hidden.end();
  if (count == 0 || none) return false;
  for (int64_t p = heads.first * of_head; p < heads.last * of_head; ++p) {
    softmax(scores + p * c.tokens * kColumns, count, hidden.empty() ? nullptr : hidden.data());
  }
  return true;
}

}  // namespace
}  // namespace tdc
