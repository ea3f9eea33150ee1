# SPDX-License-Identifier: Apache-2.0
"""Adaptive average pooling of the anchors' tokens, in plain PyTorch.

Not by ``adaptive_avg_pool1d``: it compiles anew for every length, its backward on CUDA adds with
atomics, and fp16 is accumulated as the device likes. Not by a pooling matrix: one NaN token would
reach all bins.
"""

from __future__ import annotations

import torch


def accumulate(
    tokens: torch.Tensor, num_queries: int, index: torch.Tensor | None = None
) -> torch.Tensor:
    """``[A, K, D]`` in the dtype of accumulation: fp64 for fp64 tokens, else fp32."""
    length = tokens.shape[1]
    query = torch.arange(num_queries, device=tokens.device)
    start = query * length // num_queries  # [K]: floor(jL/K)
    stop = ((query + 1) * length + num_queries - 1) // num_queries  # [K]: ceil((j+1)L/K)
    # No bin is wider than ceil(L/K) + 1; shorter ones are filled up with zeros.
    width = (length + num_queries - 1) // num_queries + 1
    token = start[:, None] + torch.arange(width, device=tokens.device)  # [K, W]
    outside = token >= stop[:, None]
    token = token.clamp_max(length - 1)
    picked = tokens[:, token] if index is None else tokens[index[:, None, None], token]
    acc = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    # In place: `picked` is ours, and a second copy would cost as much as the pooling.
    total = picked.to(acc).masked_fill_(outside[..., None], 0).sum(2)  # [A, K, W, D] -> [A, K, D]
    return total / (stop - start)[:, None]


def anchor_queries(
    tokens: torch.Tensor,
    num_queries: int,
    index: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return accumulate(tokens, num_queries, index).to(dtype or tokens.dtype)
