# SPDX-License-Identifier: Apache-2.0
"""Frame similarity in Triton: programs own a tile of the features and walk along time, so that
memory is read once; a second launch adds the tiles up in a fixed order."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tdc_kernels import _checks
from tdc_kernels.ops import operands
from tdc_kernels.ops.frame_similarity import accumulation_dtype
from tdc_kernels.triton_support import instance

EPS = tl.constexpr(1e-8)  # smallest norm divided by, as in torch.nn.functional.cosine_similarity

# Features of a program and its warps: 4 KB a frame and 32 bytes a thread, of which the next frame
# is on its way while one is being summed. Not tuned on a GPU.
TILE_BYTES, WARPS = 4096, 4
PARTS = 1024  # programs wanted in all; a part of time is at least ...
PART_FRAMES = 32  # ... this long, as its first frame's predecessor is read twice

# Frames of a program of the second launch, tiles added up at once, warps. The order of summation
# depends on them, so segment_scenes takes the same. Not tuned on a GPU.
FINISH_ROWS, FINISH_BLOCK, FINISH_WARPS = 8, 128, 4


def part_frames(frames: int, tiles: int) -> int:
    """Frames of one program's part of time."""
    wanted = max(PARTS // max(tiles, 1), 1)
    return max(-(-frames // wanted), PART_FRAMES)


@triton.jit
def video_of(cu_frames, videos, t):
    """The videos of frames t, a number or a block: the last one that begins at or before t (empty
    ones that begin there too come earlier); `videos` where there is no such frame."""
    low = t * 0
    high = low + videos
    steps = videos
    while steps > 0:  # the first entry of cu_frames[1:] > t
        middle = (low + high) // 2
        end = tl.load(cu_frames + middle + 1, mask=low < high, other=0x7FFFFFFF)
        low = tl.where(end <= t, middle + 1, low)
        high = tl.where(end <= t, high, middle)
        steps = steps // 2
    return low


@triton.jit
def begins(cu_frames, videos, t):
    """True where a video begins with frame t: no pair of frames reaches across."""
    return tl.load(cu_frames + video_of(cu_frames, videos, t)) == t


@triton.jit(do_not_specialize=["counted", "frames", "steps"])
def partial_sums(
    features,  # [F, N], rows `stride` apart
    partial,  # [F, 2, tiles]: <x_{t-1}, x_t> and |x_t|^2 over the program's features
    stride,
    width,
    counters,  # int32 of the launch that follows, zeroed on the way, or None
    counted,
    frames,
    steps,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    tile = tl.program_id(0)
    tiles = tl.num_programs(0)
    if counters is not None and (tile == 0) & (tl.program_id(1) == 0):
        for start in range(0, counted, BLOCK):
            index = start + tl.arange(0, BLOCK)
            tl.store(counters + index, 0, mask=index < counted)
    first = tl.program_id(1) * steps
    last = tl.minimum(first + steps, frames)
    column = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    x = features + first.to(tl.int64) * stride + column
    previous = tl.load(x - stride, mask=column < tl.where(first > 0, width, 0), other=0.0).to(ACC)
    current = tl.load(x, mask=mask, other=0.0)
    out = partial + first.to(tl.int64) * 2 * tiles + tile
    for t in range(first, last):
        x += stride
        following = tl.load(x, mask=column < tl.where(t + 1 < last, width, 0), other=0.0)
        value = current.to(ACC)
        tl.store(out, tl.sum(previous * value, 0))
        tl.store(out + tiles, tl.sum(value * value, 0))
        out += 2 * tiles
        previous = value
        current = following


@triton.jit
def frame_totals(partial, t, frames, tiles, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """<x_{t-1}, x_t> (0 for the first frame), |x_{t-1}|^2 and |x_t|^2 of frames t [ROWS], tiles
    added up in order."""
    dot = tl.full([t.shape[0], BLOCK], 0, ACC)
    before = tl.full([t.shape[0], BLOCK], 0, ACC)
    square = tl.full([t.shape[0], BLOCK], 0, ACC)
    row = partial + t.to(tl.int64)[:, None] * 2 * tiles
    exists = (t < frames)[:, None]
    earlier = ((t > 0) & (t < frames))[:, None]
    for start in range(0, tiles, BLOCK):
        tile = (start + tl.arange(0, BLOCK))[None, :]
        dot += tl.load(row + tile, mask=(tile < tiles) & earlier, other=0.0)
        before += tl.load(row - tiles + tile, mask=(tile < tiles) & earlier, other=0.0)
        square += tl.load(row + tiles + tile, mask=(tile < tiles) & exists, other=0.0)
    return tl.sum(dot, 1), tl.sum(before, 1), tl.sum(square, 1)


@triton.jit
def clamped_root(square):
    # Of the type of the sums: a bare number is rounded to fp32 first.
    eps = tl.full(square.shape, EPS, square.dtype)
    return tl.maximum(tl.sqrt(square), eps, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def cosine(dot, before, square):
    return dot / (clamped_root(before) * clamped_root(square))


@triton.jit
def finish_frames(
    partial, sums, similarity, t, new_video, frames, tiles, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    """Write sums[t] and the similarity of frames t - 1 and t, for t [ROWS]; new_video: a video
    begins with t."""
    dot, before, square = frame_totals(partial, t, frames, tiles, BLOCK, ACC)
    row = sums + 2 * t.to(tl.int64)
    tl.store(row, dot, mask=t < frames)
    tl.store(row + 1, square, mask=t < frames)
    value = cosine(dot, before, square).to(tl.float32)
    value = tl.where(new_video, float("inf"), value)
    tl.store(similarity + t - 1, value, mask=(t > 0) & (t < frames))


@triton.jit(
    do_not_specialize=["frames", "videos"],
    do_not_specialize_on_alignment=["cu_frames", "similarity"],
)
def finish(
    partial,
    cu_frames,
    sums,  # [F, 2]
    similarity,  # [F-1]
    frames,
    tiles,
    videos,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    RAGGED: tl.constexpr,
):
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    new_video = t < 0
    if RAGGED:
        new_video = begins(cu_frames, videos, t)
    finish_frames(partial, sums, similarity, t, new_video, frames, tiles, BLOCK, ACC)


@triton.jit
def pair_weight(sums, grad, cu_frames, videos, frames, t, ACC: tl.constexpr, RAGGED: tl.constexpr):
    """Gradient of <x_{t-1}, x_t>; 0 where there is no such pair."""
    exists = (t > 0) & (t < frames)
    if RAGGED:
        exists = exists & (begins(cu_frames, videos, t) == 0)
    before = tl.load(sums + 2 * t - 1, mask=exists, other=1.0)
    square = tl.load(sums + 2 * t + 1, mask=exists, other=1.0)
    g = tl.load(grad + t - 1, mask=exists, other=0.0).to(ACC)
    return cosine(g, before, square)


@triton.jit(
    do_not_specialize=["frames", "steps", "videos"],
    do_not_specialize_on_alignment=["grad", "cu_frames"],
)
def gradient(
    features,
    grad,  # fp32 [F-1]
    sums,
    cu_frames,
    out,  # [F, N]
    stride,
    width,
    frames,
    steps,
    videos,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """grad_t = a x_{t-1} + b x_t + c x_{t+1}. With n = max(|x|, eps):
    ds_t/dx_t = x_{t-1} / (n_{t-1} n_t) - s_t x_t / |x_t|^2, the second part where |x_t| >= eps."""
    first = tl.program_id(1) * steps
    last = tl.minimum(first + steps, frames)
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    x = features + first.to(tl.int64) * stride + column
    out += first.to(tl.int64) * width + column
    previous = tl.load(x - stride, mask=column < tl.where(first > 0, width, 0), other=0.0).to(ACC)
    current = tl.load(x, mask=mask, other=0.0).to(ACC)
    before = pair_weight(sums, grad, cu_frames, videos, frames, first, ACC, RAGGED)
    for t in range(first, last):
        x += stride
        following = tl.load(x, mask=column < tl.where(t + 1 < frames, width, 0), other=0.0).to(ACC)
        after = pair_weight(sums, grad, cu_frames, videos, frames, t + 1, ACC, RAGGED)
        # A weight of 0 has no pair, and what stands there may be a NaN of another video.
        dot = tl.load(sums + 2 * t)
        dot_after = tl.load(sums + 2 * t + 2, mask=t + 1 < frames, other=0.0)
        own = tl.where(before != 0, before * dot, 0.0) + tl.where(
            after != 0, after * dot_after, 0.0
        )
        square = tl.load(sums + 2 * t + 1)
        own = tl.where(tl.sqrt(square) < EPS, 0.0, -own / square)
        total = own * current
        total += tl.where(before != 0, before * previous, 0.0)
        total += tl.where(after != 0, after * following, 0.0)
        tl.store(out, total.to(out.dtype.element_ty), mask=mask)
        out += width
        previous = current
        current = following
        before = after


def launch_partial_sums(
    features: torch.Tensor, counters: torch.Tensor | None = None
) -> torch.Tensor:
    """``partial [F, 2, tiles]`` of features ``[F, N]`` with dense rows. The launch also zeroes the
    int32 ``counters``."""
    frames, width = features.shape
    block = TILE_BYTES // features.element_size()
    tiles = max(triton.cdiv(width, block), 1)
    acc = accumulation_dtype(features.dtype)
    partial = features.new_empty((frames, 2, tiles), dtype=acc)
    if frames > 0:
        steps = part_frames(frames, tiles)
        partial_sums[(tiles, triton.cdiv(frames, steps))](
            features,
            partial,
            features.stride(0),
            width,
            counters,
            0 if counters is None else counters.shape[0],
            frames,
            steps,
            BLOCK=block,
            ACC=triton_dtype(acc),
            num_warps=WARPS,
        )
    return partial


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def forward(
    features: torch.Tensor, cu_frames: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    operands.dense("features", features, "[F, N]", 2, features)
    frames = features.shape[0]
    videos = operands.videos(cu_frames, frames, features)
    partial = launch_partial_sums(features)
    sums = partial.new_empty((frames, 2))
    similarity = features.new_empty((max(frames - 1, 0),), dtype=torch.float32)
    if frames > 0:
        finish[(triton.cdiv(frames, FINISH_ROWS),)](
            partial,
            cu_frames,
            sums,
            similarity,
            frames,
            partial.shape[2],
            videos,
            ROWS=FINISH_ROWS,
            BLOCK=FINISH_BLOCK,
            ACC=triton_dtype(sums.dtype),
            RAGGED=cu_frames is not None,
            num_warps=FINISH_WARPS,
        )
    return similarity, sums


def backward(
    grad: torch.Tensor,
    features: torch.Tensor,
    sums: torch.Tensor,
    cu_frames: torch.Tensor | None = None,
) -> torch.Tensor:
    operands.dense("features", features, "[F, N]", 2, features)
    frames, width = features.shape
    videos = operands.videos(cu_frames, frames, features)
    operands.sized("grad", grad, (max(frames - 1, 0),), features)
    operands.sized("sums", sums, (frames, 2), features)
    _checks.same_dtype("sums", sums, accumulation_dtype(features.dtype), "sums of these features")
    out = features.new_empty((frames, width))
    block = TILE_BYTES // features.element_size()
    tiles = triton.cdiv(width, block)
    if frames > 0 and tiles > 0:
        steps = part_frames(frames, tiles)
        gradient[(tiles, triton.cdiv(frames, steps))](
            features,
            grad.contiguous(),
            sums.contiguous(),
            cu_frames,
            out,
            features.stride(0),
            width,
            frames,
            steps,
            videos,
            BLOCK=block,
            ACC=triton_dtype(sums.dtype),
            RAGGED=cu_frames is not None,
            num_warps=WARPS,
        )
    return out


def _instances(dtype: torch.dtype, name: str, acc: str, ragged: bool) -> list[Any]:
    """The launches above for one dtype, called ``name`` by Triton, summed in ``acc``."""
    block, acc_type = TILE_BYTES // dtype.itemsize, triton_dtype(accumulation_dtype(dtype))
    constants = {"ACC": acc_type, "RAGGED": ragged} | ({} if ragged else {"cu_frames": None})
    cu = "*i32" if ragged else ""
    counters = "*i32" if ragged else ""
    return [
        instance(
            partial_sums,
            f"*{name} *{acc} i32 i32 {counters} i32 i32 i32",
            WARPS,
            BLOCK=block,
            ACC=acc_type,
            **({} if counters else {"counters": None}),
        ),
        instance(
            finish,
            f"*{acc} {cu} *{acc} *fp32 i32 i32 i32",
            FINISH_WARPS,
            ROWS=FINISH_ROWS,
            BLOCK=FINISH_BLOCK,
            **constants,
        ),
        instance(
            gradient,
            f"*{name} *fp32 *{acc} {cu} *{name} i32 i32 i32 i32 i32",
            WARPS,
            BLOCK=block,
            **constants,
        ),
    ]


AOT = [
    *_instances(torch.bfloat16, "bf16", "fp32", True),
    *_instances(torch.float32, "fp32", "fp32", False),
    *_instances(torch.float64, "fp64", "fp64", True),
]
