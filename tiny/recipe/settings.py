# SPDX-License-Identifier: Apache-2.0
"""Settings of the recipe: sizes, steps, rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; docs/tiny.md has the time that each step takes with the defaults."""

    out: Path
    seed: int = 0
    clips: int = 10_000  # training clips; features on disk, half of them recolored as well: 3 GB
    pictures: int = 160_000  # seen by each image tower
    sounds: int = 6_400  # stretches of sound, for BEATs
    labelled_frames: int = 32_000  # for the connector, at each of its two grids
    labelled_pairs: int = 320_000  # pairs of frames, for the compressor
    images: int = 16_000  # examples of stage 1
    talks: int = 272_000  # examples of the language model alone
    schedule: int = 320_000  # examples of its full schedule, which it is stopped before
    videos: int = 2_560  # examples of stage 2
    audio_visual: int = 14_400  # examples of stage 3
    batch: int = 32  # over all processes
    rate: float = 1.5e-3  # learning rate of the language model, and of the compressor on labels
    late_rate: float = 7e-4  # of the language model in stages 2 and 3
    connector_rate: float = 2e-4  # in the stages; trained on labels before
    compressor_rate: float = 5e-4  # in the stages; trained on labels before
    encoder_rate: float = 3e-3  # 0.84 of the objects right; 0.66 with 1.5e-3
    save_steps: int = 500
    logging_steps: int = 100
