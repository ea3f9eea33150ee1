# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from tdc.model import MEDIA_INPUTS
from tiny.eval.__main__ import main
from tiny.eval.evaluate import CONTROLS, Answered, Evaluation, evaluate
from tiny.model import new_model, new_processor
from tiny.world import BoundaryScores, ask, make_clip, render_frames, render_sound


@pytest.fixture(scope="module")
def tiny():
    model = new_model(0).eval()
    return model, new_processor(model.config)


def encoded(tiny, clips, **changes):
    model, processor = tiny
    inputs = processor(
        text=["<video>"] * len(clips),
        videos=[render_frames(clip) for clip in clips],
        audio=[render_sound(clip) for clip in clips],
    )
    media = {k: v for k, v in inputs.items() if k in MEDIA_INPUTS}
    with torch.inference_mode():
        return model.encode_video(**media, **changes)


def clips_of(*scenes):
    return [make_clip(3, i, split="test", scenes=n) for i, n in enumerate(scenes)]


def contexts(model, features):
    with torch.inference_mode():
        return model.build_context(features, torch.ones(features.num_videos, 4).long()).tokens


def test_selected_videos_are_the_videos_alone(tiny):
    model, _ = tiny
    clips = clips_of(1, 3, 2)
    together = encoded(tiny, clips).select([2, 0, 2])
    assert together.num_videos == 3
    for tokens, number in zip(contexts(model, together), (2, 0, 2), strict=True):
        (alone,) = contexts(model, encoded(tiny, [clips[number]]))
        torch.testing.assert_close(tokens, alone, rtol=1e-4, atol=1e-4)


def with_true_cuts(features, clips):
    boundaries = features.segmentation.boundaries
    for row, clip in zip(boundaries, clips, strict=True):
        row.fill_(clip.num_frames)
        row[: len(clip.cuts)] = torch.tensor(clip.cuts)
    return features


@torch.inference_mode()
def test_what_the_controls_take_away(tiny):
    model, _ = tiny
    clips = clips_of(2, 4)
    frames = [clip.num_frames for clip in clips]
    scenes = [len(clip.scenes) for clip in clips]
    whole = with_true_cuts(encoded(tiny, clips), clips)
    static, sound, dynamic = 20, model.config.audio_tokens_per_frame, 4

    def lengths(features):
        return [len(tokens) for tokens in contexts(model, features)]

    def expected(per_static, scenes, frames):
        return [per_static * s + dynamic * (f - s) + f for s, f in zip(scenes, frames, strict=True)]

    assert lengths(whole) == expected(static + sound, scenes, frames)
    silent = CONTROLS["sound removed"](whole)
    assert silent.audio is None and lengths(silent) == expected(static, scenes, frames)
    assert lengths(CONTROLS["one scene"](whole)) == expected(static + sound, [1, 1], frames)
    still = CONTROLS["dynamic tokens removed"](whole)
    assert lengths(still) == expected(static + sound, scenes, scenes)


def test_accuracy_and_the_best_constant():
    clip = make_clip(0, 0)
    colors = {q.answer: q for i in range(50) for q in ask(make_clip(0, i), 4, kinds=["color"])}
    red, blue = colors["red"], colors["blue"]
    sound = next(q for i in range(50) for q in ask(make_clip(0, i), 1, kinds=["sound"]))
    found = Evaluation(
        (
            Answered(clip, red, "red"),
            Answered(clip, red, "Red"),
            Answered(clip, blue, "red"),
            Answered(clip, sound, "nonsense"),
        ),
        BoundaryScores(),
    )
    assert found.accuracy() == 0.5 and found.accuracy("color") == pytest.approx(2 / 3)
    assert found.constant("color") == pytest.approx(2 / 3) and found.constant() == 0.75
    assert found.accuracy(needs="audio") == 0 and math.isnan(found.accuracy(needs="order"))


@pytest.mark.parametrize(
    ("said", "right"), [("red", True), ("RED", True), ("re", False), ("", False)]
)
def test_a_part_of_the_answer_is_not_the_answer(said, right):
    red = next(
        q for i in range(50) for q in ask(make_clip(0, i), 4, kinds=["color"]) if q.answer == "red"
    )
    assert Answered(make_clip(0, 0), red, said).right is right


@pytest.mark.parametrize("choice", [False, True])
def test_right_answers_are_found(tiny, monkeypatch, choice):
    """Through the model's own way of being asked, with somebody who knows the answers."""
    asked = [(clip, ask(clip, 3)) for clip in clips_of(1, 2)]
    known = {
        (q.choice if choice else q.text): (q.letter if choice else q.answer)
        for _, questions in asked
        for q in questions
    }
    seen = []

    def knows(model, processor, features, texts, **_):
        seen.append((features.num_videos, len(texts)))
        return [known[text].lower() for text in texts]

    monkeypatch.setattr("tiny.eval.evaluate.answer", knows)
    found = evaluate(*tiny, asked, choice=choice, files=False, batch=4)
    assert found.accuracy() == 1 and found.count() == 6
    assert seen == [(4, 4), (2, 2)]


def test_files_and_arrays_give_the_same_cuts(tiny):
    asked = [(clip, ask(clip, 1)) for clip in clips_of(3)]
    one, other = (evaluate(*tiny, asked, files=files) for files in (True, False))
    assert one.count() == other.count() == 1
    assert one.cuts.true == other.cuts.true == 2


def test_the_command(tiny, tmp_path, capsys):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = ["--model", str(tmp_path), "--clips", "2", "--questions", "2", "--seeds", "1"]
    assert main([*options]) == 0
    out = capsys.readouterr().out
    assert "1 set of 2 clips (standard, test), 4 questions" in out
    assert all(name in out for name in (*CONTROLS, "best constant", "cuts: F1"))
    assert main([*options, "--kind", "none"]) == 2
    assert "expected one of standard" in capsys.readouterr().err
