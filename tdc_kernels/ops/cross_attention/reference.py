# SPDX-License-Identifier: Apache-2.0
"""Cross-attention of query groups over their frame's visual and audio tokens, in plain PyTorch.

Only scores are concatenated, never tokens. Keys and values are projected once per frame,
where several rows share one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


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
    mask: torch.Tensor | None = None,
    w_key_audio: torch.Tensor | None = None,
    w_value_audio: torch.Tensor | None = None,
    absorb: bool = False,  # another way to the same result, not taken here
) -> torch.Tensor:
    acc = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows, queries, width = query.shape
    dim = width // num_heads
    visual, audio, visual_lengths, audio_lengths, mask, index = frames_asked_for(
        rows, visual, audio, visual_lengths, audio_lengths, mask, index
    )
    q = query.view(rows, queries, num_heads, dim).transpose(1, 2).to(acc) / math.sqrt(dim)

    def heads(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        x = F.linear(tokens, weight, bias)  # [F, N, H*d]: once per frame, however many rows
        x = x if index is None else x[index]  # [M, N, H*d]
        return x.unflatten(2, (num_heads, dim)).transpose(1, 2).to(acc)  # [M, H, N, d]

    scores, values = [], []
    for tokens, lengths, key, value in (
        (visual, visual_lengths, w_key, w_value),
        (audio, audio_lengths, w_key_audio, w_value_audio),
    ):
        if tokens is None:
            continue
        key, value = w_key if key is None else key, w_value if value is None else value
        tokens = known(tokens, lengths).to(query.dtype)
        scores.append(q @ heads(tokens, key, b_key).transpose(2, 3))  # [M, H, Q, N]
        values.append(heads(tokens, value, b_value))

    score = torch.cat(scores, dim=3)  # [M, H, Q, Nv+Na]
    hidden = hidden_tokens(visual, audio, visual_lengths, audio_lengths, mask)
    if hidden is not None:
        hidden = (hidden if index is None else hidden[index])[:, None, None]  # [M, 1, 1, Nv+Na]
        probability = score.masked_fill(hidden, float("-inf")).softmax(3)
        probability = probability.masked_fill(hidden, 0)  # a row without any token: NaN -> 0
    else:
        probability = score.softmax(3)
    parts = probability.split([v.shape[2] for v in values], dim=3)
    out = sum(p @ v for p, v in zip(parts, values, strict=True))  # [M, H, Q, d]
    return out.transpose(1, 2).reshape(rows, queries, width).to(query.dtype)


def frames_asked_for(rows, visual, audio, visual_lengths, audio_lengths, mask, index):
    """Where there are fewer rows than frames: the frames that are asked for, and no index.

    In a video of 112 frames and 25 scenes the others, static frames, would be a third of the work.
    """
    of_frames = (visual, audio, visual_lengths, audio_lengths, mask)
    if index is None or rows > visual.shape[0]:
        return *of_frames, index
    return *(None if x is None else x[index] for x in of_frames), None


def known(tokens: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Zeros beyond the lengths: a NaN there must reach neither the sum nor a weight's gradient."""
    if lengths is None:
        return tokens
    return tokens.masked_fill(beyond(tokens, lengths)[..., None], 0)


def hidden_tokens(visual, audio, visual_lengths, audio_lengths, mask) -> torch.Tensor | None:
    """bool ``[F, Nv+Na]``, True at the tokens to ignore; None where all count."""
    if visual_lengths is None and audio_lengths is None:
        return None if mask is None else ~mask
    parts = [beyond(visual, visual_lengths)]
    if audio is not None:
        parts.append(beyond(audio, audio_lengths))
    hidden = torch.cat(parts, dim=1)
    return hidden if mask is None else hidden | ~mask


def beyond(tokens: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """bool ``[F, N]``, True behind a frame's last token."""
    if lengths is None:
        return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
