# SPDX-License-Identifier: Apache-2.0
"""The world's closed lists (shapes, colors, sounds, ...) and its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross")
# Bright, so that they stand out on every background (objects have a black rim as well).
COLORS: Mapping[str, RGB] = {
    "red": (235, 45, 45),
    "green": (60, 215, 75),
    "blue": (60, 130, 255),
    "yellow": (255, 225, 50),
    "pink": (255, 110, 215),
    "white": (250, 250, 250),
}
# Two tones each. Relative to the mean color of photographs the six lie far out in different
# directions, so that a cut between any two is the lowest similarity around.
BACKGROUNDS: Mapping[str, tuple[RGB, RGB]] = {
    "teal": ((0, 140, 140), (0, 104, 112)),
    "maroon": ((150, 0, 30), (112, 0, 20)),
    "purple": ((110, 30, 190), (80, 16, 150)),
    "gray": ((206, 206, 206), (168, 168, 168)),
    "navy": ((8, 10, 50), (24, 32, 92)),
    "olive": ((160, 165, 0), (120, 124, 0)),
}
TEXTURES = ("plain", "stripes", "dots", "checks")
SOUNDS = ("beep", "siren", "noise", "buzz", "clicks", "chord")
SILENCE = "silence"
DIRECTIONS = ("left", "right", "up", "down")
NOWHERE = "nowhere"
SIDES = ("left", "right", "top", "bottom")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
PLACES = (*CORNERS, "top", "bottom", "left", "right", "middle")
CHANGES: Mapping[str, str] = {
    "nothing": "nothing changes",
    "recolor": "one changes color",
    "appear": "one appears",
    "disappear": "one disappears",
}
LETTERS = ("A", "B", "C", "D")
MAX_SCENES = 24  # backgrounds x textures: all scenes of a clip look different
NUMBERS = tuple(str(n) for n in range(MAX_SCENES + 1))

# Words of questions and captions beside the lists above.
_OTHERS = """
    . , : ; ? after and appears are at background change color disappears does end enter enters
    flash flashes first from gone happens has heard how in is last leave leaves many move moved
    moves new next nothing now object objects of on scene scenes seen shape side sound start still
    texture the then there to turned turns video way what when where which while with
"""


def vocabulary() -> tuple[str, ...]:
    """All words and punctuation of questions, options, answers and captions, sorted.

    Texts are these words with single spaces between them; ``text.split()`` gives the tokens.
    """
    lists = (SHAPES, COLORS, BACKGROUNDS, TEXTURES, SOUNDS, DIRECTIONS, SIDES, PLACES, LETTERS)
    words = {word for entries in lists for entry in entries for word in entry.split()}
    words |= {word for text in CHANGES.values() for word in text.split()}
    return tuple(sorted(words | set(NUMBERS) | set(_OTHERS.split()) | {SILENCE, NOWHERE}))
