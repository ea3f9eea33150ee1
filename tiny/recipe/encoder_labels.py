# SPDX-License-Identifier: Apache-2.0
"""Supervised pre-training of the vision towers and the audio encoder on dense labels.

A patch is labelled with its object's shape, color and centre and with the background; a second of
sound with its sound. One pooled label per picture teaches a tower of this size nothing. The heads
are discarded afterwards.

Shapes are learned from recolored pictures, colors from plain ones: color and background reveal
which shapes a split may show, and a tower that relies on them fails on new combinations
(tiny/LOG.md).
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer

from tdc.encoder.beats import BEATs
from tdc.encoder.fbank import SAMPLE_RATE
from tdc.encoder.towers import VisionTower

from ..model import SIDE
from ..world import make_clip, patch_labels, render_sound
from ..world.render import render_frame
from ..world.words import BACKGROUNDS, COLORS, SHAPES, SOUNDS, TEXTURES

KINDS = ("standard", "standard", "motion", "image")  # sources of the pictures, in turns
CENTRES = 10.0  # weight of the squared error of centres, in coordinates 0..1
SECONDS = (
    4  # of a stretch of sound; attention over the 10 of BEATs' window takes four times as long
)
SOUND_CLASSES = {name: number for number, name in enumerate((None, *SOUNDS))}
# Augmentation: decoded video differs a little from the drawing.
NOISE, BRIGHTNESS = 4.0, 8.0
PLAIN = 4  # one picture in this many keeps its colors
FEW = 8  # fewer labelled objects than this in a batch weigh proportionally less


class Pictures(Dataset):
    """Frames of training clips with the labels of a grid of patches."""

    def __init__(self, size: int, grid: int, seed: int) -> None:
        self.size, self.grid, self.seed = size, grid, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clip = make_clip(self.seed, index, kind=KINDS[index % len(KINDS)])
        rng = np.random.default_rng((self.seed, index))
        frame = int(rng.integers(clip.num_frames))
        scene, time = clip.locate(frame)
        pixels = render_frame(clip.scenes[scene], time, SIDE).astype(np.float32)
        plain = index // len(KINDS) % PLAIN == 0
        pixels = pixels if plain else recolored(pixels, rng)
        pixels += rng.normal(0, NOISE, pixels.shape) + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        labels = patch_labels(clip, frame, self.grid)
        return {
            "pixels": torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).permute(2, 0, 1),
            "plain": torch.tensor(plain),
            "centers": torch.from_numpy(labels.centers).flatten(0, 1),
            **{
                name: torch.from_numpy(getattr(labels, name)).flatten()
                for name in ("shape", "color", "background", "texture")
            },
        }


def recolored(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pixels ``[..., 3]`` with rotated hues, less contrast, shifted brightness and, half of the
    time, as a negative."""
    angle = rng.uniform(0, 2 * np.pi)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # about the axis of grays
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    # Hues alone are not enough: each color of the world has its own brightness.
    scale = rng.uniform(0.6, 1.0) * rng.choice((-1, 1))
    turned = (pixels - 127.5) @ (scale * turn.T).astype(np.float32)
    return turned + 127.5 + rng.uniform(-30, 30)


PATCH_SIZES = (len(SHAPES) + 1, len(COLORS) + 1, len(BACKGROUNDS), len(TEXTURES), 2)


def patch_loss(
    scores: Tensor, centers: Tensor, labels: dict[str, Tensor], plain: Tensor
) -> dict[str, Tensor]:
    """Loss of the scores ``[B, patches, sum(PATCH_SIZES)]``, and the share of right objects in
    plain pictures (``plain``: bool ``[B]``), which train colors; the others train shapes."""
    *logits, found = scores.split(PATCH_SIZES, dim=-1)
    there = labels["shape"] > 0
    known = plain[:, None].expand_as(there)
    asked = {"shape": ~known, "color": known, "background": known}
    losses = []
    for name, x in zip(("shape", "color", "background", "texture"), logits, strict=True):
        errors = F.cross_entropy(x.transpose(1, 2), labels[name], reduction="none")
        losses.append((errors * object_weights(there, asked.get(name))).sum())
    errors = (found - centers).square().sum(-1) * there
    losses.append(CENTRES * errors.sum() / there.sum().clamp(1))
    hits = (logits[0].argmax(-1) == labels["shape"]) & (logits[1].argmax(-1) == labels["color"])
    return {"loss": torch.stack(losses).sum(), "accuracy": object_share(hits, there & known)}


def object_weights(there: Tensor, asked: Tensor | None = None) -> Tensor:
    """Class-balancing weights: one patch in six shows an object, and without weights a model learns
    to answer "none" first. ``asked`` (bool): everything else weighs 0."""
    some, none = (there, ~there) if asked is None else (there & asked, ~there & asked)
    # A single object with a rare label must not weigh as much as all those with another.
    return some / some.sum().clamp(FEW) + 0.3 * none / none.sum().clamp(1)


def object_share(hits: Tensor, there: Tensor) -> Tensor:
    return ((hits & there).sum() / there.sum().clamp(1)).detach()[None]


class LabelledTower(nn.Module):
    """A tower with a linear head on each of its patches."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower
        self.norm = nn.LayerNorm(tower.hidden_size)
        self.head = nn.Linear(tower.hidden_size, sum(PATCH_SIZES))

    @property
    def grid(self) -> int:
        return SIDE // self.tower.patch_size

    def forward(
        self, pixels: Tensor, centers: Tensor, plain: Tensor, **labels: Tensor
    ) -> dict[str, Tensor]:
        """``pixels`` uint8 ``[B, 3, S, S]``; ``plain`` bool ``[B]``, whether their colors are the
        world's; labels int64 ``[B, grid^2]``; ``centers`` 0..1."""
        grid, self.tower.token_grid = self.tower.token_grid, self.grid
        tokens = self.tower(pixels, chunk_size=len(pixels))
        self.tower.token_grid = grid
        return patch_loss(self.head(self.norm(tokens)), centers, labels, plain)


class Sounds(Dataset):
    """Stretches of a training clip's sound, with a label per second."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clip = make_clip(self.seed, index, scenes=(2, 4))
        heard = [SOUND_CLASSES[sound] for sound in clip.sounds][:SECONDS]
        labels = torch.full((SECONDS,), -100)
        labels[: len(heard)] = torch.tensor(heard)
        rng = Random(f"{self.seed}/{index}")
        wave = torch.from_numpy(render_sound(clip)[: SECONDS * SAMPLE_RATE])
        wave = F.pad(wave, (0, SECONDS * SAMPLE_RATE - len(wave)))
        noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(index))
        return {"waveform": wave * rng.uniform(0.6, 1.0) + 1e-4 * noise, "labels": labels}


class LabelledSound(nn.Module):
    """BEATs with a linear head on the mean token of each second."""

    def __init__(self, beats: BEATs) -> None:
        super().__init__()
        self.beats = beats
        self.head = nn.Linear(beats.hidden_size, len(SOUND_CLASSES))

    def forward(self, waveform: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``waveform [B, n]``; ``labels`` int64 ``[B, SECONDS]``, -100 after the clip's end."""
        tokens, _ = self.beats(waveform)
        steps = tokens.unflatten(1, (-1, self.beats.config.tokens_per_step)).mean(2)
        seconds = F.adaptive_avg_pool1d(steps.transpose(1, 2), SECONDS).transpose(1, 2)
        logits = self.head(seconds)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        right = (logits.argmax(-1) == labels)[labels >= 0].float().mean()
        return {"loss": loss, "accuracy": right[None]}


class AccuracyTrainer(Trainer):
    """A Trainer that also logs a running mean of the batches' accuracy."""

    _sum = _weight = 0.0

    @property
    def accuracy(self) -> float:
        return self._sum / max(self._weight, 1e-9)

    def compute_loss(  # type: ignore[override]  # Tensor | dict there
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        seen = float(outputs["accuracy"].mean())
        self._sum += 0.02 * (seen - self._sum)
        self._weight += 0.02 * (1 - self._weight)  # bias correction, also after resuming
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log({**logs, "accuracy": round(self.accuracy, 4)}, *args, **kwargs)
