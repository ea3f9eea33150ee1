# SPDX-License-Identifier: Apache-2.0
"""LVCoT: long-video chain of thought (paper, section 3.3), without training.

A very long video is cut into N segments; the model answers for each of them, and the answers are
given to it as its own reasoning when it answers for the whole. The video is encoded once: segments
and overview share its features, and all segments run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from .answer import ask, chat_prompt
from .encoder.features import VideoFeatures
from .media.clock import clock
from .model import TDCForConditionalGeneration
from .processor.budget import frame_budget
from .processor.media_lists import Clip
from .processor.processor import TDCProcessor


@dataclass(frozen=True)
class Prompts:
    """Prompts of the language model, as format strings.

    Attributes:
        segment: of {number}, {total}, {start}, {end} and {question}.
        thought: one line of the thoughts, of {start}, {end} and {answer}.
        final: of {thoughts} and {question}.
    """

    segment: str = (
        "This is part {number} of {total} of a long video, from {start} to {end}. Say briefly what "
        "in this part helps to answer the question: {question}"
    )
    thought: str = "{start}-{end}: {answer}"
    final: str = "<think>\n{thoughts}\n</think>\n{question}"


PROMPTS = Prompts()


@dataclass(frozen=True)
class SegmentAnswer:
    """The answer about one segment; ``start`` and ``end`` in seconds."""

    start: float
    end: float
    answer: str


@dataclass(frozen=True)
class LongVideoAnswer:
    """The final answer and the thoughts behind it (none for one segment)."""

    answer: str
    segments: tuple[SegmentAnswer, ...]


def answer_long_video(
    model: TDCForConditionalGeneration,
    processor: TDCProcessor,
    video: Any,
    question: str,
    num_segments: int = 3,
    *,
    audio: Any = None,
    fps: float | None = None,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    sampling_rate: int | None = None,
    prompts: Prompts = PROMPTS,
    **options: Any,
) -> LongVideoAnswer:
    """Answer a question about a video of any length; :meth:`tdc.session.WatchedVideo.ask` with
    ``segments`` keeps the encoded video for the next question.

    Args:
        video, audio, fps, num_frames, start, end, sampling_rate: as for the processor.
        num_segments: N; 1 asks directly. The paper's tables use 1, 2, 3, 5 and 10.
        max_frames: frames per segment; default: what the token budget allows.
        prompts: other words for a model that does not know these.
        options: see :func:`answer_segments`.

    Returns:
        The final answer and the N segment answers.

    Raises:
        ValueError: ``num_segments`` is not positive.
        InputError: the video cannot be read, or the question does not fit the context.
    """
    if num_segments < 1:
        raise ValueError(f"num_segments is {num_segments}; expected at least 1")
    per_segment = max_frames or frames_per_segment(processor, question, prompts)
    inputs = processor(
        text="<video>",
        videos=[Clip(video)],
        audio=[audio],
        fps=fps,
        num_frames=num_frames,
        max_frames=num_segments * per_segment,
        start=start,
        end=end,
        sampling_rate=sampling_rate,
    ).to(model.device)
    with torch.no_grad():
        features = model.encode_video(keep_dinov2=num_segments > 1, **inputs)
    if num_segments == 1:
        for name in ("segment_tokens", "on_segment"):
            options.pop(name, None)
        return LongVideoAnswer(ask(model, processor, features, [question], **options)[0], ())
    return answer_segments(
        model,
        processor,
        features,
        question,
        num_segments,
        end=float(inputs["media_spans"][0, 1]),
        max_frames=max_frames,
        prompts=prompts,
        **options,
    )


def frames_per_segment(processor: TDCProcessor, question: str, prompts: Prompts = PROMPTS) -> int:
    """Most frames that a segment may bring beside its prompt."""
    text = prompts.segment.format(number=1, total=1, start="0:00", end="0:00", question=question)
    return frame_budget(processor.config, _prompt_length(processor, text))


def answer_segments(
    model: TDCForConditionalGeneration,
    processor: TDCProcessor,
    features: VideoFeatures,
    question: str,
    num_segments: int,
    *,
    end: float,
    max_frames: int | None = None,
    segment_tokens: int = 128,
    prompts: Prompts = PROMPTS,
    on_segment: Callable[[int, SegmentAnswer], None] | None = None,
    **generate: Any,
) -> LongVideoAnswer:
    """Answer about each segment of an encoded video, then about the whole.

    Args:
        features: of one video, encoded with ``keep_dinov2=True``.
        num_segments: at least 1; a video with fewer frames has one segment per frame.
        end: seconds at which the watched part ends.
        max_frames: frames of the whole in the final answer; default: what the token budget allows.
        segment_tokens: longest answer per segment.
        prompts: other words for a model that does not know these.
        on_segment: called with (number, answer) of every segment.
        generate: options of ``model.generate`` for the final answer (and sampling options for all).
    """
    options = {**generate, "max_new_tokens": segment_tokens}
    options.pop("streamer", None)  # several answers at once cannot be streamed
    thoughts = _segment_answers(
        model, processor, features, prompts, question, num_segments, end, options
    )
    for number, thought in enumerate(thoughts):
        if on_segment is not None:
            on_segment(number, thought)
    lines = [
        prompts.thought.format(start=_clock(t.start), end=_clock(t.end), answer=t.answer)
        for t in thoughts
    ]
    text = prompts.final.format(thoughts="\n".join(lines), question=question)
    config = model.config
    budget = max_frames or frame_budget(config, _prompt_length(processor, text))
    final = features.sample(budget, config.num_scenes, config.similarity_threshold)
    # The compressor reads the bare question; the thoughts are the language model's.
    answer = ask(model, processor, final, [text], [question], **generate)[0]
    return LongVideoAnswer(answer, thoughts)


def _segment_answers(
    model: TDCForConditionalGeneration,
    processor: TDCProcessor,
    features: VideoFeatures,
    prompts: Prompts,
    question: str,
    num_segments: int,
    end: float,
    options: dict[str, Any],
) -> tuple[SegmentAnswer, ...]:
    config = model.config
    parts = features.split(num_segments, config.num_scenes, config.similarity_threshold)
    # A part lasts until the next begins: thinned-out frames stand for more than a second each.
    starts = [parts.times[first] for first in parts.cu_frames[:-1]]
    spans = list(pairwise([*starts, max(end, parts.times[-1])]))
    texts = [
        prompts.segment.format(
            number=number + 1,
            total=len(spans),
            start=_clock(start),
            end=_clock(end),
            question=question,
        )
        for number, (start, end) in enumerate(spans)
    ]
    answers = ask(model, processor, parts, texts, [question] * len(texts), **options)
    return tuple(
        SegmentAnswer(start, end, answer)
        for (start, end), answer in zip(spans, answers, strict=True)
    )


def _clock(seconds: float) -> str:
    return clock(seconds, tenths=False)


def _prompt_length(processor: TDCProcessor, text: str) -> int:
    return len(processor.prompt_ids(chat_prompt(processor, text)))
