# SPDX-License-Identifier: Apache-2.0
"""Where a question looks: labels for the attention of a language model.

A search is the hardest thing to learn from answers alone, and labels of what a question is about
say what is found, not where. The first layer that can search in what frames have told is the one
after the layers at whose end linear heads read it (:mod:`.story_labels`): at the end of a
question one of its heads is told which of the context's tokens to attend to. It cannot ask there
for what the question's words have not brought along, so these are read at the same place.
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
    """bool ``[Q, N]``, the tokens that a question is about: all of its scene, or where it is about
    a flash the separators of its frame and those that follow, up to the next flash.

    Args:
        story: int64 ``[N, len(STORY)]`` of a context, :func:`tiny.recipe.story_labels.told`.
        scenes, flashes: int64 ``[Q]``; UNASKED where there is none.
    """
    of_scene = (story[:, _SCENE] == scenes[:, None]) & (scenes != UNASKED)[:, None]
    of_flash = story[:, _TOLD] == flashes.clamp(max=MOST_FLASHES - 1)[:, None] + 1
    return torch.where((flashes != UNASKED)[:, None], of_flash, of_scene)


def look_errors(
    model: Any, hidden: Tensor, story: Tensor, turns: Tensor, scenes: Tensor, flashes: Tensor
) -> Tensor:
    """``[Q]``, of every question that looks somewhere the negative log of how much of its attention
    goes there in the first head. (Counted in the best of four, each came to look at one scene.)

    Args:
        model: a Qwen2Model.
        hidden: ``[L, D]``, at least the context's and the text's tokens, after half of its layers.
        story: as above, of the N tokens of the context; of none, nobody is told where to look.
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
    """Of every token of every question the negative log of its probability, read with the words'
    embeddings where the question ends: nobody finds what has not been carried there.

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
