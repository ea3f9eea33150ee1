# SPDX-License-Identifier: Apache-2.0
"""Frames at given times: exact to the frame, whatever the timing, rotation or container."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from clips import number_of, numbered, numbers_of, tone, truncate, write_clip
from PIL import Image

from tdc.errors import InputError
from tdc.media.container import open_media, video_stream
from tdc.media.packets import FrameReader
from tdc.media.video import probe, read_image, read_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 s at 30 frames/s, a keyframe every 2 s, B-frames."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=300, gop=60)


def expected_numbers(times: list[float], samples: np.ndarray) -> list[int]:
    """The frame a player shows at each sample: the last whose time has come."""
    return [max(i for i, t in enumerate(times) if t <= s + 1e-4) for s in samples]


@pytest.mark.parametrize("fps", [0.25, 0.5, 1.0, 2.0, 7.0, 30.0])
def test_every_sample_is_the_frame_on_screen(clip: Path, fps: float) -> None:
    video = read_video(clip, fps=fps)
    np.testing.assert_allclose(video.timestamps, np.arange(np.ceil(10 * fps)) / fps)
    frames = [i / 30 for i in range(300)]
    assert numbers_of(video.frames) == expected_numbers(frames, video.timestamps)
    assert video.frames.dtype == np.uint8 and video.timestamps.dtype == np.float64
    assert video.size == (96, 64) and video.frames.shape[1:] == (64, 96, 3)
    assert video.duration == pytest.approx(10) and video.source_fps == pytest.approx(30)
    assert video.warnings == ()


def test_fractional_rate_does_not_drift(tmp_path: Path) -> None:
    rate = 30000 / 1001  # every 30th frame, the released way, would be frame 990 at 33 s
    path = write_clip(tmp_path / "ntsc.mp4", frames=1020, fps=rate, size=(32, 32))
    video = read_video(path, start=32)
    frames = [i / rate for i in range(1020)]
    assert expected_numbers(frames, np.array([32.0, 33.0, 34.0])) == [959, 989, 1018]
    assert numbers_of(video.frames) == [959, 989, 1018]


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rate(tmp_path: Path, name: str) -> None:
    times = [0, 0.1, 0.5, 2, 2.2, 2.9, 3.05, 5.0, 5.1, 5.2]
    video = read_video(write_clip(tmp_path / name, times=times), fps=2, end=5.4)
    assert numbers_of(video.frames) == [0, 2, 2, 2, 3, 4, 5, 6, 6, 6, 7]
    assert video.timestamps[-1] == 5.0


def test_more_samples_than_frames_repeats_what_is_shown(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "slow.mp4", frames=3, fps=1)
    assert numbers_of(read_video(path, fps=4).frames) == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_metadata(tmp_path: Path, rotation: int, flip: bool) -> None:
    path = write_clip(tmp_path / "turned.mp4", frames=61, rotation=rotation, flip=flip)
    video = read_video(path, fps=5)
    assert video.size == (96, 64)
    assert numbers_of(video.frames) == list(range(0, 61, 6))
    info = probe(path)
    assert (info.width, info.height) == (96, 64)
    if not flip:  # a mirrored picture has no rotation of its own
        assert info.rotation == rotation
    np.testing.assert_allclose(video.frames[5], numbered(30, (96, 64)), atol=60)


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_time_starts_with_the_video(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, times=[5 + i / 30 for i in range(60)])
    video = read_video(path, fps=4)
    assert video.duration == pytest.approx(2, abs=0.04)
    assert numbers_of(video.frames)[:8] == [0, 7, 15, 22, 30, 37, 45, 52]


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("a.webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "crf": "10"}),
        ("a.mkv", "libx264", "yuv420p", None),
        ("a.ts", "libx264", "yuv420p", None),
        ("a.avi", "mpeg4", "yuv420p", {"b": "2000000"}),
        ("a.mov", "mjpeg", "yuvj420p", {}),
        ("a.gif", "gif", "rgb8", {}),
    ],
)
def test_containers_and_codecs(
    tmp_path: Path, name: str, codec: str, pixels: str, options: dict[str, str] | None
) -> None:
    fps = 10 if codec == "gif" else 30
    path = write_clip(
        tmp_path / name, frames=3 * fps, fps=fps, codec=codec, pixels=pixels, options=options
    )
    video = read_video(path, fps=2)
    assert numbers_of(video.frames) == [i * fps // 2 for i in range(6)]
    assert probe(path).duration == pytest.approx(3, abs=0.05)
    assert probe(path).fps == pytest.approx(fps, rel=0.05)


def test_gif_painted_over_earlier_frames(tmp_path: Path) -> None:
    """Only what changed is stored: a picture taken without the ones before it has holes."""
    pictures = []
    for i in range(40):
        picture = np.full((48, 64, 3), 200, np.uint8)
        picture[:, : 1 + i] = 20
        pictures.append(Image.fromarray(picture).quantize(4))
    pictures[0].save(tmp_path / "p.gif", save_all=True, append_images=pictures[1:], duration=100)
    dark = (read_video(tmp_path / "p.gif").frames[:, 24, :, 0] < 110).sum(axis=1)
    assert dark.tolist() == [1, 11, 21, 31]


def test_last_frame_lasts_as_long_as_the_others(tmp_path: Path) -> None:
    """FLV states no durations at all: 60 frames at 30 frames/s are 2 s, not 1.97 s."""
    audio = tone(1, rate=44100)
    path = write_clip(tmp_path / "a.flv", frames=60, audio=audio, audio_rate=44100)
    assert probe(path).duration == pytest.approx(2, abs=0.005)
    assert numbers_of(read_video(path, fps=2).frames) == [0, 15, 30, 45]


def test_max_frames_chooses_like_the_release(clip: Path) -> None:
    video = read_video(clip, fps=5, max_frames=7)
    samples = [int(50 / 7 * i) for i in range(7)]
    assert samples == [0, 7, 14, 21, 28, 35, 42]
    np.testing.assert_allclose(video.timestamps, np.array(samples) / 5)
    assert numbers_of(video.frames) == [6 * s for s in samples]
    assert len(read_video(clip, fps=1, max_frames=10).frames) == 10


def test_range(clip: Path) -> None:
    video = read_video(clip, fps=2, start=3.25, end=5)
    np.testing.assert_allclose(video.timestamps, [3.25, 3.75, 4.25, 4.75])
    assert numbers_of(video.frames) == [97, 112, 127, 142]
    assert video.duration == pytest.approx(10)
    assert len(read_video(clip, end=99).frames) == 10


def test_one_frame(tmp_path: Path) -> None:
    video = read_video(write_clip(tmp_path / "one.mp4", frames=1))
    assert numbers_of(video.frames) == [0] and video.timestamps.tolist() == [0.0]
    assert video.duration > 0


@pytest.mark.parametrize("size", [(1000, 16), (16, 1000), (98, 66)])
def test_extreme_and_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    video = read_video(write_clip(tmp_path / "odd.mp4", frames=60, size=size), fps=2)
    assert video.size == size and video.frames.shape == (4, size[1], size[0], 3)
    if size[0] > 16:
        assert numbers_of(video.frames) == [0, 15, 30, 45]


def test_odd_width(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "odd.avi", frames=30, size=(97, 63), codec="rawvideo", options={})
    video = read_video(path, fps=4)
    assert video.size == (97, 63) and numbers_of(video.frames) == [0, 7, 15, 22]


def test_max_side_keeps_the_shape(clip: Path, tmp_path: Path) -> None:
    assert read_video(clip, max_side=48).size == (48, 32)
    assert read_video(clip, max_side=500).size == (96, 64)
    turned = write_clip(tmp_path / "t.mp4", frames=30, rotation=90)
    assert read_video(turned, max_side=48).size == (48, 32)


def decoded_frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """After a read, the number of frames the decoder gave."""
    counts: list[int] = []
    original = FrameReader.shown_at

    def shown_at(self, times):  # type: ignore[no-untyped-def]
        yield from original(self, times)
        counts.append(self.decoded)

    monkeypatch.setattr(FrameReader, "shown_at", shown_at)
    return counts


def test_decodes_no_more_than_it_must(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = decoded_frames(monkeypatch)
    read_video(clip, fps=0.25)  # 0, 4 and 8 s are keyframes: one frame each
    read_video(clip, fps=0.5, start=0.5)  # 0.5 s after a keyframe, five times
    read_video(clip, fps=1, end=2.5)
    read_video(clip, fps=30, start=9, max_frames=1)
    assert counts[0] == 3
    assert 5 * 10 <= counts[1] <= 5 * 16  # B-frames decoded after the wanted one are left out
    assert counts[2] <= 34  # 0 and 1 s from the first keyframe, 2 s is the second
    assert counts[3] <= 34


def test_reads_from_an_open_group_of_pictures(tmp_path: Path) -> None:
    """Leading B-frames need the group before; frames on either side of a keyframe stay right."""
    options = {"crf": "12", "x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
    path = write_clip(tmp_path / "open.ts", frames=120, gop=12, b_frames=3, options=options)
    video = read_video(path, fps=30)
    assert numbers_of(video.frames)[:120] == list(range(120))
    assert numbers_of(read_video(path, fps=1.6).frames) == [0, 18, 37, 56, 75, 93, 112]


def test_progress(clip: Path) -> None:
    calls: list[tuple[int, int]] = []
    read_video(clip, fps=0.5, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 5) for i in range(1, 6)]


def test_probe(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=60, audio=tone(2))
    info = probe(path)
    assert info.duration == pytest.approx(2) and info.fps == pytest.approx(30)
    assert (info.width, info.height, info.rotation, info.has_audio) == (96, 64, 0, True)
    assert (info.video_codec, info.audio_codec) == ("h264", "aac")
    silent = probe(write_clip(tmp_path / "b.mp4", frames=30))
    assert (silent.has_audio, silent.audio_codec) == (False, None)


@pytest.mark.parametrize(
    ("name", "options"), [("a.mkv", {}), ("a.mp4", {"movflags": "+faststart"})]
)
def test_cut_off_in_the_middle(
    tmp_path: Path, name: str, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    whole = write_clip(tmp_path / name, frames=300, container_options=options)
    cut = truncate(whole, tmp_path / f"cut-{name}", 0.6)
    with caplog.at_level(logging.WARNING):
        video = read_video(cut)
    assert 4 < video.duration < 8
    assert numbers_of(video.frames) == [30 * i for i in range(len(video.frames))]
    assert len(video.frames) == int(np.ceil(video.duration))
    [warning] = video.warnings
    assert warning == f"{cut} is cut off: it holds {video.duration:.1f} s of 10.0 s"
    assert warning in caplog.text
    assert read_video(cut, end=2).warnings == ()  # nothing of what was asked for is missing
    assert numbers_of(read_video(cut, max_frames=2).frames) == [
        0, 30 * int(len(video.frames) / 2)
    ]  # fmt: skip


def damage(path: Path, number: int) -> Path:
    """Zero one of the packets of an AVI."""
    with open_media(path) as container:
        packets = list(container.demux(video_stream(container)))
        position, size = [(p.pos, p.size) for p in packets if p.size][number]
    data = bytearray(path.read_bytes())
    data[position + 8 : position + 8 + size] = bytes(size)
    path.write_bytes(data)
    return path


def test_damage_in_the_middle(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.avi", frames=60, codec="mjpeg", pixels="yuvj420p", options={})
    path = damage(clip, 30)
    video = read_video(path, fps=2)
    assert numbers_of(video.frames) in ([0, 15, 15, 45], [0, 15, 29, 45])  # the last good picture
    assert video.warnings == (f"{path}: 1 damaged packets were skipped",)


def test_damage_at_the_beginning(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.avi", frames=60, codec="mjpeg", pixels="yuvj420p", options={})
    path = damage(clip, 0)
    assert (probe(path).width, probe(path).duration) == (96, pytest.approx(2))
    assert numbers_of(read_video(path, fps=2).frames) == [15, 15, 30, 45]


def one_line(caught: pytest.ExceptionInfo[InputError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_bad_files_get_one_line(tmp_path: Path) -> None:
    text, empty, noise = tmp_path / "t.txt", tmp_path / "e.mp4", tmp_path / "n.mp4"
    text.write_text("hello world\n" * 100)
    empty.write_bytes(b"")
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    image = tmp_path / "i.png"
    Image.fromarray(numbered(5, (96, 64))).save(image)
    sound = write_clip(tmp_path / "s.m4a", video=False, audio=tone(1))
    whole = write_clip(tmp_path / "w.mp4", frames=90)
    cut = truncate(whole, tmp_path / "c.mp4", 0.7)
    header = tmp_path / "h.mkv"
    header.write_bytes(write_clip(tmp_path / "w.mkv", frames=9).read_bytes()[:700])
    cases = {
        tmp_path / "none.mp4": f"no such file: {tmp_path}/none.mp4",
        tmp_path: f"{tmp_path} is a directory, expected a video",
        empty: f"not a video: {empty} is empty (0 bytes)",
        text: f"not a video: {text} is a text",
        image: f"not a video: {image} is an image (png)",
        noise: f"not a video: no known media format in {noise} (expected e.g. MP4, MKV or WebM)",
        sound: f"no video track in {sound}: it holds sound only",
        cut: f"not a video that can be read: {cut} was cut off, its index (the moov box at the "
        "end of an MP4) is missing; copy or download it again",
        header: f"no frames: the video track of {header} is empty",
    }
    for path, message in cases.items():
        for read in (read_video, probe):
            with pytest.raises(InputError) as caught:
                read(path)
            assert one_line(caught) == message


def test_cover_picture_is_no_video(tmp_path: Path) -> None:
    import av
    from av.stream import Disposition

    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic.value
        sound = out.add_stream("aac", rate=16000, layout="mono")
        out.mux(cover.encode(av.VideoFrame(96, 64, "yuvj420p")))
        out.mux(cover.encode())
        frame = av.AudioFrame.from_ndarray(tone(1), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    with pytest.raises(InputError, match=r"no video track in .*: it holds sound only"):
        read_video(path)


def test_nothing_decodes(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", frames=10, codec="mjpeg", pixels="yuvj420p", options={})
    with open_media(path) as container:
        spans = [(p.pos, p.size) for p in container.demux(video_stream(container)) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in spans:
        data[position + 8 : position + 8 + size] = bytes(size)
    path.write_bytes(data)
    for read in (read_video, probe):
        with pytest.raises(InputError, match=r"no frames: no picture of .* can be decoded"):
            read(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 0}, "fps: got 0, expected a number above 0"),
        ({"fps": float("nan")}, "fps: got nan, expected a number above 0"),
        ({"max_frames": 0}, "max_frames: got 0, expected at least 1"),
        ({"max_side": 0}, "max_side: got 0, expected at least 1"),
        ({"start": -1}, "start: got -1 s, expected 0 or more"),
        ({"start": 3, "end": 2}, "end: got 2 s, expected more than start (3 s)"),
        ({"start": 30}, "start: got 30 s, but {clip} is 10.00 s long"),
    ],
)
def test_bad_arguments(clip: Path, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_video(clip, **arguments)  # type: ignore[arg-type]
    assert one_line(caught) == message.format(clip=clip)


def test_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "plain.mp4", frames=30).rename(tmp_path / "a:b 100%d.mp4")
    monkeypatch.chdir(tmp_path)
    assert numbers_of(read_video("a:b 100%d.mp4", fps=2).frames) == [0, 15]


def test_read_image(tmp_path: Path) -> None:
    upright = numbered(19, (96, 64))
    Image.fromarray(upright).save(tmp_path / "i.png")
    np.testing.assert_array_equal(read_image(tmp_path / "i.png"), upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn clockwise by 90 degrees to view"
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "e.jpg", exif=exif, quality=95)
    turned = read_image(tmp_path / "e.jpg")
    assert turned.shape == (64, 96, 3) and number_of(turned) == 19
    Image.fromarray(upright[..., 0]).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").shape == (64, 96, 3)


def test_bad_images_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_text("no picture")
    Image.fromarray(numbered(19, (96, 64))).save(tmp_path / "w.jpg")
    truncate(tmp_path / "w.jpg", tmp_path / "c.jpg", 0.5)
    for name, message in {
        "none.png": "no such file: ",
        "": "is a directory, expected an image",
        "t.png": "not an image that can be read: ",
        "c.jpg": "not an image that can be read: ",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read_image(tmp_path / name)
        one_line(caught)
