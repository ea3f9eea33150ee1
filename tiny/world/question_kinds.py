# SPDX-License-Identifier: Apache-2.0
"""Kinds of questions about a clip: their needs, and generators of all a clip offers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .clips import Clip, Scene, Thing
from .motion import place_of
from .wording import Candidate, scene_references
from .words import (
    BACKGROUNDS,
    CHANGES,
    COLORS,
    CORNERS,
    DIRECTIONS,
    MAX_SCENES,
    NOWHERE,
    NUMBERS,
    SHAPES,
    SIDES,
    SILENCE,
    SOUNDS,
    TEXTURES,
)


@dataclass(frozen=True)
class Kind:
    """A kind of question: its needs, and a generator of all a clip offers."""

    needs: tuple[str, ...]
    find: Callable[[Clip], Iterator[Candidate]]


KINDS: dict[str, Kind] = {}
_Find = Callable[[Clip], Iterator[Candidate]]


def _kind(name: str, *needs: str) -> Callable[[_Find], _Find]:
    def register(find: _Find) -> _Find:
        KINDS[name] = Kind(needs, find)
        return find

    return register


# --- first frames --------------------------------------------------------------------------------


def _start(scene: Scene) -> list[Thing]:
    return scene.visible(0)


def _alone(value: str, values: Sequence[str]) -> bool:
    return values.count(value) == 1


@_kind("shape")
def _shape(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        for thing in _start(scene):  # no color comes twice in a scene
            text = f"what shape is the {thing.color} object at the start of {{scene}} ?"
            yield Candidate(text, thing.shape, SHAPES, i)


@_kind("color")
def _color(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        shapes = [thing.shape for thing in _start(scene)]
        for thing in _start(scene):
            if _alone(thing.shape, shapes):
                text = f"what color is the {thing.shape} at the start of {{scene}} ?"
                yield Candidate(text, thing.color, tuple(COLORS), i)


@_kind("count")
def _count(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        text = "how many objects are there at the start of {scene} ?"
        yield Candidate(text, str(len(_start(scene))), NUMBERS[:5], i)


@_kind("background")
def _background(clip: Clip) -> Iterator[Candidate]:
    """Names scenes by number only: the content would be the answer."""
    for i, scene in enumerate(clip.scenes):
        text = f"what color is the background of scene {i + 1} ?"
        yield Candidate(text, scene.background, tuple(BACKGROUNDS), i)


@_kind("texture")
def _texture(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        yield Candidate(f"what texture is in scene {i + 1} ?", scene.texture, TEXTURES, i)


@_kind("place")
def _place(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        for thing in _start(scene):
            if (place := place_of(thing.position(0))) in CORNERS:
                text = f"where is the {thing.color} {thing.shape} at the start of {{scene}} ?"
                yield Candidate(text, place, CORNERS, i)


@_kind("scene_count")
def _scene_count(clip: Clip) -> Iterator[Candidate]:
    least, most = clip.scene_range
    if most - least >= 2:  # with fewer choices a constant answer would do
        yield Candidate("how many scenes are there ?", *_numbered(len(clip.scenes)))


@_kind("scene_number")
def _scene_number(clip: Clip) -> Iterator[Candidate]:
    if len(clip.scenes) > 1:
        for i in range(len(clip.scenes)):
            content = scene_references(clip, i)["content"]
            text = f"which scene is {content.removeprefix('the ').removesuffix(' scene')} ?"
            yield Candidate(text, *_numbered(i + 1), i)


def _numbered(number: int) -> tuple[str, Sequence[str]]:
    """A scene number as text, and numbers around it as options: 1 to 4 if it is one of those."""
    low = 1 if number <= 4 else min(number - 3, MAX_SCENES - 6)
    return str(number), NUMBERS[low : low + (4 if number <= 4 else 7)]


# --- later frames --------------------------------------------------------------------------------


def _lasting(scene: Scene) -> list[Thing]:
    """Objects that exist through the whole scene and keep their color."""
    return [
        thing
        for thing in scene.objects
        if (thing.first, thing.last, thing.recolor) == (0, scene.num_frames, None)
    ]


@_kind("direction", "dynamic")
def _direction(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        for thing in _lasting(scene) if scene.num_frames > 1 else ():
            if len(thing.legs) <= 1:
                text = f"which way does the {thing.color} {thing.shape} move in {{scene}} ?"
                yield Candidate(text, "".join(thing.legs) or NOWHERE, (*DIRECTIONS, NOWHERE), i)


@_kind("side", "dynamic")
def _side(clip: Clip) -> Iterator[Candidate]:
    """Sides from which objects enter, or on which they leave."""
    enters = dict(zip(("right", "left", "down", "up"), SIDES, strict=True))
    leaves = dict(zip(("left", "right", "up", "down"), SIDES, strict=True))
    for i, scene in enumerate(clip.scenes):
        for thing in _lasting(scene):
            name = f"the {thing.color} {thing.shape}"
            if not thing.visible(0):
                text, side = f"from which side does {name} enter in {{scene}} ?", enters
            elif not thing.visible(scene.num_frames - 1):
                text, side = f"on which side does {name} leave in {{scene}} ?", leaves
            else:
                continue
            yield Candidate(text, side[thing.legs[0]], SIDES, i)


@_kind("place_end", "dynamic")
def _place_end(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        for thing in _lasting(scene) if scene.num_frames > 1 else ():
            place = place_of(thing.position(scene.num_frames - 1))
            if thing.visible(scene.num_frames - 1) and place in CORNERS:
                text = f"where is the {thing.color} {thing.shape} at the end of {{scene}} ?"
                yield Candidate(text, place, CORNERS, i)


@_kind("count_end", "dynamic", "change")
def _count_end(clip: Clip) -> Iterator[Candidate]:
    """Number of objects in the last frame, unless something flashes there."""
    for i, scene in enumerate(clip.scenes):
        if scene.num_frames > 1:
            last = scene.num_frames - 1
            count = sum(thing.visible(last) for thing in scene.things if not thing.flash)
            if not any(thing.first == last for thing in scene.flashes):
                text = "how many objects are there at the end of {scene} ?"
                yield Candidate(text, str(count), NUMBERS[:5], i)


@_kind("flash_count", "dynamic")
def _flash_count(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        if scene.num_frames > 2:
            text = "how many objects flash in {scene} ?"
            yield Candidate(text, str(len(scene.flashes)), NUMBERS[:4], i)


def _numbered_flashes(clip: Clip) -> Iterator[tuple[int, int, Thing]]:
    """All flashes in order: number of the scene, number of the flash, flash."""
    flashes = ((i, flash) for i, scene in enumerate(clip.scenes) for flash in scene.flashes)
    for number, (i, flash) in enumerate(flashes):
        yield i, number, flash


def _single_flashes(clip: Clip) -> Iterator[tuple[int, int, Thing]]:
    for i, number, flash in _numbered_flashes(clip):
        if len(clip.scenes[i].flashes) == 1:
            yield i, number, flash


@_kind("flash_shape", "dynamic")
def _flash_shape(clip: Clip) -> Iterator[Candidate]:
    for i, number, flash in _single_flashes(clip):
        yield Candidate("which shape flashes in {scene} ?", flash.shape, SHAPES, i, number)


@_kind("flash_color", "dynamic")
def _flash_color(clip: Clip) -> Iterator[Candidate]:
    for i, number, flash in _single_flashes(clip):
        text = "what color is the flash in {scene} ?"
        yield Candidate(text, flash.color, tuple(COLORS), i, number)


# --- changes inside a scene ----------------------------------------------------------------------


@_kind("change", "dynamic", "change")
def _change(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        last = scene.num_frames - 1
        moving = any(t.visible(0) != t.visible(last) for t in _lasting(scene))
        if last and not moving:  # entering and leaving would be changes too
            text = "what changes in {scene} ?"
            yield Candidate(text, CHANGES[scene.change], tuple(CHANGES.values()), i)


@_kind("change_color", "dynamic", "change")
def _change_color(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        shapes = [thing.shape for thing in scene.objects]
        for thing in scene.objects:
            if thing.recolor is not None and _alone(thing.shape, shapes):
                text = f"to which color does the {thing.shape} in {{scene}} change ?"
                yield Candidate(text, thing.recolor[1], tuple(COLORS), i)


@_kind("appears", "dynamic", "change")
def _appears(clip: Clip) -> Iterator[Candidate]:
    for i, scene in enumerate(clip.scenes):
        for thing in scene.objects if scene.change == "appear" else ():
            if thing.first > 0:
                yield Candidate("which shape appears in {scene} ?", thing.shape, SHAPES, i)


@_kind("disappears", "dynamic", "change")
def _disappears(clip: Clip) -> Iterator[Candidate]:
    """Only where more than one shape could disappear."""
    for i, scene in enumerate(clip.scenes):
        several = len({thing.shape for thing in _start(scene)}) > 1
        for thing in scene.objects if several and scene.change == "disappear" else ():
            if thing.last < scene.num_frames:
                yield Candidate("which shape disappears in {scene} ?", thing.shape, SHAPES, i)


# --- order of events -----------------------------------------------------------------------------


def _flashes(clip: Clip) -> list[Thing]:
    return [flash for _, _, flash in _numbered_flashes(clip)]


def _ends(values: Sequence[str], domain: Sequence[str], noun: str) -> Iterator[Candidate]:
    """Questions for the first and the last of several values."""
    for word, k in (("first", 0), ("last", len(values) - 1)):
        if len(set(values)) > 1:
            yield Candidate(f"which {noun} flashes {word} ?", values[k], domain, flash=k)


@_kind("order_shape", "dynamic", "order")
def _order_shape(clip: Clip) -> Iterator[Candidate]:
    yield from _ends([flash.shape for flash in _flashes(clip)], SHAPES, "shape")


@_kind("order_color", "dynamic", "order")
def _order_color(clip: Clip) -> Iterator[Candidate]:
    yield from _ends([flash.color for flash in _flashes(clip)], tuple(COLORS), "color")


@_kind("next", "dynamic", "order")
def _next(clip: Clip) -> Iterator[Candidate]:
    flashes = _flashes(clip)
    looks = [f"{flash.color} {flash.shape}" for flash in flashes]
    for number, (look, flash) in enumerate(zip(looks, flashes[1:], strict=False)):
        if len(flashes) > 2 and _alone(look, looks):
            text = f"which shape flashes next after the {look} flashes ?"
            yield Candidate(text, flash.shape, SHAPES, flash=number + 1)


@_kind("turn", "dynamic", "order")
def _turn(clip: Clip) -> Iterator[Candidate]:
    """First and last direction of objects that turn corners."""
    for i, scene in enumerate(clip.scenes):
        for thing in _lasting(scene):
            for word, k in (("first", 0), ("last", -1)) if len(thing.legs) > 1 else ():
                text = f"which way does the {thing.color} {thing.shape} move {word} in {{scene}} ?"
                yield Candidate(text, thing.legs[k], DIRECTIONS, i)


# --- sound ---------------------------------------------------------------------------------------


@_kind("sound", "audio")
def _sound(clip: Clip) -> Iterator[Candidate]:
    """The sound of scenes with at most one."""
    for i, scene in enumerate(clip.scenes):
        heard = {sound for sound in scene.sounds if sound is not None}
        if len(heard) <= 1 and any(clip.sounds):
            answer = next(iter(heard), SILENCE)
            yield Candidate("which sound is heard in {scene} ?", answer, (*SOUNDS, SILENCE), i)


@_kind("sound_event", "audio", "dynamic")
def _sound_event(clip: Clip) -> Iterator[Candidate]:
    """The sound during a flash whose look is unique."""
    looks = [(flash.color, flash.shape) for flash in _flashes(clip)]
    for i, number, flash in _numbered_flashes(clip):
        sound = clip.scenes[i].sounds[flash.first]
        if sound is not None and looks.count((flash.color, flash.shape)) == 1:
            text = f"which sound is heard when the {flash.color} {flash.shape} flashes ?"
            yield Candidate(text, sound, SOUNDS, i, number)


@_kind("seen_while", "audio", "dynamic")
def _seen_while(clip: Clip) -> Iterator[Candidate]:
    """The flash in the only second of a sound, in clips with flashes of several shapes."""
    seconds = Counter(clip.sounds)
    shapes = {flash.shape for flash in _flashes(clip)}
    for i, number, flash in _numbered_flashes(clip) if len(shapes) > 1 else ():
        if flash.sound is not None and seconds[flash.sound] == 1:
            text = f"which shape flashes while the {flash.sound} is heard ?"
            yield Candidate(text, flash.shape, SHAPES, i, number)


@_kind("sound_scene", "audio")
def _sound_scene(clip: Clip) -> Iterator[Candidate]:
    """The only scene with a sound."""
    scenes = clip.scenes
    for sound in SOUNDS:
        where = [i for i, scene in enumerate(scenes) if sound in scene.sounds]
        if len(where) == 1 and len(scenes) > 1:
            text = f"in which scene is the {sound} heard ?"
            yield Candidate(text, *_numbered(where[0] + 1), where[0])
