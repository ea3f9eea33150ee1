# SPDX-License-Identifier: Apache-2.0
"""Auxiliary losses inside of the language model: the state of the clip after each frame.

The answer to a question about one of several scenes is a weak signal for what went wrong on the
way. So linear heads, after half of the layers and after all but one, decode the story so far at the
separator behind every frame: the scene, its changes and flashes, the sounds heard. Others decode at
the end of a question the scene and the flash it is about. All heads are discarded afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdc.config import TDCConfig

from ..world import Clip
from ..world.labels import UNASKED
from ..world.story import MOST_FLASHES, STORY
from ..world.words import MAX_SCENES


def told(clip: Clip, frames: Tensor, length: int, config: TDCConfig) -> Tensor:
    """Labels of a clip's context, int64 ``[length, len(STORY)]``: the scene at every token,
    everything at the last token of each frame, else UNASKED.

    All of them are UNASKED if the context's length does not follow from the true cuts.

    Args:
        frames: :func:`tiny.world.story.story_labels` of the clip.
    """
    labels = torch.full((length, len(STORY)), UNASKED)
    whole = config.frame_grid * (config.frame_grid + 1) + config.audio_tokens_per_frame + 1
    sizes = [
        config.num_context_tokens + 1 if time else whole
        for scene in clip.scenes
        for time in range(scene.num_frames)
    ]
    if sum(sizes) == length:
        lengths = torch.tensor(sizes)
        labels[:, 0] = frames[:, 0].repeat_interleave(lengths)
        labels[lengths.cumsum(0) - 1] = frames
    return labels


class Stories(nn.Module):
    """Linear heads on the hidden states of a language model."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = (num_layers // 2, num_layers - 1)
        scene, *others = STORY.values()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.layers)
        self.scenes = nn.ModuleList(nn.Linear(width, scene) for _ in self.layers)
        self.others = nn.ModuleList(nn.Linear(width, sum(others)) for _ in self.layers)
        self.asked = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, scene + MOST_FLASHES))
            for _ in self.layers
        )

    def forward(self, hidden: Sequence[Sequence[Tensor]], stories: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy of the story's labels.

        Args:
            hidden: ``[L, D]`` per example, before the first layer and after each one.
            stories: int64 ``[N, len(STORY)]`` per example, labels of its first N tokens.
        """
        labels = torch.cat(list(stories))
        ends = labels[:, 1] != UNASKED  # one token in nine
        truths = [labels[:, 0], *labels[ends, 1:].unbind(-1)]
        losses = []
        for number, layer in enumerate(self.layers):
            tokens = [h[: len(s)] for h, s in zip(hidden[layer], stories, strict=True)]
            read = self.norms[number](torch.cat(tokens))
            others = self.others[number](read[ends]).split([*STORY.values()][1:], -1)
            scores = [self.scenes[number](read), *others]
            losses += [_mean_error(*pair) for pair in zip(scores, truths, strict=True)]
        return torch.stack(losses).mean()

    def about(self, hidden: Sequence[Tensor], scenes: Tensor, flashes: Tensor) -> Tensor:
        """Mean cross-entropy of the questions' scenes and flashes.

        Args:
            hidden: ``[Q, D]`` at the ends of the questions, before the first layer and after each.
            scenes, flashes: int64 ``[Q]``, labels; UNASKED for none.
        """
        truths = scenes, flashes.clamp(max=MOST_FLASHES - 1)
        losses = []
        for read, layer in zip(self.asked, self.layers, strict=True):
            scores = read(hidden[layer]).tensor_split([MAX_SCENES], -1)
            losses += [_mean_error(*pair) for pair in zip(scores, truths, strict=True)]
        return torch.stack(losses).mean()


def _mean_error(scores: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropy; 0 without any label."""
    errors = F.cross_entropy(scores, truth, ignore_index=UNASKED, reduction="sum")
    return errors / (truth != UNASKED).sum().clamp(1)
