# SPDX-License-Identifier: Apache-2.0
"""``frame_similarity``: how alike neighbouring frames are."""

from __future__ import annotations

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops.frame_similarity import reference

OP = "frame_similarity"
registry.define(OP, "(Tensor features, Tensor? cu_frames=None) -> Tensor")
registry.implement(OP, "reference", reference.frame_similarity)


def frame_similarity(
    features: torch.Tensor, cu_frames: torch.Tensor | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """Cosine similarity of each frame and the next, over all of a frame's features.

    ``s[t] = <x_t, x_{t+1}> / (max(|x_t|, 1e-8) max(|x_{t+1}|, 1e-8))``, the frame's feature map
    taken as one vector. Low values are the scene boundaries of the paper's segmentation.

    Args:
        features: ``[F, ...]``, any floating dtype, any strides; frames of all videos back to back.
        cu_frames: int32 or int64 ``[B+1]``, prefix sums of the videos' lengths; None for one video.
            Empty videos are fine.
        backend: a backend's name; None chooses (see ``tdc_kernels.registry``).

    Returns:
        fp32 ``[max(F-1, 0)]`` for every input dtype, accumulated in fp32 (fp64 for fp64 input);
        ``+inf`` where the pair straddles two videos. Differentiable in ``features``.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
        RuntimeError: the backend asked for cannot run this call.
    """
    _checks.floating("features", features, "[F, ...] with at least 2 dimensions", least=2)
    if cu_frames is not None:
        cu_frames = _checks.prefix_sums(cu_frames, (features.shape[0],), features.device)
    return registry.call(OP, backend, features, cu_frames)
