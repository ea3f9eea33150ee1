// SPDX-License-Identifier: Apache-2.0
// Keys and values of a few frames at a time by PyTorch's matrix product, attention over them here.
#pragma once

#include "cross_attention/call.h"

namespace tdc {
namespace {

// Frames whose keys and values exist at a time: 10 MB in fp32 at the paper's sizes.
constexpr int64_t kFrames = 8;

// Rows in the order of their frames, cut where kFrames frames are full.
struct Batch {
  std::vector<int64_t> frames, rows, place;  // place: which of the frames a row attends
};

template <typename A>
std::vector<Batch> batches(const Call<A>& c) {
  std::vector<int64_t> order(static_cast<size_t>(c.rows));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return c.frame_of(a) < c.frame_of(b); });
  std::vector<Batch> out;
  for (const int64_t row : order) {
    const int64_t frame = c.frame_of(row);
    const bool known = !out.empty() && out.back().frames.back() == frame;
    if (!known) {
      if (out.empty() || out.back().frames.size() == kFrames) out.emplace_back();
      out.back().frames.push_back(frame);
    }
    out.back().rows.push_back(row);
    out.back().place.push_back(static_cast<int64_t>(out.back().frames.size()) - 1);
  }
  return out;
}

// A kind of token's keys and values of a batch's frames, [frames * N, H*d] each.
template <typename A>
struct Projected {
  Tensor keys, values;
};

template <typename A>
Projected<A> project_tokens(const Tokens<A>& s, const Batch& batch, const Tensor& w_key,
                            const Tensor& w_value) {
  const int64_t tokens = s.x.size(1), depth = s.depth();
  const auto frames = static_cast<int64_t>(batch.frames.size());
  Tensor x = torch::stable::new_empty(w_key, {frames * tokens, depth});
  A* to = mutable_data<A>(x);
  torch::stable::parallel_for(0, frames, 1, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t frame = batch.frames[static_cast<size_t>(i)];
      A* rows = to + i * tokens * depth;
      s.block(frame, 0, depth, rows);
      std::fill(rows + s.length(frame) * depth, rows + tokens * depth, A(0));
    }
  });
  return {torch::stable::matmul(x, torch::stable::transpose(w_key, 0, 1)),
          torch::stable::matmul(x, torch::stable::transpose(w_value, 0, 1))};
}

template <typename A>
void project(const Call<A>& c, const std::vector<std::pair<Tensor, Tensor>>& weights,
             const A* query, const A* bias, A* out) {
  const A scale = A(1) / std::sqrt(static_cast<A>(c.dim));
  const auto multiply = TDC_VARIANT(multiply<A>);
  const int64_t size = c.queries * c.width;
  const Heads all{0, c.heads};
  for (const Batch& batch : batches(c)) {
    std::vector<Projected<A>> found;
    for (size_t i = 0; i < c.sources.size(); ++i) {
      const auto& [w_key, w_value] = weights[i];
      found.push_back(project_tokens(c.sources[i], batch, w_key, w_value));
    }
    const auto rows = static_cast<int64_t>(batch.rows.size());
    torch::stable::parallel_for(0, rows, 1, [&](int64_t r, int64_t end) {
      const Buffer<A> queries(c.values()), mixed(c.values()), scores(c.scores());
      // body(tokens, keys or values at the row's frame, place of the tokens in a panel of scores)
      const auto for_sources = [&](int64_t at, auto&& of, const auto& body) {
        const int64_t frame = batch.frames[static_cast<size_t>(batch.place[static_cast<size_t>(at)])];
        int64_t place = 0;
        for (size_t i = 0; i < c.sources.size(); ++i) {
          const int64_t first = batch.place[static_cast<size_t>(at)] * c.sources[i].x.size(1);
          body(c.sources[i].length(frame), data<A>(of(found[i])) + first * c.width, place, i > 0);
          place += c.sources[i].length(frame);
        }
      };
      for (; r < end; ++r) {
        const int64_t row = batch.rows[static_cast<size_t>(r)];
        A* to = out + row * size;
        to_panels(c, all, query + row * size, scale, queries.data());
        for_sources(r, [](const auto& f) -> const Tensor& { return f.keys; },
                    [&](int64_t tokens, const A* keys, int64_t place, bool) {
          for (int64_t p = 0; p < c.panels; ++p) {
            multiply(keys + c.head(p) * c.dim, c.width, 1, queries.data() + p * c.dim * kColumns,
                     tokens, c.dim, scores.data() + (p * c.tokens + place) * kColumns, false);
          }
        });
        if (!attend(c, all, c.frame_of(row), scores.data())) {
          from_panels<A>(c, all, nullptr, bias, to);
          continue;
        }
        for_sources(r, [](const auto& f) -> const Tensor& { return f.values; },
                    [&](int64_t tokens, const A* values, int64_t place, bool add) {
          for (int64_t p = 0; p < c.panels; ++p) {
            multiply(values + c.head(p) * c.dim, 1, c.width,
                     scores.data() + (p * c.tokens + place) * kColumns, c.dim, tokens,
                     mixed.data() + p * c.dim * kColumns, add);
          }
        });
        from_panels(c, all, mixed.data(), bias, to);
      }
    });
  }
}

}  // namespace
}  // namespace tdc
