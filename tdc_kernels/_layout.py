# SPDX-License-Identifier: Apache-2.0
"""Windows of every video and how many tokens of each survive: the arithmetic behind the plan."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch

TRIMS = ("frames", "window_tail")


@dataclass
class Window:
    """Consecutive frames of one scene, the first of them the anchor."""

    anchor: int  # packed frame number
    frames: int
    static: int  # tokens of the static anchor, 0 without static frames
    has_static: bool
    dynamic: int = 0  # compressed frames that have tokens left
    tokens: int = 0  # tokens left, separators included
    costs: list[int] = field(default_factory=list)  # of its compressed frames, each with separator

    @property
    def first_dynamic(self) -> int:
        """The first compressed frame: the anchor itself only where nothing is static."""
        return self.anchor + self.has_static

    @property
    def head(self) -> int:
        """Tokens before the first compressed frame: the static ones and their separator."""
        return self.static + 1 if self.has_static else 0


@dataclass
class Video:
    """The windows of one video; what was cut is already gone from their counts."""

    windows: list[Window] = field(default_factory=list)
    full_tokens: int = 0  # before trimming
    max_tokens: int | None = None

    @property
    def tokens(self) -> int:
        return sum(window.tokens for window in self.windows)

    @property
    def trimmed(self) -> int:
        return self.full_tokens - self.tokens


@dataclass(frozen=True)
class Arguments:
    """The checked arguments, one entry per video or frame."""

    cu_frames: list[int]  # [B+1]
    window: int | None  # None: a scene is one window
    static: list[int] | None  # [F], None without static frames
    num_queries: int
    compressed: list[int] | None  # [F], None: num_queries each
    max_tokens: list[int | None]  # [B]
    trim: str


def lay_out(boundaries: torch.Tensor, args: Arguments) -> list[Video]:
    """Windows and surviving token counts of every video."""
    rows = _boundary_rows(boundaries, len(args.max_tokens))
    videos = []
    for b, limit in enumerate(args.max_tokens):
        start, stop = args.cu_frames[b], args.cu_frames[b + 1]
        videos.append(_count(_windows(rows[b], b, start, stop, args), limit, args))
    return videos


def _count(windows: list[Window], limit: int | None, args: Arguments) -> Video:
    """Tokens of every window, trimmed to the limit."""
    for w in windows:
        w.dynamic = w.frames - w.has_static
        if args.compressed is None:
            w.costs = [args.num_queries + 1] * w.dynamic
        else:
            lengths = args.compressed[w.first_dynamic : w.first_dynamic + w.dynamic]
            w.costs = [n + 1 for n in lengths]
        w.tokens = w.head + sum(w.costs)
    video = Video(windows, sum(w.tokens for w in windows), limit)
    if limit is not None and video.full_tokens > limit:
        (trim_frames if args.trim == "frames" else trim_window_tail)(video, limit)
    return video


def _windows(row: list[int], b: int, start: int, stop: int, args: Arguments) -> list[Window]:
    length = stop - start
    wrong = [x for x in row if not 0 <= x <= length]
    if wrong:
        raise ValueError(
            f"boundaries: expected frames 1 to {length - 1} of video {b} (or {length}, its length, "
            f"as padding), got {wrong[0]}"
        )
    edges = sorted({0, *row, length})
    windows = []
    for first, last in pairwise(edges):
        step = args.window or last - first
        for frame in range(first, last, step):
            anchor = start + frame
            static = args.static[anchor] if args.static is not None else 0
            frames = min(step, last - frame)
            windows.append(Window(anchor, frames, static, args.static is not None))
    return windows


# ---------------------------------------------------------------- trimming


def trim_frames(video: Video, limit: int) -> None:
    """Drop whole compressed frames, then whole windows evenly, then the end of the only one."""
    heads = [w.head for w in video.windows]
    excess = video.tokens - limit
    heap = [(-w.dynamic, -i) for i, w in enumerate(video.windows)]  # most left, then latest
    heapq.heapify(heap)
    while excess > 0 and heap[0][0] < 0:
        count, i = heap[0]
        excess -= video.windows[-i].costs[-count - 1]
        heapq.heapreplace(heap, (count + 1, i))
    for count, i in heap:
        w = video.windows[-i]
        w.dynamic, w.tokens = -count, w.head + sum(w.costs[:-count])
    if video.tokens == 0:  # nothing static and not even one compressed frame fits whole
        video.windows[0].dynamic, video.windows[0].tokens = 1, limit
    elif video.tokens > limit:
        kept = evenly_kept(heads, limit)
        for i, w in enumerate(video.windows):
            w.tokens = w.head if i in kept else 0
        if len(kept) == 1:
            video.windows[0].tokens = min(heads[0], limit)


def evenly_kept(heads: Sequence[int], limit: int) -> set[int]:
    """The most windows, evenly spaced from the first on, whose tokens fit; at least the first."""
    most = min(len(heads), max(limit // min(heads), 1))
    for kept in range(most, 1, -1):
        indices = [i * len(heads) // kept for i in range(kept)]
        if sum(heads[i] for i in indices) <= limit:
            return set(indices)
    return {0}


def trim_window_tail(video: Video, limit: int) -> None:
    """The released code's way: r tokens off the end of every window, then the end of the whole."""
    cut = -(-(video.tokens - limit) // len(video.windows))  # ceil
    room = limit
    for w in video.windows:
        w.tokens = min(max(w.tokens - cut, 0), room)
        room -= w.tokens
        starts = accumulate(w.costs[:-1], initial=0) if w.costs else ()
        w.dynamic = bisect_left(list(starts), w.tokens - w.head)  # begun frames stay


# ---------------------------------------------------------------- counts without boundaries


def lengths_without_boundaries(num_boundaries: int, args: Arguments) -> list[int]:
    """Tokens per video where only the number of boundaries is known: exact or the largest count."""
    if num_boundaries < 0:
        raise ValueError(f"boundaries: expected a number >= 0, got {num_boundaries}")
    return [_longest(num_boundaries + 1, b, args) for b in range(len(args.max_tokens))]


def _longest(scenes: int, b: int, args: Arguments) -> int:
    start, stop = args.cu_frames[b], args.cu_frames[b + 1]
    frames, limit = stop - start, args.max_tokens[b]
    static = args.static[start:stop] if args.static is not None else None
    if frames <= scenes:  # every frame is a scene: nothing is unknown
        return _count(_any_windows(frames, frames, static), limit, args).tokens
    most = fewest = scenes  # windows
    if args.window is not None:
        # At best every `window` frames beyond the scenes' first frames open a window more; at worst
        # no scene but one is longer than a window.
        most = scenes + (frames - scenes) // args.window
        fewest = max(scenes, -(-frames // args.window))
    # A window more turns a frame of K compressed tokens into a static one: dearer or cheaper. What
    # trim="frames" leaves depends on the number of windows alone if all have equally long heads.
    dearest = [max(static)] * frames if static is not None else None
    videos = [_count(_any_windows(n, frames, dearest), limit, args) for n in (most, fewest)]
    total = max(video.full_tokens for video in videos)
    if limit is None or total <= limit:
        return total
    same_windows = static is None or (most == fewest and dearest == static)
    return videos[0].tokens if same_windows and args.trim == "frames" else limit


def _any_windows(count: int, frames: int, static: list[int] | None) -> list[Window]:
    """``count`` windows of ``frames`` frames in total, wherever the cuts are."""
    has_static = static is not None
    return [
        Window(
            i, 1 if i < count - 1 else frames - count + 1, static[i] if static else 0, has_static
        )
        for i in range(count)
    ]


# ---------------------------------------------------------------- arguments


def check(
    cu_frames: Any,
    window: Any,
    static_lengths: Any,
    num_queries: Any,
    max_tokens: Any,
    trim: Any,
    compressed_lengths: Any = None,
) -> Arguments:
    """Check everything but the boundaries and spread it out."""
    if cu_frames is None:
        raise ValueError("cu_frames: expected prefix sums [B+1] ([0, L] for one video), got None")
    cu = _ints("cu_frames", cu_frames)
    if not cu or cu[0] != 0 or any(a > b for a, b in pairwise(cu)):
        raise ValueError(f"cu_frames: expected rising prefix sums [B+1] from 0, got {cu[:8]}")
    if window is not None:
        _at_least("window", window, 1)
    _at_least("num_queries", num_queries, 1)
    if trim not in TRIMS:
        raise ValueError(f"trim: expected one of {', '.join(TRIMS)}, got {trim!r}")
    videos, frames = len(cu) - 1, cu[-1]

    limits: list[int | None] = [None] * videos
    if max_tokens is not None:
        limits = [*_spread("max_tokens", max_tokens, {videos: "video"}, videos)]
    static: list[int] | None = None
    if static_lengths is not None:
        sizes = {frames: "frame", videos: "video"}
        values = _spread("static_lengths", static_lengths, sizes, videos)
        if len(values) == videos:
            values = [v for b, v in enumerate(values) for _ in range(cu[b + 1] - cu[b])]
        static = values
    compressed = None
    if compressed_lengths is not None:
        compressed = _compressed(compressed_lengths, frames, num_queries)
    return Arguments(cu, window, static, num_queries, compressed, limits, trim)


def _compressed(lengths: Any, frames: int, num_queries: int) -> list[int]:
    values = _ints("compressed_lengths", lengths)
    if len(values) != frames:
        raise ValueError(
            f"compressed_lengths: expected {frames} numbers (one per frame), got {len(values)}"
        )
    for v in values:
        if not 1 <= v <= num_queries:
            raise ValueError(
                f"compressed_lengths: expected integers from 1 to {num_queries} (num_queries), "
                f"got {v}"
            )
    return values


def _boundary_rows(boundaries: Any, videos: int) -> list[list[int]]:
    if not isinstance(boundaries, torch.Tensor) or boundaries.is_floating_point():
        raise TypeError(
            f"boundaries: expected an integer tensor [B, S], got {type(boundaries).__name__}"
        )
    if boundaries.ndim != 2 or boundaries.shape[0] != videos:
        raise ValueError(
            f"boundaries: expected [B, S] with B = {videos} (cu_frames), "
            f"got {list(boundaries.shape)}"
        )
    return boundaries.tolist()


def _ints(name: str, values: Any) -> list[int]:
    if isinstance(values, torch.Tensor):
        if values.is_floating_point() or values.ndim != 1:
            raise TypeError(
                f"{name}: expected integers, one-dimensional, got {values.dtype} "
                f"{list(values.shape)}"
            )
        return values.tolist()
    try:
        return [int(v) for v in values]
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected integers, got {type(values).__name__}") from None


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer >= {least}, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value}")


def _spread(name: str, value: Any, sizes: dict[int, str], videos: int) -> list[int]:
    """One number for all videos, or a sequence whose length is one of ``sizes``; all positive."""
    single = isinstance(value, int)
    values = [value] * videos if single else _ints(name, value)
    if not single and len(values) not in sizes:
        wanted = " or ".join(f"{n} (one per {what})" for n, what in sizes.items())
        raise ValueError(f"{name}: expected one number or {wanted}, got {len(values)}")
    for v in [value] if single else values:
        _at_least(name, v, 1)
    return values
