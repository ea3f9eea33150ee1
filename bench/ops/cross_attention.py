# SPDX-License-Identifier: Apache-2.0
"""``cross_attention``, projections included, against every way there is in PyTorch.

The authors' loop, plain products, its attention kernels, its compiler, FlexAttention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import tdc_kernels as tk

from ..benchmark import QFORMER_WIDTH, QUERIES, WINDOW, Case, Cost, Op, normal
from ..peers import attention

HEADS, AUDIO = 12, 50
# 40 of the paper's 224 frames: a call of the plain ways takes half a second then, not three.
PAPER, SMALL = (40,), (8,)
BLIP2 = "blip2"  # 32 queries, 257 tokens of 1408, no sound


def cases() -> tuple[Case, ...]:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        found += [
            Case("paper", PAPER, 156, 3584, dtype),
            Case("paper", PAPER, 156, 3584, dtype, True),
            Case("paper-3072", PAPER, 156, 3072, dtype),
            Case("small", SMALL, 156, 3584, dtype),
            Case(BLIP2, (16,), 257, 1408, dtype),
        ]
    return tuple(found)


@functools.lru_cache
def dynamic(case: Case) -> Tensor:
    """int64 ``[M]``: of every window all frames but the first; of BLIP-2's all."""
    frames = torch.arange(case.frames)
    return frames if case.name == BLIP2 else frames[frames % WINDOW > 0]


def queries(case: Case) -> int:
    return 32 if case.name == BLIP2 else QUERIES


def audio_tokens(case: Case) -> int:
    return 0 if case.name == BLIP2 else AUDIO


def arguments(case: Case, device: str) -> tuple[Any, ...]:
    draw = functools.partial(normal, dtype=case.dtype, device=device)
    index = dynamic(case)
    audio = draw((case.frames, AUDIO, case.width), seed=8) if audio_tokens(case) else None
    weight, bias = (QFORMER_WIDTH, case.width), (QFORMER_WIDTH,)
    return (
        draw((len(index), queries(case), QFORMER_WIDTH), seed=6),
        draw((case.frames, case.tokens, case.width), seed=7),
        audio,
        draw(weight, seed=9) / case.width**0.5,
        draw(bias, seed=10),
        draw(weight, seed=11) / case.width**0.5,
        draw(bias, seed=12),
        HEADS,
        index.to(device),
    )


def ours(query: Tensor, visual: Tensor, audio: Tensor | None, *rest: Any, **options: Any) -> Tensor:
    names = ("w_key", "b_key", "w_value", "b_value", "num_heads", "index")
    return tk.cross_attention(
        query, visual, audio, **dict(zip(names, rest, strict=True)), **options
    )


def peers(case: Case) -> Mapping[str, Callable[..., Any]]:
    return {
        "release": functools.partial(attention.release, rows=WINDOW - 1),
        "eager": attention.eager,
        "sdpa": attention.sdpa,
        "sdpa-math": attention.sdpa_math,
        "flex": attention.flex,
    }


def cost(case: Case) -> Cost:
    """Forward: tokens of the frames asked for and weights read, and the products of the cheaper
    exact way, absorbed weights or keys and values. Backward: read again, gradients of all written;
    the products of the forward again and twice as many."""
    rows, size = len(dynamic(case)), case.itemsize
    tokens = case.tokens + audio_tokens(case)
    q, depth, width = queries(case), case.width, QFORMER_WIDTH
    absorb = 4 * q * depth * (width + HEADS * tokens)
    project = 4 * tokens * depth * width + 4 * q * width * tokens
    flops = float(rows * min(absorb, project))
    inputs, weights = rows * tokens * depth, 2 * width * (depth + 1)
    out = rows * q * width
    forward = Cost((inputs + weights + out) * size, out * size, flops, flops)
    if not case.backward:
        return forward
    every = case.frames * tokens * depth
    return Cost(
        2 * forward.read + out * size,
        forward.written + (every + weights + out) * size,
        4 * flops,
        4 * flops,
    )


BENCHMARK = Op(
    name="cross_attention",
    cases=cases(),
    arguments=arguments,
    ours=ours,
    peers=peers,
    cost=cost,
    wrt=(0, 1, 3, 5, 6),
    workspace={"eager": 3, "sdpa": 3, "sdpa-math": 3, "flex": 3, "release": 1, "reference": 3},
)
