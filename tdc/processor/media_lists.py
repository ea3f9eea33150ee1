# SPDX-License-Identifier: Apache-2.0
"""The processor's ``videos``, ``images`` and ``audio``, in whatever nesting, as flat lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .frames import is_array, is_picture
from .video_sampling import WHOLE, VideoSampling


@dataclass(frozen=True)
class Clip:
    """A video and what of it is to be watched."""

    source: Any
    sampling: VideoSampling = WHOLE


def media_lists(videos: Any, images: Any, audio: Any) -> tuple[list[Clip], list, list]:
    """Videos, images, and one sound per video, each from one, a list, or one list per prompt.

    A list of stills is one video.

    Raises:
        InputError: sounds that are not one per video.
    """
    clips = [v if isinstance(v, Clip) else Clip(v) for v in _flat(videos, _is_stills)]
    sounds = _flat(audio, _is_pair)
    if not isinstance(audio, (list, tuple)) or _is_pair(audio):
        sounds = [audio] * len(clips)
        if not clips and audio is not None and audio is not False:
            raise InputError("audio came without videos; expected a video that it belongs to")
    if not clips and any(s is not None and s is not False for s in sounds):
        raise InputError("audio came without videos; expected a video that it belongs to")
    if len(sounds) != len(clips) and clips:
        raise InputError(
            f"audio has {len(sounds)} entries for {len(clips)} videos; expected one per video"
        )
    return clips, _flat(images, lambda item: False), sounds


def per_video(clips: Sequence[Clip], options: Mapping[str, Any]) -> list[Clip]:
    """The same with keywords that hold for all videos, or are lists with one value each; what a
    video says for itself comes first.

    Raises:
        InputError: a list of another length, or a value out of range.
    """
    rows: list[dict[str, Any]] = [{} for _ in clips]
    shared: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, (list, tuple)) or (is_array(value) and value.ndim == 1):
            if len(value) != len(clips):
                raise InputError(
                    f"{name} has {len(value)} entries for {len(clips)} videos; expected one per "
                    "video, or one number for all"
                )
            values = value.tolist() if hasattr(value, "tolist") else value
            for row, one in zip(rows, values, strict=True):
                row[name] = one
        else:
            shared[name] = value
    VideoSampling.of(shared)  # without a video a wrong value is wrong as well
    return [
        Clip(clip.source, clip.sampling.over(VideoSampling.of({**shared, **row})))
        for clip, row in zip(clips, rows, strict=True)
    ]


def _flat(media: Any, is_one: Any) -> list:
    if media is None:
        return []
    if not isinstance(media, (list, tuple)) or is_one(media):
        return [media]
    flat: list = []
    for item in media:
        flat += item if isinstance(item, (list, tuple)) and not is_one(item) else [item]
    return flat


def _is_stills(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) > 0 and all(map(is_picture, item))


def _is_pair(item: Any) -> bool:
    """Whether it is (waveform, rate)."""
    return isinstance(item, tuple) and len(item) == 2 and _is_number(item[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
