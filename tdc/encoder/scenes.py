# SPDX-License-Identifier: Apache-2.0
"""Scenes with their times, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .segment import Segmentation


@dataclass(frozen=True)
class Scene:
    """One scene: times in seconds, ``similarity`` of the two frames around the cut before it."""

    number: int
    start: float
    end: float
    first_frame: int
    frames: int
    similarity: float | None  # None: the first scene has no cut before it


def scenes(
    segmentation: Segmentation, times: Sequence[float], end: float, start: float = 0.0
) -> list[Scene]:
    """The scenes of one video, watched from ``start`` to ``end``, with frames at ``times``."""
    starts = segmentation.scene_starts()
    curve = segmentation.video_similarity().tolist()
    edges = [*(times[s] for s in starts), max(end, times[-1])]
    ends = [*starts[1:], len(times)]
    return [
        Scene(
            number=i + 1,
            start=start if i == 0 else edges[i],
            end=edges[i + 1],
            first_frame=first,
            frames=last - first,
            similarity=curve[first - 1] if i else None,
        )
        for i, (first, last) in enumerate(zip(starts, ends, strict=True))
    ]
