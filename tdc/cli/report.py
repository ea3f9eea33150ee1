# SPDX-License-Identifier: Apache-2.0
"""Tables about an encoded video: its scenes, and its context token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tdc_kernels import ContextPlan

from ..encoder.features import VideoFeatures
from ..encoder.scenes import Scene
from ..media.clock import clock
from .terminal import table


def print_scenes(found: Sequence[Scene]) -> None:
    rows = [
        [
            str(scene.number),
            clock(scene.start, tenths=True),
            clock(scene.end, tenths=True),
            str(scene.frames),
            "" if scene.similarity is None else f"{scene.similarity:.4f}",
        ]
        for scene in found
    ]
    table(["scene", "start", "end", "frames", "similarity at the cut"], rows, left=0)


@dataclass(frozen=True)
class Layout:
    """Tokens of one video's context by kind, and what there would be without compression."""

    static: int
    audio: int  # of the static frames, which keep their sound uncompressed
    dynamic: int
    separator: int
    static_frames: int
    dynamic_frames: int
    uncompressed: int  # every frame whole, with its sound, no separators
    trimmed: int  # cut to fit the context

    @property
    def total(self) -> int:
        return self.static + self.audio + self.dynamic + self.separator

    @property
    def ratio(self) -> float:
        return self.uncompressed / self.total if self.total else math.nan


def layout(features: VideoFeatures, plan: ContextPlan) -> Layout:
    """Count the planned context of one video."""
    static, dynamic, separator = (int((plan.kinds == kind).sum()) for kind in range(3))
    rows = plan.source[plan.kinds == 0].long()
    owner = torch.bucketize(rows, plan.cu_static[1:].long(), right=True)
    offset = rows - plan.cu_static.long()[owner]
    visual = torch.tensor(features.visual_lengths)[plan.anchors.long()]
    audio = int((offset >= visual[owner]).sum()) if len(rows) else 0
    return Layout(
        static=static - audio,
        audio=audio,
        dynamic=dynamic,
        separator=separator,
        static_frames=len(plan.anchors) if static else 0,
        dynamic_frames=len(plan.dynamic),
        uncompressed=sum(features.static_lengths()),
        trimmed=int(plan.trimmed.sum()),
    )


def thumbnails(pixels: torch.Tensor, size: Sequence[int]) -> np.ndarray:
    """The tower's padded squares ``uint8 [T, 3, S, S]`` as pictures ``[T, H, W, 3]`` again.

    Args:
        size: (width, height) of the video.
    """
    side, (width, height) = pixels.shape[-1], size
    longest = max(width, height)
    w, h = (max(1, round(side * n / longest)) for n in (width, height))
    left, top = (side - w) // 2, (side - h) // 2
    return pixels[:, :, top : top + h, left : left + w].permute(0, 2, 3, 1).contiguous().numpy()
