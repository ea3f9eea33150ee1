# SPDX-License-Identifier: Apache-2.0
"""``segment_scenes``: from features to scenes in one call."""

from __future__ import annotations

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops.segment_scenes import reference

OP = "segment_scenes"
registry.define(  # the floating output first: opcheck adds all outputs up in the first one's dtype
    OP,
    "(Tensor features, int num_boundaries, Tensor? cu_frames=None, float? threshold=None)"
    " -> (Tensor, Tensor)",
)
registry.implement(OP, "reference", reference.segment_scenes)


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
        features: ``[F, ...]``, any floating dtype, any strides.
        num_boundaries: most boundaries per video, ``>= 0``; S scenes need ``S - 1``.
        cu_frames: int32 or int64 ``[B+1]``, prefix sums of the videos' lengths; None for one video.
        threshold: if given, only pairs with ``similarity < threshold`` (or NaN) become boundaries.
        backend: a backend's name; None chooses.

    Returns:
        ``(boundaries, similarity)``: int32 ``[B, num_boundaries]`` and fp32 ``[max(F-1, 0)]``, as
        the two functions return them. ``similarity`` is differentiable in ``features``.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
        RuntimeError: the backend asked for cannot run this call.
    """
    _checks.floating("features", features, "[F, ...] with at least 2 dimensions", least=2)
    _checks.count("num_boundaries", num_boundaries, 0)
    threshold = _checks.threshold(threshold)
    if cu_frames is not None:
        cu_frames = _checks.prefix_sums(cu_frames, (features.shape[0],), features.device)
    args = (features, num_boundaries, cu_frames, threshold)
    similarity, boundaries = registry.call(OP, backend, *args)
    return boundaries, similarity
