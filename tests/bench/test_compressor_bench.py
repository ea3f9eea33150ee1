# SPDX-License-Identifier: Apache-2.0
"""The compressor benchmark at a tiny size: both sides must compute the same thing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.model import compressor as bench
from bench.peers import release_compressor
from tdc.compressor.speedups import Savings

TINY = bench.Shape(
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
def test_both_sides_agree(shape: bench.Shape) -> None:
    case = bench.make_case(shape)
    agreement = bench.check(case)
    assert agreement.scenes == min(shape.boundaries + 1, shape.frames)

    result, plain = bench.ours(case), bench.peer(case)
    judge = bench.peer(case.double())
    floor = torch.finfo(torch.float32).eps * judge.abs().max()
    assert (result - judge).abs().max() <= 2 * (plain - judge).abs().max() + floor


def test_cuts_are_the_scenes_of_the_made_up_video() -> None:
    case = bench.make_case(TINY)
    starts = bench.peer_segments(case)
    similarity = torch.cosine_similarity(case.dinov2[:-1].flatten(1), case.dinov2[1:].flatten(1))
    inside = [t for t in range(1, TINY.frames) if t not in starts]
    cuts = similarity[torch.tensor(starts[1:]) - 1]
    assert cuts.max() < similarity[torch.tensor(inside) - 1].min()


@torch.no_grad()
def test_check_refuses_other_cuts_and_other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench.make_case(TINY)
    wrong_tokens = bench.peer(case)
    wrong_tokens[-2, 0] += 1e-3
    monkeypatch.setattr(bench, "peer", lambda case: wrong_tokens)
    with pytest.raises(RuntimeError, match=r"context tokens differ by 1\.0e-03"):
        bench.check(case)
    monkeypatch.setattr(bench, "peer_segments", lambda case: [0, 1, 2, 3])
    with pytest.raises(RuntimeError, match="boundaries differ"):
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
    case = bench.make_case(TINY)
    release_compressor.compress(case.model, case.visual, [0, 1, 18], case.question_ids)
    # 1 frame: no call; 17 frames: 8 + 8 + 1; 22 frames: 8 + 8 + 6; the first of each is static
    assert batches == [7, 7, 7, 7, 5]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", bench.PARTS)
def test_parts_measure(part: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part times what it says, at sizes that mean nothing."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    case = bench.make_case(replace(TINY, audio_tokens=7), dtype=dtype)
    for row in bench.PARTS[part](case, rounds=2):
        assert set(row["ratios"]) == set(row["times"]) - {"ours"}
        assert row["error_of_batched"] < 0.05 if "error_of_batched" in row else True
        assert bench.describe(row).startswith(row["part"])
    assert case.model.savings == Savings()
