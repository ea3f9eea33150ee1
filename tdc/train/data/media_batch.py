# SPDX-License-Identifier: Apache-2.0
"""The media of a training batch: pixels and waveforms, or what the frozen towers made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...encoder.feature_store import FeatureStore
from ...encoder.features import VideoFeatures
from ...encoder.tower_features import TowerFeatures
from ...encoder.video_encoder import VideoEncoder


class MediaBatch:
    """Media in the order of the placeholders, encoded inside the model's forward: there DDP and
    FSDP see the connector at work. It trains, so what it gives is never kept.

    Moves between devices and keeps dtypes (pixels are bytes, waveforms fp32, whatever autocast or
    FSDP do to plain tensors).

    Args:
        items: features of each medium; None: the towers have yet to see it.
        inputs: of those, in order, what ``VideoEncoder.towers`` takes.
        store: where to keep what the towers make of them, and ``keys``, under which names; None:
            not at all.
    """

    def __init__(
        self,
        items: Sequence[TowerFeatures | None],
        inputs: Mapping[str, Tensor] | None = None,
        store: FeatureStore | None = None,
        keys: Sequence[str | None] = (),
    ) -> None:
        self.items, self.inputs = list(items), dict(inputs or {})
        self.store, self.keys = store, keys

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[TowerFeatures | None]:
        return iter(self.items)

    def to(self, device: Any, **_: Any) -> MediaBatch:
        items = [item and item.to(device) for item in self.items]
        inputs = {name: x.to(device) for name, x in self.inputs.items()}
        return MediaBatch(items, inputs, self.store, self.keys)

    def encode(self, encoder: VideoEncoder) -> VideoFeatures:
        """All media through the connector, in as few calls as their sizes allow."""
        made = iter(self._towers(encoder))
        return encoder.connect([next(made) if item is None else item for item in self.items])

    def _towers(self, encoder: VideoEncoder) -> list[TowerFeatures]:
        if not self.inputs:
            return []
        made = encoder.towers(**self.inputs)
        if self.store is not None:
            seconds = self.inputs["media_seconds"].tolist()
            for key, features, sampled in zip(self.keys, made, seconds, strict=True):
                if key is not None:
                    self.store.save(key, features, whole=len(features) == sampled)
        return made
