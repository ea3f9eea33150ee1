# SPDX-License-Identifier: Apache-2.0
"""The ops as the authors' released code computes them, re-stated in our own words.

Per video, per window, per frame in Python loops, on host integers; only what an op needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITY_WINDOW = 64  # pairs of frames per similarity call, fixed in the released code


def frame_similarity(features: Tensor, cu_frames: Sequence[int]) -> Tensor:
    """Cosines of neighbours, one call per video; ``+inf`` between videos, for comparison only."""
    parts = []
    for start, stop in pairwise(cu_frames):
        flat = features[start:stop].flatten(1)  # [F, T*C]
        parts += [F.cosine_similarity(flat[:-1], flat[1:], dim=1), _straddling(features)]
    return torch.cat(parts[:-1])


def scene_boundaries(similarity: Tensor, num_boundaries: int, cu_frames: Sequence[int]) -> Tensor:
    """``[B, S]``: per video the S lowest of a full sort, in order."""
    rows = []
    for start, stop in pairwise(cu_frames):
        lowest = torch.argsort(similarity[start : stop - 1])[:num_boundaries]
        rows.append(torch.sort(lowest).values + 1)
    return torch.stack(rows)


def segment_scenes(
    features: Tensor, num_boundaries: int, cu_frames: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Similarity window by window, then the sort."""
    similarity, rows = [], []
    for start, stop in pairwise(cu_frames):
        flat = features[start:stop].flatten(1)
        before, after = flat[:-1], flat[1:]
        windows = []
        for first in range(0, len(before), SIMILARITY_WINDOW):
            pairs = slice(first, first + SIMILARITY_WINDOW)
            windows.append(F.cosine_similarity(before[pairs], after[pairs], dim=1))
        of_video = torch.cat(windows)
        rows.append(torch.sort(torch.argsort(of_video)[:num_boundaries]).values + 1)
        similarity += [of_video, _straddling(features)]
    return torch.stack(rows), torch.cat(similarity[:-1])


def _straddling(features: Tensor) -> Tensor:
    return features.new_full((1,), float("inf"))


def anchor_queries(
    tokens: Tensor,
    num_queries: int,
    weight: Tensor,
    bias: Tensor,
    windows: Sequence[tuple[int, int]],
) -> Tensor:
    """``[M, K, Dq]``: the anchor repeated, pooled and projected for every frame that asks it.

    ``windows``: each window's anchor and how many other frames it has.
    """
    out = []
    for anchor, others in windows:
        if others:
            repeated = tokens[anchor].expand(others, -1, -1)  # [n-1, L, D]
            pooled = F.adaptive_avg_pool1d(repeated.transpose(1, 2), num_queries)
            out.append(F.linear(pooled.transpose(1, 2), weight, bias))
    return torch.cat(out)


def pack_context(
    static: Tensor,
    compressed: Tensor,
    separator: Tensor,
    tokens: int,
    windows: Sequence[tuple[int, int]],
) -> Tensor:
    """``[N, D]``: separators expanded and concatenated frame by frame, window by window."""
    packed, row = [], 0
    for number, (_, others) in enumerate(windows):
        head = static[number * tokens : (number + 1) * tokens]
        if not others:
            packed.append(torch.cat([head, separator[None]]))
            continue
        unit = F.normalize(compressed[row : row + others], dim=-1)  # [n-1, K, D]
        row += others
        separators = separator.expand(others, 1, -1)
        body = torch.cat([unit, separators], dim=1).flatten(0, 1)
        packed.append(torch.cat([head, separator[None], body]))
    return torch.cat(packed)
