# SPDX-License-Identifier: Apache-2.0
"""Similarity threshold of cuts, chosen on validation clips."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tdc.encoder.towers import VisionTower
from tdc_kernels import frame_similarity

from ..model import SIDE
from ..world import make_clip, render_frames

CLIPS = 200


@torch.inference_mode()
def similarity_threshold(
    tower: VisionTower, seed: int, say: Callable[[str], None] = lambda line: None
) -> float:
    """The threshold with the fewest errors on validation clips; the middle of the gap, if any."""
    same: list[float] = []
    cut: list[float] = []
    for index in range(CLIPS):
        clip = make_clip(seed, index, split="validation")
        frames = torch.from_numpy(render_frames(clip, SIDE)).permute(0, 3, 1, 2)
        for place, value in enumerate(frame_similarity(tower(frames.contiguous())).tolist(), 1):
            (cut if place in clip.cuts else same).append(value)
    values = torch.tensor(sorted([*same, *cut]))
    middles = (values[1:] + values[:-1]) / 2
    errors = [sum(v < m for v in same) + sum(v >= m for v in cut) for m in middles.tolist()]
    best = [m for m, e in zip(middles.tolist(), errors, strict=True) if e == min(errors)]
    threshold = round(best[len(best) // 2], 4)
    say(
        f"cuts lie at {max(cut):.3f} or below, pairs of one scene at {min(same):.3f} or above; "
        f"threshold {threshold}, {min(errors)} of {len(values)} pairs on the wrong side"
    )
    return threshold
