# SPDX-License-Identifier: Apache-2.0
"""What the towers gave for one medium: the type between the encoder's two halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class TowerFeatures:
    """What the frozen towers say about one medium: an example may bring this instead of a file.

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

    def to(self, device: Any) -> TowerFeatures:
        audio = None if self.audio is None else self.audio.to(device)
        return replace(
            self, siglip=self.siglip.to(device), dinov2=self.dinov2.to(device), audio=audio
        )
