# SPDX-License-Identifier: Apache-2.0
"""Train, validation and test splits, which share no clip and no combination of attributes.

A combination is (shape, color, background color). On every background two of a shape's six colors
are held out, for test or validation, and four stay for training. Every single attribute and every
pair still occurs in training; only triples are held out.
"""

from __future__ import annotations

import functools

from tdc.errors import InputError

from .words import BACKGROUNDS, COLORS, SHAPES

SPLITS = ("train", "validation", "test")
_COLORS = tuple(COLORS)
_BACKGROUNDS = tuple(BACKGROUNDS)


def split_of(shape: str, color: str, background: str) -> str:
    """The only split that may show the combination."""
    s, c, b = SHAPES.index(shape), _COLORS.index(color), _BACKGROUNDS.index(background)
    # A Latin square of colors in steps of 3, so that a held-out object can change its color within
    # its split: 120 combinations for training, 30 each for the others.
    if (s + c + b // 2) % 3:
        return "train"
    return "test" if (s + b) % 2 == 0 else "validation"


@functools.cache
def looks(split: str, background: str) -> tuple[tuple[str, str], ...]:
    """(shape, color) pairs of a split on a background: at least four."""
    check_split(split)
    return tuple(
        (shape, color)
        for shape in SHAPES
        for color in _COLORS
        if split_of(shape, color, background) == split
    )


def check_split(split: str) -> None:
    """Raise `InputError` for an unknown split."""
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
