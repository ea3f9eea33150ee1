# SPDX-License-Identifier: Apache-2.0
"""A model's accuracy on questions about unseen clips, and controls."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdc.answer import ask as answer
from tdc.encoder.features import VideoFeatures
from tdc.encoder.segment import Segmentation
from tdc.processor.media_inputs import SAMPLE_RATE

from ..world.clips import Clip
from ..world.questions import Question
from ..world.render import render_frames
from ..world.sounds import render_sound
from ..world.write import write_clip
from .boundary_scores import BoundaryScores, boundary_scores

SIZE = 64  # pixels a side of the clips
ANSWER_TOKENS = 6  # no short answer has more words
GROUP = 20  # clips encoded at a time


@dataclass(frozen=True)
class Answered:
    """One question and the model's answer."""

    clip: Clip
    question: Question
    said: str

    @property
    def right(self) -> bool:
        return self.said.lower() == self.question.answer.lower()


@dataclass(frozen=True)
class Evaluation:
    """Answers to all questions, and the scores of the cuts."""

    answered: tuple[Answered, ...]
    cuts: BoundaryScores

    def accuracy(self, kind: str | None = None, needs: str | None = None) -> float:
        """Share of right answers, perhaps of one kind or of one need; NaN without questions."""
        chosen = self._chosen(kind, needs)
        return float("nan") if not chosen else sum(a.right for a in chosen) / len(chosen)

    def constant(self, kind: str | None = None, needs: str | None = None) -> float:
        """Share of right answers if every kind always got its most frequent answer."""
        chosen = self._chosen(kind, needs)
        counts: dict[str, Counter[str]] = {}
        for a in chosen:
            counts.setdefault(a.question.kind, Counter())[a.question.answer] += 1
        best = sum(counter.most_common(1)[0][1] for counter in counts.values())
        return float("nan") if not chosen else best / len(chosen)

    def count(self, kind: str | None = None, needs: str | None = None) -> int:
        return len(self._chosen(kind, needs))

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(a.question.kind for a in self.answered))

    def _chosen(self, kind: str | None, needs: str | None) -> list[Answered]:
        return [
            a
            for a in self.answered
            if kind in (None, a.question.kind) and (needs is None or needs in a.question.needs)
        ]


# A control takes something away from the features.
Control = Callable[[VideoFeatures], VideoFeatures]


def without_sound(features: VideoFeatures) -> VideoFeatures:
    return replace(features, audio=None, audio_lengths=())


def one_scene(features: VideoFeatures) -> VideoFeatures:
    """Features without cuts: only the video's first frame is static."""
    lengths = torch.tensor(features.cu_frames).diff().to(features.segmentation.boundaries)
    boundaries = lengths[:, None].expand_as(features.segmentation.boundaries)
    return replace(
        features, segmentation=replace(features.segmentation, boundaries=boundaries.contiguous())
    )


def without_dynamic(features: VideoFeatures) -> VideoFeatures:
    """Features of the static frames alone: the same scenes, each of one frame."""
    starts = [features.segmentation.scene_starts(video) for video in range(features.num_videos)]
    groups = [[features.cu_frames[v] + s for s in found] for v, found in enumerate(starts)]
    cu = (0, *accumulate(len(group) for group in groups))
    most = max((len(group) for group in groups), default=0)
    cuts = features.segmentation
    boundaries = torch.stack([torch.arange(1, most).clamp(max=len(group)) for group in groups]).to(
        cuts.boundaries
    )
    similarity = cuts.similarity.new_zeros(max(0, cu[-1] - 1))
    return features.take(groups, Segmentation(similarity, boundaries, cu))


CONTROLS: dict[str, Control] = {
    "sound removed": without_sound,
    "one scene": one_scene,
    "dynamic tokens removed": without_dynamic,
}


@torch.inference_mode()
def evaluate(
    model: Any,
    processor: Any,
    asked: Sequence[tuple[Clip, Sequence[Question]]],
    *,
    control: Control | None = None,
    choice: bool = False,
    files: bool = True,
    batch: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Ask all questions and compare the answers.

    Args:
        model, processor: a TDC that knows the world's words.
        asked: clips and their questions.
        control: takes something away from the features; None: nothing.
        choice: ask in multiple-choice form and expect the letter.
        files: encode the clips as MP4 and read them again; False: use arrays.
        batch: questions per call of the model.
        progress: called with the number of clips done and the total.
    """
    answered: list[Answered] = []
    cuts = BoundaryScores()
    for first in range(0, len(asked), GROUP):
        part = asked[first : first + GROUP]
        features = _encode(model, processor, [clip for clip, _ in part], files)
        for video, (clip, _) in enumerate(part):
            cuts += boundary_scores(features.segmentation.scene_starts(video)[1:], clip.cuts)
        if control is not None:
            features = control(features)
        rows = [(video, q) for video, (_, questions) in enumerate(part) for q in questions]
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            texts = [q.choice if choice else q.text for _, q in some]
            chosen = features.select([video for video, _ in some])
            said = answer(
                model, processor, chosen, texts, max_new_tokens=ANSWER_TOKENS, do_sample=False
            )
            for (video, question), words in zip(some, said, strict=True):
                expected = replace(question, answer=question.letter) if choice else question
                answered.append(Answered(part[video][0], expected, words))
        progress(min(len(asked), first + GROUP), len(asked))
    return Evaluation(tuple(answered), cuts)


def _encode(model: Any, processor: Any, clips: Sequence[Clip], files: bool) -> VideoFeatures:
    with tempfile.TemporaryDirectory() as folder:
        videos: list[Any] = []
        sounds: list[Any] = []
        for number, clip in enumerate(clips):
            path = Path(folder) / f"{number}.mp4"
            videos.append(write_clip(path, clip, size=SIZE) if files else render_frames(clip, SIZE))
            sounds.append(None if files else _padded(render_sound(clip)))
        inputs = processor(text=["<video>"] * len(clips), videos=videos, audio=sounds)
    inputs = inputs.to(model.device)
    return model.encode_video(**inputs)


def _padded(wave: np.ndarray) -> np.ndarray:
    """Padded to at least a second, as a file is."""
    return np.pad(wave, (0, max(0, SAMPLE_RATE - len(wave))))
