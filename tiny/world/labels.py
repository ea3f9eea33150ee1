# SPDX-License-Identifier: Apache-2.0
"""Dense training targets: labels of every part of a frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tdc.errors import InputError

from .captions import SINCE, gone, new, since_first, turned
from .clips import UNITS, Clip, Thing
from .render import MIN_SIZE, stamp
from .words import BACKGROUNDS, COLORS, SHAPES, SOUNDS, TEXTURES

# Least share of a patch that an object must cover to be its label: centred between four of 4 x 4
# patches, it covers 0.1 (star) to 0.24 (square) of each.
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

    A patch is labelled with the object that covers most of it, at least 12 %, or that has its
    centre there.

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


@dataclass(frozen=True)
class PlaceLabels:
    """Labels of the nine places of a frame (`motion.place_of`, row by row), and of the whole frame.

    Attributes:
        shape, color, since: int64 [9], 0 for no object, else 1 + index in SHAPES, COLORS and
            `captions.SINCE` (relative to the first frame of the scene).
        turned: int64 [9], 1 for an object that has another color than in the first frame.
        gone: int64 [9], 1 + index in SHAPES of an object that the first frame shows there and this
            one nowhere, else 0.
        ground: int64 [2], index in BACKGROUNDS and in TEXTURES.
        sound: 0 for silence, else 1 + index in SOUNDS.
    """

    shape: np.ndarray
    color: np.ndarray
    since: np.ndarray
    turned: np.ndarray
    gone: np.ndarray
    ground: np.ndarray
    sound: int


def place_labels(clip: Clip, frame: int) -> PlaceLabels:
    """Labels of a frame by place, for a few tokens that stand for no patches."""
    number, time = clip.locate(frame)
    scene = clip.scenes[number]
    shape, color, since, turned, missing = np.zeros((5, 9), dtype=np.int64)
    for thing in scene.visible(time):
        place = _place(thing, time)
        shape[place] = 1 + _SHAPES.index(thing.shape)
        color[place] = 1 + _COLORS.index(thing.color_at(time))
        what = since_first(thing, time)
        since[place] = 1 + SINCE.index(what[0]) if what else 0
        turned[place] = "turned" in what
    for thing in gone(scene, time):
        missing[_place(thing, 0)] = 1 + _SHAPES.index(thing.shape)
    ground = np.array([_BACKGROUNDS.index(scene.background), TEXTURES.index(scene.texture)])
    sound = clip.sounds[frame]
    heard = 0 if sound is None else 1 + SOUNDS.index(sound)
    return PlaceLabels(shape, color, since, turned, missing, ground, heard)


def _place(thing: Thing, time: float) -> int:
    x, y = (min(2, int(3 * v / UNITS)) for v in thing.position(time))
    return 3 * y + x


# Keys of look-ups: an object's color or shape, or whether it is new since the scene's first frame,
# gone, or of another color. Where several objects fit there is no answer.
LOOKUPS = (*_COLORS, *SHAPES, "new", "gone", "turned")
UNASKED = -100


def lookup_labels(clip: Clip, frame: int) -> np.ndarray:
    """Answers to LOOKUPS, int64 ``[14, 5]``: shape, color, place, since and turned of the object
    that fits; 0 for none, else 1 + index as in :class:`PlaceLabels` (place: row by row). UNASKED
    where several fit, and for all but shape and color of an object that is gone.
    """
    number, time = clip.locate(frame)
    scene = clip.scenes[number]
    seen = scene.visible(time)
    labels = np.zeros((len(LOOKUPS), 5), dtype=np.int64)
    for row, name in enumerate(LOOKUPS):
        if name == "gone":
            fitting = gone(scene, time)
        elif name == "new":
            fitting = new(scene, time)
        elif name == "turned":
            fitting = turned(scene, time)
        else:
            fitting = [thing for thing in seen if name in (thing.color_at(time), thing.shape)]
        if len(fitting) > 1:
            labels[row] = UNASKED
        for thing in fitting if len(fitting) == 1 else ():
            labels[row, 0] = 1 + _SHAPES.index(thing.shape)
            labels[row, 1] = 1 + _COLORS.index(thing.color_at(time))
            labels[row, 2:] = UNASKED
            if name != "gone":
                since = since_first(thing, time)
                labels[row, 2] = 1 + _place(thing, time)
                labels[row, 3] = 1 + SINCE.index(since[0]) if since else 0
                labels[row, 4] = "turned" in since
    return labels
