# SPDX-License-Identifier: Apache-2.0
"""Questions about a clip, with their answers, in short-answer and multiple-choice form."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tdc.errors import InputError

from .clips import Clip
from .question_kinds import KINDS
from .wording import Candidate, Question, worded

__all__ = ["KINDS", "Question", "all_questions", "ask"]


def ask(
    clip: Clip, count: int = 1, *, kinds: Sequence[str] | None = None, salt: int | str = 0
) -> list[Question]:
    """A random selection of a clip's questions, kinds equally likely, and as many different
    ones as possible.

    Args:
        clip: the clip to ask about.
        count: number of questions; fewer are returned if the clip has fewer.
        kinds: of these kinds only; default: all.
        salt: seed of the selection.

    Raises:
        InputError: no such kind.
    """
    rng = Random(f"{clip.name}/ask/{salt}")
    names = list(KINDS if kinds is None else kinds)
    if unknown := [name for name in names if name not in KINDS]:
        raise InputError(f"kinds: got {unknown[0]!r}, expected some of {', '.join(KINDS)}")
    found: list[Question] = []
    left: dict[str, list[Candidate]] = {}
    while len(found) < count:
        rng.shuffle(names)
        before = len(found)
        for name in names:
            if name not in left:
                left[name] = list(KINDS[name].find(clip))
                rng.shuffle(left[name])
            if left[name] and len(found) < count:
                needs = KINDS[name].needs
                found.append(worded(clip, name, needs, left[name].pop(), rng))
        if len(found) == before:
            break
    return found


def all_questions(clip: Clip, *, salt: int | str = 0) -> list[Question]:
    """All questions about a clip, each worded once."""
    rng = Random(f"{clip.name}/all/{salt}")
    return [
        worded(clip, name, kind.needs, candidate, rng)
        for name, kind in KINDS.items()
        for candidate in kind.find(clip)
    ]
