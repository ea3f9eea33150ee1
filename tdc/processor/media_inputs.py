# SPDX-License-Identifier: Apache-2.0
"""Files and arrays of videos, images and sound to the tensors of ``VideoEncoder.forward``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_STANDARD_MEAN

from ..config import TDCConfig
from ..encoder.geometry import kept_box
from ..errors import InputError, shown
from ..media.audio import finite, read_audio, resample
from ..media.media_file import MediaFile, VideoInfo
from ..media.pixels import padding_color, resize_frames
from ..media.sampling import sample_indices
from ..media.source import opened
from ..media.video import Video, read_video
from ..profiling import stage
from .budget import frame_budget
from .frames import as_array, picture, rgb, stacked
from .video_sampling import WHOLE, VideoSampling

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000  # Hz, what BEATs hears
# Decoded frames larger than this together (172 frames of 1080p) are scaled down while decoding,
# never below twice what the towers see.
FRAME_BYTES, MIN_SIDE = 2**30, 768
_MOST_RATE = 10**6  # Hz of a waveform

# What ``pack_media`` makes, ``VideoEncoder.towers`` takes, and no part of the text is.
MEDIA_INPUTS = (
    "siglip_pixels",
    "dinov2_pixels",
    "media_frames",
    "media_sizes",
    "media_is_video",
    "frame_times",
    "media_seconds",
    "media_spans",
    "waveforms",
    "waveform_lengths",
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Medium:
    """One decoded video or image."""

    frames: np.ndarray  # uint8 [L, H, W, 3]
    size: tuple[int, int]  # (width, height) before any scaling
    times: list[float]  # seconds from the start of the video, L
    seconds: int  # sampled instants before thinning
    is_video: bool
    waveform: np.ndarray | None = None  # fp32 [n], 16 kHz, from `span[0]` on
    span: tuple[float, float] = (0.0, 0.0)  # seconds of the video that were watched


@stage("decode video")
def load_video(
    config: TDCConfig,
    video: Any,
    sound: Any,
    prompt_tokens: int,
    num_videos: int = 1,
    max_frames: int | None = None,
    progress: Progress | None = None,
    sampling: VideoSampling = WHOLE,
    sampling_rate: int | None = None,
) -> Medium:
    """Decode one video on the frames that its prompt leaves room for.

    Args:
        video: what :func:`tdc.media.source.local` takes for a file; an array or tensor that
            :func:`tdc.processor.frames.rgb` takes, or a list of stills of one size, sampled at
            ``sampling.fps`` or ``config.fps``; or a ``Video``.
        sound: see :func:`load_sound`; None for the video's own track, silence if that cannot be
            decoded.
        prompt_tokens, num_videos: see :func:`tdc.processor.budget.frame_budget`.
        max_frames: frames instead of what the budget allows.
        sampling: which part of the video, and how densely; its ``max_frames`` comes first.

    Raises:
        InputError: a file that cannot be read, an array of another kind, or a part of the video
            in which there is nothing.
    """
    max_frames = sampling.max_frames or max_frames

    def budget(size: tuple[int, int]) -> int:
        if max_frames is not None:
            return max_frames
        width, height = size[::-1] if config.video_size_order == "hw" else size
        tokens = kept_box(width, height, config.frame_grid).num_tokens
        return frame_budget(config, prompt_tokens, tokens, num_videos)

    with opened(video, "video") as found:
        if isinstance(found, MediaFile):
            if sampling.fps is not None and sampling.num_frames is not None:
                raise InputError("fps and num_frames came together; expected one of them")
            seen = _from_file(config, found, sampling, budget, progress)
            if sound is None and config.audio_config and found.info.has_audio:
                sound = _own_sound(config, found, sampling)
                return replace(seen, waveform=load_sound(config, sound))
        else:
            seen = _from_frames(config, found, sampling, budget)
    return replace(seen, waveform=load_sound(config, sound, sampling_rate, sampling))


def load_image(image: Any) -> Medium:
    """One still: what :func:`tdc.processor.frames.picture` takes."""
    pixels = picture(image)
    return Medium(pixels[None], (pixels.shape[1], pixels.shape[0]), [0.0], 1, False)


@stage("decode audio")
def load_sound(
    config: TDCConfig,
    sound: Any,
    sampling_rate: int | None = None,
    sampling: VideoSampling = WHOLE,
) -> np.ndarray | None:
    """fp32 waveform ``[n]`` at 16 kHz; None for silence.

    Args:
        sound: what :func:`tdc.media.source.local` takes for a file; a mono waveform ``[n]``, or
            ``(waveform, rate)`` with a rate in Hz, or a dict with ``array`` and ``sampling_rate``,
            floating point in [-1, 1] or integers of full scale; False or None for silence.
        sampling_rate: Hz of a waveform that says none; default: 16 kHz.
        sampling: of the video; only the sound between its ``start`` and ``end`` is returned.

    Raises:
        InputError: a file without sound that can be decoded, or an array of another kind.
    """
    if sound is None or sound is False:
        return None
    if not config.audio_config:
        logger.warning("this model has no audio encoder; the sound is not used")
        return None
    start, end = sampling.start, sampling.end
    with opened(sound, "audio") as found:
        if isinstance(found, MediaFile):
            rate, channel = SAMPLE_RATE, config.audio_channel
            return read_audio(found, sample_rate=rate, channel=channel, start=start, end=end)
    sound, rate = _with_rate(sound, SAMPLE_RATE if sampling_rate is None else sampling_rate)
    waveform = finite(_as_waveform(sound), "audio")
    waveform = waveform if rate == SAMPLE_RATE else resample(waveform, rate, SAMPLE_RATE)
    first, last = (None if t is None else round(t * SAMPLE_RATE) for t in (start, end))
    return waveform[first:last]


def _from_file(
    config: TDCConfig,
    video: MediaFile,
    sampling: VideoSampling,
    budget: Callable[[tuple[int, int]], int],
    progress: Progress | None,
) -> Medium:
    info = video.info
    start, end = sampling.start or 0.0, min(info.duration, sampling.end or math.inf)
    limit, fps = budget((info.width, info.height)), sampling.fps or config.fps
    asked = sampling.num_frames
    if asked is not None and end > start:
        fps = min(asked, limit) / (end - start)
    decoded = read_video(
        video,
        fps=fps,
        max_frames=limit,
        start=sampling.start,
        end=sampling.end,
        max_side=_max_side(info, min(limit, math.ceil(max(0.0, end - start) * fps))),
        progress=progress,
    )
    times = decoded.timestamps.tolist()
    instants = max(len(times), math.ceil((end - start) * fps - 0.01))
    _say_left_out(len(times), instants, fps, asked)
    size = (info.width, info.height)
    return Medium(decoded.frames, size, times, instants, True, span=(start, max(end, times[-1])))


def _from_frames(
    config: TDCConfig,
    video: Any,
    sampling: VideoSampling,
    budget: Callable[[tuple[int, int]], int],
) -> Medium:
    fps = sampling.fps or config.fps
    if isinstance(video, Video):
        if sampling.fps is not None:
            raise InputError("fps: this video's frames have times already; leave it out")
        frames, times = rgb(video.frames, "video"), video.timestamps.tolist()
    else:
        pictures = isinstance(video, (list, tuple)) and not np.isscalar(_innermost(video))
        frames = stacked(video) if pictures else rgb(video, "video")
        times = [i / fps for i in range(len(frames))]
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    start, end = sampling.start or 0.0, min(times[-1] + step, sampling.end or math.inf)
    inside = [i for i, time in enumerate(times) if start - 1e-6 <= time < end - 1e-6]
    if not inside:
        raise InputError(f"start: got {start:g} s, but no frame lies between it and {end:g} s")
    limit, asked = budget((frames.shape[2], frames.shape[1])), sampling.num_frames
    if asked is None:
        keep = [inside[i] for i in sample_indices(len(inside), limit)]
    else:
        count = min(asked, limit)
        keep = [inside[int(len(inside) / count * i)] for i in range(count)]
    instants = len(keep) if asked is not None else len(inside)
    _say_left_out(len(keep), instants, fps, asked)
    size = (frames.shape[2], frames.shape[1])
    span = (start, max(end, times[keep[-1]]))
    return Medium(frames[keep], size, [times[i] for i in keep], instants, True, span=span)


def _innermost(value: Any) -> Any:
    """The first number, text or array that nested lists hold."""
    for _ in range(5):
        if not isinstance(value, (list, tuple)) or not value:
            break
        value = value[0]
    return value if not isinstance(value, (str, bytes)) else None


def _say_left_out(taken: int, instants: int, fps: float, asked: int | None) -> None:
    if asked is not None and taken < asked:
        logger.warning("num_frames is %d; %d evenly spaced frames fit the budget", asked, taken)
    elif taken < instants:
        logger.warning(
            "the video has %d frames at %g per second; %d evenly spaced ones fit the budget",
            instants,
            fps,
            taken,
        )


def _own_sound(config: TDCConfig, video: MediaFile, sampling: VideoSampling) -> np.ndarray | bool:
    """The sound of a video whose pictures are wanted whatever its sound is; False for silence."""
    try:
        return read_audio(
            video,
            sample_rate=SAMPLE_RATE,
            channel=config.audio_channel,
            start=sampling.start,
            end=sampling.end,
        )
    except InputError as error:
        logger.warning("%s; the video is taken as silent", error)
        return False


def _with_rate(sound: Any, rate: Any) -> tuple[Any, int]:
    """A waveform and its rate in Hz, which may stand beside it."""
    if isinstance(sound, Mapping) and {"array", "sampling_rate"} <= sound.keys():
        sound = (sound["array"], sound["sampling_rate"])
    pair = isinstance(sound, tuple) and len(sound) == 2
    if pair and any(isinstance(x, (np.ndarray, torch.Tensor, list)) for x in sound):
        sound, rate = sound
    number = isinstance(rate, (int, float, np.integer, np.floating))
    if not number or not 1 <= rate <= _MOST_RATE or not float(rate).is_integer():
        array = isinstance(rate, (np.ndarray, torch.Tensor))
        raise InputError(
            f"audio: got a rate of {type(rate).__name__} "
            f"{list(rate.shape) if array else shown(rate)}; expected (waveform, rate) with a "
            f"whole number of Hz"
        )
    return sound, int(rate)


def _as_waveform(sound: Any) -> np.ndarray:
    """fp32 ``[n]``, integers scaled to [-1, 1)."""
    array = as_array(sound, "audio")
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
        "media_spans": torch.tensor([m.span for m in media], dtype=torch.float64),
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
