# SPDX-License-Identifier: Apache-2.0
"""Questions and their wording: the scene's name, the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from .clips import Clip
from .words import LETTERS


@dataclass(frozen=True)
class Question:
    """A question about a clip.

    Attributes:
        kind: a key of `question_kinds.KINDS` or `frame_questions.FRAME_KINDS`.
        needs: requirements beyond the static frames: "audio", "dynamic" (frames after a scene's
            first), "order", "change".
        text: words of `words.vocabulary`, with single spaces.
        answer: the short answer.
        options: four different answers, the right one at a random position.
        scene: number of the scene it is about, from 0; None: the whole clip.
        by: kind of the scene's name in it: "number", "content" or "none".
        flash: number of the flash it is about, from 0 within the clip; None: no single one.
    """

    kind: str
    needs: tuple[str, ...]
    text: str
    answer: str
    options: tuple[str, ...]
    scene: int | None = None
    by: str = "none"
    flash: int | None = None

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return LETTERS[self.options.index(self.answer)]

    @property
    def choice(self) -> str:
        """The text followed by the options: "... ? A . red B . blue C . pink D . white"."""
        listed = (f"{a} . {b}" for a, b in zip(LETTERS, self.options, strict=True))
        return f"{self.text} {' '.join(listed)}"


@dataclass(frozen=True)
class Candidate:
    """A question before its wording: `text` may hold {scene}; `domain` supplies the options."""

    text: str
    answer: str
    domain: Sequence[str]
    scene: int | None = None
    flash: int | None = None


def worded(
    clip: Clip, name: str, needs: tuple[str, ...], candidate: Candidate, rng: Random
) -> Question:
    """The worded question, with random scene name and options."""
    text, by = candidate.text, "none"
    if candidate.scene is not None and "{scene}" in text:
        references = scene_references(clip, candidate.scene)
        by = rng.choice(tuple(references))
        text = text.replace("{scene}", references[by])
    others = [answer for answer in candidate.domain if answer != candidate.answer]
    options = [candidate.answer, *rng.sample(others, len(LETTERS) - 1)]
    rng.shuffle(options)
    about = candidate.scene, by, candidate.flash
    return Question(name, needs, text, candidate.answer, tuple(options), *about)


def scene_references(clip: Clip, number: int) -> Mapping[str, str]:
    """Unambiguous names of a scene, by number and by background."""
    scene = clip.scenes[number]
    alike = sum(other.background == scene.background for other in clip.scenes)
    content = scene.background if alike == 1 else f"{scene.background} {scene.texture}"
    return {"number": f"scene {number + 1}", "content": f"the {content} scene"}
