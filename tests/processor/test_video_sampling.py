# SPDX-License-Identifier: Apache-2.0
"""``fps``, ``num_frames``, ``start``, ``end`` wherever a video is named: frames, times, sound."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from clips import numbers_of, tone, write_clip
from toy import toy_config, toy_model, toy_processor, toy_sound

import tdc
from tdc import InputError
from tdc.media.audio import read_audio
from tdc.processor.media_inputs import load_video
from tdc.processor.video_sampling import VideoSampling
from tdc.session import Session


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Ten seconds at 8 frames per second; in second n a tone of 200 (n + 1) Hz."""
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    wave = np.concatenate([tone(1, hertz=200 * (n + 1)) for n in range(10)], axis=1)
    return write_clip(path, frames=80, fps=8, audio=wave, audio_codec="flac", audio_rate=16000)


def hertz(wave) -> int:
    """The loudest frequency."""
    spectrum = np.abs(np.fft.rfft(wave))
    return round(int(spectrum.argmax()) * 16_000 / len(wave))


def of_messages(processor, *parts, **options):
    content = [*parts, {"type": "text", "text": "?"}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


WAYS = {
    "part": lambda p, clip, **o: of_messages(p, {"type": "video", "path": clip, **o}),
    "beside messages": lambda p, clip, **o: of_messages(p, {"type": "video", "path": clip}, **o),
    "processor_kwargs": lambda p, clip, **o: of_messages(
        p, {"type": "video", "path": clip}, processor_kwargs={"videos_kwargs": o}
    ),
    "keyword": lambda p, clip, **o: p(text="<video>", videos=[clip], **o),
    "list": lambda p, clip, **o: p(text="<video>", videos=clip, **{k: [v] for k, v in o.items()}),
    "videos_kwargs": lambda p, clip, **o: p(text="<video>", videos=clip, videos_kwargs=o),
}


SLOWER = ("beside messages", "keyword", "videos_kwargs")


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow) if way in SLOWER else way for way in WAYS]
)
def test_every_way_takes_every_option(processor, clip, way):
    def made(**options):
        inputs = WAYS[way](processor, clip, **options)
        waves, lengths = inputs["waveforms"], inputs["waveform_lengths"].tolist()
        return inputs["frame_times"].tolist(), waves[0, : lengths[0]].numpy()

    times, wave = made(start=3, end=6)
    assert times == [3, 4, 5] and len(wave) == 48_000
    assert [hertz(wave[i : i + 16_000]) for i in (0, 16_000, 32_000)] == [800, 1000, 1200]
    times, wave = made(fps=2, end=2)
    assert times == [0, 0.5, 1, 1.5] and len(wave) == 32_000
    times, wave = made(num_frames=5)
    assert times == pytest.approx([0, 2, 4, 6, 8], abs=0.02) and len(wave) == 160_000
    assert made(nframes=4, video_start=8, video_end=10)[0] == pytest.approx([8, 8.5, 9, 9.5])
    assert made(fps=4, max_frames=5)[0] == [0, 2, 4, 6, 8]


def test_the_frames_are_those_of_the_times(clip):
    def numbers(**options):
        sampling = VideoSampling.of(options)
        medium = load_video(toy_config(), clip, False, 0, sampling=sampling)
        assert numbers_of(medium.frames) == [round(time * 8) for time in medium.times]
        return numbers_of(medium.frames), medium.span

    assert numbers(start=3, end=5.5) == ([24, 32, 40], (3, 5.5))
    assert numbers(fps=8, start=9.5) == ([76, 77, 78, 79], (9.5, 10))
    assert numbers(num_frames=4, start=2, end=4) == ([16, 20, 24, 28], (2, 4))


def test_videos_may_differ(processor, clip):
    parts = [
        {"type": "video", "path": clip, "start": 1, "end": 3},
        {"type": "video_url", "video_url": {"url": f"file://{clip}"}, "num_frames": 1},
        {"type": "video", "path": clip},
    ]
    inputs = of_messages(processor, *parts, fps=2, max_frames=4)
    assert inputs["media_frames"].tolist() == [4, 1, 4]
    assert inputs["frame_times"].tolist() == [1, 1.5, 2, 2.5, 0, 0, 2.5, 5, 7.5]
    assert inputs["media_spans"].tolist() == [[1, 3], [0, 10], [0, 10]]
    assert inputs["waveform_lengths"].tolist() == [32_000, 160_000, 160_000]
    two = processor(text="<video><video>", videos=[clip, clip], start=[1, 5], end=[3, None])
    assert two["media_spans"].tolist() == [[1, 3], [5, 10]]
    with pytest.raises(InputError, match="start has 1 entries for 2 videos"):
        processor(text="<video><video>", videos=[clip, clip], start=[1])


def test_sound_from_elsewhere_is_cut_to_the_same_range(processor, clip):
    wave = toy_sound(10)
    for audio in (wave, (wave, 16_000), clip):
        inputs = processor(text="<video>", videos=[clip], audio=[audio], start=2, end=4)
        assert inputs["waveform_lengths"].tolist() == [32_000]
    np.testing.assert_array_equal(
        processor(text="<video>", videos=[clip], audio=[wave], start=2, end=4)["waveforms"][0],
        wave[32_000:64_000],
    )


def test_a_sampling_rate_is_that_of_the_arrays(processor, clip):
    wave = (tone(4, rate=48_000, hertz=440)[0] * 32767).astype(np.int16)
    ways = (
        {"audio": [wave], "sampling_rate": 48_000},
        {"audio": wave, "audio_kwargs": {"sampling_rate": 48_000}},
        {"audio": [(wave, 48_000)], "sampling_rate": 8_000},
        {"audio": (wave, 48_000)},
        {"audio": {"array": wave, "sampling_rate": 48_000, "path": None}},
    )
    for options in ways:
        inputs = processor(text="<video>", videos=[clip], **options)
        heard = inputs["waveforms"][0].numpy()
        assert len(heard) == pytest.approx(64_000, abs=20)
        assert hertz(heard) == pytest.approx(440, abs=1)
        assert 0.45 < np.abs(heard).max() < 0.55
    part = {"type": "audio", "audio": (wave, 48_000)}
    inputs = of_messages(processor, {"type": "video", "path": clip}, part)
    assert hertz(inputs["waveforms"][0].numpy()) == pytest.approx(440, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 12}, "start: got 12.0 s, but .* is 10.00 s long"),
        ({"fps": 2, "num_frames": 3}, "fps and num_frames came together"),
        ({"fps": 2000}, "fps: got 2000, expected a number above 0, up to 1000"),
        ({"num_frames": 0}, "num_frames: got 0, expected at least 1"),
        ({"end": 0}, "end: got 0 s, expected more than start"),
        ({"sampling_rate": -1}, "audio: got a rate of int -1"),
    ],
)
def test_what_cannot_be_is_said(processor, clip, options, message):
    with pytest.raises(InputError, match=message):
        processor(text="<video>", videos=[clip], audio=[toy_sound(1)], **options)


def test_frames_beyond_the_budget_are_said(clip, caplog):
    processor = toy_processor(toy_config(max_context_length=150))
    with caplog.at_level(logging.WARNING, "tdc"):
        inputs = processor(text="<video>", videos=[clip], num_frames=10**12)
    kept = int(inputs["media_frames"])
    assert f"num_frames is {10**12}; {kept} evenly spaced frames fit" in caplog.text
    steps = np.diff(inputs["frame_times"])
    assert 1 < kept < 100 and np.allclose(steps, 10 / kept, atol=0.02)


# --- what the model makes of it ---


@pytest.mark.parametrize(
    ("alignment", "options"),
    [
        ("time", {}),
        ("release", {"fps": 2}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("release", {}),
                ("time", {"fps": 2}),
                ("time", {"fps": 0.5}),
                ("release", {"fps": 0.5}),
                ("time", {"num_frames": 2}),
                ("release", {"num_frames": 2}),
            )
        ),
    ],
)
def test_a_part_of_a_video_is_like_a_video_of_its_own(clip, alignment, options):
    config = toy_config(audio_alignment=alignment)
    model, processor = toy_model(config), toy_processor(config)
    frames = load_video(config, clip, False, 0, sampling=VideoSampling.of({"fps": 8})).frames
    frames, wave = frames[24:56], read_audio(clip)[48_000:112_000]
    part = processor(text="<video>", videos=[clip], start=3, end=7, **options)
    if "fps" in options:  # of an array the rate of its frames
        frames = frames[:: round(8 / options["fps"])]
    elif not options:
        frames = frames[::8]
    rate = {"fps": 8} if "num_frames" in options else {}
    alone = processor(text="<video>", videos=[frames], audio=[wave], **{**rate, **options})
    assert torch.equal(part["waveforms"], alone["waveforms"])
    assert torch.equal(part["siglip_pixels"], alone["siglip_pixels"])
    assert torch.equal(part["frame_times"] - 3, alone["frame_times"])
    features = [model.encode_video(**inputs) for inputs in (part, alone)]
    assert torch.equal(features[0].audio, features[1].audio)
    assert features[0].audio_lengths == features[1].audio_lengths
    assert all(features[0].audio_lengths) and features[0].times[0] == 3
    # No two frames hear the same: each has its own piece of the sound.
    assert len({tuple(tokens.flatten().tolist()) for tokens in features[0].audio}) == len(
        features[0].times
    )


def test_the_session_tells_times_of_the_whole_video(clip):
    config = toy_config(max_context_length=900)
    session = Session(toy_model(config), toy_processor(config), "a toy")
    video = session.watch(clip, start=2, end=8, fps=2)
    assert (video.start, video.end, video.duration) == (2, 8, 10)
    assert len(video.features.times) == 12 and video.features.times[0] == 2
    assert video.scenes[0].start == 2 and video.scenes[-1].end == 8
    options = {"max_new_tokens": 2, "segment_tokens": 2, "eos_token_id": None, "do_sample": False}
    thoughts = video.ask("?", segments=2, **options).thoughts
    assert [(t.start, t.end) for t in thoughts] == [(2, 5), (5, 8)]
    answer = tdc.answer_long_video(
        session.model, session.processor, clip, "?", 2, start=2, end=8, fps=2, **options
    )
    assert answer.segments == thoughts
    assert len(session.watch(clip, num_frames=5).features.times) == 5
