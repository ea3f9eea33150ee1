# SPDX-License-Identifier: Apache-2.0
"""A media file whose packets are read once, whatever is asked of it afterwards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from . import pyav as av
from .container import audio_streams, open_media, require_video
from .orientation import orientation
from .packets import PacketIndex, scan_video


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds: seconds, frames per second, upright pixels, degrees, codecs."""

    duration: float
    fps: float
    width: int
    height: int
    rotation: int  # counter-clockwise degrees that make the stored picture upright: 0, 90, 180, 270
    has_audio: bool
    video_codec: str
    audio_codec: str | None  # None also if FFmpeg has no decoder for it


class MediaFile(os.PathLike[str]):
    """A path that remembers what the packets of its video said.

    It goes wherever a path goes (`read_video`, `read_audio`, the processor's `videos`), and all of
    them share one scan. The scan waits until it is needed, and is repeated if the file has changed
    since (size, time of modification or inode). No handle stays open in between, so that an
    instance can be kept, copied, pickled and sent to a worker.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._state: tuple[int, ...] | None = None  # of the file when it was scanned
        self._found: tuple[PacketIndex, VideoInfo]

    @classmethod
    def of(cls, source: Any) -> Any:
        """A path as a `MediaFile`; what is one already, or no path (arrays), stays as it is."""
        is_path = isinstance(source, (str, os.PathLike)) and not isinstance(source, cls)
        return cls(source) if is_path else source

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"MediaFile({self.path!r})"

    def scan(self) -> MediaFile:
        """Read the packets unless that has been done since the file last changed; returns itself.

        Raises `InputError` if the file is no video with frames.
        """
        state = _state(self.path)
        if state is None or state != self._state:
            self._found, self._state = _scan(self.path), state
        return self

    @property
    def index(self) -> PacketIndex:
        """Time stamps of all frames. Raises `InputError` like `scan`."""
        return self.scan()._found[0]

    @property
    def info(self) -> VideoInfo:
        """Description of the video. Raises `InputError` like `scan`."""
        return self.scan()._found[1]

    @property
    def duration(self) -> float:
        """Seconds of video, as far as the file reaches. Raises `InputError` like `scan`."""
        return self.index.duration


def _state(path: str) -> tuple[int, ...] | None:
    """What changes when a file is written to or replaced; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a name with a NUL is none
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@av.frees_on_error
def _scan(path: str) -> tuple[PacketIndex, VideoInfo]:
    with open_media(path) as container:
        stream, sounds = require_video(container, path), audio_streams(container)
        sound = sounds[0].codec_context if sounds else None
        index, frame = scan_video(container, stream, path)
        flat = not orientation(frame).transpose
        return index, VideoInfo(
            duration=index.duration,
            fps=index.rate,
            width=frame.width if flat else frame.height,
            height=frame.height if flat else frame.width,
            rotation=frame.rotation % 360,
            has_audio=bool(sounds),
            video_codec=stream.codec_context.codec.canonical_name,
            audio_codec=None if sound is None else sound.codec.canonical_name,
        )
