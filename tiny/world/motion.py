# SPDX-License-Identifier: Apache-2.0
"""Places and paths of objects.

Objects start in a corner. Two ways lead along the border from each, so the first frame tells
neither whether an object will move nor where to. The middle belongs to flashes: objects on the
border stay clear of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

from .clips import UNITS, Point, Thing, direction

LOW, HIGH = 10.0, 54.0  # corner to corner: 44
JITTER = 2.0  # of every place; a leg along the border is at least 40 long
OUTSIDE = 11.0  # distance beyond the edge at which an object is out of sight
CLEARANCE = 17.0  # between two centres, along x or y
_CORNERS: tuple[Point, ...] = ((LOW, LOW), (HIGH, LOW), (LOW, HIGH), (HIGH, HIGH))
_MIDDLE: Point = (UNITS / 2, UNITS / 2)

Path = tuple[tuple[float, Point], ...]


def place_of(point: Point) -> str:
    """Name of the place in a three by three grid of the picture."""
    x, y = (min(2, max(0, int(3 * v / UNITS))) for v in point)
    rows, columns = ("top", "", "bottom"), ("left", "", "right")
    return f"{rows[y]} {columns[x]}".strip() or "middle"


def corners(rng: Random) -> list[Point]:
    """The four corners in random order, with jitter."""
    places = list(_CORNERS)
    rng.shuffle(places)
    return [_moved(place, rng) for place in places]


def middle(rng: Random) -> Point:
    return _moved(_MIDDLE, rng)


def _moved(place: Point, rng: Random) -> Point:
    return (place[0] + rng.uniform(-JITTER, JITTER), place[1] + rng.uniform(-JITTER, JITTER))


def ways(corner: Point) -> tuple[Point, Point]:
    """The two destinations from a corner: across, and up or down."""
    x, y = corner
    return (UNITS - x, y), (x, UNITS - y)


def travel(corner: Point, legs: int, num_frames: int, rng: Random) -> Path:
    """A path of some legs, spread over a scene; no leg goes straight back."""
    points = [corner]
    for _ in range(legs):
        onward = [p for p in ways(points[-1]) if len(points) < 2 or p != points[-2]]
        points.append(rng.choice(onward))
    return _timed(points, num_frames)


def enter(corner: Point, num_frames: int, rng: Random) -> Path:
    """A path from outside, across the whole picture, into the corner."""
    return _timed([_beyond(corner, rng), corner], num_frames)


def leave(corner: Point, num_frames: int, rng: Random) -> Path:
    """A path from the corner, across the picture, out of it."""
    return _timed([corner, _beyond(corner, rng)], num_frames)


def _beyond(corner: Point, rng: Random) -> Point:
    """A place outside, on the far side of a corner."""
    x, y = corner
    if rng.random() < 0.5:
        return (UNITS + OUTSIDE if x < UNITS / 2 else -OUTSIDE), y
    return x, (UNITS + OUTSIDE if y < UNITS / 2 else -OUTSIDE)


def _timed(points: Sequence[Point], num_frames: int) -> Path:
    """Path through the points at constant speed, from the first to the last frame of a scene."""
    lengths = [abs(b[0] - a[0]) + abs(b[1] - a[1]) for a, b in pairwise(points)]
    total, done = sum(lengths), 0.0
    path = [(0.0, points[0])]
    for point, length in zip(points[1:], lengths, strict=True):
        done += length
        path.append((done / total * (num_frames - 1), point))
    return tuple(path)


def moved_since(thing: Thing, start: float, time: float, least: float = 6.0) -> str | None:
    """Direction of movement between two times; None for a distance below `least` (64ths)."""
    a, b = thing.position(start), thing.position(time)
    far = max(abs(b[0] - a[0]), abs(b[1] - a[1]))
    return direction(a, b) if far >= least else None


def clear(thing: Thing, others: Sequence[Thing], num_frames: int) -> bool:
    """Whether a thing never touches the others, checked at every half frame."""
    for half in range(2 * num_frames - 1):
        time = half / 2
        if not thing.first <= time < thing.last:
            continue
        x, y = thing.position(time)
        for other in others:
            if other.first <= time < other.last:
                u, v = other.position(time)
                if max(abs(u - x), abs(v - y)) < CLEARANCE:
                    return False
    return True
