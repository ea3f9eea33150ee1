# SPDX-License-Identifier: Apache-2.0
"""Cross-attention in Triton. Products of whole matrices, with the weights, are the library's: it
does them best. The kernels are what lies between: scores, softmax and mixture, in which every row
finds its frame by itself, ragged and masked tokens included.

The backward always goes by keys and values, also where the forward absorbed the weights: it needs
five products of the scores' size, and keys and values are a fifth as wide as tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton

from tdc_kernels import _checks
from tdc_kernels.ops import operands
from tdc_kernels.ops.cross_attention.triton_absorb import (
    SLAB,
    SOFTMAX_ROWS,
    SOFTMAX_TOKENS,
    absorbed,
    absorbed_blocks,
    absorbed_mix,
    absorbed_scores,
    absorbed_softmax,
)
from tdc_kernels.ops.cross_attention.triton_attend import attend, query_gradient, token_gradient
from tdc_kernels.ops.cross_attention.triton_call import (
    TOKENS_AT_ONCE,
    WARPS,
    Call,
    Source,
    blocks,
    call_of,
)
from tdc_kernels.ops.frame_similarity import accumulation_dtype
from tdc_kernels.ops.frame_similarity.triton import triton_dtype
from tdc_kernels.triton_support import instance

ROWS = 256  # of `index`, compared with a frame at once. Not tuned on a GPU


def few_rows(call: Call) -> torch.Tensor | None:
    """The frames asked for where they are fewer than there are: only they are projected."""
    index = call.index
    if index is None or index.shape[0] >= call.sources[0].tokens.shape[0]:
        return None
    return call.existing(index)


def project(call: Call, frames: torch.Tensor | None) -> list[torch.Tensor]:
    """Keys and values ``[F, N, 2*H*d]`` of each source, of all frames or of ``frames``; without the
    bias. One product for both, so that the tokens are read once."""
    found = []
    dtype = call.query.dtype
    for source in call.sources:
        weight = torch.cat([source.w_key, source.w_value])  # [2*H*d, D]
        count = source.tokens.shape[0] if frames is None else frames.shape[0]
        out = call.query.new_empty((count, source.count, weight.shape[0]))
        for part, x in source.matrices(frames, dtype, clear=False):
            torch.mm(x, weight.t(), out=out[part].flatten(0, 1))
        found.append(out)
    return found


def launch_rows(
    kernel: Any, call: Call, inputs: tuple[Any, ...], projected: list[Any], outputs: tuple[Any, ...]
) -> None:
    """A kernel with a program per row, head, block of queries and part of a head."""
    rows, queries, width = call.query.shape
    constants = call.constants()
    visual, audio = call.sources[0], call.sources[1] if len(call.sources) > 1 else None
    grid = (
        rows * call.heads,
        triton.cdiv(queries, constants["BLOCK_Q"]),
        triton.cdiv(call.dim, constants["BLOCK_D"]),
    )
    kernel[grid](
        *inputs,
        projected[0],
        projected[1] if audio is not None else None,
        call.index,
        visual.lengths,
        audio.lengths if audio is not None else None,
        call.mask,
        *outputs,
        visual.tokens.shape[0],
        queries,
        visual.count,
        audio.count if audio is not None else 0,
        width,
        SOURCES=len(call.sources),
        **constants,
    )


def attended(call: Call) -> torch.Tensor:
    frames = few_rows(call)
    projected = project(call, frames)
    out = torch.empty_like(call.query)
    launch_rows(attend, call.of_rows(frames), (call.query,), projected, (call.bias, out))
    return out


def forward(query: torch.Tensor, *args: Any) -> torch.Tensor:
    *arguments, absorb = args
    call = call_of(query, *arguments)
    if call.query.numel() == 0 or call.in_all == 0:
        return query.new_zeros(query.shape)
    return absorbed(call) if absorb else attended(call)


def backward(grad: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
    *arguments, _, tokens, weights = args
    call = call_of(*arguments)
    call = replace(call, index=call.existing(call.index))
    operands.sized("grad", grad, tuple(call.query.shape), call.query)
    _checks.same_dtype("grad", grad, call.query.dtype, "query")
    audio, b_value, w_key_audio = (arguments[i] for i in (2, 6, 12))
    # Rows that share a frame need a place where their tokens' gradients meet: all frames, then.
    frames = None if tokens else few_rows(call)
    projected = project(call, frames)
    by_row = call.of_rows(frames)
    grad = grad.contiguous()
    statistics, to_query = gradient_of_query(by_row, grad, projected)
    empty = [grad.new_empty((0,)) for _ in range(7)]  # no result may be another one
    to_tokens, to_weights, to_bias = empty[:2], empty[2:6], empty[6]
    if tokens or weights:
        pairs = zip(by_row.sources, projected, strict=True)
        inner = [gradient_of_projected(by_row, grad, statistics, *pair) for pair in pairs]
    if tokens:
        for i, source in enumerate(call.sources):
            to_tokens[i] = gradient_of_tokens(source, inner[i])
    if weights:
        sums = [gradient_of_weights(s, frames, x) for s, x in zip(call.sources, inner, strict=True)]
        if audio is not None and w_key_audio is None:
            sums = [sums[0] + sums[1]]
        for i, part in enumerate(part for both in sums for part in both.chunk(2)):
            to_weights[i] = part.to(grad.dtype, copy=True)  # nor a view of it
        if b_value is not None:
            seen = statistics[:, 0, 1, :, None] != 0  # [M, Q, 1]: has the row any token?
            to_bias = torch.where(seen, grad, 0).sum((0, 1), dtype=statistics.dtype).to(grad.dtype)
    return to_query, *to_tokens, *to_weights[:2], to_bias, *to_weights[2:]


def gradient_of_query(
    call: Call, grad: torch.Tensor, projected: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax' statistics and the gradient."""
    rows, queries, _ = grad.shape
    acc = accumulation_dtype(grad.dtype)
    statistics = grad.new_empty((rows, call.heads, 3, queries), dtype=acc)
    out = torch.empty_like(call.query)
    if out.numel() > 0:
        launch_rows(query_gradient, call, (grad, call.query), projected, (out, statistics))
    return statistics, out


def gradient_of_projected(
    call: Call,
    grad: torch.Tensor,
    statistics: torch.Tensor,
    source: Source,
    projected: torch.Tensor,
) -> torch.Tensor:
    """The gradients of one source's keys and values, ``[F, N, 2*H*d]``."""
    out = torch.empty_like(projected)
    rows, queries, width = call.query.shape
    if out.numel() > 0:
        constants = call.constants()
        grid = (
            projected.shape[0] * call.heads,
            triton.cdiv(source.count, constants["BLOCK_N"]),
            triton.cdiv(call.dim, constants["BLOCK_D"]),
        )
        token_gradient[grid](
            grad,
            call.query,
            statistics,
            projected,
            call.index,
            source.lengths,
            call.mask,
            out,
            rows,
            queries,
            source.count,
            call.in_all,
            source.first,
            width,
            ROWS=ROWS if call.index is not None else 1,
            **constants,
        )
    return out


def gradient_of_tokens(source: Source, inner: torch.Tensor) -> torch.Tensor:
    """From that of keys and values, ``[F, N, 2*H*d]``."""
    out = torch.empty(source.tokens.shape, dtype=source.tokens.dtype, device=inner.device)
    weight = torch.cat([source.w_key, source.w_value])
    if out.dtype == inner.dtype:
        torch.mm(inner.flatten(0, 1), weight, out=out.flatten(0, 1))
        return out
    step = max(TOKENS_AT_ONCE // max(source.count, 1), 1)
    for start in range(0, len(out), step):
        part = slice(start, start + step)
        out[part].flatten(0, 1).copy_(torch.mm(inner[part].flatten(0, 1), weight))
    return out


def gradient_of_weights(
    source: Source, frames: torch.Tensor | None, inner: torch.Tensor
) -> torch.Tensor:
    """``[2*H*d, D]``, in the dtype of accumulation."""
    total = inner.new_zeros(
        (inner.shape[2], source.tokens.shape[2]), dtype=accumulation_dtype(inner.dtype)
    )
    # What lies beyond the lengths has gradients of zero, but may be NaN, which zeros do not hide.
    for part, x in source.matrices(frames, inner.dtype, clear=True):
        total += torch.mm(inner[part].flatten(0, 1).t(), x)
    return total


# ---------------------------------------------------------------- ahead of time


def _instances(dtype: torch.dtype, name: str, index: str) -> list[Any]:
    """The launches above at the paper's sizes, 16 queries and heads of 64 values: ragged frames
    with audio and a mask where ``index`` is a type, else visual tokens alone."""
    acc = "fp64" if dtype == torch.float64 else "fp32"
    x, many = f"*{name}", bool(index)
    heads: dict[str, Any] = blocks(dtype, 16, 64) | {"DIM": 64, "SCALE": 0.125}
    heads["ACC"] = triton_dtype(dtype)
    names = ("index", "visual_lengths", "audio_lengths", "mask")
    absent = {} if many else dict.fromkeys(("audio", *names))
    of_rows = heads | absent | {"SOURCES": 2 if many else 1}
    frames = f"{x} {index} {index} {index} *u8" if many else ""
    absent = {} if many else dict.fromkeys(("index", "lengths", "mask"))
    of_tokens = heads | absent | {"ROWS": ROWS if many else 1}
    source = f"{index} {index} *u8" if many else ""
    all_heads = absorbed_blocks(dtype, 12 * 16)
    del all_heads["num_warps"]
    places, mask = f"*i64 {index}", "*u8" if many else ""
    lengths = {} if many else {"lengths": None}
    return [
        instance(attend, f"{x} {x} {frames} {x} {x} i32 i32 i32 i32 i32", WARPS, **of_rows),
        instance(
            query_gradient, f"{x} {x} {x} {frames} {x} *{acc} i32 i32 i32 i32 i32", WARPS, **of_rows
        ),
        instance(
            token_gradient,
            f"{x} {x} *{acc} {x} {source} {x} i32 i32 i32 i32 i32 i32",
            WARPS,
            **of_tokens,
        ),
        instance(
            absorbed_scores,
            f"{x} {x} {places} {mask} *{acc} {'i32 ' * 11}",
            WARPS,
            **all_heads,
            **lengths,
            **({} if many else {"mask": None}),
            SCALE=0.125,
            SLAB=SLAB,
            STEP=16,
        ),
        instance(
            absorbed_softmax,
            f"*{acc} {x} i32 i32 i32",
            WARPS,
            BLOCK_Q=SOFTMAX_ROWS,
            BLOCK_N=SOFTMAX_TOKENS,
            ACC=triton_dtype(dtype),
        ),
        instance(
            absorbed_mix,
            f"{x} {x} {places} {x} {'i32 ' * 10}",
            WARPS,
            **all_heads,
            **lengths,
            STEP=16,
        ),
    ]


AOT = [
    *_instances(torch.bfloat16, "bf16", "*i64"),
    *_instances(torch.float16, "fp16", ""),
    *_instances(torch.float32, "fp32", "*i32"),
    *_instances(torch.float64, "fp64", ""),
]
