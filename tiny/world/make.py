# SPDX-License-Identifier: Apache-2.0
"""Random clips from seeds.

Everything that questions ask about is drawn evenly and independently: shapes, colors and sounds of
one another, changes and directions of the first frame, sounds of everything visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

from tdc.errors import InputError

from . import motion
from .clips import Clip, Point, Scene, Thing
from .splits import check_split, looks
from .words import BACKGROUNDS, CHANGES, MAX_SCENES, SOUNDS, TEXTURES

Look = tuple[str, str]


@dataclass(frozen=True)
class Style:
    """Distribution of a kind of clips; pairs are (least, most), inclusive."""

    scenes: tuple[int, int]
    frames: tuple[int, int]  # of each scene
    objects: tuple[int, int] = (1, 3)
    legs: tuple[int, int] = (1, 1)  # of the path of an object that moves
    still: float = 1 / 3  # share at rest, the same as of each direction from a corner
    quiet: bool = False  # no changes, no flashes, no sound


STYLES: Mapping[str, Style] = {
    "standard": Style((1, 4), (3, 6)),
    "slow": Style((1, 2), (7, 10)),
    "fast-cut": Style((5, 8), (2, 3)),
    "motion": Style((1, 1), (6, 10), legs=(1, 3), still=0.12),
    "long": Style((8, 16), (3, 6)),
    "image": Style((1, 1), (1, 1), quiet=True),
}
KINDS = tuple(STYLES)
_FLASHES = (0.3, 0.63)  # cumulative: none, one; above: two
_TRIES = 60


def make_clip(
    seed: int,
    index: int,
    *,
    kind: str = "standard",
    split: str = "train",
    scenes: int | tuple[int, int] | None = None,
) -> Clip:
    """The clip of these values, always the same one.

    Args:
        seed, index: any integers; each pair is a clip of its own.
        kind: standard, slow (few long scenes), fast-cut (many short ones), motion (one take,
            objects that turn corners), long (8 to 16 scenes), image (one frame).
        split: train, validation or test; they share no clip and no combination of attributes.
        scenes: their number, or (least, most); default: the kind's.

    Raises:
        InputError: no such kind or split, a number of scenes out of range.
    """
    if kind not in STYLES:
        raise InputError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    check_split(split)
    style = STYLES[kind]
    low, high = style.scenes if scenes is None else _pair(scenes)
    if not 1 <= low <= high <= MAX_SCENES:
        raise InputError(f"scenes: got {scenes}, expected 1 to {MAX_SCENES}")
    clip = Clip(kind, split, seed, index, (low, high), ())
    rng = Random(clip.name)
    drawn = []
    for background, texture in _grounds(rng.randint(low, high), rng):
        drawn.append(_scene(style, split, background, texture, rng))
    if not style.quiet:
        drawn = _with_sound(drawn, rng)
    return replace(clip, scenes=tuple(drawn))


def _pair(scenes: int | tuple[int, int]) -> tuple[int, int]:
    return (scenes, scenes) if isinstance(scenes, int) else scenes


def _grounds(count: int, rng: Random) -> list[tuple[str, str]]:
    """Backgrounds and textures: no color repeats before all were used, no pair repeats."""
    rounds = [rng.sample(list(BACKGROUNDS), len(BACKGROUNDS)) for _ in TEXTURES]
    for before, after in pairwise(rounds):
        if before[-1] == after[0]:  # neighbours must differ in color
            after[0], after[1] = after[1], after[0]
    textures = {name: rng.sample(TEXTURES, len(TEXTURES)) for name in BACKGROUNDS}
    names = [name for names in rounds for name in names]
    return [(name, textures[name].pop()) for name in names[:count]]


# --- pictures ------------------------------------------------------------------------------------


def _scene(style: Style, split: str, background: str, texture: str, rng: Random) -> Scene:
    num_frames = rng.randint(*style.frames)
    change, flashes = "nothing", 0
    if not style.quiet:
        change = rng.choice(tuple(CHANGES))
    # One corner stays free, or nothing could move. Elsewhere the largest number is drawn more
    # often, so that all numbers of objects are equally likely.
    count = rng.randint(style.objects[0], style.objects[1] - (change == "appear"))
    if change != "appear" and rng.random() < 0.15:
        count = style.objects[1]
    if not style.quiet:
        share = rng.random()
        flashes = min(sum(share >= limit for limit in _FLASHES), num_frames - 1)
    palette = _Palette(looks(split, background), rng)
    things = _place(style, count, change, num_frames, palette, rng)
    for frame in rng.sample(range(1, num_frames), flashes):
        if (look := palette.take()) is None:  # held-out splits show four to six looks a scene
            break
        path = ((0.0, motion.middle(rng)),)
        things.append(Thing(*look, path, frame, frame + 1, flash=True))
    phase = (rng.uniform(0, 64), rng.uniform(0, 64))
    silence = (None,) * num_frames
    return Scene(background, texture, num_frames, tuple(things), silence, change, phase)


class _Palette:
    """Looks for one scene: no color repeats, no shape repeats while others are left."""

    def __init__(self, allowed: Sequence[Look], rng: Random) -> None:
        self._left = rng.sample(allowed, len(allowed))
        self._shapes: set[str] = set()

    def take(self, shape: str | None = None) -> Look | None:
        """The next look, perhaps of a given shape; None if none is left."""
        fitting = [look for look in self._left if shape in (None, look[0])]
        if not fitting:
            return None
        look = next((x for x in fitting if x[0] not in self._shapes), fitting[0])
        self._left = [x for x in self._left if x[1] != look[1]]
        self._shapes.add(look[0])
        return look


def _place(
    style: Style, count: int, change: str, num_frames: int, palette: _Palette, rng: Random
) -> list[Thing]:
    """Objects with their paths and the scene's change.

    The kind of movement is drawn once per object, its place until no two touch: drawing both again
    would leave too few moving objects.
    """
    taken = [palette.take() for _ in range(count + (change == "appear"))]
    chosen = [look for look in taken if look is not None]
    when = rng.randint(1, num_frames - 1) if num_frames > 1 else 0
    turned = palette.take(chosen[0][0]) if change == "recolor" else None
    moves = [_move(style, change == "nothing", num_frames, rng) for _ in chosen]
    if change in ("appear", "disappear"):
        moves[0] = "still"
    for attempt in range(_TRIES):
        if attempt == _TRIES - 1:  # four corners hold four objects at rest
            moves = ["still"] * len(moves)
        things: list[Thing] = []
        for look, corner, move in zip(chosen, motion.corners(rng), moves, strict=False):
            path = _path(style, move, corner, num_frames, rng)
            thing = Thing(*look, path, 0, num_frames)
            if not things and change != "nothing":
                thing = _changed(thing, change, when, turned)
            if not motion.clear(thing, things, num_frames):
                break
            things.append(thing)
        else:
            return things
    raise AssertionError("objects at rest in four corners touch one another")


def _move(style: Style, crossing: bool, num_frames: int, rng: Random) -> str:
    """An object's kind of movement; across the edge only in scenes without another change."""
    if num_frames == 1 or rng.random() < style.still:
        return "still"
    share = rng.random()
    if crossing and share < 0.3:
        return "enter" if share < 0.15 else "leave"
    return "travel"


def _path(style: Style, move: str, corner: Point, num_frames: int, rng: Random) -> motion.Path:
    if move == "still":
        return ((0.0, corner),)
    if move == "travel":
        return motion.travel(corner, rng.randint(*style.legs), num_frames, rng)
    across = motion.enter if move == "enter" else motion.leave
    return across(corner, num_frames, rng)


def _changed(thing: Thing, change: str, when: int, turned: Look | None) -> Thing:
    if change == "appear":
        return replace(thing, first=when)
    if change == "disappear":
        return replace(thing, last=when)
    return thing if turned is None else replace(thing, recolor=(when, turned[1]))


# --- sound ---------------------------------------------------------------------------------------


def _with_sound(scenes: Sequence[Scene], rng: Random) -> list[Scene]:
    """Scenes with a sound for every second.

    Three of the six sounds go with flashes (each with one, if the clip has at most three); the
    others fill whole scenes, or single seconds without an event.
    """
    pool = rng.sample(SOUNDS, len(SOUNDS))
    events, fillers = pool[:3], pool[3:]
    flashes = [(i, thing) for i, scene in enumerate(scenes) for thing in scene.flashes]
    order = rng.sample(range(len(flashes)), len(flashes))
    named = {k: events[n % 3] for n, k in enumerate(order) if n < 3 or rng.random() < 0.5}
    sounding = {id(thing): named.get(k) for k, (_, thing) in enumerate(flashes)}
    return [_scene_sound(scene, sounding, fillers, rng) for scene in scenes]


def _scene_sound(
    scene: Scene, sounding: Mapping[int, str | None], fillers: Sequence[str], rng: Random
) -> Scene:
    share = rng.random()
    whole = rng.choice(fillers) if share < 0.4 else None
    sounds: list[str | None] = [whole] * scene.num_frames
    if 0.4 <= share < 0.65:
        sounds[rng.randrange(scene.num_frames)] = rng.choice(fillers)
    things = []
    for thing in scene.things:
        sound = sounding.get(id(thing))
        if sound is not None:
            sounds[thing.first] = sound
            thing = replace(thing, sound=sound)
        things.append(thing)
    return replace(scene, things=tuple(things), sounds=tuple(sounds))
