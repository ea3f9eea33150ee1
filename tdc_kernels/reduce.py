# SPDX-License-Identifier: Apache-2.0
"""``reduce_frames``: leave out the frames of a video that look like their neighbours."""

from __future__ import annotations

import torch

from tdc_kernels import _checks
from tdc_kernels.ops.frame_similarity import frame_similarity

ALWAYS = float("-inf")  # the redundancy of a frame that stays whatever the threshold
RULES = ("window", "previous")


@torch.no_grad()
def reduce_frames(
    features: torch.Tensor,
    threshold: float = 0.83,
    *,
    window: int = 16,
    rule: str = "window",
    max_frames: int | None = None,
) -> torch.Tensor:
    """The frames of one video that are worth keeping, in their order.

    The video is cut into windows of ``window`` frames, the last one shorter. A frame stays where
    its redundancy is below ``threshold``; similarity is the cosine of two frames' features, each
    frame's taken as one vector.

    - ``"window"``, as LongVU does it: redundancy is the mean similarity to all frames of the
      window, itself (1) included. The middle frame, ``n // 2`` of n, always stays.
    - ``"previous"``: redundancy is the similarity to the frame before. A window's first frame
      always stays. One pass over the features by ``frame_similarity``.

    Args:
        features: ``[F, ...]``, usually ``[F, T, C]`` of DINOv2, fp16, bf16, fp32 or fp64.
        threshold: higher keeps more; above 1 everything.
        window: frames looked at together, ``>= 1``.
        rule: ``"window"`` or ``"previous"``.
        max_frames: if more would stay, they are evenly subsampled: entry ``floor(i n / m)`` for
            i = 0 .. m-1 of n frames and m = ``max_frames``.

    Returns:
        int64 ``[K]``, rising, to index the features of every encoder with. How many there are is
        known on the host only when the device is done. A frame with NaN features is left out
        (unless it always stays); under ``"window"`` it takes its window's others with it.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
    """
    _checks.floating("features", features, "[F, ...] with at least 2 dimensions", least=2)
    _checks.count("window", window, 1)
    limit = _checks.threshold(threshold)
    if limit is None:
        raise TypeError("threshold: expected a number, got None")
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(map(repr, RULES))}, got {rule!r}")
    if max_frames is not None:
        _checks.count("max_frames", max_frames, 1)
    redundancy = _window if rule == "window" else _previous
    kept = (redundancy(features, window) < limit).nonzero().flatten()
    if max_frames is not None and kept.shape[0] > max_frames:
        step = torch.arange(max_frames, device=kept.device)
        kept = kept[step * kept.shape[0] // max_frames]
    return kept


def _window(features: torch.Tensor, window: int) -> torch.Tensor:
    """fp32 ``[F]``. One product per window; the norms are its diagonal, so features are read once
    and never copied as a whole."""
    acc = torch.float64 if features.dtype == torch.float64 else torch.float32
    parts = []
    for start in range(0, features.shape[0], window):
        x = features[start : start + window].flatten(1).to(acc)
        products = x @ x.T  # [n, n]
        norm = products.diagonal().sqrt().clamp_min(1e-8)
        part = (products / norm / norm[:, None]).mean(1)
        part[x.shape[0] // 2] = ALWAYS
        parts.append(part)
    return torch.cat(parts).float() if parts else features.new_empty(0, dtype=torch.float32)


def _previous(features: torch.Tensor, window: int) -> torch.Tensor:
    """fp32 ``[F]``."""
    similarity = frame_similarity(features)
    redundancy = torch.cat([similarity.new_zeros(min(features.shape[0], 1)), similarity])
    redundancy[::window] = ALWAYS
    return redundancy
