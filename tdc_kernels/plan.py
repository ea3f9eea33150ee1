# SPDX-License-Identifier: Apache-2.0
"""The context plan: static frames, the anchor of every dynamic frame, trimming, layout.

Integers only, computed once on the host before anything is encoded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from tdc_kernels._layout import Video, check, lay_out, lengths_without_boundaries

logger = logging.getLogger(__name__)

Ints = torch.Tensor | Sequence[int]


@dataclass(frozen=True, eq=False)
class ContextPlan:
    """The source of every token of the packed context. Frame numbers count all videos of the
    call (packed), in time order; only what survives trimming is listed."""

    anchors: torch.Tensor  # int32 [A]: first frames of the windows
    dynamic: torch.Tensor  # int32 [M]: frames to compress
    dynamic_anchor: torch.Tensor  # int32 [M]: row of `anchors` that asks for this frame
    cu_static: torch.Tensor  # int32 [A+1]: prefix sums of the anchors' static tokens; 0 if none
    source: torch.Tensor  # int32 [N]: row of [static; compressed as M*K rows; separator]
    # The way back. Every static or compressed row has one token at most.
    position: torch.Tensor  # int32 [Ns + M*K]: the row's token, -1 where it has none
    separators: torch.Tensor  # int32 [S]: the tokens that are separators, rising
    cu_context: torch.Tensor  # int32 [B+1]: prefix sums of the videos' tokens
    trimmed: torch.Tensor  # int32 [B]: tokens cut from each video
    num_queries: int  # K: rows a compressed frame has
    # int32 [M]: how many of its rows are tokens, the first ones; None: all K of every frame.
    compressed_lengths: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> ContextPlan:
        """The plan with all its tensors on ``device``, by one copy."""
        tensors: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        names = [name for name, x in tensors.items() if isinstance(x, torch.Tensor)]
        moved = copied([tensors[name] for name in names], torch.device(device))
        new: dict[str, Any] = dict(zip(names, moved, strict=True))
        return replace(self, **new)

    @property
    def total_tokens(self) -> int:
        """N, the tokens of all videos."""
        return self.source.shape[0]

    @property
    def kinds(self) -> torch.Tensor:
        """int8 ``[N]``: 0 where a token is static, 1 compressed, 2 a separator."""
        compressed = self.source >= self.cu_static[-1]
        separator = self.source == self.cu_static[-1] + self.dynamic.shape[0] * self.num_queries
        return compressed.to(torch.int8) + separator.to(torch.int8)


def plan_context(
    boundaries: torch.Tensor,
    cu_frames: Ints,
    window: int | None,
    static_lengths: int | Ints | None,
    num_queries: int,
    max_tokens: int | Ints | None = None,
    *,
    trim: str = "frames",
    compressed_lengths: Ints | None = None,
) -> ContextPlan:
    """Plan the temporal dynamic context of the paper for B videos.

    A scene is cut into consecutive windows. A window's first frame is its anchor: it is kept as
    static tokens and asks the queries with which the other frames are compressed to K tokens each.
    Layout per window: ``[static ; sep ; C_1 ; sep ; C_2 ; sep ...]``, without static frames
    ``[C_0 ; sep ; C_1 ; sep ...]``.

    Args:
        boundaries: int ``[B, S]`` as ``scene_boundaries`` returns them (copied to the host once).
        cu_frames: ``[B+1]`` prefix sums of the videos' lengths in frames; ``[0, L]`` for one video.
        window: most frames of a window; None: a scene is one window, however long (the paper).
        static_lengths: tokens of a static frame: one number, one per video ``[B]``, or one per
            frame ``[F]`` (read as per video where B == F); None: no static frames, anchors are
            compressed too.
        num_queries: K, tokens of a compressed frame.
        max_tokens: most tokens of a video: one number, one per video, or None for no limit.
        trim: how a video that is too long is cut.

            ``"frames"``: whole compressed frames go, one at a time, always the last one of the
            window that has most left (of equals the later window). If static frames alone are too
            many, windows are kept evenly spaced over the video, the first always; if even that one
            is too long, its end is cut.

            ``"window_tail"``: the released code's way. With ``r = ceil(excess / windows)`` the last
            r tokens of every window go, then the end of the whole.
        compressed_lengths: 1 to K for every frame of all videos ``[F]``, read where a frame is
            compressed: only the first so many of its K rows are tokens. A frame keeps one at least:
            a separator alone would say that there is a frame, and nothing of it. None: K each.

    Returns:
        A ``ContextPlan`` on the CPU. Frames and windows that lost all their tokens are not in it.
        One warning is logged per trimmed video.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    args = check(
        cu_frames, window, static_lengths, num_queries, max_tokens, trim, compressed_lengths
    )
    videos = lay_out(boundaries, args)
    for number, video in enumerate(videos):
        if video.trimmed:
            logger.warning(
                "video %d of %d: %d of %d context tokens were cut to fit max_tokens=%d (trim=%s)",
                number + 1,
                len(videos),
                video.trimmed,
                video.full_tokens,
                video.max_tokens,
                trim,
            )
    return _index(videos, num_queries, ragged=compressed_lengths is not None)


def copied(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """One-dimensional integers as int32 on ``device``, those of another one by one copy in all."""
    far = [x.to(torch.int32) for x in tensors if x.device != device]
    if len({x.device for x in far}) == 1:
        near = iter(torch.cat(far).to(device).split([x.shape[0] for x in far]))
        tensors = [next(near) if x.device != device else x for x in tensors]
    return [x.to(device, torch.int32).contiguous() for x in tensors]


def context_length(
    boundaries: torch.Tensor | int,
    cu_frames: Ints,
    window: int | None,
    static_lengths: int | Ints | None,
    num_queries: int,
    max_tokens: int | Ints | None = None,
    *,
    trim: str = "frames",
    compressed_lengths: Ints | None = None,
) -> torch.Tensor:
    """Tokens of every video's context, before anything is encoded or planned in detail.

    Takes the arguments of ``plan_context`` and equals ``plan_context(...).cu_context.diff()``; no
    index is built and nothing is logged. A serving engine may not know the boundaries yet: then
    ``boundaries`` is their number S (``scene_boundaries`` without a threshold), and the result is
    exact where the cuts cannot matter (``window=None`` and one static length per video, or no
    static frames, or no more than S + 1 frames) and, except with ``trim="window_tail"``, after
    trimming too; else it is the largest count that any cuts can give. ``compressed_lengths`` need
    boundaries that are known, as these say which frames are compressed.

    Returns:
        int32 ``[B]`` on the CPU.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    args = check(
        cu_frames, window, static_lengths, num_queries, max_tokens, trim, compressed_lengths
    )
    if isinstance(boundaries, int):
        if compressed_lengths is not None:
            raise ValueError("compressed_lengths: expected None with a number of boundaries")
        lengths = lengths_without_boundaries(boundaries, args)
    else:
        lengths = [video.tokens for video in lay_out(boundaries, args)]
    return torch.tensor(lengths, dtype=torch.int32)


def _index(videos: list[Video], num_queries: int, ragged: bool) -> ContextPlan:
    """Number the surviving rows and spell out every token's source."""
    anchors: list[int] = []
    dynamic: list[int] = []
    dynamic_anchor: list[int] = []
    compressed: list[int] = []
    cu_static = [0]
    for window in (w for video in videos for w in video.windows if w.tokens > 0):
        dynamic.extend(range(window.first_dynamic, window.first_dynamic + window.dynamic))
        dynamic_anchor.extend([len(anchors)] * window.dynamic)
        if ragged:
            compressed.extend(cost - 1 for cost in window.costs[: window.dynamic])
        anchors.append(window.anchor)
        cu_static.append(cu_static[-1] + window.static)

    separator = cu_static[-1] + len(dynamic) * num_queries  # the last row
    if separator >= 2**31:
        raise ValueError(f"boundaries: the plan has {separator + 1} rows, more than int32 counts")
    starts: list[int] = []  # runs of consecutive source rows: first row and length
    lengths: list[int] = []
    row = cu_static[-1]
    anchor = 0
    cu_context = [0]
    for video in videos:
        for window in video.windows:
            if window.tokens == 0:
                continue
            runs = [(cu_static[anchor], window.static), (separator, 1)] if window.has_static else []
            for cost in window.costs[: window.dynamic]:
                runs += [(row, cost - 1), (separator, 1)]
                row += num_queries
            anchor += 1
            left = window.tokens  # a cut-off window ends inside a run
            for start, length in runs:
                starts.append(start)
                lengths.append(min(length, left))
                left -= lengths[-1]
        cu_context.append(cu_context[-1] + video.tokens)

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    source, position, separators = _spell_out(starts, lengths, separator)
    return ContextPlan(
        anchors=ints(anchors),
        dynamic=ints(dynamic),
        dynamic_anchor=ints(dynamic_anchor),
        cu_static=ints(cu_static),
        source=source,
        position=position,
        separators=separators,
        cu_context=ints(cu_context),
        trimmed=ints([video.trimmed for video in videos]),
        num_queries=num_queries,
        compressed_lengths=ints(compressed) if ragged else None,
    )


def _spell_out(
    starts: list[int], lengths: list[int], separator: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``source``, ``position`` and ``separators`` of all runs, int32."""
    start = torch.tensor(starts, dtype=torch.int64)
    length = torch.tensor(lengths, dtype=torch.int64)
    before = length.cumsum(0) - length  # tokens before each run
    source = torch.repeat_interleave(start - before, length)
    source += torch.arange(source.shape[0])
    token = torch.arange(source.shape[0], dtype=torch.int32)
    # A row has one token at most, except the separator, whose entry is dropped. scatter_ takes a
    # fifth of the time of position[source] = token.
    position = torch.full((separator + 1,), -1, dtype=torch.int32).scatter_(0, source, token)
    separators = before[(start == separator) & (length > 0)]
    return source.to(torch.int32), position[:-1], separators.to(torch.int32)
