# SPDX-License-Identifier: Apache-2.0
"""The temporal context compressor against the authors' way of running it.

``python -m bench.compressor`` runs both at the paper's width on the same weights and inputs, checks
that boundaries are identical and context tokens equal, times them in turns and writes the results
file. It starts from the features of towers and connector: a ratio from here is one of this stage,
not of a whole answer.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig

from bench import harness
from bench.peers import release_compressor
from tdc.compressor import Compressor
from tdc.features import VideoFeatures
from tdc.segment import Segmentation, segment
from tdc_kernels import plan_context

WINDOW = release_compressor.CHUNK


@dataclass(frozen=True)
class Shape:
    """Sizes of one measurement; the defaults are the paper's model on a two-minute video."""

    frames: int = 112
    boundaries: int = 24
    visual_tokens: int = 156  # 12 x 12 and a newline column
    audio_tokens: int = 0  # 50 with sound
    question_tokens: int = 30
    width: int = 3584  # D, of the language model
    context_tokens: int = 16  # K
    dinov2_tokens: int = 576
    dinov2_width: int = 1536
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


@dataclass(frozen=True)
class Agreement:
    """How far the two sides differ."""

    scenes: int
    tokens: int
    max_abs_error: float


def make_case(shape: Shape, seed: int = 0) -> Case:
    """Random weights and a random video whose scenes have uneven lengths."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

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


def ours(case: Case) -> Tensor:
    """``[N, D]`` context tokens, segmentation and planning included."""
    shape, cuts = case.shape, our_segments(case)
    features = VideoFeatures(
        visual=case.visual,
        visual_lengths=(shape.visual_tokens,) * shape.frames,
        segmentation=cuts,
        times=tuple(float(t) for t in range(shape.frames)),
        audio=case.audio,
        audio_lengths=(shape.audio_tokens,) * shape.frames if shape.audio_tokens else (),
    )
    plan = plan_context(
        cuts.boundaries, cuts.cu_frames, WINDOW, features.static_lengths(), shape.context_tokens
    )
    return case.model(features, plan, case.question_ids[None])[0]


def peer_segments(case: Case) -> list[int]:
    return release_compressor.segment(case.dinov2, case.shape.boundaries)


def peer(case: Case) -> Tensor:
    """``[N, D]`` context tokens the authors' way, segmentation included."""
    return release_compressor.compress(
        case.model, case.visual, peer_segments(case), case.question_ids, case.audio
    )


def check(case: Case, tolerance: float = 1e-5) -> Agreement:
    """Compare the two sides.

    Raises:
        RuntimeError: boundaries differ, or a context token by more than ``tolerance`` times the
            largest one; no number is worth reporting then.
    """
    starts, expected_starts = our_segments(case).scene_starts(), peer_segments(case)
    if starts != expected_starts:
        raise RuntimeError(f"boundaries differ: {starts} against the peer's {expected_starts}")
    tokens, expected = ours(case), peer(case)
    if tokens.shape != expected.shape:
        raise RuntimeError(f"shapes differ: {tuple(tokens.shape)} against {tuple(expected.shape)}")
    error = (tokens - expected).abs().max().item()
    if not error <= tolerance * expected.abs().max().item():  # also catches NaN
        raise RuntimeError(f"context tokens differ by {error:.1e}")
    return Agreement(len(starts), len(tokens), error)


@torch.inference_mode()
def measure(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Check, then time segmentation alone and the whole compressor on both sides."""
    case = make_case(shape)
    agreement = check(case)  # also the warm-up of both sides
    rows = []
    parts: list[tuple[str, Callable[[Case], object], Callable[[Case], object]]] = [
        ("segmentation", our_segments, peer_segments),
        ("segmentation and compression", ours, peer),
    ]
    for part, our_call, peer_call in parts:
        providers = {"ours": partial(our_call, case), "release": partial(peer_call, case)}
        times = harness.interleave(providers, rounds, warmup=0)
        ours_s, peer_s = times["ours"].quantile(0.5), times["release"].quantile(0.5)
        rows.append(
            {
                "part": part,
                "shape": asdict(shape),
                "dtype": str(case.visual.dtype).removeprefix("torch."),
                "boundaries_identical": True,
                **asdict(agreement),
                "ours": times["ours"].summary(),
                "release": times["release"].summary(),
                "speedup": round(peer_s / ours_s, 3),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.compressor")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--frames", type=int, default=Shape.frames)
    parser.add_argument("--dry-run", action="store_true", help="do not write the results file")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    load = harness.load_of_others()
    rows = []
    for audio_tokens in (0, 50):
        rows += measure(Shape(frames=args.frames, audio_tokens=audio_tokens), args.rounds)
    for row in rows:
        row["load_before"] = load
    print(json.dumps(rows, indent=2) if args.dry_run else harness.record("compressor", rows))
    for row in rows:
        sound = "with sound" if row["shape"]["audio_tokens"] else "no sound"
        print(
            f"{row['part']}, {sound}: {row['ours']['median_s']:.3f} s against "
            f"{row['release']['median_s']:.3f} s, {row['speedup']:.2f}x; "
            f"boundaries identical, largest error {row['max_abs_error']:.1e}"
        )


if __name__ == "__main__":
    main()
