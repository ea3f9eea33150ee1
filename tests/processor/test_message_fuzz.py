# SPDX-License-Identifier: Apache-2.0
"""Any messages and keywords: model inputs, or one line that says what is wrong."""

from __future__ import annotations

import base64
import io
import itertools
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy import toy_processor, toy_video

from tdc import InputError
from tdc.config import MEDIA_TOKEN_ID
from tdc.processor.prompt_text import special_tokens

PROCESSOR = toy_processor()
MARKS = ("<video>", "<image>", "<audio>", *special_tokens(PROCESSOR.tokenizer))
FRAMES = toy_video(3, (8, 6))


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(file, "PNG")
    return file.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(3200))
    return file.getvalue()


class Deep(list):
    """Lists in lists, with a name that can be printed."""

    def __init__(self, depth: int = 3000) -> None:
        value: list = []
        for _ in range(depth):
            value = [value]
        super().__init__(value)

    def __repr__(self) -> str:
        return "Deep()"


@pytest.fixture(scope="module", autouse=True)
def clip(tmp_path_factory):
    """A file that the strategies below name."""
    path = write_clip(tmp_path_factory.mktemp("fuzz") / "v.mp4", frames=6, fps=2, size=(32, 16))
    SOURCES.extend([str(path), path, f"file://{path}", path.read_bytes()])
    yield
    del SOURCES[-4:]


URL = "data:image/png;base64," + base64.b64encode(png()).decode()
SOURCES = [
    FRAMES,
    FRAMES[0],
    torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 255,
    [Image.fromarray(frame) for frame in FRAMES],
    Image.fromarray(FRAMES[0]).convert("RGBA"),
    np.zeros(1600, np.int16),
    (np.zeros(900, np.float32), 8000),
    URL,
    {"url": URL},
    [URL, URL],
    png(),
    wav(),
    io.BytesIO(wav()),
    {"bytes": png(), "path": None},
]
SOUND = {"data": base64.b64encode(wav()).decode(), "format": "wav"}
ODD = [
    {"data": "UklGRg==", "format": "wav"},
    SOUND,
    "no/such.mp4",
    "https://example.org/v.mp4",
    "s3://bucket/v.mp4",
    "file://else/v.mp4",
    "data:video/mp4;base64,@",
    "data:",
    "a\nb",
    "\0",
    "",
    b"",
    np.zeros((2, 3, 4, 3)),
    np.full((2, 4, 4, 3), 7.5),
    np.zeros((0, 4, 4, 3), np.uint8),
    np.zeros((2, 3), object),
    np.datetime64("2020-01-01"),
    torch.zeros(2, dtype=torch.bfloat16, requires_grad=True),
    io.StringIO("text"),
    object(),
    Deep(),
    [[1, 2], [3]],
    [],
    {},
    {"bytes": None},
    10**400,
    float("nan"),
    -1,
    0,
    True,
    {1: 2},
    [None],
    print,
    range(3),
]
TYPES = ["text", "video", "image", "audio", "video_url", "image_url", "audio_url", "input_audio"]
KEYS = ["fps", "num_frames", "nframes", "max_frames", "start", "end", "video_start", "video_end"]
KEYS += ["max_pixels", "min_frames", "detail"]
NUMBERS = [1, 2, 0.5, 3.0, np.float32(1.5), np.int64(2), None]
KEYWORDS = [
    "fps",
    "num_frames",
    "nframes",
    "max_frames",
    "start",
    "end",
    "sampling_rate",
    "padding",
]
KEYWORDS += ["truncation", "videos_kwargs", "audio_kwargs", "text_kwargs", "video_end", "progress"]
KEYWORDS += ["add_special_tokens", "return_tensors", "max_pixels", "tools", "colour", "question"]

texts = st.lists(st.text(st.characters(), max_size=9) | st.sampled_from(MARKS), max_size=4).map(
    "".join
)
anything = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def mostly(usual, odd, times: int = 15):
    """Of ``usual``, and once in so many times of ``odd``."""
    return st.integers(0, times).flatmap(lambda number: odd if number == 0 else usual)


sources = mostly(st.deferred(lambda: st.sampled_from(SOURCES)), anything, 6)
values = mostly(st.sampled_from(NUMBERS), sources | anything, 3)


@st.composite
def parts(draw):
    kind = draw(st.sampled_from(["text", "video", "image", *TYPES]))
    part = {"type": kind}
    if kind == "text":
        part["text"] = draw(texts)
    elif kind == "input_audio":
        part[kind] = draw(mostly(st.just(SOUND), sources))
    else:
        usual = kind if "_" in kind else draw(st.sampled_from([kind, "path", "url", "base64"]))
        part[usual] = draw(sources)
    if draw(st.integers(0, 4)) == 0:
        part[draw(st.sampled_from(KEYS))] = draw(values)
    if draw(st.integers(0, 29)) == 0:
        part[draw(st.sampled_from([*TYPES, "type", "typ", "", 5, None]))] = draw(anything)
    return part


@st.composite
def messages(draw):
    content = draw(texts | st.lists(mostly(parts(), anything, 40), max_size=3))
    message = {"role": draw(st.sampled_from(["user", "assistant", "system"])), "content": content}
    if draw(st.integers(0, 29)) == 0:
        message[draw(st.sampled_from(["role", "content", "rol", "tool_calls", 5]))] = draw(
            st.sampled_from(["tool", "", "<|im_end|>", "user\n", None]) | anything
        )
    return message


keywords = mostly(
    st.just({}),
    st.dictionaries(
        st.sampled_from(KEYWORDS),
        values | st.dictionaries(st.sampled_from(KEYWORDS), values, max_size=2),
        max_size=2,
    ),
    2,
)
chats = st.lists(mostly(messages(), anything, 50), min_size=1, max_size=3)
conversations = mostly(chats | chats | st.lists(chats, min_size=1, max_size=2), anything, 30)


def tried(call):
    """What the call returns; None where it refuses in one line."""
    try:
        return call()
    except InputError as error:
        assert str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 600
        return None


def check(conversation, options) -> None:
    inputs = tried(
        lambda: PROCESSOR.apply_chat_template(
            conversation, tokenize=True, return_dict=True, **options
        )
    )
    prompt = tried(lambda: PROCESSOR.apply_chat_template(conversation, **options))
    if inputs is None:
        return
    assert prompt is not None
    media = inputs["media_frames"] if "media_frames" in inputs else torch.zeros(0)
    assert (inputs["input_ids"] == MEDIA_TOKEN_ID).sum() == len(media)
    if len(media):
        assert len(inputs["frame_times"]) == media.sum() == len(inputs["siglip_pixels"])
    if isinstance(prompt, str) and prompt.isascii():
        row = inputs["input_ids"][0].tolist()
        read = PROCESSOR.tokenizer.decode([i for i in row if i != MEDIA_TOKEN_ID])
        assert read == without_placeholders(prompt)


def without_placeholders(prompt) -> str:
    pieces = PROCESSOR._split(prompt)
    return "".join(text for kind, text in pieces if kind != "medium")


@given(conversations, keywords)
def test_messages(conversation, options):
    check(conversation, options)


@pytest.mark.slow
@settings(max_examples=3000)
@given(conversations, keywords)
def test_many_messages(conversation, options):
    check(conversation, options)


media = mostly(sources | st.lists(sources, max_size=2), st.lists(st.lists(sources), max_size=2))


def call(text, videos, images, audio, options) -> None:
    if isinstance(text, str) and text == "fitting":
        counts = [len(m) if isinstance(m, list) else m is not None for m in (videos, images)]
        text = "<video>" * counts[0] + "<image>" * counts[1]
    inputs = tried(lambda: PROCESSOR(images, text, videos, audio, **options))
    assert inputs is None or inputs["input_ids"].shape == inputs["attention_mask"].shape


calls = given(
    mostly(st.just("fitting") | texts | st.lists(texts, max_size=3), anything),
    media,
    st.none() | media,
    st.none() | media,
    keywords,
)


@calls
def test_calls(text, videos, images, audio, options):
    call(text, videos, images, audio, options)


@pytest.mark.slow
@settings(max_examples=3000)
@calls
def test_many_calls(text, videos, images, audio, options):
    call(text, videos, images, audio, options)


def test_every_source_of_every_kind():
    for name, source in itertools.product(TYPES[1:], [*SOURCES, *ODD]):
        check([{"role": "user", "content": [{"type": name, name: source}]}], {})


def test_nothing_is_left_open():
    fds = Path("/proc/self/fd")
    if not fds.is_dir():
        pytest.skip("no list of open files")
    before = sorted(fds.iterdir())
    for source in (png(), io.BytesIO(b"none"), SOURCES[-1]):
        check([{"role": "user", "content": [{"type": "video", "video": source}]}], {})
    assert len(sorted(fds.iterdir())) == len(before)
