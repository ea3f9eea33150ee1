# SPDX-License-Identifier: Apache-2.0
"""Frame similarity in Triton: programs own a tile of the features and walk along time, so that
memory is read once; a second launch adds the tiles up in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tdc_kernels.ops.frame_similarity import accumulation_dtype

EPS = tl.constexpr(1e-8)  # smallest norm divided by, as in torch.nn.functional.cosine_similarity

# Features of a program and its warps: 4 KB a frame and 32 bytes a thread, of which the next frame
# is on its way while one is being summed. Not tuned on a GPU.
TILE_BYTES, WARPS = 4096, 4
PARTS = 1024  # programs wanted in all; a part of time is at least ...
PART_FRAMES = 32  # ... this long, as its first frame's predecessor is read twice


def part_frames(frames: int, tiles: int) -> int:
    """Frames of one program's part of time."""
    wanted = max(PARTS // max(tiles, 1), 1)
    return max(-(-frames // wanted), PART_FRAMES)


@triton.jit
def begins(cu_frames, videos, t):
    """Whether a video begins with frame t (a scalar): no pair of frames reaches across."""
    low = 0
    high = videos + 1
    while low < high:  # the first entry >= t
        middle = (low + high) // 2
        if tl.load(cu_frames + middle) < t:
            low = middle + 1
        else:
            high = middle
    inside = low <= videos
    return inside & (tl.load(cu_frames + low, mask=inside, other=-1) == t)


@triton.jit
def partial_sums(
    features,  # [F, N], rows `stride` apart
    partial,  # [F, 2, tiles]: <x_{t-1}, x_t> and |x_t|^2 over the program's features
    stride,
    width,
    frames,
    steps,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    tile = tl.program_id(0)
    tiles = tl.num_programs(0)
    first = tl.program_id(1) * steps
    last = tl.minimum(first + steps, frames)
    column = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    x = features + first.to(tl.int64) * stride + column
    previous = tl.load(x - stride, mask=mask & (first > 0), other=0.0).to(ACC)
    current = tl.load(x, mask=mask, other=0.0)
    out = partial + first.to(tl.int64) * 2 * tiles + tile
    for t in range(first, last):
        x += stride
        following = tl.load(x, mask=mask & (t + 1 < last), other=0.0)
        value = current.to(ACC)
        tl.store(out, tl.sum(previous * value, 0))
        tl.store(out + tiles, tl.sum(value * value, 0))
        out += 2 * tiles
        previous = value
        current = following


@triton.jit
def frame_total(partial, t, tiles, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """<x_{t-1}, x_t> (0 for the first frame), |x_{t-1}|^2 and |x_t|^2, tiles added up in order."""
    dot = tl.zeros([BLOCK], dtype=ACC)
    before = tl.zeros([BLOCK], dtype=ACC)
    square = tl.zeros([BLOCK], dtype=ACC)
    row = partial + t.to(tl.int64) * 2 * tiles
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        mask = tile < tiles
        earlier = mask & (t > 0)
        dot += tl.load(row + tile, mask=earlier, other=0.0)
        before += tl.load(row - tiles + tile, mask=earlier, other=0.0)
        square += tl.load(row + tiles + tile, mask=mask, other=0.0)
    return tl.sum(dot, 0), tl.sum(before, 0), tl.sum(square, 0)


@triton.jit
def cosine(dot, before, square):
    norms = tl.maximum(tl.sqrt(before), EPS, propagate_nan=tl.PropagateNan.ALL) * tl.maximum(
        tl.sqrt(square), EPS, propagate_nan=tl.PropagateNan.ALL
    )
    return dot / norms


@triton.jit
def finish(
    partial,
    cu_frames,
    sums,  # [F, 2]
    similarity,  # [F-1]
    tiles,
    videos,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    RAGGED: tl.constexpr,
):
    t = tl.program_id(0)
    dot, before, square = frame_total(partial, t, tiles, BLOCK, ACC)
    tl.store(sums + 2 * t, dot)
    tl.store(sums + 2 * t + 1, square)
    if t > 0:
        value = cosine(dot, before, square).to(tl.float32)
        if RAGGED:
            value = tl.where(begins(cu_frames, videos, t), float("inf"), value)
        tl.store(similarity + t - 1, value)


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


@triton.jit
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
    previous = tl.load(x - stride, mask=mask & (first > 0), other=0.0).to(ACC)
    current = tl.load(x, mask=mask, other=0.0).to(ACC)
    before = pair_weight(sums, grad, cu_frames, videos, frames, first, ACC, RAGGED)
    for t in range(first, last):
        x += stride
        following = tl.load(x, mask=mask & (t + 1 < frames), other=0.0).to(ACC)
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


def launch_partial_sums(features: torch.Tensor) -> torch.Tensor:
    """``partial [F, 2, tiles]`` of features ``[F, N]`` with dense rows."""
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
    frames = features.shape[0]
    partial = launch_partial_sums(features)
    sums = partial.new_empty((frames, 2))
    similarity = features.new_empty((max(frames - 1, 0),), dtype=torch.float32)
    if frames > 0:
        finish[(frames,)](
            partial,
            cu_frames,
            sums,
            similarity,
            partial.shape[2],
            0 if cu_frames is None else cu_frames.shape[0] - 1,
            BLOCK=256,
            ACC=triton_dtype(sums.dtype),
            RAGGED=cu_frames is not None,
            num_warps=2,
        )
    return similarity, sums


def backward(
    grad: torch.Tensor,
    features: torch.Tensor,
    sums: torch.Tensor,
    cu_frames: torch.Tensor | None = None,
) -> torch.Tensor:
    frames, width = features.shape
    out = features.new_empty((frames, width))
    block = TILE_BYTES // features.element_size()
    tiles = triton.cdiv(width, block)
    if frames > 0 and tiles > 0:
        steps = part_frames(frames, tiles)
        gradient[(tiles, triton.cdiv(frames, steps))](
            features,
            grad.contiguous(),
            sums,
            cu_frames,
            out,
            features.stride(0),
            width,
            frames,
            steps,
            0 if cu_frames is None else cu_frames.shape[0] - 1,
            BLOCK=block,
            ACC=triton_dtype(sums.dtype),
            RAGGED=cu_frames is not None,
            num_warps=WARPS,
        )
    return out
