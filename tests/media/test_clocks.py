# SPDX-License-Identifier: Apache-2.0
"""Clocks that a demuxer guesses wrong, and clocks that start again."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from clips import numbered, numbers_of, set_edits, tone, truncate, write_clip

from tdc.media.audio import read_audio
from tdc.media.video import probe, read_video


@pytest.mark.parametrize("first", [0.0, 5.0])
@pytest.mark.parametrize("fps", [0.5, 1, 2, 25])
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_no_b_frames(tmp_path: Path, name: str, fps: float, first: float) -> None:
    """Without decoding times FFmpeg takes the seventh frame of a slow MKV for its start."""
    times = [first + i / fps for i in range(20)]
    path = write_clip(tmp_path / name, times=times, fps=fps, b_frames=0, gop=1000)
    video = read_video(path, fps=fps)
    assert numbers_of(video.frames) == list(range(20)) and video.warnings == ()
    assert video.duration == pytest.approx(20 / fps, abs=0.05)


@pytest.mark.parametrize("first", [0.0, 5.0])
def test_sound_of_slow_pictures(
    tmp_path: Path, first: float, caplog: pytest.LogCaptureFixture
) -> None:
    times = [first + i for i in range(20)]
    path = write_clip(
        tmp_path / "a.mkv", times=times, fps=1, b_frames=0, audio=tone(1), audio_offset=first + 8
    )
    loud = np.flatnonzero(np.abs(read_audio(path)) > 0.1) / 16000
    assert loud[0] == pytest.approx(8, abs=0.07) and loud[-1] == pytest.approx(9, abs=0.07)
    assert not caplog.records


def join(target: Path, *parts: Path) -> Path:
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def part(
    path: Path, first: float, hertz: float = 440, b_frames: int = 2, seconds: float = 2
) -> Path:
    """2 s of a transport stream whose time stamps begin at `first` (s), with `seconds` of sound."""
    times = [first + i / 25 for i in range(50)]
    sound = tone(seconds, hertz=hertz) if seconds else None
    return write_clip(
        path, times=times, fps=25, audio=sound, audio_offset=first, b_frames=b_frames, gop=10
    )


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("starts", [(0, 0), (0, 0, 0), (1000, 0), (30, 20, 0), (9, 8)])
def test_time_stamps_that_start_again(
    tmp_path: Path, starts: tuple[float, ...], b_frames: int
) -> None:
    parts = [
        part(tmp_path / f"{i}.ts", first, 300 + 400 * i, b_frames) for i, first in enumerate(starts)
    ]
    path = join(tmp_path / "joined.ts", *parts)
    video = read_video(path, fps=5)
    assert video.duration == pytest.approx(2 * len(starts), abs=0.05)
    # FFmpeg calls a packet before each joint damaged, which it is not.
    assert numbers_of(video.frames) == [n for _ in starts for n in range(0, 50, 5)]
    assert video.warnings == ()
    wave = read_audio(path)
    assert len(wave) / 16000 == pytest.approx(2 * len(starts), abs=0.3)
    for i in range(len(starts)):
        spectrum = np.abs(np.fft.rfft(wave[i * 32000 + 8000 :][:16000]))
        assert spectrum.argmax() == pytest.approx(300 + 400 * i, abs=2)


def test_a_pause_is_none(tmp_path: Path) -> None:
    """A picture that stays for long is no other recording."""
    times = [0, 0.04, 0.08, 100, 100.04, 7000, 7000.04]
    path = write_clip(tmp_path / "a.mkv", times=times, b_frames=0)
    video = read_video(path, fps=0.02)
    assert video.duration == pytest.approx(7000.07, abs=0.1)
    assert numbers_of(video.frames) == [0, 2, 3] + [4] * 137 + [5]


def starts_of(wave: np.ndarray) -> list[float]:
    """Seconds at which sound begins after silence of 0.1 s or more, at 16 kHz."""
    loud = np.flatnonzero(np.abs(wave) > 0.1)
    return (loud[np.insert(np.diff(loud) > 1600, 0, True)] / 16000).tolist()


@pytest.mark.parametrize("starts", [(0, 0, 0), (30, 20, 10)])
def test_sound_stays_with_the_pictures_of_its_part(
    tmp_path: Path, starts: tuple[float, ...]
) -> None:
    """One shift for the file: sound that ends early in a part is no reason to move the next."""
    parts = [part(tmp_path / f"{i}.ts", first, seconds=0.5) for i, first in enumerate(starts)]
    path = join(tmp_path / "joined.ts", *parts)
    np.testing.assert_allclose(starts_of(read_audio(path)), [0, 2, 4], atol=0.03)
    silent = part(tmp_path / "silent.ts", starts[1], seconds=0)
    path = join(tmp_path / "joined.ts", parts[0], silent, parts[2])
    np.testing.assert_allclose(starts_of(read_audio(path)), [0, 4], atol=0.03)


def test_a_clock_that_jumps_ahead(tmp_path: Path) -> None:
    """In a transport stream that is a joint, as for FFmpeg's command; elsewhere it is a pause."""
    path = join(tmp_path / "j.ts", part(tmp_path / "0.ts", 0), part(tmp_path / "1.ts", 100))
    video = read_video(path, fps=5)
    assert numbers_of(video.frames) == 2 * list(range(0, 50, 5))
    [warning] = video.warnings
    assert "its time stamps jump ahead by 97.9 s, which are left out" in warning
    assert starts_of(read_audio(path)) == [pytest.approx(0, abs=0.03)]  # no pause


def test_a_second_video_track_is_said(tmp_path: Path) -> None:
    """As when recordings are joined whose tracks have other numbers."""
    other = write_clip(
        tmp_path / "1.ts", frames=50, fps=25, container_options={"mpegts_start_pid": "512"}
    )
    path = join(tmp_path / "joined.ts", part(tmp_path / "0.ts", 0, seconds=0.1), other)
    [warning] = read_video(path).warnings
    assert warning == f"{path}: only the main one of its 2 video tracks is read"


def test_pictures_without_their_keyframe(tmp_path: Path) -> None:
    """A recording that begins in the middle of a group of pictures."""
    data = part(tmp_path / "a.ts", 0, seconds=0.1).read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(data[:564] + data[len(data) // 6 // 188 * 188 :])
    video = read_video(path, fps=25)
    numbers = numbers_of(video.frames)
    assert numbers[0] % 10 == 0 and numbers == list(range(numbers[0], 50))
    [warning] = video.warnings
    assert "pictures before the first keyframe are left out" in warning


def test_missing_data_is_said(tmp_path: Path) -> None:
    data = part(tmp_path / "a.ts", 0, seconds=0.1).read_bytes()
    path = tmp_path / "hole.ts"
    path.write_bytes(data[: 188 * (len(data) // 470)] + data[188 * (len(data) // 376) :])
    [warning] = read_video(path).warnings
    assert warning == f"{path}: data is missing in 1 places; pictures after them may be wrong"


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(
    "edits",
    [
        [(1, 1), (3, 1)],
        [(2.4, 1), (0, 1)],  # the end before the beginning
        [(0.52, 1), (2.12, 1.2)],  # between keyframes: frames are decoded and not shown
        [(1, 1), (1, 1)],
    ],
)
def test_edit_lists_with_several_parts(
    tmp_path: Path, edits: list[tuple[float, float]], b_frames: int
) -> None:
    """A frame that is not shown may have the time stamp of one that is."""
    path = write_clip(tmp_path / "a.mp4", frames=100, fps=25, gop=20, b_frames=b_frames)
    set_edits(path, edits)
    expected = [round(25 * start) + i for start, length in edits for i in range(round(25 * length))]
    video = read_video(path, fps=25)
    shown = numbers_of(video.frames)
    # FFmpeg lets the last frame of a part stay for one more if frames follow that are not shown.
    assert [n for n, last in zip(shown, [-1, *shown], strict=False) if n != last] == expected
    assert video.duration == pytest.approx(len(expected) / 25, abs=0.041) and not video.warnings
    few = read_video(path, fps=2.5, max_frames=3)
    assert numbers_of(few.frames) == [shown[round(25 * time)] for time in few.timestamps]


def test_edit_list_that_begins_with_a_pause(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=100, fps=25, gop=20)
    set_edits(path, [(None, 1), (0.52, 1.4)])
    video = read_video(path, fps=5)
    assert numbers_of(video.frames) == list(range(13, 48, 5))
    assert video.duration == pytest.approx(1.4) and video.warnings == ()  # not cut off


@pytest.mark.parametrize(
    ("name", "codec", "b_frames"),
    [
        ("a.h264", "libx264", 0),
        ("a.h264", "libx264", 2),
        ("a.hevc", "libx265", 2),
        ("a.mjpeg", "mjpeg", 0),
    ],
)
def test_files_without_time_stamps(tmp_path: Path, name: str, codec: str, b_frames: int) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    options = {"libx265": {"x265-params": "log-level=none"}, "mjpeg": {"b": "4000000"}}.get(codec)
    times = [i / 25 for i in range(50)]
    path = write_clip(
        tmp_path / name, times=times, fps=25, codec=codec, pixels=pixels, gop=10,
        b_frames=b_frames, options=options,
    )  # fmt: skip
    video = read_video(path, fps=5)
    assert numbers_of(video.frames) == list(range(0, 50, 5))
    [warning] = video.warnings
    assert warning == f"{path}: it has no time stamps and is read at its nominal 25 frames/s"
    assert probe(path).duration == pytest.approx(2) and probe(path).fps == pytest.approx(25)
    assert numbers_of(read_video(path, start=1, end=1.5, fps=25).frames) == list(range(25, 38))[:13]


def test_most_packets_without_a_time_stamp(tmp_path: Path) -> None:
    """A program stream of H.264, as cameras write it: only the first packets have one."""
    path = write_clip(tmp_path / "a.vob", frames=50, fps=25, gop=10)
    video = read_video(path, fps=5)
    assert numbers_of(video.frames) == list(range(0, 50, 5))
    assert "pictures have no time stamp and are spread evenly" in video.warnings[0]


def test_ticks_as_long_as_a_frame(tmp_path: Path) -> None:
    """Half a tick is no rounding error there: at 6 s the frame of 10 s is not to be seen."""
    path = tmp_path / "a.y4m"
    pictures = [numbered(i, (96, 64))[..., 0].tobytes() + bytes([128]) * 3072 for i in range(5)]
    head = b"YUV4MPEG2 W96 H64 F1:10 Ip A1:1 C420jpeg\n"
    path.write_bytes(head + b"".join(b"FRAME\n" + picture for picture in pictures))
    video = read_video(path, fps=0.5)
    assert numbers_of(video.frames) == [i for i in range(5) for _ in range(5)]
    avi = write_clip(tmp_path / "a.avi", frames=25, fps=25, codec="mpeg4", options={"b": "2000000"})
    video = read_video(avi, fps=100)
    assert numbers_of(video.frames) == [i // 4 for i in range(100)]


@pytest.mark.parametrize("b_frames", [0, 2])
def test_avi_keeps_no_times_of_showing(tmp_path: Path, b_frames: int) -> None:
    """FFmpeg guesses them: out of order with B-frames, too early after a pause."""
    if b_frames and not hasattr(av.video.codeccontext.VideoCodecContext, "reorder_depth"):
        pytest.skip("PyAV before 17 does not say how many pictures come late")
    times = [0, 0.04, 0.08, 0.12, 0.16, 0.56, 0.6, 0.64, 0.68, 0.72]
    path = write_clip(tmp_path / "a.avi", times=times, fps=25, b_frames=b_frames, gop=100)
    video = read_video(path, fps=25)
    assert numbers_of(video.frames) == [0, 1, 2, 3, *[4] * 10, 5, 6, 7, 8, 9]
    assert video.duration == pytest.approx(0.76, abs=0.001)


def test_sound_and_pictures_of_avi_start_together(tmp_path: Path) -> None:
    sound = np.concatenate([np.zeros((1, 16000), np.float32), tone(0.5)], axis=1)
    path = write_clip(
        tmp_path / "a.avi", frames=50, fps=25, b_frames=0, audio=sound, audio_codec="pcm_s16le"
    )
    assert starts_of(read_audio(path)) == [pytest.approx(1, abs=0.02)]


def test_recovery_points_are_no_keyframes(tmp_path: Path) -> None:
    """With intra refresh they are marked as such, and pictures come only some frames later."""
    path = write_clip(
        tmp_path / "a.mp4", frames=100, fps=25, b_frames=0, gop=10,
        options={"crf": "12", "preset": "ultrafast", "x264-params": "intra-refresh=1"},
    )  # fmt: skip
    assert numbers_of(read_video(path, fps=2.5).frames) == list(range(0, 100, 10))


def test_last_frame_of_uneven_steps(tmp_path: Path) -> None:
    """A packet lasts until the next one is decoded: a pause is no part of the last frame."""
    times = [0, 0.04, 0.08, 0.12, 1.6, 1.64, 1.68]
    path = write_clip(tmp_path / "a.mp4", times=times, fps=25, gop=100)
    assert probe(path).duration == pytest.approx(1.72, abs=0.005)


@pytest.mark.parametrize("name", ["a.flv", "a.asf"])
def test_sound_longer_than_the_pictures_is_not_a_cut(tmp_path: Path, name: str) -> None:
    """Both headers state the length of the longest track."""
    codec = "flv" if name == "a.flv" else "wmv2"
    path = write_clip(
        tmp_path / name, frames=50, fps=25, codec=codec, options={"b": "2000000"},
        audio=tone(4, rate=44100), audio_rate=44100, audio_codec="libmp3lame",
    )  # fmt: skip
    video = read_video(path)
    assert video.duration == pytest.approx(2, abs=0.001) and video.warnings == ()
    assert len(read_audio(path)) / 16000 == pytest.approx(4, abs=0.1)
    if name == "a.flv":  # ASF loses its length together with its index
        [warning] = read_video(truncate(path, tmp_path / "cut.flv", 0.3)).warnings
        assert "is cut off" in warning
