# SPDX-License-Identifier: Apache-2.0
"""Opening media files, choosing their tracks, and their clock."""

from __future__ import annotations

import errno
import math
import os
import re
from typing import Any

from ..errors import InputError, shown
from . import pyav as av

# What a path may be opened as: containers and raw streams that hold all they show. FFmpeg's other
# demuxers open what a file names (playlists, sessions), take any text for a film of a terminal, or
# read devices and the network. The last line is stills, opened to be refused by their names.
_FORMATS = (
    "mov,mp4,matroska,webm,mpegts,mpeg,avi,flv,live_flv,ogg,asf,rm,nut,mxf,gxf,dv,wtv,ivf,nsv,nuv,"
    "swf,gif,apng,jpegxl_anim,yuv4mpegpipe,flic,smk,bink,roq,"
    "h261,h263,h264,hevc,vvc,av1,obu,evc,m4v,mpegvideo,vc1,dirac,avs2,avs3,cavsvideo,mjpeg,dnxhd,"
    "wav,w64,aiff,au,caf,voc,flac,mp3,aac,ac3,ac4,eac3,amr,amrnb,amrwb,ape,dts,dtshd,mlp,truehd,"
    "loas,mpc,mpc8,oma,qcp,shn,tak,tta,wv,dsf,iff,gsm,xwma,"
    "png_pipe,jpeg_pipe,jpegls_pipe,jpegxl_pipe,j2k_pipe,webp_pipe,bmp_pipe,tiff_pipe,gif_pipe"
)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# How playlists and session descriptions begin, after blanks and in small letters.
_PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"v=0")
_XML_PLAYLISTS = (b"<mpd", b"<playlist", b"<smoothstreamingmedia", b"<assetmap", b"<asx", b"<smil")


def open_media(path: str | os.PathLike[str], kind: str = "video") -> Any:
    """Open a local media file, and no other that it may name; returns PyAV's input container.

    `kind` ("video" or "audio") is the word the messages use for what was expected. Raises
    `InputError` for a missing file, a directory, a pipe or device, an empty or unreadable file, an
    image, a text, a playlist, and for an MP4 whose index is missing because its end was cut off.
    """
    name = os.fspath(path)
    wanted = "a video" if kind == "video" else "an audio or video file"
    check_file(name, wanted)
    if os.path.getsize(name) == 0:
        raise InputError(f"not {wanted}: {name} is empty (0 bytes)")
    try:
        # "file:" keeps FFmpeg from reading a name such as "a:b.mp4" as a network protocol.
        container = av.open_input(
            f"file:{name}", {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        )
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(_why_not_opened(name, wanted, error)) from None
    if container.format.name.endswith("_pipe"):
        codecs = {s.codec_context.name for s in container.streams if s.codec_context is not None}
        container.close()
        raise InputError(f"not {wanted}: {name} is an image ({', '.join(sorted(codecs))})")
    return container


def check_file(name: str, wanted: str) -> None:
    """Raise `InputError` for what is no file: a directory, a pipe, a device, or nothing at all."""
    if os.path.isdir(name):
        raise InputError(f"{name} is a directory, expected {wanted}")
    if not os.path.exists(name):
        check_address(name)
        raise InputError(f"no such file: {name}")
    if not os.path.isfile(name):  # opening a pipe would wait for a writer
        raise InputError(f"{name} is a pipe or a device, expected a file")


def check_address(name: str) -> None:
    """Raise `InputError` if `name` is an address on a network and no file."""
    scheme = _SCHEME.match(name)
    if scheme and not os.path.exists(name):
        raise InputError(
            f"{shown(name)}: this library fetches nothing by {scheme[1].lower()}; download it and "
            "give the file"
        )


def _why_not_opened(name: str, wanted: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"cannot read {name}: permission denied"
    if isinstance(error, av.error.EOFError):
        return f"no frames: {name} ends before its first picture or sound"
    # A format that is not among _FORMATS is an invalid argument to FFmpeg.
    if isinstance(error, av.error.InvalidDataError) or error.errno == errno.EINVAL:
        with open(name, "rb") as file:
            head = file.read(4096)
        if head[4:8] in (b"ftyp", b"moov", b"mdat"):
            return (
                f"not {wanted} that can be read: {name} was cut off, its index (the moov box at "
                "the end of an MP4) is missing; copy or download it again"
            )
        if _is_playlist(head):
            return f"not {wanted}: {name} is a playlist; give the file that it names"
        if _is_text(head):
            return f"not {wanted}: {name} is a text"
        return f"not {wanted}: no known media format in {name} (expected e.g. MP4, MKV or WebM)"
    reason = getattr(error, "strerror", None) or error
    return f"cannot read {name}: {reason}"


def _is_playlist(head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    xml = start.startswith(b"<") and any(tag in start for tag in _XML_PLAYLISTS)
    return xml or start.startswith(_PLAYLISTS)


def _is_text(head: bytes) -> bool:
    """Whether the first bytes are UTF-8 without control characters; the last letter may be cut."""
    text = head.decode("utf-8", errors="ignore")
    whole = len(text.encode()) >= len(head) - 3
    return whole and all(letter.isprintable() or letter in "\t\r\n\f\x1b" for letter in text)


def video_streams(container: Any) -> list[Any]:
    """The file's video streams; a cover picture of a music file is no video."""
    cover = av.stream.Disposition.attached_pic
    return [s for s in container.streams.video if not s.disposition & cover]


def video_stream(container: Any) -> Any:
    """The file's main video stream or None."""
    moving, best = video_streams(container), container.streams.best("video")
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


def audio_streams(container: Any) -> list[Any]:
    """The file's audio streams: those with a decoder first, then the one FFmpeg calls the best."""
    best = container.streams.best("audio")
    return sorted(container.streams.audio, key=lambda s: (s.codec_context is None, s != best))


def stream_start(container: Any, stream: Any) -> float:
    """Time stamp (s) of the stream's first moment; 0 of the clock all results are given in."""
    if stream.start_time is not None:
        return float(stream.start_time * stream.time_base)
    return (container.start_time or 0) / av.time_base


def states_tracks(container: Any) -> bool:
    """Whether the header states the length of each track, not just that of the longest one."""
    longest = container.format.name in ("flv", "live_flv", "asf", "rm", "wtv")
    return not longest or len(container.streams) == 1


def declared_end(container: Any, stream: Any, start: float) -> float | None:
    """Time stamp (s) at which the stream that begins at `start` ends according to the header.

    None if it does not say.
    """
    # Matroska keeps the end of each track, counted from 0, in a tag "00:01:02.345000000".
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    # These have no header that says so: FFmpeg estimates from the last time stamp or the bit rate.
    flags = av.format.Flags
    if container.format.flags & (flags.ts_discont.value | flags.no_timestamps.value):
        return None
    if stream.type == "audio" and container.streams.video and not states_tracks(container):
        return None
    if stream.duration is not None and stream.duration > 0:
        length = float(stream.duration * stream.time_base)
        # An edit list that begins with a pause is counted from 0, an MP4 without one from `start`;
        # AVI counts all from 0.
        pause = container.format.name.startswith("mov") and length > start
        return length if pause or container.format.name == "avi" else start + length
    if container.duration and (len(container.streams) == 1 or not states_tracks(container)):
        return container.duration / av.time_base
    return None


def check_range(start: float | None, end: float | None) -> None:
    """Raise `InputError` unless 0 <= start < end (seconds; None means unbounded)."""
    if start is not None and not (math.isfinite(start) and start >= 0):
        raise InputError(f"start: got {start} s, expected 0 or more")
    if end is not None and not end > (start or 0.0):
        raise InputError(f"end: got {end} s, expected more than start ({start or 0.0} s)")
