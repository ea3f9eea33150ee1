# SPDX-License-Identifier: Apache-2.0
"""Packets of one stream on one clock, also where recordings were joined and the clock starts again.

The pictures decide where a recording begins and by how much its time stamps are moved; the sound of
the file follows them, so that both stay together.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import pyav as av

logger = logging.getLogger(__name__)

# Decoding times only rise. Where they fall by more than this (s), or rise by more than half a day
# (the 33 bits of a transport stream's clock are 26.5 h), another recording begins: files joined
# byte by byte, a camera that restarted. What follows is moved to where the one before ended.
_FALLS, _RISES = 0.2, 12 * 3600.0
# In formats made for broadcast the clock may also jump ahead; FFmpeg's command takes this for one.
_RISES_IN_BROADCAST = 10.0


@dataclass(frozen=True)
class Joint:
    """Where another recording begins: between two packets of the pictures."""

    before: int  # bytes of the file
    first: int  # bytes, more than any file has if unknown
    shift: float  # seconds by which its time stamps are moved


class StreamPackets:
    """Packets of a stream that can be decoded, up to the end of the file or the first hole in it.

    Args:
        joints: those of the file's pictures, for its other streams; None: found here.

    Attributes, complete after the last packet:
        joints: where recordings were joined.
        lost: time stamps (ticks) of broken packets, which are left out.
        marked: those of packets that FFmpeg marks as damaged, but does so too early or without
            need, so that they are decoded: a gap in the counter of a transport stream.
        skipped: seconds by which the clock jumped ahead, left out.
        error: why reading stopped before the end of the file, or None.
    """

    def __init__(self, container: Any, stream: Any, joints: Sequence[Joint] | None = None) -> None:
        self.container, self.stream = container, stream
        self.joints: list[Joint] = list(joints or ())
        self.lost: list[int] = []
        self.marked: list[int] = []
        self.skipped = 0.0
        self.error: str | None = None
        self._follows = joints is not None
        self._tick = float(stream.time_base)
        self._broadcast = bool(container.format.flags & av.format.Flags.ts_discont.value)
        self._rises = (_RISES_IN_BROADCAST if self._broadcast else _RISES) / self._tick
        self._falls = _FALLS / self._tick
        rate = getattr(stream, "average_rate", None)
        self._rise = 1 / float(rate) / self._tick if rate else 0.0  # of the decoding time, usual
        self._last: int | None = None  # decoding time in the file
        self._position = 0  # in the file
        self._part = 0
        self._shift = 0
        self._end = 0  # where the last frame so far goes, moved
        self._step = 0
        self._delay = 0  # from decoding to showing
        self._edited = False
        self._since_mark = 2  # packets

    def __iter__(self) -> Iterator[Any]:
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    moved = self._moved(packet)
                    if not packet.is_corrupt or self._broadcast:
                        yield moved
        except av.error.FFmpegError as error:
            logger.debug("reading packets stopped: %s", error)
            self.error = str(error.strerror or error)

    def _moved(self, packet: Any) -> Any:
        """The packet, its time stamps on the common clock."""
        pts, dts = packet.pts, packet.dts
        # An edit list shows parts of a recording in any order: there times of packets that are
        # decoded but not shown fall, and the others are right.
        self._edited |= packet.is_discard
        rise = 0 if dts is None or self._last is None else dts - self._last
        jumps = not -self._falls <= rise <= self._rises and self._jumps(packet, rise)
        begins = (jumps or bool(self.joints)) and self._begins(packet, jumps)
        if self._since_mark == 1 and self.marked:
            # The mark of a gap in the counter; a parser hands it to the packet before. If another
            # recording or group of pictures follows and no time is missing, nothing else is.
            key = self.stream.type == "video" and packet.is_keyframe
            if begins or (key and dts is not None and rise <= 2 * self._step):
                self.marked.pop()
        if begins:
            self._begin(packet)
        elif rise > 0:
            self._rise = rise
            # The shortest: a damaged packet, which is left out, makes one of them longer.
            self._step = min(rise, self._step) if self._step else rise
        if packet.pos is not None:
            self._position = packet.pos
        if dts is not None:
            self._last = dts
            packet.dts = dts + self._shift
            if self._broadcast and pts is not None:
                pts = self._plausible(packet, pts, dts)
        if pts is not None:
            packet.pts = pts = pts + self._shift
            self._end = max(self._end, pts + (packet.duration or self._step))
        if packet.is_corrupt:
            time = self._end if pts is None else pts
            if not self._broadcast:
                self.lost.append(time)
            elif self._since_mark:  # else one gap has marked several packets
                self.marked.append(time)
            self._since_mark = 0
        else:
            self._since_mark += 1
        return packet

    def _plausible(self, packet: Any, pts: int, dts: int) -> int:
        """A packet's time of showing, or what it must be about if that is another part's."""
        late = pts - dts
        most = self._rises + 16 * self._usual(packet)  # no codec holds back more frames
        if not -self._falls <= late <= most:
            # A guess of FFmpeg's for MPEG-2: the decoding time of the next packet.
            return dts + self._delay
        self._delay = max(late, 0) or self._delay
        return pts

    def _begins(self, packet: Any, jumps: bool) -> bool:
        """Whether another recording begins with the packet."""
        if not self._follows:
            return jumps and not self._edited
        surely, perhaps = self._parts_at(packet)
        return self._part < surely or (self._part < perhaps and jumps)

    def _parts_at(self, packet: Any) -> tuple[int, int]:
        """How many joints lie before the packet in the file, and how many may do so."""
        position = self._position if packet.pos is None else packet.pos
        surely = bisect_right(self.joints, position, key=lambda joint: joint.first)
        return surely, bisect_right(self.joints, position, key=lambda joint: joint.before)

    def _jumps(self, packet: Any, rise: float) -> bool:
        return rise < -self._falls or rise > self._rises + self._usual(packet)

    def _usual(self, packet: Any) -> float:
        """Ticks between frames: slides may be far apart."""
        return float(max(self._rise, packet.duration or 0))

    def _begin(self, packet: Any) -> None:
        logger.debug("another recording begins: %s", packet)
        if self._follows:
            # A part may be without sound, so that more than one joint is passed.
            self._part = max(self._part + 1, self._parts_at(packet)[0])
            self._shift = round(self.joints[self._part - 1].shift / self._tick)
            return
        if packet.is_keyframe and packet.pts is not None:
            shift = self._end - packet.pts
        else:  # the clock jumps within a group of pictures: some of it is shown before the jump
            shift = (self._last or 0) + self._shift + self._step - packet.dts
        # A rise by more is a clock that fell, taken by the demuxer for one that passed its end.
        if 0 < (packet.dts - (self._last or 0)) * self._tick < _RISES:
            self.skipped += (self._shift - shift) * self._tick
        first = sys.maxsize if packet.pos is None else packet.pos
        self._shift = shift
        self.joints.append(Joint(self._position, first, shift * self._tick))
