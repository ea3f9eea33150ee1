# SPDX-License-Identifier: Apache-2.0
"""However often a file is asked for, its packets are read once beside decoding."""

from __future__ import annotations

import wave

import pytest
from file_passes import watch_files
from toy import toy_config, toy_model, toy_processor

from tdc import answer_long_video
from tdc.media.media_file import MediaFile

VIDEO, SOUND = ("clip.mp4", "video"), ("clip.mp4", "audio")


@pytest.fixture
def passes(monkeypatch):
    return watch_files(monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        ["chat", "{clip}", "what happens?"],
        ["chat", "{clip}", "what happens?", "--lvcot", "2"],
        ["encode", "{clip}", "-o", "{out}/context.safetensors"],
        ["demo", "--video", "{clip}", "--out", "{out}"],
    ],
    ids=["chat", "chat --lvcot", "encode", "demo"],
)
def test_commands(tdc, clip, model_dir, tmp_path, passes, command):
    arguments = [word.format(clip=clip, out=tmp_path) for word in command]
    assert tdc(*arguments, "--model", model_dir).code == 0
    # The scan, the frames, the sound.
    assert passes.read == [VIDEO, VIDEO, SOUND]
    assert passes.opened == ["clip.mp4"] * 3


def test_sound_of_another_file(tdc, clip, model_dir, tmp_path, passes):
    with wave.open(str(tmp_path / "sound.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(bytes(32000))
    arguments = ["chat", clip, "what?", "--audio", tmp_path / "sound.wav", "--model", model_dir]
    assert tdc(*arguments).code == 0
    assert passes.read == [VIDEO, VIDEO, ("sound.wav", "audio")]


def test_processor(clip, passes):
    toy_processor(toy_config())(text="<video>", videos=[clip])
    assert passes.read == [VIDEO, VIDEO, SOUND]


def test_processor_takes_a_scanned_file(clip, passes):
    content = [{"type": "video", "path": MediaFile(clip).scan()}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": content}]
    processor = toy_processor(toy_config())
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert inputs["media_frames"].tolist() == [4] and "waveforms" in inputs
    assert passes.read == [VIDEO, VIDEO, SOUND]


def test_long_videos(clip, passes):
    config = toy_config(max_context_length=900)
    model, processor = toy_model(config), toy_processor(config)
    answer_long_video(model, processor, clip, "what?", 2, max_new_tokens=2, segment_tokens=2)
    assert passes.read == [VIDEO, VIDEO, SOUND]
