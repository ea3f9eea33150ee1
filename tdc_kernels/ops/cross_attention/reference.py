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
) -> torch.Tensor:
    acc = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows, queries, width = query.shape
    dim = width // num_heads
    if index is not None and rows <= visual.shape[0]:
        # Fewer rows than frames: project the frames that are asked for, not the others. In a video
        # of 112 frames and 25 scenes the rest, static frames, would be a third of the work.
        visual = visual[index]
        audio, visual_lengths, audio_lengths = (
            None if x is None else x[index] for x in (audio, visual_lengths, audio_lengths)
        )
        index = None
    q = query.view(rows, queries, num_heads, dim).transpose(1, 2).to(acc) / math.sqrt(dim)

    def heads(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        x = F.linear(tokens, weight, bias)  # [F, N, H*d]: once per frame, however many rows
        x = x if index is None else x[index]  # [M, N, H*d]
        return x.unflatten(2, (num_heads, dim)).transpose(1, 2).to(acc)  # [M, H, N, d]

    scores, values, ignored = [], [], []
    for tokens, lengths in ((visual, visual_lengths), (audio, audio_lengths)):
        if tokens is None:
            continue
        beyond = _beyond(tokens, lengths)  # [F, N]
        if lengths is not None:  # a NaN there must reach neither the sum nor a weight's gradient
            tokens = tokens.masked_fill(beyond[..., None], 0)
        scores.append(q @ heads(tokens, w_key, b_key).transpose(2, 3))  # [M, H, Q, N]
        values.append(heads(tokens, w_value, b_value))
        ignored.append(beyond if index is None else beyond[index])

    score = torch.cat(scores, dim=3)  # [M, H, Q, Nv+Na]
    if visual_lengths is not None or audio_lengths is not None:
        mask = torch.cat(ignored, dim=1)[:, None, None]  # [M, 1, 1, Nv+Na]
        probability = score.masked_fill(mask, float("-inf")).softmax(3)
        probability = probability.masked_fill(mask, 0)  # a row without any token: NaN -> 0
    else:
        probability = score.softmax(3)
    parts = probability.split([v.shape[2] for v in values], dim=3)
    out = sum(p @ v for p, v in zip(parts, values, strict=True))  # [M, H, Q, d]
    return out.transpose(1, 2).reshape(rows, queries, width).to(query.dtype)


def _beyond(tokens: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """True at the tokens to ignore: ``[F, N]``."""
    if lengths is None:
        return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
