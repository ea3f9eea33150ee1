// SPDX-License-Identifier: Apache-2.0
// What both builds of cross_attention ask of their arguments.
#pragma once

#include <optional>
#include <utility>

#include "common/checks.h"

namespace tdc {

// One call's arguments in the order of the schema; the key bias is not among them.
struct Arguments {
  Tensor query, visual;
  std::optional<Tensor> audio;
  Tensor w_key, w_value;
  std::optional<Tensor> b_value;
  int64_t heads;
  std::optional<Tensor> index, visual_lengths, audio_lengths, mask, w_key_audio, w_value_audio;
};

inline void check_weights(const Arguments& a, const Tensor& x, const Tensor& w_key,
                          const Tensor& w_value) {
  for (const Tensor* w : {&w_key, &w_value}) {
    STD_TORCH_CHECK(w->dim() == 2 && w->size(0) == a.query.size(2) && w->size(1) == x.size(2),
                    "weights: expected [H*d, D] of query's and the tokens' widths");
  }
  STD_TORCH_CHECK(!a.b_value || (a.b_value->dim() == 1 && a.b_value->size(0) == a.query.size(2)),
                  "b_value: expected query's width");
}

inline void check_numbers(const std::optional<Tensor>& x, const char* name, int64_t count) {
  if (!x) return;
  STD_TORCH_CHECK(x->scalar_type() == ScalarType::Int || x->scalar_type() == ScalarType::Long, name,
                  ": unexpected dtype");
  STD_TORCH_CHECK(x->dim() == 1 && x->size(0) == count, name, ": expected ", count, " numbers");
}

// Kinds, shapes and devices; what lies in the tensors is the kernels' business.
inline void check(const Arguments& a) {
  STD_TORCH_CHECK(a.query.dim() == 3 && a.visual.dim() == 3, "query, visual: expected 3 dimensions");
  STD_TORCH_CHECK(a.heads >= 1 && a.query.size(2) % a.heads == 0,
                  "num_heads: expected a divisor of query's width");
  const int64_t rows = a.query.size(0), frames = a.visual.size(0);
  int64_t tokens = a.visual.size(1);
  check_weights(a, a.visual, a.w_key, a.w_value);
  STD_TORCH_CHECK(a.w_key_audio.has_value() == a.w_value_audio.has_value() &&
                      (a.audio || (!a.w_key_audio && !a.audio_lengths)),
                  "audio: expected with its weights and lengths, or none of them");
  if (a.audio) {
    STD_TORCH_CHECK(a.audio->dim() == 3 && a.audio->size(0) == frames,
                    "audio: expected [F, Na, D] with visual's F");
    check_weights(a, *a.audio, a.w_key_audio.value_or(a.w_key), a.w_value_audio.value_or(a.w_value));
    tokens += a.audio->size(1);
  }
  check_numbers(a.index, "index", rows);
  check_numbers(a.visual_lengths, "visual_lengths", frames);
  check_numbers(a.audio_lengths, "audio_lengths", frames);
  STD_TORCH_CHECK(a.index || rows == frames, "index: expected one, M is not F");
  STD_TORCH_CHECK(rows == 0 || frames > 0, "index: expected none, as there is no frame");
  STD_TORCH_CHECK(!a.mask || (a.mask->scalar_type() == ScalarType::Bool && a.mask->dim() == 2 &&
                              a.mask->size(0) == frames && a.mask->size(1) == tokens),
                  "mask: expected bool [F, Nv + Na]");
  for (const Tensor* x : {&a.visual, &a.w_key, &a.w_value}) {
    check_device(*x, a.query, "visual, weights");
  }
  for (const auto* x : {&a.audio, &a.b_value, &a.index, &a.visual_lengths, &a.audio_lengths, &a.mask,
                        &a.w_key_audio, &a.w_value_audio}) {
    if (*x) check_device(**x, a.query, "an argument");
  }
}

// Of all but the tokens, which are converted as they are read.
inline void check_one_dtype(const Arguments& a) {
  const ScalarType type = a.query.scalar_type();
  STD_TORCH_CHECK(a.w_key.scalar_type() == type && a.w_value.scalar_type() == type &&
                      (!a.b_value || a.b_value->scalar_type() == type) &&
                      (!a.w_key_audio || a.w_key_audio->scalar_type() == type) &&
                      (!a.w_value_audio || a.w_value_audio->scalar_type() == type),
                  "weights: expected the dtype of query");
}

}  // namespace tdc
