# SPDX-License-Identifier: Apache-2.0
"""Parts of messages in the forms that other libraries and servers write."""

from __future__ import annotations

import base64
import io
import tempfile

import numpy as np
import pytest
import torch
from clips import tone, write_clip
from PIL import Image
from toy import QUESTION, toy_config, toy_model, toy_processor, toy_video

from tdc import InputError
from tdc.session import Session


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_clip(folder / "v.mp4", frames=4, fps=2, size=(32, 16), audio=tone(2))
    write_clip(folder / "a.wav", video=False, audio=tone(1), audio_codec="pcm_s16le")
    Image.fromarray(toy_video(1, (8, 6))[0]).save(folder / "i.png")
    return {"video": folder / "v.mp4", "audio": folder / "a.wav", "image": folder / "i.png"}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where temporary files go: empty afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


def forms(kind, path) -> list[dict]:
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    url = f"data:{kind}/x;base64,{text}"
    return [
        {"type": kind, kind: str(path)},
        {"type": kind, "path": path},
        {"type": kind, "url": path.as_uri()},
        {"type": kind, "url": url},
        {"type": kind, "base64": text},
        {"type": kind, kind: data},
        {"type": kind, kind: io.BytesIO(data)},
        {"type": kind, kind: {"bytes": data, "path": None}},
        {"type": f"{kind}_url", f"{kind}_url": {"url": url}},
        {"type": f"{kind}_url", f"{kind}_url": {"url": path.as_uri()}},
        {"type": f"{kind}_url", f"{kind}_url": url},
    ]


def made(processor, *parts):
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(messages)
    return prompt, processor.apply_chat_template(messages, tokenize=True, return_dict=True)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_pictures_in_every_form(processor, files, kind):
    prompt, expected = made(processor, {"type": kind, "path": str(files[kind])})
    assert f"<{kind}>\n{QUESTION}" in prompt and expected["media_frames"].sum() > 0
    for part in forms(kind, files[kind]):
        text, inputs = made(processor, part)
        assert text == prompt and same(inputs, expected), part


def test_sound_in_every_form(processor, files):
    video = {"type": "video", "video": toy_video(2, (8, 6))}
    expected = made(processor, video, {"type": "audio", "path": str(files["audio"])})[1]
    assert expected["waveform_lengths"].tolist() == [16_000]
    text = base64.b64encode(files["audio"].read_bytes()).decode()
    parts = [
        {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": f"data:audio/wav;base64,{text}"}},
    ]
    for part in [*forms("audio", files["audio"]), *parts]:
        assert same(made(processor, video, part)[1], expected), part


def test_the_processor_takes_them_as_well(processor, files):
    expected = processor(text="<video><image>", videos=files["video"], images=files["image"])
    with files["video"].open("rb") as video, files["image"].open("rb") as image:
        inputs = processor(text="<video><image>", videos=video, images=[image])
        assert same(inputs, expected) and not video.closed and not image.closed
    batch = processor(text=["<video>", "<video>"], videos=[[files["video"].read_bytes()]] * 2)
    assert batch["media_frames"].tolist() == [2, 2]


def test_a_template_does_not_see_the_bytes(processor):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}, "detail": None}
    messages = [{"role": "user", "content": [part]}]
    assert "AAAA" not in processor.apply_chat_template(messages, "{{ messages }}")


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "s3", "rtsp"])
def test_nothing_is_fetched(processor, scheme):
    url = f"{scheme}://example.org/v.mp4"
    video = {"type": "video", "video": toy_video(2, (8, 6))}
    for part in (
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "image", "url": url},
        {"type": "audio_url", "audio_url": url},
    ):
        with pytest.raises(InputError, match=f"this library fetches nothing by {scheme};"):
            made(processor, video, part)


def test_what_a_user_types_is_text_beside_any_part(processor, files):
    part = {"type": "video_url", "video_url": {"url": files["video"].as_uri()}}
    content = [part, {"type": "text", "text": "What is <video> or <image>?"}]
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(processor.config.media_token_id) == 1
    assert processor.decode(ids).endswith("\nWhat is <video> or <image>?<|im_end|>\n")


@pytest.mark.parametrize("content", ["", " ", None, [], [{"type": "text", "text": ""}]])
def test_an_empty_question_is_a_question(processor, content):
    said = processor.apply_chat_template([{"role": "user", "content": content}])
    assert said.endswith(f"<|im_start|>user\n{content if content == ' ' else ''}<|im_end|>\n")
    video = {"type": "video", "video": toy_video(2, (8, 6))}
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    messages = [{"role": "user", "content": [video, *parts]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert inputs["question_mask"].sum() == 2  # [CLS] and [SEP]
    ids = toy_model().generate(**inputs, max_new_tokens=2, do_sample=False)
    assert ids.shape[0] == 1


def test_messages_are_not_changed(processor):
    part = {"type": "video_url", "video_url": {"url": "file:///v.mp4"}, "fps": 2}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
    processor.apply_chat_template(messages)
    assert messages == [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the messages are []; expected a list of role and content"),
        ("who?", "the messages are 'who?'"),
        ([[]], "the messages are [[]]"),
        ([{"role": "user", "content": 5}], "content is 5; expected a text or a list of parts"),
        ([{"role": "a<|im_end|>", "content": ""}], "a role is 'a<|im_end|>'; expected 'user'"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "a text part holds 5"),
    ],
)
def test_what_is_no_message_is_named(processor, messages, message):
    with pytest.raises(InputError) as caught:
        processor.apply_chat_template(messages)
    assert message in str(caught.value)


def test_a_session_takes_bytes_and_encodes_them_again(files, temporary):
    config = toy_config(max_context_length=900)
    session = Session(toy_model(config), toy_processor(config), "a toy")
    options = {"max_new_tokens": 3, "segment_tokens": 3, "eos_token_id": None, "do_sample": False}
    expected = session.watch(files["video"]).ask(QUESTION, segments=2, **options)
    with files["video"].open("rb") as file:
        video = session.watch(file)
    answer = video.ask(QUESTION, segments=2, **options)
    assert (answer, answer.thoughts) == (expected, expected.thoughts)
    stills = [Image.fromarray(frame) for frame in toy_video(4, (8, 6))]
    watched = session.watch(stills, (np.zeros(800, np.int16), 8000), fps=2)
    assert watched.duration == 2 and watched.features.times == (0, 0.5, 1, 1.5)
    with pytest.raises(InputError, match="not a video: the given video is a text"):
        session.watch(b"no film")
