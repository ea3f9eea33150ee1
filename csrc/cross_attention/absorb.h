// SPDX-License-Identifier: Apache-2.0
// Keys and values never exist: with q~_h = q_h W_k,h the scores are q~ X^T, and the output is
// (P X) W_v,h^T. A task is a few rows; it walks over the tokens' width in blocks, so that q~ and P X
// exist a block at a time, in the cache, and a block of weights serves all of its rows.
#pragma once

#include "cross_attention/call.h"

namespace tdc {
namespace {

// Columns of tokens and weights at a time, and rows that share a block of weights: four rows' absorbed
// queries (200 KB at 12 heads of 16 queries in fp32), a block of weights (200 KB) and one frame's
// tokens (50 KB). Measured per thread at the paper's sizes: 2 rows 78 GFLOP/s, 4 rows 82; blocks of
// 64 columns 82, of 128 79, of 256 78; weights where they lie, not packed by block, 67.
constexpr int64_t kBlock = 64, kTogether = 4;

// A weight [H*d, D] as blocks of kBlock columns, each dense: [H*d, width of the block].
template <typename A>
class Blocks {
 public:
  explicit Blocks(const Tensor& w) : rows_(w.size(0)), data_(w.numel()) {
    const Tensor dense = torch::stable::contiguous(w);
    with_type(w.scalar_type(), [&]<typename T>() {
      const auto kernel = TDC_VARIANT(convert<T, A>);
      const T* from = data<T>(dense);
      const int64_t depth = w.size(1);
      torch::stable::parallel_for(0, (depth + kBlock - 1) / kBlock, 1, [&](int64_t i, int64_t end) {
        for (; i < end; ++i) {
          const int64_t at = i * kBlock, width = std::min(kBlock, depth - at);
          kernel(from + at, depth, rows_, width, data_.data() + at * rows_);
        }
      });
    });
  }
  const A* at(int64_t column) const { return data_.data() + column * rows_; }

 private:
  int64_t rows_;
  Buffer<A> data_;
};

// Two weights, and the kinds of token they map: sources [first, last) of the call.
template <typename A>
struct Map {
  Blocks<A> key, value;
  size_t first, last;
};

// A few rows and what they are worked on with. Panels are [panels][rows of the panel][kColumns].
template <typename A>
class Task {
 public:
  explicit Task(const Call<A>& c)
      : c_(c),
        absorbed_(kTogether * c.panels * kBlock * kColumns),
        block_(c.tokens * kBlock) {}

  // Rows [begin, end), panels [first, last).
  void take(int64_t begin, int64_t end, int64_t first, int64_t last) {
    begin_ = begin;
    count_ = end - begin;
    first_ = first;
    last_ = last;
  }
  int64_t count() const { return count_; }

  // The map's part of scores [rows][panels][Nv + Na][kColumns] = X (W^T in), for `in` [rows]
  // [panels][d][kColumns].
  void score(const Map<A>& map, const Blocks<A>& w, const A* in, A* scores) {
    for (int64_t at = 0; at < depth(map); at += kBlock) {
      const int64_t width = std::min(kBlock, depth(map) - at);
      for (int64_t p = first_; p < last_; ++p) {  // a head's weights serve all rows
        for (int64_t r = 0; r < count_; ++r) {
          multiply_(w.at(at) + c_.head(p) * c_.dim * width, 1, width,
                    in + r * c_.values() + panel(p, c_.dim), width, c_.dim, absorbed(r, p), false);
        }
      }
      for_tokens(map, at, width, [&](int64_t r, int64_t length, int64_t place, bool) {
        for (int64_t p = first_; p < last_; ++p) {
          multiply_(block_.data(), width, 1, absorbed(r, p), length, width,
                    scores + r * c_.scores() + panel(p, c_.tokens) + place, at > 0);
        }
      });
    }
  }

  // out [rows][panels][d][kColumns] (+)= W (X^T scores), the map's part.
  void mix(const Map<A>& map, const Blocks<A>& w, const A* scores, A* out, bool add) {
    for (int64_t at = 0; at < depth(map); at += kBlock, add = true) {
      const int64_t width = std::min(kBlock, depth(map) - at);
      for_tokens(map, at, width, [&](int64_t r, int64_t length, int64_t place, bool more) {
        for (int64_t p = first_; p < last_; ++p) {
          multiply_(block_.data(), 1, width,
                    scores + r * c_.scores() + panel(p, c_.tokens) + place, width, length,
                    absorbed(r, p), more);
        }
      });
      for (int64_t p = first_; p < last_; ++p) {
        for (int64_t r = 0; r < count_; ++r) {
          multiply_(w.at(at) + c_.head(p) * c_.dim * width, width, 1, absorbed(r, p), c_.dim, width,
                    out + r * c_.values() + panel(p, c_.dim), add);
        }
      }
    }
  }

 private:
  static int64_t panel(int64_t p, int64_t rows) { return p * rows * kColumns; }
  int64_t depth(const Map<A>& map) const { return c_.sources[map.first].depth(); }
  A* absorbed(int64_t r, int64_t p) {
    return absorbed_.data() + (r * c_.panels + p) * kBlock * kColumns;
  }

  // For every row and kind of token of the map, with their columns [at, at + width) in block_:
  // body(row, tokens, place of the first one in a panel of scores, not the row's first kind).
  template <typename F>
  void for_tokens(const Map<A>& map, int64_t at, int64_t width, const F& body) {
    for (int64_t r = 0; r < count_; ++r) {
      const int64_t frame = c_.frame_of(begin_ + r);
      int64_t place = 0;
      for (size_t i = 0; i < map.last; ++i) {
        const int64_t length = c_.sources[i].length(frame);
        if (i >= map.first) {
          c_.sources[i].block(frame, at, width, block_.data());
          body(r, length, place * kColumns, i > map.first);
        }
        place += length;
      }
    }
  }

  const Call<A>& c_;
  Buffer<A> absorbed_, block_;
  int64_t begin_ = 0, count_ = 0, first_ = 0, last_ = 0;
  void (*const multiply_)(const A*, int64_t, int64_t, const A*, int64_t, int64_t, A*, bool) =
      TDC_VARIANT(multiply<A>);
};

// Into how many parts the heads of a task's rows go: one, unless some threads would have nothing to do
// while others work on a task that is a good part of the whole. A part reads all of the tokens.
inline int64_t parts_of(int64_t tasks, int64_t heads) {
  const int64_t threads = torch::stable::get_num_threads();
  return tasks % threads == 0 || tasks >= 8 * threads ? 1 : std::min(threads, heads);
}

template <typename A>
void absorb(const Call<A>& c, const std::vector<Map<A>>& maps, const A* query, const A* bias,
            A* out) {
  const A scale = A(1) / std::sqrt(static_cast<A>(c.dim));
  const int64_t size = c.queries * c.width, of_head = c.panels / c.heads;
  const int64_t tasks = (c.rows + kTogether - 1) / kTogether, parts = parts_of(tasks, c.heads);
  torch::stable::parallel_for(0, tasks * parts, 1, [&](int64_t i, int64_t end) {
    Task<A> task(c);
    const Buffer<A> queries(kTogether * c.values()), mixed(kTogether * c.values());
    const Buffer<A> scores(kTogether * c.scores());
    for (; i < end; ++i) {
      const int64_t begin = i / parts * kTogether, part = i % parts;
      const Heads heads{part * c.heads / parts, (part + 1) * c.heads / parts};
      task.take(begin, std::min(c.rows, begin + kTogether), heads.first * of_head,
                heads.last * of_head);
      for (int64_t r = 0; r < task.count(); ++r) {
        to_panels(c, heads, query + (begin + r) * size, scale, queries.data() + r * c.values());
      }
      for (const auto& map : maps) task.score(map, map.key, queries.data(), scores.data());
      bool sees[kTogether];
      for (int64_t r = 0; r < task.count(); ++r) {
        sees[r] = attend(c, heads, c.frame_of(begin + r), scores.data() + r * c.scores());
      }
      for (const auto& map : maps) {
        task.mix(map, map.value, scores.data(), mixed.data(), map.first > 0);
      }
      for (int64_t r = 0; r < task.count(); ++r) {
        from_panels(c, heads, sees[r] ? mixed.data() + r * c.values() : nullptr, bias,
                    out + (begin + r) * size);
      }
    }
  });
}

}  // namespace
}  // namespace tdc
