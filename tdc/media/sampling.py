# SPDX-License-Identifier: Apache-2.0
"""Which of a video's frames are taken."""

from __future__ import annotations


def sample_indices(num_frames: int, max_frames: int) -> list[int]:
    """Evenly spaced frame numbers, ``int(L / M * i)``; all of them when they fit."""
    if num_frames <= max_frames:
        return list(range(num_frames))
    step = num_frames / max_frames
    return [int(step * i) for i in range(max_frames)]
