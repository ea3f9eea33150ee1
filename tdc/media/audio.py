# SPDX-License-Identifier: Apache-2.0
"""Sound of a video or audio file -> one mono waveform on the video's clock."""

from __future__ import annotations

import logging
import math
import os
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from . import pyav as av
from .container import (
    audio_stream,
    check_range,
    declared_end,
    open_media,
    stream_start,
    video_stream,
)
from .packets import CUT_OFF, decode, whole_packets

logger = logging.getLogger(__name__)

# Time stamps of sound jitter by up to a frame (1024 samples, 23 ms; Matroska rounds to 1 ms). Only
# a larger jump is a hole (or an overlap) in the recording and moves what follows.
_JUMP = 0.1


def has_audio(path: str | os.PathLike[str]) -> bool:
    """Whether the file has an audio track. Raises `InputError` if it is no media file."""
    with open_media(path, "audio") as container:
        return audio_stream(container) is not None


def read_audio(
    path: str | os.PathLike[str],
    *,
    sample_rate: int = 16000,
    channel: Literal["mix", "first"] = "mix",
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Read a file's sound as float32 [n] in [-1, 1]; sample i is heard at start + i/sample_rate.

    Time 0 is the start of the file's video, or of the sound where there is no video: a track that
    begins later is preceded by silence, one that begins earlier is cut, a hole is filled with
    silence. n ends with the track (or at `end`), it is not padded to the video's length.

    Args:
        path: a local video or audio file.
        sample_rate: Hz of the result (BEATs: 16000).
        channel: "mix" averages the channels down to mono; "first" takes the first one, as the
            released code does.
        start, end: seconds from time 0; default everything.

    Memory: 4 bytes a sample, twice while joining (an hour at 16 kHz: 2 x 230 MB).

    Raises:
        InputError: no such file, not a media file, no audio track, nothing decodes, an argument out
            of range. A track cut off in the middle gives what it holds and a logged warning.
    """
    if sample_rate < 1:
        raise InputError(f"sample_rate: got {sample_rate}, expected Hz above 0")
    if channel not in ("mix", "first"):
        raise InputError(f'channel: got {channel!r}, expected "mix" or "first"')
    check_range(start, end)
    with open_media(path, "audio") as container:
        stream = audio_stream(container)
        if stream is None:
            raise InputError(f"{os.fspath(path)} has no audio track")
        if stream.codec_context is None:
            raise InputError(f"cannot read {path}: this FFmpeg has no decoder for its audio codec")
        picture = video_stream(container)
        zero = stream_start(container, stream if picture is None else picture)
        track = _Track(sample_rate, channel, zero)
        stop = math.inf if end is None else zero + end
        track.read(container, stream, stop)
        declared = declared_end(container, stream)
    if track.heard is None:
        raise InputError(f"cannot read {path}: nothing of its audio track can be decoded")
    if declared is not None and track.heard < min(declared, stop) - CUT_OFF:
        logger.warning(
            "%s: the sound is cut off: it ends at %.1f s of %.1f s",
            os.fspath(path),
            track.heard - zero,
            declared - zero,
        )
    if track.damaged:
        logger.warning("%s: %d damaged audio packets were skipped", os.fspath(path), track.damaged)
    return track.waveform(start or 0.0, end)


class _Track:
    """Collects decoded sound as pieces, each with the output sample it starts at."""

    def __init__(self, sample_rate: int, channel: str, zero: float) -> None:
        self.sample_rate, self.channel, self.zero = sample_rate, channel, zero
        self.heard: float | None = None  # time stamp (s) up to which sound was decoded
        self.damaged = 0
        self._pieces: list[tuple[int, list[np.ndarray]]] = []
        self._resampler: av.AudioResampler | None = None
        self._form: tuple[Any, ...] = ()

    def read(self, container: Any, stream: Any, stop: float) -> None:
        """Decode from the beginning up to time stamp `stop` (s).

        Without seeking: after a seek, MP3 and others know their position only roughly, and sound
        decodes at hundreds of times real time.
        """
        for packet in whole_packets(container, stream):
            for frame in self._decode(stream, packet):
                self._add(frame, float(stream.time_base))
            # A little more than asked for, so that the resampler's filter sees real samples.
            if self.heard is not None and self.heard >= stop + _JUMP:
                break
        else:
            for frame in self._decode(stream, None):
                self._add(frame, float(stream.time_base))
        self._resample(None)

    def waveform(self, start: float, end: float | None) -> np.ndarray:
        """Samples of [start, end) in seconds from time 0, as far as the track reaches."""
        pieces = [(first, np.concatenate(parts)) for first, parts in self._pieces if parts]
        total = max((first + len(piece) for first, piece in pieces), default=0)
        first = round(start * self.sample_rate)
        last = total if end is None else min(total, round(end * self.sample_rate))
        wave = np.zeros(max(0, last - first), dtype=np.float32)
        for position, piece in pieces:
            skip = max(0, first - position)
            at = max(0, position - first)
            part = piece[skip : skip + max(0, len(wave) - at)]
            wave[at : at + len(part)] = part
        return np.clip(wave, -1.0, 1.0, out=wave)  # the filter overshoots at steps

    def _decode(self, stream: Any, packet: Any) -> list[Any]:
        frames = decode(stream, packet)
        self.damaged += frames is None
        return frames or []

    def _add(self, frame: Any, tick: float) -> None:
        time = self.heard if frame.pts is None else frame.pts * tick
        if time is None:
            time = self.zero
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self.heard is None or form != self._form or abs(time - self.heard) > _JUMP:
            self._resample(None)
            self._form = form
            self._resampler = av.AudioResampler(
                format="fltp",
                layout="mono" if self.channel == "mix" else frame.layout,
                rate=self.sample_rate,
                # Without a limit, float stereo is summed at 0.7 + 0.7: loud passages would clip.
                options={"rematrix_maxval": "1.0"},
            )
            self._pieces.append((round((time - self.zero) * self.sample_rate), []))
            self.heard = time
        frame.pts = None  # the pieces keep the time
        self._resample(frame)
        self.heard += frame.samples / frame.sample_rate

    def _resample(self, frame: Any) -> None:
        """Push a frame through; None empties the resampler, which ends the piece."""
        if self._resampler is None:
            return
        for out in self._resampler.resample(frame):
            if out is not None and out.samples:
                self._pieces[-1][1].append(out.to_ndarray()[0].copy())
        if frame is None:
            self._resampler = None
