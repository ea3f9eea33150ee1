# SPDX-License-Identifier: Apache-2.0
"""``scene_boundaries``: where the scenes of a video begin."""

from __future__ import annotations

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops.backends import implement_fused
from tdc_kernels.ops.scene_boundaries import reference

OP = "scene_boundaries"


def fake(
    similarity: torch.Tensor,
    num_boundaries: int,
    cu_frames: torch.Tensor | None = None,
    threshold: float | None = None,
) -> torch.Tensor:
    videos = 1 if cu_frames is None else cu_frames.shape[0] - 1
    return similarity.new_empty((videos, num_boundaries), dtype=torch.int32)


registry.define(
    OP,
    "(Tensor similarity, SymInt num_boundaries, Tensor? cu_frames=None, float? threshold=None)"
    " -> Tensor",
    fake,
    differentiable=False,
)
registry.implement(OP, "reference", reference.scene_boundaries)
implement_fused(OP)


def varies(threshold: float | None) -> bool:
    """True where torch.compile should see the threshold as a number that may be another one in the
    next call: an operator takes a constant, and every other constant would compile anew."""
    return threshold is not None and torch.compiler.is_dynamo_compiling()


def scene_boundaries(
    similarity: torch.Tensor,
    num_boundaries: int,
    cu_frames: torch.Tensor | None = None,
    threshold: float | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """The pairs of frames that are least alike, as the first frames of new scenes.

    The paper's segmentation into S scenes needs ``num_boundaries = S - 1``. In every video the
    lowest similarities are taken, of equals the earlier; NaN counts as ``-inf``, the lowest.

    Args:
        similarity: fp32 ``[F-1]`` as ``frame_similarity`` returns it. Values at pairs that straddle
            two videos are ignored.
        num_boundaries: most boundaries per video, ``>= 0``.
        cu_frames: int32 or int64 ``[B+1]``, prefix sums of the videos' lengths in frames; None for
            one video of ``len(similarity) + 1`` frames.
        threshold: if given, only pairs with ``similarity < threshold`` (or NaN) become boundaries.
        backend: a backend's name; None chooses.

    Returns:
        int32 ``[B, num_boundaries]``: first frames of the new scenes, counted from the video's own
        start, rising; where there are fewer, filled up with the video's length. Not differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
        RuntimeError: the backend asked for cannot run this call.
    """
    _checks.floating("similarity", similarity, "[F-1]", ndim=1)
    _checks.same_dtype("similarity", similarity, torch.float32, "frame_similarity's output")
    _checks.count("num_boundaries", num_boundaries, 0)
    threshold = _checks.threshold(threshold)
    if cu_frames is not None:
        pairs = similarity.shape[0]
        frames = (pairs + 1,) if pairs > 0 else (0, 1)
        cu_frames = _checks.prefix_sums(cu_frames, frames, similarity.device)
    similarity = similarity.detach()
    if varies(threshold):
        found = registry.call(OP, backend, similarity, num_boundaries, cu_frames, None)
        return reference.below(threshold, found, similarity, similarity.shape[0] + 1, cu_frames)
    return registry.call(OP, backend, similarity, num_boundaries, cu_frames, threshold)
