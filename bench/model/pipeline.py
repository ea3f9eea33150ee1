# SPDX-License-Identifier: Apache-2.0
"""The whole model, from a video to the first token of the answer and on, with random weights.

``python -m bench.model.pipeline --scale paper`` runs towers, connector, sound, compressor and
language model at the paper's sizes, ours and the authors' way (``bench/peers/release_pipeline.py``)
in turns on the same weights and the same video. Both must come to the same prompt and the same
logits before anything is timed. ``--scale small`` is what a CPU can do in about a minute; its
numbers, like those of ``tiny``, say nothing about the paper's model.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.model.pipeline_models import (
    LANGUAGE_MODELS,
    QUESTION,
    SCALES,
    SECOND_QUESTION,
    WITHOUT_AV,
)
from bench.model.pipeline_ways import (
    WAYS,
    Refused,
    Row,
    Setup,
    Way,
    check,
    decode,
    first_token,
    make,
    of_pixels,
    our_features,
    our_question,
    prefill,
    token,
)
from bench.timing import turns as harness
from bench.timing.peak import Peak
from tdc.lvcot import answer_long_video
from tdc.processor.media_inputs import Medium
from tdc.profiling import measure, now, stage

OTHER = "other"  # between the stages: embeddings, copies, planning
NO_FILE = f"not measured ({WITHOUT_AV})"
# ---------------------------------------------------------------- parts


def first_tokens(setup: Setup, rounds: int) -> list[Row]:
    """Time to the first token: from decoded and from resized frames, of the next question, and from
    the file."""
    decoded = lambda: setup.decoded  # noqa: E731
    features = our_features(setup, setup.decoded)

    def second() -> Tensor:
        return token(setup, our_question(setup, features, SECOND_QUESTION))

    def others(source: Callable[[], Medium]) -> dict[str, Callable[[], Tensor]]:
        return {name: partial(first_token, setup, way, source) for name, way in WAYS.items()}

    second()
    providers = {**others(decoded), "ours, second question": second}
    times = harness.interleave(providers, rounds, warmup=0)
    again = {"ours": times.pop("ours, second question"), "release": times["release"]}
    # How frames are resized is the host's affair: the same without it.
    resized = harness.interleave(of_pixels(setup), rounds, warmup=0)
    rows = [row("first token, from decoded frames", times)]
    rows.append(row("first token, from resized frames on the device", resized))
    # The authors' code keeps nothing: its next question costs what the first one did.
    rows.append(row("first token of a second question, features kept", again))
    if setup.clip is None:
        return [*rows, {"part": "first token, from the file", "note": NO_FILE}]
    times = harness.interleave(others(setup.load), rounds, warmup=0)
    return [*rows, row("first token, from the file", times)]


def row(part: str, times: Mapping[str, harness.Timing]) -> Row:
    one = times["ours"].quantile(0.5)
    return {
        "part": part,
        "times": {name: timing.summary() for name, timing in times.items()},
        "ratios": {n: round(t.quantile(0.5) / one, 3) for n, t in times.items() if n != "ours"},
    }


@dataclass(frozen=True)
class Staged:
    """One run with its time split up; ``first_token_s`` was taken on its own."""

    first_token_s: float
    seconds: dict[str, float]
    tokens_per_s: float
    peak_bytes: int


def staged(setup: Setup, way: Way) -> Staged:
    source = setup.load if setup.clip is not None else lambda: setup.decoded
    with Peak(setup.device) as peak:
        begin = now()
        with measure() as times, stage(OTHER):
            out = prefill(setup, way(setup, source()))
        elapsed = now() - begin
        rate = decode(setup, out)
    return Staged(elapsed, times.seconds, rate, peak.bytes)


def stages(setup: Setup, rounds: int) -> list[Row]:
    """Of each way the run with the median time: its stages, decoding and peak memory."""
    runs: dict[str, list[Staged]] = {name: [] for name in WAYS}
    for i in range(rounds):
        for name in list(WAYS)[:: -1 if i % 2 else 1]:
            runs[name].append(staged(setup, WAYS[name]))
    rows = []
    for name, found in runs.items():
        middle = sorted(found, key=lambda run: run.first_token_s)[len(found) // 2]
        rows.append(
            {
                "part": f"stages, {name}",
                "first_token_s": round(middle.first_token_s, 6),
                "stages_s": {k: round(v, 6) for k, v in middle.seconds.items()},
                "new_tokens": setup.scale.new_tokens,
                "decoding_tokens_per_s": round(middle.tokens_per_s, 2),
                "peak_mb": round(max(run.peak_bytes for run in found) / 2**20),
                "peak_is": Peak.WHAT[setup.device],
            }
        )
        if setup.clip is None:
            rows[-1]["notes"] = {"decode video": NO_FILE}
    return rows


def lvcot(setup: Setup, rounds: int) -> list[Row]:
    """Three segments described, then the whole: from decoded frames to the end of the answer."""
    options: dict[str, Any] = {
        "max_new_tokens": setup.scale.new_tokens,
        "segment_tokens": setup.scale.segment_tokens,
    }
    call = partial(
        answer_long_video,
        setup.model,
        setup.processor,
        setup.decoded.frames,
        QUESTION,
        3,
        audio=setup.decoded.waveform,
        max_frames=-(-len(setup.decoded.frames) // 3),
        do_sample=False,
        **options,
    )
    times = harness.interleave({"ours": call}, 1, warmup=0)
    return [row("LVCoT, N = 3", times) | options]


PARTS = (first_tokens, stages, lvcot)


# ---------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.model.pipeline")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--llm", choices=LANGUAGE_MODELS, default="qwen2-7b")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--frames", type=int, help="default: the scale's, of the paper 224")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32"
    )
    parser.add_argument("--rounds", type=int, help="timed rounds (default: the scale's)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    scale = SCALES[args.scale]
    args.frames = scale.frames if args.frames is None else args.frames
    args.rounds = scale.rounds if args.rounds is None else args.rounds
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    wrong = _wrong(args)
    if wrong is not None:
        parser.exit(2, f"{parser.prog}: {wrong}\n")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(args.threads)
    try:
        run(args)
    except Refused as error:
        parser.exit(3, f"{parser.prog}: refused: {error}; nothing is written\n")
    return 0


def _wrong(args: argparse.Namespace) -> str | None:
    """One line about arguments that cannot be served, or None."""
    if args.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: there is no CUDA device"
    if args.frames < 3:
        return f"--frames: expected at least 3, one for each of LVCoT's segments, got {args.frames}"
    for name in ("rounds", "threads"):
        if getattr(args, name) < 1:
            return f"--{name}: expected at least 1, got {getattr(args, name)}"
    if args.scale != "paper" and args.out.resolve() == harness.RESULTS:
        return f"--scale {args.scale}: its numbers are no results, --out must be another folder"
    return None


def run(args: argparse.Namespace) -> None:
    """Everything that the arguments ask for; the file grows part by part."""
    load = harness.load_of_others()
    dtype = getattr(torch, args.dtype)
    name = f"pipeline {args.scale} {args.llm} {args.device} {args.frames} {args.dtype}"
    # Nothing of this run trains, and inference_mode is what a server would use.
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        setup = make(args.scale, args.llm, args.device, dtype, args.frames, Path(folder))
        facts = {
            **{"scale": args.scale, "llm": args.llm, "frames": args.frames, "dtype": args.dtype},
            **{"device": args.device, "load_before": load},
            "parameters": sum(p.numel() for p in setup.model.parameters()),
            "question_tokens": int(setup.ask()["question_ids"].shape[1]),
        }
        facts |= check(setup)
        sys.stdout.write(f"{name}: both ways agree, {facts['prompt_tokens']} prompt tokens\n")
        rows: list[Row] = []
        for part in PARTS:
            for found in part(setup, args.rounds):
                rows.append(found | facts)
                sys.stdout.write(describe(found) + "\n")
            path = harness.record(name, rows, args.out)
    sys.stdout.write(f"{path}\n")


def describe(found: Row) -> str:
    part = found["part"]
    if "note" in found:
        return f"{part}: {found['note']}"
    if "stages_s" in found:
        split = ", ".join(f"{k} {v:.3f}" for k, v in found["stages_s"].items())
        return (
            f"{part}: {found['first_token_s']:.3f} s = {split}; then "
            f"{found['decoding_tokens_per_s']:.1f} tokens/s; peak {found['peak_mb']} MB"
        )
    times = ", ".join(f"{n} {t['median_s']:.3f} s" for n, t in found["times"].items())
    ratios = "".join(f"; ours against {n} {r:.2f}x" for n, r in found["ratios"].items())
    return f"{part}: {times}{ratios}"


if __name__ == "__main__":
    sys.exit(main())
