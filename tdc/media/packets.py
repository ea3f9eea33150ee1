# SPDX-License-Identifier: Apache-2.0
"""From packets to the frames shown at given times, decoding no packet that is not needed.

Two passes over the file. The first reads packets without decoding (0.6 GB/s) and learns every
time stamp and keyframe; from these the second knows which packets lead from a keyframe to a wanted
frame, and feeds the decoder those alone. That does the work of seeking, in every container, without
an index and without a seek that lands in the wrong group of pictures. Measured (640x360, keyframes
2 s apart, 2 cores): one sample in 5 s takes a fifth of the time of decoding through, as a seek
per sample does; at 1 sample/s it takes 0.9 of that time, a seek per sample 1.4.

Where packets do not say when they are shown and the decoder changes their order (bare H.264, AVI
with B-frames), everything up to the last wanted frame is decoded: only the decoder knows.

Times here are integers in ticks of the stream's time base: nothing is decided by rounding.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from . import pyav as av
from .container import declared_end, open_media, states_tracks, video_streams
from .frame_times import Counted, all_keys, frame_times, nominal_step
from .joints import Joint, StreamPackets

logger = logging.getLogger(__name__)

# A video is called cut off when it ends this much (s) before its header says. Headers are off by a
# frame or by the padding of the sound, not by more.
CUT_OFF = 0.5
# Time stamps are rounded to 1 ms in Matroska and FLV; coarser ticks are the file's own choice.
MAX_SLACK = 0.0005


@dataclass(frozen=True)
class PacketIndex:
    """What the packets of a video stream say; times in ticks (start and end possibly broken)."""

    shown: np.ndarray  # int64 [P], ascending: the moment each frame comes up
    numbers: np.ndarray  # int64 [P]: the packet of each frame, counted in the file
    keys: np.ndarray  # int64 [G], ascending: packets at which decoding can start
    key_times: np.ndarray  # int64 [G]: the moments of their frames
    counted: Counted  # where the file's own time stamps are of no use
    stamps: np.ndarray  # int64 [packets of the file]: their moments, if these are counted
    start: float  # 0 of the clock that users see: the first frame
    end: float  # where the last frame goes
    declared: float | None  # the end according to the header
    tick: float  # seconds
    joints: tuple[Joint, ...]  # where recordings were joined
    lost: np.ndarray  # int64 [L]: the moments of broken packets, left out
    marked: np.ndarray  # int64 [M]: those of packets that may be damaged
    notes: tuple[str, ...]  # what a user should know, whatever part of the video is asked for

    @property
    def duration(self) -> float:
        return (self.end - self.start) * self.tick

    @property
    def rate(self) -> float:
        """Average frames per second; the header's figure is off in AVI and for variable rates."""
        return len(self.shown) / self.duration

    @property
    def missing(self) -> float:
        """Seconds that the header promises and the file does not hold; 0 for a whole file."""
        gap = 0.0 if self.declared is None else (self.declared - self.end) * self.tick
        return gap if gap > CUT_OFF else 0.0

    def with_one_key(self) -> PacketIndex:
        """The same index for decoding from the first keyframe on only."""
        return replace(self, keys=self.keys[:1], key_times=self.key_times[:1])

    @property
    def slack(self) -> float:
        """Seconds by which a time stamp may be late because it was rounded.

        Half a tick: 1/3 s is not before the frame stamped 0.333. The ticks of AVI and y4m are whole
        frames (0.1 frames/s: 10 s), and nothing there is rounded.
        """
        return min(self.tick / 2, MAX_SLACK)


def scan_video(
    container: Any, stream: Any, path: str | os.PathLike[str]
) -> tuple[PacketIndex, Any]:
    """Read all packets of the stream, decoding only until the first frame comes out.

    Returns the index and that frame. Raises `InputError` if the stream holds no frame.
    """
    packets = StreamPackets(container, stream)
    frames: list[Any] = []
    rows: list[tuple[float, float, int, bool, bool]] = []
    for packet in packets:
        if not frames:
            frames += decode(stream, packet) or []
        pts = math.nan if packet.pts is None else packet.pts
        dts = math.nan if packet.dts is None else packet.dts
        rows.append((pts, dts, packet.duration or 0, packet.is_keyframe, packet.is_discard))
    if not rows:
        raise InputError(f"no frames: the video track of {path} is empty")
    frames = frames or decode(stream, None) or []
    if not frames:
        raise InputError(f"no frames: no picture of {path} can be decoded")
    index = _index(packets, np.array(rows, dtype=np.float64), frames[0].pts)
    if index.missing and not states_tracks(container) and _sound_reaches(path, index):
        index = replace(index, declared=None)
    return index, frames[0]


def _index(packets: StreamPackets, rows: np.ndarray, first: int | None) -> PacketIndex:
    """Index of packets [P, (pts, dts, duration, keyframe, hidden)]; `first`: pts of a decoder's
    first frame."""
    container, stream = packets.container, packets.stream
    tick, order = float(stream.time_base), np.arange(len(rows))
    key, hidden = rows[:, 3] > 0, rows[:, 4] > 0  # an edit list may need frames that are not shown
    times, counted, notes = frame_times(container, stream, rows)
    stamped = ~np.isnan(times)
    key &= stamped
    if not key.any() or (key.all() and not all_keys(container, stream)):
        key = order == np.argmax(stamped)
    keys = np.flatnonzero(key)
    # Nothing leads to what is decoded before the first keyframe. Of frames decoded after it and
    # shown before it, only the decoder knows which ones can be seen.
    seen = order >= keys[0]
    if counted is None and first is not None:
        seen = (seen & (times >= times[keys[0]])) | (times >= first)
    hidden |= ~stamped
    seen &= ~hidden
    if left_out := int((~seen & ~hidden).sum()):
        notes.append(f"{left_out} pictures before the first keyframe are left out")
    if not seen.any():
        seen[keys[0]] = True
    numbers = np.flatnonzero(seen)
    numbers = numbers[np.argsort(times[numbers], kind="stable")]
    shown = np.round(times[numbers]).astype(np.int64)
    if counted != "frames":  # of frames of one moment the last one stays
        stays = np.append(np.diff(shown) > 0, True)
        shown, numbers = shown[stays], numbers[stays]
    # Transport streams, FLV and AVI give packets no true duration: take the usual step.
    step = float(np.median(np.diff(shown))) if len(shown) > 1 else 0.0
    end = shown[-1] + (max(rows[numbers[-1], 2], step) or nominal_step(stream))
    seconds = declared_end(container, stream, float(shown[0] * tick))
    declared = None if seconds is None else seconds / tick
    if declared is not None and shown[-1] + step / 2 < declared <= end + CUT_OFF / tick:
        end = declared if states_tracks(container) else end
    if (tracks := len(video_streams(container))) > 1:  # also recordings joined with other numbers
        notes.append(f"only the main one of its {tracks} video tracks is read")
    if packets.skipped:
        notes.append(f"its time stamps jump ahead by {packets.skipped:.1f} s, which are left out")
    if packets.error is not None:
        notes.append(f"it is read up to {(end - shown[0]) * tick:.1f} s only ({packets.error})")
    stamps = np.round(np.nan_to_num(times)).astype(np.int64)
    return PacketIndex(
        shown=shown,
        numbers=numbers,
        keys=keys,
        key_times=stamps[keys],
        counted=counted,
        stamps=stamps if counted == "packets" else stamps[:0],
        start=float(shown[0]),
        end=float(end),
        declared=declared,
        tick=tick,
        joints=tuple(packets.joints),
        lost=np.array(packets.lost, dtype=np.int64),
        marked=np.array(packets.marked, dtype=np.int64),
        notes=tuple(notes),
    )


def _sound_reaches(path: str | os.PathLike[str], index: PacketIndex) -> bool:
    """Whether the sound goes up to the end that the header states: then no picture is missing."""
    end = 0.0
    with open_media(path) as container:
        for packet in container.demux(list(container.streams.audio)):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end >= (index.declared or 0) * index.tick - CUT_OFF


def decode(stream: Any, packet: Any) -> list[Any] | None:
    """What comes out of the decoder for a packet, or for None, the end; None for a damaged one."""
    try:
        return stream.codec_context.decode(packet)
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: PyAV 19, a codec not opened
        logger.debug("a packet was not decoded: %s", error)
        return None


class LateStart(Exception):
    """A decoder that was started at a keyframe began to show pictures later than that.

    Recovery points of H.264 without keyframes (intra refresh) are marked like keyframes.
    """


class FrameReader:
    """Yields the frame on screen at each of some ascending times.

    `damaged` counts the packets the decoder refused; `decoded` the frames it gave.
    """

    def __init__(self, container: Any, stream: Any, index: PacketIndex) -> None:
        self.container, self.stream, self.index = container, stream, index
        self.damaged = 0
        self.decoded = 0

    def shown_at(self, times: np.ndarray) -> Iterator[Any]:
        """PyAV frames, one per time (ticks, float64 [T]); the same object while it stays on screen.

        A time before the first frame gets the first frame. Yields nothing if nothing decodes.
        Raises `LateStart` where decoding has to start earlier than at the last keyframe.
        """
        limits = times + self.index.slack / self.index.tick
        held, position = None, 0
        for frame in self._needed(limits):
            if frame.pts is None:
                continue
            while held is not None and position < len(limits) and frame.pts > limits[position]:
                yield held
                position += 1
            held = frame
        if held is not None:
            for _ in range(position, len(limits)):
                yield held

    def _needed(self, limits: np.ndarray) -> Iterator[Any]:
        """Decode, in order of showing, at least the frames on screen at `limits`."""
        shown = self.index.shown
        wanted = np.maximum(np.searchsorted(shown, limits, side="right") - 1, 0)
        if self.index.counted == "frames":
            yield from self._first(int(wanted[-1]) + 1)
            return
        groups = self._groups(wanted)
        due: set[int] = set()  # packets wanted of the groups the decoder is in
        running = False
        for number, packet in enumerate(StreamPackets(self.container, self.stream)):
            if number in groups:
                due |= groups.pop(number)
                if not running:
                    self.stream.codec_context.flush_buffers()
                    running = True
                    awaited = None if number == self.index.keys[0] else self._first_time(due)
                    refused = self.damaged
            if not running:
                continue
            due.discard(number)
            if self.index.counted == "packets":
                packet.pts = packet.dts = int(self.index.stamps[number])
            frames = self._decode(packet)
            if not due:  # all it takes is in the decoder: empty it, and skip to the next group
                frames += self._decode(None)
                running = False
            if awaited is not None and (frames or not running):
                late = not frames or (frames[0].pts or 0) > awaited
                if late and refused == self.damaged:
                    raise LateStart
                awaited = None
            yield from frames
            if not running and not groups:
                return
        if running:
            yield from self._decode(None)

    def _first_time(self, numbers: set[int]) -> int:
        """When the first of the packets is shown."""
        return int(self.index.shown[np.isin(self.index.numbers, list(numbers))].min())

    def _groups(self, wanted: np.ndarray) -> dict[int, set[int]]:
        """Packet of a keyframe -> the packets wanted that are decoded from it.

        That is the last keyframe before the packet in the file that is not shown after it.
        """
        keys, key_times = self.index.keys, self.index.key_times
        wanted = np.unique(wanted)
        numbers, times = self.index.numbers[wanted], self.index.shown[wanted]
        chosen = np.maximum(np.searchsorted(keys, numbers, side="right") - 1, 0)
        while (late := (key_times[chosen] > times) & (chosen > 0)).any():
            chosen -= late
        groups: dict[int, set[int]] = {}
        for key, number in zip(keys[chosen].tolist(), numbers.tolist(), strict=True):
            groups.setdefault(key, set()).add(number)
        return groups

    def _first(self, count: int) -> Iterator[Any]:
        """Decode the first `count` frames and count off their times.

        Only the decoder knows in which order packets without time stamps are shown.
        """
        shown, number = self.index.shown, 0
        packets = StreamPackets(self.container, self.stream)
        first = int(self.index.keys[0])
        for packet in itertools.chain(itertools.islice(packets, first, None), (None,)):
            refused = self.damaged
            for frame in self._decode(packet):
                frame.pts = int(shown[min(number, len(shown) - 1)])
                number += 1
                yield frame
                if number == count:
                    return
            number += self.damaged - refused

    def _decode(self, packet: Any) -> list[Any]:
        frames = decode(self.stream, packet)
        self.damaged += frames is None
        self.decoded += len(frames or ())
        return frames or []
