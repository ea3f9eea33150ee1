# SPDX-License-Identifier: Apache-2.0
"""``segment_scenes``: from features to scenes in one call."""

from __future__ import annotations

from typing import Any

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops import frame_similarity, scene_boundaries
from tdc_kernels.ops.backends import implement_fused
from tdc_kernels.ops.once import once
from tdc_kernels.ops.scene_boundaries.reference import below
from tdc_kernels.ops.segment_scenes import reference

OP = "segment_scenes"


def fake(
    features: torch.Tensor,
    num_boundaries: int,
    cu_frames: torch.Tensor | None = None,
    threshold: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    similarity, sums = frame_similarity.fake(features, cu_frames)
    return similarity, sums, scene_boundaries.fake(similarity, num_boundaries, cu_frames, threshold)


# Similarity, its sums (see frame_similarity), boundaries. The gradient is frame_similarity's.
registry.define(  # a floating output first: opcheck adds all outputs up in the first one's dtype
    OP,
    "(Tensor features, SymInt num_boundaries, Tensor? cu_frames=None, float? threshold=None)"
    " -> (Tensor, Tensor, Tensor)",
    fake,
)
registry.implement(OP, "reference", reference.segment_scenes)
implement_fused(OP)


class SegmentScenes(torch.autograd.Function):
    """The gradient of the similarity, by the same backend's ``frame_similarity``."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        features: torch.Tensor,
        num_boundaries: int,
        cu_frames: torch.Tensor | None,
        threshold: float | None,
    ):
        operator = registry.entry(OP, backend).handle
        similarity, sums, boundaries = operator(features, num_boundaries, cu_frames, threshold)
        ctx.backend = backend
        ctx.save_for_backward(features, sums, cu_frames)
        ctx.mark_non_differentiable(sums, boundaries)
        return similarity, sums, boundaries

    @staticmethod
    @once(OP)
    def backward(ctx: Any, grad: torch.Tensor, *_: Any):
        operator: Any = registry.entry(frame_similarity.OP, ctx.backend).backward
        return None, operator(grad, *ctx.saved_tensors), None, None, None


def segment_scenes(
    features: torch.Tensor,
    num_boundaries: int,
    cu_frames: torch.Tensor | None = None,
    threshold: float | None = None,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``frame_similarity`` and ``scene_boundaries`` in one.

    Args:
        features: ``[F, ...]``, fp16, bf16, fp32, fp64, any strides (frames with gaps between their
            values are copied first).
        num_boundaries: most boundaries per video, ``>= 0``; S scenes need ``S - 1``.
        cu_frames: int32 or int64 ``[B+1]``, prefix sums of the videos' lengths; None for one video.
        threshold: if given, only pairs with ``similarity < threshold`` (or NaN) become boundaries.
        backend: a backend's name; None chooses.

    Returns:
        ``(boundaries, similarity)``: int32 ``[B, num_boundaries]`` and fp32 ``[max(F-1, 0)]``, as
        the two functions return them. ``similarity`` is differentiable in ``features``,
        once.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
        RuntimeError: the backend asked for cannot run this call.
    """
    _checks.floating("features", features, "[F, ...] with at least 2 dimensions", least=2)
    _checks.count("num_boundaries", num_boundaries, 0)
    threshold = _checks.threshold(threshold)
    if cu_frames is not None:
        cu_frames = _checks.prefix_sums(cu_frames, (features.shape[0],), features.device)
    later = scene_boundaries.varies(threshold)
    rows = frame_similarity.as_rows(features)
    args = (rows, num_boundaries, cu_frames, None if later else threshold)
    similarity, _, boundaries = registry.call(OP, backend, *args, function=SegmentScenes)
    if later:
        pairs = similarity.detach()
        boundaries = below(threshold, boundaries, pairs, features.shape[0], cu_frames)
    return boundaries, similarity
