# SPDX-License-Identifier: Apache-2.0
"""Calls of every op for the fuzzing test: sizes, dtypes, strides and values that nobody would write
down, all within the contract."""

from __future__ import annotations

import random
from typing import Any

import torch
from hypothesis import strategies as st

import tdc_kernels as tk

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIDTHS = (1, 2, 3, 5, 7, 8, 12, 16, 17, 31, 33, 64, 65)
# Factors of a tensor, or of some of its entries: what is tiny, huge, or nothing at all.
SCALES = (1.0, 1.0, 1.0, 0.0, 1e-30, 1e-12, 1e-4, 1e4)
# Attention multiplies four tensors: with larger factors its gradients are differences of numbers
# that hide them, in any order of the products.
MILD = (1.0, 1.0, 1.0, 0.0, 1e-2)
LAYOUTS = ("dense", "sliced", "transposed", "offset", "broadcast")


class Draw:
    """Sizes from hypothesis, which can shrink them, or all from a seed, which costs a tenth; values
    always from a seed."""

    def __init__(self, source: st.DataObject | int) -> None:
        if isinstance(source, int):
            self.number = random.Random(source).randint
        else:
            self.number = lambda low, high: source.draw(st.integers(low, high))
        self.generator = torch.Generator().manual_seed(self.number(0, 2**32 - 1))

    def among(self, *choices: Any) -> Any:
        return choices[self.number(0, len(choices) - 1)]

    def chance(self) -> bool:
        return self.number(0, 1) == 1

    def floats(
        self, *shape: int, dtype: torch.dtype, bad: bool = False, scales: Any = SCALES
    ) -> torch.Tensor:
        """Any strides; rows of different sizes; with ``bad``, NaN and infinities here and there."""
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        x = x * self.among(*scales)
        if x.numel() > 0 and self.chance():  # some rows of another size
            rows = torch.rand(shape[:1], generator=self.generator) < 0.3
            x[rows] *= self.among(*scales)
        if bad and x.numel() > 0:
            where = torch.rand(shape, generator=self.generator) < 0.05
            x[where] = self.among(float("nan"), float("inf"), -float("inf"))
        limit = torch.finfo(torch.float16).max / 256  # squares are summed in fp32
        x = torch.where(x.isfinite(), x.clamp(-limit, limit), x)
        return self.laid_out(x.to(dtype))

    def laid_out(self, x: torch.Tensor) -> torch.Tensor:
        """The same values with other strides, NaN between them."""
        layout = self.among(*LAYOUTS)
        if layout == "sliced":
            wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"), dtype=x.dtype)
            return wide[..., 1::2].copy_(x)
        if layout == "transposed" and x.ndim > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "offset":
            flat = torch.full((x.numel() + 3,), float("nan"), dtype=x.dtype)
            return flat[3:].view(x.shape).copy_(x)
        if layout == "broadcast" and x.ndim > 1 and x.shape[0] > 0:
            return x[:1].expand(x.shape)
        return x

    def integers(self, low: int, high: int, count: int) -> torch.Tensor:
        x = torch.randint(low, high + 1, (count,), generator=self.generator)
        x = x.to(self.among(torch.int32, torch.int64))
        return torch.stack([x, x.flip(0)], -1)[:, 0] if self.chance() else x

    def videos(self) -> tuple[int, torch.Tensor | None]:
        """Frames and their prefix sums; empty videos, and none at all, among them."""
        if self.chance():
            return self.number(0, 40), None
        lengths = [self.among(0, 0, 1, 2, 3, 9, 17) for _ in range(self.number(0, 5))]
        cu = torch.tensor([0, *lengths]).cumsum(0)
        return int(cu[-1]), cu.to(self.among(torch.int32, torch.int64))


def frame_similarity(draw: Draw) -> dict[str, Any]:
    frames, cu = draw.videos()
    # One value a frame has similarities of 1 and -1, and nothing but rounding for a gradient.
    inner = [draw.among(*WIDTHS[1:]) for _ in range(draw.number(1, 2))]
    x = draw.floats(frames, *inner, dtype=draw.among(*DTYPES))
    return {"features": x, "cu_frames": cu}


def scene_boundaries(draw: Draw) -> dict[str, Any]:
    frames, cu = draw.videos()
    x = draw.floats(max(frames - 1, 0), dtype=torch.float32, bad=True)
    if draw.chance():
        x = (2 * x).round() / 2  # many that are equal
    return {"similarity": x, "num_boundaries": draw.number(0, 20), "cu_frames": cu} | limit(draw)


def limit(draw: Draw) -> dict[str, Any]:
    values = (None, 0.5, 0, -0.0, 1, 0.1, float("inf"), -float("inf"), 1e300)
    return {"threshold": draw.among(*values)}


def segment_scenes(draw: Draw) -> dict[str, Any]:
    return frame_similarity(draw) | {"num_boundaries": draw.number(0, 20)} | limit(draw)


def anchor_queries(draw: Draw) -> dict[str, Any]:
    dtype, width, frames = draw.among(*DTYPES), draw.among(*WIDTHS), draw.number(0, 6)
    x = draw.floats(frames, draw.number(1, 40), width, dtype=dtype, bad=False)
    index = draw.integers(0, frames - 1, draw.number(0, 9)) if frames and draw.chance() else None
    call = {"tokens": x, "num_queries": draw.number(1, 20), "index": index}
    if draw.chance():
        out = draw.among(*WIDTHS)
        call["weight"] = draw.floats(out, width, dtype=dtype)
        call["bias"] = draw.floats(out, dtype=dtype) if draw.chance() else None
    return call


def cross_attention(draw: Draw) -> dict[str, Any]:
    dtype, frames = draw.among(*DTYPES), draw.number(0, 5)
    heads, dim = draw.number(1, 3), draw.among(1, 2, 3, 8, 16, 17)
    visual, audio = draw.number(0, 20), draw.number(0, 12) if draw.chance() else None
    width, depth = heads * dim, draw.among(*WIDTHS[:9])
    rows = draw.number(0, 7) if frames and draw.chance() else None
    tokens = draw.among(dtype, *DTYPES)

    def weights(*shape: int) -> torch.Tensor:
        return draw.floats(*shape, dtype=dtype, scales=MILD)

    call: dict[str, Any] = {
        "query": weights(frames if rows is None else rows, draw.number(0, 18), width),
        "visual": draw.floats(frames, visual, depth, dtype=tokens, scales=MILD),
        "w_key": weights(width, depth),
        "b_key": weights(width) if draw.chance() else None,
        "w_value": weights(width, depth),
        "b_value": weights(width) if draw.chance() else None,
        "num_heads": heads,
        "index": None if rows is None else draw.integers(0, frames - 1, rows),
        "visual_lengths": draw.integers(0, visual, frames) if draw.chance() else None,
        "strategy": draw.among(None, "project", "absorb"),
    }
    if audio is not None:
        own = draw.among(*WIDTHS[:9]) if draw.chance() else None
        call["audio"] = draw.floats(frames, audio, own or depth, dtype=tokens, scales=MILD)
        call["audio_lengths"] = draw.integers(0, audio, frames) if draw.chance() else None
        if own is not None:
            call |= {"w_key_audio": weights(width, own), "w_value_audio": weights(width, own)}
    if draw.chance():
        shape = (frames, visual + (audio or 0))
        call["mask"] = torch.rand(shape, generator=draw.generator) < draw.among(0.0, 0.5, 1.0)
    return call


def pack_context(draw: Draw) -> dict[str, Any]:
    lengths = [draw.number(0, 12) for _ in range(draw.number(0, 3))]
    cu = torch.tensor([0, *lengths]).cumsum(0).tolist()
    queries, static = draw.number(1, 5), draw.among(None, 1, 7)
    cuts = [sorted(draw.number(0, n) for _ in range(3)) for n in lengths]
    boundaries = torch.tensor(cuts, dtype=torch.int32).view(len(lengths), 3)
    plan = tk.plan_context(
        boundaries,
        cu,
        draw.among(None, 1, 4),
        static,
        queries,
        draw.among(None, None, 1, 9, 30),
        trim=draw.among("frames", "window_tail"),
    )
    width = draw.among(*WIDTHS[1:])  # see frame_similarity
    dtype = draw.among(*DTYPES)
    return {
        "static": draw.floats(int(plan.cu_static[-1]), width, dtype=dtype),
        "compressed": draw.floats(len(plan.dynamic), queries, width, dtype=dtype),
        "separator": draw.floats(width, dtype=draw.among(dtype, *DTYPES)),
        "plan": plan,
    }


CALLS = {
    "frame_similarity": frame_similarity,
    "scene_boundaries": scene_boundaries,
    "segment_scenes": segment_scenes,
    "anchor_queries": anchor_queries,
    "cross_attention": cross_attention,
    "pack_context": pack_context,
}
