# SPDX-License-Identifier: Apache-2.0
"""Inputs of every op for the tests that are the same for all: two calls of each, of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tdc_kernels as tk

DIM, QUERY_DIM, HEADS, QUERIES, AUDIO_DIM = 12, 8, 2, 3, 10


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "w_key": (QUERY_DIM, DIM),
        "b_key": (QUERY_DIM,),
        "w_value": (QUERY_DIM, DIM),
        "b_value": (QUERY_DIM,),
        "separator": (DIM,),
        "w_key_audio": (QUERY_DIM, AUDIO_DIM),
        "w_value_audio": (QUERY_DIM, AUDIO_DIM),
    }
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


WEIGHTS = _weights()


def sizes(n: int) -> dict[str, int]:
    """Lengths that all differ from each other and from every width, and grow with n."""
    return {"frames": 20 * n + 1, "visual": 20 * n + 3, "audio": 20 * n + 5, "rows": 20 * n + 7}


def _cu(frames: int) -> torch.Tensor:
    return torch.tensor([0, frames // 3, frames // 3, frames], dtype=torch.int32)


def _attention(n: int, packed: bool) -> tuple[Any, ...]:
    # As above, but few: a program of Triton's interpreter takes milliseconds.
    s = {"frames": 3 * n + 1, "visual": 4 * n + 5, "audio": 6 * n + 5, "rows": 4 * n + 3}
    rows = s["rows"] if packed else s["frames"]
    extra = (
        torch.randint(s["frames"], (rows,)),
        torch.randint(s["visual"], (s["frames"],)),
        torch.randint(s["audio"], (s["frames"],)),
        torch.rand(s["frames"], s["visual"] + s["audio"]) < 0.7,
        WEIGHTS["w_key_audio"],
        WEIGHTS["w_value_audio"],
    )
    return (
        torch.randn(rows, QUERIES, QUERY_DIM),
        torch.randn(s["frames"], s["visual"], DIM),
        torch.randn(s["frames"], s["audio"], AUDIO_DIM) if packed else None,
        *(WEIGHTS[name] for name in ("w_key", "b_key", "w_value", "b_value")),
        HEADS,
        *(extra if packed else [None] * len(extra)),
    )


def _context(n: int, packed: bool) -> tuple[Any, ...]:
    frames = sizes(n)["frames"]
    plan = tk.plan_context(torch.tensor([[2, 5]]), [0, frames], 4, 7 if packed else None, QUERIES)
    return (
        torch.randn(int(plan.cu_static[-1]), DIM),
        torch.randn(len(plan.dynamic), QUERIES, DIM),
        WEIGHTS["separator"],
        plan,
    )


def arguments(op: str, n: int, packed: bool) -> tuple[Any, ...]:
    """Arguments in the op's order. ``packed``: several videos, with every optional argument."""
    s = sizes(n)
    cu = _cu(s["frames"]) if packed else None
    if op == "frame_similarity":
        return torch.randn(s["frames"], 3, DIM), cu
    if op == "scene_boundaries":
        return torch.randn(s["frames"] - 1), 4, cu, 0.5 if packed else None
    if op == "segment_scenes":
        return torch.randn(s["frames"], 3, DIM), 4, cu, 0.5 if packed else None
    if op == "anchor_queries":
        tokens = torch.randn(s["frames"], s["visual"], DIM)
        if not packed:
            return tokens, QUERIES, None, None, None
        index = torch.randint(s["frames"], (s["rows"],))
        return tokens, QUERIES, WEIGHTS["w_key"], WEIGHTS["b_key"], index
    if op == "cross_attention":
        return _attention(n, packed)
    assert op == "pack_context"
    return _context(n, packed)


def operator_arguments(op: str, n: int, packed: bool) -> tuple[Any, ...]:
    """The same as the registered operator takes them."""
    args = arguments(op, n, packed)
    if op in ("frame_similarity", "segment_scenes"):
        return args[0].flatten(1), *args[1:]
    if op == "anchor_queries":  # the linear map is outside
        return args[0], args[1], args[4], torch.bfloat16 if packed else None
    if op == "pack_context":
        plan = args[3]
        return *args[:3], plan.source, plan.position, plan.separators
    if op == "cross_attention":
        return *args, not packed  # both strategies
    return args


def public(op: str) -> Callable[..., Any]:
    """The public function, taking the arguments by position."""
    if op != "cross_attention":
        return getattr(tk, op)

    def cross_attention(
        query, visual, audio, w_key, b_key, w_value, b_value, heads, *rest, backend=None
    ):
        index, visual_lengths, audio_lengths, mask, w_key_audio, w_value_audio = rest
        return tk.cross_attention(
            query,
            visual,
            audio,
            w_key=w_key,
            b_key=b_key,
            w_value=w_value,
            b_value=b_value,
            num_heads=heads,
            index=index,
            visual_lengths=visual_lengths,
            audio_lengths=audio_lengths,
            mask=mask,
            w_key_audio=w_key_audio,
            w_value_audio=w_value_audio,
            backend=backend,
        )

    return cross_attention
