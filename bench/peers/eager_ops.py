# SPDX-License-Identifier: Apache-2.0
"""The ops in plain vectorised PyTorch, the way that was fastest among the natural ones.

Where a compiler does better with another wording (a product and a sum become one loop, a matrix
product stays a library call), that one stands beside it with ``_fusible`` in its name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8


def frame_similarity(features: Tensor, cu_frames: Tensor | None) -> Tensor:
    x = features.flatten(1)  # [F, T*C]
    # A third of the time of (x[:-1] * x[1:]).sum(1) on the CPU, and no product of x's size.
    return _similarity(torch.einsum("fc,fc->f", x[:-1], x[1:]), x, cu_frames)


def frame_similarity_fusible(features: Tensor, cu_frames: Tensor | None) -> Tensor:
    x = features.flatten(1).float()
    return _similarity((x[:-1] * x[1:]).sum(1), x, cu_frames)


def _similarity(dot: Tensor, x: Tensor, cu_frames: Tensor | None) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=1).float().clamp_min(EPS)  # [F]
    similarity = dot.float() / (norm[:-1] * norm[1:])
    if cu_frames is None:
        return similarity
    return similarity.index_fill(0, cu_frames[1:-1].long() - 1, float("inf"))


def scene_boundaries(
    similarity: Tensor, num_boundaries: int, cu_frames: Tensor | None, longest: int
) -> Tensor:
    """``longest``: frames of the longest video, known on the host as the widths of tensors are."""
    if cu_frames is None:
        lowest = torch.topk(similarity, num_boundaries, largest=False, sorted=False).indices
        return (lowest.sort().values + 1)[None].int()
    start, lengths = cu_frames[:-1, None], cu_frames.diff()[:, None]
    pair = torch.arange(longest - 1, device=similarity.device)  # [P]
    value = similarity[(start + pair).clamp_max(similarity.shape[0] - 1)]  # [B, P]
    value = value.masked_fill(pair >= lengths - 1, float("inf"))
    lowest = torch.topk(value, num_boundaries, dim=1, largest=False, sorted=False).indices
    return torch.minimum(lowest.int() + 1, lengths).sort(dim=1).values


def segment_scenes(
    features: Tensor, num_boundaries: int, cu_frames: Tensor | None, longest: int
) -> tuple[Tensor, Tensor]:
    similarity = frame_similarity(features, cu_frames)
    return scene_boundaries(similarity, num_boundaries, cu_frames, longest), similarity


def segment_scenes_fusible(
    features: Tensor, num_boundaries: int, cu_frames: Tensor | None, longest: int
) -> tuple[Tensor, Tensor]:
    similarity = frame_similarity_fusible(features, cu_frames)
    return scene_boundaries(similarity, num_boundaries, cu_frames, longest), similarity


def anchor_queries(
    tokens: Tensor, num_queries: int, weight: Tensor, bias: Tensor, index: Tensor
) -> Tensor:
    """Once per anchor, not once per frame."""
    anchors = tokens[index].transpose(1, 2)  # [A, D, L]
    pooled = F.adaptive_avg_pool1d(anchors, num_queries).transpose(1, 2)
    return F.linear(pooled, weight, bias)


def pack_context(static: Tensor, compressed: Tensor, separator: Tensor, source: Tensor) -> Tensor:
    unit = F.normalize(compressed, dim=-1).flatten(0, 1)  # [M*K, D]
    return torch.cat([static, unit, separator[None]]).index_select(0, source)
