# SPDX-License-Identifier: Apache-2.0
"""Video file -> frames at given times.

Sampling follows presentation time stamps, never frame counts: at time t it takes the frame a player
would be showing then. The released code takes every round(fps)-th frame instead, which drifts on
fractional and variable frame rates (29.97 fps: one frame in 1000 s).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError
from . import pyav as av
from .container import check_file, check_range, open_media, require_video
from .media_file import MediaFile, VideoInfo
from .orientation import orientation
from .packets import FrameReader, LateStart, PacketIndex
from .sampling import sample_indices

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Video:
    """Sampled frames of a video file.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB, upright (rotation metadata applied, pixels as stored: a
            pixel aspect ratio other than 1 is not applied).
        timestamps: float64 [T], seconds from the start of the video at which each frame is shown.
        duration: length of the whole video in seconds, as far as the file reaches.
        source_fps: average frame rate of the file.
        warnings: what a user should know, one line each; also sent to the log.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    duration: float
    source_fps: float
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright frames."""
        return self.frames.shape[2], self.frames.shape[1]


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Describe a video from its packets; only the first picture is decoded, for its rotation.

    Raises `InputError` like `read_video`.
    """
    return MediaFile.of(path).info


@av.frees_on_error
def read_video(
    path: str | os.PathLike[str],
    *,
    fps: float = 1.0,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_side: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Video:
    """Read the frames shown at `start`, `start + 1/fps`, … before `end`.

    Args:
        path: a local file in any format of PyAV's FFmpeg (MP4, MKV, WebM, TS, AVI, GIF, …). A
            `MediaFile` that has read its packets already is not scanned again.
        fps: samples per second of video; may exceed the file's rate (frames then repeat).
        max_frames: keep at most this many, chosen as the release does (its frame budget): of L
            samples those with index int(L / max_frames * i). Only these are decoded.
        start, end: seconds from the start of the video; default the whole video.
        max_side: scale frames down while converting until no side is longer (pixels).
        progress: called as progress(done, total) after every sample.

    Memory: T·H·W·3 bytes for the result (224 frames of 1920x1080: 1.4 GB; with `max_side=512`
    99 MB) plus the decoder's own few frames.

    Raises:
        InputError: no such file, a directory, not a video, no video track, no frames, an argument
            out of range. A file cut off in the middle gives what it holds and a warning; so does
            one with damaged packets, pictures that nothing leads to, or a clock that jumps. A bare
            stream without time stamps (H.264, HEVC) is read at its nominal rate, with a warning.
    """
    _check_arguments(fps, max_frames, start, end, max_side)
    index = MediaFile.of(path).index
    times = _sample_times(path, index, fps, start, end)
    if max_frames is not None:
        times = times[sample_indices(len(times), max_frames)]
    try:
        canvas, damaged = _paint(path, index, times, max_side, progress)
    except LateStart:
        canvas, damaged = _paint(path, index.with_one_key(), times, max_side, progress)
    if canvas.pixels is None:
        raise InputError(f"no frames: no picture of {path} can be decoded")
    asked = math.inf if end is None else end
    warnings = tuple(_warnings(path, index, asked, damaged))
    for warning in warnings:
        logger.warning("%s", warning)
    return Video(canvas.pixels, times, index.duration, index.rate, warnings)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a still as uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

    Raises `InputError` if there is no such file or it is not an image.
    """
    name = os.fspath(path)
    check_file(name, "an image")
    try:
        with open(name, "rb") as file, Image.open(file) as image:  # Pillow 10 resolves links
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.DecompressionBombError:
        raise InputError(f"{name} is too large an image to open safely") from None
    except (OSError, SyntaxError) as error:  # Pillow reports a broken PNG as SyntaxError
        raise InputError(f"not an image that can be read: {name} ({error})") from None


def _check_arguments(
    fps: float,
    max_frames: int | None,
    start: float | None,
    end: float | None,
    max_side: int | None,
) -> None:
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps: got {fps}, expected a number above 0")
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames: got {max_frames}, expected at least 1")
    if max_side is not None and max_side < 1:
        raise InputError(f"max_side: got {max_side}, expected at least 1")
    check_range(start, end)


def _sample_times(
    path: str | os.PathLike[str],
    index: PacketIndex,
    fps: float,
    start: float | None,
    end: float | None,
) -> np.ndarray:
    """Times [L] in seconds from the start of the video: start + k/fps before the end."""
    first = start or 0.0
    last = min(index.duration, math.inf if end is None else end)
    # 24.000001 s of video at 1 fps are 24 samples, not 25.
    count = math.ceil((last - first - index.slack) * fps - 1e-9)
    if first > 0 and count < 1:
        raise InputError(f"start: got {first} s, but {path} is {index.duration:.2f} s long")
    return first + np.arange(max(count, 1)) / fps


def _paint(
    path: str | os.PathLike[str],
    index: PacketIndex,
    times: np.ndarray,
    max_side: int | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[_Canvas, int]:
    """The frames at `times` (s), and how many packets the decoder refused."""
    # Opened again for the second pass: not every format can be rewound.
    with open_media(path) as container:
        reader = FrameReader(container, require_video(container, path), index)
        canvas = _Canvas(len(times), max_side)
        for frame in reader.shown_at(index.start + times / index.tick):
            canvas.put(frame)
            if progress is not None:
                progress(canvas.done, canvas.count)
    return canvas, reader.damaged


class _Canvas:
    """Converts frames to upright RGB and keeps them in one array [T, H, W, 3]."""

    def __init__(self, count: int, max_side: int | None) -> None:
        self.count, self.max_side = count, max_side
        self.pixels: np.ndarray | None = None
        self.done = 0
        self._last: Any = None
        self._scaler = av.Scaler()

    def put(self, frame: Any) -> None:
        if frame is self._last and self.pixels is not None:
            self.pixels[self.done] = self.pixels[self.done - 1]
        else:
            picture = self._convert(frame)
            if self.pixels is None:
                self.pixels = self._blank(picture.shape)
            self.pixels[self.done] = picture
        self._last = frame
        self.done += 1

    def _blank(self, shape: tuple[int, ...]) -> np.ndarray:
        try:
            return np.empty((self.count, *shape), dtype=np.uint8)
        except MemoryError:
            height, width, _ = shape
            size = f"{self.count} frames of {width}x{height}"
            raise InputError(f"{size} do not fit into memory; set max_frames or max_side") from None

    def _convert(self, frame: Any) -> np.ndarray:
        turn = orientation(frame)
        if self.pixels is not None:  # a stream may change its size: the first frame decides
            height, width = self.pixels.shape[1:3]
            width, height = (height, width) if turn.transpose else (width, height)
        else:
            side = max(frame.width, frame.height)
            scale = min(1.0, (self.max_side or side) / side)
            width, height = (max(1, round(n * scale)) for n in (frame.width, frame.height))
        return turn.apply(self._scaler.rgb(frame, width, height))


def _warnings(
    path: str | os.PathLike[str], index: PacketIndex, last: float, damaged: int
) -> Iterator[str]:
    """What to tell the user; `last` is the end of the range that was asked for, in seconds."""
    if index.missing and last > index.duration:
        length = index.duration + index.missing
        yield f"{path} is cut off: it holds {index.duration:.1f} s of {length:.1f} s"
    # The last packet of a file that is cut off is damaged too, and said already.
    limit = min(index.end, index.start + last / index.tick)
    damaged += int((index.lost < limit).sum())
    if damaged:
        yield f"{path}: {damaged} damaged packets were skipped"
    marked = int((index.marked < limit).sum())
    if marked:
        yield f"{path}: data is missing in {marked} places; pictures after them may be wrong"
    for note in index.notes:
        yield f"{path}: {note}"
