# SPDX-License-Identifier: Apache-2.0
"""``tdc.load(...).watch(...).ask(...)``: encoded once, asked any number of times."""

from __future__ import annotations

import threading

import pytest
import torch
from toy import QUESTION, toy_config, toy_model, toy_processor, toy_sound, toy_video

import tdc
from tdc.answer import ask
from tdc.session import Session

OPTIONS = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
FRAMES = 40


def toy_session(max_context_length):
    config = toy_config(max_context_length=max_context_length)
    return Session(toy_model(config), toy_processor(config), "a toy")


@pytest.fixture(scope="module")
def session():
    return toy_session(900)


@pytest.fixture(scope="module")
def narrow():
    """Not all frames have room in its context."""
    return toy_session(300)


@pytest.fixture
def encoded(session):
    """Frames of every call of the DINOv2 tower."""
    calls = []
    handle = session.model.video_encoder.dinov2.register_forward_pre_hook(
        lambda module, args: calls.append(len(args[0]))
    )
    yield calls
    handle.remove()


def watch(session, **options):
    return session.watch(toy_video(FRAMES, scenes=7), toy_sound(20), **options)


def test_one_encoding_for_all_questions(session, encoded):
    video = watch(session, max_frames=9)
    answers = [video.ask(question, **OPTIONS) for question in (QUESTION, "Why?", QUESTION)]
    assert encoded == [9]
    model, processor = session.model, session.processor
    assert answers[0] == ask(model, processor, video.features, [QUESTION], **OPTIONS)[0] != ""
    assert answers[0] == answers[2] != answers[1]
    assert answers[0].thoughts == () and isinstance(answers[0], str)


def test_no_graph_is_kept(session):
    video = watch(session, max_frames=4)
    assert torch.is_grad_enabled() and not video.features.visual.final().requires_grad
    assert not video.context(QUESTION).tokens[0].requires_grad


def test_frames_leave_room_for_the_question(narrow):
    short, long = watch(narrow), watch(narrow, question="why " * 10)
    assert len(long.features.times) < len(short.features.times) < FRAMES
    assert long.plan.cu_context[-1] < short.plan.cu_context[-1]
    assert torch.equal(short.plan.anchors, short.context().plan.anchors)
    assert len(short.context().tokens[0]) == short.plan.cu_context[-1]


def test_the_question_reaches_the_dynamic_tokens_alone(session):
    video = watch(session, max_frames=20)
    kinds = video.plan.kinds
    one, other = (video.context(question).tokens[0] for question in (QUESTION, "Who?"))
    same = (one == other).all(1)
    assert same[kinds != 1].all() and not same[kinds == 1].any() and (kinds == 1).any()


def test_what_was_found(session):
    video = watch(session, max_frames=20)
    assert video.duration == FRAMES and video.scenes[-1].end == FRAMES
    starts = video.features.segmentation.scene_starts()
    assert [scene.first_frame for scene in video.scenes] == starts
    assert sum(scene.frames for scene in video.scenes) == 20
    assert "dinov2_pixels" not in video.inputs and video.inputs["media_sizes"].tolist()
    assert "dinov2_pixels" in watch(session, max_frames=2, keep_media=True).inputs


def test_progress(session):
    told = []
    watch(session, max_frames=3, progress=lambda *step: told.append(step))
    assert told[-1] == ("encoding the frames", 6, 6)  # three frames through two towers
    assert [done for what, done, _ in told if what == "encoding the frames"] == [3, 6]


def test_a_file_is_decoded_under_progress(session, tmp_path):
    from clips import write_clip

    told = []
    path = write_clip(tmp_path / "v.mp4", frames=30, fps=10)
    video = session.watch(path, progress=lambda *step: told.append(step))
    assert ("decoding the video", 3, 3) in told and video.duration == 3


# --- streaming -----------------------------------------------------------------------------------


def test_pieces_are_the_answer(session):
    video = watch(session, max_frames=4)
    pieces = list(video.stream("one two three?", **OPTIONS))
    assert "".join(pieces).strip() == video.ask("one two three?", **OPTIONS)
    assert all(pieces)


def test_leaving_early_ends_the_answer(session):
    video = watch(session, max_frames=4)
    made = []
    handle = session.model.language_model.register_forward_hook(lambda *_: made.append(1))
    before = threading.active_count()
    pieces = video.stream(QUESTION, **{**OPTIONS, "max_new_tokens": 600})
    next(pieces)
    pieces.close()
    handle.remove()
    assert len(made) < 500 and threading.active_count() == before


def test_own_stopping_criteria_count_as_well(session):
    video = watch(session, max_frames=4)
    made = []

    def after_three(ids, scores):
        made.append(ids.shape[1])
        return torch.full((len(ids),), len(made) >= 3)

    list(video.stream(QUESTION, **OPTIONS, stopping_criteria=[after_three]))
    assert len(made) == 3


def test_a_failure_is_raised_where_the_pieces_are_read(session):
    video = watch(session, max_frames=4)
    with pytest.raises(tdc.InputError, match=r"the question has .* tokens"):
        list(video.stream("why " * 400, **OPTIONS))
    with pytest.raises(tdc.InputError, match="the question is empty"):
        list(video.stream(" \n", **OPTIONS))


# --- LVCoT ---------------------------------------------------------------------------------------


def test_segments_are_those_of_answer_long_video(session, encoded):
    told = []
    video = watch(session, question=QUESTION, segments=3)
    answer = video.ask(
        QUESTION, segments=3, on_segment=lambda *one: told.append(one), segment_tokens=4, **OPTIONS
    )
    assert encoded == [FRAMES]  # all of them have room in three segments
    expected = tdc.answer_long_video(
        session.model,
        session.processor,
        toy_video(FRAMES, scenes=7),
        QUESTION,
        3,
        audio=toy_sound(20),
        segment_tokens=4,
        **OPTIONS,
    )
    assert (answer, answer.thoughts) == (expected.answer, expected.segments)
    assert told == list(enumerate(answer.thoughts))


def test_more_segments_than_expected_encode_again_and_fewer_do_not(session, encoded):
    video = watch(session, max_frames=5)
    first = video.ask(QUESTION, segments=3, segment_tokens=4, **OPTIONS)
    assert encoded == [5, FRAMES]
    assert len(video.ask("Why?", segments=2, segment_tokens=4, **OPTIONS).thoughts) == 2
    assert video.ask(QUESTION, segments=3, segment_tokens=4, **OPTIONS) == first
    assert encoded == [5, FRAMES] and len(video.features.times) == 5


def test_told_of_segments_it_still_answers_directly(narrow):
    video = watch(narrow, question=QUESTION, segments=2)
    direct = watch(narrow, question=QUESTION)
    # Segments' prompts are so long here that a segment has room for three frames.
    assert len(video.features.times) == len(direct.features.times) < FRAMES
    assert video.ask(QUESTION, **OPTIONS) == direct.ask(QUESTION, **OPTIONS)


# --- what cannot be done -------------------------------------------------------------------------


def test_refusals(session, tmp_path):
    video = watch(session, max_frames=2)
    with pytest.raises(tdc.InputError, match="the question is empty"):
        video.ask("  ")
    with pytest.raises(tdc.InputError, match="segments is 0; expected at least 1"):
        video.ask("Who?", segments=0)
    with pytest.raises(tdc.InputError, match="no such folder: nowhere"):
        tdc.load("nowhere")
    with pytest.raises(tdc.InputError, match="no such file"):
        session.watch(tmp_path / "none.mp4")


def test_load_takes_the_tiny_model_and_a_dtype():
    session = tdc.load(device="cpu", dtype="bf16")
    assert session.tiny and session.model.dtype == torch.bfloat16
    assert not session.model.training
