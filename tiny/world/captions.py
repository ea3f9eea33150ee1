# SPDX-License-Identifier: Apache-2.0
"""Captions of clips and single frames, in the closed vocabulary."""

from __future__ import annotations

from itertools import pairwise

from .clips import UNITS, Clip, Scene, Thing
from .motion import moved_since, place_of
from .words import DIRECTIONS, SIDES, SILENCE

CLIP_PROMPT = "what happens in the video ?"
FRAME_PROMPT = "what is seen now ?"
# Least distance (64ths) that counts as movement: one second of a slow scene.
LEAST_MOVE = 4.0
SINCE = ("still", *(f"moved {way}" for way in DIRECTIONS), "new", "turned")
_FROM = dict(zip(("right", "left", "down", "up"), SIDES, strict=True))


def clip_caption(clip: Clip, sound: bool = True) -> str:
    """Caption of all scenes: "scene 1 : red circle moves left , blue star flashes with beep , on
    teal dots , silence ; scene 2 : ..."; a scene ends with its sound that goes with no flash."""
    scenes = (f"scene {i + 1} : {scene_caption(s, sound)}" for i, s in enumerate(clip.scenes))
    return " ; ".join(scenes)


def scene_caption(scene: Scene, sound: bool = True) -> str:
    """One scene of `clip_caption`; without sounds if ``sound`` is False."""
    parts = [_object_phrase(thing, scene) for thing in scene.objects]
    parts += [_flash_phrase(thing, sound) for thing in scene.flashes]
    if not sound:
        return " , ".join([*parts, f"on {ground(scene)}"])
    during = {flash.first for flash in scene.flashes if flash.sound is not None}
    rest = [sound for k, sound in enumerate(scene.sounds) if k not in during and sound is not None]
    return " , ".join([*parts, f"on {ground(scene)}", rest[0] if rest else SILENCE])


def ground(scene: Scene) -> str:
    return f"{scene.background} {scene.texture}"


def look(thing: Thing, time: float = 0) -> str:
    return f"{thing.color_at(time)} {thing.shape}"


def _object_phrase(thing: Thing, scene: Scene) -> str:
    phrases = [look(thing)]
    last = scene.num_frames - 1
    if thing.first > 0:
        phrases.append("appears")
    elif thing.legs and not thing.visible(0):
        phrases.append(f"enters from {_FROM[thing.legs[0]]}")
    elif thing.legs:
        phrases.append(f"moves {' then '.join(thing.legs)}")
    if thing.recolor is not None:
        phrases.append(f"turns {thing.recolor[1]}")
    if thing.last < scene.num_frames:
        phrases.append("disappears")
    elif thing.legs and not thing.visible(last):
        phrases.append("and leaves")
    return " ".join(phrases)


def _flash_phrase(thing: Thing, sound: bool) -> str:
    return f"{look(thing)} flashes" + (f" with {thing.sound}" if sound and thing.sound else "")


def frame_caption(clip: Clip, frame: int) -> str:
    """Caption of one frame, relative to the first frame of its scene.

    "red circle top left moved left ; blue star middle new ; green cross gone ; on teal dots ;
    beep": objects in reading order with current color, place and fate since the first frame
    (still, moved, turned another color, new), then those that are gone, the background, and the
    sound of this second. The caption of a first frame has no fates.
    """
    number, time = clip.locate(frame)
    scene = clip.scenes[number]
    parts = []
    for thing in in_reading_order(scene, time):
        words = [look(thing, time), place_of(thing.position(time)), *since_first(thing, time)]
        parts.append(" ".join(words))
    parts += [f"{look(thing)} gone" for thing in gone(scene, time)]
    return " ; ".join([*parts, f"on {ground(scene)}", clip.sounds[frame] or SILENCE])


def in_reading_order(scene: Scene, time: float) -> list[Thing]:
    """Visible objects, row by row."""

    def row_and_column(thing: Thing) -> tuple[int, float]:
        x, y = thing.position(time)
        return min(2, int(3 * y / UNITS)), x

    return sorted(scene.visible(time), key=row_and_column)


def gone(scene: Scene, time: float) -> list[Thing]:
    """Objects of the scene's first frame that are no longer visible."""
    return [thing for thing in scene.visible(0) if not thing.visible(time)]


def new(scene: Scene, time: float) -> list[Thing]:
    """Visible objects that the scene's first frame did not show."""
    return [thing for thing in scene.visible(time) if not thing.visible(0)]


def turned(scene: Scene, time: float) -> list[Thing]:
    """Visible objects that have another color than in the scene's first frame."""
    both = [thing for thing in scene.visible(time) if thing.visible(0)]
    return [thing for thing in both if thing.color_at(time) != thing.color]


def since_first(thing: Thing, time: float) -> list[str]:
    """An object's fate since its scene's first frame: of SINCE, "turned" perhaps after a way."""
    if time == 0:
        return []
    if not thing.visible(0):
        return ["new"]
    way = moved_since(thing, 0, time, LEAST_MOVE)
    words = [f"moved {way}"] if way in DIRECTIONS else []
    if thing.color_at(time) != thing.color:
        words.append("turned")
    return words or ["still"]


def turned_corner(thing: Thing, time: float) -> bool:
    """Whether the object has changed its direction by then."""
    ways = [way for (t, _), way in zip(thing.path, thing.legs, strict=False) if t < time]
    return any(a != b for a, b in pairwise(ways))
