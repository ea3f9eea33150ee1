# SPDX-License-Identifier: Apache-2.0
"""The temporal context compressor against the authors' way of running it.

``python -m bench.model.compressor`` runs at the paper's width on the same weights and inputs,
checks that boundaries are identical and context tokens equal, times everybody in turns and writes
the results file. Parts: ``whole`` (against the authors' loop and against the batched plain code
under torch.compile), ``savings`` (each of ours switched the other way) and ``questions`` (the next
question about the same video), which start from the features of towers and connector: a ratio from
here is one of this stage, not of a whole answer. A fourth, ``connector``, is the layer before.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig

from bench.peers import batched_compressor, release_compressor
from bench.timing import turns as harness
from tdc.compressor.compressor import Compressor
from tdc.compressor.speedups import Savings
from tdc.config import TDCConfig
from tdc.encoder.connector import SVAConnector
from tdc.encoder.features import VideoFeatures
from tdc.encoder.segment import Segmentation, segment
from tdc.encoder.tower_features import TowerFeatures
from tdc.encoder.video_encoder import VideoEncoder
from tdc.encoder.visual_tokens import VisualTokens
from tdc_kernels import plan_context

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
class Case:
    """Weights and inputs that both sides share."""

    shape: Shape
    model: Compressor
    dinov2: Tensor  # [F, T, C]
    visual: Tensor  # [F, Nv, D]
    audio: Tensor | None  # [F, Na, Ca]
    question_ids: Tensor  # [T]

    def double(self) -> Case:
        """The same case in fp64, for a judge. Converts the model in place."""
        audio = None if self.audio is None else self.audio.double()
        return Case(
            self.shape,
            self.model.double(),
            self.dinov2.double(),
            self.visual.double(),
            audio,
            self.question_ids,
        )

    def to(self, device: str) -> Case:
        """The same case on another device. Moves the model in place."""
        return Case(
            self.shape,
            self.model.to(device),
            self.dinov2.to(device),
            self.visual.to(device),
            None if self.audio is None else self.audio.to(device),
            self.question_ids.to(device),
        )


@dataclass(frozen=True)
class Agreement:
    """How far the two sides differ."""

    scenes: int
    tokens: int
    max_abs_error: float


def make_case(shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> Case:
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
    return Case(
        shape,
        model,
        dinov2,
        normal(shape.frames, shape.visual_tokens, shape.width),
        normal(shape.frames, shape.audio_tokens, shape.audio_width) if shape.audio_tokens else None,
        torch.randint(shape.qformer_vocabulary, (shape.question_tokens,), generator=generator),
    )


def our_segments(case: Case) -> Segmentation:
    return segment(case.dinov2, case.shape.boundaries + 1)


def our_features(case: Case) -> VideoFeatures:
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


def our_context(case: Case, features: VideoFeatures) -> Tensor:
    cuts, queries = features.segmentation, case.shape.context_tokens
    plan = plan_context(cuts.boundaries, cuts.cu_frames, WINDOW, features.static_lengths(), queries)
    return case.model(features, plan, case.question_ids[None])[0]


def ours(case: Case) -> Tensor:
    """``[N, D]`` context tokens, segmentation and planning included."""
    return our_context(case, our_features(case))


def peer_segments(case: Case) -> list[int]:
    return release_compressor.segment(case.dinov2, case.shape.boundaries)


def peer(case: Case) -> Tensor:
    """``[N, D]`` context tokens the authors' way, segmentation included."""
    return release_compressor.compress(
        case.model, case.visual, peer_segments(case), case.question_ids, case.audio
    )


def compiled_peer(case: Case, compress: Callable[..., Tensor]) -> Tensor:
    """The same by the batched plain code."""
    return compress(case.visual, peer_segments(case), case.question_ids, case.audio)


# Share of the largest token. Half precision: a dozen layers of roundings of 2^-9.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2**-5}


def check(case: Case) -> Agreement:
    """Compare the two sides.

    Raises:
        RuntimeError: boundaries differ, or a context token by more than the dtype's
            ``TOLERANCE``; no number is worth reporting then.
    """
    starts, expected_starts = our_segments(case).scene_starts(), peer_segments(case)
    if starts != expected_starts:
        raise RuntimeError(f"boundaries differ: {starts} against the peer's {expected_starts}")
    tokens, expected = ours(case), peer(case)
    if tokens.shape != expected.shape:
        raise RuntimeError(f"shapes differ: {tuple(tokens.shape)} against {tuple(expected.shape)}")
    error = (tokens - expected).abs().max().item()
    if not error <= TOLERANCE[case.visual.dtype] * expected.abs().max().item():  # also catches NaN
        raise RuntimeError(f"context tokens differ by {error:.1e}")
    return Agreement(len(starts), len(tokens), error)


def row(part: str, case: Case, times: dict[str, harness.Timing], **facts: Any) -> dict[str, Any]:
    """One measurement: a time for each provider, and how many times as long the others took."""
    first = times["ours"].quantile(0.5)
    return {
        "part": part,
        "shape": asdict(case.shape),
        "dtype": str(case.visual.dtype).removeprefix("torch."),
        **facts,
        "times": {name: timing.summary() for name, timing in times.items()},
        "ratios": {
            name: round(timing.quantile(0.5) / first, 3)
            for name, timing in times.items()
            if name != "ours"
        },
    }


def whole(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Segmentation alone, then all of it."""
    agreement = asdict(check(case))  # also the warm-up of both sides
    compiled = batched_compressor.compiled(case.model)
    error = (compiled_peer(case, compiled) - ours(case)).abs().max().item()
    segmentation = {"ours": partial(our_segments, case), "release": partial(peer_segments, case)}
    everything = {
        "ours": partial(ours, case),
        "release": partial(peer, case),
        "batched and compiled": partial(compiled_peer, case, compiled),
    }
    return [
        row("segmentation", case, harness.interleave(segmentation, rounds, warmup=0), **agreement),
        row(
            "segmentation and compression",
            case,
            harness.interleave(everything, rounds, warmup=0),
            **agreement,
            error_of_batched=error,
        ),
    ]


def savings(case: Case, rounds: int) -> list[dict[str, Any]]:
    """The default against each saving switched the other way; nothing kept between calls."""

    def call(savings: Savings) -> Tensor:
        case.model.savings = savings
        return ours(case)

    # Features of a call are new tensors to the cache, as for a video's first question; the folded
    # weights stay, as they do from one video to the next.
    default = Savings(cache=False)
    providers = {"ours": partial(call, default), "none": partial(call, Savings.none())}
    for name in SWITCHED:
        other = replace(default, **{name: not getattr(default, name)})
        providers[name] = partial(call, other)
    times = harness.interleave(providers, rounds)
    case.model.savings = Savings()
    return [row("savings, each switched the other way", case, times)]


def questions(case: Case, rounds: int) -> list[dict[str, Any]]:
    """A first question and another one about the same features: the compressor alone (the cuts
    included), then from what the towers give, which a second question does not need again."""
    rows, encode = [], _from_towers(case)
    for how, savings, make in (
        ("default", Savings(), partial(our_features, case)),
        ("keys and values kept", Savings(joint_keys_values=True), partial(our_features, case)),
        ("from the towers' tokens", Savings(), encode),
    ):
        case.model.savings = savings
        features = make()

        def first(make: Callable[[], VideoFeatures] = make) -> Tensor:
            case.model.cache.clear()
            return our_context(case, make())

        def second(features: VideoFeatures = features) -> Tensor:
            return our_context(case, features)

        first()
        second()
        seconds: dict[str, list[tuple[float, float]]] = {"first": [], "ours": []}
        for _ in range(rounds):
            seconds["first"].append(harness.timed(first))
            second()  # what is kept belongs to these features again
            seconds["ours"].append(harness.timed(second))
        times = {name: harness.Timing(*zip(*s, strict=True)) for name, s in seconds.items()}
        rows.append(row(f"second question, {how}", case, times))
    case.model.savings = Savings()
    return rows


def _from_towers(case: Case) -> Callable[[], VideoFeatures]:
    """Connector, cuts and audio tokens as the model runs them, from random tower tokens."""
    shape, dtype = case.shape, case.visual.dtype
    config = TDCConfig(
        text_config={"model_type": "qwen2", "hidden_size": shape.width},
        siglip_hidden_size=shape.siglip_width,
        dinov2_hidden_size=shape.dinov2_width,
        connector_hidden_size=shape.connector_width,
        num_scenes=shape.boundaries + 1,
    )
    torch.manual_seed(0)
    encoder = VideoEncoder(config).to(dtype).eval()
    siglip = torch.randn(shape.frames, shape.dinov2_tokens, shape.siglip_width).to(dtype)
    media = [TowerFeatures(siglip, case.dinov2, (384, 384))]
    audio, lengths = case.audio, our_features(case).audio_lengths
    return lambda: replace(encoder.connect(media), audio=audio, audio_lengths=lengths)


def connector(case: Case, rounds: int) -> list[dict[str, Any]]:
    """What comes before, on at most 32 frames: the connector with its last layer for every frame,
    and for static frames only, one in ``WINDOW``."""
    shape, dtype = case.shape, case.visual.dtype
    torch.manual_seed(0)
    widths = shape.siglip_width, shape.dinov2_width
    module = SVAConnector(*widths, shape.connector_width, shape.width).to(dtype).eval()
    frames = min(shape.frames, 32)
    towers = [torch.randn(frames, 576, width).to(dtype) for width in widths]

    def every() -> Tensor:
        return module(*towers, (384, 384)).final()

    def static() -> Tensor:
        return module(*towers, (384, 384)).final(torch.arange(0, frames, WINDOW))

    error = (static() - every()[::WINDOW]).abs().max().item()
    times = harness.interleave({"ours": static, "every frame": every}, rounds)
    part = f"connector of {frames} frames, last layer for static ones only"
    return [row(part, case, times, max_abs_error=error)]


PARTS: dict[str, Callable[[Case, int], list[dict[str, Any]]]] = {
    "whole": whole,
    "savings": savings,
    "questions": questions,
    "connector": connector,
}
# What changes within one call.
SWITCHED = tuple(
    f.name for f in fields(Savings) if f.name not in ("cache", "fold_projector", "fp32_on_cpu")
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.model.compressor")
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--frames", type=int, default=Shape.frames)
    parser.add_argument("--audio-tokens", type=int, default=Shape.audio_tokens)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="do not write the results file")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"parts: expected some of {', '.join(PARTS)}, got {part!r}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    load = harness.load_of_others()
    shape = Shape(frames=args.frames, audio_tokens=args.audio_tokens)
    with torch.inference_mode():
        case = make_case(shape, dtype=getattr(torch, args.dtype)).to(args.device)
        for part in args.parts:
            rows = [r | {"load_before": load} for r in PARTS[part](case, args.rounds)]
            if not args.dry_run:
                name = f"compressor {part} {args.frames} {args.audio_tokens} {args.dtype}"
                on = " cuda" if args.device == "cuda" else ""
                harness.record(name + on, rows, args.out)
            for found in rows:
                print(describe(found))


def describe(found: dict[str, Any]) -> str:
    times = ", ".join(f"{n} {t['median_s']:.3f} s" for n, t in found["times"].items())
    ratios = ", ".join(f"{n} {r:.2f}x" for n, r in found["ratios"].items())
    return f"{found['part']}, {found['dtype']}: {times}; ours against {ratios}"


if __name__ == "__main__":
    main()
