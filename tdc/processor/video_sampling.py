# SPDX-License-Identifier: Apache-2.0
"""Which part of a video is watched, and on which frames."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import InputError, shown

# What other libraries call the same (qwen-vl-utils).
ALIASES = {"nframes": "num_frames", "video_start": "start", "video_end": "end"}
_MOST_FPS = 1000.0
# What they can ask for beside: (why not, what instead).
_REFUSED = {
    "min_frames": "expected fps or num_frames",
    "sample_fps": "expected fps",
    "raw_fps": "expected fps",
    "video_fps": "expected fps",
    **dict.fromkeys(
        ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
        "leave it out: the vision towers see frames of one size",
    ),
}


@dataclass(frozen=True)
class VideoSampling:
    """Attributes:
    fps: sampled frames per second, or those that an array was sampled at; None: ``config.fps``.
    num_frames: so many evenly spaced frames instead.
    max_frames: frames at most, in place of what the token budget allows.
    start, end: seconds; sound and frames of [start, end) are taken, None: of the whole video.
    """

    fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> VideoSampling:
        """From keywords or keys by their own names or ``ALIASES``; other keys are left alone.

        Raises:
            InputError: a value out of range, one thing by two names, or ``start`` after ``end``.
        """
        found: dict[str, Any] = {}
        written: dict[str, str] = {}
        for name, value in given.items():
            own = ALIASES.get(name, name)
            if value is None or own not in NAMES:
                continue
            if own in found:
                raise InputError(f"{written[own]} and {name} are the same; expected one of them")
            found[own] = _number(name, value, own in ("num_frames", "max_frames"))
            written[own] = name
        sampling = cls(**found)
        if sampling.fps is not None and not 0 < sampling.fps <= _MOST_FPS:
            raise InputError(
                f"fps: got {sampling.fps:g}, expected a number above 0, up to {_MOST_FPS:g}"
            )
        for name in ("num_frames", "max_frames"):
            if name in found and found[name] < 1:
                raise InputError(f"{name}: got {found[name]}, expected at least 1")
        start, end = sampling.start or 0.0, sampling.end
        if start < 0:
            raise InputError(f"start: got {start:g} s, expected 0 or more")
        if end is not None and end <= start:
            raise InputError(f"end: got {end:g} s, expected more than start ({start:g} s)")
        return sampling

    def over(self, other: VideoSampling) -> VideoSampling:
        """These wishes, and those of ``other`` where there are none."""
        if self.fps is not None or self.num_frames is not None:
            other = replace(other, fps=None, num_frames=None)
        mine = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(other, **mine)


WHOLE = VideoSampling()  # the whole video as the configuration says
NAMES = tuple(field.name for field in fields(VideoSampling))


def refuse(given: Mapping[str, Any], what: str) -> None:
    """Refuse keys of other libraries that would have no effect, with what to do instead."""
    for name, value in given.items():
        if value is not None and name in _REFUSED:
            raise InputError(f"{what} {name!r}: {_REFUSED[name]}")


def _number(name: str, value: Any, whole: bool) -> Any:
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number) or (whole and number % 1):
        expected = "a whole number" if whole else "a number"
        raise InputError(f"{name} is {shown(value)}; expected {expected}")
    return int(value) if whole else number
