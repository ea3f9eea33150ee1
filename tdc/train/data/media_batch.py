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
import torch
from torch import Tensor

from tdc.encode import VideoEncoder
from tdc.errors import InputError
from tdc.features import VideoFeatures
from tdc.media_inputs import Medium

from .feature_store import FeatureStore


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
