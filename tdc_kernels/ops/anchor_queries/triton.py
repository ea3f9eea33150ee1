# SPDX-License-Identifier: Apache-2.0
"""The pooling of anchor queries in Triton: a program per bin and tile of columns, which reads the
bin's tokens once (the one it shares with a neighbour comes from the L2 cache). In the gradient a
program owns some tokens of a frame, adds up what the bins around them received, and writes them
once, zeros included."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tdc_kernels import _checks
from tdc_kernels.ops import operands
from tdc_kernels.ops.frame_similarity.triton import triton_dtype
from tdc_kernels.triton_support import instance

# A program's columns and warps: 2 KB of a token and 16 bytes a thread, of TOKENS tokens at once, so
# that four loads are on their way. Not tuned on a GPU.
TILE_BYTES, WARPS = 2048, 4
TOKENS = 4
ROWS = 256  # of `index`, compared with a frame at once


@triton.jit
def divide(x, n, ACC: tl.constexpr):
    if ACC.primitive_bitwidth == 64:
        return x / n.to(ACC)
    else:
        return tl.div_rn(x, n.to(ACC))  # fp32's `/` is off by up to two ulps


@triton.jit
def frame_at(index, row, frames):
    """The frame of an anchor, one of those that there are whatever its number."""
    frame = tl.load(index + row).to(tl.int64)
    return tl.minimum(tl.maximum(frame, 0), frames - 1)


@triton.jit(
    do_not_specialize=["frame_stride", "frames", "length", "queries"],
    do_not_specialize_on_alignment=["index"],
)
def pool(
    tokens,  # [F, L, D], dense rows
    index,  # [A] frame numbers, if INDEXED
    out,  # [A, K, D]
    frame_stride,  # in STEP elements: what is known of it depends on no length
    token_stride,
    frames,
    length,
    queries,
    width,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    STEP: tl.constexpr,
    ACC: tl.constexpr,
    INDEXED: tl.constexpr,
):
    row = tl.program_id(0)  # of [A * K]
    frame = (row // queries).to(tl.int64)
    if INDEXED:
        frame = frame_at(index, frame, frames)
    j = (row % queries).to(tl.int64)
    start = (j * length // queries).to(tl.int32)
    stop = (((j + 1) * length + queries - 1) // queries).to(tl.int32)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    x = tokens + frame * frame_stride * STEP + column
    total = tl.zeros([TOKENS, BLOCK], dtype=ACC)
    for first in range(start, stop, TOKENS):
        token = first + tl.arange(0, TOKENS)
        mask = (token < stop)[:, None] & inside[None, :]
        at = x[None, :] + token.to(tl.int64)[:, None] * token_stride
        total += tl.load(at, mask=mask, other=0.0).to(ACC)
    mean = divide(tl.sum(total, 0), stop - start, ACC)
    tl.store(out + row.to(tl.int64) * width + column, mean.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_anchor(
    total,  # [TOKENS, BLOCK]
    grad,  # of one anchor, at the first bin of the tokens and the program's columns: [BLOCK]
    token,  # [TOKENS]
    end,  # behind the last token that there is
    start,  # floor(jL/K) of that bin ...
    rest,  # ... and jL mod K
    length,
    queries,
    width,
    inside,  # [BLOCK]
    ACC: tl.constexpr,
):
    """Walks over the bins that touch the tokens, without a division on the way."""
    quotient = length // queries
    remainder = length % queries
    # Bins are this wide, or one or two tokens wider.
    scale_0 = divide(1.0, tl.maximum(quotient, 1), ACC)
    scale_1 = divide(1.0, quotient + 1, ACC)
    scale_2 = divide(1.0, quotient + 2, ACC)
    while start < end:
        rest += remainder
        carry = (rest >= queries).to(tl.int32)
        rest -= carry * queries
        following = start + quotient + carry
        stop = following + (rest > 0).to(tl.int32)
        more = stop - start - quotient
        scale = tl.where(more == 0, scale_0, tl.where(more == 1, scale_1, scale_2))
        value = tl.load(grad[None, :], mask=inside[None, :], other=0.0).to(ACC) * scale
        member = (token >= start) & (token < stop)
        total += tl.where(member[:, None], value, 0.0)
        start = following
        grad += width
    return total


@triton.jit(
    do_not_specialize=["rows", "frames", "length", "queries"],
    do_not_specialize_on_alignment=["index"],
)
def gradient(
    grad,  # [A, K, D]
    index,  # [A] frame numbers, if INDEXED
    out,  # [F, L, D]
    rows,
    frames,
    length,
    queries,
    width,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
    INDEXED: tl.constexpr,
):
    parts = tl.cdiv(length, TOKENS)
    frame = tl.program_id(0) // parts
    first = tl.program_id(0) % parts * TOKENS
    token = first + tl.arange(0, TOKENS)
    end = tl.minimum(first + TOKENS, length)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width

    j = first.to(tl.int64) * queries // length  # the first bin with one of the tokens
    start = (j * length // queries).to(tl.int32)
    rest = (j * length % queries).to(tl.int32)
    at = grad + j * width + column
    size = queries.to(tl.int64) * width  # of one anchor
    total = tl.zeros([TOKENS, BLOCK], dtype=ACC)
    if INDEXED:
        for begin in range(0, rows, ROWS):  # the anchors that ask for this frame, in order
            row = begin + tl.arange(0, ROWS)
            asked = tl.load(index + row, mask=row < rows, other=0)
            asked = tl.minimum(tl.maximum(asked, 0), frames - 1)  # as in `frame_at`
            asks = (asked == frame) & (row < rows)
            anchor = tl.min(tl.where(asks, row, rows), 0)
            while anchor < rows:
                there = at + anchor.to(tl.int64) * size
                total = add_anchor(
                    total, there, token, end, start, rest, length, queries, width, inside, ACC
                )
                anchor = tl.min(tl.where(asks & (row > anchor), row, rows), 0)
    else:
        at += frame.to(tl.int64) * size
        total = add_anchor(total, at, token, end, start, rest, length, queries, width, inside, ACC)
    place = (frame.to(tl.int64) * length + token) * width
    mask = (token < length)[:, None] & inside[None, :]
    at = out + place[:, None] + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=mask)


def tile(width: int, itemsize: int) -> tuple[int, int]:
    """A program's columns and the tokens it has at once; more where they are narrow."""
    columns = TILE_BYTES // itemsize
    block = min(columns, triton.next_power_of_2(width))
    return block, TOKENS * columns // block


def stride_step(x: torch.Tensor) -> int:
    """How many elements the distance of the entries of ``x`` [F, N, D] is a multiple of: 16 where
    loads may be wide. Of rows without gaps it depends on the width alone."""
    return 16 if x.shape[2] % 16 == 0 and x.stride(0) % 16 == 0 else 1


def forward(
    tokens: torch.Tensor,
    num_queries: int,
    index: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    operands.dense("tokens", tokens, "[F, L, D]", 3, tokens)
    _checks.count("num_queries", num_queries, 1)
    frames, length, width = tokens.shape
    if length < 1:
        raise ValueError(f"tokens: expected [F, L, D] with L >= 1, got {_checks.describe(tokens)}")
    anchors = operands.index(index, frames, tokens)
    out = tokens.new_empty((anchors, num_queries, width), dtype=dtype or tokens.dtype)
    if out.numel() > 0:
        block, together = tile(width, tokens.element_size())
        step = stride_step(tokens)
        pool[(anchors * num_queries, triton.cdiv(width, block))](
            tokens,
            index,
            out,
            tokens.stride(0) // step,
            tokens.stride(1),
            frames,
            length,
            num_queries,
            width,
            BLOCK=block,
            TOKENS=together,
            STEP=step,
            ACC=triton_dtype(tokens.dtype),
            INDEXED=index is not None,
            num_warps=WARPS,
        )
    return out


def backward(
    grad: torch.Tensor,
    frames: int,
    length: int,
    index: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    _checks.floating("grad", grad, "[A, K, D]", ndim=3)
    anchors, queries, width = grad.shape
    if queries < 1 or anchors != operands.index(index, frames, grad):
        raise ValueError(f"grad: expected [A, K, D], K >= 1, got {_checks.describe(grad)}")
    out = grad.new_empty((frames, length, width), dtype=dtype)
    if out.numel() > 0:
        block, together = tile(width, out.element_size())
        gradient[(frames * triton.cdiv(length, together), triton.cdiv(width, block))](
            grad.contiguous(),
            index,
            out,
            anchors,
            frames,
            length,
            queries,
            width,
            BLOCK=block,
            TOKENS=together,
            ROWS=ROWS,
            ACC=triton_dtype(dtype),
            INDEXED=index is not None,
            num_warps=WARPS,
        )
    return out


def _instances(dtype: torch.dtype, name: str, index: str) -> list[Any]:
    """The launches above for one dtype, called ``name`` by Triton; ``index``: its type, if any."""
    block = TILE_BYTES // dtype.itemsize
    constants = {"BLOCK": block, "TOKENS": TOKENS, "ACC": triton_dtype(dtype)}
    constants |= {"INDEXED": bool(index)} | ({} if index else {"index": None})
    types = f"*{name} {index} *{name}"
    return [
        instance(pool, f"{types} i32 i32 i32 i32 i32 i32", WARPS, STEP=16, **constants),
        instance(gradient, f"{types} i32 i32 i32 i32 i32", WARPS, ROWS=ROWS, **constants),
    ]


AOT = [
    *_instances(torch.bfloat16, "bf16", "*i64"),
    *_instances(torch.float32, "fp32", ""),
    *_instances(torch.float64, "fp64", "*i32"),
]
