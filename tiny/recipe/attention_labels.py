# SPDX-License-Identifier: Apache-2.0
"""Attention targets: which context tokens a question should attend to.

Searching is the hardest thing to learn from answers alone, and the labels of :mod:`.story_labels`
name what is to be found, not where. The layer after the first of their heads is the first that can
search in the frames' content: at the end of a question, one of its attention heads gets the
tokens to attend to as a target. It can only search for words that have reached that position, so
a second loss decodes the question's words there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from tdc.train.data.turns import around_media, separate

from ..world.labels import UNASKED
from ..world.story import MOST_FLASHES, STORY

_SCENE, _TOLD = ([*STORY].index(name) for name in ("scene", "told"))


def places(story: Tensor, scenes: Tensor, flashes: Tensor) -> Tensor:
    """Mask of the tokens each question is about, bool ``[Q, N]``: its whole scene or, for a flash,
    the separators from the flash's frame up to the next flash.

    Args:
        story: int64 ``[N, len(STORY)]`` of a context, :func:`tiny.recipe.story_labels.told`.
        scenes, flashes: int64 ``[Q]``, numbers; UNASKED for none.
    """
    of_scene = (story[:, _SCENE] == scenes[:, None]) & (scenes != UNASKED)[:, None]
    of_flash = story[:, _TOLD] == flashes.clamp(max=MOST_FLASHES - 1)[:, None] + 1
    return torch.where((flashes != UNASKED)[:, None], of_flash, of_scene)


def look_errors(
    model: Any, hidden: Tensor, story: Tensor, turns: Tensor, scenes: Tensor, flashes: Tensor
) -> Tensor:
    """Attention loss per question that has a target, ``[Q]``: negative log of the share of the
    first head's attention on the target. (With the best of the four heads counted instead, each
    head came to look at one scene.)

    Args:
        model: a Qwen2Model.
        hidden: ``[L, D]`` after half of its layers: context, text, and perhaps padding.
        story: labels of the N context tokens, as above; N = 0 means no targets.
        turns, scenes, flashes: int64 ``[T]`` of the text's tokens, padded on the right.
    """
    asked = ((scenes != UNASKED) | (flashes != UNASKED)).nonzero()[:, 0]
    there = places(story, scenes[asked], flashes[asked])
    asked, there = asked[there.any(1)], there[there.any(1)]
    if not len(asked):
        return hidden.new_zeros(0)
    length = len(story) + int((turns >= 0).sum())
    seen, positions = separate(around_media(turns[None], torch.tensor([length]), length))
    layer = model.layers[len(model.layers) // 2]
    attention = layer.self_attn
    x = layer.input_layernorm(hidden[None, :length])
    queries, keys = (
        linear(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj)
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, *model.rotary_emb(x, positions))
    ends = len(story) + asked
    scores = queries[0, 0, ends] @ keys[0, 0].T * attention.scaling
    logs = scores.masked_fill(~seen[0, 0, ends], -torch.inf).log_softmax(-1)
    return -logs[:, : len(story)].masked_fill(~there, -torch.inf).logsumexp(-1)


def word_errors(
    embedding: Tensor, hidden: Tensor, ids: Tensor, turns: Tensor, asking: Tensor
) -> Tensor:
    """Word loss: negative log-probability of every question token, decoded with the word
    embeddings at the end of its question.

    Args:
        embedding: ``[V, D]``.
        hidden: ``[T, D]`` of the text's tokens, after half of the layers.
        ids, turns: int64 ``[T]``; ``asking``: bool, True at the tokens of questions.
    """
    asked = asking.nonzero()[:, 0]
    turn = turns[asked]
    ends = asked.new_zeros(int(turn.max()) + 1).scatter_reduce(0, turn, asked, "amax")
    read = F.rms_norm(hidden[ends], hidden.shape[-1:]) @ embedding.T
    return -read.log_softmax(-1)[turn, ids[asked]]
