# SPDX-License-Identifier: Apache-2.0
"""Cosine similarity of neighbouring frames in plain PyTorch: the definition of correct."""

from __future__ import annotations

import torch

EPS = 1e-8  # smallest norm divided by, as in torch.nn.functional.cosine_similarity


def accumulate(features: torch.Tensor, cu_frames: torch.Tensor | None) -> torch.Tensor:
    """The similarity in the dtype it was accumulated in: fp64 for fp64 features, else fp32."""
    dims = tuple(range(1, features.ndim))
    x = features.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dims).clamp_min(EPS)  # [F]
    similarity = (x[:-1] * x[1:]).sum(dims) / (norm[:-1] * norm[1:])  # [F-1]
    if cu_frames is None:
        return similarity
    frame = torch.arange(features.shape[0], dtype=torch.int32, device=features.device)
    video = torch.bucketize(frame, cu_frames, right=True)  # [F]; empty videos own no frame
    return similarity.masked_fill(video[:-1] != video[1:], float("inf"))


def frame_similarity(features: torch.Tensor, cu_frames: torch.Tensor | None = None) -> torch.Tensor:
    return accumulate(features, cu_frames).to(torch.float32)
