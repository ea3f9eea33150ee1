# SPDX-License-Identifier: Apache-2.0
"""Peak memory of each stage at the paper's widths, weights apart.

Every stage runs in a process of its own on the CPU in fp32; what is recorded is how far the
resident memory rose above what it was with weights and inputs in place. Towers have two layers: a
layer's activations are freed before the next, so depth does not change the peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from transformers import Dinov2Config, SiglipVisionConfig

from tdc.encoder.audio_tokens import audio_tokens
from tdc.encoder.beats import BEATs, BEATsConfig
from tdc.encoder.connector import SVAConnector
from tdc.encoder.towers import VisionTower

from ..benchmark import Benchmark, Case, Measurement
from ..ops import cross_attention
from ..peers import attention as peer_attention
from ..timing import timers
from ..timing.peak import Peak, resident
from .compressor_case import Shape, make_case, ours
from .sizes import DINOV2_GIANT, SIGLIP_SO400M

FRAMES = 224


def dinov2(chunk: int) -> Callable[[], Any]:
    config = Dinov2Config(**DINOV2_GIANT, num_hidden_layers=2)
    tower = VisionTower(config)
    pixels = torch.randint(256, (chunk, 3, 378, 378), dtype=torch.uint8)
    return lambda: tower(pixels, chunk_size=chunk)


def siglip(chunk: int) -> Callable[[], Any]:
    tower = VisionTower(SiglipVisionConfig(**SIGLIP_SO400M, num_hidden_layers=2))
    pixels = torch.randint(256, (chunk, 3, 384, 384), dtype=torch.uint8)
    return lambda: tower(pixels, chunk_size=chunk)


def connector(chunk: int) -> Callable[[], Any]:
    module = SVAConnector(1152, 1536, 1024, 3584)
    towers = torch.randn(FRAMES, 576, 1152), torch.randn(FRAMES, 576, 1536)
    return lambda: module.grid_tokens(*towers, chunk_size=chunk)


def beats(chunk: int) -> Callable[[], Any]:
    encoder = BEATs(BEATsConfig()).eval()
    sound = torch.randn(FRAMES * 16_000) * 0.1
    times = [float(t) for t in range(FRAMES)]
    return lambda: audio_tokens(encoder, sound, timestamps=times, chunk_size=chunk)


def compressor(_: int) -> Callable[[], Any]:
    case = make_case(Shape(frames=FRAMES, audio_tokens=50))
    return lambda: ours(case)


def attention(attend: Callable[..., torch.Tensor]) -> Callable[[int], Callable[[], Any]]:
    """Forward and backward of one cross-attention, gradients of queries, tokens and weights."""

    def build(frames: int) -> Callable[[], Any]:
        case = Case("paper", (frames,), 156, 3584, backward=True)
        args = cross_attention.arguments(case, "cpu")
        leaves = [
            x.requires_grad_()
            for x in args
            if isinstance(x, torch.Tensor) and x.is_floating_point()
        ]

        def call() -> tuple[torch.Tensor, ...]:
            with torch.inference_mode(False), torch.enable_grad():
                return torch.autograd.grad(attend(*args).sum(), leaves)

        return call

    return build


# Stage -> what builds it, and the frames (BEATs: 10-second windows) worked on at a time. The last
# two are one layer of the compressor in training, ours and torch's attention on projected tokens.
STAGES: dict[str, tuple[Callable[[int], Callable[[], Any]], int]] = {
    "dinov2": (dinov2, 64),
    "siglip": (siglip, 64),
    "connector": (connector, 16),
    "beats": (beats, 8),
    "compressor": (compressor, FRAMES),
    "attention": (attention(cross_attention.ours), FRAMES),
    "attention (plain)": (attention(peer_attention.sdpa), FRAMES),
}


def _run(stage: str, chunk: int) -> tuple[int, int]:
    call = STAGES[stage][0](chunk)
    before = resident()
    with torch.inference_mode(), Peak("cpu") as peak:
        out = call()
    result = timers.size(out if isinstance(out, tuple) else (out,))
    return peak.bytes - before, result


def measure(stage: str, chunk: int | None = None) -> dict[str, Any]:
    """Peak of one stage above its weights and inputs, result included."""
    chunk = chunk or STAGES[stage][1]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        peak, result = process.submit(_run, stage, chunk).result()
    return {
        "stage": stage,
        "at_a_time": chunk,
        "peak_mb": round(peak / 2**20),
        "result_mb": round(result / 2**20),
    }


def measurements(args: argparse.Namespace) -> Iterator[Measurement]:
    for stage in args.stage:
        yield Measurement(stage, "memory", {}, partial(_rows, stage))


def _rows(stage: str, _: object) -> list[dict[str, Any]]:
    return [measure(stage)]


def options(parser: argparse.ArgumentParser) -> None:
    stages = list(STAGES)
    parser.add_argument("--stage", nargs="+", choices=stages, default=stages, help="default: all")


BENCHMARK = Benchmark("memory", measurements, options, devices=("cpu",), timed=False)
