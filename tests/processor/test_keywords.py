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
        ({"num_frames": 2}, "unknown keyword 'num_frames'; did you mean 'max_frames'?"),
        ({"fps": 2}, "unknown keyword 'fps'; expected "),
        ({"truncation": True}, "keyword truncation is True; expected False"),
        ({"max_length": 20}, "keyword max_length is 20; expected None"),
        ({"padding": "max_length"}, "keyword padding is 'max_length'; expected True or"),
        ({"padding_side": "right"}, "keyword padding_side is 'right'; expected 'left'"),
        ({"sampling_rate": 48_000}, "keyword sampling_rate is 48000; expected 16000"),
        ({"videos_kwargs": {"fps": 2}}, "unknown key of videos_kwargs 'fps'; expected "),
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
        ({**VIDEO, "fps": 2}, "unknown key of a video part 'fps'; expected type, video, path"),
        ({**VIDEO, "nframes": 8}, "unknown key of a video part 'nframes'"),
        ({**VIDEO, "video_start": 1.0}, "unknown key of a video part 'video_start'"),
        ({**VIDEO, "pth": "a"}, "unknown key of a video part 'pth'; did you mean 'path'?"),
        ({"type": "video_url", "video_url": {"url": "a"}}, "unknown part type 'video_url'; did"),
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
