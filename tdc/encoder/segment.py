# SPDX-License-Identifier: Apache-2.0
"""Scene segmentation (paper, section 3.1): which frames begin a new scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdc_kernels import segment_scenes


@dataclass(frozen=True)
class Segmentation:
    """Cuts of a batch of videos whose frames stand behind each other.

    Attributes:
        similarity: fp32 ``[F-1]`` cosine of consecutive frames, ``+inf`` between two videos.
        boundaries: int32 ``[B, S-1]`` first frames of new scenes, padded with the video's length.
        cu_frames: prefix sums of frames per video, ``B + 1`` Python ints.
    """

    similarity: Tensor
    boundaries: Tensor
    cu_frames: tuple[int, ...]

    def scene_starts(self, video: int = 0) -> list[int]:
        """First frame of every scene of one video, counted from the video's own start."""
        length = self.cu_frames[video + 1] - self.cu_frames[video]
        cuts = [c for c in self.boundaries[video].tolist() if c < length]
        return [0, *cuts] if length else []

    def video_similarity(self, video: int = 0) -> Tensor:
        """``[L-1]`` similarities inside one video."""
        first, last = self.cu_frames[video], self.cu_frames[video + 1]
        return self.similarity[first : max(first, last - 1)]


def segment(
    features: Tensor,
    num_scenes: int,
    cu_frames: Sequence[int] | None = None,
    threshold: float | None = None,
) -> Segmentation:
    """Cut videos at their lowest similarities of consecutive DINOv2 features.

    Args:
        features: ``[F, ...]`` DINOv2 features of the frames of all videos, any floating dtype.
        num_scenes: at most this many scenes per video; a video of fewer frames has one per frame.
        cu_frames: prefix sums of frames per video; None for one video.
        threshold: only pairs less similar than this may become cuts.
    """
    cu = tuple(cu_frames) if cu_frames is not None else (0, features.shape[0])
    boundaries, similarity = segment_scenes(
        features,
        num_scenes - 1,
        torch.tensor(cu, dtype=torch.int32, device=features.device),
        threshold,
    )
    return Segmentation(similarity, boundaries, cu)
