# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels that attend with the weights absorbed into the queries. The scores of a row go
through memory: they are a ninth of its absorbed queries (at the paper's 206 tokens of 3584 values),
and without them a program would have to hold all of them, and there would be few programs."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from tdc_kernels.ops.anchor_queries.triton import stride_step
from tdc_kernels.ops.cross_attention.reference import hidden_tokens
from tdc_kernels.ops.cross_attention.triton_attend import (
    dot,
    frame_of,
    length_of,
    seen_tokens,
    shifted_exp,
)
from tdc_kernels.ops.cross_attention.triton_call import QUERIES, WARPS, Call
from tdc_kernels.ops.frame_similarity import accumulation_dtype
from tdc_kernels.ops.frame_similarity.triton import triton_dtype

# Not tuned on a GPU. Queries and tokens of a softmax' block, and values of the absorbed queries of
# the rows that go together: 34 MB in bf16, 24 of the paper's rows.
SOFTMAX_ROWS, SOFTMAX_TOKENS = 4, 256
ABSORBED_AT_ONCE = 1 << 24
SLAB = 512  # columns whose products are added up by themselves

# What differs from call to call, for which nothing is compiled anew.
LENGTHS = ["frame_stride", "frame_count", "rows", "queries", "group", "tokens", "in_all"]
LENGTHS += ["first_token"]
NUMBERS = ["frames", "lengths", "mask"]


@triton.jit
def absorbed_place(first, j, m, rows, queries, width):
    """Addresses of queries ``j`` of [H * Q] of row ``m`` in ``[H, rows, Q, D]``."""
    head = j // queries
    return first + ((head.to(tl.int64) * rows + m) * queries + j % queries)[:, None] * width


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=NUMBERS)
def absorbed_scores(
    absorbed,  # [H, rows, Q, D]: q W_k of every head
    x,  # [F, N, D], one source's tokens, rows dense
    frames,  # [rows] frame numbers
    lengths,
    mask,
    out,  # [rows, H * Q, Nv + Na], rows score_stride apart; -inf at tokens that do not count
    frame_stride,  # in STEP elements
    token_stride,
    score_stride,
    frame_count,
    rows,
    queries,
    group,  # H * Q
    tokens,
    in_all,
    first_token,
    width,
    SCALE: tl.constexpr,  # 1 / sqrt(d)
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLAB: tl.constexpr,
    STEP: tl.constexpr,
    ACC: tl.constexpr,
):
    parts = tl.cdiv(group, BLOCK_Q)
    m = tl.program_id(0) // parts
    j = tl.program_id(0) % parts * BLOCK_Q + tl.arange(0, BLOCK_Q)
    j_ok = j < group
    token = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    frame = frame_of(frames, m, frame_count)
    length = length_of(lengths, frame, tokens)
    inside = token < length
    from_query = absorbed_place(absorbed, j, m, rows, queries, width)
    from_token = x + frame * frame_stride * STEP + token.to(tl.int64)[:, None] * token_stride
    score = tl.zeros([BLOCK_Q, BLOCK_N], dtype=ACC)
    # Nothing of a block beyond the length is read. Slabs of columns are added up by themselves: one
    # running sum over all of a token's width would be far less exact in fp32.
    stop = tl.where(tl.program_id(1) * BLOCK_N < length, width, 0)
    for slab in range(0, stop, SLAB):
        part = tl.zeros([BLOCK_Q, BLOCK_N], dtype=ACC)
        for start in range(slab, tl.minimum(slab + SLAB, stop), BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            ok = (column < width)[None, :]
            q = tl.load(from_query + column[None, :], mask=j_ok[:, None] & ok, other=0.0)
            k = tl.load(from_token + column[None, :], mask=inside[:, None] & ok, other=0.0)
            part = dot(q, tl.trans(k.to(q.dtype)), part, ACC)
        score += part
    seen = seen_tokens(mask, frame * in_all + first_token, token, length)
    score = tl.where(seen[None, :], score * SCALE, float("-inf"))
    at = out + (m.to(tl.int64) * group + j)[:, None] * score_stride
    at += first_token + token[None, :]
    tl.store(at, score, mask=j_ok[:, None] & (token < tokens)[None, :])


@triton.jit(do_not_specialize=["count", "in_all"])
def absorbed_softmax(
    score,  # [count, Nv + Na], rows score_stride apart
    out,  # the same, in the dtype that the tokens are multiplied in
    score_stride,
    count,
    in_all,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACC: tl.constexpr,
):
    j = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    at = j.to(tl.int64)[:, None] * score_stride
    j_ok = (j < count)[:, None]
    top = tl.full([BLOCK_Q], float("-inf"), dtype=ACC)
    total = tl.zeros([BLOCK_Q], dtype=ACC)
    # The gaps between rows are read as well: loads are wide, as nothing of them is cut off.
    for first in range(0, in_all, BLOCK_N):
        token = first + tl.arange(0, BLOCK_N)[None, :]
        s = tl.load(score + at + token, mask=j_ok & (token < score_stride), other=0.0)
        s = tl.where(token < in_all, s, float("-inf"))
        highest = tl.maximum(top, tl.max(s, 1))
        total = total * shifted_exp(top, highest) + tl.sum(shifted_exp(s, highest[:, None]), 1)
        top = highest
    total = tl.where(total == 0, 1.0, total)  # no token at all: zeros
    for first in range(0, in_all, BLOCK_N):
        token = first + tl.arange(0, BLOCK_N)[None, :]
        ok = j_ok & (token < score_stride)
        s = tl.load(score + at + token, mask=ok, other=0.0)
        p = shifted_exp(s, top[:, None]) / total[:, None]
        tl.store(out + at + token, p.to(out.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=NUMBERS)
def absorbed_mix(
    probability,  # [rows, H * Q, Nv + Na], rows score_stride apart
    x,  # [F, N, D]
    frames,  # [rows]
    lengths,
    out,  # [H, rows, Q, D]
    frame_stride,  # in STEP elements
    token_stride,
    score_stride,
    frame_count,
    rows,
    queries,
    group,
    tokens,
    first_token,
    width,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEP: tl.constexpr,
    ACC: tl.constexpr,
):
    parts = tl.cdiv(group, BLOCK_Q)
    m = tl.program_id(0) // parts
    j = tl.program_id(0) % parts * BLOCK_Q + tl.arange(0, BLOCK_Q)
    j_ok = (j < group)[:, None]
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    ok = column < width
    frame = frame_of(frames, m, frame_count)
    length = length_of(lengths, frame, tokens)
    from_probability = probability + (m.to(tl.int64) * group + j)[:, None] * score_stride
    from_probability += first_token
    from_token = x + frame * frame_stride * STEP + column
    mixed = tl.zeros([BLOCK_Q, BLOCK_D], dtype=ACC)
    for first in range(0, length, BLOCK_N):
        token = first + tl.arange(0, BLOCK_N)
        inside = token < length
        p = tl.load(from_probability + token[None, :], mask=j_ok & inside[None, :], other=0.0)
        at = from_token + token.to(tl.int64)[:, None] * token_stride
        value = tl.load(at, mask=inside[:, None] & ok, other=0.0).to(p.dtype)
        mixed = dot(p, value, mixed, ACC)
    to = absorbed_place(out, j, m, rows, queries, width) + column
    tl.store(to, mixed.to(out.dtype.element_ty), mask=j_ok & ok)


# ---------------------------------------------------------------- launches


def without_tokens(call: Call) -> torch.Tensor | None:
    """bool ``[F]``, the frames of which nothing counts; None where there is none."""
    visual, audio = call.sources[0], call.sources[1] if len(call.sources) > 1 else None
    hidden = hidden_tokens(
        visual.tokens,
        None if audio is None else audio.tokens,
        visual.lengths,
        None if audio is None else audio.lengths,
        None if call.mask is None else call.mask.view(torch.bool),
    )
    return None if hidden is None else hidden.all(1)


def absorbed_blocks(dtype: torch.dtype, group: int) -> dict[str, Any]:
    return {
        "BLOCK_Q": min(QUERIES, max(16, triton.next_power_of_2(group))),
        "BLOCK_N": 32,
        "BLOCK_D": 128 // dtype.itemsize,  # with more of fp32 and fp64 Triton 3.9 spills
        "ACC": triton_dtype(dtype),
        "num_warps": WARPS,
    }


def rows_dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def absorbed(call: Call) -> torch.Tensor:
    rows, queries, _ = call.query.shape
    out = torch.empty_like(call.query)
    nothing = without_tokens(call)
    depth = max(source.tokens.shape[2] for source in call.sources)
    step = max(ABSORBED_AT_ONCE // max(call.heads * queries * depth, 1), 1)
    index = call.index
    if index is None:
        index = torch.arange(rows, device=out.device)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        frames = index[part]
        mixed = absorbed_rows(call, call.query[part], frames)  # [H, m*Q, d]
        mixed = mixed.unflatten(1, (-1, queries)).permute(1, 2, 0, 3).flatten(2)
        if nothing is not None:  # zeros, without the bias
            mixed = mixed.masked_fill(nothing[call.existing(frames)][:, None, None], 0)
        out[part] = mixed
    return out


def absorbed_rows(call: Call, query: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Some rows' results, ``[H, m*Q, d]``."""
    rows, queries, _ = query.shape
    group = call.heads * queries
    q = query.unflatten(2, (call.heads, call.dim)).permute(2, 0, 1, 3).flatten(1, 2)  # [H, m*Q, d]
    stride = triton.cdiv(call.in_all, 16) * 16
    score = query.new_empty((rows, group, stride), dtype=accumulation_dtype(query.dtype))
    constants = absorbed_blocks(query.dtype, group)
    parts = rows * triton.cdiv(group, constants["BLOCK_Q"])
    for source in call.sources:
        if source.count == 0:
            continue
        x = rows_dense(source.tokens)
        step = stride_step(x)
        keys = source.w_key.unflatten(0, (call.heads, call.dim))  # [H, d, D]
        absorbed_scores[parts, triton.cdiv(source.count, constants["BLOCK_N"])](
            torch.bmm(q, keys),
            x,
            frames,
            source.lengths,
            call.mask,
            score,
            x.stride(0) // step,
            x.stride(1),
            stride,
            x.shape[0],
            rows,
            queries,
            group,
            source.count,
            call.in_all,
            source.first,
            x.shape[2],
            SCALE=1 / math.sqrt(call.dim),
            SLAB=SLAB,
            STEP=step,
            **constants,
        )
    probability = torch.empty_like(score, dtype=query.dtype)
    absorbed_softmax[(triton.cdiv(rows * group, SOFTMAX_ROWS),)](
        score,
        probability,
        stride,
        rows * group,
        call.in_all,
        BLOCK_Q=SOFTMAX_ROWS,
        BLOCK_N=SOFTMAX_TOKENS,
        ACC=constants["ACC"],
        num_warps=WARPS,
    )
    total: torch.Tensor | None = None
    for source in call.sources:
        x = rows_dense(source.tokens)
        step, depth = stride_step(x), x.shape[2]
        mixed = query.new_empty((call.heads, rows * queries, depth))
        absorbed_mix[parts, triton.cdiv(depth, constants["BLOCK_D"])](
            probability,
            x,
            frames,
            source.lengths,
            mixed,
            x.stride(0) // step,
            x.stride(1),
            stride,
            x.shape[0],
            rows,
            queries,
            group,
            source.count,
            source.first,
            depth,
            STEP=step,
            **constants,
        )
        values = source.w_value.unflatten(0, (call.heads, call.dim))  # [H, d, D]
        values = values.transpose(1, 2)
        total = torch.bmm(mixed, values) if total is None else torch.baddbmm(total, mixed, values)
    assert total is not None
    return total if call.bias is None else total + call.bias.unflatten(0, (call.heads, 1, -1))
