# SPDX-License-Identifier: Apache-2.0
"""LVCoT: N segments of one encoding, answered as one batch, then the final answer."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from toy import toy_config, toy_model, toy_processor, toy_sound, toy_video

from tdc import InputError, answer_long_video
from tdc.answer import ask as ask_model
from tdc.lvcot import PROMPTS, Prompts
from tdc.media.clock import clock
from tdc.model import MEDIA_INPUTS

FRAMES = 40
QUESTION = "What moves?"
GREEDY = {"do_sample": False, "max_new_tokens": 6, "segment_tokens": 4}


@pytest.fixture(scope="module")
def pair():
    config = toy_config(max_context_length=900)
    return toy_model(config), toy_processor(config)


@pytest.fixture
def calls(pair, monkeypatch):
    """What runs how often: batch sizes of generate, frames of each tower, prompts."""
    model, processor = pair
    seen = {"generate": [], "siglip": [], "dinov2": [], "beats": [], "prompts": []}
    generate, encode = model.generate, processor.encode_prompts

    def counted(*args, **kwargs):
        seen["generate"].append((len(kwargs["input_ids"]), kwargs["max_new_tokens"]))
        return generate(*args, **kwargs)

    def spelled(prompts, questions=None):
        if questions is not None:
            seen["prompts"].append(list(zip(prompts, questions, strict=True)))
        return encode(prompts, questions)

    monkeypatch.setattr(model, "generate", counted)
    monkeypatch.setattr(processor, "encode_prompts", spelled)
    handles = [
        getattr(model.video_encoder, part).register_forward_pre_hook(
            lambda module, args, part=part: seen[part].append(len(args[0]))
        )
        for part in ("siglip", "dinov2", "beats")
    ]
    yield seen
    for handle in handles:
        handle.remove()


def ask(pair, segments, **options):
    video, sound = toy_video(FRAMES, scenes=7), toy_sound(20)
    return answer_long_video(*pair, video, QUESTION, segments, audio=sound, **{**GREEDY, **options})


def assert_covered(thoughts) -> None:
    """The segments' spans are the whole video, without gap or overlap."""
    assert thoughts[0].start == 0 and thoughts[-1].end == FRAMES
    assert all(before.end == after.start for before, after in pairwise(thoughts))
    assert all(thought.end > thought.start for thought in thoughts)


@pytest.mark.parametrize("segments", [1, 2, 3, 5, 10])
def test_segments(pair, calls, segments):
    told = []
    result = ask(
        pair, segments, max_frames=20, on_segment=lambda number, s: told.append((number, s))
    )
    # One batch of all segments, then the final answer; nothing is encoded twice.
    batches = [(segments, 4)] if segments > 1 else []
    assert calls["generate"] == [*batches, (1, 6)]
    frames = min(FRAMES, 20 * segments)
    assert calls["siglip"] == calls["dinov2"] == [frames]
    assert len(calls["beats"]) == 1
    thoughts = result.segments
    assert len(thoughts) == (segments if segments > 1 else 0)
    assert told == list(enumerate(thoughts))
    if thoughts:
        assert_covered(thoughts)
        assert all(thought.answer for thought in thoughts)
    assert ask(pair, segments, max_frames=20) == result


def test_spans_cover_a_video_that_was_thinned_out(pair, calls):
    result = ask(pair, 2, max_frames=5)
    assert calls["dinov2"] == [10]
    assert [(s.start, s.end) for s in result.segments] == [(0, 20), (20, 40)]
    assert_covered(ask(pair, 3, max_frames=3).segments)


def test_prompts(pair, calls):
    result = ask(pair, 3)
    segments, final = calls["prompts"]
    for number, (prompt, question) in enumerate(segments):
        part = result.segments[number]
        span = rf"from {_clock(part.start)} to {_clock(part.end)}"
        assert re.search(rf"<video>\nThis is part {number + 1} of 3 .* {span}\. ", prompt)
        assert prompt.endswith(f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
        assert question == QUESTION  # the compressor reads the bare question
    thoughts = "\n".join(f"{_clock(s.start)}-{_clock(s.end)}: {s.answer}" for s in result.segments)
    ((prompt, question),) = final
    assert "<video>\n" + PROMPTS.final.format(thoughts=thoughts, question=QUESTION) in prompt
    assert question == QUESTION


def test_prompts_in_other_words(pair, calls):
    words = Prompts("part {number}/{total}: {question}", "{answer}!", "{thoughts} So {question}")
    result = ask(pair, 2, prompts=words)
    segments, ((final, _),) = calls["prompts"]
    assert all(f"part {n}/2: {QUESTION}<" in p for n, (p, _) in enumerate(segments, 1))
    first, second = (segment.answer for segment in result.segments)
    assert f"<video>\n{first}!\n{second}! So {QUESTION}<" in final


def test_segment_answers_are_those_of_the_segments_alone(pair):
    """A batched segment answers as if its frames were asked about on their own."""
    model, processor = pair
    result = ask(pair, 2)
    inputs = processor(
        text="<video>", videos=[toy_video(FRAMES, scenes=7)], audio=[toy_sound(20)], max_frames=99
    )
    media = {name: inputs[name] for name in MEDIA_INPUTS if name in inputs}
    with torch.no_grad():
        whole = model.encode_video(keep_dinov2=True, **media)
    second = whole.take([range(20, 40)], whole._cut([range(20, 40)], 4, None))
    prompt = PROMPTS.segment.format(
        number=2, total=2, start=_clock(20), end=_clock(40), question=QUESTION
    )
    options = {"do_sample": False, "max_new_tokens": 4}
    alone = ask_model(model, processor, second, [prompt], [QUESTION], **options)
    assert alone == [result.segments[1].answer]


def test_fewer_frames_than_segments(pair):
    result = answer_long_video(*pair, toy_video(3), QUESTION, 10, **GREEDY)
    assert [(s.start, s.end) for s in result.segments] == [(0, 1), (1, 2), (2, 3)]


def test_the_final_answer_streams_and_segments_do_not(pair):
    class Collector:
        pieces = 0

        def put(self, value):
            self.pieces += 1

        def end(self):
            pass

    streamer = Collector()
    ask(pair, 2, streamer=streamer, eos_token_id=None)
    assert 6 <= streamer.pieces <= 7  # the prompt may be announced


def _clock(seconds):
    return clock(seconds, tenths=False)


def test_clock_without_tenths():
    assert [_clock(s) for s in (0, 83.96, 3683)] == ["0:00", "1:23", "1:01:23"]


def test_what_cannot_be_done_is_said(pair):
    with pytest.raises(ValueError, match="num_segments is 0; expected at least 1"):
        ask(pair, 0)
    with pytest.raises(InputError, match=r"the question has .* tokens"):
        answer_long_video(*pair, toy_video(4), "why " * 300, 2, **GREEDY)
