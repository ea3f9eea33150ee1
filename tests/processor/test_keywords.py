# SPDX-License-Identifier: Apache-2.0
"""Nothing is dropped in silence: keywords, message keys and part keys that nobody reads."""

from __future__ import annotations

import pytest
from toy import QUESTION, toy_processor, toy_sound, toy_video
from train_samples import calm_config

from tdc import InputError

VIDEO = {"type": "video", "video": toy_video(3)}
TEXT = {"type": "text", "text": QUESTION}


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def refused(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ({"max_frame": 2}, "unknown keyword 'max_frame'; did you mean 'max_frames'?"),
        ({"num_frame": 2}, "unknown keyword 'num_frame'; did you mean 'num_frames'?"),
        ({"video_strat": 2}, "unknown keyword 'video_strat'; did you mean 'video_start'?"),
        ({"max_pixels": 2}, "keyword 'max_pixels': leave it out: the vision towers see"),
        ({"fps": 2, "videos_kwargs": {"fps": 2}}, "fps stands in videos_kwargs as well"),
        ({"videos_kwargs": 3}, "videos_kwargs is 3; expected a dict"),
        ({"truncation": True}, "keyword truncation is True; expected False"),
        ({"max_length": 20}, "keyword max_length is 20; expected None"),
        ({"padding": "max_length"}, "keyword padding is 'max_length'; expected True or"),
        ({"padding_side": "right"}, "keyword padding_side is 'right'; expected 'left'"),
        ({"videos_kwargs": {"fp": 2}}, "unknown key of videos_kwargs 'fp'; did you mean 'fps'?"),
        ({"text_kwargs": {"truncation": True}}, "keyword truncation is True"),
    ],
)
def test_keywords_without_effect_are_named(processor, keyword, message):
    direct = {"text": "<video>", "videos": [VIDEO["video"]], "audio": [False]}
    assert refused(lambda: processor(**direct, **keyword)).startswith(message)
    messages = user(VIDEO, TEXT)
    for options in (keyword, {"processor_kwargs": keyword}):
        for tokenize in (True, False):
            line = refused(
                lambda o=options, t=tokenize: processor.apply_chat_template(
                    messages, tokenize=t, **o
                )
            )
            assert line.startswith(message)


def test_usual_keywords_are_accepted_and_max_frames_is_honoured(processor):
    usual = {"padding": True, "truncation": None, "return_tensors": "pt", "max_frames": 2}
    usual |= {"text_kwargs": {"padding": True}, "videos_kwargs": {}, "add_special_tokens": False}
    inputs = processor.apply_chat_template(
        user(VIDEO, TEXT),
        tokenize=True,
        return_dict=True,
        processor_kwargs=usual,
        tools=None,
        padding=True,
    )
    assert inputs["media_frames"].tolist() == [2]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({**VIDEO, "fsp": 2}, "unknown key of a video part 'fsp'; did you mean 'fps'?"),
        ({**VIDEO, "min_frames": 8}, "key of a video part 'min_frames': expected fps or num_"),
        ({**VIDEO, "max_pixels": 9}, "key of a video part 'max_pixels': leave it out"),
        ({**VIDEO, "start": 2, "end": 1}, "end: got 1 s, expected more than start (2 s)"),
        ({**VIDEO, "start": -1}, "start: got -1 s, expected 0 or more"),
        ({**VIDEO, "fps": 0}, "fps: got 0, expected a number above 0"),
        ({**VIDEO, "fps": "2"}, "fps is '2'; expected a number"),
        ({**VIDEO, "nframes": 2.5}, "nframes is 2.5; expected a whole number"),
        ({**VIDEO, "nframes": 2, "num_frames": 2}, "nframes and num_frames are the same"),
        ({**VIDEO, "pth": "a"}, "unknown key of a video part 'pth'; did you mean 'path'?"),
        ({"type": "vide_url"}, "unknown part type 'vide_url'; did you mean 'video_url'?"),
        ({"type": "video_url", "url": "a"}, "unknown key of a video_url part 'url'; expected type"),
        ({"type": "video_url", "video_url": {"path": "a"}}, "unknown key of video_url 'path'"),
        ({"type": "video_url"}, "a video_url part names no file; expected a 'video_url'"),
        ({"type": "input_audio", "input_audio": "a"}, "input_audio is 'a'; expected a dict with"),
        (
            {"type": "image_url", "image_url": {"url": "a", "detail": "high"}},
            "detail of image_url is 'high'; expected 'auto'",
        ),
        ({"text": "who?"}, "unknown part type 'None'; expected text, video"),
        ({"type": "text", "content": "who?"}, "unknown key of a text part 'content'"),
        ("who?", "a part is 'who?'; expected a dict with a 'type'"),
        ({**VIDEO, "path": "b.mp4"}, "a video part names video and path; expected one"),
    ],
)
def test_parts_that_nobody_reads_are_named(processor, part, message):
    def render():
        return processor.apply_chat_template(user(VIDEO, part, TEXT), tokenize=True)

    assert refused(render).startswith(message)


def test_keys_that_a_data_set_filled_with_none_are_no_keys(processor):
    filled = [{"image": None, "fps": None, "path": None, "text": None} | VIDEO]
    inputs = processor.apply_chat_template(
        user(*filled, {"video": None} | TEXT), tokenize=True, return_dict=True
    )
    assert inputs["media_frames"].tolist() == [3]


def test_messages_that_nobody_reads_are_named(processor):
    def render(**changes):
        message = {"role": "user", "content": "who?"} | changes
        return lambda: processor.apply_chat_template([{k: v for k, v in message.items() if v}])

    assert "unknown message key 'rol'; did you mean 'role'?" in refused(render(rol="user"))
    assert "expected a dict of role and content" in refused(render(content=""))


def test_sound_without_a_video_to_itself_is_named(processor):
    sound = {"type": "audio", "audio": toy_sound(1)}
    twice = user(VIDEO, sound, sound, TEXT)
    assert "two audio parts" in refused(lambda: processor.apply_chat_template(twice, tokenize=True))
    assert "audio came without videos" in refused(lambda: processor(text="a", audio=toy_sound(1)))


def test_variables_of_the_template_reach_it():
    processor = toy_processor(calm_config())
    processor.chat_template = "{{ messages[0].content }} {{ mood }}"
    said = [{"role": "user", "content": "who?"}]
    assert processor.apply_chat_template(said, mood="brief") == "who? brief"
    assert "'mod'" in refused(lambda: processor.apply_chat_template(said, mod="brief"))
