# SPDX-License-Identifier: Apache-2.0
"""Cross-attention with the weights absorbed into the queries: keys and values never exist.

With W_k,h and W_v,h one head's rows: ``q K^T = (q W_k,h) X^T`` and ``P V = (P X) W_v,h^T``. The key
bias adds one number to all of a query's scores, the value bias comes last. Forming keys and values
of N tokens takes 4 N D Hd operations, this takes 4 Q D (Hd + H N): at the paper's 16 queries, 12
heads of 64 and 156 tokens a third.
"""

from __future__ import annotations

import math

import torch

from tdc_kernels.ops.cross_attention.reference import hidden_tokens, known

# Rows at a time: the absorbed queries of one row are H*Q*D values, 2.8 MB in fp32 at the paper's
# width, and should still be in the cache when the frame's tokens come by. Measured at that width on
# 2 cores, 36 rows of 156 tokens: 4 rows 0.28 s, 8 rows 0.27 s, 16 rows 0.34 s, all 0.40 s (keys and
# values by projection: 0.55 s).
CHUNK = 8


def cross_attention(
    query: torch.Tensor,
    visual: torch.Tensor,
    audio: torch.Tensor | None,
    w_key: torch.Tensor,
    b_key: torch.Tensor | None,
    w_value: torch.Tensor,
    b_value: torch.Tensor | None,
    num_heads: int,
    index: torch.Tensor | None,
    visual_lengths: torch.Tensor | None,
    audio_lengths: torch.Tensor | None,
    mask: torch.Tensor | None,
    w_key_audio: torch.Tensor | None,
    w_value_audio: torch.Tensor | None,
) -> torch.Tensor:
    rows, queries, width = query.shape
    dim = width // num_heads
    if queries == 0:
        return query.clone()
    acc = torch.float64 if query.dtype == torch.float64 else torch.float32

    def by_head(weight: torch.Tensor) -> torch.Tensor:
        return weight.to(acc).unflatten(0, (num_heads, dim))  # [H, d, D]

    # A bias of the keys adds one number to all of a query's scores: the softmax does not see it.
    sources = [(visual, visual_lengths, by_head(w_key), by_head(w_value))]
    if audio is not None:
        key = w_key if w_key_audio is None else w_key_audio
        value = w_value if w_value_audio is None else w_value_audio
        sources.append((audio, audio_lengths, by_head(key), by_head(value)))
    hidden = hidden_tokens(visual, audio, visual_lengths, audio_lengths, mask)
    # While tracing with symbolic sizes a loop over rows would fix their number: one chunk then.
    step = CHUNK if isinstance(rows, int) else rows
    parts = []
    for start in range(0, rows, step) if isinstance(rows, int) else (0,):
        chunk = slice(start, start + step)
        frames = chunk if index is None else index[chunk]
        q = query[chunk].to(acc).unflatten(2, (num_heads, dim)) / math.sqrt(dim)  # [m, Q, H, d]
        q = q.permute(2, 0, 1, 3).flatten(1, 2)  # [H, m*Q, d]
        tokens, scores = [], []
        for x, lengths, keys, _ in sources:
            x = known(x[frames], None if lengths is None else lengths[frames]).to(acc)  # [m, N, D]
            tokens.append(x)
            absorbed = _by_row(torch.bmm(q, keys), queries)  # [m, H*Q, D]
            scores.append(torch.bmm(absorbed, x.transpose(1, 2)))  # [m, H*Q, N]
        score, seen = torch.cat(scores, dim=2), None
        if hidden is not None or score.shape[2] == 0:
            without = score.new_zeros(score[:, :1].shape, dtype=torch.bool)  # [m, 1, N]
            unseen = without if hidden is None else hidden[frames][:, None]
            seen = ~unseen.all(2, keepdim=True)  # [m, 1, 1]: has the row any token?
            score = score.masked_fill(unseen & seen, float("-inf"))
        probability = score.softmax(2)
        if seen is not None:
            probability = torch.where(seen, probability, 0)
        out: torch.Tensor | None = None
        split = probability.split([x.shape[1] for x in tokens], dim=2)
        for x, p, (_, _, _, values) in zip(tokens, split, sources, strict=True):
            mixed = torch.bmm(p, x)  # [m, H*Q, D]
            mixed = mixed.unflatten(1, (num_heads, queries)).transpose(0, 1).flatten(1, 2)
            part = torch.bmm(mixed, values.transpose(1, 2))  # [H, m*Q, d]
            out = part if out is None else out + part
        assert out is not None
        out = out.unflatten(1, (-1, queries)).permute(1, 2, 0, 3).flatten(2)  # [m, Q, H*d]
        if b_value is not None:
            out = out + (b_value if seen is None else torch.where(seen, b_value, 0))
        parts.append(out.to(query.dtype))
    result = torch.cat(parts) if parts else query.clone()
    if b_key is not None and b_key.requires_grad:  # a gradient of zero, not none
        result = result + torch.where(torch.zeros_like(b_key, dtype=torch.bool), b_key, 0)
    return result


def _by_row(x: torch.Tensor, queries: int) -> torch.Tensor:
    """``[H, m*Q, C] -> [m, H*Q, C]``."""
    return x.unflatten(1, (-1, queries)).transpose(0, 1).flatten(1, 2)
