# SPDX-License-Identifier: Apache-2.0
"""What the compressor learns to make easy to look up."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tiny.recipe import compressor_labels as dense
from tiny.world import ask_frame, make_clip, motion
from tiny.world.captions import SINCE
from tiny.world.labels import LOOKUPS, UNASKED, lookup_labels
from tiny.world.words import COLORS, SHAPES

PLACES = [motion.place_of((10 + 22 * (k % 3), 10 + 22 * (k // 3))) for k in range(9)]


def named(values, label):
    return values[label - 1] if label > 0 else "nothing"


def test_look_ups_find_what_questions_about_the_frame_ask_for():
    """Two ways to the same answers: labels by name, and the words of `ask_frame`."""
    compared = Counter()
    for clip in (make_clip(4, index, scenes=1) for index in range(120)):
        labels = dict(zip(LOOKUPS, lookup_labels(clip, clip.num_frames - 1), strict=True))
        for question in ask_frame(clip, clip.num_frames - 1, 11):
            name = next((word for word in question.text.split() if word in labels), None)
            if name is None:
                continue
            shape, color, place, since, _ = labels[name]
            says = {
                "frame_shape": named(SHAPES, shape),
                "frame_color": named([*COLORS], color),
                "frame_place": named(PLACES, place),
                "frame_moved": named(SINCE, since).replace("moved ", ""),
                "frame_new_shape": named(SHAPES, shape),
                "frame_new_color": named([*COLORS], color),
                "frame_gone": named(SHAPES, shape),
            }
            for rests in ("still", "turned"):
                says["frame_moved"] = says["frame_moved"].replace(rests, "nowhere")
            assert says.get(question.kind) == question.answer, (question, labels[name])
            compared[question.kind] += 1
    assert len(compared) == 7 and min(compared.values()) > 10


def test_a_look_up_of_several_or_of_none():
    several = recolored = 0
    for clip in (make_clip(4, index, split="test", scenes=1) for index in range(60)):
        labels = dict(zip(LOOKUPS, lookup_labels(clip, 1), strict=True))
        seen = clip.scenes[0].visible(1)
        for shape in SHAPES:
            count = sum(thing.shape == shape for thing in seen)
            several += count > 1
            assert (labels[shape][0] == UNASKED) == (count > 1)
            assert (labels[shape][0] == 0) == (count == 0)
        assert sum(labels[color][0] > 0 for color in COLORS) == len(seen)
        turned = [thing for thing in seen if thing.color_at(1) != thing.color]
        assert sum(labels[color][4] for color in COLORS) == len(turned)
        shape, color, *_ = labels["turned"]
        looks = [(named(SHAPES, shape), named([*COLORS], color))] if shape else []
        assert looks == [(thing.shape, thing.color_at(1)) for thing in turned]
        recolored += len(turned)
    assert several and 0 < recolored < 60


@pytest.mark.parametrize("plain", [True, False])
def test_look_ups_by_color_are_asked_of_clips_as_they_are(plain):
    torch.manual_seed(0)
    lookup = dense.Lookup(8)
    labels = torch.from_numpy(lookup_labels(make_clip(4, 3, scenes=1), 1))[None]
    lookup(torch.randn(1, 4, 8), labels, torch.tensor([plain]))["loss"].backward()
    asked = lookup.names.grad.abs().sum(1) > 0
    assert bool(asked[: len(COLORS)].any()) == plain and asked[len(COLORS) :].any()
    color = slice(len(SHAPES) + 1, len(SHAPES) + len(COLORS) + 2)
    assert bool(lookup.read.weight.grad[color].any()) == plain
