# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels that attend over projected keys and values, and their gradients.

Visual and audio tokens are walked one after the other, each in blocks of its own, and a block
beyond a frame's length is never read. A head wider than BLOCK_D is taken in parts: a program owns
one part of its result, and goes over all parts for the scores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tdc_kernels.triton_support import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def dot(a, b, total, ACC):
    """``total + a b``; in fp32 really fp32, no tf32."""
    if INTERPRETED:  # it takes bf16 for integers; in fp32 the products are the same
        a = a.to(ACC)
        b = b.to(ACC)
    return tl.dot(a, b, total, input_precision="ieee", out_dtype=ACC)


@triton.jit
def load_tile(base, stride, row, row_ok, column, width):
    """Rows of a matrix at ``base``, zeros where there are none."""
    at = base + row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(at, mask=row_ok[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def products(a, a_stride, i, i_ok, b, b_stride, j, j_ok, width, BLOCK, ACC):
    """``A_i . B_j`` over ``width`` columns, ``[i, j]``."""
    total = tl.zeros([i.shape[0], j.shape[0]], dtype=ACC)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = load_tile(a, a_stride, i, i_ok, column, width)
        y = load_tile(b, b_stride, j, j_ok, column, width)
        total = dot(x, tl.trans(y), total, ACC)
    return total


@triton.jit
def seen_tokens(mask, in_mask, token, length):
    """Mask of valid tokens; ``mask`` from ``in_mask`` on is that of the frame's tokens, or None."""
    seen = token < length
    if mask is not None:  # Triton 3.6 takes None for an argument, not as a result: no mask_of(...)
        seen = seen & (tl.load(mask + in_mask + token, mask=seen, other=0) != 0)
    return seen


@triton.jit
def length_of(lengths, frame, tokens):
    """Number of a frame's valid tokens."""
    if lengths is not None:
        tokens = tl.minimum(tl.load(lengths + frame).to(tl.int32), tokens)
    return tokens


@triton.jit
def shifted_exp(score, top):
    """``exp(score - top)``; zeros where no score is above -inf."""
    return tl.exp(score - tl.where(top == float("-inf"), 0.0, top))


@triton.jit
def frame_of(index, row, frames):
    """The frame of a row, one of those that there are whatever its number."""
    frame = row.to(tl.int64)
    if index is not None:
        frame = tl.minimum(tl.maximum(tl.load(index + frame).to(tl.int64), 0), frames - 1)
    return frame


@triton.jit
def scores(q, i, i_ok, keys, token, length, mask, in_mask, width, DIM, SCALE, BLOCK_D, ACC):
    """Of some queries and tokens, -inf at tokens that do not count: ``[i, token]``."""
    inside = token < length
    score = products(q, width, i, i_ok, keys, 2 * width, token, inside, DIM, BLOCK_D, ACC)
    seen = seen_tokens(mask, in_mask, token, length)
    return tl.where(seen[None, :], score * SCALE, float("-inf"))


@triton.jit(
    do_not_specialize=["frames", "queries", "visual_tokens", "audio_tokens"],
    do_not_specialize_on_alignment=["index", "visual_lengths", "audio_lengths", "mask"],
)
def attend(
    query,  # [M, Q, H*d]
    visual,  # [F, Nv, 2*H*d]: keys, then values
    audio,  # [F, Na, 2*H*d], or None
    index,  # [M], or None
    visual_lengths,  # [F], or None
    audio_lengths,
    mask,  # [F, Nv + Na] bytes, or None
    bias,  # [H*d], of the values, or None
    out,  # [M, Q, H*d]
    frames,
    queries,
    visual_tokens,
    audio_tokens,
    width,
    SOURCES: tl.constexpr,  # 2 with audio
    DIM: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt(DIM)
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    heads = width // DIM
    row = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    frame = frame_of(index, row, frames)
    i = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    i_ok = i < queries
    column = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    at = row.to(tl.int64) * queries * width + head * DIM
    q = query + at
    in_all = visual_tokens + audio_tokens
    top = tl.full([BLOCK_Q], float("-inf"), dtype=ACC)
    total = tl.zeros([BLOCK_Q], dtype=ACC)
    mixed = tl.zeros([BLOCK_Q, BLOCK_D], dtype=ACC)
    for source in tl.static_range(SOURCES):
        if source == 0:
            keys = visual + frame * visual_tokens * 2 * width + head * DIM
            length = length_of(visual_lengths, frame, visual_tokens)
            in_mask = frame * in_all
        else:
            keys = audio + frame * audio_tokens * 2 * width + head * DIM
            length = length_of(audio_lengths, frame, audio_tokens)
            in_mask = frame * in_all + visual_tokens
        for first in range(0, length, BLOCK_N):
            token = first + tl.arange(0, BLOCK_N)
            score = scores(
                q, i, i_ok, keys, token, length, mask, in_mask, width, DIM, SCALE, BLOCK_D, ACC
            )
            highest = tl.maximum(top, tl.max(score, 1))
            p = shifted_exp(score, highest[:, None])
            shrink = shifted_exp(top, highest)
            total = total * shrink + tl.sum(p, 1)
            value = load_tile(keys + width, 2 * width, token, token < length, column, DIM)
            p = p.to(value.dtype)
            mixed *= shrink[:, None]
            mixed = dot(p, value, mixed, ACC)
            top = highest
    nothing = total == 0  # no token at all: zeros, without the bias. A NaN stays one
    mixed = mixed / tl.where(nothing, 1.0, total)[:, None]
    if bias is not None:
        b = tl.load(bias + head * DIM + column, mask=column < DIM, other=0.0).to(ACC)
        mixed += tl.where(nothing[:, None], 0.0, b[None, :])
    to = out + at + i.to(tl.int64)[:, None] * width + column[None, :]
    inside = i_ok[:, None] & (column < DIM)[None, :]
    tl.store(to, mixed.to(out.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=["frames", "queries", "visual_tokens", "audio_tokens"],
    do_not_specialize_on_alignment=["index", "visual_lengths", "audio_lengths", "mask"],
)
def query_gradient(
    grad,  # [M, Q, H*d]
    query,
    visual,  # as for `attend`
    audio,
    index,
    visual_lengths,
    audio_lengths,
    mask,
    out,  # [M, Q, H*d]
    statistics,  # [M, H, 3, Q]: highest score, 1 / sum of exponentials (0: no token), sum p <g, v>
    frames,
    queries,
    visual_tokens,
    audio_tokens,
    width,
    SOURCES: tl.constexpr,
    DIM: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt(DIM)
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    """Twice over the tokens: for the statistics, then ``dS K``, dS = p (<g, v> - sum p <g, v>)."""
    heads = width // DIM
    row = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    part = tl.program_id(2)
    frame = frame_of(index, row, frames)
    i = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    i_ok = i < queries
    column = part * BLOCK_D + tl.arange(0, BLOCK_D)
    at = row.to(tl.int64) * queries * width + head * DIM
    q = query + at
    g = grad + at
    in_all = visual_tokens + audio_tokens
    top = tl.full([BLOCK_Q], float("-inf"), dtype=ACC)
    total = tl.zeros([BLOCK_Q], dtype=ACC)
    along = tl.zeros([BLOCK_Q], dtype=ACC)
    gradient = tl.zeros([BLOCK_Q, BLOCK_D], dtype=ACC)
    for step in tl.static_range(2 * SOURCES):
        if step % SOURCES == 0:
            keys = visual + frame * visual_tokens * 2 * width + head * DIM
            length = length_of(visual_lengths, frame, visual_tokens)
            in_mask = frame * in_all
        else:
            keys = audio + frame * audio_tokens * 2 * width + head * DIM
            length = length_of(audio_lengths, frame, audio_tokens)
            in_mask = frame * in_all + visual_tokens
        if step == SOURCES:
            total = tl.where(total == 0, 0.0, 1.0 / tl.where(total == 0, 1.0, total))
            along *= total
        for first in range(0, length, BLOCK_N):
            token = first + tl.arange(0, BLOCK_N)
            inside = token < length
            score = scores(
                q, i, i_ok, keys, token, length, mask, in_mask, width, DIM, SCALE, BLOCK_D, ACC
            )
            dp = products(
                g, width, i, i_ok, keys + width, 2 * width, token, inside, DIM, BLOCK_D, ACC
            )
            if step < SOURCES:
                highest = tl.maximum(top, tl.max(score, 1))
                p = shifted_exp(score, highest[:, None])
                shrink = shifted_exp(top, highest)
                total = total * shrink + tl.sum(p, 1)
                along = along * shrink + tl.sum(p * dp, 1)
                top = highest
            else:
                p = shifted_exp(score, top[:, None]) * total[:, None]
                key = load_tile(keys, 2 * width, token, inside, column, DIM)
                ds = (p * (dp - along[:, None])).to(key.dtype)
                gradient = dot(ds, key, gradient, ACC)
    to = statistics + (row.to(tl.int64) * heads + head) * 3 * queries + i
    once = i < tl.where(part == 0, queries, 0)
    tl.store(to, top, mask=once)
    tl.store(to + queries, total, mask=once)
    tl.store(to + 2 * queries, along, mask=once)
    to = out + at + i.to(tl.int64)[:, None] * width + column[None, :]
    inside = i_ok[:, None] & (column < DIM)[None, :]
    tl.store(to, (gradient * SCALE).to(out.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=["rows", "queries", "tokens", "in_all", "first_token"],
    do_not_specialize_on_alignment=["index", "lengths", "mask"],
)
def token_gradient(
    grad,  # [M, Q, H*d]
    query,
    statistics,  # of `query_gradient`
    projected,  # [F, N, 2*H*d], one source's
    index,  # of frames that exist
    lengths,
    mask,  # [F, Nv + Na] bytes, or None
    out,  # [F, N, 2*H*d]: the gradients of keys, then values
    rows,
    queries,
    tokens,
    in_all,  # Nv + Na, of which this source's begin ...
    first_token,  # ... here
    width,
    DIM: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt(DIM)
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
    """A program owns a block of one frame's tokens, and adds up the rows that ask for the frame, in
    their order: the same bits every time. Every value is written once, zeros included."""
    heads = width // DIM
    frame = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    column = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    token = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    length = length_of(lengths, frame, tokens)
    inside = token < length
    seen = seen_tokens(mask, frame * in_all + first_token, token, length)
    place = frame * tokens * 2 * width + head * DIM
    keys = projected + place
    to_key = tl.zeros([BLOCK_N, BLOCK_D], dtype=ACC)
    to_value = tl.zeros([BLOCK_N, BLOCK_D], dtype=ACC)
    begin = 0
    end = rows
    if index is None:
        begin = frame.to(tl.int32)
        end = begin + 1
    if tl.program_id(1) * BLOCK_N >= length:
        end = begin
    for start in range(begin, end, ROWS):
        several = start + tl.arange(0, ROWS)
        asks = several == frame
        if index is not None:
            asks = tl.load(index + several, mask=several < rows, other=-1) == frame
        row = tl.min(tl.where(asks, several, rows), 0)
        while row < rows:
            at = row.to(tl.int64) * queries * width + head * DIM
            of_row = statistics + (row.to(tl.int64) * heads + head) * 3 * queries
            for first in range(0, queries, BLOCK_Q):
                i = first + tl.arange(0, BLOCK_Q)
                i_ok = i < queries
                top = tl.load(of_row + i, mask=i_ok, other=0.0)
                share = tl.load(of_row + queries + i, mask=i_ok, other=0.0)
                along = tl.load(of_row + 2 * queries + i, mask=i_ok, other=0.0)
                score = products(
                    keys, 2 * width, token, inside, query + at, width, i, i_ok, DIM, BLOCK_D, ACC
                )
                score = tl.where(seen[:, None], score * SCALE, float("-inf"))
                p = shifted_exp(score, top[None, :]) * share[None, :]  # [BLOCK_N, BLOCK_Q]
                dp = products(
                    keys + width,
                    2 * width,
                    token,
                    inside,
                    grad + at,
                    width,
                    i,
                    i_ok,
                    DIM,
                    BLOCK_D,
                    ACC,
                )
                q = load_tile(query + at, width, i, i_ok, column, DIM)
                g = load_tile(grad + at, width, i, i_ok, column, DIM)
                ds = (p * (dp - along[None, :])).to(q.dtype)
                to_key = dot(ds, q, to_key, ACC)
                p = p.to(q.dtype)
                to_value = dot(p, g, to_value, ACC)
            row = tl.min(tl.where(asks & (several > row), several, rows), 0)
    to = out + place + token.to(tl.int64)[:, None] * 2 * width + column[None, :]
    there = (token < tokens)[:, None] & (column < DIM)[None, :]
    tl.store(to, (to_key * SCALE).to(out.dtype.element_ty), mask=there)
    tl.store(to + width, to_value.to(out.dtype.element_ty), mask=there)
