# SPDX-License-Identifier: Apache-2.0
"""Features of one medium after the towers and before the connector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class TowerFeatures:
    """SigLIP, DINOv2 and BEATs tokens of one medium.

    ``VideoEncoder.towers`` returns a list of these and ``VideoEncoder.connect`` takes one; a
    training example may bring its own instead of a file.

    Attributes:
        siglip, dinov2: ``[F, tower_grid**2, C]``.
        size: (width, height) in pixels.
        times: seconds of each frame; None: one frame a second.
        audio: ``[F, audio_tokens_per_frame, Ca]`` BEATs tokens, or None without sound.
        audio_lengths: valid ones of each frame; None: all.
        is_video: False for a single image (then F = 1).
    """

    siglip: Tensor
    dinov2: Tensor
    size: tuple[int, int] = (1, 1)
    times: Sequence[float] | None = None
    audio: Tensor | None = None
    audio_lengths: Sequence[int] | None = None
    is_video: bool = True

    def __post_init__(self) -> None:
        if self.siglip.dim() != 3 or self.siglip.shape[:2] != self.dinov2.shape[:2]:
            raise InputError(
                f"tower features are {list(self.siglip.shape)} and {list(self.dinov2.shape)}; "
                "expected [F, tower_grid**2, C] with the same F and grid"
            )

    def __len__(self) -> int:
        """Frames."""
        return len(self.siglip)

    def frame_times(self) -> Sequence[float]:
        return range(len(self)) if self.times is None else self.times

    def heard_lengths(self) -> list[int]:
        """Valid audio tokens of each frame."""
        if self.audio is None:
            return [0] * len(self)
        return list(self.audio_lengths or [self.audio.shape[1]] * len(self))

    def to(self, device: Any) -> TowerFeatures:
        audio = None if self.audio is None else self.audio.to(device)
        return replace(
            self, siglip=self.siglip.to(device), dinov2=self.dinov2.to(device), audio=audio
        )
