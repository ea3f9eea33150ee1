# SPDX-License-Identifier: Apache-2.0
"""When frames are shown whose packets have no time stamps, or none that are right."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from . import pyav as av

# What the k-th time belongs to where the file's own time stamps are of no use: the k-th packet, or
# the k-th frame that comes out of the decoder if that changes their order.
Counted = Literal["packets", "frames", None]


def frame_times(
    container: Any, stream: Any, rows: np.ndarray
) -> tuple[np.ndarray, Counted, list[str]]:
    """Times (ticks) of frames, what they belong to, and what a user should know of it.

    `rows` are packets [P, (pts, dts, duration, keyframe, hidden)], NaN for a time that is missing.
    Returns times float64 [P]: their pts, or where these are of no use an even spread between those
    that are known.
    """
    pts, dts, step = rows[:, 0], rows[:, 1], nominal_step(stream)
    context, notes = stream.codec_context, []
    reorders = bool(context.has_b_frames)
    both = ~np.isnan(pts - dts)
    if _untimed(container):
        moments = np.full(len(pts), np.nan)
        rate = 1 / (step * float(stream.time_base))
        notes.append(f"it has no time stamps and is read at its nominal {rate:g} frames/s")
    elif container.format.name == "avi":
        # It has no times of showing. FFmpeg's guesses are wrong before a pause, for H.264, and for
        # packed B-frames.
        # A frame is shown when so many more have been decoded as the decoder holds back.
        delay = getattr(context, "reorder_depth", int(reorders))
        moments = np.append(dts[delay:], np.full(min(delay, len(dts)), np.nan))
    elif 2 * (~np.isnan(pts)).sum() >= len(pts):
        if missing := int(np.isnan(pts).sum()):
            notes.append(f"{missing} pictures without a time stamp are left out")
        return pts, None, notes
    else:
        missing = int(np.isnan(pts).sum())
        notes.append(f"{missing} of {len(pts)} pictures have no time stamp and are spread evenly")
        # The k-th frame is shown by the same time after the k-th is decoded, whatever the order.
        moments = dts + (pts - dts)[both][0] if both.any() else pts
    known = ~np.isnan(moments)
    order = np.arange(len(pts), dtype=np.float64)
    times = order * step
    if known.any():
        at = np.flatnonzero(known)
        if len(at) > 1:
            step = float(np.median(np.diff(moments[at]) / np.diff(at)))
        outside = np.minimum(order - at[0], 0) + np.maximum(order - at[-1], 0)
        times = np.interp(order, at, moments[at]) + outside * step
    return (np.sort(times), "frames", notes) if reorders else (times, "packets", notes)


def nominal_step(stream: Any) -> float:
    """Ticks between two frames according to the header or the codec; 25 frames/s if none says."""
    return 1 / float((stream.guessed_rate or stream.average_rate or 25) * stream.time_base)


def all_keys(container: Any, stream: Any) -> bool:
    """Whether all packets can be keyframes. In raw H.263 they are only said to be."""
    return not _untimed(container) or bool(stream.codec_context.codec.intra_only)


def _untimed(container: Any) -> bool:
    """Whether the format is a codec's bare stream."""
    return bool(container.format.flags & av.format.Flags.no_timestamps.value)
