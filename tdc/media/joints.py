# SPDX-License-Identifier: Apache-2.0
"""Packets of one stream on one clock, also where recordings were joined and the clock starts again.

The pictures decide where a recording begins and by how much its time stamps are moved; the sound of
the file follows them, so that both stay together.
"""

from __future__ import annotations

import logging
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
    """Where another recording begins: between two packets of the pictures, at bytes of the file."""

    before: int
    first: int
    shift: float  # seconds by which its time stamps are moved


class StreamPackets:
    """Whole packets of a stream, up to the end of the file or the first hole in it.

    Args:
        joints: those of the file's pictures, for its other streams; None: found here.

    Attributes, complete after the last packet:
        joints: where recordings were joined.
        lost: time stamps (ticks) of damaged packets, which are left out.
        skipped: seconds by which the clock jumped ahead, left out.
        error: why reading stopped before the end of the file, or None.
    """

    def __init__(self, container: Any, stream: Any, joints: Sequence[Joint] | None = None) -> None:
        self.container, self.stream = container, stream
        self.joints: list[Joint] = list(joints or ())
        self.lost: list[int] = []
        self.skipped = 0.0
        self.error: str | None = None
        self._follows = joints is not None
        self._tick = float(stream.time_base)
        broadcast = bool(container.format.flags & av.format.Flags.ts_discont.value)
        self._rises = (_RISES_IN_BROADCAST if broadcast else _RISES) / self._tick
        self._falls = _FALLS / self._tick
        rate = getattr(stream, "average_rate", None)
        self._rise = 1 / float(rate) / self._tick if rate else 0.0  # of the decoding time, usual
        self._last: int | None = None  # decoding time in the file
        self._position = 0  # in the file
        self._part = 0
        self._shift = 0
        self._end = 0  # where the last frame so far goes, moved
        self._step = 0
        self._edited = False

    def __iter__(self) -> Iterator[Any]:
        damaged = None
        try:
            for packet in self.container.demux(self.stream):
                if not packet.size:
                    continue
                if damaged is not None:
                    # A gap in the counter of a transport stream marks the packet before it, which
                    # is whole if the gap is a joint: another recording or group of pictures begins.
                    if self._begins(packet) or (self._is_video and packet.is_keyframe):
                        yield self._moved(damaged)
                    else:
                        self._lose(damaged)
                    damaged = None
                if packet.is_corrupt:
                    damaged = packet
                else:
                    yield self._moved(packet)
        except av.error.FFmpegError as error:
            logger.debug("reading packets stopped: %s", error)
            self.error = str(error.strerror or error)
        if damaged is not None:
            self._lose(damaged)

    @property
    def _is_video(self) -> bool:
        return bool(self.stream.type == "video")

    def _lose(self, packet: Any) -> None:
        time = packet.dts if packet.pts is None else packet.pts
        self.lost.append(self._end if time is None else time + self._shift)

    def _moved(self, packet: Any) -> Any:
        pts, dts = packet.pts, packet.dts
        # An edit list shows parts of a recording in any order: there times of packets that are
        # decoded but not shown fall, and the others are right.
        self._edited |= packet.is_discard
        if self._begins(packet):
            self._begin(packet)
        elif dts is not None and self._last is not None and dts > self._last:
            self._rise = dts - self._last
            # The shortest: a damaged packet, which is left out, makes one of them longer.
            self._step = min(dts - self._last, self._step) if self._step else dts - self._last
        if packet.pos is not None:
            self._position = packet.pos
        if dts is not None:
            self._last = dts
            packet.dts = dts + self._shift
        if pts is not None:
            packet.pts = pts + self._shift
            self._end = max(self._end, packet.pts + (packet.duration or self._step))
        return packet

    def _begins(self, packet: Any) -> bool:
        """Whether another recording begins with the packet."""
        if not self._follows:
            return self._jumps(packet) and not self._edited
        position = self._position if packet.pos is None else packet.pos
        surely = bisect_right(self.joints, position, key=lambda joint: joint.first)
        perhaps = bisect_right(self.joints, position, key=lambda joint: joint.before)
        return self._part < surely or (self._part < perhaps and self._jumps(packet))

    def _jumps(self, packet: Any) -> bool:
        if packet.dts is None or self._last is None:
            return False
        rise = packet.dts - self._last
        usual = max(self._rise, packet.duration or 0)
        return bool(rise < -self._falls or rise > self._rises + usual)

    def _begin(self, packet: Any) -> None:
        logger.debug("another recording begins: %s", packet)
        if self._follows:
            self._part += 1
            self._shift = round(self.joints[self._part - 1].shift / self._tick)
            return
        time = packet.dts if packet.pts is None else packet.pts
        shift = self._end - time
        if self._last is not None and packet.dts > self._last:
            self.skipped += (self._shift - shift) * self._tick
        position = self._position if packet.pos is None else packet.pos
        self._shift = shift
        self.joints.append(Joint(self._position, position, shift * self._tick))
