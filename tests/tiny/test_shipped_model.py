# SPDX-License-Identifier: Apache-2.0
"""The tiny TDC of the package answers, and stops answering when a kernel goes wrong.

The bounds are what was measured (docs/tiny.md) less what another machine's rounding may take.
"""

from __future__ import annotations

import pytest
import torch

import tdc.compressor.compressor
import tdc.encoder.segment
from tdc.checkpoints.load import TINY, load_model
from tdc_kernels import nn as kernels
from tiny.eval.evaluate import evaluate
from tiny.world import ask, make_clip

SEED = 4  # of clips that neither training nor the figures of the documents have seen
CLIPS, QUESTIONS = 100, 4
LEAST_RIGHT, LEAST_CUTS = 0.81, 0.96  # measured: 0.845, 0.980
FEW = 32  # clips for `make test`: 0.859, 1.0


@pytest.fixture(scope="module")
def shipped():
    return load_model(device="cpu")


def answers(shipped, clips=CLIPS):
    drawn = (make_clip(SEED, index, split="test") for index in range(clips))
    asked = [(clip, ask(clip, QUESTIONS)) for clip in drawn]
    return evaluate(shipped.model, shipped.processor, asked, files=False)


@pytest.mark.parametrize("clips", [FEW, pytest.param(CLIPS, marks=pytest.mark.slow)])
def test_it_answers_about_clips_it_has_not_seen(shipped, clips):
    found = answers(shipped, clips)
    assert found.count() == clips * QUESTIONS
    assert found.accuracy() >= LEAST_RIGHT
    assert found.constant() <= (0.4 if clips == CLIPS else 0.5)
    assert found.cuts.f1 >= LEAST_CUTS


def test_it_is_small_and_says_how_it_was_made(shipped):
    assert sum(file.stat().st_size for file in TINY.iterdir()) < 10 * 2**20
    assert (TINY / "README.md").read_text().startswith("---\nlicense: apache-2.0")
    assert shipped.tiny and "tiny TDC" in shipped.note


def _wrong_queries(real):
    return lambda *args, **kwargs: torch.zeros_like(real(*args, **kwargs))


def _wrong_packing(real):
    def pack(*args, **kwargs):
        packed, lengths = real(*args, **kwargs)
        return packed.roll(1, 0), lengths  # one token late: 0.72 right of 0.845

    return pack


def _wrong_cuts(real):
    def cut(*args, **kwargs):
        boundaries, similarity = real(*args, **kwargs)
        return boundaries.amax(1, keepdim=True).expand_as(boundaries).contiguous(), similarity

    return cut


def _wrong_attention(real):
    return lambda self, *args, **kwargs: -real(self, *args, **kwargs)


WRONG = {
    "anchor_queries": (tdc.compressor.compressor, "anchor_queries", _wrong_queries),
    "pack_context": (tdc.compressor.compressor, "pack_context", _wrong_packing),
    "segment_scenes": (tdc.encoder.segment, "segment_scenes", _wrong_cuts),
    "cross_attention": (kernels.CrossAttention, "forward", _wrong_attention),
}


@pytest.mark.slow
@pytest.mark.parametrize("op", WRONG)
def test_a_wrong_kernel_shows_in_the_figure(shipped, op, monkeypatch):
    place, name, wrong = WRONG[op]
    monkeypatch.setattr(place, name, wrong(getattr(place, name)))
    found = answers(shipped)
    assert found.accuracy() < LEAST_RIGHT or found.cuts.f1 < LEAST_CUTS
