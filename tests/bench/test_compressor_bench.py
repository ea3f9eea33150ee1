# SPDX-License-Identifier: Apache-2.0
"""The compressor benchmark at a tiny size: both sides must compute the same thing."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch

from bench.benchmark import Refused
from bench.model import compressor as bench
from bench.model import connector
from bench.model.compressor_case import Shape, make_case
from bench.peers import release_compressor
from bench.run import Run
from tdc.compressor.speedups import Speedups

TINY = Shape(
    frames=40,
    audio_tokens=0,
    boundaries=3,  # scenes longer than the eight frames of a chunk
    visual_tokens=20,
    question_tokens=5,
    width=64,
    context_tokens=4,
    dinov2_tokens=576,  # the connector takes 24 x 24
    dinov2_width=8,
    audio_width=24,
    siglip_width=8,
    connector_width=32,
    qformer_width=48,
    qformer_layers=4,
    qformer_heads=4,
    qformer_intermediate=96,
    qformer_vocabulary=50,
)


@pytest.mark.parametrize(
    "shape",
    [
        TINY,
        replace(TINY, audio_tokens=7),
        replace(TINY, frames=4),  # as many frames as scenes: every frame is static
        replace(TINY, frames=12, boundaries=7),
    ],
    ids=["plain", "sound", "all static", "short scenes"],
)
@torch.no_grad()
def test_both_sides_agree(shape: Shape) -> None:
    case = make_case(shape)
    agreement = bench.check(case)
    assert agreement["scenes"] == min(shape.boundaries + 1, shape.frames)

    result, plain = bench.ours(case), bench.peer(case)
    judge = bench.peer(case.to(torch.float64))
    floor = torch.finfo(torch.float32).eps * judge.abs().max()
    assert (result - judge).abs().max() <= 2 * (plain - judge).abs().max() + floor


def test_cuts_are_the_scenes_of_the_made_up_video() -> None:
    case = make_case(TINY)
    starts = bench.peer_segments(case)
    similarity = torch.cosine_similarity(case.dinov2[:-1].flatten(1), case.dinov2[1:].flatten(1))
    inside = [t for t in range(1, TINY.frames) if t not in starts]
    cuts = similarity[torch.tensor(starts[1:]) - 1]
    assert cuts.max() < similarity[torch.tensor(inside) - 1].min()


@torch.no_grad()
def test_check_refuses_other_cuts_and_other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(TINY)
    wrong_tokens = bench.peer(case)
    wrong_tokens[-2, 0] += 1e-3
    monkeypatch.setattr(bench, "peer", lambda case: wrong_tokens)
    with pytest.raises(Refused, match=r"context tokens differ by 1\.0e-03"):
        bench.check(case)
    monkeypatch.setattr(bench, "peer_segments", lambda case: [0, 1, 2, 3])
    with pytest.raises(Refused, match="boundaries differ"):
        bench.check(case)


@torch.no_grad()
def test_peer_calls_the_qformer_once_per_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    qformer = release_compressor._qformer

    def counting(*args: object) -> torch.Tensor:
        out = qformer(*args)
        batches.append(len(out))
        return out

    monkeypatch.setattr(release_compressor, "_qformer", counting)
    case = make_case(TINY)
    release_compressor.compress(case.model, case.visual, [0, 1, 18], case.question_ids)
    # 1 frame: no call; 17 frames: 8 + 8 + 1; 22 frames: 8 + 8 + 6; the first of each is static
    assert batches == [7, 7, 7, 7, 5]


RUN = Run(bench.BENCHMARK, argparse.Namespace(rounds=2))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", bench.PARTS)
def test_parts_measure(part: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part times what it says, at sizes that mean nothing."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    case = make_case(replace(TINY, audio_tokens=7), dtype=dtype)
    for found in bench.PARTS[part](case):
        (row,) = RUN.measure(found)
        assert set(row["ratios"]) == set(row["times"]) - {"ours"}
        assert {t["rounds"] for t in row["times"].values()} == {2}
        assert row["error_of_batched"] < 0.05 if "error_of_batched" in row else True
        assert row["shape"]["frames"] == 40 and found.title.startswith(row["part"])
    assert case.model.speedups == Speedups()


@torch.inference_mode()
def test_a_second_question_follows_one_about_the_same_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(bench, "our_context", lambda case, features: asked.append(id(features)))
    found = next(bench.questions(make_case(TINY)))
    for call in ("first", "ours"):
        found.sample(found.calls[call])
    numbers = [asked.index(number) for number in asked]
    assert numbers == [0, 1, 2, 1, 1]  # new ones; the timed one stands after its like


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_connector_is_compared_and_timed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = connector.measurement(TINY, dtype, "cpu", "connector")
    (row,) = RUN.measure(found)
    assert set(row["ratios"]) == {"every frame"} and row["max_abs_error"] < 0.05
    shifted = connector.SVAConnector.token_map
    monkeypatch.setattr(connector.SVAConnector, "token_map", lambda self: shifted(self) + 1)
    with pytest.raises(Refused, match="the static frames' tokens differ"):
        connector.measurement(TINY, dtype, "cpu", "connector")
