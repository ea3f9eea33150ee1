# SPDX-License-Identifier: Apache-2.0
"""Measurements of a variant: its questions, and the figures kept of its answers."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdc.lvcot import Prompts, answer_long_video

from ..eval.boundary_scores import BoundaryScores
from ..eval.evaluate import ANSWER_TOKENS, Answered, Evaluation, evaluate, without_sound
from ..model import SIDE
from ..world import ask, make_clip, render_frames, render_sound

SETS = ("standard", "slow", "fast-cut", "motion", "long")  # kinds of clips, each reported apart
NEEDS = ("dynamic", "audio", "order", "change")
SEED = 1  # of the clips: the same for all variants that train
# LVCoT: frames per call. A long clip has 24 to 96, so one segment sees it subsampled.
CALL_FRAMES = 32
SEGMENT_TOKENS = 24  # answer per segment at most; the caption of a scene has about 20 words
# In words of the tiny model's vocabulary.
PROMPTS = Prompts("{question}", "{answer} ;", "{thoughts} {question}")


def ask_set(
    model: Any, processor: Any, kind: str, clips: int, questions: int, sound: bool
) -> dict[str, Any]:
    """Answers about test clips of one kind.

    Returns:
        :func:`shares`, ``tokens`` (mean context tokens of a video) and ``cuts_f1``.
    """
    asked = [
        (clip, ask(clip, questions))
        for clip in (make_clip(SEED, i, split="test", kind=kind) for i in range(clips))
    ]
    lengths: list[int] = []

    def count(module: Any, args: Any, output: tuple[Tensor, Tensor]) -> None:
        lengths.extend(output[1].diff().tolist())

    hook = model.compressor.register_forward_hook(count)
    try:
        control = None if sound else without_sound
        found = evaluate(model, processor, asked, control=control, files=False)
    finally:
        hook.remove()
    return {
        **shares(found),
        "tokens": sum(lengths) / len(lengths),
        "cuts_f1": found.cuts.f1,
    }


@torch.inference_mode()
def ask_long(
    model: Any, processor: Any, segments: int, clips: int, questions: int, seed: int
) -> dict[str, Any]:
    """LVCoT's answers about long test clips, each question by itself.

    Returns:
        :func:`shares` and ``seconds``, the mean time of an answer including the clip's encoding.
    """
    answered = []
    seconds = 0.0
    for index in range(clips):
        clip = make_clip(SEED + seed, index, split="test", kind="long")
        frames, wave = render_frames(clip, SIDE), render_sound(clip)
        for question in ask(clip, questions):
            began = time.perf_counter()
            said = _long_answer(model, processor, frames, wave, question.text, segments)
            seconds += time.perf_counter() - began
            answered.append(Answered(clip, question, said))
    found = Evaluation(tuple(answered), BoundaryScores())
    return {**shares(found), "seconds": seconds / len(answered)}


def _long_answer(
    model: Any, processor: Any, frames: np.ndarray, wave: np.ndarray, question: str, segments: int
) -> str:
    answer = answer_long_video(
        model,
        processor,
        frames,
        question,
        segments,
        audio=wave,
        max_frames=CALL_FRAMES,
        segment_tokens=SEGMENT_TOKENS,
        prompts=PROMPTS,
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
    )
    return answer.answer


def shares(found: Evaluation) -> dict[str, Any]:
    """Shares of right answers, of all questions and per need.

    Returns:
        ``questions`` (their number), ``right``, ``constant`` (share of the best constant answer per
        kind of question) and ``needs``: the same three for each need. Shares are None without
        questions.
    """
    return {**_share(found, None), "needs": {need: _share(found, need) for need in NEEDS}}


def _share(found: Evaluation, need: str | None) -> dict[str, Any]:
    return {
        "questions": found.count(needs=need),
        "right": _known(found.accuracy(needs=need)),
        "constant": _known(found.constant(needs=need)),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
