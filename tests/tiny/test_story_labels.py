# SPDX-License-Identifier: Apache-2.0
"""What a clip has told by each frame, and how a language model learns to say it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tiny.model import new_model, new_processor
from tiny.recipe.clip_features import clip_features
from tiny.recipe.language_model import LanguageAlone, collate
from tiny.recipe.story_labels import Stories, told
from tiny.world import make_clip
from tiny.world.labels import UNASKED
from tiny.world.question_kinds import KINDS
from tiny.world.story import STORY, story_labels
from tiny.world.words import BACKGROUNDS, CHANGES, COLORS, SHAPES, SILENCE, SOUNDS, TEXTURES


def named(values, label):
    return [*values][label - 1] if label else "nothing"


def flash(story, which):
    color, shape = story[f"{which}_color"], story[f"{which}_shape"]
    return f"{named(COLORS, color)} {named(SHAPES, shape)}"


def by_the_end(clip, story):
    """What questions of a scene's end would be answered from the labels alone."""
    heard = [sound for sound in SOUNDS if story[f"heard_{sound}"]]
    return {
        "background": [*BACKGROUNDS][story["background"]],
        "texture": TEXTURES[story["texture"]],
        "scene_number": str(story["scene"] + 1),
        "change": [*CHANGES.values()][story["change"]],
        "change_color": named(COLORS, story["changed_color"]),
        "appears": named(SHAPES, story["changed_shape"]),
        "disappears": named(SHAPES, story["changed_shape"]),
        "count_end": str(story["count"]),
        "flash_count": str(story["flashes"]),
        "flash_shape": named(SHAPES, story["flash_shape"]),
        "flash_color": named(COLORS, story["flash_color"]),
        "sound": heard[0] if heard else SILENCE,
    }


def test_the_last_frame_of_a_scene_tells_what_questions_about_it_ask_for():
    compared = Counter()
    for clip in (make_clip(5, index) for index in range(80)):
        rows = story_labels(clip)
        assert rows.shape == (clip.num_frames, len(STORY)) and rows.min() >= 0
        assert (rows < [*STORY.values()]).all()
        ends = [start - 1 for start in (*clip.starts[1:], clip.num_frames)]
        stories = [dict(zip(STORY, rows[end].tolist(), strict=True)) for end in ends]
        for kind in by_the_end(clip, stories[0]):
            for asked in KINDS[kind].find(clip):
                answers = by_the_end(clip, stories[asked.scene])
                assert answers[kind] == asked.answer, (clip.name, asked)
                compared[kind] += 1
    assert len(compared) == 12 and min(compared.values()) > 10


def test_flashes_are_told_in_order_and_with_their_sounds():
    compared = Counter()
    for clip in (make_clip(5, index, scenes=(2, 3)) for index in range(60)):
        rows = [dict(zip(STORY, row, strict=True)) for row in story_labels(clip).tolist()]
        seen = [row for last, row in pairwise(rows) if row["told"] > last["told"]]
        look, before = ([flash(row, which) for row in seen] for which in ("flash", "before"))
        assert before[1:] == look[:-1] and before[:1] in ([], ["nothing nothing"])
        for asked in KINDS["next"].find(clip):
            (k,) = (k for k, name in enumerate(before) if f"the {name} flashes" in asked.text)
            assert look[k].endswith(asked.answer)
            compared["next"] += 1
        for asked in KINDS["sound_event"].find(clip):
            (k,) = (k for k, name in enumerate(look) if f"the {name} flashes" in asked.text)
            assert named(SOUNDS, seen[k]["flash_sound"]) == asked.answer
            assert named(SOUNDS, seen[k]["sound"]) == asked.answer
            compared["sound_event"] += 1
    assert min(compared["next"], compared["sound_event"]) > 20


@pytest.fixture(scope="module")
def model():
    return new_model(0).eval()


@pytest.fixture(scope="module")
def read(model):
    """A clip of three scenes and its context, cut where the world cuts."""
    clip = make_clip(5, 1, scenes=3)
    features = clip_features(model.video_encoder, clip)
    with torch.no_grad():
        encoded = model.video_encoder.connect([features])
        cuts = encoded.segmentation
        boundaries = torch.full_like(cuts.boundaries, clip.num_frames)
        boundaries[0, : len(clip.cuts)] = torch.tensor(clip.cuts)
        encoded = replace(encoded, segmentation=replace(cuts, boundaries=boundaries))
        assert encoded.segmentation.scene_starts(0) == [0, *clip.cuts]
        ids = torch.tensor([new_processor(model.config).question_tokens("what ?")])
        return clip, model.build_context(encoded, ids).tokens[0]


def frames(clip):
    return torch.from_numpy(story_labels(clip))


def test_stories_stand_at_the_separators(model, read):
    clip, context = read
    labels = told(clip, frames(clip), len(context), model.config)
    separators = (context == model.compressor.separator).all(-1)
    assert separators.sum() == clip.num_frames
    assert torch.equal((labels != UNASKED).all(-1), separators)
    assert torch.equal(labels[separators], frames(clip))
    # Every other token knows its scene, and nothing else is asked of it.
    assert (labels[~separators, 1:] == UNASKED).all()
    first = [int(separators.nonzero()[start - 1]) + 1 for start in clip.cuts]
    steps = torch.zeros(len(context), dtype=torch.long).index_fill_(0, torch.tensor(first), 1)
    assert torch.equal(labels[:, 0], steps.cumsum(0))


@pytest.mark.parametrize("change", [-5, 0, 5])
def test_a_clip_that_was_cut_elsewhere_tells_nothing(model, read, change):
    clip, context = read
    labels = told(clip, frames(clip), len(context) + change, model.config)
    assert bool((labels == UNASKED).all()) == bool(change)


def test_heads_teach_the_layers_below_them_and_read_only_what_is_told(model, read):
    clip, context = read
    layers = model.config.text_config.num_hidden_layers
    torch.manual_seed(0)
    stories = Stories(96, layers)
    hidden = [torch.randn(2, 200, 96, requires_grad=True) for _ in range(layers + 1)]
    labels = told(clip, frames(clip), len(context), model.config)
    loss = stories(hidden, [labels, labels[:0]])
    loss.backward()
    learning = [h.grad is not None and bool(h.grad[0].any()) for h in hidden]
    assert learning == [k in (2, 3) for k in range(layers + 1)]
    for k in (2, 3):
        assert not hidden[k].grad[1].any()  # an example without labels
        touched = hidden[k].grad[0].any(-1)
        assert touched[: len(context)].all() and not touched[len(context) :].any()
    assert stories(hidden, [labels[:0]] * 2) == 0  # a batch of pairs of frames


def test_labels_are_learned_beside_the_answers(read):
    clip, context = read
    model = new_model(0)
    tokens = {"ids": [5, 6, 7], "labels": [-100, 6, 7], "turns": [0, 0, 0]}
    tokens |= {"scenes": [2, -100, -100], "flashes": [1, -100, -100]}
    story = told(clip, frames(clip), len(context), model.config)
    tokens |= {"context": context.detach(), "stories": story, "progress": 0.0}
    batch = collate([tokens])
    alone = LanguageAlone(model)
    nothing = torch.full((1, 3), UNASKED)
    untold = {**batch, "stories": [story[:0]], "scenes": nothing, "flashes": nothing}
    plain = alone(**untold)["loss"]
    for name in ("scenes", "flashes"):  # one of four, or of seven, unlearned
        assert alone(**{**untold, name: batch[name]})["loss"] > plain.item() + 0.4
    optimizer = torch.optim.AdamW(alone.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = alone(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > plain.item() + 1  # 22 things of 2 to 24 classes, unlearned
    assert losses[-1] < losses[0] / 2
