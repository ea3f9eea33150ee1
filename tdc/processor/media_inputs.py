# SPDX-License-Identifier: Apache-2.0
"""Files and arrays of videos, images and sound to the tensors of ``VideoEncoder.forward``."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_STANDARD_MEAN

from ..config import TDCConfig
from ..encoder.geometry import kept_box
from ..errors import InputError
from ..media.audio import finite, read_audio, resample
from ..media.media_file import MediaFile, VideoInfo
from ..media.pixels import padding_color, resize_frames
from ..media.sampling import sample_indices
from ..media.video import Video, read_image, read_video
from ..profiling import stage
from .budget import frame_budget

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000  # Hz, what BEATs hears
# Decoded frames larger than this together (172 frames of 1080p) are scaled down while decoding,
# never below twice what the towers see.
FRAME_BYTES, MIN_SIDE = 2**30, 768

# What ``pack_media`` makes, ``VideoEncoder.towers`` takes, and no part of the text is.
MEDIA_INPUTS = (
    "siglip_pixels",
    "dinov2_pixels",
    "media_frames",
    "media_sizes",
    "media_is_video",
    "frame_times",
    "media_seconds",
    "waveforms",
    "waveform_lengths",
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Medium:
    """One decoded video or image."""

    frames: np.ndarray  # uint8 [L, H, W, 3]
    size: tuple[int, int]  # (width, height) before any scaling
    times: list[float]  # seconds, L
    seconds: int  # sampled instants before thinning
    is_video: bool
    waveform: np.ndarray | None = None  # fp32 [n], 16 kHz


@stage("decode video")
def load_video(
    config: TDCConfig,
    video: Any,
    sound: Any,
    prompt_tokens: int,
    num_videos: int = 1,
    max_frames: int | None = None,
    progress: Progress | None = None,
) -> Medium:
    """Decode one video on the frames that its prompt leaves room for.

    Args:
        video: a file, a uint8 array ``[T, H, W, 3]`` sampled at ``config.fps``, or a ``Video``.
        sound: see :func:`load_sound`; None for the video's own track, silence if that cannot be
            decoded.
        prompt_tokens, num_videos: see :func:`tdc.processor.budget.frame_budget`.
        max_frames: frames instead of what the budget allows.

    Raises:
        InputError: a file that cannot be read, or an array of another kind.
    """

    def budget(size: tuple[int, int]) -> int:
        if max_frames is not None:
            return max_frames
        width, height = size[::-1] if config.video_size_order == "hw" else size
        tokens = kept_box(width, height, config.frame_grid).num_tokens
        return frame_budget(config, prompt_tokens, tokens, num_videos)

    video = MediaFile.of(video)
    if isinstance(video, MediaFile):
        info = video.info
        size = (info.width, info.height)
        limit = budget(size)
        decoded = read_video(
            video,
            fps=config.fps,
            max_frames=limit,
            max_side=_max_side(info, min(limit, math.ceil(info.duration * config.fps))),
            progress=progress,
        )
        frames, times = decoded.frames, decoded.timestamps.tolist()
        seconds = max(len(times), math.ceil(decoded.duration * config.fps - 0.01))
        if sound is None and config.audio_config and info.has_audio:
            sound = _own_sound(config, video)
    else:
        frames, times = _as_frames(video, config.fps)
        size, seconds = (frames.shape[2], frames.shape[1]), len(frames)
        keep = sample_indices(seconds, budget(size))
        frames, times = frames[keep], [times[i] for i in keep]
    if len(times) < seconds:
        logger.warning(
            "the video has %d frames at %g per second; %d evenly spaced ones fit the budget",
            seconds,
            config.fps,
            len(times),
        )
    return Medium(frames, size, times, seconds, True, load_sound(config, sound))


def load_image(image: Any) -> Medium:
    """One still from a file, a PIL image or a uint8 array ``[H, W, 3]``."""
    if isinstance(image, (str, os.PathLike)):
        picture = read_image(image)
    else:
        picture = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
        raise InputError(
            f"image is {picture.dtype} {list(picture.shape)}; expected uint8 [H, W, 3]"
        )
    return Medium(picture[None], (picture.shape[1], picture.shape[0]), [0.0], 1, False)


@stage("decode audio")
def load_sound(config: TDCConfig, sound: Any) -> np.ndarray | None:
    """fp32 waveform ``[n]`` at 16 kHz; None for silence.

    Args:
        sound: a file; a mono waveform ``[n]`` at 16 kHz, or ``(waveform, rate)`` with a rate in Hz,
            floating point in [-1, 1] or integers of full scale; False or None for silence.

    Raises:
        InputError: a file without sound that can be decoded, or an array of another kind.
    """
    if sound is None or sound is False:
        return None
    if not config.audio_config:
        logger.warning("this model has no audio encoder; the sound is not used")
        return None
    if isinstance(sound, (str, os.PathLike)):
        return read_audio(sound, sample_rate=SAMPLE_RATE, channel=config.audio_channel)
    rate: Any = SAMPLE_RATE
    if isinstance(sound, tuple) and len(sound) == 2 and np.ndim(sound[0]) + np.ndim(sound[1]):
        sound, rate = sound
        number = isinstance(rate, (int, float, np.integer, np.floating))
        if not number or rate < 1 or not float(rate).is_integer():
            raise InputError(
                f"audio: got a rate of {type(rate).__name__} "
                f"{rate if np.ndim(rate) == 0 else list(np.shape(rate))}; expected "
                "(waveform, rate) with a whole number of Hz"
            )
    waveform = finite(_as_waveform(sound), "audio")
    return waveform if rate == SAMPLE_RATE else resample(waveform, int(rate), SAMPLE_RATE)


def _own_sound(config: TDCConfig, video: MediaFile) -> np.ndarray | bool:
    """The sound of a video whose pictures are wanted whatever its sound is; False for silence."""
    try:
        return read_audio(video, sample_rate=SAMPLE_RATE, channel=config.audio_channel)
    except InputError as error:
        logger.warning("%s; the video is taken as silent", error)
        return False


def _as_waveform(sound: Any) -> np.ndarray:
    """fp32 ``[n]``, integers scaled to [-1, 1)."""
    array = np.asarray(sound)
    if array.ndim != 1:
        raise InputError(
            f"audio has shape {list(array.shape)}; expected one mono waveform [samples]"
        )
    if array.dtype.kind not in "iuf" or array.dtype in (np.int64, np.uint64):
        raise InputError(
            f"audio is {array.dtype}; expected floats in [-1, 1] or 8-, 16- or 32-bit integers"
        )
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    half = 2.0 ** (8 * array.itemsize - 1)
    centre = half if array.dtype.kind == "u" else 0.0
    return ((array - centre) / half).astype(np.float32)


@stage("resize frames")
def pack_media(config: TDCConfig, media: Sequence[Medium]) -> dict[str, Any]:
    """All media behind each other: the inputs of ``VideoEncoder.forward``."""
    inputs: dict[str, Any] = {}
    for name, side, mean in (
        ("siglip_pixels", config.siglip_image_size, IMAGENET_STANDARD_MEAN),
        ("dinov2_pixels", config.dinov2_image_size, IMAGENET_DEFAULT_MEAN),
    ):
        fill = padding_color(mean)
        inputs[name] = torch.cat([resize_frames(m.frames, side, fill) for m in media])
    inputs |= {
        "media_frames": torch.tensor([len(m.frames) for m in media]),
        "media_sizes": torch.tensor([m.size for m in media]),
        "media_is_video": torch.tensor([m.is_video for m in media]),
        "media_seconds": torch.tensor([m.seconds for m in media]),
        "frame_times": torch.tensor([t for m in media for t in m.times], dtype=torch.float64),
    }
    if any(m.waveform is not None for m in media):
        waves = [np.zeros(0, np.float32) if m.waveform is None else m.waveform for m in media]
        longest = max(len(w) for w in waves)
        padded = np.stack([np.pad(w, (0, longest - len(w))) for w in waves])
        inputs["waveforms"] = torch.from_numpy(padded)
        inputs["waveform_lengths"] = torch.tensor([len(w) for w in waves])
    return inputs


def _max_side(info: VideoInfo, num_frames: int) -> int | None:
    """Longest side to decode to, so that all frames together stay near ``FRAME_BYTES``."""
    side = max(info.width, info.height)
    ratio = FRAME_BYTES / max(1, num_frames * info.width * info.height * 3)
    return None if ratio >= 1 else max(MIN_SIDE, int(side * math.sqrt(ratio)))


def _as_frames(video: Any, fps: float) -> tuple[np.ndarray, list[float]]:
    if isinstance(video, Video):
        return video.frames, video.timestamps.tolist()
    frames = np.asarray(video)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise InputError(
            f"video is {frames.dtype} {list(frames.shape)}; expected uint8 [T, H, W, 3], T >= 1"
        )
    return frames, [i / fps for i in range(len(frames))]
