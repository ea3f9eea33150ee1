# SPDX-License-Identifier: Apache-2.0
"""Many questions about one medium as if each had been asked alone.

In a talk, earlier turns give later answers away: after "where is the red star ?" nobody has to look
for the color of the star. A model trained so copies, and guesses where a question comes alone. With
a mask the turns share the medium's tokens, which are most of the work, and see nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARED, PADDING = -2, -1  # in place of a turn's number


def separate(turns: Tensor) -> tuple[Tensor, Tensor]:
    """Mask and positions with which every turn follows what is shared, and no other turn.

    Args:
        turns: int64 ``[B, N]``: SHARED tokens, then every turn's in one piece, then PADDING.

    Returns:
        bool ``[B, 1, N, N]``, True where a token (row) sees another; int64 ``[B, N]``.
    """
    seen = (turns[:, :, None] == turns[:, None]) | (turns == SHARED)[:, None]
    places = torch.arange(turns.shape[1], device=turns.device).expand_as(turns)
    begins = turns.diff(dim=1, prepend=turns[:, :1]) != 0
    inside = places - torch.where(begins, places, 0).cummax(1).values
    shared = (turns == SHARED).sum(1, keepdim=True)
    return seen.tril()[:, None], torch.where(turns == SHARED, inside, shared + inside)


def around_media(turns: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Turns of assembled prompts, in which context tokens have taken the placeholders' place.

    Args:
        turns: int64 ``[B, T]`` of the tokens before; placeholders are among the SHARED.
        lengths: int64 ``[B]``, tokens of each assembled prompt; ``size``: of the longest.
    """
    assembled = turns.new_full((len(turns), size), PADDING)
    for row, mine, length in zip(assembled, turns, lengths.tolist(), strict=True):
        own = mine[mine >= 0][:length]  # text that is too long has been cut at its end
        row[: length - len(own)] = SHARED
        row[length - len(own) : length] = own
    return assembled
