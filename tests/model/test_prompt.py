# SPDX-License-Identifier: Apache-2.0
"""Prompt assembly: media between text, labels, padding, what is cut and what is said."""

from __future__ import annotations

import logging

import pytest
import torch

from tdc.prompt import IGNORE_INDEX, assemble, media_counts, text_token_counts

MEDIA, WIDTH = -200, 4


def embed(ids: torch.Tensor) -> torch.Tensor:
    """Token i becomes (i, i, i, i)."""
    assert (ids >= 0).all(), "a placeholder has no embedding"
    return ids[:, None].float().expand(-1, WIDTH)


def medium(length: int, value: float) -> torch.Tensor:
    return torch.full((length, WIDTH), value)


def run(ids, media, mask=None, labels=None, max_length=100, side="right"):
    return assemble(
        embed,
        torch.tensor(ids),
        None if mask is None else torch.tensor(mask),
        None if labels is None else torch.tensor(labels),
        media,
        media_token_id=MEDIA,
        max_length=max_length,
        padding_side=side,
    )


def values(prompt, row=0):
    """First channel of the tokens that the mask keeps."""
    return prompt.inputs_embeds[row, :, 0][prompt.attention_mask[row]].tolist()


def test_media_take_their_places_in_order():
    ids = [[1, MEDIA, 2, 3, MEDIA], [4, 5, MEDIA, 6, 7]]
    prompt = run(ids, [medium(2, 0.1), medium(1, 0.2), medium(3, 0.5)])
    assert values(prompt, 0) == pytest.approx([1, 0.1, 0.1, 2, 3, 0.2])
    assert values(prompt, 1) == pytest.approx([4, 5, 0.5, 0.5, 0.5, 6, 7])
    assert prompt.attention_mask.sum(1).tolist() == [6, 7]
    assert prompt.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert prompt.labels is None
    assert not prompt.inputs_embeds[0, 6].any()


def test_left_padding():
    prompt = run([[1, MEDIA], [4, 5]], [medium(3, 0.5)], side="left")
    assert prompt.attention_mask.tolist() == [[True] * 4, [False, False, True, True]]
    assert prompt.position_ids[1].tolist() == [0, 0, 0, 1]
    assert prompt.inputs_embeds[1, :, 0].tolist() == [0, 0, 4, 5]


def test_padding_ids_are_dropped_and_placeholders_never():
    ids = [[9, 9, 1, MEDIA, 2], [1, 2, MEDIA, 9, 9]]
    mask = [[0, 0, 1, 0, 1], [1, 1, 1, 0, 0]]
    prompt = run(ids, [medium(1, 0.5), medium(2, 0.7)], mask=mask)
    assert values(prompt, 0) == pytest.approx([1, 0.5, 2])
    assert values(prompt, 1) == pytest.approx([1, 2, 0.7, 0.7])
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    assert text_token_counts(ids, mask, MEDIA) == [2, 2]
    assert text_token_counts(ids, None, MEDIA) == [4, 4]
    assert media_counts(ids, MEDIA) == [1, 1]


def test_labels_skip_media_and_padding():
    labels = [[-100, -100, 2, 3], [4, 5, -100, -100]]
    mask = [[1, 1, 1, 1], [1, 1, 0, 0]]
    ids = [[1, MEDIA, 2, 3], [4, 5, 9, 9]]
    prompt = run(ids, [medium(2, 0.5)], mask=mask, labels=labels)
    assert prompt.labels.tolist() == [[-100, -100, -100, 2, 3], [4, 5, -100, -100, -100]]
    assert IGNORE_INDEX == -100


def test_too_long_a_prompt_is_cut_with_a_warning_that_says_how_much(caplog):
    with caplog.at_level(logging.WARNING):
        prompt = run([[1, MEDIA, 2, 3]], [medium(5, 0.5)], labels=[[1, -100, 2, 3]], max_length=6)
    assert values(prompt) == pytest.approx([1, *[0.5] * 5])
    assert prompt.labels.tolist() == [[1, *[-100] * 5]]
    (record,) = caplog.records
    assert "the prompt has 8 tokens; the last 2 are cut" in record.getMessage()


@pytest.mark.parametrize("media", [[], [medium(1, 1.0)] * 2])
def test_placeholders_and_media_must_agree(media):
    with pytest.raises(ValueError, match=f"1 media placeholders, but {len(media)} videos"):
        run([[1, MEDIA]], media)


def test_media_take_the_embeddings_dtype():
    prompt = assemble(
        lambda ids: embed(ids).bfloat16(),
        torch.tensor([[1, MEDIA]]),
        None,
        None,
        [medium(2, 0.5)],
        media_token_id=MEDIA,
        max_length=10,
    )
    assert prompt.inputs_embeds.dtype == torch.bfloat16
    only_media = run([[MEDIA]], [medium(2, 0.5)])
    assert only_media.inputs_embeds.shape == (1, 2, WIDTH)


def test_gradients_flow_to_the_media():
    tokens = medium(3, 0.5).requires_grad_()
    run([[1, MEDIA, 2]], [tokens]).inputs_embeds.sum().backward()
    assert torch.equal(tokens.grad, torch.ones(3, WIDTH))
