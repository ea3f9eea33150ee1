# SPDX-License-Identifier: Apache-2.0
"""Scene boundaries in Triton: a program per video finds the lowest similarities. Integers only, so
the result depends on no order of execution."""

from __future__ import annotations

import ctypes

import torch
import triton
import triton.language as tl

from tdc_kernels import _checks
from tdc_kernels.ops import operands
from tdc_kernels.triton_support import instance

HIGHEST = tl.constexpr(0x7FFFFFFF)  # higher than every key
LOWEST = tl.constexpr(-0x80000000)  # lower than every key; the bits of -0.0
NEGATIVE_INFINITY = tl.constexpr(-0x800000)  # its bits
DIGITS = tl.constexpr(16)  # values of the four bits of a key found per pass over a video's keys

# Pairs of one step and warps: 16 registers a thread for the [16, BLOCK] counts. Not tuned on a GPU,
# but chosen so that nothing spills: 512 and 16 do with Triton 3.7, 1024 and 16 with 3.9.
BLOCK, WARPS = 256, 8


def limit_of(threshold: float | None) -> int:
    """The key that a pair's must be lower than. PyTorch compares a float tensor with a number in
    float; so must this."""
    if threshold is None:
        return HIGHEST.value
    bits = ctypes.c_int32.from_buffer(ctypes.c_float(threshold)).value
    return bits if bits >= 0 else bits ^ HIGHEST.value  # of -0.0, -1: no pair has this key


@triton.jit
def keys_of(similarity, index, pairs):
    """int32 keys in the order of the values: -0.0 is 0.0, NaN -inf. HIGHEST past the last pair."""
    inside = index < pairs
    value = tl.load(similarity + index, mask=inside, other=0.0)
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(bits == LOWEST, 0, bits)
    bits = tl.where(value != value, NEGATIVE_INFINITY, bits)
    return tl.where(inside, bits ^ ((bits >> 31) & HIGHEST), HIGHEST)


@triton.jit
def kth_lowest(similarity, pairs, k, BLOCK: tl.constexpr):
    """The k-th lowest key and how many are lower, 1 <= k <= pairs: digit by digit, the largest
    number that fewer than k keys are lower than."""
    key = tl.full([], LOWEST, tl.int32)
    count = tl.full([DIGITS], 0, tl.int32)
    for digit in range(8):
        candidate = key + (tl.arange(0, DIGITS) << (28 - 4 * digit))  # the first one is `key`
        lower = tl.full([DIGITS, BLOCK], 0, tl.int32)
        for start in range(0, pairs, BLOCK):
            keys = keys_of(similarity, start + tl.arange(0, BLOCK), pairs)
            lower += (keys[None, :] < candidate[:, None]).to(tl.int32)
        count = tl.sum(lower, 1)  # [DIGITS], rising; the first one is lower than k
        key = tl.max(tl.where(count < k, candidate, LOWEST), 0)
    return key, tl.max(tl.where(count < k, count, 0), 0)


@triton.jit
def fill(out, start, stop, value, BLOCK: tl.constexpr):
    """out[start:stop] = value"""
    for block in range(start, stop, BLOCK):
        index = block + tl.arange(0, BLOCK)
        tl.store(out + index, value, mask=index < stop)


@triton.jit
def select_lowest(similarity, frames, out, num_boundaries, limit, BLOCK: tl.constexpr):
    """Write a video's row of `num_boundaries` from its `frames - 1` pairs."""
    pairs = frames - 1  # -1 of an empty video
    most = tl.minimum(num_boundaries, pairs)
    key = tl.full([], HIGHEST, tl.int32)
    below = tl.full([], 0, tl.int32)
    if (most > 0) & (most < pairs):
        key, below = kth_lowest(similarity, pairs, most, BLOCK)
    # The boundaries are all keys below `cut` and the first `quota` that equal `key`.
    cut = tl.minimum(key, limit)
    quota = tl.where(key < limit, most - below, 0)
    lower = tl.full([], 0, tl.int32)  # of either, how many there were so far
    equal = tl.full([], 0, tl.int32)
    start = tl.full([], 0, tl.int32)
    while (start < pairs) & (lower + tl.minimum(equal, quota) < most):
        index = start + tl.arange(0, BLOCK)
        keys = keys_of(similarity, index, pairs)
        is_lower = keys < cut
        is_equal = keys == key
        both = is_lower.to(tl.int32) + (is_equal.to(tl.int32) << 16)  # two counts in one scan
        before = tl.cumsum(both, 0) - both
        my_lower = lower + (before & 0xFFFF)
        my_equal = equal + (before >> 16)
        chosen = is_lower | (is_equal & (my_equal < quota))
        place = my_lower + tl.minimum(my_equal, quota)
        # Always there, unless prefix sums that are none let somebody write similarities meanwhile.
        tl.store(out + place, index + 1, mask=chosen & (place < num_boundaries))
        total = tl.sum(both, 0)
        lower += total & 0xFFFF
        equal += total >> 16
        start += BLOCK
    fill(out, lower + tl.minimum(equal, quota), num_boundaries, frames, BLOCK)


@triton.jit
def span_of(cu_frames, video, frames, RAGGED: tl.constexpr):
    """First frames and lengths of videos; without prefix sums, the one of all `frames`. Sums that
    are none give some of the frames that there are, or none."""
    first = video * 0
    if RAGGED:
        first = tl.minimum(tl.maximum(tl.load(cu_frames + video), 0), frames)
        last = tl.minimum(tl.load(cu_frames + video + 1), frames)
        frames = tl.maximum(last - first, 0)
    return first, frames


@triton.jit(
    do_not_specialize=["frames", "num_boundaries", "limit"],
    do_not_specialize_on_alignment=["similarity", "cu_frames"],
)
def lowest(
    similarity,  # [frames - 1]
    cu_frames,
    out,  # [B, num_boundaries]
    frames,  # of all videos
    num_boundaries,
    limit,
    BLOCK: tl.constexpr,
    RAGGED: tl.constexpr,
):
    video = tl.program_id(0)
    first, frames = span_of(cu_frames, video, frames, RAGGED)
    row = out + video.to(tl.int64) * num_boundaries
    select_lowest(similarity + first, frames, row, num_boundaries, limit, BLOCK)


def forward(
    similarity: torch.Tensor,
    num_boundaries: int,
    cu_frames: torch.Tensor | None = None,
    threshold: float | None = None,
) -> torch.Tensor:
    _checks.floating("similarity", similarity, "[F-1]", ndim=1)
    _checks.same_dtype("similarity", similarity, torch.float32, "frame_similarity's output")
    _checks.count("num_boundaries", num_boundaries, 0)
    pairs = similarity.shape[0]
    videos = operands.videos(cu_frames, pairs + 1 if pairs > 0 else 0, similarity)
    out = similarity.new_empty((videos, num_boundaries), dtype=torch.int32)
    if out.numel() > 0:
        lowest[(videos,)](
            similarity.contiguous(),
            cu_frames,
            out,
            pairs + 1,
            num_boundaries,
            limit_of(threshold),
            BLOCK=BLOCK,
            RAGGED=cu_frames is not None,
            num_warps=WARPS,
        )
    return out


AOT = [  # instances as launched above, with and without prefix sums
    instance(lowest, "*fp32 *i32 *i32 i32 i32 i32", WARPS, BLOCK=BLOCK, RAGGED=True),
    instance(lowest, "*fp32 *i32 i32 i32 i32", WARPS, cu_frames=None, BLOCK=BLOCK, RAGGED=False),
]
