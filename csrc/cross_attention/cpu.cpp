// SPDX-License-Identifier: Apache-2.0
// cross_attention on the CPU. Contract: tdc_kernels/ops/cross_attention/__init__.py.
//
// absorb:  with q~_h = q_h W_k,h the scores are q~ X^T and the output is (P X) W_v,h^T. A task is two
//          rows; it walks over the tokens' width in blocks, so that q~ and P X exist a block at a
//          time, in the cache, and a block of weights serves both rows.
// project: keys and values of a few frames by PyTorch's matrix product, attention over them here.
//
// Both compute in fp32 (fp64 for fp64). Tokens of another type are converted a block at a time.
#include <cstdint>
#include <limits>

namespace tdc {
inline constexpr int64_t kColumns = 16;
}
#define TDC_KERNEL "cross_attention/kernel.h"
#include "common/each_isa.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/buffer.h"
#include "common/checks.h"

namespace tdc {
namespace {

// Columns of tokens and weights at a time, and rows that share a block of weights: four rows' absorbed
// queries (200 KB at 12 heads of 16 queries in fp32), a block of weights (200 KB) and one frame's
// tokens (50 KB). Measured per thread at the paper's sizes: 2 rows 78 GFLOP/s, 4 rows 82; blocks of
// 64 columns 82, of 128 79, of 256 78; weights where they lie, not packed by block, 67.
constexpr int64_t kBlock = 64, kTogether = 4;
// Frames whose keys and values exist at a time: 10 MB in fp32 at the paper's sizes.
constexpr int64_t kFrames = 8;

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
std::vector<int64_t> numbers(const std::optional<Tensor>& x, const char* name, int64_t most,
                             int64_t count, int64_t otherwise) {
  if (!x) return std::vector<int64_t>(static_cast<size_t>(count), otherwise);
  const Tensor dense = torch::stable::contiguous(*x);
  STD_TORCH_CHECK(dense.numel() == count, name, ": expected ", count, " numbers");
  if (dense.scalar_type() == ScalarType::Int) return numbers<int32_t>(dense, name, most);
  return numbers<int64_t>(dense, name, most);
}

Tensor in_type(const Tensor& x, ScalarType type) {
  return torch::stable::contiguous(x.scalar_type() == type ? x : torch::stable::to(x, type));
}

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

  void rows(int64_t begin, int64_t end) {
    begin_ = begin;
    count_ = end - begin;
  }
  int64_t count() const { return count_; }

  // The map's part of scores [rows][panels][Nv + Na][kColumns] = X (W^T in), for `in` [rows]
  // [panels][d][kColumns].
  void score(const Map<A>& map, const Blocks<A>& w, const A* in, A* scores) {
    for (int64_t at = 0; at < depth(map); at += kBlock) {
      const int64_t width = std::min(kBlock, depth(map) - at);
      for (int64_t p = 0; p < c_.panels; ++p) {  // a head's weights serve all rows
        for (int64_t r = 0; r < count_; ++r) {
          multiply_(w.at(at) + head(p) * c_.dim * width, 1, width,
                    in + r * c_.values() + panel(p, c_.dim), width, c_.dim, absorbed(r, p), false);
        }
      }
      for_tokens(map, at, width, [&](int64_t r, int64_t length, int64_t place, bool) {
        for (int64_t p = 0; p < c_.panels; ++p) {
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
        for (int64_t p = 0; p < c_.panels; ++p) {
          multiply_(block_.data(), 1, width,
                    scores + r * c_.scores() + panel(p, c_.tokens) + place, width, length,
                    absorbed(r, p), more);
        }
      });
      for (int64_t p = 0; p < c_.panels; ++p) {
        for (int64_t r = 0; r < count_; ++r) {
          multiply_(w.at(at) + head(p) * c_.dim * width, width, 1, absorbed(r, p), c_.dim, width,
                    out + r * c_.values() + panel(p, c_.dim), add);
        }
      }
    }
  }

 private:
  static int64_t panel(int64_t p, int64_t rows) { return p * rows * kColumns; }
  int64_t depth(const Map<A>& map) const { return c_.sources[map.first].depth(); }
  int64_t head(int64_t p) const { return p * c_.heads / c_.panels; }
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
  int64_t begin_ = 0, count_ = 0;
  void (*const multiply_)(const A*, int64_t, int64_t, const A*, int64_t, int64_t, A*, bool) =
      TDC_VARIANT(multiply<A>);
};

// A row's queries [Q, H*d], scaled, as panels [panels][d][kColumns].
template <typename A>
void to_panels(const Call<A>& c, const A* row, A scale, A* out) {
  const int64_t of_head = c.panels / c.heads;
  for (int64_t p = 0; p < c.panels; ++p) {
    const int64_t first = p % of_head * kColumns;
    for (int64_t j = 0; j < c.dim; ++j, out += kColumns) {
      for (int64_t i = 0; i < kColumns; ++i) {
        const bool there = first + i < c.queries;
        out[i] = there ? row[(first + i) * c.width + p / of_head * c.dim + j] * scale : A(0);
      }
    }
  }
}

// The other way round; `bias` [H*d] or null is added.
template <typename A>
void from_panels(const Call<A>& c, const A* panels, A scale, const A* bias, A* row) {
  const int64_t of_head = c.panels / c.heads;
  for (int64_t h = 0; h < c.heads; ++h) {
    for (int64_t q = 0; q < c.queries; ++q) {
      const A* at = panels + (h * of_head + q / kColumns) * c.dim * kColumns + q % kColumns;
      A* to = row + q * c.width + h * c.dim;
      for (int64_t j = 0; j < c.dim; ++j) {
        to[j] = at[j * kColumns] * scale + (bias != nullptr ? bias[h * c.dim + j] : A(0));
      }
    }
  }
}

// Softmax of a row's scores in place. False if it has no token to look at.
template <typename A>
bool attend(const Call<A>& c, int64_t frame, A* scores) {
  const auto softmax = TDC_VARIANT(softmax<A>);
  const auto hidden = c.hidden(frame);
  const int64_t count = c.count(frame);
  if (count == 0 || (!hidden.empty() && std::find(hidden.begin(), hidden.end(), 0) == hidden.end())) {
    return false;
  }
  for (int64_t p = 0; p < c.panels; ++p) {
    softmax(scores + p * c.tokens * kColumns, count, hidden.empty() ? nullptr : hidden.data());
  }
  return true;
}

template <typename A>
void absorb(const Call<A>& c, const std::vector<Map<A>>& maps, const A* query, const A* bias, A* out) {
  const A scale = A(1) / std::sqrt(static_cast<A>(c.dim));
  const int64_t size = c.queries * c.width, tasks = (c.rows + kTogether - 1) / kTogether;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
    Task<A> task(c);
    const Buffer<A> queries(kTogether * c.values()), mixed(kTogether * c.values());
    const Buffer<A> scores(kTogether * c.scores());
    for (; first < last; ++first) {
      const int64_t begin = first * kTogether;
      task.rows(begin, std::min(c.rows, begin + kTogether));
      for (int64_t r = 0; r < task.count(); ++r) {
        to_panels(c, query + (begin + r) * size, scale, queries.data() + r * c.values());
      }
      for (const auto& map : maps) task.score(map, map.key, queries.data(), scores.data());
      bool sees[kTogether];
      for (int64_t r = 0; r < task.count(); ++r) {
        sees[r] = attend(c, c.frame_of(begin + r), scores.data() + r * c.scores());
      }
      for (const auto& map : maps) {
        task.mix(map, map.value, scores.data(), mixed.data(), map.first > 0);
      }
      for (int64_t r = 0; r < task.count(); ++r) {
        A* to = out + (begin + r) * size;
        if (sees[r]) from_panels(c, mixed.data() + r * c.values(), A(1), bias, to);
        else std::fill(to, to + size, A(0));
      }
    }
  });
}

// One call's arguments in the order of the schema; the key bias is not among them.
struct Arguments {
  Tensor query, visual;
  std::optional<Tensor> audio;
  Tensor w_key, w_value;
  std::optional<Tensor> b_value;
  int64_t heads;
  std::optional<Tensor> index, visual_lengths, audio_lengths, mask, w_key_audio, w_value_audio;
};

template <typename A>
Call<A> prepare(const Arguments& a) {
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

template <typename A>
Tensor run(const Arguments& a) {
  constexpr ScalarType type = scalar_type_of<A>;
  const Call<A> c = prepare<A>(a);
  std::vector<Map<A>> maps;
  maps.push_back({Blocks<A>(a.w_key), Blocks<A>(a.w_value), 0, a.w_key_audio ? 1 : c.sources.size()});
  if (a.w_key_audio) maps.push_back({Blocks<A>(*a.w_key_audio), Blocks<A>(*a.w_value_audio), 1, 2});
  const Tensor query = in_type(a.query, type);
  std::optional<Tensor> bias;
  if (a.b_value) bias = in_type(*a.b_value, type);
  Tensor out = torch::stable::new_empty(query, {c.rows, c.queries, c.width});
  absorb(c, maps, data<A>(query), bias ? data<A>(*bias) : nullptr, mutable_data<A>(out));
  return a.query.scalar_type() == type ? out : torch::stable::to(out, a.query.scalar_type());
}

Tensor cross_attention(Tensor query, Tensor visual, std::optional<Tensor> audio, Tensor w_key,
                       std::optional<Tensor>, Tensor w_value, std::optional<Tensor> b_value,
                       int64_t heads, std::optional<Tensor> index,
                       std::optional<Tensor> visual_lengths, std::optional<Tensor> audio_lengths,
                       std::optional<Tensor> mask, std::optional<Tensor> w_key_audio,
                       std::optional<Tensor> w_value_audio, bool) {
  const Arguments a{query, visual, audio, w_key, w_value, b_value, heads, index, visual_lengths,
                    audio_lengths, mask, w_key_audio, w_value_audio};
  return query.scalar_type() == ScalarType::Double ? run<double>(a) : run<float>(a);
}

}  // namespace
}  // namespace tdc

// The schemas are declared once, in Python, for all backends.
STABLE_TORCH_LIBRARY_IMPL(tdc_native, CPU, m) {
  m.impl("cross_attention", TORCH_BOX(&tdc::cross_attention));
}
