# SPDX-License-Identifier: Apache-2.0
"""Media of a batch to ``VideoFeatures``, inside the model's forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...encoder.feature_store import FeatureStore
from ...encoder.features import VideoFeatures
from ...encoder.tower_features import TowerFeatures
from ...encoder.video_encoder import VideoEncoder
from ...errors import InputError
from .media_batch import MediaBatch, Pixels


class MediaEncoder:
    """A forward pre-hook: ``media=MediaBatch`` becomes ``features=VideoFeatures``."""

    def __init__(self, encoder: VideoEncoder, store: FeatureStore | None = None) -> None:
        self.encoder, self.store = encoder, store

    def __call__(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        media = kwargs.pop("media", None)
        if media is not None and len(media):
            kwargs["features"] = self.encode(media)
        return args, kwargs

    def encode(self, media: MediaBatch) -> VideoFeatures:
        """All media of a batch through the connector in as few calls as their sizes allow."""
        items = self._through_towers(media.items)
        frames = [len(item.siglip) for item in items]
        times = [
            t
            for item, count in zip(items, frames, strict=True)
            for t in (range(count) if item.times is None else item.times)
        ]
        return self.encoder.encode_features(
            _join([item.siglip for item in items]),
            _join([item.dinov2 for item in items]),
            frames,
            [item.size for item in items],
            [item.is_video for item in items],
            times,
            [self._audio(item) for item in items] if self.encoder.beats is not None else None,
        )

    def _audio(self, item: TowerFeatures) -> tuple[Tensor, list[int]] | None:
        if item.audio is None:
            return None
        tokens = self.encoder.config.audio_tokens_per_frame
        lengths = item.audio_lengths
        return item.audio, list(lengths) if lengths is not None else [tokens] * len(item.audio)

    @torch.no_grad()
    def _through_towers(self, items: Sequence[TowerFeatures | Pixels]) -> list[TowerFeatures]:
        pending = [item for item in items if isinstance(item, Pixels)]
        if not pending:
            return [item for item in items if isinstance(item, TowerFeatures)]
        encoder = self.encoder
        if encoder.siglip is None or encoder.dinov2 is None:
            raise InputError(
                "this model was saved without vision towers, so it cannot look at files; give "
                "siglip and dinov2 in the configuration"
            )
        counts = [len(item.siglip) for item in pending]
        siglip = encoder.siglip(_join([item.siglip for item in pending])).split(counts)
        dinov2 = encoder.dinov2(_join([item.dinov2 for item in pending])).split(counts)
        made = iter(
            self._finish(item, s, d) for item, s, d in zip(pending, siglip, dinov2, strict=True)
        )
        return [next(made) if isinstance(item, Pixels) else item for item in items]

    def _finish(self, item: Pixels, siglip: Tensor, dinov2: Tensor) -> TowerFeatures:
        medium = item.medium
        audio: tuple[Tensor, list[int]] | None = None
        if item.waveform is not None and self.encoder.beats is not None:
            audio = self.encoder.encode_audio([item.waveform], [medium.times], [medium.seconds])[0]
        features = TowerFeatures(
            siglip,
            dinov2,
            medium.size,
            medium.times,
            None if audio is None else audio[0],
            None if audio is None else audio[1],
            medium.is_video,
        )
        if self.store is not None and item.key is not None:
            self.store.save(item.key, features, whole=len(medium.times) == medium.seconds)
        return features


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
