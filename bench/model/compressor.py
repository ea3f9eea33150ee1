# SPDX-License-Identifier: Apache-2.0
"""The temporal context compressor against the authors' way of running it.

At the paper's width, on the same weights and inputs; boundaries must be identical and context
tokens equal before anybody is timed. Parts: ``whole`` (against the authors' loop and against the
batched plain code under torch.compile), ``savings`` (each of ours switched the other way) and
``questions`` (the next question about the same video), which start from the features of towers and
connector: a ratio from here is one of this stage, not of a whole answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tdc.compressor.speedups import Speedups
from tdc.config import TDCConfig
from tdc.encoder.features import VideoFeatures
from tdc.encoder.tower_features import TowerFeatures
from tdc.encoder.video_encoder import VideoEncoder

from ..benchmark import Benchmark, Measurement, Refused, Row
from ..peers import batched_compressor, release_compressor
from ..report import results
from ..timing.turns import timed
from . import compressor_case
from .compressor_case import Inputs, make_case, our_context, our_features, our_segments, ours


def peer_segments(case: Inputs) -> list[int]:
    return release_compressor.segment(case.dinov2, case.shape.boundaries)


def peer(case: Inputs) -> Tensor:
    """``[N, D]`` context tokens the authors' way, segmentation included."""
    return release_compressor.compress(
        case.model, case.visual, peer_segments(case), case.question_ids, case.audio
    )


def compiled_peer(case: Inputs, compress: Callable[..., Tensor]) -> Tensor:
    """The same by the batched plain code."""
    return compress(case.visual, peer_segments(case), case.question_ids, case.audio)


# Share of the largest token. Half precision: a dozen layers of roundings of 2^-9.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2**-5}


def check(case: Inputs) -> Row:
    """How far the two sides differ.

    Raises:
        Refused: boundaries differ, or a context token by more than the dtype's
            ``TOLERANCE``; no number is worth reporting then.
    """
    starts, expected_starts = our_segments(case).scene_starts(), peer_segments(case)
    if starts != expected_starts:
        raise Refused(f"boundaries differ: {starts} against the peer's {expected_starts}")
    tokens, expected = ours(case), peer(case)
    if tokens.shape != expected.shape:
        raise Refused(f"shapes differ: {tuple(tokens.shape)} against {tuple(expected.shape)}")
    error = (tokens - expected).abs().max().item()
    if not error <= TOLERANCE[case.visual.dtype] * expected.abs().max().item():  # also catches NaN
        raise Refused(f"context tokens differ by {error:.1e}")
    return {"scenes": len(starts), "tokens": len(tokens), "max_abs_error": error}


def _measurement(part: str, case: Inputs, calls: Mapping[str, Any], **how: Any) -> Measurement:
    facts = compressor_case.facts_of(case.shape, case.visual.dtype) | how.pop("facts", {})
    title = f"{part}, {facts['dtype']}, {case.shape.frames} frames"
    return Measurement(title, "", calls, results.of_part(part), facts, **how)


def whole(case: Inputs) -> Iterator[Measurement]:
    """Segmentation alone, then all of it."""
    agreement = check(case)  # also the warm-up of both sides
    compiled = batched_compressor.compiled(case.model)
    error = (compiled_peer(case, compiled) - ours(case)).abs().max().item()
    segmentation = {"ours": partial(our_segments, case), "release": partial(peer_segments, case)}
    yield _measurement("segmentation", case, segmentation, warmup=0, facts=agreement)
    everything = {
        "ours": partial(ours, case),
        "release": partial(peer, case),
        "batched and compiled": partial(compiled_peer, case, compiled),
    }
    facts = agreement | {"error_of_batched": error}
    yield _measurement("segmentation and compression", case, everything, warmup=0, facts=facts)


def savings(case: Inputs) -> Iterator[Measurement]:
    """The default against each saving switched the other way; nothing kept between calls."""

    def call(savings: Speedups) -> Tensor:
        case.model.speedups = savings
        return ours(case)

    # Features of a call are new tensors to the cache, as for a video's first question; the folded
    # weights stay, as they do from one video to the next.
    default = Speedups(cache=False)
    others = {name: replace(default, **{name: not getattr(default, name)}) for name in SWITCHED}
    all_of_them = {"ours": default, "none": Speedups.none(), **others}
    calls = {name: partial(call, found) for name, found in all_of_them.items()}
    yield _measurement("savings, each switched the other way", case, calls)
    case.model.speedups = Speedups()


def questions(case: Inputs) -> Iterator[Measurement]:
    """A first question and another one about the same features: the compressor alone (the cuts
    included), then from what the towers give, which a second question does not need again."""
    given = partial(our_features, case)
    for how, savings, make in (
        ("default", Speedups(), given),
        ("keys and values kept", Speedups(joint_keys_values=True), given),
        ("from the towers' tokens", Speedups(), _from_towers(case)),
    ):
        case.model.speedups = savings
        yield _second_question(how, case, make)
    case.model.speedups = Speedups()


def _second_question(how: str, case: Inputs, make: Callable[[], VideoFeatures]) -> Measurement:
    features = make()

    def first() -> Tensor:
        case.model.cache.clear()
        return our_context(case, make())

    def second() -> Tensor:
        return our_context(case, features)

    def sample(call: Callable[[], Tensor]) -> tuple[float, float]:
        if call is second:
            second()  # what is kept belongs to these features again
        return timed(call)

    first()
    second()
    calls = {"first": first, "ours": second}
    return _measurement(f"second question, {how}", case, calls, sample=sample, warmup=0)


def _from_towers(case: Inputs) -> Callable[[], VideoFeatures]:
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


PARTS: dict[str, Callable[[Inputs], Iterator[Measurement]]] = {
    "whole": whole,
    "savings": savings,
    "questions": questions,
}
# What changes within one call.
SWITCHED = tuple(
    f.name for f in fields(Speedups) if f.name not in ("cache", "fold_projector", "fp32_on_cpu")
)


def measurements(args: argparse.Namespace) -> Iterator[Measurement]:
    shape, dtype = compressor_case.shape_of(args), getattr(torch, args.dtype)
    case = make_case(shape, dtype=dtype).to(args.device)
    for part in args.part:
        record = compressor_case.record_of(part, args)
        yield from (replace(found, record=record) for found in PARTS[part](case))


def options(parser: argparse.ArgumentParser) -> None:
    compressor_case.options(parser)
    parser.add_argument(
        "--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all"
    )


BENCHMARK = Benchmark("compressor", measurements, options)
