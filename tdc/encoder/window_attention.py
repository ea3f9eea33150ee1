# SPDX-License-Identifier: Apache-2.0
"""Attention of one query per window over the window's few tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def window_attention(
    query: Tensor, keys: Tensor, values: Tensor, num_heads: int, mask: Tensor | None
) -> Tensor:
    """Multi-head attention of one query per window over that window's few tokens.

    Args:
        query: ``[F, P, V]``. keys, values: ``[F, P, K, V]``. mask: bool ``[1 or F, P, K]`` or None.

    Returns:
        ``[F, P, V]``.
    """
    frames, positions, num_keys, width = keys.shape
    head_dim = width // num_heads
    batch = frames * positions  # every window is an item of its own
    query = query.reshape(batch, 1, num_heads, head_dim).transpose(1, 2)
    keys = keys.reshape(batch, num_keys, num_heads, head_dim).transpose(1, 2)
    values = values.reshape(batch, num_keys, num_heads, head_dim).transpose(1, 2)
    if mask is not None:
        mask = mask.expand(frames, -1, -1).reshape(batch, 1, 1, num_keys)
    attended = F.scaled_dot_product_attention(query, keys, values, mask)  # [batch, H, 1, d]
    return attended.transpose(1, 2).reshape(frames, positions, width)


ABSORBED_IN_TRAINING = 256  # widths up to which its gradients are cheaper as well


def absorbing_pays(query: Tensor) -> bool:
    """Whether :func:`absorbed_attention` is faster. One layer's attention in fp32 takes 0.70 of the
    time at the paper's widths, 1.28 with gradients; 0.67 and 0.65 at 64. On GPUs: not measured."""
    if query.device.type != "cpu" or query.dtype not in (torch.float32, torch.float64):
        return False
    return not torch.is_grad_enabled() or query.shape[-1] <= ABSORBED_IN_TRAINING


def absorbed_attention(
    query: Tensor,
    towers: Iterable[Any],
    windows: Sequence[Tensor],
    num_heads: int,
    mask: Tensor | None,
) -> Tensor:
    """:func:`window_attention` without keys and values: ``q (W_k x) = (W_k^T q) x``, and ``W_v``
    after the sum over tokens. Arguments as for a layer; ``[F, P, V]``."""
    frames, batch, head_dim = len(query), query.shape[:2].numel(), query.shape[2] // num_heads
    queries = query.reshape(batch, num_heads, head_dim).transpose(0, 1)  # [H, F*P, d]
    scores, tokens = [], []
    for tower, window in zip(towers, windows, strict=True):
        for_key, for_value = (x.flatten(0, 1) for x in tower.normed(window))  # [F*P, k*k, V]
        absorbed = queries @ tower.key.weight.unflatten(0, (num_heads, head_dim))  # [H, F*P, V]
        scores.append(for_key @ absorbed.permute(1, 2, 0))  # [F*P, k*k, H]
        tokens.append(for_value)
    score = torch.cat(scores, dim=1) * head_dim**-0.5
    if mask is not None:
        seen = mask.expand(frames, -1, -1).flatten(0, 1)[..., None]
        score = score.masked_fill(~seen, float("-inf"))
    shares = score.softmax(1).transpose(1, 2).split([x.shape[1] for x in tokens], dim=2)
    attended = query.new_zeros(num_heads, batch, head_dim)
    for tower, value, share in zip(towers, tokens, shares, strict=True):
        weight = tower.value.weight.unflatten(0, (num_heads, head_dim))  # [H, d, V]
        attended = attended + (share @ value).transpose(0, 1) @ weight.transpose(1, 2)
    return attended.transpose(0, 1).reshape(query.shape)
