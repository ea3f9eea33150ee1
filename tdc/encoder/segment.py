# SPDX-License-Identifier: Apache-2.0
"""Scene segmentation (paper, section 3.1): which frames begin a new scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tdc_kernels import frame_similarity, scene_boundaries, segment_scenes


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
    min_scene: int = 1,
) -> Segmentation:
    """Cut videos at their lowest similarities of consecutive features of frames.

    Args:
        features: ``[F, ...]`` features of the frames of all videos, any floating dtype: DINOv2's,
            or :func:`tdc.encoder.color_features.color_features`.
        num_scenes: at most this many scenes per video; a video of fewer frames has one per frame.
        cu_frames: prefix sums of frames per video; None for one video.
        threshold: only pairs less similar than this may become cuts.
        min_scene: of cuts less than this many frames apart the one at the lowest similarity stays,
            of equals the earlier: a dissolve that several samples see is cut once.
    """
    cu = tuple(cu_frames) if cu_frames is not None else (0, features.shape[0])
    prefix = torch.tensor(cu, dtype=torch.int32, device=features.device)
    if min_scene == 1:
        boundaries, similarity = segment_scenes(features, num_scenes - 1, prefix, threshold)
    else:
        similarity = frame_similarity(features, prefix)
        lowest = _lowest_around(similarity, cu, min_scene - 1)
        limit = math.inf if threshold is None else threshold  # what is not lowest is no cut
        boundaries = scene_boundaries(lowest, num_scenes - 1, prefix, limit)
    return Segmentation(similarity, boundaries, cu)


def _lowest_around(similarity: Tensor, cu_frames: Sequence[int], reach: int) -> Tensor:
    """The curve where it is lowest among ``reach`` pairs on either side, ``+inf`` elsewhere."""
    lowest = torch.full_like(similarity, math.inf)
    for first, end in pairwise(cu_frames):
        curve = similarity[first : max(first, end - 1)].detach()  # of one video
        if len(curve):
            border = curve.new_full((reach,), math.inf)
            windows = torch.cat([border, curve, border]).unfold(0, 2 * reach + 1, 1)
            before, after = windows[:, :reach].amin(1), windows[:, reach + 1 :].amin(1)
            kept = (curve < before) & (curve <= after)
            lowest[first : end - 1] = curve.where(kept, curve.new_tensor(math.inf))
    return lowest
