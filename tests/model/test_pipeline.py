# SPDX-License-Identifier: Apache-2.0
"""``pipeline("image-text-to-text")`` with a video message, from a real file and a saved model."""

from __future__ import annotations

import pytest
from toy import toy_video
from transformers import pipeline

from tiny.world import make_clip, write_clip

CLIP = make_clip(0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, processor):
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    write_clip(path / "clip.mp4", CLIP)
    return path


@pytest.fixture(scope="module")
def answerer(folder):
    return pipeline("image-text-to-text", model=str(folder))


def message(kind: str, source, text: str) -> list[dict]:
    parts = [{"type": kind, kind: source}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def test_a_video_message(answerer, folder, model, processor):
    messages = message("video", str(folder / "clip.mp4"), "What happens?")
    options = {"max_new_tokens": 5, "do_sample": False}
    (result,) = answerer(text=messages, generate_kwargs=options, return_full_text=False)
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    assert inputs["media_frames"].tolist() == [CLIP.num_frames] and "waveforms" in inputs
    ids = model.generate(**inputs, **options)
    assert result["generated_text"] == processor.batch_decode(ids, skip_special_tokens=True)[0]


def test_an_image_message(answerer):
    messages = message("image", toy_video(1)[0], "What is it?")
    (result,) = answerer(text=messages, generate_kwargs={"max_new_tokens": 3})
    history = result["generated_text"]
    assert isinstance(history, (str, list))
    answer = history if isinstance(history, str) else history[-1]["content"]
    assert isinstance(answer, str)
