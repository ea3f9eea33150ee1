# SPDX-License-Identifier: Apache-2.0
"""Opening media files, choosing their tracks, and their clock."""

from __future__ import annotations

import math
import os
import re
from typing import Any

from ..errors import InputError
from . import pyav as av

# FFmpeg's text-art decoders: it takes any .txt file for a film of a terminal.
_TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})


def open_media(path: str | os.PathLike[str], kind: str = "video") -> Any:
    """Open a local media file and return PyAV's input container.

    `kind` ("video" or "audio") is the word the messages use for what was expected. Raises
    `InputError` for a missing file, a directory, an empty or unreadable file, an image, a text,
    and for an MP4 whose index is missing because its end was cut off.
    """
    name = os.fspath(path)
    wanted = "a video" if kind == "video" else "an audio or video file"
    check_file(name, wanted)
    if os.path.isfile(name) and os.path.getsize(name) == 0:
        raise InputError(f"not {wanted}: {name} is empty (0 bytes)")
    try:
        # "file:" keeps FFmpeg from reading a name such as "a:b.mp4" as a network protocol.
        container: Any = av.open(f"file:{name}", metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(_why_not_opened(name, wanted, error)) from None
    codecs = {s.codec_context.name for s in container.streams if s.codec_context is not None}
    image = container.format.name.endswith("_pipe") or container.format.name == "image2"
    if image or codecs & _TEXT_CODECS:
        container.close()
        what = f"an image ({', '.join(sorted(codecs))})" if image else "a text"
        raise InputError(f"not {wanted}: {name} is {what}")
    return container


def check_file(name: str, wanted: str) -> None:
    """Raise `InputError` for a directory, and where there is nothing."""
    if os.path.isdir(name):
        raise InputError(f"{name} is a directory, expected {wanted}")
    if not os.path.exists(name):
        raise InputError(f"no such file: {name}")


def _why_not_opened(name: str, wanted: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"cannot read {name}: permission denied"
    if isinstance(error, av.error.EOFError):
        return f"no frames: {name} ends before its first picture or sound"
    if isinstance(error, av.error.InvalidDataError):
        with open(name, "rb") as file:
            head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat"):
            return (
                f"not {wanted} that can be read: {name} was cut off, its index (the moov box at "
                "the end of an MP4) is missing; copy or download it again"
            )
        return f"not {wanted}: no known media format in {name} (expected e.g. MP4, MKV or WebM)"
    reason = getattr(error, "strerror", None) or error
    return f"cannot read {name}: {reason}"


def video_stream(container: Any) -> Any:
    """The file's main video stream or None; a cover picture of a music file is no video."""
    cover = av.stream.Disposition.attached_pic
    moving = [s for s in container.streams.video if not s.disposition & cover]
    best = container.streams.best("video")
    return best if best in moving else next(iter(moving), None)


def require_video(container: Any, path: str | os.PathLike[str]) -> Any:
    """The file's main video stream, ready to decode; `InputError` if there is none."""
    stream = video_stream(container)
    if stream is None:
        kind = "sound only" if container.streams.audio else "no pictures"
        raise InputError(f"no video track in {path}: it holds {kind}")
    if stream.codec_context is None:
        raise InputError(f"cannot read {path}: this FFmpeg has no decoder for its video codec")
    # Frame threads where the codec has them, slices elsewhere; FFmpeg picks the number.
    stream.thread_type = "AUTO"
    return stream


def audio_stream(container: Any) -> Any:
    """The file's main audio stream or None."""
    return container.streams.best("audio")


def stream_start(container: Any, stream: Any) -> float:
    """Time stamp (s) of the stream's first moment; 0 of the clock all results are given in."""
    if stream.start_time is not None:
        return float(stream.start_time * stream.time_base)
    return (container.start_time or 0) / av.time_base


def declared_end(container: Any, stream: Any) -> float | None:
    """Time stamp (s) at which the stream ends according to the header; None if it does not say."""
    if stream.duration is not None and stream.duration > 0:
        return stream_start(container, stream) + float(stream.duration * stream.time_base)
    # Matroska keeps the end of each track, counted from 0, in a tag "00:01:02.345000000".
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def check_range(start: float | None, end: float | None) -> None:
    """Raise `InputError` unless 0 <= start < end (seconds; None means unbounded)."""
    if start is not None and not (math.isfinite(start) and start >= 0):
        raise InputError(f"start: got {start} s, expected 0 or more")
    if end is not None and not end > (start or 0.0):
        raise InputError(f"end: got {end} s, expected more than start ({start or 0.0} s)")
