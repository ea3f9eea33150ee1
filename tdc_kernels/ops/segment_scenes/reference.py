# SPDX-License-Identifier: Apache-2.0
"""Both halves of the segmentation, one after the other."""

from __future__ import annotations

import torch

from tdc_kernels.ops.frame_similarity.reference import frame_similarity
from tdc_kernels.ops.scene_boundaries.reference import scene_boundaries, single_video


def segment_scenes(
    features: torch.Tensor,
    num_boundaries: int,
    cu_frames: torch.Tensor | None = None,
    threshold: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    similarity, sums = frame_similarity(features, cu_frames)
    if cu_frames is None:  # not through scene_boundaries, which cannot tell 0 frames from 1
        boundaries = single_video(similarity, num_boundaries, features.shape[0], threshold)
    else:
        boundaries = scene_boundaries(similarity, num_boundaries, cu_frames, threshold)
    return similarity, sums, boundaries
