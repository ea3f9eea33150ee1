# SPDX-License-Identifier: Apache-2.0
"""Cross-attention with keys and values by matrix product, and torch's own attention over them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tdc_kernels import registry
from tdc_kernels.ops.cross_attention.reference import frames_asked_for, hidden_tokens, known


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
    visual, audio, visual_lengths, audio_lengths, mask, index = frames_asked_for(
        query.shape[0], visual, audio, visual_lengths, audio_lengths, mask, index
    )
    sources = [(known(visual, visual_lengths), w_key, w_value)]
    if audio is not None:
        key = w_key if w_key_audio is None else w_key_audio
        value = w_value if w_value_audio is None else w_value_audio
        sources.append((known(audio, audio_lengths), key, value))

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (num_heads, -1)).transpose(1, 2)

    def projection(which: int, bias: torch.Tensor | None) -> torch.Tensor:
        """``[M, H, N, d]``: keys or values are a fifth as wide as tokens, and concatenated."""
        parts = [F.linear(source[0].to(query.dtype), source[which], bias) for source in sources]
        x = torch.cat(parts, dim=1)
        return heads(x if index is None else x[index])

    hidden = hidden_tokens(visual, audio, visual_lengths, audio_lengths, mask)
    keys, values = projection(1, b_key), projection(2, b_value)
    if hidden is None and keys.shape[2] > 0:
        out = attention(heads(query), keys, values)
        return out.transpose(1, 2).flatten(2)
    if hidden is None:
        return query.masked_fill(torch.ones_like(query, dtype=torch.bool), 0)
    hidden = hidden if index is None else hidden[index]  # [M, N]
    nothing = hidden.all(1)[:, None, None, None]
    seen = ~hidden[:, None, None] | nothing  # a row without any token: all, then none
    out = attention(heads(query), keys, values, seen)
    return torch.where(nothing, 0, out).transpose(1, 2).flatten(2)


def attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """PyTorch's; its pieces where derivatives are wanted that its kernels do not have."""
    if not registry.transformed((query, keys, values)):
        return F.scaled_dot_product_attention(query, keys, values, seen)
    score = query @ keys.transpose(2, 3) / math.sqrt(query.shape[3])
    if seen is not None:
        score = score.masked_fill(~seen, float("-inf"))
    return score.softmax(3) @ values
