# SPDX-License-Identifier: Apache-2.0
"""Training examples of each stage: batches of one kind, in a mixture that changes gradually.

An example is a function of the seed and its number, so a resumed run sees the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from tdc.encoder.tower_features import TowerFeatures

from ..world import CLIP_PROMPT, FRAME_PROMPT, Clip, ask, ask_frame, clip_caption, frame_caption
from ..world.captions import scene_caption
from ..world.questions import KINDS, Question
from ..world.wording import Candidate, scene_references, worded
from .clip_features import TRAINING, ClipFeatures, some_frames

PERIOD = len(TRAINING)
# Positions in TRAINING with clips of one scene, of two, and of several.
ONE = tuple(i for i, (kind, n) in enumerate(TRAINING) if n == (1, 1) or kind == "motion")
TWO = tuple(i for i, (kind, n) in enumerate(TRAINING) if n == (2, 2) or kind == "slow")
FULL = tuple(i for i, (kind, n) in enumerate(TRAINING) if n == (1, 4) or kind == "fast-cut")
CHOICE = 0.1  # share of multiple-choice questions
# Questions per medium; they share its tokens, which are most of the work.
TURNS = 8
# Kinds that few clips offer, that are learned late, or that name a scene by its number alone: every
# other question about a clip is one of these.
OFTEN = (
    "color",
    "background",
    "texture",
    "scene_number",
    "side",
    "flash_shape",
    "flash_color",
    "change",
    "change_color",
    "appears",
    "disappears",
    "order_shape",
    "order_color",
    "next",
    "sound",
    "sound_event",
    "seen_while",
    "sound_scene",
)
# Share of captions among the examples of a kind.
CAPTIONS = {"image": 0.3, "frame": 0.3, "one": 0.2, "two": 0.1, "full": 0.1}
# Share of clips in which one turn describes a whole scene: many words to learn from, all about one
# of several scenes.
TELL = 0.5
# Kinds for a still frame. Color twice: it is unique in a scene, so all else is found by color.
STILL = ("shape", "color", "color", "count", "background", "texture", "place")
# Lessons with nothing else in between: (start, end) as shares of the schedule, and the kind.
LESSONS = (
    (0.000, 0.036, "look"),
    (0.036, 0.060, "order"),
    (0.060, 0.118, "scenes"),
    (0.118, 0.205, "frame"),
    (0.205, 0.219, "contrast"),
    (0.219, 0.282, "one"),
    (0.317, 0.340, "sounds"),
    (0.363, 0.382, "events"),
    (0.402, 0.418, "changes"),
    (0.500, 0.540, "sounds"),
    (0.700, 0.735, "events"),
    (0.750, 0.780, "events"),
)
# Lessons that continue in the mixture afterwards, and their weights.
KEPT = {"sounds": 0.12, "events": 0.07, "changes": 0.07}
Mixture = Callable[[float], Mapping[str, float]]  # progress 0..1 to weights of batch kinds


def images(progress: float) -> Mapping[str, float]:
    return {"image": 1.0}


def talks(progress: float) -> Mapping[str, float]:
    """Curriculum of the language model alone: look-ups in one frame, the order of two scenes, then
    of several, two frames, the same question about both scenes, one scene, then everything.

    Searching is learned where little else is asked, and in both directions at once: a model that
    found everything by color no longer learned to find it by shape (tiny/LOG.md).
    """
    for start, end, kind in LESSONS:
        if start <= progress < end:
            return {kind: 1.0}
    kept = {kind: KEPT[kind] for start, _, kind in LESSONS if kind in KEPT and start <= progress}
    mixture = {"scenes": 0.05, "frame": 0.05, "contrasts": 0.2, "one": 0.15, "two": 0.15}
    return {**mixture, "full": 0.4, **kept}


def videos(progress: float) -> Mapping[str, float]:
    return {"image": 0.05, **sounding(progress)}


def sounding(progress: float) -> Mapping[str, float]:
    return {"frame": 0.10, "contrasts": 0.20, "one": 0.15, "two": 0.15, "full": 0.40}


class Turn(NamedTuple):
    """A question, its answer and, if it has one, the number of the scene and flash it is about."""

    question: str
    answer: str
    scene: int | None = None
    flash: int | None = None


class Examples(Dataset):
    """Examples of a stage, in training order.

    Args:
        features: tower features of the training clips.
        size: number of examples.
        batch: consecutive examples of one kind.
        mixture: weights of the kinds over the course of training.
        sound: False removes the sound of clips and the questions about it. Single frames keep
            theirs, lest the compressor forget it.
        seed: of the random choices.
    """

    def __init__(
        self,
        features: ClipFeatures,
        size: int,
        batch: int,
        mixture: Mixture,
        sound: bool,
        seed: int,
    ) -> None:
        self.features, self.size, self.batch = features, size, batch
        self.mixture, self.sound, self.seed = mixture, sound, seed
        self._kinds = [name for name, kind in KINDS.items() if sound or "audio" not in kind.needs]
        self._often = [name for name in OFTEN if name in self._kinds]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < self.size:
            raise IndexError(f"example: got {number}, expected 0 to {self.size - 1}")
        weights = self.mixture(number // self.batch * self.batch / self.size)
        of_batch = Random(f"{self.seed}/batch/{number // self.batch}")
        kind = of_batch.choices(list(weights), list(weights.values()))[0]
        rng = Random(f"{self.seed}/{number}")
        make = getattr(self, f"_{kind}")
        return make(rng, rng.random() < CAPTIONS.get(kind, 0.0))

    def _pick(self, places: tuple[int, ...], rng: Random) -> tuple[int, Clip]:
        index = rng.randrange(self.features.count // PERIOD) * PERIOD + rng.choice(places)
        return index, self.features.clip(index)

    def _image(self, rng: Random, caption: bool) -> dict[str, Any]:
        index, clip = self._pick(ONE + TWO + FULL, rng)
        scene = rng.randrange(len(clip.scenes))
        frame = clip.starts[scene]
        features = some_frames(self.features[index], [frame])
        image = TowerFeatures(features.siglip, features.dinov2, features.size, is_video=False)
        if caption:
            text = frame_caption(clip, frame).rpartition(" ; ")[0]
            return _talk("image", image, [Turn(FRAME_PROMPT, text)])
        alone = only(clip, scene)
        questions = ask(alone, TURNS, kinds=STILL, salt=rng.getrandbits(32))
        return _talk("image", image, talk_turns(questions, rng))

    def _frame(self, rng: Random, caption: bool) -> dict[str, Any]:
        """Two frames (the first of a scene, a later one), asked about the later."""
        index, clip = self._pick(ONE + TWO + FULL, rng)
        scene = rng.randrange(len(clip.scenes))
        start = clip.starts[scene]
        frame = start + rng.randrange(1, clip.scenes[scene].num_frames)
        features = some_frames(self.features[index], [start, frame])
        if caption:
            return _talk("video", features, [Turn(FRAME_PROMPT, frame_caption(clip, frame))])
        questions = ask_frame(clip, frame, TURNS, salt=rng.getrandbits(32))
        return _talk("video", features, talk_turns(questions, rng))

    def _one(self, rng: Random, caption: bool) -> dict[str, Any]:
        return self._about(*self._pick(ONE, rng), caption, rng)

    def _two(self, rng: Random, caption: bool) -> dict[str, Any]:
        return self._about(*self._pick(TWO, rng), caption, rng)

    def _full(self, rng: Random, caption: bool) -> dict[str, Any]:
        index, clip = self._pick(FULL, rng)
        return self._about(index, clip, caption and len(clip.scenes) < 4, rng)

    def _contrasts(self, rng: Random, caption: bool) -> dict[str, Any]:
        index, clip = self._pick(TWO + FULL, rng)
        questions = contrasts(clip, self._kinds, rng)[:TURNS]
        turns = talk_turns(questions, rng) or self.turns_about(clip, False, rng)
        return _talk("video", self._heard(index), turns)

    def _heard(self, index: int) -> TowerFeatures:
        features = self.features[index]
        return features if self.sound else replace(features, audio=None)

    def _about(self, index: int, clip: Clip, caption: bool, rng: Random) -> dict[str, Any]:
        return _talk("video", self._heard(index), self.turns_about(clip, caption, rng))

    def turns_about(self, clip: Clip, caption: bool, rng: Random) -> list[Turn]:
        """Questions and answers, or a caption of the whole clip."""
        if caption:
            return [Turn(CLIP_PROMPT, clip_caption(clip, self.sound))]
        questions = ask(clip, TURNS // 2, kinds=self._often, salt=rng.getrandbits(32))
        asked = {q.text for q in questions}  # asked twice, its answer could be copied
        others = ask(clip, TURNS, kinds=self._kinds, salt=rng.getrandbits(32))
        questions += [q for q in others if q.text not in asked][: TURNS - len(questions)]
        turns = talk_turns(questions, rng)
        if rng.random() < TELL:
            scene = rng.randrange(len(clip.scenes))
            name = rng.choice(list(scene_references(clip, scene).values()))
            told = scene_caption(clip.scenes[scene], self.sound)
            turns[rng.randrange(len(turns))] = Turn(f"what happens in {name} ?", told, scene)
        return turns


def talk_turns(questions: Sequence[Question], rng: Random) -> list[Turn]:
    """Questions in random order with their answers, some as multiple choice."""
    turns = []
    for q in rng.sample(questions, len(questions)):
        said = (q.choice, q.letter) if rng.random() < CHOICE else (q.text, q.answer)
        turns.append(Turn(*said, q.scene, q.flash))
    return turns


def contrasts(clip: Clip, kinds: Sequence[str], rng: Random) -> list[Question]:
    """Questions that differ in the scene's name alone and have different answers in the clip."""
    alike: dict[str, list[tuple[str, Candidate]]] = {}
    for name in kinds:
        for candidate in KINDS[name].find(clip):
            if "{scene}" in candidate.text:
                alike.setdefault(candidate.text, []).append((name, candidate))
    groups = [g for g in alike.values() if len({candidate.answer for _, candidate in g}) > 1]
    rng.shuffle(groups)
    return [
        worded(clip, name, KINDS[name].needs, candidate, rng)
        for group in groups
        for name, candidate in group
    ]


def _talk(kind: str, medium: TowerFeatures, turns: Sequence[Turn]) -> dict[str, Any]:
    said = []
    for number, turn in enumerate(turns):
        asked = ("" if number else f"<{kind}>") + turn.question
        said += [{"from": "human", "value": asked}, {"from": "gpt", "value": turn.answer}]
    return {kind: medium, "conversations": said}


def only(clip: Clip, scene: int) -> Clip:
    """A clip that consists of one scene, for questions about a picture."""
    return replace(clip, scenes=(clip.scenes[scene],), index=clip.index * 100 + scene)
