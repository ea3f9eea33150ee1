# SPDX-License-Identifier: Apache-2.0
"""The media of a training batch: pixels and waveforms, or what the frozen towers made of them.

``MediaEncoder`` turns either into ``VideoFeatures`` inside the model's forward, where DDP and FSDP
see the connector at work. The connector trains, so what it gives is never kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ...encoder.tower_features import TowerFeatures
from ...processor.media_inputs import Medium


@dataclass(frozen=True)
class Pixels:
    """One decoded medium that the towers have yet to see; ``key``: where the store keeps it."""

    siglip: Tensor  # uint8 [F, 3, S, S]
    dinov2: Tensor
    medium: Medium
    key: str | None = None
    waveform: Tensor | None = None

    def to(self, device: Any) -> Pixels:
        wave = None if self.waveform is None else self.waveform.to(device)
        return replace(
            self, siglip=self.siglip.to(device), dinov2=self.dinov2.to(device), waveform=wave
        )

    def forget_frames(self) -> Pixels:
        """Without the frames at their own size: workers need not send them."""
        return replace(self, medium=replace(self.medium, frames=np.zeros((0, 0, 0, 3), np.uint8)))


class MediaBatch:
    """Media in the order of the placeholders. Moves between devices, keeps dtypes (pixels are
    bytes, waveforms fp32, whatever autocast or FSDP do to plain tensors)."""

    def __init__(self, items: Sequence[TowerFeatures | Pixels]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[TowerFeatures | Pixels]:
        return iter(self.items)

    def to(self, device: Any, **_: Any) -> MediaBatch:
        return MediaBatch([item.to(device) for item in self.items])
