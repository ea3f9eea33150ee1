# SPDX-License-Identifier: Apache-2.0
"""A demonstration clip with a known truth: painted scenes, hard cuts, a sound for every scene.

It goes through a real encoder (H.264 + AAC in MP4), so that `tdc demo` and the tests see what a
user's file brings: colour subsampling, keyframes, B-frames, audio priming.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tdc import _pyav as av
from tdc._media import whole_file
from tdc._scenes import SCENES, Scene
from tdc.errors import InputError

logger = logging.getLogger(__name__)

AUDIO_RATE = 44100  # Hz, what phones and cameras write; reading resamples it
_SCENE_SECONDS = 4  # average length of a scene
_ZOOM = 2  # painted twice as large and averaged down: smooth edges


@dataclass(frozen=True)
class DemoClip:
    """What was written: the truth to compare a segmentation with.

    `scene_starts` are seconds (the first is 0, the cuts lie at half seconds, so a sample per second
    falls clearly on one side); `scenes` says what each scene shows and sounds like.
    """

    path: Path
    seconds: float
    size: tuple[int, int]
    fps: int
    scene_starts: tuple[float, ...]
    scenes: tuple[str, ...]
    video_codec: str
    audio_codec: str


def write_demo_clip(
    path: str | os.PathLike[str],
    *,
    seconds: float = 24,
    size: tuple[int, int] = (320, 240),
    fps: int = 15,
    seed: int = 0,
) -> DemoClip:
    """Paint, encode and write the clip as MP4; the file appears whole or not at all.

    Args:
        path: where to write; an existing file is replaced.
        seconds: length; there is about one scene per four seconds.
        size: (width, height) in pixels, both even (4:2:0 colour), at least 32.
        fps: frames per second, 1 to 60.
        seed: moves the cuts, the colours' grain and what is painted at random.

    The video codec is H.264 where FFmpeg has libx264, otherwise MPEG-4 Part 2; `DemoClip` says
    which. Raises `InputError` for arguments out of range or a folder that cannot be written.
    """
    width, height = size
    if min(size) < 32 or width % 2 or height % 2:
        raise InputError(f"size: got {width}x{height}, expected even numbers, at least 32")
    if not 1 <= fps <= 60:
        raise InputError(f"fps: got {fps}, expected 1 to 60")
    if not (math.isfinite(seconds) and seconds * fps >= 1):
        raise InputError(f"seconds: got {seconds}, expected at least one frame (1/{fps} s)")
    rng = np.random.default_rng(seed)
    starts = _cuts(seconds, rng)
    scenes = [SCENES[i % len(SCENES)] for i in range(len(starts))]
    spans = list(zip(starts, (*starts[1:], seconds), strict=True))
    sound = np.concatenate(
        [_sound(scene, *span, rng) for scene, span in zip(scenes, spans, strict=True)], axis=1
    )
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with whole_file(path) as temporary:
        _encode(temporary, codec, _pictures(scenes, spans, size, fps, rng), size, fps, sound)
    again = " (other colours)"
    texts = tuple(s.text + again * (i >= len(SCENES)) for i, s in enumerate(scenes))
    video_codec = "H.264" if codec == "libx264" else "MPEG-4 Part 2 (no libx264 in this FFmpeg)"
    logger.info("wrote %s: %d scenes, %s + AAC", os.fspath(path), len(starts), video_codec)
    return DemoClip(Path(path), seconds, size, fps, starts, texts, video_codec, "AAC")


def _cuts(seconds: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Scene starts: 0 and then half seconds, about `_SCENE_SECONDS` apart, none shorter than 2."""
    count = max(1, round(seconds / _SCENE_SECONDS))
    even = np.arange(1, count) * (seconds / count)
    shift = rng.integers(-1, 2, size=len(even)) if seconds / count >= 4 else 0
    return (0.0, *(float(math.floor(t) + 0.5) for t in even + shift))


def _pictures(
    scenes: list[Scene],
    spans: list[tuple[float, float]],
    size: tuple[int, int],
    fps: int,
    rng: np.random.Generator,
) -> Iterator[Image.Image]:
    """All frames in order; frame k is the picture at k/fps seconds."""
    width, height = size[0] * _ZOOM, size[1] * _ZOOM
    number = 0
    for i, (scene, (start, end)) in enumerate(zip(scenes, spans, strict=True)):
        backdrop, paint = scene.painter(width, height, rng)
        grain = rng.normal(0, 3, backdrop.shape)  # texture, as a camera gives
        still = Image.fromarray(np.clip(backdrop + grain, 0, 255).astype(np.uint8))
        while number < end * fps:
            picture = still.copy()
            paint(ImageDraw.Draw(picture), number / fps - start)
            picture = picture.reduce(_ZOOM)
            if i >= len(SCENES):  # the second time round: blue for red, and so on
                red, green, blue = picture.split()
                picture = Image.merge("RGB", (blue, red, green))
            yield picture
            number += 1


def _sound(scene: Scene, start: float, end: float, rng: np.random.Generator) -> np.ndarray:
    """Stereo samples [2, n] of one scene; n adds up to the whole length over the scenes."""
    count = round(end * AUDIO_RATE) - round(start * AUDIO_RATE)
    mono = scene.sound(np.arange(count) / AUDIO_RATE, rng)
    edge = min(count // 2, AUDIO_RATE // 100)  # 10 ms fades: a cut without a click
    if edge:
        fade = np.linspace(0, 1, edge)
        mono[:edge] *= fade
        mono[-edge:] *= fade[::-1]
    return np.stack([mono, 0.8 * mono]).astype(np.float32)


def _encode(
    path: Path,
    codec: str,
    pictures: Iterator[Image.Image],
    size: tuple[int, int],
    fps: int,
    sound: np.ndarray,
) -> None:
    with av.open(str(path), "w", format="mp4") as out:
        # x264's macroblock tree reads memory it never wrote (its assembly; small pictures): with it
        # the same seed gave four different files in four runs.
        h264 = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}
        options = h264 if codec == "libx264" else {"b": "1500000"}
        video: Any = out.add_stream(codec, rate=fps, options=options)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.gop_size = 2 * fps
        audio: Any = out.add_stream("aac", rate=AUDIO_RATE, layout="stereo")
        heard = 0
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            out.mux(video.encode(frame))
            # Sound follows picture by picture, as players expect it in the file.
            until = min(sound.shape[1], (number + 1) * AUDIO_RATE // fps)
            _encode_sound(out, audio, sound[:, heard:until], heard)
            heard = until
        out.mux(video.encode())
        _encode_sound(out, audio, sound[:, heard:], heard)
        out.mux(audio.encode())


def _encode_sound(out: Any, stream: Any, samples: np.ndarray, first: int) -> None:
    if not samples.shape[1]:
        return
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples, dtype=np.float32), format="fltp", layout="stereo"
    )
    frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE, first, Fraction(1, AUDIO_RATE)
    out.mux(stream.encode(frame))
