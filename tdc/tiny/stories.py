# SPDX-License-Identifier: Apache-2.0
"""The language model on labels: what a clip has told by each frame, read from inside of it.

A question about one of several scenes tells a language model little about what is wrong on the way
to the answer. After half of its layers, and after all but one, linear heads read at the separator
behind every frame what that frame ends: which scene, what changed and flashed in it so far, which
sounds were heard. The heads are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdc.config import TDCConfig
from tdc.world import Clip
from tdc.world.labels import UNASKED
from tdc.world.story import STORY, story_labels


def told(clip: Clip, length: int, config: TDCConfig) -> Tensor:
    """int64 ``[length, len(STORY)]`` of a clip's context: the scene at every token, everything at
    the last one of each frame, else UNASKED.

    All of it is UNASKED where the context has another length than the true cuts give.
    """
    labels = torch.full((length, len(STORY)), UNASKED)
    whole = config.frame_grid * (config.frame_grid + 1) + config.audio_tokens_per_frame + 1
    sizes = [
        config.num_context_tokens + 1 if time else whole
        for scene in clip.scenes
        for time in range(scene.num_frames)
    ]
    if sum(sizes) == length:
        frames = torch.from_numpy(story_labels(clip))
        lengths = torch.tensor(sizes)
        labels[:, 0] = frames[:, 0].repeat_interleave(lengths)
        labels[lengths.cumsum(0) - 1] = frames
    return labels


class Stories(nn.Module):
    """Linear heads over the hidden states of a language model."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = (num_layers // 2, num_layers - 1)
        self.read = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(STORY.values())))
            for _ in self.layers
        )

    def forward(self, hidden: Sequence[Sequence[Tensor]], stories: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy of all that is told.

        Args:
            hidden: before the first layer and after each one, of each example ``[L, D]``.
            stories: of each example int64 ``[N, len(STORY)]``, labels of its first N tokens.
        """
        labels = torch.cat(list(stories))
        losses = []
        for layer, read in zip(self.layers, self.read, strict=True):
            tokens = [h[: len(s)] for h, s in zip(hidden[layer], stories, strict=True)]
            scores = read(torch.cat(tokens)).split([*STORY.values()], -1)
            for part, truth in zip(scores, labels.unbind(-1), strict=True):
                errors = F.cross_entropy(part, truth, ignore_index=UNASKED, reduction="sum")
                losses.append(errors / (truth != UNASKED).sum().clamp(1))
        return torch.stack(losses).mean()
