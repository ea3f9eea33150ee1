# SPDX-License-Identifier: Apache-2.0
"""Supervised pre-training of connector and compressor, before the language model sees their tokens.

A language model of this size, which asks about one thing at a time, learns to read only tokens
whose content is easy to decode. Without labels the connector dropped the colors of objects for good
(tiny/LOG.md). The heads are discarded afterwards.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tdc.encoder.tower_features import TowerFeatures
from tdc.model import Context, TDCForConditionalGeneration
from tdc.processor.processor import TDCProcessor

from ..model import SIDE
from ..world import Clip, ask_frame, patch_labels
from ..world.captions import SINCE, turned
from ..world.labels import LOOKUPS, UNASKED, lookup_labels, place_labels
from ..world.words import BACKGROUNDS, COLORS, SHAPES, SOUNDS, TEXTURES
from .clip_features import ClipFeatures, some_frames
from .encoder_labels import PATCH_SIZES, object_share, object_weights, patch_loss

# Number of classes, per place and for the whole frame.
_PLACE_SIZES = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "since": len(SINCE) + 1,
    "turned": 2,
    "gone": len(SHAPES) + 1,
}
_FRAME_SIZES = (len(BACKGROUNDS), len(TEXTURES), len(SOUNDS) + 1)
PLACES = 9
# Number of classes of a look-up's answer: shape, color, place, since, turned.
_COLOR = 1
_LOOKUP_SIZES = (len(SHAPES) + 1, len(COLORS) + 1, PLACES + 1, len(SINCE) + 1, 2)
# Share of pairs with an object that changed color; in evenly drawn pairs it is one in seven.
TURNED = 0.4
QUESTION_WORDS = 16  # longest question about a frame; every batch has this shape


def some_clips(clips: ClipFeatures, rng: Random) -> tuple[ClipFeatures, bool]:
    """The plain or, half of the time, the recolored clips; and whether they are plain."""
    plain = rng.random() < 0.5
    return (clips if plain else clips.recolored), plain


class Frames(Dataset):
    """Tower tokens of single frames with the labels of a grid of patches."""

    def __init__(self, clips: ClipFeatures, size: int, grid: int, seed: int) -> None:
        self.clips, self.size, self.grid, self.seed = clips, size, grid, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = Random(f"{self.seed}/{number}")
        clips, plain = some_clips(self.clips, rng)
        index = rng.randrange(clips.count)
        clip, features = clips.clip(index), clips[index]
        frame = rng.randrange(clip.num_frames)
        labels = patch_labels(clip, frame, self.grid)
        return {
            "plain": torch.tensor(plain),
            "siglip": features.siglip[frame],
            "dinov2": features.dinov2[frame],
            "centers": torch.from_numpy(labels.centers).flatten(0, 1),
            **{
                name: torch.from_numpy(getattr(labels, name)).flatten()
                for name in ("shape", "color", "background", "texture")
            },
        }


class LabelledConnector(nn.Module):
    """The connector with a linear head on each token of a frame."""

    def __init__(self, model: TDCForConditionalGeneration) -> None:
        super().__init__()
        encoder: Any = model.video_encoder
        self.connector = encoder.connector
        width = self.connector.projector[-1].out_features
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sum(PATCH_SIZES))

    @property
    def grid(self) -> int:
        return self.connector.output_grid

    def forward(
        self, siglip: Tensor, dinov2: Tensor, centers: Tensor, plain: Tensor, **labels: Tensor
    ) -> dict[str, Tensor]:
        tokens = self.connector.grid_tokens(siglip, dinov2, chunk_size=None)
        return patch_loss(self.head(self.norm(tokens)), centers, labels, plain)


class Pairs(Dataset):
    """Pairs of frames, the first of a scene and a later one: a question and labels of the later."""

    def __init__(
        self, clips: ClipFeatures, size: int, processor: TDCProcessor, seed: int, sound: bool = True
    ) -> None:
        self.clips, self.size, self.processor = clips, size, processor
        self.seed, self.sound = seed, sound

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = Random(f"{self.seed}/{number}")
        clips, plain = some_clips(self.clips, rng)
        clip, first, later, features = some_pair(clips, rng)
        labels = place_labels(clip, later)
        question = ask_frame(clip, later, salt=rng.getrandbits(32))[0].text
        ids = self.processor.qformer_tokenizer(question).input_ids[:QUESTION_WORDS]
        padding = QUESTION_WORDS - len(ids)
        pair = some_frames(features, [first, later])
        assert pair.audio is not None
        return {
            "siglip": pair.siglip,
            "dinov2": pair.dinov2,
            **({"audio": pair.audio} if self.sound else {}),
            "plain": torch.tensor(plain),
            "question_ids": torch.tensor(ids + [0] * padding),
            "question_mask": torch.tensor([1] * len(ids) + [0] * padding),
            "objects": torch.from_numpy(np.stack([getattr(labels, x) for x in _PLACE_SIZES])),
            "whole": torch.tensor([*labels.ground, labels.sound]),
            "lookups": torch.from_numpy(lookup_labels(clip, later)),
        }


def some_pair(clips: ClipFeatures, rng: Random) -> tuple[Clip, int, int, TowerFeatures]:
    """A clip, the first and a later frame of one of its scenes, and the clip's features."""
    patience = 100 if rng.random() < TURNED else 0  # tries; a few clips have no such pair
    while True:
        index = rng.randrange(clips.count)
        clip = clips.clip(index)
        scene = rng.randrange(len(clip.scenes))
        start, length = clip.starts[scene], clip.scenes[scene].num_frames
        time = rng.randrange(1, length) if length > 1 else 0
        if time and (patience <= 0 or turned(clip.scenes[scene], time)):
            return clip, start, start + time, clips[index]
        patience -= 1


def dynamic_tokens(context: Context, queries: int) -> tuple[Tensor, ...]:
    """The dynamic frame's ``[K, D]`` tokens of every pair: those before the last separator."""
    return tuple(tokens[-queries - 1 : -1] for tokens in context.tokens)


class Lookup(nn.Module):
    """Single-head attention that looks an object up by its color or shape.

    The language model will have to do the same. A linear head over all K tokens does not train for
    it, because there an object may be spread over several tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.names = nn.Parameter(torch.randn(len(LOOKUPS), width))
        # The extra key of add_bias_kv stands for "no such object".
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True, add_bias_kv=True)
        self.read = nn.Linear(width, sum(_LOOKUP_SIZES))

    def forward(self, tokens: Tensor, labels: Tensor, plain: Tensor) -> dict[str, Tensor]:
        """``tokens [B, K, D]``; ``labels [B, 14, 5]``: :func:`tiny.world.labels.lookup_labels`."""
        tokens, names = self.norm(tokens), self.names.expand(len(tokens), -1, -1)
        found, _ = self.attention(names, tokens, tokens, need_weights=False)
        there = labels[..., 0] > 0
        by_color = torch.arange(len(LOOKUPS)) < len(COLORS)
        known = plain[:, None] | ~by_color
        losses, hits = [], torch.ones_like(there)
        parts = zip(self.read(found).split(_LOOKUP_SIZES, -1), labels.unbind(-1), strict=True)
        for number, (scores, truth) in enumerate(parts):
            asked = known & (truth != UNASKED)
            asked = asked & there if number else asked  # that none is there, the shape says
            asked = asked & plain[:, None] if number == _COLOR else asked
            errors = F.cross_entropy(scores.transpose(1, 2), truth.clamp(0), reduction="none")
            losses.append((errors * object_weights(there, asked)).sum())
            hits &= (scores.argmax(-1) == truth) | (truth == UNASKED)
        right = object_share(hits, there & plain[:, None])
        return {"loss": torch.stack(losses).sum(), "accuracy": right}


class LabelledCompressor(nn.Module):
    """The compressor with a linear head over all K tokens of a dynamic frame, and look-ups."""

    def __init__(self, model: TDCForConditionalGeneration) -> None:
        super().__init__()
        config = model.config
        # Only the trained part is a submodule: checkpoints with tied embeddings cannot be written.
        self.compressor = model.compressor
        self._whole = (model.requires_grad_(False),)
        model.compressor.requires_grad_(True)
        width = config.num_context_tokens * config.text_config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, PLACES * sum(_PLACE_SIZES.values()) + sum(_FRAME_SIZES))
        self.lookup = Lookup(config.text_config.hidden_size)

    def forward(
        self,
        siglip: Tensor,
        dinov2: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        plain: Tensor,
        objects: Tensor,
        whole: Tensor,
        lookups: Tensor,
        audio: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``siglip``, ``dinov2``, ``audio [B, 2, T, C]``; ``objects [B, 5, 9]``, ``whole [B, 3]``:
        classes as in :class:`tiny.world.labels.PlaceLabels`; ``lookups [B, 14, 5]`` as in
        :func:`tiny.world.labels.lookup_labels`; ``plain`` bool ``[B]``."""
        sounds = [None] * len(siglip) if audio is None else audio
        pairs = [
            TowerFeatures(s, d, (SIDE, SIDE), audio=heard)
            for s, d, heard in zip(siglip, dinov2, sounds, strict=True)
        ]
        (model,) = self._whole
        features = model.video_encoder.connect(pairs)
        cuts = features.segmentation
        one_scene = replace(cuts, boundaries=torch.full_like(cuts.boundaries, 2))
        features = replace(features, segmentation=one_scene)
        context = model.build_context(features, question_ids, question_mask)
        tokens = dynamic_tokens(context, model.config.num_context_tokens)
        scores = self.head(self.norm(torch.stack([one.flatten() for one in tokens])))
        sizes = [PLACES * sum(_PLACE_SIZES.values()), sum(_FRAME_SIZES)]
        places, frame = scores.split(sizes, dim=-1)
        loss = self._loss(places.unflatten(-1, (PLACES, -1)), frame, plain, objects, whole)
        found = self.lookup(torch.stack(tokens), lookups, plain)
        return {**found, "loss": found["loss"] + loss}

    def _loss(
        self, places: Tensor, frame: Tensor, plain: Tensor, objects: Tensor, whole: Tensor
    ) -> Tensor:
        known = plain[:, None].expand(-1, PLACES)
        # Shapes are learned from all clips, not from recolored ones alone as in the towers: 0.95
        # right after 112,000 pairs instead of 0.88 after 240,000 (tiny/LOG.md).
        losses = []
        parts = zip(_PLACE_SIZES, places.split([*_PLACE_SIZES.values()], -1), strict=True)
        for (name, scores), truth in zip(parts, objects.unbind(1), strict=True):
            errors = F.cross_entropy(scores.transpose(1, 2), truth, reduction="none")
            asked = known if name == "color" else None
            losses.append((errors * object_weights(truth > 0, asked)).sum())
        ground, texture, sound = frame.split(_FRAME_SIZES, -1)
        errors = F.cross_entropy(ground, whole[:, 0], reduction="none")
        losses.append((errors * plain).sum() / plain.sum().clamp(1))
        losses += [F.cross_entropy(texture, whole[:, 1]), F.cross_entropy(sound, whole[:, 2])]
        return torch.stack(losses).sum()
