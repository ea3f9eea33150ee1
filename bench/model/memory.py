# SPDX-License-Identifier: Apache-2.0
"""Peak memory of each stage at the paper's widths, weights apart.

``python -m bench.model.memory`` runs every stage in a process of its own on the CPU in fp32 and
records how far the resident memory rose above what it was with weights and inputs in place. Towers
are run with two layers: a layer's activations are freed before the next, so depth does not change
the peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Config, SiglipVisionConfig

from bench.benchmark import Case
from bench.model.compressor import Shape, make_case, ours
from bench.ops import cross_attention
from bench.peers import attention as peer_attention
from bench.timing import turns as harness
from tdc.encoder.audio_tokens import audio_tokens
from tdc.encoder.beats import BEATs, BEATsConfig
from tdc.encoder.connector import SVAConnector
from tdc.encoder.towers import VisionTower

FRAMES = 224
DINOV2_GIANT: dict[str, Any] = {
    "hidden_size": 1536,
    "num_attention_heads": 24,
    "use_swiglu_ffn": True,
}
SIGLIP_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


def dinov2(chunk: int) -> Callable[[], Any]:
    config = Dinov2Config(**DINOV2_GIANT, num_hidden_layers=2, patch_size=14, image_size=518)
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


def resident() -> int:
    """Bytes resident now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _run(stage: str, chunk: int, pipe: Any) -> None:
    call = STAGES[stage][0](chunk)
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.inference_mode():
        out = call()
    done.set()
    watcher.join()
    tensors = out if isinstance(out, tuple) else (out,)
    result = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
    pipe.send((peak[0] - before, result))


def measure(stage: str, chunk: int | None = None) -> dict[str, Any]:
    """Peak of one stage above its weights and inputs, result included."""
    chunk = chunk or STAGES[stage][1]
    context = multiprocessing.get_context("spawn")
    ours_end, theirs = context.Pipe()
    process = context.Process(target=_run, args=(stage, chunk, theirs))
    process.start()
    while not ours_end.poll(0.2):
        if not process.is_alive():
            raise RuntimeError(f"the {stage} stage died with exit code {process.exitcode}")
    peak, result = ours_end.recv()
    process.join()
    return {
        "stage": stage,
        "at_a_time": chunk,
        "peak_mb": round(peak / 2**20),
        "result_mb": round(result / 2**20),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.model.memory")
    parser.add_argument("stages", nargs="*", default=list(STAGES), help=", ".join(STAGES))
    parser.add_argument("--dry-run", action="store_true", help="do not write the results file")
    args = parser.parse_args(argv)
    rows = [measure(stage) for stage in args.stages]
    for row in rows:
        print(
            f"{row['stage']:17} {row['at_a_time']:4} at a time: peak {row['peak_mb']:6} MB, "
            f"of which the result {row['result_mb']:6} MB"
        )
    if not args.dry_run:
        print(harness.record("memory", rows))


if __name__ == "__main__":
    main()
