# SPDX-License-Identifier: Apache-2.0
"""Disk cache of the tower tokens of all training clips; the towers are frozen from here on.

A folder of shards, each written whole or not at all and read through memory maps. 8,000 clips of
12 frames take 2.1 GB.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch

from tdc.encoder.tower_features import TowerFeatures
from tdc.encoder.video_encoder import VideoEncoder

from ..model import SIDE
from ..world import Clip, make_clip, render_frames, render_sound
from .encoder_labels import recolored

SHARD = 250  # clips
# Kinds and scene counts, taken in turns: questions across scenes need most of the training.
TRAINING = (
    *[("standard", (1, 1))] * 4,
    *[("standard", (2, 2))] * 4,
    *[("standard", (1, 4))] * 8,
    ("motion", None),
    ("motion", None),
    ("slow", None),
    ("fast-cut", None),
)
_ARRAYS = ("siglip", "dinov2", "audio")


def training_clip(seed: int, index: int) -> Clip:
    kind, scenes = TRAINING[index % len(TRAINING)]
    return make_clip(seed, index, kind=kind, scenes=scenes)


class ClipFeatures:
    """Tower features of clips ``0 .. count - 1``.

    Args:
        folder: of the shards; need not exist yet.
        clip: from index to clip.
        count: number of clips.
        recolor: recolor the pictures, see :func:`tiny.recipe.encoder_labels.recolored`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        clip: Callable[[int], Clip],
        count: int,
        recolor: bool = False,
    ) -> None:
        self.folder, self.count, self.recolor = Path(folder), count, recolor
        self.clip = cache(clip)  # 4 KB each, and a millisecond to make
        self._open: dict[int, tuple[dict[str, np.ndarray], list[int]]] = {}

    @cached_property
    def recolored(self) -> ClipFeatures:
        """The first half of the clips, recolored: for labels that colors must not give away."""
        return ClipFeatures(self.folder / "recolored", self.clip, -(-self.count // 2), recolor=True)

    def write(
        self,
        encoder: VideoEncoder,
        share: tuple[int, int] = (0, 1),
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Compute the missing shards; ``share``: number of this process, number of processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(-(-self.count // SHARD)):
            if number % share[1] == share[0] and not self._shard(number).exists():
                self._write_shard(encoder, number)
                say(f"{min(self.count, (number + 1) * SHARD):,} of {self.count:,} clips encoded")

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}"

    @torch.inference_mode()
    def _write_shard(self, encoder: VideoEncoder, number: int) -> None:
        stop = min(self.count, (number + 1) * SHARD)
        numbers = range(number * SHARD, stop)
        found = [clip_features(encoder, self.clip(i), self.recolor) for i in numbers]
        work = self._shard(number).with_suffix(f".tmp{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for name in _ARRAYS:
            rows = torch.cat([getattr(features, name) for features in found])
            np.save(work / f"{name}.npy", rows.half().numpy())
        frames = [len(features.siglip) for features in found]
        (work / "frames.json").write_text(json.dumps(frames))
        os.replace(work, self._shard(number))

    def __getitem__(self, index: int) -> TowerFeatures:
        number = index // SHARD
        if number not in self._open:
            folder = self._shard(number)
            arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in _ARRAYS}
            frames = json.loads((folder / "frames.json").read_text())
            self._open[number] = arrays, [0, *np.cumsum(frames).tolist()]
        arrays, starts = self._open[number]
        place = index % SHARD
        rows = slice(starts[place], starts[place + 1])
        tokens = {n: torch.from_numpy(np.array(x[rows])).float() for n, x in arrays.items()}
        # Silent clips have audio too: their files carry a sound track of zeros.
        return TowerFeatures(
            tokens["siglip"], tokens["dinov2"], (SIDE, SIDE), audio=tokens["audio"]
        )


def clip_features(encoder: VideoEncoder, clip: Clip, recolor: bool = False) -> TowerFeatures:
    """Tower features of one clip, rendered in memory; the same as from its file."""
    pixels = render_frames(clip, SIDE)
    if recolor:
        rng = np.random.default_rng((clip.seed, clip.index))
        pixels = recolored(pixels, rng).clip(0, 255).astype(np.uint8)
    frames = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    assert encoder.siglip is not None and encoder.dinov2 is not None
    times = [float(t) for t in range(clip.num_frames)]
    wave = torch.from_numpy(render_sound(clip))
    audio = encoder.encode_audio([wave], [times])[0]
    assert audio is not None
    return TowerFeatures(
        encoder.siglip(frames), encoder.dinov2(frames), (SIDE, SIDE), times, audio[0]
    )


def some_frames(features: TowerFeatures, frames: Sequence[int]) -> TowerFeatures:
    """A subset of the frames, again one second apart."""
    index = list(frames)
    audio = None if features.audio is None else features.audio[index]
    return TowerFeatures(features.siglip[index], features.dinov2[index], features.size, audio=audio)
