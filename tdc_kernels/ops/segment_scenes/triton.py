# SPDX-License-Identifier: Apache-2.0
"""Both halves of the segmentation in two Triton launches: ``frame_similarity``'s first, and one in
which the program that finishes a video's last frame also finds the video's boundaries."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tdc_kernels import _checks
from tdc_kernels.ops import operands
from tdc_kernels.ops.frame_similarity.triton import (
    FINISH_BLOCK,
    FINISH_ROWS,
    finish_frames,
    launch_partial_sums,
    triton_dtype,
    video_of,
)
from tdc_kernels.ops.scene_boundaries.triton import limit_of, select_lowest, span_of
from tdc_kernels.triton_support import instance

# Pairs of one step of the selection, and warps. Not tuned on a GPU, but chosen so that nothing
# spills with Triton 3.6 to 3.9: 512 and 4 do with 3.6, 256 and 8 with 3.9.
BLOCK, WARPS = 256, 16


@triton.jit(
    do_not_specialize=["frames", "videos", "num_boundaries", "limit"],
    do_not_specialize_on_alignment=["cu_frames"],
)
def finish_and_select(
    partial,
    cu_frames,
    finished,  # int32 [B], zeros: counts the frames of each video
    sums,  # [F, 2]
    similarity,  # [F-1]
    boundaries,  # [B, num_boundaries]
    tiles,
    frames,
    videos,
    num_boundaries,
    limit,
    ROWS: tl.constexpr,
    FINISH_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """A program finishes ROWS frames, and finds the boundaries of the videos that this completes
    and of those of its ROWS videos that are empty, which no frame completes."""
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    video = t * 0
    new_video = t < 0
    if RAGGED:
        video = video_of(cu_frames, videos, t)
        new_video = tl.load(cu_frames + video) == t
        video = tl.minimum(video, videos - 1)
    first, length = span_of(cu_frames, video, frames, RAGGED)
    owned = (t >= first) & (t < first + length)  # by its video: not beyond the last one
    finish_frames(partial, sums, similarity, t, new_video, frames, tiles, FINISH_BLOCK, ACC)
    tl.debug_barrier()  # the values of all threads are written before any frame is counted, ...
    count = tl.atomic_add(finished + video, 1, mask=owned, sem="acq_rel")
    # ... so the block that counts a video's last frame sees those of all frames.
    complete = tl.where(owned & (count == length - 1), video, -1)
    _, size = span_of(cu_frames, tl.minimum(t, videos - 1), frames, RAGGED)
    empty = tl.where((t < videos) & (size == 0), t, -1)
    one = tl.maximum(tl.max(complete, 0), tl.max(empty, 0))
    while one >= 0:
        begin, number = span_of(cu_frames, one, frames, RAGGED)
        row = boundaries + one.to(tl.int64) * num_boundaries
        select_lowest(similarity + begin, number, row, num_boundaries, limit, BLOCK)
        complete = tl.where(complete == one, -1, complete)
        empty = tl.where(empty == one, -1, empty)
        one = tl.maximum(tl.max(complete, 0), tl.max(empty, 0))


def forward(
    features: torch.Tensor,
    num_boundaries: int,
    cu_frames: torch.Tensor | None = None,
    threshold: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    operands.dense("features", features, "[F, N]", 2, features)
    _checks.count("num_boundaries", num_boundaries, 0)
    frames = features.shape[0]
    videos = operands.videos(cu_frames, frames, features)
    finished = features.new_empty((videos,), dtype=torch.int32)
    partial = launch_partial_sums(features, finished)
    sums = partial.new_empty((frames, 2))
    similarity = features.new_empty((max(frames - 1, 0),), dtype=torch.float32)
    boundaries = features.new_empty((videos, num_boundaries), dtype=torch.int32)
    if max(frames, videos) > 0:
        finish_and_select[(triton.cdiv(max(frames, videos), FINISH_ROWS),)](
            partial,
            cu_frames,
            finished,
            sums,
            similarity,
            boundaries,
            partial.shape[2],
            frames,
            videos,
            num_boundaries,
            limit_of(threshold),
            ROWS=FINISH_ROWS,
            FINISH_BLOCK=FINISH_BLOCK,
            BLOCK=BLOCK,
            ACC=triton_dtype(sums.dtype),
            RAGGED=cu_frames is not None,
            num_warps=WARPS,
        )
    return similarity, sums, boundaries


AOT = [  # instances as launched above, with and without prefix sums
    instance(
        finish_and_select,
        f"*{acc} *i32 *i32 *{acc} *fp32 *i32 i32 i32 i32 i32 i32",
        WARPS,
        ROWS=FINISH_ROWS,
        FINISH_BLOCK=FINISH_BLOCK,
        BLOCK=BLOCK,
        ACC=acc_type,
        RAGGED=True,
    )
    for acc, acc_type in (("fp32", tl.float32), ("fp64", tl.float64))
]
AOT.append(
    instance(
        finish_and_select,
        "*fp32 *i32 *fp32 *fp32 *i32 i32 i32 i32 i32 i32",
        WARPS,
        cu_frames=None,
        ROWS=FINISH_ROWS,
        FINISH_BLOCK=FINISH_BLOCK,
        BLOCK=BLOCK,
        ACC=tl.float32,
        RAGGED=False,
    )
)
