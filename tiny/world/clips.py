# SPDX-License-Identifier: Apache-2.0
"""Data model of a clip: scenes, objects and sounds with their exact times and places.

Time counts in sampled frames, one per second: an event at frame k is visible, or heard, from second
k to second k + 1. Lengths are 64ths of the picture's side, at any drawing size.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

UNITS = 64  # across the picture
Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """An object, or a flash: an object that exists for one frame.

    Attributes:
        shape, color: its initial look.
        path: (frame, (x, y)) of its centre, ascending; linear in between, constant outside.
        first, last: frames [first, last) of the scene in which it exists.
        size: half of its side.
        flash: whether it is a flash.
        recolor: (frame, color) of a change of color.
        sound: heard during the flash.
    """

    shape: str
    color: str
    path: tuple[tuple[float, Point], ...]
    first: int
    last: int
    size: float = 8.0
    flash: bool = False
    recolor: tuple[int, str] | None = None
    sound: str | None = None

    def position(self, time: float) -> Point:
        """Centre at a time of the scene (frames, may be fractional)."""
        path = self.path
        if time <= path[0][0]:
            return path[0][1]
        for (t0, (x0, y0)), (t1, (x1, y1)) in pairwise(path):
            if time < t1:
                share = (time - t0) / (t1 - t0)
                return x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        return path[-1][1]

    def color_at(self, time: float) -> str:
        if self.recolor is not None and time >= self.recolor[0]:
            return self.recolor[1]
        return self.color

    def visible(self, time: float) -> bool:
        """Whether it exists at that time with its centre in the picture."""
        x, y = self.position(time)
        return self.first <= time < self.last and 0 <= x <= UNITS and 0 <= y <= UNITS

    @property
    def legs(self) -> tuple[str, ...]:
        """Its directions of movement in order; empty for an object at rest."""
        return tuple(direction(a, b) for (_, a), (_, b) in pairwise(self.path))

    @property
    def looks(self) -> tuple[tuple[str, str], ...]:
        """All (shape, color) pairs it ever has."""
        later = () if self.recolor is None else ((self.shape, self.recolor[1]),)
        return ((self.shape, self.color), *later)


def direction(start: Point, stop: Point) -> str:
    """The main direction between two points: left, right, up or down (y points down)."""
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    if abs(dx) >= abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


@dataclass(frozen=True)
class Scene:
    """One take: a background, the things on it, and one sound or None for each second.

    `change` is the kind of change inside it, a key of `words.CHANGES`; `phase` shifts the texture.
    """

    background: str
    texture: str
    num_frames: int
    things: tuple[Thing, ...]
    sounds: tuple[str | None, ...]
    change: str = "nothing"
    phase: Point = (0.0, 0.0)

    @property
    def objects(self) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if not thing.flash)

    @property
    def flashes(self) -> tuple[Thing, ...]:
        """Flashes in temporal order."""
        return tuple(sorted((t for t in self.things if t.flash), key=lambda t: t.first))

    def visible(self, time: float) -> list[Thing]:
        return [thing for thing in self.things if thing.visible(time)]


@dataclass(frozen=True)
class Clip:
    """A clip and its origin: the same values give the same clip again.

    `scene_range` is the (least, most) number of scenes it was drawn from.
    """

    kind: str
    split: str
    seed: int
    index: int
    scene_range: tuple[int, int]
    scenes: tuple[Scene, ...]

    @property
    def name(self) -> str:
        """Unique name, and the seed of everything random about the clip."""
        low, high = self.scene_range
        return f"{self.split}/{self.kind}/{self.seed}/{self.index}/{low}-{high}"

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First frame of every scene."""
        return (0, *accumulate(scene.num_frames for scene in self.scenes[:-1]))

    @property
    def cuts(self) -> tuple[int, ...]:
        """The true boundaries: first frame of every scene but the first."""
        return self.starts[1:]

    @property
    def num_frames(self) -> int:
        """Sampled frames, and seconds."""
        return self.starts[-1] + self.scenes[-1].num_frames

    @property
    def sounds(self) -> tuple[str | None, ...]:
        """The sound of each second."""
        return tuple(sound for scene in self.scenes for sound in scene.sounds)

    def locate(self, time: float) -> tuple[int, float]:
        """(scene, time inside the scene) at a time of the clip; the end belongs to the last."""
        number = max(0, bisect_right(self.starts, time) - 1)
        return number, time - self.starts[number]

    @property
    def combinations(self) -> frozenset[tuple[str, str, str]]:
        """All (shape, color, background color) combinations that are ever visible."""
        return frozenset(
            (*look, scene.background)
            for scene in self.scenes
            for thing in scene.things
            for look in thing.looks
        )
