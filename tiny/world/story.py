# SPDX-License-Identifier: Apache-2.0
"""State of a clip after each frame: dense targets for a model that reads clips in order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .clips import Clip, Scene, Thing
from .words import BACKGROUNDS, CHANGES, COLORS, MAX_SCENES, SHAPES, SOUNDS, TEXTURES

_SHAPES, _COLORS, _BACKGROUNDS, _CHANGES = map(tuple, (SHAPES, COLORS, BACKGROUNDS, CHANGES))
MOST_FRAMES, MOST_OBJECTS, MOST_FLASHES = 10, 6, 7  # counts stop at these
# Targets and their numbers of classes; class 0 is "nothing" or silence where that is possible.
STORY: Mapping[str, int] = {
    "scene": MAX_SCENES,
    "frame": MOST_FRAMES,  # of the scene
    "background": len(_BACKGROUNDS),
    "texture": len(TEXTURES),
    "count": MOST_OBJECTS + 1,  # objects and flashes now visible
    "change": len(_CHANGES),  # inside the scene, so far
    "changed_shape": len(_SHAPES) + 1,
    "changed_color": len(_COLORS) + 1,  # its color now, or its last
    "flashes": 3,  # of the scene, so far
    "flash_shape": len(_SHAPES) + 1,  # of the clip's last flash so far
    "flash_color": len(_COLORS) + 1,
    "flash_sound": len(SOUNDS) + 1,  # heard with it
    "before_shape": len(_SHAPES) + 1,  # of the flash before that
    "before_color": len(_COLORS) + 1,
    "told": MOST_FLASHES + 1,  # flashes of the clip so far
    "sound": len(SOUNDS) + 1,  # now
    **{f"heard_{sound}": 2 for sound in SOUNDS},  # in the scene so far
}


def story_labels(clip: Clip) -> np.ndarray:
    """Targets at the end of each sampled frame, int64 ``[F, len(STORY)]``."""
    rows = []
    flashes: list[tuple[Thing, str | None]] = []  # flash and its sound
    for number, scene in enumerate(clip.scenes):
        before = len(flashes)
        for time in range(scene.num_frames):
            sound = scene.sounds[time]
            flashes += [(thing, sound) for thing in scene.flashes if thing.first == time]
            rows.append(
                (
                    number,
                    min(time, MOST_FRAMES - 1),
                    _BACKGROUNDS.index(scene.background),
                    TEXTURES.index(scene.texture),
                    min(len(scene.visible(time)), MOST_OBJECTS),
                    *_changed(scene, time),
                    len(flashes) - before,
                    *_look(flashes[-1:]),
                    _of(SOUNDS, flashes[-1][1] if flashes else None),
                    *_look(flashes[-2:-1]),
                    min(len(flashes), MOST_FLASHES),
                    _of(SOUNDS, sound),
                    *(name in scene.sounds[: time + 1] for name in SOUNDS),
                )
            )
    return np.array(rows, dtype=np.int64)


def _of(values: tuple[str, ...], value: str | None) -> int:
    return 0 if value is None else 1 + values.index(value)


def _look(flash: list[tuple[Thing, str | None]]) -> tuple[int, int]:
    if not flash:
        return 0, 0
    ((thing, _),) = flash
    return _of(_SHAPES, thing.shape), _of(_COLORS, thing.color)


def _changed(scene: Scene, time: int) -> tuple[int, int, int]:
    """The scene's change so far: its kind, and shape and color of the object that changed."""
    for thing in scene.objects:
        appeared = 0 < thing.first <= time
        gone = thing.last <= time
        turned = thing.recolor is not None and thing.recolor[0] <= time
        if appeared or gone or turned:
            looks = 1 + _SHAPES.index(thing.shape), 1 + _COLORS.index(thing.color_at(time))
            return _CHANGES.index(scene.change), *looks
    return 0, 0, 0
