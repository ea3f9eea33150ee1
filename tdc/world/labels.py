# SPDX-License-Identifier: Apache-2.0
"""What every patch of a frame shows: dense targets for training image towers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tdc.errors import InputError
from tdc.world.clips import UNITS, Clip
from tdc.world.render import MIN_SIZE, stamp
from tdc.world.words import BACKGROUNDS, COLORS, SHAPES, TEXTURES

# Of a patch, for the object to be its label: at 4 x 4 patches an object amid four of them covers
# 0.1 (star) to 0.24 (square) of each.
LEAST_COVER = 0.12
_SHAPES, _COLORS = tuple(SHAPES), tuple(COLORS)
_BACKGROUNDS = tuple(BACKGROUNDS)


@dataclass(frozen=True)
class PatchLabels:
    """Labels of an n x n grid of patches.

    Attributes:
        shape, color: int64 [n, n], 0 for no object, else 1 + index in SHAPES and COLORS.
        background, texture: int64 [n, n], index in BACKGROUNDS and TEXTURES; one value a frame.
        centers: fp32 [n, n, 2], (x, y) of the patch's object in 0..1 of the picture, 0 for none.
        objects: (shape, color, x, y) of everything visible, x and y likewise.
    """

    shape: np.ndarray
    color: np.ndarray
    background: np.ndarray
    texture: np.ndarray
    centers: np.ndarray
    objects: tuple[tuple[str, str, float, float], ...]


def patch_labels(clip: Clip, frame: int, grid: int) -> PatchLabels:
    """Labels of one sampled frame of a clip for `grid` x `grid` patches.

    A patch shows the object that covers most of it, if that is 12 % or more, and the one that has
    its centre there.

    Raises:
        InputError: no such frame, a grid below 1.
    """
    if not 0 <= frame < clip.num_frames:
        raise InputError(f"frame: got {frame}, expected 0 to {clip.num_frames - 1}")
    if grid < 1:
        raise InputError(f"grid: got {grid}, expected 1 or more")
    number, time = clip.locate(frame)
    scene = clip.scenes[number]
    size = grid * math.ceil(max(UNITS, MIN_SIZE) / grid)
    most = np.full((grid, grid), LEAST_COVER, dtype=np.float32)
    shape, color = np.zeros((2, grid, grid), dtype=np.int64)
    centers = np.zeros((grid, grid, 2), dtype=np.float32)
    objects = []
    for thing in scene.visible(time):
        x, y = (v / UNITS for v in thing.position(time))
        objects.append((thing.shape, thing.color_at(time), x, y))
        placed = stamp(thing, time, size)
        assert placed is not None  # its centre is in the picture
        rows, columns, keep, _ = placed
        cover = np.zeros((size, size), dtype=np.float32)
        cover[rows, columns] = 1 - keep[..., 0]
        cover = cover.reshape(grid, size // grid, grid, -1).mean(axis=(1, 3))
        won = cover >= most
        won[min(grid - 1, int(y * grid)), min(grid - 1, int(x * grid))] = True
        most = np.maximum(most, cover)
        shape[won] = 1 + _SHAPES.index(thing.shape)
        color[won] = 1 + _COLORS.index(thing.color_at(time))
        centers[won] = x, y
    full = (grid, grid)
    return PatchLabels(
        shape,
        color,
        np.full(full, _BACKGROUNDS.index(scene.background)),
        np.full(full, TEXTURES.index(scene.texture)),
        centers,
        tuple(objects),
    )
