# SPDX-License-Identifier: Apache-2.0
"""The demonstration clip is what it says it is, and files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tdc.clip
from tdc._media import whole_file
from tdc.audio import read_audio
from tdc.clip import DemoClip, write_demo_clip
from tdc.errors import InputError
from tdc.video import probe, read_video


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoClip:
    return write_demo_clip(tmp_path_factory.mktemp("demo") / "demo.mp4", size=(160, 120), fps=10)


def test_file_matches_the_description(demo: DemoClip) -> None:
    info = probe(demo.path)
    assert (info.width, info.height) == demo.size == (160, 120)
    assert info.duration == pytest.approx(24) and info.fps == pytest.approx(10)
    assert info.has_audio and info.audio_codec == "aac"
    assert (info.video_codec == "h264") == (demo.video_codec == "H.264")
    assert len(read_audio(demo.path)) / 16000 == pytest.approx(24, abs=0.05)


def test_scenes_are_cut_where_it_says(demo: DemoClip) -> None:
    assert len(demo.scene_starts) == len(demo.scenes) == 6 == len(set(demo.scenes))
    assert demo.scene_starts[0] == 0
    assert all(start % 1 == 0.5 for start in demo.scene_starts[1:])
    assert min(np.diff([*demo.scene_starts, demo.seconds])) >= 2
    frames = read_video(demo.path).frames.reshape(24, -1).astype(np.float64)
    length = np.linalg.norm(frames, axis=1)
    similarity = (frames[1:] * frames[:-1]).sum(axis=1) / (length[1:] * length[:-1])
    lowest = np.sort(np.argsort(similarity)[:5]) + 1
    assert lowest.tolist() == [int(start + 0.5) for start in demo.scene_starts[1:]]
    assert similarity.max() < 0.9999  # something moves in every scene


def test_cuts_fall_on_the_frame(demo: DemoClip) -> None:
    frames = read_video(demo.path, fps=10).frames.astype(np.float64)
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    cuts = np.sort(np.argsort(change)[-5:]) + 1
    assert cuts.tolist() == [round(start * 10) for start in demo.scene_starts[1:]]


def test_every_scene_has_its_own_sound(demo: DemoClip) -> None:
    wave = read_audio(demo.path)
    colours = []
    for start, end in zip(demo.scene_starts, [*demo.scene_starts[1:], 24.0], strict=True):
        part = wave[int((start + 0.1) * 16000) : int((end - 0.1) * 16000)]
        assert np.sqrt((part**2).mean()) > 0.03
        bands = np.abs(np.fft.rfft(part, 4000 * (len(part) // 4000)))
        energy = np.array([b.sum() for b in np.array_split(bands, 40)])
        colours.append(energy / np.linalg.norm(energy))
    alike = np.array(colours) @ np.array(colours).T
    assert (alike[~np.eye(6, dtype=bool)] < 0.97).all()


def test_same_seed_same_clip_other_seed_another(tmp_path: Path) -> None:
    clips = [
        write_demo_clip(tmp_path / f"{i}.mp4", seconds=9, size=(64, 48), fps=5, seed=seed)
        for i, seed in enumerate([1, 1, 2])
    ]
    pixels = [read_video(c.path).frames for c in clips]
    np.testing.assert_array_equal(pixels[0], pixels[1])
    assert clips[0].path.read_bytes() == clips[1].path.read_bytes()
    assert (pixels[0] != pixels[2]).any()


@pytest.mark.parametrize(("seconds", "scenes"), [(0.2, 1), (2, 1), (7, 2), (30, 8)])
def test_lengths(tmp_path: Path, seconds: float, scenes: int) -> None:
    clip = write_demo_clip(tmp_path / "c.mp4", seconds=seconds, size=(48, 32), fps=5)
    assert len(clip.scene_starts) == scenes
    assert probe(clip.path).duration == pytest.approx(seconds, abs=0.11)
    assert len(set(clip.scenes)) == scenes  # the second round is told apart


def test_says_so_without_h264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tdc.clip.av, "codecs_available", {"mpeg4", "aac"})
    clip = write_demo_clip(tmp_path / "c.mp4", seconds=1, size=(48, 32), fps=5)
    assert clip.video_codec == "MPEG-4 Part 2 (no libx264 in this FFmpeg)"
    assert probe(clip.path).video_codec == "mpeg4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (33, 40)}, "size: got 33x40, expected even numbers, at least 32"),
        ({"size": (320, 16)}, "size: got 320x16, expected even numbers, at least 32"),
        ({"fps": 0}, "fps: got 0, expected 1 to 60"),
        ({"seconds": 0}, "seconds: got 0, expected at least one frame (1/15 s)"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        write_demo_clip(tmp_path / "c.mp4", **arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_no_half_written_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "c.mp4"
    target.write_bytes(b"what was there before")
    pictures = tdc.clip._pictures

    def interrupted(*args: object) -> object:
        for i, picture in enumerate(pictures(*args)):  # type: ignore[arg-type]
            if i == 5:
                raise KeyboardInterrupt
            yield picture

    monkeypatch.setattr(tdc.clip, "_pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_demo_clip(target, seconds=3, size=(48, 32), fps=5)
    assert target.read_bytes() == b"what was there before"
    assert [p.name for p in tmp_path.iterdir()] == ["c.mp4"]


def test_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with whole_file(target) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path
        temporary.write_text("new")
        temporary.chmod(0o600)  # as safetensors leaves it
        assert not target.exists()
    assert target.read_text() == "new"
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    for bad, message in {
        tmp_path / "no" / "a.txt": f"no such directory: {tmp_path}/no",
        tmp_path: "it is a directory",
    }.items():
        with pytest.raises(InputError, match=message), whole_file(bad):
            raise AssertionError("must not be reached")
