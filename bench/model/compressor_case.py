# SPDX-License-Identifier: Apache-2.0
"""Weights and inputs of the compressor, and our way of running it on them."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig

from tdc.compressor.compressor import Compressor
from tdc.encoder.features import VideoFeatures
from tdc.encoder.segment import Segmentation, segment
from tdc.encoder.visual_tokens import VisualTokens
from tdc_kernels import plan_context

from ..peers import release_compressor

WINDOW = release_compressor.CHUNK


@dataclass(frozen=True)
class Shape:
    """Sizes of one measurement; the defaults are the paper's model and video."""

    frames: int = 224
    boundaries: int = 24
    visual_tokens: int = 156  # 12 x 12 and a newline column
    audio_tokens: int = 50  # 0 without sound
    question_tokens: int = 30
    width: int = 3584  # D, of the language model
    context_tokens: int = 16  # K
    dinov2_tokens: int = 576
    dinov2_width: int = 1536
    siglip_width: int = 1152
    connector_width: int = 1024
    audio_width: int = 768
    qformer_width: int = 768
    qformer_layers: int = 12
    qformer_heads: int = 12
    qformer_intermediate: int = 3072
    qformer_vocabulary: int = 30522


@dataclass(frozen=True)
class Inputs:
    """Weights and inputs that both sides share."""

    shape: Shape
    model: Compressor
    dinov2: Tensor  # [F, T, C]
    visual: Tensor  # [F, Nv, D]
    audio: Tensor | None  # [F, Na, Ca]
    question_ids: Tensor  # [T]

    def to(self, how: str | torch.dtype) -> Inputs:
        """The same on another device or in another dtype. Converts the model in place."""
        audio = None if self.audio is None else self.audio.to(how)
        dinov2, visual = self.dinov2.to(how), self.visual.to(how)
        ids = self.question_ids.to(dinov2.device)
        return Inputs(self.shape, self.model.to(how), dinov2, visual, audio, ids)


def make_case(shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> Inputs:
    """Random weights and a random video whose scenes have uneven lengths."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            hidden_size=shape.qformer_width,
            num_hidden_layers=shape.qformer_layers,
            num_attention_heads=shape.qformer_heads,
            intermediate_size=shape.qformer_intermediate,
            vocab_size=shape.qformer_vocabulary,
        )
        model = Compressor(
            config,
            shape.width,
            shape.context_tokens,
            audio_width=shape.audio_width if shape.audio_tokens else None,
        ).eval()
        torch.nn.init.normal_(model.separator)
        model = model.to(dtype)

    cuts = torch.randperm(shape.frames - 1, generator=generator)[: shape.boundaries] + 1
    scene = torch.zeros(shape.frames, dtype=torch.long)
    scene[cuts] = 1
    looks = normal(shape.boundaries + 1, shape.dinov2_tokens, shape.dinov2_width)
    dinov2 = looks[scene.cumsum(0)]
    dinov2 += 0.3 * normal(*dinov2.shape)
    return Inputs(
        shape,
        model,
        dinov2,
        normal(shape.frames, shape.visual_tokens, shape.width),
        normal(shape.frames, shape.audio_tokens, shape.audio_width) if shape.audio_tokens else None,
        torch.randint(shape.qformer_vocabulary, (shape.question_tokens,), generator=generator),
    )


def our_segments(case: Inputs) -> Segmentation:
    return segment(case.dinov2, case.shape.boundaries + 1)


def our_features(case: Inputs) -> VideoFeatures:
    """Segmentation included; the tokens are the case's own."""
    shape, cuts = case.shape, our_segments(case)
    return VideoFeatures(
        visual=VisualTokens(case.visual),
        visual_lengths=(shape.visual_tokens,) * shape.frames,
        segmentation=cuts,
        times=tuple(float(t) for t in range(shape.frames)),
        audio=case.audio,
        audio_lengths=(shape.audio_tokens,) * shape.frames if shape.audio_tokens else (),
    )


def our_context(case: Inputs, features: VideoFeatures) -> Tensor:
    cuts, queries = features.segmentation, case.shape.context_tokens
    plan = plan_context(cuts.boundaries, cuts.cu_frames, WINDOW, features.static_lengths(), queries)
    return case.model(features, plan, case.question_ids[None])[0]


def ours(case: Inputs) -> Tensor:
    """``[N, D]`` context tokens, segmentation and planning included."""
    return our_context(case, our_features(case))


# ---------------------------------------------------------------- options


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=Shape.frames)
    parser.add_argument("--audio-tokens", type=int, default=Shape.audio_tokens)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def shape_of(args: argparse.Namespace) -> Shape:
    return Shape(frames=args.frames, audio_tokens=args.audio_tokens)


def record_of(part: str, args: argparse.Namespace) -> str:
    on = " cuda" if args.device == "cuda" else ""
    return f"compressor {part} {args.frames} {args.audio_tokens} {args.dtype}{on}"


def facts_of(shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    """What the rows of one size have in common."""
    return {"shape": asdict(shape), "dtype": str(dtype).removeprefix("torch.")}
