# SPDX-License-Identifier: Apache-2.0
"""Clocks that a demuxer guesses wrong, and clocks that start again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clips import numbers_of, tone, write_clip

from tdc.media.audio import read_audio
from tdc.media.video import read_video


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


def part(path: Path, first: float, hertz: float = 440, b_frames: int = 2) -> Path:
    """2 s of a transport stream whose time stamps begin at `first` (s)."""
    times = [first + i / 25 for i in range(50)]
    sound = tone(2, hertz=hertz)
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
    # FFmpeg calls a packet at each joint damaged; a frame there may be one off.
    expected = [n for _ in starts for n in range(0, 50, 5)]
    assert np.abs(np.array(numbers_of(video.frames)) - expected).max() <= 1
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
