# SPDX-License-Identifier: Apache-2.0
"""Prompt assembly: text embeddings around the context tokens of videos and images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100  # label of positions that the loss leaves out


@dataclass(frozen=True)
class Prompt:
    """Inputs of the language model.

    Attributes:
        inputs_embeds: ``[B, T, D]``, zeros on padding.
        attention_mask: bool ``[B, T]``.
        position_ids: int64 ``[B, T]``, 0 .. n-1 on tokens, 0 on padding.
        labels: int64 ``[B, T]``, -100 on media and padding; None without labels.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor | None = None


def valid_tokens(ids: Tensor, attention_mask: Tensor | None, media_token_id: int) -> Tensor:
    """bool ``[B, T]``: tokens that stay. A placeholder stays even where it is masked."""
    if attention_mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    return attention_mask.bool() | (ids == media_token_id)


def text_token_counts(ids: Tensor, attention_mask: Tensor | None, media_token_id: int) -> list[int]:
    """Tokens of each prompt, placeholders not counted."""
    keep = valid_tokens(ids, attention_mask, media_token_id)
    return (keep & (ids != media_token_id)).sum(1).tolist()


def media_counts(ids: Tensor, media_token_id: int) -> list[int]:
    """Placeholders of each prompt."""
    return (ids == media_token_id).sum(1).tolist()


def assemble(
    embed: Callable[[Tensor], Tensor],
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    media: Sequence[Tensor],
    *,
    media_token_id: int,
    max_length: int,
    padding_side: str = "right",
) -> Prompt:
    """Replace every placeholder by its context tokens.

    Args:
        embed: token ids ``[n]`` to embeddings ``[n, D]``.
        input_ids: int64 ``[B, T]`` with one ``media_token_id`` per medium.
        attention_mask: ``[B, T]``, 0 on padding, or None.
        labels: int64 ``[B, T]`` or None.
        media: ``[N_i, D]`` context tokens, in the order of the placeholders of the whole batch.
        max_length: longer sequences are cut at the end, with a warning.
        padding_side: ``"right"`` or ``"left"``.

    Raises:
        ValueError: the number of placeholders differs from the number of media.
    """
    found = int((input_ids == media_token_id).sum())
    if found != len(media):
        raise ValueError(
            f"input_ids holds {found} media placeholders, but {len(media)} videos and images came; "
            "expected one placeholder each"
        )
    keep = valid_tokens(input_ids, attention_mask, media_token_id)
    remaining = iter(media)
    embeds: list[Tensor] = []
    targets: list[Tensor] = []
    for row in range(input_ids.shape[0]):
        ids = input_ids[row][keep[row]]
        target = None if labels is None else labels[row][keep[row]]
        sequence, aligned = _fill(embed, ids, target, remaining, media_token_id)
        if len(sequence) > max_length:
            logger.warning(
                "the prompt has %d tokens; the last %d are cut to fit the context of %d",
                len(sequence),
                len(sequence) - max_length,
                max_length,
            )
        embeds.append(sequence[:max_length])
        targets.append(aligned[:max_length])
    return _pad(embeds, targets if labels is not None else None, padding_side)


def _fill(
    embed: Callable[[Tensor], Tensor],
    ids: Tensor,
    target: Tensor | None,
    media: Iterator[Tensor],
    media_token_id: int,
) -> tuple[Tensor, Tensor]:
    """One sample's embeddings ``[n, D]`` and labels ``[n]``."""
    pieces: list[Tensor] = []
    labels: list[Tensor] = []
    start = 0
    places = (ids == media_token_id).nonzero().flatten().tolist()
    for place in [*places, len(ids)]:
        pieces.append(embed(ids[start:place]))
        labels.append(ids[start:place] if target is None else target[start:place])
        if place < len(ids):
            tokens = next(media)
            pieces.append(tokens.to(pieces[0]))
            labels.append(ids.new_full((len(tokens),), IGNORE_INDEX))
        start = place + 1
    return torch.cat(pieces), torch.cat(labels)


def _pad(embeds: list[Tensor], labels: list[Tensor] | None, side: str) -> Prompt:
    length = max(len(e) for e in embeds)
    batch, like = len(embeds), embeds[0]
    inputs_embeds = like.new_zeros(batch, length, like.shape[-1])
    mask = torch.zeros(batch, length, dtype=torch.bool, device=like.device)
    positions = torch.zeros(batch, length, dtype=torch.long, device=like.device)
    targets = torch.full_like(positions, IGNORE_INDEX) if labels is not None else None
    for row, sequence in enumerate(embeds):
        n = len(sequence)
        place = slice(length - n, length) if side == "left" else slice(0, n)
        inputs_embeds[row, place] = sequence
        mask[row, place] = True
        positions[row, place] = torch.arange(n, device=like.device)
        if targets is not None and labels is not None:
            targets[row, place] = labels[row]
    return Prompt(inputs_embeds, mask, positions, targets)
