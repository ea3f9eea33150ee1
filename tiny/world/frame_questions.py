# SPDX-License-Identifier: Apache-2.0
"""Questions about a single frame, relative to the first frame of its scene.

They teach the compressor what the few tokens of a dynamic frame must hold, before any question
about whole clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from tdc.errors import InputError

from .captions import LEAST_MOVE, gone, new, turned_corner
from .clips import Clip, Thing
from .motion import moved_since, place_of
from .wording import Candidate, Question, worded
from .words import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    NOWHERE,
    NUMBERS,
    PLACES,
    SHAPES,
    SILENCE,
    SOUNDS,
    TEXTURES,
)

NOTHING = "nothing"


def ask_frame(
    clip: Clip,
    frame: int,
    count: int = 1,
    *,
    kinds: Sequence[str] | None = None,
    salt: int | str = 0,
) -> list[Question]:
    """Questions about one frame; arguments as for `questions.ask`.

    Raises:
        InputError: no such frame or kind.
    """
    if not 0 <= frame < clip.num_frames:
        raise InputError(f"frame: got {frame}, expected 0 to {clip.num_frames - 1}")
    names = list(FRAME_KINDS if kinds is None else kinds)
    if unknown := [name for name in names if name not in FRAME_KINDS]:
        raise InputError(f"kinds: got {unknown[0]!r}, expected some of {', '.join(FRAME_KINDS)}")
    rng = Random(f"{clip.name}/frame/{frame}/{salt}")
    rng.shuffle(names)
    found: list[Question] = []
    for name in names:
        if len(found) == count:
            break
        needs, find = FRAME_KINDS[name]
        if candidates := list(find(clip, frame)):
            found.append(worded(clip, name, needs, rng.choice(candidates), rng))
    return found


def _visible(clip: Clip, frame: int) -> list[tuple[Thing, float]]:
    number, time = clip.locate(frame)
    return [(thing, time) for thing in clip.scenes[number].visible(time)]


def _seldom(clip: Clip, frame: int, one_in: int) -> bool:
    """True for one frame in ``one_in``: otherwise most answers would be "nothing"."""
    return (clip.index + frame) % one_in == 0


def _shape(clip: Clip, frame: int) -> Iterator[Candidate]:
    for thing, time in _visible(clip, frame):
        text = f"what shape is the {thing.color_at(time)} object now ?"
        yield Candidate(text, thing.shape, SHAPES)


def _color(clip: Clip, frame: int) -> Iterator[Candidate]:
    shapes = [thing.shape for thing, _ in _visible(clip, frame)]
    for thing, time in _visible(clip, frame):
        if shapes.count(thing.shape) == 1:
            text = f"what color is the {thing.shape} now ?"
            yield Candidate(text, thing.color_at(time), tuple(COLORS))


def _place(clip: Clip, frame: int) -> Iterator[Candidate]:
    for thing, time in _visible(clip, frame):
        text = f"where is the {thing.color_at(time)} {thing.shape} now ?"
        yield Candidate(text, place_of(thing.position(time)), PLACES)


def _moved(clip: Clip, frame: int) -> Iterator[Candidate]:
    for thing, time in _visible(clip, frame):
        if time > 0 and thing.visible(0) and not turned_corner(thing, time):
            way = moved_since(thing, 0, time, LEAST_MOVE)
            text = f"which way has the {thing.color_at(time)} {thing.shape} moved ?"
            yield Candidate(text, way or NOWHERE, (*DIRECTIONS, NOWHERE))


def _new_shape(clip: Clip, frame: int) -> Iterator[Candidate]:
    yield from _one(clip, frame, "new", lambda thing: thing.shape, SHAPES)


def _new_color(clip: Clip, frame: int) -> Iterator[Candidate]:
    yield from _one(clip, frame, "new", lambda thing: thing.color, tuple(COLORS))


def _gone_shape(clip: Clip, frame: int) -> Iterator[Candidate]:
    yield from _one(clip, frame, "gone", lambda thing: thing.shape, SHAPES)


def _one(
    clip: Clip,
    frame: int,
    what: str,
    value: Callable[[Thing], str],
    domain: Sequence[str],
) -> Iterator[Candidate]:
    """Questions about the one thing that is new or gone or, seldom, about none."""
    number, time = clip.locate(frame)
    scene = clip.scenes[number]
    things = new(scene, time) if what == "new" else gone(scene, time)
    noun = "shape" if domain is SHAPES else "color"
    if len(things) == 1:
        yield Candidate(f"which {noun} is {what} ?", value(things[0]), (*domain, NOTHING))
    elif not things and time > 0 and _seldom(clip, frame, 4 if what == "new" else 20):
        yield Candidate(f"which {noun} is {what} ?", NOTHING, (*domain, NOTHING))


def _count(clip: Clip, frame: int) -> Iterator[Candidate]:
    count = len(_visible(clip, frame))
    yield Candidate("how many objects are there now ?", str(count), NUMBERS[:6])


def _background(clip: Clip, frame: int) -> Iterator[Candidate]:
    scene = clip.scenes[clip.locate(frame)[0]]
    yield Candidate("what color is the background ?", scene.background, tuple(BACKGROUNDS))


def _texture(clip: Clip, frame: int) -> Iterator[Candidate]:
    scene = clip.scenes[clip.locate(frame)[0]]
    yield Candidate("what texture is the background ?", scene.texture, TEXTURES)


def _sound(clip: Clip, frame: int) -> Iterator[Candidate]:
    sound = clip.sounds[frame]
    # A clip without any sound has no track, so no question about it.
    if sound is not None or (any(clip.sounds) and _seldom(clip, frame, 4)):
        yield Candidate("which sound is heard now ?", sound or SILENCE, (*SOUNDS, SILENCE))


_Find = Callable[[Clip, int], Iterator[Candidate]]
FRAME_KINDS: dict[str, tuple[tuple[str, ...], _Find]] = {
    "frame_shape": (("dynamic",), _shape),
    "frame_color": (("dynamic",), _color),
    "frame_place": (("dynamic",), _place),
    "frame_moved": (("dynamic",), _moved),
    "frame_new_shape": (("dynamic",), _new_shape),
    "frame_new_color": (("dynamic",), _new_color),
    "frame_gone": (("dynamic",), _gone_shape),
    "frame_count": (("dynamic",), _count),
    "frame_background": ((), _background),
    "frame_texture": ((), _texture),
    "frame_sound": (("audio", "dynamic"), _sound),
}
