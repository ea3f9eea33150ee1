# SPDX-License-Identifier: Apache-2.0
"""The whole model with random weights, from a video to the first token of the answer and on.

Towers, connector, sound, compressor and language model, ours and the authors' way
(``bench/peers/release_pipeline.py``) on the same weights and the same video. Both must come to the
same prompt and the same logits before anything is timed. ``--scale paper`` has the paper's sizes;
``small`` is what a CPU can do in about a minute, and its numbers, like those of ``tiny``, say
nothing about the paper's model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdc.lvcot import answer_long_video
from tdc.processor.media_inputs import Medium
from tdc.profiling import measure, now, stage

from ..benchmark import Benchmark, Measurement, Row
from ..report import results
from ..timing.peak import Peak
from ..timing.turns import Timing
from . import pipeline_ways as ways
from .pipeline_models import LANGUAGE_MODELS, QUESTION, SCALES, SECOND_QUESTION, WITHOUT_AV
from .pipeline_ways import WAYS, Setup, Way

OTHER = "other"  # between the stages: embeddings, copies, planning
NO_FILE = f"not measured ({WITHOUT_AV})"
FIRST = "first token, from decoded frames"
NEXT = "ours, second question"
SECOND = "first token of a second question, features kept"

# ---------------------------------------------------------------- parts


def first_tokens(setup: Setup) -> Iterator[Measurement]:
    """Time to the first token: from decoded and from resized frames, of the next question, and from
    the file."""
    features = ways.our_features(setup, setup.decoded)

    def second() -> Tensor:
        return ways.token(setup, ways.our_question(setup, features, SECOND_QUESTION))

    def both(source: Callable[[], Medium]) -> dict[str, Callable[[], Tensor]]:
        return {name: partial(ways.first_token, setup, way, source) for name, way in WAYS.items()}

    def rows(times: Mapping[str, Timing]) -> list[Row]:
        # The authors' code keeps nothing: its next question costs what the first one did.
        again = {"ours": times[NEXT], "release": times["release"]}
        now = {name: times[name] for name in WAYS}
        return [results.row(now, part=FIRST), results.row(again, part=SECOND)]

    second()
    yield _measurement(FIRST, {**both(lambda: setup.decoded), NEXT: second}, rows)
    # How frames are resized is the host's affair: the same without it.
    yield _measurement("first token, from resized frames on the device", ways.of_pixels(setup))
    yield _measurement("first token, from the file", {} if setup.clip is None else both(setup.load))


def _measurement(
    part: str, calls: Mapping[str, Any], rows: Any = None, **options: Any
) -> Measurement:
    missing: list[Row] = [{"part": part, "note": NO_FILE}]
    rows = rows or (results.of_part(part) if calls else lambda _: missing)
    return Measurement(part, "", calls, rows, warmup=0, **options)


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
            out = ways.prefill(setup, way(setup, source()))
        elapsed = now() - begin
        rate = ways.decode(setup, out)
    return Staged(elapsed, times.seconds, rate, peak.bytes)


def stages(setup: Setup) -> Iterator[Measurement]:
    """Of each way the run with the median time: its stages, decoding and peak memory."""
    runs: dict[str, list[Staged]] = {name: [] for name in WAYS}

    def sample(name: str) -> tuple[float, float]:
        runs[name].append(staged(setup, WAYS[name]))
        return runs[name][-1].first_token_s, 0.0

    def rows(_: object) -> list[Row]:
        return [_stages(setup, name, found) for name, found in runs.items()]

    yield _measurement("stages", {name: name for name in WAYS}, rows, sample=sample)


def _stages(setup: Setup, name: str, runs: list[Staged]) -> Row:
    middle = sorted(runs, key=lambda run: run.first_token_s)[len(runs) // 2]
    row = {
        "part": f"stages, {name}",
        "first_token_s": round(middle.first_token_s, 6),
        "stages_s": {k: round(v, 6) for k, v in middle.seconds.items()},
        "new_tokens": setup.scale.new_tokens,
        "decoding_tokens_per_s": round(middle.tokens_per_s, 2),
        "peak_mb": round(max(run.peak_bytes for run in runs) / 2**20),
        "peak_is": Peak.WHAT[setup.device],
    }
    return row if setup.clip is not None else {**row, "notes": {"decode video": NO_FILE}}


def lvcot(setup: Setup) -> Iterator[Measurement]:
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
    part = "LVCoT, N = 3"
    yield _measurement(part, {"ours": call}, results.of_part(part, **options), rounds=1)


# ---------------------------------------------------------------- benchmark


def measurements(args: argparse.Namespace) -> Iterator[Measurement]:
    """Everything that the arguments ask for, once both ways agree."""
    device, scale = args.device, SCALES[args.scale]
    frames = scale.frames if args.frames is None else args.frames
    dtype = args.dtype or ("bfloat16" if device == "cuda" else "float32")
    record = f"pipeline {args.scale} {args.llm} {device} {frames} {dtype}"
    with tempfile.TemporaryDirectory() as folder:
        setup = ways.make(args.scale, args.llm, device, getattr(torch, dtype), frames, Path(folder))
        facts = {
            **{"scale": args.scale, "llm": args.llm, "frames": frames, "dtype": dtype},
            "device": device,
            "parameters": sum(p.numel() for p in setup.model.parameters()),
            "question_tokens": int(setup.ask()["question_ids"].shape[1]),
            **ways.check(setup),
        }
        for part in (first_tokens, stages, lvcot):
            for found in part(setup):
                rounds = found.rounds or args.rounds or scale.rounds
                yield replace(found, record=record, facts=facts, rounds=rounds)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--llm", choices=LANGUAGE_MODELS, default="qwen2-7b")
    parser.add_argument("--frames", type=int, help="default: the scale's, of the paper 224")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32"
    )


def wrong(args: argparse.Namespace) -> str | None:
    if args.frames is not None and args.frames < 3:
        return f"--frames: expected at least 3, one for each of LVCoT's segments, got {args.frames}"
    if args.scale != "paper" and args.out.resolve() == results.RESULTS and not args.dry_run:
        return f"--scale {args.scale}: its numbers are no results, --out must be another folder"
    return None


BENCHMARK = Benchmark("pipeline", measurements, options, wrong, rounds=None)
