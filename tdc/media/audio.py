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
    audio_streams,
    check_range,
    declared_end,
    open_media,
    stream_start,
    video_stream,
)
from .joints import Joint, StreamPackets
from .media_file import MediaFile
from .packets import CUT_OFF, decode

logger = logging.getLogger(__name__)

# Time stamps of sound jitter by up to a frame (1024 samples, 23 ms; Matroska rounds to 1 ms). Only
# a larger jump is a hole (or an overlap) in the recording and moves what follows.
_JUMP = 0.1

# A jump ahead by more (s) is damage: silence is not made of it.
_LONGEST_HOLE = 12 * 3600.0

# Hz. Less is damage, of which a few kB would become hours: whales are recorded at 200 and more.
_LOWEST_RATE = 100


@av.frees_on_error
def has_audio(path: str | os.PathLike[str]) -> bool:
    """Whether the file has an audio track, which need not be one that FFmpeg can decode.

    Raises `InputError` if it is no media file.
    """
    with open_media(path, "audio") as container:
        return bool(audio_streams(container))


@av.frees_on_error
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
    silence. n ends with the track (or at `end`), it is not padded to the video's length. Of several
    tracks the main one is read, or the next one if FFmpeg cannot decode it. Samples that are not
    finite become 0, with a logged warning; a track without a packet gives n = 0 and a warning.

    Args:
        path: a local video or audio file.
        sample_rate: Hz of the result (BEATs: 16000).
        channel: "mix" is the mean of all channels, whatever their places (of 5.1 also the low
            frequencies), before resampling; "first" takes the first one, as the released code does.
        start, end: seconds from time 0; default everything.

    Memory: 4 bytes a sample, twice while joining (an hour at 16 kHz: 2 x 230 MB).

    Raises:
        InputError: no such file, not a media file, no audio track, no track decodes, an argument
            out of range. A track cut off in the middle gives what it holds and a logged warning.
    """
    if sample_rate < 1:
        raise InputError(f"sample_rate: got {sample_rate}, expected Hz above 0")
    if channel not in ("mix", "first"):
        raise InputError(f'channel: got {channel!r}, expected "mix" or "first"')
    check_range(start, end)
    file, tried = MediaFile.of(path), 0
    name = str(file)
    while True:
        with open_media(path, "audio") as container:
            stream, left = _choose(container, name, tried)
            number = stream.index  # a closed container's streams are gone
            zero, joints = _clock(file, container, stream)
            declared = declared_end(container, stream, stream_start(container, stream))
            track = _Track(sample_rate, channel, zero)
            stop = math.inf if end is None else zero + end
            track.read(StreamPackets(container, stream, joints), stop)
        if track.heard is not None or not (left or track.damaged):
            break
        logger.warning("%s: nothing of its audio track %d can be decoded", name, number)
        tried += 1
    if track.heard is None:
        logger.warning("%s: its audio track is empty", name)
    elif declared is not None and track.heard < min(declared, stop) - CUT_OFF:
        logger.warning(
            "%s: the sound is cut off: it ends at %.1f s of %.1f s",
            name,
            track.heard - zero,
            declared - zero,
        )
    if track.damaged:
        logger.warning("%s: %d damaged audio packets were skipped", name, track.damaged)
    wave = finite(track.waveform(start or 0.0, end), name)
    return np.clip(wave, -1.0, 1.0, out=wave)  # the filter overshoots at steps


def resample(wave: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Bring a mono waveform, float32 [n], from `rate` to `sample_rate` Hz like `read_audio`."""
    track = _Track(sample_rate, "mix", 0.0)
    for first in range(0, len(wave), rate):
        part = np.ascontiguousarray(wave[None, first : first + rate])
        frame = av.AudioFrame.from_ndarray(part, format="flt", layout="mono")
        frame.sample_rate = rate
        track.add(frame, 0.0)
    track.flush()
    return track.waveform(0.0, None)


def finite(wave: np.ndarray, name: str) -> np.ndarray:
    """Samples with silence in place of NaN and infinity; a warning says so of sound `name`."""
    good = np.isfinite(wave)
    if good.all():
        return wave
    logger.warning(
        "%s: %d of %d sound samples are no finite numbers; they are taken as silence",
        name,
        len(wave) - good.sum(),
        len(wave),
    )
    return np.where(good, wave, np.float32(0))


def _choose(container: Any, name: str, tried: int) -> tuple[Any, int]:
    """The best audio stream after those `tried`, and how many are left after it."""
    streams = audio_streams(container)
    usable = [s for s in streams if s.codec_context is not None]
    if not streams:
        raise InputError(f"{name} has no audio track")
    if not usable:
        raise InputError(f"cannot read {name}: this FFmpeg has no decoder for its audio codec")
    if tried >= len(usable):
        raise InputError(f"cannot read {name}: nothing of its audio track can be decoded")
    av.forget_positions(usable[tried])
    return usable[tried], len(usable) - tried - 1


def _clock(file: MediaFile, container: Any, stream: Any) -> tuple[float, tuple[Joint, ...] | None]:
    """Time stamp (s) at which the file's pictures begin, and where they were joined.

    Those of the sound (None: found while reading) if there are no pictures.
    """
    if video_stream(container) is not None:
        try:
            index = file.index
            return index.start * index.tick, index.joints
        except InputError:
            pass
    return stream_start(container, stream), None


class _Track:
    """Collects decoded sound as pieces, each with the output sample it starts at."""

    def __init__(self, sample_rate: int, channel: str, zero: float) -> None:
        self.sample_rate, self.channel, self.zero = sample_rate, channel, zero
        self.heard: float | None = None  # time stamp (s) up to which sound was decoded
        self.damaged = 0
        self._pieces: list[tuple[int, list[np.ndarray]]] = []
        self._waiting: list[np.ndarray] = []  # up to a second of floats [n, channels]
        self._floats: Any = None  # makes them of frames, at the sound's own rate
        self._resampler: Any = None  # of the mono sound, unless it has the rate already
        self._form: tuple[Any, ...] = ()

    def read(self, packets: StreamPackets, stop: float) -> None:
        """Decode from the beginning up to time stamp `stop` (s).

        Without seeking: after a seek, MP3 and others know their position only roughly, and sound
        decodes at hundreds of times real time.
        """
        stream = packets.stream
        for packet in packets:
            for frame in self._decode(stream, packet):
                self.add(frame, float(stream.time_base))
            # A little more than asked for, so that the resampler's filter sees real samples.
            if self.heard is not None and self.heard >= stop + _JUMP:
                break
        else:
            for frame in self._decode(stream, None):
                self.add(frame, float(stream.time_base))
        self.damaged += len(packets.lost)
        self.flush()

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
        return wave

    def _decode(self, stream: Any, packet: Any) -> list[Any]:
        frames = decode(stream, packet)
        self.damaged += frames is None
        return frames or []

    def add(self, frame: Any, tick: float) -> None:
        """Take the next decoded frame; `tick` (s) is the unit of its time stamp."""
        expected = self.zero if self.heard is None else self.heard
        time = expected if frame.pts is None else frame.pts * tick
        if time - expected > _LONGEST_HOLE:
            time = expected
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        frame.pts = None  # the pieces keep the time
        try:
            if frame.sample_rate < _LOWEST_RATE:
                raise ValueError(f"{frame.sample_rate} Hz")
            if self.heard is None or form != self._form or abs(time - self.heard) > _JUMP:
                self.flush()
                self._pieces.append((round((time - self.zero) * self.sample_rate), []))
                self._floats, self._form, self.heard = av.Resampler(frame), form, time
            self._push(frame)
        except (av.error.FFmpegError, ValueError) as error:
            logger.debug("%s is not converted: %s", frame, error)
            self._floats, self._resampler, self._waiting, self._form = None, None, [], ()
            self.damaged += 1
        else:
            self.heard += frame.samples / frame.sample_rate

    def flush(self) -> None:
        """Empty the resampler, which ends the piece."""
        self._mix()
        if self._resampler is not None:
            self._pieces[-1][1].extend(part[:, 0] for part in self._resampler.convert(None))
        self._floats = self._resampler = None

    def _push(self, frame: Any) -> None:
        for part in self._floats.convert(frame):
            self._waiting.append(part)
        if sum(map(len, self._waiting)) >= frame.sample_rate:
            self._mix()

    def _mix(self) -> None:
        """Mix what waits, and then resample: FFmpeg's own mix depends on the channels' places."""
        parts, self._waiting = self._waiting, []
        if not parts:
            return
        wave, rate = np.concatenate(parts), self._form[-1]
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite: see `finite`
            mix = self.channel == "mix"
            wave = wave.mean(axis=1) if mix else np.ascontiguousarray(wave[:, 0])
        if rate != self.sample_rate:
            frame = av.AudioFrame.from_ndarray(wave[None], format="flt", layout="mono")
            frame.sample_rate = rate
            if self._resampler is None:
                self._resampler = av.Resampler(frame, self.sample_rate)
            parts = [part[:, 0] for part in self._resampler.convert(frame)]
        else:
            parts = [wave]
        self._pieces[-1][1].extend(parts)
