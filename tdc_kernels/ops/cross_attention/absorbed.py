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

# Rows at a time: the absorbed queries of one row are H*Q*D values, 2.8 MB in fp32 at the paper's
# width, and should still be in the cache when the frame's tokens come by. Measured at that width on
# 2 cores, 36 rows of 156 tokens: 4 rows 0.28 s, 8 rows 0.27 s, 16 rows 0.34 s, all 0.40 s (keys and
# values by projection: 0.55 s).
CHUNK = 8
# Worth it below this part of the projection's operations: many small products run at a lower rate
# than one large one (at 50 tokens, a ratio of 0.55, the two are even).
WORTH = 0.5


def requires(device: str) -> str | None:
    return None if device == "cpu" else f"measured on the CPU only, not on {device!r}"


def pays(query, visual, audio, w_key, b_key, w_value, b_value, num_heads, *rows_of_frames):
    """None where this is the faster way, else why not."""
    if query.dtype not in (torch.float32, torch.float64):
        # Half precision is computed in fp32 here, and CPUs have matrix units for it.
        return f"pays in fp32 and fp64 only, not in {query.dtype}"
    rows, queries, width = query.shape
    tokens = visual.shape[1] + (0 if audio is None else audio.shape[1])
    projected = min(rows, visual.shape[0]) * tokens * width
    absorbed = rows * queries * (width + num_heads * tokens)
    if absorbed > WORTH * projected:
        return "does not pay at these sizes: projecting keys and values takes too few operations"
    return None


def cross_attention(
    query: torch.Tensor,
    visual: torch.Tensor,
    audio: torch.Tensor | None,
    w_key: torch.Tensor,
    b_key: torch.Tensor | None,
    w_value: torch.Tensor,
    b_value: torch.Tensor | None,
    num_heads: int,
    index: torch.Tensor | None = None,
    visual_lengths: torch.Tensor | None = None,
    audio_lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    rows, queries, width = query.shape
    dim, depth = width // num_heads, visual.shape[2]
    acc = torch.float64 if query.dtype == torch.float64 else torch.float32
    key_heads = w_key.to(acc).reshape(num_heads, dim, depth)
    value_heads = w_value.to(acc).reshape(num_heads, dim, depth)
    key_bias = w_key.new_zeros(width) if b_key is None else b_key
    key_bias = key_bias.to(acc).reshape(num_heads, dim, 1)
    # While tracing with symbolic sizes a loop over rows would fix their number: one chunk then.
    step = CHUNK if isinstance(rows, int) else rows
    parts = []
    for start in range(0, rows, step) if isinstance(rows, int) else (0,):
        chunk = slice(start, start + step)
        frames = chunk if index is None else index[chunk]
        q = query[chunk].to(acc).unflatten(2, (num_heads, dim)) / math.sqrt(dim)  # [m, Q, H, d]
        q = q.permute(2, 0, 1, 3).flatten(1, 2)  # [H, m*Q, d]
        shift = _by_row(torch.bmm(q, key_bias), queries)  # [m, H*Q, 1]
        q = _by_row(torch.bmm(q, key_heads), queries)  # [m, H*Q, D]
        tokens, scores, ignored = [], [], []
        for x, lengths in ((visual, visual_lengths), (audio, audio_lengths)):
            if x is None:
                continue
            x = x[frames].to(acc)  # [m, N, D]
            beyond = torch.arange(x.shape[1], device=x.device) >= (
                x.shape[1] if lengths is None else lengths[frames][:, None]
            )  # [N] or [m, N]: the tokens to ignore
            if lengths is not None:  # a NaN there must reach neither the sum nor a gradient
                x = x.masked_fill(beyond[..., None], 0)
            tokens.append(x)
            scores.append(torch.bmm(q, x.transpose(1, 2)))  # [m, H*Q, N]
            ignored.append(beyond.expand(x.shape[:2]))
        score, seen = torch.cat(scores, dim=2) + shift, None
        if visual_lengths is not None or audio_lengths is not None or score.shape[2] == 0:
            mask = torch.cat(ignored, dim=1)[:, None]  # [m, 1, N]
            seen = ~mask.all(2, keepdim=True)  # [m, 1, 1]: has the row any token?
            score = score.masked_fill(mask & seen, float("-inf"))
        probability = score.softmax(2)
        if seen is not None:
            probability = torch.where(seen, probability, 0)
        split = probability.split([x.shape[1] for x in tokens], dim=2)
        mixed = torch.bmm(split[0], tokens[0])  # [m, H*Q, D]
        if audio is not None:
            mixed = torch.baddbmm(mixed, split[1], tokens[1])
        mixed = mixed.unflatten(1, (num_heads, queries)).transpose(0, 1).flatten(1, 2)
        out = torch.bmm(mixed, value_heads.transpose(1, 2))  # [H, m*Q, d]
        out = out.unflatten(1, (-1, queries)).permute(1, 2, 0, 3).flatten(2)  # [m, Q, H*d]
        if b_value is not None:
            out = out + (b_value if seen is None else torch.where(seen, b_value, 0))
        parts.append(out.to(query.dtype))
    return torch.cat(parts) if parts else query.new_zeros(query.shape)


def _by_row(x: torch.Tensor, queries: int) -> torch.Tensor:
    """``[H, m*Q, C] -> [m, H*Q, C]``."""
    return x.unflatten(1, (-1, queries)).transpose(0, 1).flatten(1, 2)
