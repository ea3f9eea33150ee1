# SPDX-License-Identifier: Apache-2.0
"""Who sees whom where turns are told apart."""

from __future__ import annotations

import torch

from tdc.train.data.turns import PADDING, SHARED, around_media, separate


def test_a_turn_sees_what_is_shared_and_itself():
    turns = torch.tensor(
        [[SHARED, SHARED, 1, 1, 3, 3, 3], [SHARED, 1, 1, 3, PADDING, PADDING, PADDING]]
    )
    mask, positions = separate(turns)
    seen = [set(row.nonzero().flatten().tolist()) for row in mask[0, 0]]
    assert seen == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 4}, {0, 1, 4, 5}, {0, 1, 4, 5, 6}]
    assert positions[0].tolist() == [0, 1, 2, 3, 2, 3, 4]
    assert positions[1, :4].tolist() == [0, 1, 2, 1]
    assert mask[1, 0, :4].nonzero().tolist() == [
        *([0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]),
        *([3, 0], [3, 3]),
    ]
    assert mask.any(-1).all()  # attention over nothing would be NaN


def test_context_tokens_take_the_placeholders_place():
    turns = torch.tensor([[SHARED, SHARED, 1, 1, 3], [1, 1, 3, PADDING, PADDING]])
    found = around_media(turns, torch.tensor([8, 3]), 8)
    assert found[0].tolist() == [SHARED] * 5 + [1, 1, 3]
    assert found[1].tolist() == [1, 1, 3] + [PADDING] * 5


def test_text_that_was_cut():
    found = around_media(torch.tensor([[1, 1, 1, 3, 3, 3]]), torch.tensor([4]), 4)
    assert found.tolist() == [[1, 1, 1, 3]]
