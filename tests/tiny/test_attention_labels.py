# SPDX-License-Identifier: Apache-2.0
"""Labels for the attention of the tiny TDC's language model."""

from __future__ import annotations

import pytest
import torch

from tdc.train.data.turns import around_media, separate
from tiny.model import new_model
from tiny.recipe.attention_labels import look_errors, places, word_errors
from tiny.world import make_clip
from tiny.world.labels import UNASKED
from tiny.world.questions import KINDS
from tiny.world.story import STORY, story_labels

CONTEXT = 40


@pytest.fixture(scope="module")
def story():
    """Two scenes of 20 tokens, every fifth a separator; a flash in the second frame of each."""
    told = torch.full((CONTEXT, len(STORY)), UNASKED)
    told[:, 0] = torch.arange(CONTEXT) // 20
    told[4::5] = told[4::5].clamp(min=0)
    told[4::5, [*STORY].index("told")] = torch.tensor([0, 1, 1, 1, 1, 2, 2, 2])
    return told


def test_a_question_looks_at_its_scene_or_at_its_flash(story):
    scenes = torch.tensor([0, 1, 1, UNASKED, UNASKED, 0])
    flashes = torch.tensor([UNASKED, UNASKED, 1, 0, UNASKED, 5])
    found = [row.nonzero()[:, 0].tolist() for row in places(story, scenes, flashes)]
    first, second = [*range(20)], [*range(20, 40)]
    # The last but one is about nothing; the clip does not have the last one's flash.
    assert found == [first, second, [29, 34, 39], [9, 14, 19, 24], [], []]


def test_the_flash_that_is_looked_at_is_the_one_asked_for():
    compared = 0
    for clip in (make_clip(5, index, scenes=(2, 3)) for index in range(40)):
        rows = torch.from_numpy(story_labels(clip))
        for asked in KINDS["sound_event"].find(clip):
            there = places(rows, torch.tensor([asked.scene]), torch.tensor([asked.flash]))[0]
            if there.any():  # none where two flash in one frame
                frame = int(there.nonzero()[0])
                assert clip.sounds[frame] == asked.answer
                compared += 1
    assert compared > 30


@pytest.fixture(scope="module")
def read(story):
    """A language model after random tokens: a context and two questions with their answers."""
    model = new_model(0).language_model.model.eval()
    model.config._attn_implementation = "eager"
    turns = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, -1])
    scenes, flashes = torch.full((2, 10), UNASKED)
    scenes[2], scenes[7], flashes[7] = 0, 1, 1
    torch.manual_seed(0)
    inputs = torch.randn(1, CONTEXT + 10, 96)
    rows = around_media(turns[None], torch.tensor([CONTEXT + 9]), CONTEXT + 10)
    mask, positions = separate(rows)
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    with torch.no_grad():
        made = model(
            inputs_embeds=inputs,
            attention_mask=bias,
            position_ids=positions,
            output_attentions=True,
            output_hidden_states=True,
        )
    return model, made, (story, turns, scenes, flashes)


def test_it_is_the_attention_of_the_layer_after_the_middle(read):
    model, made, labels = read
    there = torch.zeros(2, CONTEXT, dtype=torch.bool)
    there[0, :20] = True
    there[1, [29, 34, 39]] = True
    weights = made.attentions[2][0, 0, [CONTEXT + 2, CONTEXT + 7], :CONTEXT]
    expected = -(weights * there).sum(-1).log()
    torch.testing.assert_close(look_errors(model, made.hidden_states[2][0], *labels), expected)
    # A context that tells nothing asks for nothing.
    untold = look_errors(model, made.hidden_states[2][0], labels[0][:0], *labels[1:])
    assert untold.shape == (0,)


def test_the_head_learns_to_look_there(read):
    model, made, labels = read
    model = new_model(0).language_model.model
    hidden = made.hidden_states[2][0]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    errors = []
    for _ in range(20):
        loss = look_errors(model, hidden, *labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched and all(name.startswith("layers.2.") for name in touched)
    assert errors[-1] < errors[0] / 4


def test_the_end_of_a_question_repeats_its_words():
    torch.manual_seed(0)
    embedding, hidden = torch.randn(7, 96), torch.randn(9, 96)
    ids = torch.tensor([3, 1, 4, 5, 2, 6, 6, 0, 1])
    turns = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, -1])
    asking = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 0], dtype=torch.bool)
    expected = []
    for words, end in (((0, 1, 2), 2), ((4, 5), 5)):
        read = hidden[end] / hidden[end].square().mean().sqrt()
        expected += [-(embedding @ read).log_softmax(0)[ids[word]] for word in words]
    errors = word_errors(embedding, hidden, ids, turns, asking)
    torch.testing.assert_close(errors, torch.stack(expected))
