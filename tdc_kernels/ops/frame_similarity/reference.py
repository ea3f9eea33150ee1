# SPDX-License-Identifier: Apache-2.0
"""Cosine similarity of neighbouring frames in plain PyTorch: the definition of correct."""

from __future__ import annotations

import torch

EPS = 1e-8  # smallest norm divided by, as in torch.nn.functional.cosine_similarity


def accumulate(
    features: torch.Tensor, cu_frames: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity [F-1] and sums [F, 2] in the dtype of accumulation: fp64 for fp64, else fp32."""
    x = features.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    norm = torch.linalg.vector_norm(x, dim=1)  # [F]
    dot = (x[:-1] * x[1:]).sum(1)  # [F-1]
    clamped = norm.clamp_min(EPS)
    similarity = dot / (clamped[:-1] * clamped[1:])  # [F-1]
    first = torch.zeros_like(norm[:1])
    sums = torch.stack([torch.cat([first, dot]), norm.square()], dim=1).detach()
    if cu_frames is None:
        return similarity, sums
    frame = torch.arange(features.shape[0], dtype=torch.int32, device=features.device)
    video = torch.bucketize(frame, cu_frames, right=True)  # [F]; empty videos own no frame
    return similarity.masked_fill(video[:-1] != video[1:], float("inf")), sums


def frame_similarity(
    features: torch.Tensor, cu_frames: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    similarity, sums = accumulate(features, cu_frames)
    return similarity.to(torch.float32), sums
